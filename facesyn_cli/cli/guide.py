"""`facesyn guide`: the guides that come with the package, in the terminal."""

from __future__ import annotations

import difflib
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facesyn_cli.cli.stage_command import start
from facesyn_cli.errors import UserError

if TYPE_CHECKING:
    from rich.markdown import Markdown

EXAMPLES = ("facesyn guide", "facesyn guide first-hour", "facesyn guide resume")
FOLDER = Path(__file__).resolve().parents[1] / "guide"
_WIDEST = 100  # characters of a line of text that are still easy to read
_EXCERPT = 90  # characters of a line that are shown around a word
_GAP = 2  # spaces between two columns of a table
_INDEX_ROW = re.compile(r"^\| \[[\w-]+\]\(([\w-]+)\.md\) \| (.+) \|$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)([^)]+)\)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]+\)")


def topics() -> dict[str, str]:
    """Return what each topic answers, by topic, in the order of the index `README.md`."""
    return dict(_INDEX_ROW.findall(_text("README")))


def _complete(incomplete: str) -> list[tuple[str, str]]:
    return [(topic, about) for topic, about in topics().items() if topic.startswith(incomplete)]


def command(
    topic: Annotated[
        str | None, typer.Argument(help="A topic, or a word to find in all of them.", autocompletion=_complete)
    ] = None,
) -> None:
    """List the guides, show one, or find a word in all of them."""
    start()
    known = topics()
    if not topic:
        _print_table("topic", "what it answers", rows=[(name, about.replace("`", "")) for name, about in known.items()])
        typer.echo("facesyn guide TOPIC shows one of them; facesyn guide WORD finds a word in all", err=True)
    elif topic in known:
        _show(_text(topic))
    else:
        _print_places(topic, list(known))


def _text(topic: str) -> str:
    return (FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def _print_table(*titles: str, rows: list[tuple[str, ...]]) -> None:
    from facesyn_cli.cli.terminal import Column, render_table, terminal_width

    typer.echo(render_table([Column(title, is_text=True) for title in titles], rows, terminal_width()))


def _print_places(word: str, known: list[str]) -> None:
    """Print every section of the guides in which a word stands, with an excerpt."""
    rows = [(topic, section, line) for topic in known for section, line in _places(word, _text(topic))]
    nearest = difflib.get_close_matches(word, known, n=1)
    if not rows:
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UserError(f"no guide is called {word!r}, and no guide has this word; {hint}topics are {', '.join(known)}")
    _print_table("topic", "section", "first place there", rows=rows)
    hint = f"; the nearest topic is {nearest[0]}" if nearest else ""
    typer.echo(f"no guide is called {word!r}; this is where the guides have the word{hint}", err=True)


def _places(word: str, text: str) -> list[tuple[str, str]]:
    """Return heading and excerpt of every section of a Markdown text that has a word, in any case."""
    found: dict[str, str] = {}
    heading, is_code = "", False
    for line in text.splitlines():
        is_code ^= line.startswith("```")
        plain = _LINK.sub(r"\1", line).replace("`", "").replace("**", "").strip("|#- ")
        if line.startswith("#") and not is_code:
            heading = plain
        if word.lower() in plain.lower() and heading not in found:
            found[heading] = _excerpt(plain, plain.lower().index(word.lower()))
    return list(found.items())


def _excerpt(line: str, place: int) -> str:
    """Return the part of a line around a place."""
    start = max(0, min(place - _EXCERPT // 3, len(line) - _EXCERPT))
    stop = start + _EXCERPT
    return f"{'...' if start else ''}{line[start:stop].strip()}{'...' if stop < len(line) else ''}"


def _show(text: str) -> None:
    """Print Markdown: as it stands without a terminal, else formatted, through a pager where it is longer than it."""
    if not sys.stdout.isatty():
        typer.echo(text, nl=False)
        return
    columns, lines = shutil.get_terminal_size()
    shown = formatted(text, columns)
    if shown.count("\n") < lines:
        typer.echo(shown, nl=False)
        return
    import pydoc  # its pager honors PAGER and works without `less`

    os.environ.setdefault("LESS", "FRX")  # as git sets it: -R keeps the colors
    pydoc.pager(shown)


def formatted(text: str, width: int) -> str:
    """Return Markdown as text for a terminal, with escape codes.

    A line of code is neither indented, framed nor broken, so that it can be copied. A link to another guide becomes the
    command that shows it.

    Args:
        text: Markdown.
        width: Characters of a line of the terminal.
    """
    from rich.console import Console
    from rich.theme import Theme

    target, theme = io.StringIO(), Theme({"markdown.code": "cyan"})  # readable on dark and light backgrounds
    console = Console(file=target, width=width, force_terminal=True, highlight=False, theme=theme)
    markdown = _markdown(_LINK.sub(_as_command, _IMAGE.sub(r"*(picture: \1)*", text)))
    console.print(markdown, width=min(width, _WIDEST), crop=False)
    return "".join(f"{line.rstrip()}\n" for line in target.getvalue().splitlines())


def _as_command(link: re.Match[str]) -> str:
    text, target = link.groups()
    topic = target.partition("#")[0].removesuffix(".md")
    return f"{text} (`facesyn guide {topic}`)" if topic in topics() else text


def _markdown(text: str) -> Markdown:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import CodeBlock, Heading, Markdown, TableElement
    from rich.table import Table
    from rich.text import Text

    class PlainHeading(Heading):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            yield Text(self.text.plain, style="bold underline" if self.tag == "h1" else "bold")

    class PlainCode(CodeBlock):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            yield Text(str(self.text).rstrip(), style="cyan", no_wrap=True, overflow="ignore")

    class PlainTable(TableElement):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            header, *rows = ([cell.content for cell in row.cells] for row in (self.header.row, *self.body.rows))
            widths = [max(cell.cell_len for cell in column) + _GAP for column in zip(header, *rows, strict=True)]
            is_wrapped = sum(widths) - _GAP > console.width  # an empty line then separates the rows
            table = Table(box=None, padding=(0, _GAP, int(is_wrapped), 0), pad_edge=False, header_style="bold")
            for title in header:
                table.add_column(title, overflow="fold")
            for row in rows:
                table.add_row(*row)
            yield from console.render(table, options.update(max_width=console.width))

    class PlainMarkdown(Markdown):
        elements = {**Markdown.elements, "heading_open": PlainHeading, "fence": PlainCode, "code_block": PlainCode,
                    "table_open": PlainTable}

    return PlainMarkdown(text, hyperlinks=False)
