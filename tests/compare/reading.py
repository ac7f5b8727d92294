"""What is on a page: its elements checked for their ends, its texts, tables and pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

SVG = "{http://www.w3.org/2000/svg}"
DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
VOID = ("meta", "link")


@dataclass
class Cell:
    """A cell of a table."""

    tag: str
    given: dict[str, str | None]
    text: str = ""

    @property
    def span(self) -> int:
        """Columns that it takes."""
        return int(self.given.get("colspan") or 1)


@dataclass
class Table:
    """A table, row by row."""

    given: dict[str, str | None]
    rows: list[list[Cell]] = field(default_factory=list)

    @property
    def texts(self) -> list[list[str]]:
        """What its cells say."""
        return [[" ".join(cell.text.split()) for cell in row] for row in self.rows]


class Page(HTMLParser):
    """A page that was read to its end; every element has one of its own.

    Args:
        text: The page.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[Table] = []
        self.headings: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [given["id"] for _, given in self.elements if "id" in given]
        assert len(ids) == len(set(ids))
        self.pictures = {
            str(picture.get("aria-labelledby")).split("-title")[0]: picture
            for picture in pictures_in(text)
        }

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute of {tag} twice"
        self.elements.append((tag, given))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append(Table(given))
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("td", "th"):
            self.tables[-1].rows[-1].append(Cell(tag, given))
        elif tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or ("th" in self.open):
            self.tables[-1].rows[-1][-1].text += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] = (self.open[-1], self.headings[-1][1] + data)

    @property
    def results(self) -> Table:
        """The main table."""
        (found,) = [table for table in self.tables if table.given.get("class") == "results"]
        return found


def pictures_in(text: str) -> list[Element]:
    """Every picture of a page, as XML."""
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def words(picture: Element) -> list[str]:
    """The texts that are drawn in a picture."""
    return ["".join(one.itertext()) for one in picture.iter(f"{SVG}text")]


def paths(picture: Element, style: str) -> list[str]:
    """The lines of a class in a picture."""
    return [one.attrib["d"] for one in picture.iter(f"{SVG}path") if one.get("class") == style]


def markers(picture: Element) -> list[tuple[float, float]]:
    """Where the points of a picture are."""
    places = [
        re.fullmatch(r"translate\((\S+) (\S+)\)", one.attrib["transform"])
        for one in picture.iter(f"{SVG}path")
        if "mark" in str(one.get("class"))
    ]
    return [(float(found[1]), float(found[2])) for found in places if found]
