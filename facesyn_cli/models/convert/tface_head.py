"""Classifiers as TFace saves them: `HEAD_Epoch_<E>_Split_<rank>_checkpoint.pth`, one file for each process.

A file is {data set: {"kernel": (512, local classes)}}, CurricularFace's with `t`, or {data set: kernel} of PartialFC.
Rank r holds the classes after those of ranks 0 .. r-1; of K classes over n ranks each holds K // n, and the first
K % n ranks one more. Without a distributed head it is one file, `HEAD_Epoch_<E>_checkpoint.pth`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from facesyn_cli.artifacts.torch_files import read_torch
from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.wrappers import unwrapped
from facesyn_cli.untrusted.input_files import input_size

KERNEL = "kernel"
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


def read_head(path: Path, dataset: str | None = None) -> dict[str, Tensor]:
    """Read a classifier and join its parts.

    Args:
        path: As for `find_files`.
        dataset: Name of the data set of the classifier; None when the file holds only one.

    Returns:
        `kernel` (embedding size, classes), float32, and what else the head keeps (`t`, (1,)).

    Raises:
        UserError: Missing, damaged, no classifier, or parts that do not belong together.
    """
    files = find_files(path)
    parts = [_read_part(file, dataset) for file in files]
    first = parts[0]
    for file, part in zip(files, parts, strict=True):
        if part.keys() != first.keys() or part[KERNEL].shape[0] != first[KERNEL].shape[0]:
            raise UserError(f"{file} and {files[0]} are no parts of one classifier: "
                            f"{_describe(part)} and {_describe(first)}")
        if any(not torch.equal(part[key], first[key]) for key in part if key != KERNEL):
            others = ", ".join(sorted(part.keys() - {KERNEL}))
            raise UserError(f"{file} and {files[0]} are of different moments: {others} differ")
    widths = [part[KERNEL].shape[1] for part in parts]
    num_classes, count = sum(widths), len(parts)
    expected = [num_classes // count + (rank < num_classes % count) for rank in range(count)]
    if widths != expected:
        raise UserError(f"{path}: parts of {', '.join(map(str, widths))} classes; {num_classes} classes in {count} "
                        f"parts would be {', '.join(map(str, expected))}: one is missing or of another run")
    return {**first, KERNEL: torch.cat([part[KERNEL] for part in parts], 1)}


def is_head(path: Path) -> bool:
    """True for a name that TFace gives classifiers, or a prefix of one, and for a safetensors file with a kernel."""
    if path.suffix == ".safetensors":
        return path.is_file() and _has_kernel(path)
    if path.exists():
        return path.is_file() and path.name.startswith("HEAD") and path.name.endswith(_ENDING)
    return any(path.parent.glob(f"{glob.escape(path.name)}_Split_*{_ENDING}")) or _single(path).is_file()


def read_any_head(path: Path, dataset: str | None = None) -> tuple[dict[str, Tensor], int]:
    """Read a classifier of TFace or the `head.safetensors` of ours.

    Returns:
        As `read_head`, and the number of files.

    Raises:
        UserError: As `read_head`.
    """
    if path.suffix != ".safetensors":
        return read_head(path, dataset), len(find_files(path))
    if dataset is not None:
        raise UserError(f"{path} is one classifier of no data set; leave out --dataset")
    tensors = unwrapped(read_tensors(path))
    if KERNEL not in tensors or tensors[KERNEL].ndim != 2:
        raise UserError(f"{path} holds no classifier; a tensor {KERNEL} (embedding, classes) was expected")
    return tensors, 1


def split_head(tensors: Mapping[str, Tensor], parts: int, dataset: str) -> list[dict[str, dict[str, Tensor]]]:
    """Return the contents of TFace's files of the ranks 0, 1, ...; undone by `read_head`.

    Args:
        tensors: `kernel` (embedding size, classes), and what else the head keeps, which goes into every part.
        parts: Number of ranks.
        dataset: Name of the data set in TFace's train.yaml.

    Raises:
        UserError: There are fewer classes than parts, or the head has weights that TFace has no place for.
    """
    if odd := sorted(tensors.keys() - {KERNEL, "t"}):
        raise UserError(f"this head keeps {', '.join(odd)}, for which TFace's files have no place")
    num_classes = tensors[KERNEL].shape[1]
    if not 1 <= parts <= num_classes:
        raise UserError(f"--parts {parts}: from 1 to {num_classes}, the number of classes, was expected")
    widths = [num_classes // parts + (rank < num_classes % parts) for rank in range(parts)]
    return [{dataset: {**tensors, KERNEL: part}} for part in tensors[KERNEL].split(widths, 1)]


def part_name(prefix: str, rank: int) -> str:
    """Return the name of the file of one rank."""
    return f"{prefix}_Split_{rank}{_ENDING}"


def _has_kernel(path: Path) -> bool:
    try:
        input_size(path)
        with safe_open(path, "pt") as file:
            return KERNEL in unwrapped(dict.fromkeys(file.keys()))
    except (SafetensorError, UserError, OSError, ValueError):
        return False  # reading it gives the error


def _single(prefix: Path) -> Path:
    return prefix.parent / f"{prefix.name}{_ENDING}"


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


def _describe(part: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{key} {list(value.shape)}" for key, value in part.items())
