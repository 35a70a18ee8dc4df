"""Record format `folder`: one folder per identity, one file per image; unpacks a packed set again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.names import is_file_name
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.data.record_images import fit_any, suffix_of
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


@register("record_format", "folder", Card("One folder per identity, one file per image; written, read as images."))
class FolderFormat:
    """Writes `<identity>/<sample>.<suffix>`; images of the right size keep their bytes."""

    kind = "ImageSet"

    def __init__(self, cfg: PluginConfig) -> None:
        """Do nothing: the format has no settings."""

    def fit(self, data: bytes, size: int | None) -> bytes:
        """Return the image untouched when it has the right size, else resized as PNG."""
        return fit_any(data, size)

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> FolderWriter:
        """Open the folder; images written after the last commit are simply written again."""
        return FolderWriter(folder)

    def recognizes(self, path: Path) -> bool:
        """A folder of images is opened as an ImageSet, never as records."""
        return False

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Raise: folders have no labels of their own."""
        raise UserError(f"{path} is a folder of images, not a set of records")


class FolderWriter:
    """Writes each image by rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Write one image.

        Raises:
            UserError: The identity or sample cannot be a file name, or no space is left.
        """
        parts = [*identity.split("/"), f"{sample}{suffix_of(data)}"]
        for part in [*identity.split("/"), sample]:
            if not is_file_name(part):
                raise UserError(f"the image {identity}/{sample} cannot be unpacked: {part!r} is no safe file name")
        write_bytes(self.folder.joinpath(*parts), data, durable=False)

    def commit(self) -> dict[str, Any]:
        """Return nothing to restore: every image is whole as soon as it has its name."""
        return {}

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Do nothing: the folders are the index."""

    def close(self) -> None:
        """Do nothing: no file is open."""
