"""How much text is exact behind a prefix on vLLM, whose sliding windows drop a prefix as they drop text.

That is what the window policy ``windowed`` means. Under ``visible`` every token sees the whole prefix,
which is the same as long as prefix and text fit the smallest window.
"""

from __future__ import annotations

from foreword.described import Described
from foreword.errors import MismatchError, TooLong


def text_room(prefix: Described) -> int | None:
    """Most tokens of text, read and written, that may stand behind a prefix; None where any number may.

    The last token that is written attends to nothing, so it may stand beyond the window.
    """
    windows = [site.window for site in prefix.sites if site.window is not None]
    if prefix.meta.windows == "windowed" or not windows:
        return None
    return min(windows) - prefix.length + 1


def check_room(prefix: Described) -> None:
    """Check that vLLM's windows leave room for a prompt and an answer of a token each.

    Raises:
        MismatchError: They do not.
    """
    room = text_room(prefix)
    if room is not None and room < 2:
        raise MismatchError(
            f"the prefix has {prefix.length} virtual tokens and window policy 'visible', and the model "
            f"a sliding window of {room + prefix.length - 1}, so vLLM, which drops a prefix with the "
            "text, has no room for text behind it. Use a prefix of window policy 'windowed', or "
            "Foreword's own engine (foreword serve)"
        )


def check_text(prefix: Described, read: int, written: int) -> None:
    """Check that vLLM's windows drop nothing of a prefix that the text shall see.

    Args:
        prefix: The prefix, or what its file says of it.
        read: Tokens of the prompt behind it.
        written: Tokens that may be written.

    Raises:
        TooLong: They would; the message says how many tokens there may be.
    """
    room = text_room(prefix)
    if room is not None and read + written > room:
        raise TooLong(
            f"the prefix has {prefix.length} virtual tokens and window policy 'visible', which vLLM "
            f"serves as long as prefix and text fit the sliding window: {max(0, room)} tokens of text. "
            f"Found a prompt of {read} and {written} to write. Ask for fewer, use a prefix of window "
            "policy 'windowed', or Foreword's own engine (foreword serve)"
        )
