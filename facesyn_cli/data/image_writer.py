"""Encodes and writes images in background threads, with a bounded backlog.

PIL and zlib release the interpreter lock, so threads suffice. After a failed write later images are not written, and
the error is raised in the thread that uses the writer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_bytes


class ImageWriter:
    """Writes images; a context manager that waits until all are on disk, also when the block ends with an error.

    Args:
        encode: (H, W, 3) uint8 RGB -> bytes of the file.
        num_threads: Threads that encode and write.
        max_waiting: Images that may wait to be written before `put` makes the caller wait.

    Attributes:
        written: Number of images on disk so far.
    """

    def __init__(self, encode: Callable[[np.ndarray], bytes], num_threads: int, max_waiting: int) -> None:
        self.written = 0
        self._encode = encode
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="image-writer")
        self._slots = threading.BoundedSemaphore(max(max_waiting, num_threads))
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def put(self, path: Path, get_pixels: Callable[[], np.ndarray]) -> None:
        """Queue one image; returns at once unless too many are waiting.

        Args:
            path: Where to write; the file appears whole, by rename.
            get_pixels: Returns (H, W, 3) uint8 RGB; called in a writer thread, may wait for a device.

        Raises:
            UserError: An earlier image could not be written, for example because the disk is full.
        """
        self._raise_error()
        self._slots.acquire()
        self._pool.submit(self._write, path, get_pixels)

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._raise_error()

    def _write(self, path: Path, get_pixels: Callable[[], np.ndarray]) -> None:
        try:
            if self._error is None:
                write_bytes(path, self._encode(get_pixels()), durable=False)
                with self._lock:
                    self.written += 1
        except BaseException as error:  # noqa: B036 (kept and raised in the user's thread)
            with self._lock:
                self._error = self._error or error
        finally:
            self._slots.release()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
