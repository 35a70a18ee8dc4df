"""From image numbers to pixels: one full batch at a time through an `LdmPipeline`, on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor

from facesyn_cli import signals
from facesyn_cli.errors import UserError
from facesyn_cli.sampling.conditions import Conditions
from facesyn_cli.sampling.pipeline import LdmPipeline
from facesyn_cli.sampling.workers import threads_on

_Images = tuple[list[int], list[int] | None]      # numbers of a batch, and the attempt of each
_Inputs = tuple[Tensor, Tensor | None, Tensor]    # contexts (B, E) or (B, E + 1), negatives, noise (B, C, H, W)


class BatchEngine:
    """Computes batches of one size.

    Args:
        pipeline: Contexts and noise to images.
        conditions: Contexts and noise by number of the image.
        batch_size: Images of every batch; short batches are padded.
    """

    def __init__(self, pipeline: LdmPipeline, conditions: Conditions, batch_size: int) -> None:
        self.pipeline, self.batch_size, self.device = pipeline, batch_size, pipeline.device
        self._conditions = conditions
        self._noise_thread = threads_on(self.device, 1, "noise") if self.device.type == "cuda" else None
        self._ahead: tuple[_Images, Future[_Inputs]] | None = None

    def start(
        self, batch: Sequence[int], attempts: Sequence[int] | None = None, then: Sequence[int] | None = None
    ) -> Callable[[int], np.ndarray]:
        """Compute a batch of image numbers; on a GPU only queue it.

        Args:
            batch: 1 to `batch_size` numbers; a short batch is padded with its last image.
            attempts: How often each image was rejected before; None: 0 for all.
            then: The next batch, with the attempt of the first image of this one; on a GPU its noise, which takes the
                host as long as the device takes for some steps, is drawn meanwhile. None: unknown.

        Returns:
            A function from a row of the batch to its (S, S, 3) uint8 pixels, for the writer's threads; it waits for
            the device, and raises UserError where the output of the network is not finite.
        """
        images = self._padded(batch, attempts)
        inputs = self._inputs_of(images)
        if then is not None and self._noise_thread is not None:
            ahead = self._padded(then, attempts and [attempts[0]] * len(then))
            self._ahead = ahead, self._noise_thread.submit(self._draw_inputs, *ahead)
        try:
            return self._compute(*images, inputs)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # another program may have needed it for a moment
        try:
            return self._compute(*images, inputs)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {self.device} with batches of {self.batch_size} images; finished images are kept:"
                " run the same command with a smaller batch_size to resume"
            ) from error

    def _padded(self, batch: Sequence[int], attempts: Sequence[int] | None) -> _Images:
        num_empty = self.batch_size - len(batch)
        padded_attempts = None if attempts is None else [*attempts, *[attempts[-1]] * num_empty]
        return [*batch, *[batch[-1]] * num_empty], padded_attempts

    def _inputs_of(self, images: _Images) -> _Inputs:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == images:
            return ahead[1].result()
        return self._draw_inputs(*images)

    def _draw_inputs(self, images: list[int], attempts: list[int] | None) -> _Inputs:
        """Return contexts, negatives and noise of a batch on the host, in pinned memory where the device is a GPU."""
        conditions = self._conditions
        contexts = conditions.with_yaw(conditions.contexts(images), images)
        noise = conditions.noise(images, attempts)
        negatives = conditions.negatives(images)
        if negatives is not None:
            negatives = self._pinned(conditions.with_yaw(negatives, images))
        return self._pinned(contexts), negatives, self._pinned(noise)

    def _compute(self, images: list[int], attempts: list[int] | None, inputs: _Inputs) -> Callable[[int], np.ndarray]:
        contexts, negatives, noise = inputs
        pixels_u8, is_finite = self.pipeline(
            contexts, noise, negatives=negatives, on_step=signals.check,
            step_noise=lambda step: self._pinned(self._conditions.step_noise(images, step, attempts)),
        )
        return self._fetch(pixels_u8, is_finite, images)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _fetch(self, pixels_u8: Tensor, is_finite: Tensor, images: list[int]) -> Callable[[int], np.ndarray]:
        wait = None
        if self.device.type == "cuda":
            pixels_u8, is_finite = (
                torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
                for x in (pixels_u8, is_finite)
            )
            ready = torch.cuda.Event(blocking=True)  # threads that wait for it sleep
            ready.record(torch.cuda.current_stream(self.device))
            wait = ready.synchronize
        else:
            pixels_u8, is_finite = pixels_u8.cpu(), is_finite.cpu()

        def get(row: int) -> np.ndarray:
            if wait is not None:
                wait()
            if not is_finite[row]:
                raise UserError(
                    f"the output of the network is not finite for image {self._conditions.key(images[row])}"
                    "; try precision=fp32 or a smaller guidance.scale"
                )
            return pixels_u8[row].numpy()

        return get


def measure(pipeline: LdmPipeline, context_size: int, batch_size: int) -> tuple[float, float]:
    """Return the seconds of one evaluation of the denoiser and of one decoding, on a batch of zeros.

    Where guided steps evaluate two contexts in one pass, that pass is measured and counts as two.
    """
    denoiser, device = pipeline.denoiser, pipeline.device
    contexts = torch.zeros(batch_size, context_size, device=device)
    latents = torch.zeros(batch_size, *pipeline.latent_shape, device=device)
    t = torch.zeros(batch_size, dtype=torch.long, device=device)
    with torch.inference_mode():
        encode = getattr(denoiser, "encode_context", None)
        context = encode(contexts, batch=batch_size) if encode else contexts
        joined = denoiser.join_contexts(context, context) if pipeline.is_guided else None
        passes = 1 if joined is None else 2
        times = [time.perf_counter()]
        output = denoiser(latents.repeat(passes, 1, 1, 1), t.repeat(passes), context if joined is None else joined)
        output.sum().item()  # .item() waits for the device
        del output
        times.append(time.perf_counter())
        pipeline.decoder(latents)[1].all().item()
        times.append(time.perf_counter())
    return (times[1] - times[0]) / passes, times[2] - times[1]
