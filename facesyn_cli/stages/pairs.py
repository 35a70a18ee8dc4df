"""pairs: verification pairs from one form to another, `.bin` in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facesyn_cli import signals
from facesyn_cli.artifacts.images import ImageSet
from facesyn_cli.console import progress
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.cfp import has_cfp, read_cfp
from facesyn_cli.evaluation.pair_writers import IMAGES, LIST, write_bin, write_folder
from facesyn_cli.evaluation.pairs import PairSet, is_bin, read_bin, read_pairs


def convert_pairs(
    source: Path, out: Path, images: Path | None = None, cfp: str = "FP", size: int = 112, resize: bool = False
) -> dict[str, Any]:
    """Read pairs of any form and write them to a `.bin` or to a folder.

    Args:
        source: `.bin`, list of pairs, or the folder of CFP.
        out: A name ending in `.bin`, or a folder.
        images: What a list names; of CFP, by default, its own images.
        cfp: FF or FP.
        size: Side of the images.
        resize: Resize images of another size, their central squares.

    Raises:
        UserError: The source is wrong, an image cannot be used, or something lies where to write.
    """
    to_bin = out.suffix == ".bin"
    _refuse_existing(out, to_bin)
    if size < 1:
        raise UserError(f"--size must be at least 1, got {size}")
    pairs = _read(source, images, cfp)
    with progress("pairs", len(pairs.images)) as bar:

        def advance(count: int) -> None:
            bar.advance(count)
            signals.check()

        (write_bin if to_bin else write_folder)(pairs, out, size, resize, advance)
    return {
        "pairs": len(pairs), "genuine": int(pairs.is_same.sum()), "images": len(pairs.images), "folds": pairs.folds,
        "out": str(out),
    }


def _refuse_existing(out: Path, to_bin: bool) -> None:
    """Never write over anything; a folder without its list is what a killed run left, and is finished."""
    if to_bin and out.exists():
        raise UserError(f"{out} exists; choose another --out")
    if not to_bin and out.exists():
        strange = [p.name for p in out.iterdir() if p.name != IMAGES] if out.is_dir() else [out.name]
        if strange:
            what = "holds pairs already" if LIST in strange else f"is there and holds {strange[0]!r}"
            raise UserError(f"{out} {what}; choose another --out, a new folder or a name ending in .bin")


def _read(source: Path, images: Path | None, cfp: str) -> PairSet:
    if source.is_dir():
        if cfp not in ("FF", "FP"):
            raise UserError(f"--cfp must be FF or FP, got {cfp!r}")
        if not has_cfp(source, cfp):
            raise UserError(f"{source} has no folder Protocol/Split/{cfp}; a .bin, a list or CFP's folder was expected")
        return read_cfp(source, cfp, ImageSet.open(images or source / "Data" / "Images"), f"cfp-{cfp.lower()}")
    if is_bin(source):
        return read_bin(source, source.stem)
    if images is None:
        raise UserError(f"{source} is a list; give the folder or zip of its images with --images")
    return read_pairs(source, ImageSet.open(images), source.stem)
