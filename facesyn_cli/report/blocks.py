"""Typed content of the page: sections of headings, paragraphs, tables, charts and pictures.

`templates/blocks.html.j2` renders them, one branch for each `kind`. Text is a string, an inline element, or a list of
both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class Element:
    """Base class of what the templates render."""

    @property
    def kind(self) -> str:
        """Name of the branch of the template: that of the class."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Term(Element):
    """The name of a metric, as a button that shows its definition."""

    label: str
    anchor: str


@dataclass(frozen=True)
class Span(Element):
    """Text in an element of its own; `tip` is shown on hover, tap or focus."""

    text: str
    css: str = ""
    tag: str = "span"
    tip: str | None = None


Text = str | Term | Span | Sequence[str | Term | Span]


@dataclass(frozen=True)
class Picture(Element):
    """One image as a data URI; without a URI, `missing` is the reason."""

    uri: str | None
    label: str
    missing: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Heading(Element):
    """A heading inside a section."""

    text: Text


@dataclass(frozen=True)
class Paragraph(Element):
    """A paragraph; its class is `intro` or `quiet`, or empty."""

    text: Text
    css: str = ""


@dataclass(frozen=True)
class Notes(Element):
    """A list of remarks."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Advice:
    """What to do about a figure or a finding: a sentence, command lines, and the address of a page that helps."""

    text: str
    commands: Sequence[str] = ()
    link: str | None = None


@dataclass(frozen=True)
class Appraisal:
    """A verdict on one number; `tone` is a class of the style sheet."""

    tone: str
    word: str
    text: str
    advice: Advice | None = None


@dataclass(frozen=True)
class Numbers(Element):
    """A few large numbers: (name, value, error, verdict)."""

    rows: Sequence[tuple[Term, str, str, Appraisal]]


@dataclass(frozen=True)
class Cell:
    """A cell of a table, with a line of small print under its text."""

    text: Text = ""
    small: str = ""
    css: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    header: Text
    cells: Sequence[Cell]
    css: str = ""


@dataclass(frozen=True)
class Table(Element):
    """A table that scrolls sideways on a small screen."""

    head: Sequence[Text]
    rows: Sequence[Row]
    caption: str = ""

    @property
    def width(self) -> str:
        """Class of the style sheet for paper, by the number of columns."""
        return "widest" if len(self.head) > 14 else "wide" if len(self.head) > 8 else "narrow"


@dataclass(frozen=True)
class Verdict:
    """The card of a finding; `tone` is a class of the style sheet, `anchor` the section with its figures."""

    tone: str
    word: str
    title: str
    text: str
    anchor: str | None = None
    limits: str | None = None
    by: str | None = None
    advice: Advice | None = None


@dataclass(frozen=True)
class Verdicts(Element):
    """Findings, most serious first."""

    cards: Sequence[Verdict]


@dataclass(frozen=True)
class Sheet(Element):
    """A contact sheet of single images."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Strip:
    """Images of one identity in a row; `source` is the face that its context came from."""

    name: str
    pictures: Sequence[Picture]
    note: str = ""
    source: Picture | None = None


@dataclass(frozen=True)
class Strips(Element):
    """One row of images per identity."""

    rows: Sequence[Strip]


@dataclass(frozen=True)
class Pair:
    """Two images side by side, (image, its origin, its key) each, and how similar they are."""

    faces: Sequence[tuple[Picture, str, str]]
    label: str
    likeness: str


@dataclass(frozen=True)
class Pairs(Element):
    """Pairs of images."""

    rows: Sequence[Pair]


@dataclass(frozen=True)
class Facts(Element):
    """Names and values."""

    rows: Sequence[tuple[Text, Text]]
    css: str = ""


@dataclass(frozen=True)
class Series:
    """One curve or histogram of a chart."""

    name: str                                            # in the legend
    color: str                                           # name of a color of the style sheet
    line: str                                            # path
    area: str = ""                                       # path of the filled area; empty: not filled
    points: Sequence[tuple[float, float, str]] = ()      # (x, y, tip) of points with a tip


@dataclass(frozen=True)
class Mark:
    """A vertical line with a label beside it."""

    x: float
    label_x: float
    label_y: float
    anchor: str
    label: str


@dataclass(frozen=True)
class Interval:
    """A row of an interval chart: a dot with its interval; `start` and `end` are None without one."""

    name: str
    y: float
    color: str
    x: float
    start: float | None
    end: float | None
    tip: str


@dataclass(frozen=True)
class Chart(Element):
    """A chart; places are in units of its view box."""

    title: Text
    spoken: str                                          # read out in place of the picture
    width: float                                         # of the view box
    height: float
    box: tuple[float, float, float, float]               # (left, top, right, bottom) of the plot
    x_label: str
    x_ticks: Sequence[tuple[float, str]]                 # (place, label)
    about: str = ""                                      # what it shows, in a sentence or two
    y_label: str = ""
    y_ticks: Sequence[tuple[float, str]] = ()
    series: Sequence[Series] = ()
    marks: Sequence[Mark] = ()
    columns: Sequence[tuple[float, float, str]] = ()     # (x, width, tip) of a histogram
    intervals: Sequence[Interval] = ()


@dataclass(frozen=True)
class Box(Element):
    """Blocks in a `div`; the classes `charts` and `two` lay them out in columns."""

    blocks: Sequence[Block]
    css: str = ""


@dataclass(frozen=True)
class Details(Element):
    """Blocks that a click on the summary shows."""

    summary: str
    blocks: Sequence[Block]
    is_open: bool = False


Block = (
    Heading | Paragraph | Notes | Numbers | Table | Verdicts | Sheet | Strips | Pairs | Facts | Chart | Box | Details
)


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    anchor: str                                          # its id
    name: str                                            # in the navigation bar
    heading: str
    blocks: Sequence[Block] = ()
