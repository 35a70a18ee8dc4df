"""From image numbers to pixels: one full batch at a time through denoiser and decoder, on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor

from facesyn_cli import signals
from facesyn_cli.data.decoded_latents import LatentDecoder
from facesyn_cli.diffusion.denoising_loop import count_evaluations, sample_latents
from facesyn_cli.diffusion.guidance import Guidance
from facesyn_cli.diffusion.schedulers import Scheduler
from facesyn_cli.errors import UserError
from facesyn_cli.sampling.conditions import Conditions
from facesyn_cli.sampling.fast_networks import FastDenoiser
from facesyn_cli.sampling.workers import threads_on

_Images = tuple[list[int], list[int] | None]      # numbers of a batch, and how often each was refused
_Inputs = tuple[Tensor, Tensor | None, Tensor]    # contexts (B, E), those to guide away from, noise (B, C, H, W)


class BatchEngine:
    """Computes batches of one size.

    Args:
        denoiser: On `device`.
        decode: Latents to images, on `device`.
        conditions: What belongs to each image.
        make_scheduler: Returns a fresh scheduler; each batch has its own.
        guidance: How outputs under several contexts are combined.
        batch_size: Images the network sees at once, always.
        device: Where the networks are.
        num_timesteps: T of the noise schedule.
    """

    def __init__(
        self,
        denoiser: FastDenoiser,
        decode: LatentDecoder,
        conditions: Conditions,
        make_scheduler: Callable[[], Scheduler],
        guidance: Guidance,
        batch_size: int,
        device: torch.device,
        num_timesteps: int = 1000,
    ) -> None:
        self.batch_size, self.device = batch_size, device
        self._denoiser, self._decode, self._conditions = denoiser, decode, conditions
        self._make_scheduler, self._guidance = make_scheduler, guidance
        self._num_timesteps = num_timesteps
        self._beside = threads_on(device, 1, "noise") if device.type == "cuda" else None
        self._coming: tuple[_Images, Future[_Inputs]] | None = None

    def start(
        self, batch: Sequence[int], attempts: Sequence[int] | None = None, then: Sequence[int] | None = None
    ) -> Callable[[int], np.ndarray]:
        """Compute a batch of image numbers; on a GPU only queue it.

        Args:
            batch: 1 to `batch_size` numbers; a short batch is filled up with its last image.
            attempts: How often each image was refused and is drawn again; None: it is the first time for all.
            then: The batch that comes next, drawn as often as the first image of this one; on a GPU its noise, which
                takes the host as long as the device needs for some steps, is drawn meanwhile. None: not known.

        Returns:
            A function from a row of the batch to its (S, S, 3) uint8 pixels, for the writer's threads; it
            waits for the device, and raises UserError where the network's numbers are not finite.
        """
        images = self._filled(batch, attempts)
        inputs = self._inputs_of(images)
        if then is not None and self._beside is not None:
            coming = self._filled(then, attempts and [attempts[0]] * len(then))
            self._coming = coming, self._beside.submit(self._draw, *coming)
        try:
            return self._compute(*images, inputs)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # another program may have needed it for a moment
        try:
            return self._compute(*images, inputs)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {self.device} with batches of {self.batch_size} images; what is finished is kept:"
                " run the same command with a smaller batch_size to go on"
            ) from error

    def measure(self, batch_size: int | None = None) -> tuple[float, float]:
        """Return the seconds of one network evaluation and of decoding one batch.

        Where guided steps evaluate two contexts in one pass, that pass is measured and counts as two.

        Args:
            batch_size: Images; None: those of a batch.
        """
        count = batch_size or self.batch_size
        contexts = self._send(self._pinned(self._conditions.contexts([0] * count)))
        latents = torch.zeros(count, *self._conditions.latent_shape, device=self.device)
        t = torch.zeros(count, dtype=torch.long, device=self.device)
        with torch.inference_mode():
            encode = getattr(self._denoiser, "encode_context", None)
            context = encode(contexts, batch=count) if encode else contexts
            joined = self._denoiser.join_contexts(context, context) if self._is_guided() else None
            passes = 1 if joined is None else 2
            times = [time.perf_counter()]
            output = self._denoiser(
                latents.repeat(passes, 1, 1, 1), t.repeat(passes), context if joined is None else joined
            )
            output.sum().item()  # .item() waits for the device
            del output
            times.append(time.perf_counter())
            self._decode(latents)[1].all().item()
            times.append(time.perf_counter())
        return (times[1] - times[0]) / passes, times[2] - times[1]

    def _is_guided(self) -> bool:
        """True when some step evaluates the network under two contexts that do not wait for each other."""
        if self._guidance.needs_attention:
            return False
        scheduler = self._make_scheduler()
        return count_evaluations(scheduler, self._guidance, self._num_timesteps) > len(scheduler.timesteps)

    def _filled(self, batch: Sequence[int], attempts: Sequence[int] | None) -> _Images:
        num_empty = self.batch_size - len(batch)
        again = None if attempts is None else [*attempts, *[attempts[-1]] * num_empty]
        return [*batch, *[batch[-1]] * num_empty], again

    def _inputs_of(self, images: _Images) -> _Inputs:
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == images:
            return coming[1].result()
        return self._draw(*images)

    def _draw(self, images: list[int], attempts: list[int] | None) -> _Inputs:
        """Return contexts, negatives and noise of a batch on the host, where the device can fetch them from."""
        conditions = self._conditions
        contexts, noise = conditions.contexts(images), conditions.noise(images, attempts)
        negatives = conditions.negatives(images)
        return self._pinned(contexts), None if negatives is None else self._pinned(negatives), self._pinned(noise)

    def _compute(self, images: list[int], attempts: list[int] | None, inputs: _Inputs) -> Callable[[int], np.ndarray]:
        contexts, negatives, noise = inputs
        latents = sample_latents(
            self._denoiser,
            self._make_scheduler(),
            self._guidance,
            self._send(contexts),
            self._send(noise),
            draw_noise=lambda step: self._send(self._pinned(self._conditions.step_noise(images, step, attempts))),
            on_step=signals.check,
            negatives=None if negatives is None else self._send(negatives),
            num_timesteps=self._num_timesteps,
        )
        return self._fetch(*self._decode(latents), images)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")  # does not wait for earlier batches

    def _fetch(self, pixels_u8: Tensor, is_finite: Tensor, images: list[int]) -> Callable[[int], np.ndarray]:
        wait = None
        if self.device.type == "cuda":
            pixels_u8, is_finite = (
                torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
                for x in (pixels_u8, is_finite)
            )
            ready = torch.cuda.Event(blocking=True)  # the writers that wait for it sleep
            ready.record(torch.cuda.current_stream(self.device))
            wait = ready.synchronize
        else:
            pixels_u8, is_finite = pixels_u8.cpu(), is_finite.cpu()

        def get(row: int) -> np.ndarray:
            if wait is not None:
                wait()
            if not is_finite[row]:
                raise UserError(
                    f"the network gave numbers that are not finite for image {self._conditions.key(images[row])}"
                    "; try precision=fp32 or a smaller guidance.scale"
                )
            return pixels_u8[row].numpy()

        return get
