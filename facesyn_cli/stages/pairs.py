"""`facesyn pairs`: converts verification pairs to a `.bin` or a folder, from a `.bin`, a list or the folders of CFP.

A folder is finished when it has a header. A `.bin` has none, so it is made again and compared with the existing file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_directory import atomic_file
from facesyn_cli.artifacts.digest import file_digest, json_digest, path_digest
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.output import FixedConfig, open_output
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.cfp import has_cfp, read_cfp
from facesyn_cli.evaluation.pair_writers import write_bin, write_folder
from facesyn_cli.evaluation.pairs import PairSet, is_bin, read_bin, read_pairs
from facesyn_cli.progress import progress


def convert_pairs(
    source: Path, out: Path, images: Path | None = None, cfp: str = "FP", size: int = 112, resize: bool = False
) -> dict[str, Any]:
    """Read pairs of any form and write them to a `.bin` or to a folder.

    Args:
        source: `.bin`, list of pairs, or the folder of CFP.
        out: A name ending in `.bin`, or a folder.
        images: Images of a list; None: those in CFP's own folder.
        cfp: FF or FP.
        size: Side of the images.
        resize: Resize images of another size, their central squares.

    Raises:
        UserError: The source is invalid, an image cannot be used, or the output is something else.
    """
    if size < 1:
        raise UserError(f"--size must be at least 1, got {size}")
    pairs, opened = _read(source, images, cfp)
    counts = {
        "pairs": len(pairs), "genuine": int(pairs.is_same.sum()), "images": len(pairs.images), "folds": pairs.folds,
    }
    with progress("pairs", len(pairs.images)) as bar:

        def advance(count: int) -> None:
            bar.advance(count)
            signals.check()

        if out.suffix == ".bin":
            with atomic_file(out) as path:
                write_bin(pairs, path, size, resize, advance)
        else:
            cfg = FixedConfig({"cfp": cfp if source.is_dir() else None, "size": size, "resize": resize})
            with open_output(out, "PairSet", "pairs", cfg, _parents(source, opened, cfp)) as output:
                if not output.finished:
                    write_folder(pairs, out, size, resize, advance)
                    output.finish(counts)
    return {**counts, "out": str(out)}


def _parents(source: Path, images: ImageSet | None, cfp: str) -> dict[str, Parent]:
    """Return the inputs; of CFP's folder the lists of one protocol."""
    protocol = source / "Protocol"
    digest = file_digest(source) if source.is_file() else json_digest([
        path_digest(protocol / "Split" / cfp), *(file_digest(path) for path in sorted(protocol.glob("*.txt"))),
    ])
    parents = {"pairs": Parent(str(source), digest)}
    if images is not None:
        parents["images"] = images.parent()
    return parents


def _read(source: Path, images: Path | None, cfp: str) -> tuple[PairSet, ImageSet | None]:
    """Return the pairs and the images of a list; None for a `.bin`, which holds its images."""
    if source.is_dir():
        if cfp not in ("FF", "FP"):
            raise UserError(f"--cfp must be FF or FP, got {cfp!r}")
        if not has_cfp(source, cfp):
            raise UserError(f"{source} has no folder Protocol/Split/{cfp}; a .bin, a list or CFP's folder was expected")
        opened = ImageSet.open(images or source / "Data" / "Images")
        return read_cfp(source, cfp, opened, f"cfp-{cfp.lower()}"), opened
    if is_bin(source):
        return read_bin(source, source.stem), None
    if images is None:
        raise UserError(f"{source} is a list; give the folder or zip of its images with --images")
    opened = ImageSet.open(images)
    return read_pairs(source, opened, source.stem), opened
