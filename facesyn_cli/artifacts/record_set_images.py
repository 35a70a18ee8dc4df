"""A packed set as an ImageSet, for stages that only read images by key."""

from __future__ import annotations

from pathlib import Path

from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.names import key_part, numbered, sort_naturally
from facesyn_cli.artifacts.record_set import RecordSet

_RECORD = "record "


class RecordSetImages(ImageSet):
    """The images of a packed set in natural order of their keys; locations are numbers of records.

    Args:
        records: The set. Of several images with one key the later ones get a number, as packing gives them.
    """

    def __init__(self, records: RecordSet) -> None:
        taken: set[str] = set()
        entries = []
        for row, (identity, sample) in enumerate(records.keys()):
            identity = key_part(identity)
            key = numbered(f"{identity}/{key_part(sample)}", taken)
            entries.append(ImageEntry(key, identity, key[len(identity) + 1 :], f"{_RECORD}{row}"))
        sort_naturally(entries, lambda entry: entry.key)
        super().__init__(records.path, entries, records.digest, has_listed_identities=True, left_out=records.left_out)
        self.records = records

    def read(self, entry: ImageEntry) -> bytes:
        """Return the encoded bytes of one image.

        Raises:
            UserError: The record is damaged or its file is gone.
        """
        return self.records.read(int(entry.location.removeprefix(_RECORD)))

    def files(self) -> list[Path]:
        """Return the files that hold the records."""
        return self.records.files()

    def __reduce__(self) -> tuple:
        return RecordSetImages, (self.records,)


def open_images(path: Path) -> ImageSet:
    """Open a folder or zip of images, or a packed set in any record format, by content.

    Raises:
        UserError: It is none of them, unfinished, damaged or empty.
    """
    if Path(path).exists() and RecordSet.recognizes(path):
        return RecordSetImages(RecordSet.open(path))
    return ImageSet.open(path)
