"""A picture of a pipeline as SVG: one box a stage, arrows for what a stage reads, faces where a set is finished.

Boxes stand in rows, in the order in which the stages run. The picture has its own background and follows the light or
dark theme of the reader's system.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from facesyn_cli.report.picture_lines import MARGIN, Layout, Place, Point, lay_out, rounded_path

WIDTH, COLUMNS, GAPS = 960, 3, 88
BOX = (WIDTH - 2 * MARGIN - GAPS) / COLUMNS
MOST_THUMBS = 5
_PADDING, _LINE, _HEAD = 16, 21, 88      # inside a box: to its border, between lines; height of the heading
_THUMB, _THUMB_GAP, _PILL = 44, 5, 24
_INNER = BOX - 2 * _PADDING
_SIZES = {"title": 24, "lead": 15, "name": 17, "about": 14.5, "fact": 14, "pill": 13, "folder": 13, "done": 13,
          "note": 13, "command": 13}     # of the fonts, in pixels
_FIXED_WIDTH = ("name", "folder", "command")

_STYLE = """
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.name,.folder,.command{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
SIZES
.title,.name,.done,.count{font-weight:600}.done{text-anchor:end}.count{font-size:12px;text-anchor:middle}
.page,.count{fill:#fff}.page,.box{stroke:#d1d9e0}.box{fill:#f6f8fa}.title,.name,.about{fill:#1f2328}
.lead,.fact,.folder,.pill,.note,.command{fill:#59636e}.done{fill:#1a7f37}
.wire,.halo{fill:none}.wire{stroke:#0969da;stroke-width:1.8}.halo{stroke:#fff;stroke-width:7}.mark{fill:#0969da}
.given{fill:none;stroke:#818b98;stroke-dasharray:3 3}
@media(prefers-color-scheme:dark){.page,.count{fill:#0d1117}.page,.box{stroke:#3d444d}.box{fill:#151b23}
.title,.name,.about{fill:#f0f6fc}.lead,.fact,.folder,.pill,.note,.command{fill:#9198a1}.done{fill:#3fb950}
.wire{stroke:#4493f8}.halo{stroke:#0d1117}.mark{fill:#4493f8}.given{stroke:#656c76}}
@media(max-width:560px){.name{font-size:20px}.title{font-size:34px}.lead{display:none}}
""".replace("SIZES", "".join(f".{name}{{font-size:{size}px}}" for name, size in _SIZES.items()))


@dataclass(frozen=True)
class StageBox:
    """One stage.

    Args:
        name: Name of the stage.
        about: What it does, in a few words.
        folder: The folder that it writes.
        facts: Its essential settings, one line each.
        inputs: Names of inputs from outside of the run.
        reads: Names of the stages whose folders it reads.
        done: Content of the finished folder; empty where it is not finished.
        thumbs: Square pictures as data URIs.
    """

    name: str
    about: str
    folder: str
    facts: Sequence[str]
    inputs: Sequence[str] = ()
    reads: Sequence[str] = ()
    done: str = ""
    thumbs: Sequence[str] = field(default=(), repr=False)


def draw_pipeline(title: str, lead: str, boxes: Sequence[StageBox], notes: Sequence[str], command: str) -> str:
    """Return the picture as an SVG document.

    Args:
        title: Heading.
        lead: The line below it.
        boxes: The stages, in the order in which they run.
        notes: Lines at the bottom.
        command: The command that makes the picture; shown at the bottom.
    """
    places = {box.name: Place(k // COLUMNS, k % COLUMNS) for k, box in enumerate(boxes)}
    heights = [max(map(_height, boxes[k : k + COLUMNS])) for k in range(0, len(boxes), COLUMNS)]
    reads = {box.name: [name for name in box.reads if name in places] for box in boxes}
    layout = lay_out(places, reads, heights, BOX, COLUMNS, _HEAD)
    parts = [_wires(layout)]
    for number, box in enumerate(boxes, 1):
        place = places[box.name]
        parts.append(_box(box, number, layout.lefts[place.column], layout.tops[place.row], heights[place.row]))
    y, inner = layout.bottom + 34, WIDTH - 2 * MARGIN
    free, wrapped = len(boxes) % COLUMNS, [line for note in notes for line in _wrap(note, "note")]
    if free and _PADDING + _LINE * len(wrapped) <= heights[-1]:  # beside the last box
        parts += [_text("note", layout.lefts[free] + _PADDING, layout.tops[-1] + _PADDING + 13 + _LINE * k, line)
                  for k, line in enumerate(wrapped)]
    else:
        parts += [_text("note", MARGIN, y + _LINE * k, fit(note, "note", inner)) for k, note in enumerate(notes)]
        y += _LINE * len(notes)
    parts.append(_text("command", MARGIN, y, fit(command, "command", inner)))
    height = round(y + MARGIN - 4)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' role="img">',
        f"<title>{escape(f'{title}. {lead}')}</title>",
        f"<desc>Made by: {escape(command)}</desc>",  # a comment in XML must not hold two hyphens
        f"<style>{_STYLE}</style>",
        f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="12"/>',
        _text("title", MARGIN, 44, fit(title, "title", inner)), _text("lead", MARGIN, 69, fit(lead, "lead", inner)),
        *parts, "</svg>", "",
    ])


def text_width(text: str, style: str) -> float:
    """Return an upper estimate of the width of a text in pixels; fonts differ from system to system."""
    size = _SIZES[style]
    if style in _FIXED_WIDTH:
        return 0.61 * size * len(text)
    return size * sum(0.32 if c in "iljtf.,:;|!'()[] " else 0.88 if c in "mwMW@%" else 0.7 if c.isupper() else 0.57
                      for c in text)


def fit(text: str, style: str, width: float) -> str:
    """Return a text, with an ellipsis in place of the end that does not fit."""
    if text_width(text, style) <= width:
        return text
    while text and text_width(f"{text}\N{HORIZONTAL ELLIPSIS}", style) > width:
        text = text[:-1]
    return f"{text.rstrip(' ,')}\N{HORIZONTAL ELLIPSIS}"


def _wrap(text: str, style: str) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, style) > _INNER and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fit(line, style, _INNER) for line in lines]


def _pills(box: StageBox) -> list[list[str]]:
    """Return the names of the inputs from outside, row by row."""
    rows: list[list[str]] = [[]]
    for name in box.inputs:
        name = fit(name, "pill", _INNER - 20)
        if rows[-1] and sum(map(_pill_width, [*rows[-1], name])) - 8 > _INNER:
            rows.append([])
        rows[-1].append(name)
    return rows if rows[0] else []


def _pill_width(name: str) -> float:
    return text_width(name, "pill") + 20 + 8  # with the space after it


def _height(box: StageBox) -> float:
    lines = len(_wrap(box.about, "about")) + sum(len(_wrap(fact, "fact")) for fact in box.facts)
    thumbs = _THUMB + 12 if box.thumbs else 0
    return _PADDING + 24 + _LINE * lines + 4 + (_PILL + 6) * len(_pills(box)) + thumbs + 30 + _PADDING / 2


def _box(box: StageBox, number: int, left: float, top: float, height: float) -> str:
    x, y = left + _PADDING, top + _PADDING + 15
    parts = [
        f'<rect class="box" x="{left:.1f}" y="{top:.1f}" width="{BOX:.1f}" height="{height:.1f}" rx="8"/>',
        f'<circle class="mark" cx="{x + 10:.1f}" cy="{y - 5.5:.1f}" r="10"/>',
        _text("count", x + 10, y - 1.3, str(number)),
        _text("name", x + 28, y, fit(box.name, "name", _INNER - 28)),
    ]
    y += 3
    for style, texts in (("about", [box.about]), ("fact", box.facts)):
        for line in (line for text in texts for line in _wrap(text, style)):
            y += _LINE
            parts.append(_text(style, x, y, line))
    y += 12
    for row in _pills(box):
        at = x
        for name in row:
            width = _pill_width(name) - 8
            parts += [f'<rect class="given" x="{at:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_PILL}" rx="12"/>',
                      _text("pill", at + 10, y + 16.5, name)]
            at += width + 8
        y += _PILL + 6
    bottom = top + height - _PADDING + 1
    for k, uri in enumerate(box.thumbs[:MOST_THUMBS]):
        at = x + k * (_THUMB + _THUMB_GAP)
        parts.append(f'<image x="{at:.1f}" y="{bottom - 24 - _THUMB:.1f}" width="{_THUMB}" height="{_THUMB}"'
                     f' clip-path="inset(0 round 6px)" href="{uri}"/>')
    folder = fit(box.folder, "folder", _INNER)
    if folder:
        parts.append(_text("folder", x, bottom, folder))
    room = _INNER - text_width(folder, "folder") - 10
    if box.done and text_width(box.done, "done") <= room:
        parts.append(_text("done", left + BOX - _PADDING, bottom, box.done))
    return f'<g id="stage-{escape(box.name)}">' + "".join(parts) + "</g>"


def _wires(layout: Layout) -> str:
    """Return all lines, each with a border in the color of the page, so that crossings stay clear."""
    nets: dict[Point, list[tuple[str, str]]] = {}  # where the lines of one box begin -> path and arrowhead of each
    for points in layout.lines:
        (before_x, before_y), (x, y) = points[-2:]
        back_x, back_y = _sign(x - before_x), _sign(y - before_y)
        path = rounded_path([*points[:-1], (x - 7 * back_x, y - 7 * back_y)])
        head = " ".join(f"{x - 9 * back_x + 5 * side * back_y:.1f},{y - 9 * back_y + 5 * side * back_x:.1f}"
                        for side in (1, -1))
        nets.setdefault(points[0], []).append((path, f"{x - back_x:.1f},{y - back_y:.1f} {head}"))
    parts = []
    for net in nets.values():
        parts += [f'<path class="{style}" d="{path}"/>' for style in ("halo", "wire") for path, _ in net]
        parts += [f'<polygon class="mark" points="{head}"/>' for _, head in net]
    return "".join(parts)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _text(style: str, x: float, y: float, text: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
