"""Images of a set by the names that other people's lists give them.

`x/a/b.jpg` is found by its path in the set or on disk, by any end of it (`a/b.jpg`, `b.jpg`), by its key,
each with or without the extension, as lists often name files that were converted since. Names are compared in
Unicode form NFC.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.names import nfc, without_suffix
from facesyn_cli.errors import UserError


class ImageFinder:
    """Finds images of a set by name.

    Args:
        images: The set.
    """

    def __init__(self, images: ImageSet) -> None:
        self._root = images.path
        self._exact = {nfc(entry.location): entry for entry in images.entries}
        self._by_name: dict[str, ImageEntry | None] = {}  # None: several images have this name
        for entry in images.entries:
            parts = nfc(without_suffix(entry.location)).split("/")
            names = {"/".join(parts[i:]) for i in range(len(parts))} | {entry.key}
            for name in names:
                other = self._by_name.get(name, entry)
                self._by_name[name] = entry if other is entry else None
        for entry in images.entries:
            self._by_name[entry.key] = entry

    def find(self, *names: str, named_in: Path) -> ImageEntry | None:
        """Return the image that the first of several names that fits belongs to, or None.

        Args:
            names: Possible names of one image, best first.
            named_in: The list that has them, for messages.

        Raises:
            UserError: The name fits several images.
        """
        for name in names:
            wanted = self._relative(name)
            if wanted in self._exact:
                return self._exact[wanted]
            stem = without_suffix(wanted)
            if stem in self._by_name:
                entry = self._by_name[stem]
                if entry is None:
                    raise UserError(f"{named_in}: {wanted!r} fits several images in {self._root}; give more of it")
                return entry
        return None

    def _relative(self, name: str) -> str:
        if os.path.isabs(name):
            try:
                name = os.path.relpath(nfc(name), nfc(str(self._root)))
            except ValueError:
                return name
        return PurePosixPath(nfc(name).replace("\\", "/")).as_posix()

