"""`FaceEmbedder`: from encoded faces or pixels to embeddings, with any face recognizer.

As published (ArcFace, TFace, ElasticFace): RGB in [-1, 1], and for verification the flip test

    e = f(x) + f(flip x)

with the outputs of the network as they are; the sum is normalized afterwards. The network always sees
batches of the same size: short ones are padded with black images, and so is the place of an image that
cannot be read, so no embedding depends on whether another image can be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facesyn_cli.artifacts.vector_files import normalize
from facesyn_cli.console import log
from facesyn_cli.data.pixels import UnreadableImage, decode_image, fit_square, resize_pixels, to_pixels
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedBackbone
from facesyn_cli.models.precision import DTYPES, Config, Precision, with_precision

Fit = Literal["exact", "square", "refuse"]


def current_fit(value: Any) -> Any:
    """Return the value of a setting `fit`; `crop` is the name of `square` in earlier versions."""
    if value != "crop":
        return value
    log.warning("fit=crop is now called fit=square, and does the same")
    return "square"


_BATCHES_AHEAD = 3
_FEW = 2  # images of a measured batch on a CPU, where the speed does not depend on them


@dataclass(frozen=True)
class EmbedOptions:
    """How images are prepared for a network and batched.

    Args:
        size: Side of the network's input in pixels.
        batch_size: Images a batch.
        device: Where the network runs; it must already be there.
        flip: Add the output for the mirrored image.
        fit: `square` resizes the central square of an image (`data/squares.py`), `refuse` resizes square images
            and refuses others, `exact` refuses images of another size.
        precision: fp32, or bf16 / fp16 autocast.
        workers: Threads that read and decode.
        align: Cuts the face out of a photo, (H, W, 3) uint8 to a square one; None: images are crops already.
    """

    size: int
    batch_size: int
    device: torch.device
    flip: bool
    fit: Fit
    precision: Precision = "fp32"
    workers: int = 2
    align: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class EmbeddedBatch:
    """The embeddings of one batch.

    Args:
        indices: Numbers of its n images.
        vectors: (n, D) float64, not normalized; rows of images that could not be read are meaningless.
        problems: Number of an image -> why it could not be read.
        num_cut: Images of which the central square was taken.
    """

    indices: Sequence[int]
    vectors: NDArray[np.float64]
    problems: dict[int, str]
    num_cut: int = 0


def load_face(
    data: bytes, size: int, fit: Fit, align: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
) -> tuple[Tensor, bool]:
    """Decode one image and bring it to the network's size.

    Args:
        data: Encoded image.
        size: Side in pixels.
        fit: See `EmbedOptions`. Resizing is bilinear with antialiasing, on floats, as current torchvision
            resizes tensors.
        align: See `EmbedOptions`.

    Returns:
        (3, size, size) float32 in [-1, 1], RGB; and whether it is the central square of an image that is not square.

    Raises:
        UnreadableImage: It cannot be decoded, does not fit or, to be aligned, has no face.
    """
    pixels_u8 = decode_image(data)
    if align is not None:
        pixels_u8 = align(pixels_u8)
    height, width = pixels_u8.shape[:2]
    if fit == "exact" and (height, width) != (size, size):
        raise UnreadableImage(f"{width} x {height} pixels, {size} x {size} were expected")
    if fit == "refuse" and height != width:
        raise UnreadableImage(f"{width} x {height} pixels are not square")
    is_cut = fit == "square" and height != width
    pixels = to_pixels(torch.tensor(fit_square(pixels_u8) if is_cut else pixels_u8))  # a copy: some are read-only
    return resize_pixels(pixels[None], size, antialias=True)[0], is_cut


class FaceEmbedder:
    """A face recognizer that embeds files and pixels.

    Args:
        network: (B, 3, size, size) in [-1, 1] -> (B, D), in eval mode, on `options.device`.
        options: How images are prepared and batched.
    """

    def __init__(self, network: nn.Module, options: EmbedOptions) -> None:
        self._network, self.options = network, options

    @staticmethod
    def of(backbone: LoadedBackbone, device: torch.device, batch_size: int = 32, **options: Any) -> FaceEmbedder:
        """Move a recognizer to a device; without the flip test where `options`, as of `EmbedOptions`, do not set it."""
        chosen: dict[str, Any] = {"flip": False, "fit": "square", **options}
        network = backbone.module.to(device)
        return FaceEmbedder(network, EmbedOptions(backbone.input_size, batch_size, device, **chosen))

    def embed(self, faces_u8: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (N, D) float32 unit rows of (N, S, S, 3) uint8 faces, N >= 1.

        Raises:
            UserError: An embedding is zero or not finite.
        """
        return normalize(self.features(faces_u8))

    def features(self, faces_u8: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (N, D) embeddings of (N, S, S, 3) uint8 faces, N >= 1, not normalized."""
        rows = []
        for batch in fixed_batches(len(faces_u8), self.options.batch_size):
            pixels = to_pixels(faces_u8[batch.start : batch.stop])
            rows.append(self.batch(list(resize_pixels(pixels, self.options.size, antialias=True))))
        return np.concatenate(rows)

    def files(self, read: Callable[[int], bytes], batches: Sequence[Sequence[int]]) -> Iterator[EmbeddedBatch]:
        """Embed encoded images batch by batch, while threads read the next ones.

        Args:
            read: Number of an image -> encoded image; called from threads. A `UserError` counts as unreadable.
            batches: The numbers of each batch; at most `batch_size` a batch.
        """
        options = self.options

        def load(index: int) -> tuple[Tensor | str, bool]:
            try:
                return load_face(read(index), options.size, options.fit, options.align)
            except (UnreadableImage, UserError) as error:
                return str(error), False

        pool = ThreadPoolExecutor(max(1, options.workers), thread_name_prefix="decode")
        waiting: deque[tuple[Sequence[int], list[Future]]] = deque()
        coming = iter(batches)
        try:
            while True:
                while len(waiting) < _BATCHES_AHEAD and (batch := next(coming, None)) is not None:
                    waiting.append((batch, [pool.submit(load, index) for index in batch]))
                if not waiting:
                    return
                batch, futures = waiting.popleft()
                results = [future.result() for future in futures]
                loaded = dict(zip(batch, [face for face, _ in results], strict=True))
                num_cut = sum(is_cut for _, is_cut in results)
                problems = {index: face for index, face in loaded.items() if isinstance(face, str)}
                faces = [None if isinstance(face, str) else face for face in loaded.values()]
                yield EmbeddedBatch(batch, self.batch(faces), problems, num_cut)
        finally:
            pool.shutdown(cancel_futures=True)

    def parts(
        self, read: Callable[[int], bytes], parts: Sequence[range], advance: Callable[[int], None]
    ) -> Iterator[list[EmbeddedBatch]]:
        """Yield the batches of each part of encoded images; a batch never spans two parts.

        Args:
            read: As of `files`.
            parts: The numbers of the images of each part.
            advance: Called after every batch with the number of its images.
        """
        cuts = [fixed_batches(len(part), self.options.batch_size) for part in parts]
        found = self.files(read, [part[b.start : b.stop] for part, cut in zip(parts, cuts, strict=True) for b in cut])
        for cut in cuts:
            batches = []
            for batch in islice(found, len(cut)):
                batches.append(batch)
                advance(len(batch.indices))
            yield batches

    def batch(self, faces: Sequence[Tensor | None]) -> NDArray[np.float64]:
        """Embed up to `batch_size` faces in one full batch.

        Args:
            faces: (3, size, size) each, in [-1, 1]; None is a place without an image.

        Returns:
            (len(faces), D), not normalized.
        """
        options = self.options
        pixels = torch.full((options.batch_size, 3, options.size, options.size), -1.0)
        for place, face in enumerate(faces):
            if face is not None:
                pixels[place] = face
        pixels = pixels.to(options.device)
        vectors = self._forward(pixels)
        if options.flip:
            vectors = vectors + self._forward(pixels.flip(-1))
        return vectors[: len(faces)].numpy()

    @torch.inference_mode()
    def _forward(self, pixels: Tensor) -> Tensor:
        options = self.options
        if options.precision == "fp32":  # no TF32: its rounding is as coarse as that of fp16
            context = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        else:
            context = torch.autocast(options.device.type, dtype=DTYPES[options.precision])
        with context:
            vectors = self._network(pixels)                                       # (B, D)
        if vectors.ndim != 2 or len(vectors) != len(pixels):
            raise UserError(
                f"the network returned {tuple(vectors.shape)} for {len(pixels)} faces; a row each was expected"
            )
        return vectors.cpu().double()


def settle_precision(
    cfg: Config, folder: Path, kind: str, backbone: LoadedBackbone, device: torch.device,
    processes: Processes | None = None,
) -> Config:
    """Return the settings of a stage with a number format in place of `precision=auto`, measured with a recognizer.

    `with_precision` describes the arguments; `cfg` has a `batch_size` as well.
    """
    count = min(cfg.batch_size, _FEW) if device.type == "cpu" else cfg.batch_size

    def once(precision: str) -> None:
        FaceEmbedder.of(backbone, device, count, precision=precision).batch([])

    return with_precision(cfg, folder, kind, device, once, processes)
