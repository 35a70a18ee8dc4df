"""Warn of sets whose folders may not be identities, before training or evaluation on them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from facesyn_cli.artifacts.header import is_ours
from facesyn_cli.artifacts.image_set import ImageEntry, ImageFinder, ImageSet
from facesyn_cli.artifacts.name_lists import read_name_list
from facesyn_cli.artifacts.names import natural_key
from facesyn_cli.console import log
from facesyn_cli.errors import UserError

_SPLITS = frozenset((
    "train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "gallery", "probe", "query",
))
_FEW = 10            # images below which identities are not counted
_MANY = 1000         # images per identity on average that no set of people has
_NEARLY_ONE = 0.9    # identities per image
_MAX_LISTS = 50      # text files that are tried
_MAX_LIST_BYTES = 2**28
_SAMPLE_ROWS = 20


def warn_of_unclear_identities(images: ImageSet) -> None:
    """Log one warning if the identities of a set that facesyn did not write may be wrong, and which list has them.

    Args:
        images: A folder, zip file or list of images; identities from the labels of a list are not questioned.
    """
    if is_ours(images.path):
        return
    identities = list(dict.fromkeys(entry.identity for entry in images.entries))
    doubts = [] if images.has_listed_identities else list(_doubts(images.entries, identities))
    is_crowded = len(identities) == 1 or len(images.entries) > _MANY * len(identities)
    if is_crowded and len(images.entries) >= _FEW:
        doubts.append(f"few identities for {len(images.entries)} images: {len(identities)}, first {identities[0]!r}")
    if not doubts:
        return
    found = None if images.named_in else _list_beside(images)
    advice = (f"{found} lists the identities: give it in place of {images.path}" if found else
              "sort the images into one folder per person, or give a text list with lines `FILE IDENTITY` beside the "
              "folder in place of the folder")
    log.warning(f"{images.named_in or images.path}: {'; '.join(doubts)}; {advice}")


def _doubts(entries: list[ImageEntry], identities: list[str]) -> Iterator[str]:
    flat = [entry for entry in entries if "/" not in entry.location]
    if flat:
        yield (f"images outside of folders, each an identity of its own: {len(flat)} of {len(entries)}, first "
               f"{flat[0].location!r}")
    elif len(entries) >= _FEW and len(identities) > _NEARLY_ONE * len(entries):
        yield f"nearly one identity per image: {len(identities)} of {len(entries)} images"
    splits = sorted({top for name in identities if (top := name.partition("/")[0]).lower() in _SPLITS}, key=natural_key)
    if splits:
        yield f"identities named like parts of a split: {', '.join(map(repr, splits[:3]))}"
    parents: dict[str, list[str]] = {}
    for name in identities:
        parent, _, last = name.rpartition("/")
        parents.setdefault(last, []).append(parent)
    shared = {last: above for last, above in parents.items() if len(above) > 1}
    if shared:
        last, above = next(iter(shared.items()))
        one, two = (f"{parent}/{last}".lstrip("/") for parent in above[:2])
        yield (f"folder names under several folders, each a separate identity: {len(shared)}, first {one!r} and "
               f"{two!r}")


def _list_beside(images: ImageSet) -> Path | None:
    """Return a text list in or beside a folder, or beside a zip file, with the identities of its images."""
    finder = ImageFinder(images)
    folders = [images.path.parent, *([images.path] if images.path.is_dir() else [])]
    lists = (path for folder in folders for path in sorted(folder.glob("*.txt")) if path.is_file())
    for path in islice(lists, _MAX_LISTS):
        if path.stat().st_size <= _MAX_LIST_BYTES and _has_identities(path, finder):
            return path
    return None


def _has_identities(path: Path, finder: ImageFinder) -> bool:
    try:
        listed = read_name_list(path)
        if listed.labels is None or len(listed.names) > _MANY * len(set(listed.labels)):
            return False  # a list of parts, such as CelebA's list_eval_partition.txt, has few labels
        return any(finder.find(name, named_in=path) is not None for name in listed.names[:_SAMPLE_ROWS])
    except UserError:
        return False
