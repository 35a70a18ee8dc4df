"""The short dataset card of a packed set, and the YAML head with which Hugging Face `datasets` loads it.

With the head, `datasets.load_dataset(FOLDER)` finds images and labels; without it, `labels.txt` of a WebDataset is read
as a dataset of texts.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from facesyn_cli.artifacts.atomic_files import update_text
from facesyn_cli.report.rendering import printable, render_markdown

FILE = "README.md"
_OURS = "# Written by facesyn, which writes it anew when the set grows; remove this line to keep your own changes."
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))
_LOADABLE = {
    "webdataset": "column `cls` is the label of `labels.txt`",
    "parquet": "columns `image` and `label`, with the names of the identities",
    "folder": "columns `image` and `label`, named after the folders",
}


def loading_head(format_name: str, name: str, suffixes: Sequence[str], has_labels: bool = True) -> dict[str, Any]:
    """Return the entries of a card's head with the locations of the images of a packed set.

    Args:
        format_name: Name of the record format.
        name: Name of the set.
        suffixes: Of its images, `.jpg` for example.
        has_labels: Labels are assigned, as `pack` does.

    Returns:
        Empty for formats that `datasets` does not read.
    """
    inside = glob.escape(name)
    patterns = {
        "webdataset": [f"{inside}/*.tar"],
        "parquet": [f"{inside}/data/*.parquet"],
        "folder": [f"**/*{suffix}" for suffix in suffixes],
    }.get(format_name)
    if not patterns:
        return {}
    head: dict[str, Any] = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": patterns}]}]
    }
    if format_name == "webdataset" and len(suffixes) > 1:  # else the first images decide on the columns
        columns = [{"name": suffix.lstrip("."), "dtype": "image"} for suffix in suffixes]
        texts = [{"name": field, "dtype": "string"} for field in ("__key__", "__url__")]
        labels = [{"name": "cls", "dtype": "int64"}] if has_labels else []
        head["dataset_info"] = {"features": [*columns, *labels, *texts]}
    return head


def front(name: str, images: int, loading: dict[str, Any], tags: Sequence[str] = ()) -> str:
    """Return the YAML head of a card. The license is `other`: which one applies is for the publisher to decide.

    Args:
        name: Of the set.
        images: How many it holds.
        loading: Entries of `loading_head`.
        tags: Beside `face-recognition`.
    """
    head = {
        "pretty_name": printable(name),
        "license": "other",
        "license_name": "unknown",
        "task_categories": ["image-feature-extraction"],
        "size_categories": [next((word for limit, word in _SIZES if images < limit), "n>100M")],
        "tags": ["face-recognition", *tags],
        **loading,
    }
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def write_pack_card(
    folder: Path, extra: dict[str, Any], images: int, identities: int, command: str = "pack", has_photos: bool = False
) -> None:
    """Write `README.md` into a packed set, unless it has one that facesyn did not write.

    Args:
        folder: Of the set.
        extra: `format`, `name` and `suffixes` of its header.
        images: How many it holds.
        identities: Of how many people.
        command: Command that wrote it; only `pack` assigns labels.
        has_photos: By the headers, photos of real people are among the images.
    """
    path = folder / FILE
    if path.exists() and _OURS.encode() not in path.read_bytes():
        return
    has_labels = command == "pack"
    loading = loading_head(str(extra["format"]), str(extra["name"]), extra["suffixes"], has_labels)
    update_text(path, render_markdown(
        "pack_card.md.j2", head=front(str(extra["name"]), images, loading), ours=_OURS, images=images,
        identities=identities, format=str(extra["format"]), command=command, has_labels=has_labels,
        has_photos=has_photos, columns=_LOADABLE.get(str(extra["format"])),
    ))
