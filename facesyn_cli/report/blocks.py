"""What a page shows, as data: sections of headings, paragraphs, tables, charts and pictures.

`templates/blocks.html.j2` has one branch for each `kind`. Text is a string, an inline element, or a list of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


class Element:
    """Base of everything that the templates know; its kind is the name of its class."""

    @property
    def kind(self) -> str:
        """Name of the branch of the template."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Term(Element):
    """The name of a metric, as a button that shows its definition."""

    label: str
    anchor: str


@dataclass(frozen=True)
class Span(Element):
    """Text in an element of its own; `tip` appears on hover, tap or focus."""

    text: str
    css: str = ""
    tag: str = "span"
    tip: str | None = None


Text = str | Term | Span | Sequence[str | Term | Span]


@dataclass(frozen=True)
class Picture(Element):
    """One image as a data URI; without one, `missing` says why."""

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
class Numbers(Element):
    """A few large numbers: (name, value, error)."""

    rows: Sequence[tuple[Term, str, str]]


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


@dataclass(frozen=True)
class Verdict:
    """A finding: tone of the page and its word, heading, text, and where the figures are."""

    tone: str
    word: str
    title: str
    text: str
    anchor: str | None = None
    limits: str | None = None
    by: str | None = None


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
    """Two images side by side: (image, where it is from, its key) of each, and how alike they are."""

    faces: Sequence[tuple[Picture, str, str]]
    label: str
    likeness: str


@dataclass(frozen=True)
class Pairs(Element):
    """Pairs of images."""

    rows: Sequence[Pair]


@dataclass(frozen=True)
class Facts(Element):
    """Names with what they stand for."""

    rows: Sequence[tuple[str, Text]]


@dataclass(frozen=True)
class Series:
    """One curve or histogram of a chart, in units of the drawing.

    Args:
        name: In the legend.
        color: Name of a color of the page.
        line: Path of the line.
        area: Path of the filled area; empty: not filled.
        points: (x, y, tip) of the points that answer a pointer.
    """

    name: str
    color: str
    line: str
    area: str = ""
    points: Sequence[tuple[float, float, str]] = ()


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
    """A dot with its interval, its name on the left; None where there is no interval."""

    name: str
    y: float
    color: str
    x: float
    start: float | None
    end: float | None
    tip: str


@dataclass(frozen=True)
class Chart(Element):
    """A chart, in units of its view box.

    Args:
        title: Heading.
        spoken: Read out in place of the picture.
        width: Of the view box.
        height: Of the view box.
        box: (left, top, right, bottom) of the plot.
        x_label: Name of the horizontal axis.
        x_ticks: (place, label).
        about: What is seen, in a sentence or two.
        y_label: Name of the vertical axis.
        y_ticks: (place, label).
        series: Curves and histograms.
        marks: Vertical lines.
        columns: (x, width, tip) of the columns of a histogram.
        intervals: Rows of an interval chart.
    """

    title: Text
    spoken: str
    width: float
    height: float
    box: tuple[float, float, float, float]
    x_label: str
    x_ticks: Sequence[tuple[float, str]]
    about: str = ""
    y_label: str = ""
    y_ticks: Sequence[tuple[float, str]] = ()
    series: Sequence[Series] = ()
    marks: Sequence[Mark] = ()
    columns: Sequence[tuple[float, float, str]] = ()
    intervals: Sequence[Interval] = ()


@dataclass(frozen=True)
class Box(Element):
    """Blocks in a box of the page: `charts` and `two` are columns."""

    blocks: Sequence[Block]
    css: str = ""


@dataclass(frozen=True)
class Details(Element):
    """Blocks behind a click."""

    summary: str
    blocks: Sequence[Block]
    is_open: bool = False


Block = (
    Heading | Paragraph | Notes | Numbers | Table | Verdicts | Sheet | Strips | Pairs | Facts | Chart | Box | Details
)


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Args:
        anchor: Its id.
        name: In the bar on top.
        heading: Over its content.
        blocks: Its content.
    """

    anchor: str
    name: str
    heading: str
    blocks: Sequence[Block] = field(default_factory=list)
