"""YuNet, OpenCV's face detector with five landmarks (`cv2.FaceDetectorYN`).

Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20. The weights in
OpenCV's model zoo are Apache-2.0. Input: RGB photos of any size.

The detector works best on faces of about 10 to 300 pixels, so large images are downscaled. It misses faces that fill
the whole image, as in cropped data sets, so an image without detections is tried again with a black margin.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import GIB, read_bytes

MAX_SIDE = 640      # larger images are downscaled to this for detection
MIN_SCORE = 0.6     # detections of lower confidence are dropped
_NMS = 0.3          # IoU threshold of non-maximum suppression
_MARGIN = 0.5       # black margin on each side for the second try, relative to the side


class Yunet:
    """Face detector; thread-safe, with one network per thread.

    Args:
        path: The .onnx file.

    Attributes:
        digest: Digest of the file.

    Raises:
        UserError: OpenCV is not installed, or the file is another network.
    """

    def __init__(self, path: Path) -> None:
        try:
            import cv2
        except ImportError as error:
            raise UserError(
                f'finding faces needs a package that is not installed ({error.name}): pip install "facesyn[align]"'
            ) from error
        content = read_bytes(path, GIB, "YuNet, a face detector in .onnx format,")
        cv2.setNumThreads(1)  # callers use several threads already
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self._cv2, self._path = cv2, path
        self._content = np.frombuffer(content, np.uint8)
        self._own = threading.local()
        self.digest = file_digest(path)
        self._check()

    def find(self, pixels_u8: NDArray[np.uint8]) -> list[tuple[NDArray[np.float64], float]]:
        """Find all faces of an image.

        Args:
            pixels_u8: (H, W, 3) uint8, RGB.

        Returns:
            For each face, landmarks (5, 2) as x, y in pixels (left eye as seen in the image, right eye, nose, left and
            right corner of the mouth) and its score in [0, 1], best first.
        """
        height, width = pixels_u8.shape[:2]
        scale = min(1.0, MAX_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = np.ascontiguousarray(pixels_u8)
        if scale < 1:
            small = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BILINEAR))
        rows = self._detect(small)
        if not len(rows):
            margin = np.ceil(np.array(size) * _MARGIN).astype(int)
            padded = np.pad(small, ((margin[1], margin[1]), (margin[0], margin[0]), (0, 0)))
            rows = self._detect(padded)
            rows[:, 4:14] -= np.tile(margin, 5)
        points = rows[:, 4:14].reshape(-1, 5, 2)
        points = (points + 0.5) * (np.array([width, height]) / np.array(size)) - 0.5
        return [(points[i], float(rows[i, 14])) for i in np.argsort(-rows[:, 14], kind="stable")]

    def _detect(self, pixels_u8: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (N, 15) rows: box x, y, width, height; five points; score."""
        network = self._network()
        network.setInputSize((pixels_u8.shape[1], pixels_u8.shape[0]))
        _, rows = network.detect(np.ascontiguousarray(pixels_u8[:, :, ::-1]))  # it expects BGR
        return np.empty((0, 15)) if rows is None else np.asarray(rows, np.float64)

    def _network(self) -> Any:
        if not hasattr(self._own, "network"):
            empty = np.empty(0, np.uint8)
            self._own.network = self._cv2.FaceDetectorYN.create(
                "onnx", self._content, empty, (320, 320), MIN_SCORE, _NMS, 5000
            )
        return self._own.network

    def _check(self) -> None:
        """Run the network once, so that a wrong file is refused at once."""
        try:
            self._detect(np.zeros((64, 64, 3), np.uint8))
        except self._cv2.error as error:
            reason = " ".join(str(error.err or error).split())[:120]
            raise UserError(f"{self._path} is not YuNet, OpenCV's face detector in .onnx format: {reason}") from error
