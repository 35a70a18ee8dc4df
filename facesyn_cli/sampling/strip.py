"""The strip of a run: one small PNG of its latest images, one row per identity.

Like a log it belongs to a run and not to the set, and lies beside the set's folder. The threads that encode images
rewrite it, so that no computation waits for it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.console import log
from facesyn_cli.data.picture_grid import picture_grid, write_marked_png
from facesyn_cli.data.pixels import UnreadableImage, decode_image, fit_square
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import MAX_IMAGE, read_bytes

ROWS, COLUMNS = 8, 8
_SIDE = 64  # pixels


class Strip:
    """Collects and writes the strip; a context manager that writes it a last time.

    Args:
        path: The PNG.
        per_id: Images of each identity; image i belongs to identity i // per_id.
        faces: Face that the context of each identity came from, or None where there is none.
        every: Minimum seconds between two writes.
    """

    def __init__(self, path: Path, per_id: int, faces: Sequence[Path | None], every: float) -> None:
        self._path, self._per_id, self._faces, self._every = path, per_id, faces, every
        self._latest: OrderedDict[int, OrderedDict[int, NDArray[np.uint8]]] = OrderedDict()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._due, self._count = time.monotonic(), 0

    def show(self, image: int, pixels_u8: NDArray[np.uint8]) -> None:
        """Add a finished image, from any thread, and write the strip where it is due.

        Args:
            image: Its number.
            pixels_u8: (S, S, 3).
        """
        row, sample = divmod(image, self._per_id)
        with self._lock:
            samples = self._latest.setdefault(row, OrderedDict())
            samples[sample] = pixels_u8.copy()  # not a view, which would keep the whole batch in memory
            if len(samples) > COLUMNS:
                samples.popitem(last=False)
            self._latest.move_to_end(row)
            if len(self._latest) > ROWS:
                self._latest.popitem(last=False)
            self._count += 1
            is_due = self._count >= COLUMNS and time.monotonic() >= self._due
            if is_due:
                self._due = time.monotonic() + self._every
        if is_due:
            self._write()

    def __enter__(self) -> Strip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._count:
            self._write()

    def _write(self) -> None:
        with self._lock:
            latest = {row: sorted(samples.items()) for row, samples in sorted(self._latest.items())}
        picture = self._picture(latest)
        with self._writing:
            try:
                write_marked_png(self._path, picture, durable=False)
            except UserError as problem:  # does not end the run
                log.warning(f"the strip of the latest images was not written: {problem}")

    def _picture(self, latest: dict[int, list[tuple[int, NDArray[np.uint8]]]]) -> NDArray[np.uint8]:
        """Return the strip on white: one row an identity, the face of its context first where any is known."""
        faces = [self._face(row) for row in latest]
        has_faces = any(face is not None for face in faces)
        return picture_grid([
            [*([face] if has_faces else []), *(pixels_u8 for _, pixels_u8 in samples)]
            for face, samples in zip(faces, latest.values(), strict=True)
        ], _SIDE)

    def _face(self, row: int) -> NDArray[np.uint8] | None:
        path = self._faces[row]
        try:
            return None if path is None else fit_square(decode_image(read_bytes(path, MAX_IMAGE, "a face")))
        except (UserError, UnreadableImage):
            return None
