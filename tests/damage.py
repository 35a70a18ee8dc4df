"""Ways in which a disk damages files, and how a finished folder becomes an unfinished one again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from facesyn_cli.artifacts.weights import read_tensors


def truncate(path: Path) -> None:
    """Cut off the second half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    """Leave no byte."""
    path.write_bytes(b"")


def zero(path: Path) -> None:
    """Keep the size, lose the content."""
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    """Flip one bit of the last byte: of a tensor file one of a number, which no format check can see."""
    data = bytearray(path.read_bytes())
    data[-1 if path.suffix == ".safetensors" else len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate, "empty": empty, "zeros": zero, "flipped bit": flip, "missing": Path.unlink,
}


def unfinish(folder: Path, *results: str) -> None:
    """Bring a finished folder back to what a kill before its last step leaves: the header is not written yet.

    Args:
        folder: The folder.
        results: Files that were not written yet either.
    """
    header = json.loads((folder / "facesyn.json").read_text())
    (folder / "facesyn.json").unlink()
    (folder / "facesyn.begun.json").write_text(json.dumps({**header, "counts": {}, "extra": {}, "digest": ""}))
    for name in results:
        (folder / name).unlink()


def check_fallback(run_cli, assert_refused, arguments: list[str], out: Path) -> None:
    """Check that a training resumes from the older checkpoint, and names what to remove where none is whole.

    Args:
        run_cli: The fixture.
        assert_refused: The fixture.
        arguments: A training with a checkpoint after each step.
        out: Its folder.
    """
    ran = run_cli(*arguments)
    assert ran.code == 0, ran.err
    weights = read_tensors(out / "model.safetensors")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    older, newer = sorted((out / "checkpoints").iterdir())

    unfinish(out, "model.safetensors")
    flip(max(newer.glob("*.safetensors"), key=os.path.getsize))
    ran = run_cli(*arguments)
    assert ran.code == 0, ran.err
    (warning,) = [line for line in ran.err.splitlines() if line.startswith("warning: checkpoint")]
    assert str(newer) in warning and older.name in warning
    again = read_tensors(out / "model.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(again[key], weights[key]) for key in weights)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(lines)

    unfinish(out, "model.safetensors")
    truncate(next(newer.glob("*.safetensors")))
    (older / "state.json").unlink()
    assert_refused(*arguments, says=(str(newer), str(older), f"remove {out / 'checkpoints'} to train"))
