"""`Stop`: one stop text, looked for in a text while it comes (Knuth, Morris and Pratt, 1977)."""

from __future__ import annotations


class Stop:
    """How much of a stop text the end of a text is.

    The work per character of the text does not grow with the stop text: a text of megabytes costs no
    more than a word. The table of its own repetitions is made no further than it was ever met.

    Args:
        stop: The stop text, at least one character.

    Attributes:
        met: Characters of the stop text that the text ends with, the most that there can be.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.met = 0
        self._borders = [0]

    def find(self, text: str) -> int | None:
        """Go on with more text; where in all of it the stop text ends, counted in `text`, if it does.

        After that there is nothing more to find.
        """
        for place, character in enumerate(text):
            self.met = self._after(self.met, character)
            if self.met == len(self.stop):
                return place + 1
        return None

    def _after(self, met: int, character: str) -> int:
        """Characters met after one more, when `met` were met before it."""
        while met and self.stop[met] != character:
            met = self._border(met)
        return met + (self.stop[met] == character)

    def _border(self, size: int) -> int:
        """Longest proper beginning of the first `size` characters that is also their end."""
        while len(self._borders) < size:
            last = len(self._borders)
            border = self._borders[-1]
            while border and self.stop[border] != self.stop[last]:
                border = self._borders[border - 1]
            self._borders.append(border + (self.stop[border] == self.stop[last]))
        return self._borders[size - 1]
