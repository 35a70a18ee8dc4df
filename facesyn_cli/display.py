"""The part of a terminal that is redrawn: stage lists and lines of progress, below the messages.

Everything is on stderr. There is one such part, however many lines of progress are nested in each other; messages
logged meanwhile are printed above it. A terminal that cannot move its cursor (`TERM=dumb`), a pipe and a file get none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.live import Live

_blocks: list[RenderableType] = []  # from top to bottom; the later ones are nested in the earlier ones
_live: Live | None = None


def can_redraw() -> bool:
    """True when stderr is a terminal on which lines can be redrawn."""
    return _is_capable_terminal(sys.stderr)


def has_color(stream: TextIO) -> bool:
    """True when text on a stream may be colored: on a terminal or with FORCE_COLOR, unless NO_COLOR is set."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return _is_capable_terminal(stream)


def _is_capable_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


@contextmanager
def shown(block: RenderableType, is_kept: bool) -> Iterator[None]:
    """Show something that rich can render, redrawn four times a second, and remove it at the end.

    Args:
        block: It.
        is_kept: Where nothing else is shown, its last state stays on the terminal, above what follows.
    """
    global _live
    _blocks.append(block)
    if _live is None:
        _live = _start()
    try:
        yield
    finally:
        if len(_blocks) > 1:
            _blocks.remove(block)
            _live.refresh()
        else:
            live, _live = _live, None
            live.stop()  # removes what it has drawn, which is the block
            _blocks.clear()
            if is_kept:
                live.console.print(block)


def write_line(text: str) -> bool:
    """Print a message, which may hold color codes, above what is shown; return False where nothing is shown."""
    if _live is None:
        return False
    from rich.text import Text

    _live.console.print(Text.from_ansi(text), soft_wrap=True)
    return True


def _start() -> Live:
    from rich.console import Console
    from rich.live import Live

    # stdout is for data and stays as it is; what libraries write to stderr is printed above
    live = Live(get_renderable=_render, console=Console(stderr=True), transient=True, redirect_stdout=False)
    live.start()
    return live


def _render() -> Group:
    from rich.console import Group
    from rich.padding import Padding

    return Group(*(Padding(block, (0, 0, 0, 2 if number else 0)) for number, block in enumerate(_blocks)))
