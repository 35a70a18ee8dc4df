"""Classifiers as TFace saves them: `HEAD_Epoch_<E>_Split_<rank>_checkpoint.pth`, one file for each process.

A file is {data set: {"kernel": (512, local classes)}}, CurricularFace's with `t`, or {data set: kernel} of PartialFC.
Rank r holds the classes after those of ranks 0 .. r-1; of K classes over n ranks each holds K // n, and the first
K % n ranks one more. Without a distributed head it is one file, `HEAD_Epoch_<E>_checkpoint.pth`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from facesyn_cli.artifacts.torch_files import read_torch
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.wrappers import unwrapped
from facesyn_cli.models.heads.class_range import ClassRange, class_ranges
from facesyn_cli.untrusted.input_files import input_size

KERNEL = "kernel"
PUBLISHED = frozenset((KERNEL, "t"))  # tensors of a head for which TFace's files have a place
_ENDING = "_checkpoint.pth"
_SPLIT = re.compile(r"(?P<prefix>.+)_Split_(?P<rank>\d{1,4})_checkpoint\.pth")


def find_files(path: Path) -> list[Path]:
    """Return the files of a classifier in the order of their classes.

    Args:
        path: One file of it, or what stands in front of `_Split_<rank>_checkpoint.pth` (TFace's HEAD_RESUME).

    Raises:
        UserError: There is none, or one between the first and the last rank is missing.
    """
    split = _SPLIT.fullmatch(path.name)
    prefix = path.with_name(split["prefix"]) if split else path
    by_rank = {}
    for candidate in prefix.parent.glob("*" + _ENDING) if prefix.parent.is_dir() else ():
        match = _SPLIT.fullmatch(candidate.name)
        if match and match["prefix"] == prefix.name:
            by_rank[int(match["rank"])] = candidate
    if not by_rank:
        found = next((file for file in (path, _single(prefix)) if file.is_file()), None)
        if found is None:
            raise UserError(f"{path} does not exist; a classifier was expected: a file, or what stands in front of "
                            f"_Split_0{_ENDING}")
        return [found]
    missing = sorted(set(range(max(by_rank) + 1)) - by_rank.keys())
    if missing:
        raise UserError(f"{prefix}_Split_{missing[0]}{_ENDING} is missing; {max(by_rank) + 1} parts were expected")
    return [by_rank[rank] for rank in sorted(by_rank)]


@dataclass(frozen=True)
class HeadFiles:
    """The validated files of a classifier; class centers are read when they are needed.

    Args:
        files: In the order of their classes.
        dataset: Name of the data set of the classifier; None when the files hold only one.
        embedding_size: Rows of the kernel.
        widths: Classes in each file.
        others: What else the head keeps (`t`, (1,)).
    """

    files: tuple[Path, ...]
    dataset: str | None
    embedding_size: int
    widths: tuple[int, ...]
    others: dict[str, Tensor]

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Name of every tensor -> its shape."""
        kernel = torch.Size((self.embedding_size, sum(self.widths)))
        return {**{name: value.shape for name, value in self.others.items()}, KERNEL: kernel}

    def read(self, classes: ClassRange | None = None) -> dict[str, Tensor]:
        """Read `kernel` (embedding size, classes), and what else the head keeps.

        Args:
            classes: Classes to read, from the files that hold some of them; None: all.
        """
        parts, start = [], 0
        for file, width in zip(self.files, self.widths, strict=True):
            first, last = (0, width) if classes is None else (classes.start - start, classes.stop - start)
            columns, start = slice(max(first, 0), max(min(last, width), 0)), start + width
            if columns.start < columns.stop:
                parts.append(_read_columns(file, self.dataset, columns))
        return {**self.others, KERNEL: parts[0] if len(parts) == 1 else torch.cat(parts, 1)}


def open_head(path: Path, dataset: str | None = None) -> HeadFiles:
    """Validate a classifier of TFace; parts are read one after the other.

    Args:
        path: As for `find_files`.
        dataset: Name of the data set of the classifier; None when the file holds only one.

    Raises:
        UserError: Missing, damaged, no classifier, or parts that do not belong together.
    """
    files, shapes, others = find_files(path), [], []
    for file in files:
        part = _read_part(file, dataset)
        shapes.append({key: list(value.shape) for key, value in part.items()})
        others.append({key: value for key, value in part.items() if key != KERNEL})
        if shapes[-1].keys() != shapes[0].keys() or shapes[-1][KERNEL][0] != shapes[0][KERNEL][0]:
            raise UserError(f"{file} and {files[0]} are no parts of one classifier: "
                            f"{_describe(shapes[-1])} and {_describe(shapes[0])}")
        if any(not torch.equal(value, others[0][key]) for key, value in others[-1].items()):
            raise UserError(f"{file} and {files[0]} are of different moments: {', '.join(sorted(others[0]))} differ")
    widths = [shape[KERNEL][1] for shape in shapes]
    num_classes, count = sum(widths), len(files)
    expected = [part.width for part in class_ranges(num_classes, count)]
    if widths != expected:
        raise UserError(f"{path}: parts of {', '.join(map(str, widths))} classes; {num_classes} classes in {count} "
                        f"parts would be {', '.join(map(str, expected))}: one is missing or of another run")
    return HeadFiles(tuple(files), dataset, shapes[0][KERNEL][0], tuple(widths), others[0])


def read_head(path: Path, dataset: str | None = None) -> dict[str, Tensor]:
    """Read a classifier of TFace and join its parts; arguments and errors as of `open_head`.

    Returns:
        `kernel` (embedding size, classes), float32, and what else the head keeps (`t`, (1,)).
    """
    return open_head(path, dataset).read()


def is_head(path: Path) -> bool:
    """True for a name that TFace gives classifiers, or a prefix of one, and for a safetensors file with a kernel."""
    if path.suffix == ".safetensors":
        return path.is_file() and _has_kernel(path)
    if path.exists():
        return path.is_file() and path.name.startswith("HEAD") and path.name.endswith(_ENDING)
    return any(path.parent.glob(f"{glob.escape(path.name)}_Split_*{_ENDING}")) or _single(path).is_file()


def open_any_head(path: Path, dataset: str | None = None) -> HeadFiles:
    """Validate a classifier of TFace or the `head.safetensors` of ours; arguments and errors as of `open_head`."""
    if path.suffix != ".safetensors":
        return open_head(path, dataset)
    if dataset is not None:
        raise UserError(f"{path} is one classifier of no data set; leave out --dataset")
    with _opened(path) as (file, stored):
        shape = file.get_slice(stored[KERNEL]).get_shape() if KERNEL in stored else []
        if len(shape) != 2:
            raise UserError(f"{path} holds no classifier; a tensor {KERNEL} (embedding, classes) was expected")
        others = {name: file.get_tensor(own) for name, own in stored.items() if name != KERNEL}
    return HeadFiles((path,), None, shape[0], (shape[1],), others)


def read_any_head(path: Path, dataset: str | None = None) -> tuple[dict[str, Tensor], int]:
    """Read a classifier of TFace or the `head.safetensors` of ours; arguments and errors as of `open_head`.

    Returns:
        As `read_head`, and the number of files.
    """
    head = open_any_head(path, dataset)
    return head.read(), len(head.files)


def split_head(tensors: Mapping[str, Tensor], parts: int, dataset: str) -> list[dict[str, dict[str, Tensor]]]:
    """Return the contents of TFace's files of the ranks 0, 1, ...; undone by `read_head`.

    Args:
        tensors: `kernel` (embedding size, classes), and what else the head keeps, which goes into every part.
        parts: Number of ranks.
        dataset: Name of the data set in TFace's train.yaml.

    Raises:
        UserError: There are fewer classes than parts, or the head has weights that TFace has no place for.
    """
    if odd := sorted(tensors.keys() - PUBLISHED):
        raise UserError(f"this head keeps {', '.join(odd)}, for which TFace's files have no place")
    num_classes = tensors[KERNEL].shape[1]
    if not 1 <= parts <= num_classes:
        raise UserError(f"--parts {parts}: from 1 to {num_classes}, the number of classes, was expected")
    ranges = class_ranges(num_classes, parts)
    return [{dataset: {**tensors, KERNEL: tensors[KERNEL][:, part.columns]}} for part in ranges]


def part_name(prefix: str, rank: int | None) -> str:
    """Return the name of the file of one rank; None: of a classifier that is not divided."""
    return f"{prefix}{_ENDING}" if rank is None else f"{prefix}_Split_{rank}{_ENDING}"


def _read_columns(file: Path, dataset: str | None, columns: slice) -> Tensor:
    if file.suffix != ".safetensors":
        return _read_part(file, dataset)[KERNEL][:, columns]
    with _opened(file) as (tensors, stored):
        return tensors.get_slice(stored[KERNEL])[:, columns]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a safetensors file; also yield the names of its tensors by their names without wrappers."""
    input_size(path, expected="a weights file")
    try:
        with safe_open(path, "pt") as file:
            yield file, unwrapped({name: name for name in file.keys()})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is a damaged safetensors file: {' '.join(str(error).split())[:200]}") from error


def _has_kernel(path: Path) -> bool:
    try:
        input_size(path)
        with safe_open(path, "pt") as file:
            return KERNEL in unwrapped(dict.fromkeys(file.keys()))
    except (SafetensorError, UserError, OSError, ValueError):
        return False  # reading it gives the error


def _single(prefix: Path) -> Path:
    return prefix.with_name(part_name(prefix.name, None))


def _read_part(file: Path, dataset: str | None) -> dict[str, Tensor]:
    content = read_torch(file)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file} holds a {type(content).__name__}; a classifier of TFace was expected")
    if all(isinstance(value, Tensor) for value in content.values()):
        content = unwrapped(content)
    if KERNEL not in content:
        names = ", ".join(map(str, content))
        if dataset is None and len(content) > 1:
            raise UserError(f"{file} holds several classifiers ({names[:200]}); one was expected")
        if dataset is not None and dataset not in content:
            raise UserError(f"{file} holds no classifier of {dataset!r}; it has {names[:200]}")
        content = content[dataset] if dataset is not None else next(iter(content.values()))
    if isinstance(content, Tensor):  # PartialFC
        content = {KERNEL: content}
    elif isinstance(content, Mapping):
        content = unwrapped(content)
    is_head = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    if not is_head or KERNEL not in content or content[KERNEL].ndim != 2:
        raise UserError(f"{file} holds no classifier of TFace; a tensor {KERNEL} (embedding, classes) was expected")
    tensors = {str(key): value.float() if value.is_floating_point() else value for key, value in content.items()}
    if not all(value.isfinite().all() for value in tensors.values()):
        raise UserError(f"{file} holds numbers that are not finite")
    return tensors


def _describe(shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{key} {shape}" for key, shape in shapes.items())
