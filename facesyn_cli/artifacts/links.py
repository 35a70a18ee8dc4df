"""Hard links: files that appear in a second set without being copied."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from facesyn_cli.artifacts.atomic_files import as_user_error, write_atomically, write_bytes
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.names import key_part, split_suffix


def link_file(file: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system has no hard links. Symbolic links would break after a move.

    Raises:
        UserError: The target cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(os.path.realpath(file), target)
    except FileExistsError as error:
        if not target.is_file():
            raise as_user_error(error, target) from error
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES):
            raise as_user_error(error, target) from error
        with write_atomically(target, durable=False) as temporary:
            shutil.copyfile(file, temporary)


def link_image(images: ImageSet, entry: ImageEntry, target: Path) -> None:
    """Link an image of a folder, or copy one of a zip file, to `target` unless that exists."""
    if target.exists():
        return
    if images.path.is_dir():
        link_file(images.path / entry.location, target)
    else:
        write_bytes(target, images.read(entry), durable=False)


def link_entry(images: ImageSet, entry: ImageEntry, folder: Path) -> None:
    """Link or copy an image into another set under the same key, unless it exists there."""
    link_image(images, entry, folder / copied_location(entry))


def copied_location(entry: ImageEntry) -> str:
    """Return the location of an image in a set in which it has the same key."""
    name = entry.location.rpartition("/")[2]
    file = entry.sample if entry.sample == key_part(name) else f"{entry.sample}{split_suffix(name)[1]}"
    return f"{entry.identity}/{file}"
