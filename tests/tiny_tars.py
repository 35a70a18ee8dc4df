"""A set in tar shards as `sample layout=tar` leaves it, written with Python's own tarfile."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from facesyn_cli.artifacts.output import open_output
from facesyn_cli.config.fields import (
    StageConfig,
)


def write_tar_set(folder: Path, images: dict[str, bytes], per_shard: int) -> Path:
    """Write a finished set; `images` maps members such as `identity/0.png` to their bytes, in order."""
    with open_output(folder, "RecordSet", "sample", StageConfig(), {}) as out:
        members = list(images.items())
        for number, start in enumerate(range(0, len(members), per_shard)):
            path = folder / "images" / f"images-{number:06d}.tar"
            path.parent.mkdir(exist_ok=True)
            with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
                for name, data in members[start : start + per_shard]:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        out.finish({"images": len(images)}, {"format": "webdataset", "name": "images"})
    return folder


def read_tars(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the members of each shard of a set."""
    found = {}
    for path in sorted((folder / "images").iterdir()):
        with tarfile.open(path) as archive:
            found[path.name] = {member.name: archive.extractfile(member).read() for member in archive}
    return found
