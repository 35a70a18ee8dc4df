"""`facesyn compare`: decide whether two photos, or two folders of photos, are of the same person.

Score: cosine between the unit embeddings; of a folder, the unit mean of the unit embeddings of its photos.
With the flip test an embedding is f(x) + f(flip x), as in the published evaluation. "Same" is a score above the
threshold that `eval` measured for this network (the mean over the folds of a benchmark).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.artifacts.benchmark_table import TABLE_JSON, BenchmarkTable
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.console import log
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.data.squares import say_cut
from facesyn_cli.distributed import choose_device
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.evaluation.verification import unit_rows
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.progress import progress
from facesyn_cli.untrusted.input_files import MAX_IMAGE, check_input, read_bytes

UNCALIBRATED = 0.3  # DCFace (arXiv:2304.07060) calls two faces of its own recognizer the same above this cosine


@dataclass(frozen=True)
class Threshold:
    """The cosine above which two embeddings are of the same person.

    Args:
        cosine: In [-1, 1].
        calibrated: True where it was measured with this network.
        source: Its origin, for messages.
    """

    cosine: float
    calibrated: bool
    source: str


def compare(
    first: Path, second: Path, weights: Path, table: Path | None = None, benchmark: str | None = None,
    resize: bool = False, flip: bool = True, device: str = "auto",
) -> dict[str, Any]:
    """Compare two photos or folders; either side may be either.

    Args:
        first: Photo, or folder or zip of photos of one person. Photos are aligned crops of the network's size.
        second: The same.
        weights: Recognizer.
        table: What `eval` wrote for this recognizer: its folder or its table.json; None: uncalibrated.
        benchmark: Row of the table whose threshold applies; None: the mean of all.
        resize: Accept photos of another size, of which the central square is resized.
        flip: Flip test; must be what the table was measured with.
        device: auto, cpu, cuda, ...

    Raises:
        UserError: A photo cannot be used, or the table is of another network or setting.
    """
    backbone = load_backbone(weights)
    threshold = read_threshold(table, benchmark, backbone.digest, flip)
    embedder = FaceEmbedder.of(  # one photo a batch: a score does not depend on other photos of the folder
        backbone, choose_device(device), batch_size=1, flip=flip, fit="square" if resize else "exact"
    )
    (one, num_one), (two, num_two) = (_embed(Path(path), embedder) for path in (first, second))
    score = float(one @ two)
    if not threshold.calibrated:
        log.warning(f"threshold {threshold.cosine} is {threshold.source}; give --table")
    return {
        "score": score, "threshold": threshold.cosine, "same": score > threshold.cosine,
        "calibrated": threshold.calibrated, "threshold_from": threshold.source,
        "photos": [num_one, num_two], "backbone": backbone.name, "flip": flip,
    }


def read_threshold(table: Path | None, benchmark: str | None, digest: str, flip: bool) -> Threshold:
    """Return the threshold of a table, or the uncalibrated one; `digest` is that of the recognizer's weights."""
    if table is None:
        if benchmark is not None:
            raise UserError("--benchmark names a row of --table; give that too")
        return Threshold(UNCALIBRATED, False, "not calibrated for this network (a value from the DCFace paper)")
    folder = table if table.is_dir() else table.parent
    if not table.is_dir() and table.name != TABLE_JSON:
        raise UserError(f"{table}: the folder that eval wrote, or its {TABLE_JSON}, was expected")
    content = BenchmarkTable.read(folder)
    if content.weights != digest:
        raise UserError(f"{table} was measured with other weights ({content.weights[:19]}) than these ({digest[:19]}); "
                        "thresholds of different networks are not comparable")
    if content.flip != flip:
        raise UserError(f"{table} was measured {'with' if content.flip else 'without'} the flip test; "
                        f"{'leave out' if content.flip else 'give'} --no-flip")
    found = {row.benchmark: row.threshold_cosine for row in content.rows if row.threshold_cosine is not None}
    if benchmark is not None and benchmark not in found:
        raise UserError(f"{table} has no threshold for {benchmark!r}; it has {', '.join(found) or 'none'}")
    if not found:
        raise UserError(f"{table} has no benchmark with a threshold")
    used = {benchmark: found[benchmark]} if benchmark is not None else found
    return Threshold(float(np.mean(list(used.values()))), True, f"{table}: {', '.join(used)}")


def _embed(path: Path, embedder: FaceEmbedder) -> tuple[NDArray[np.float64], int]:
    """Return the unit embedding of a photo, or the unit mean of a folder, and the number of photos."""
    names, read = _photos(path)
    total, num_cut = np.zeros(0), 0
    batches = fixed_batches(len(names), embedder.options.batch_size)
    with progress(path.name, len(names)) as bar:
        for batch in embedder.files(read, batches):
            if batch.problems:
                index, why = next(iter(batch.problems.items()))
                raise UserError(f"{names[index]}: {why}; aligned faces were expected (see facesyn align)")
            if not np.isfinite(batch.vectors).all():
                raise UserError(f"{names[batch.indices[0]]}: its embedding is not finite")
            rows = unit_rows(batch.vectors).sum(axis=0)
            total = rows if not total.size else total + rows
            num_cut += batch.num_cut
            bar.advance(len(batch.indices))
            signals.check()
    say_cut(path, num_cut, len(names))
    return unit_rows(total[None])[0], len(names)


def _photos(path: Path) -> tuple[list[str], Callable[[int], bytes]]:
    """Return the names of the photos, and a function that reads one by its number."""
    check_input(path, "a photo, or a folder or zip of photos")
    if path.is_file() and path.suffix.lower() != ".zip":
        return [str(path)], lambda index: read_bytes(path, MAX_IMAGE, "an image")
    images = ImageSet.open(path)
    names = [f"{path}: {entry.location}" for entry in images.entries]
    return names, lambda index: images.read(images.entries[index])
