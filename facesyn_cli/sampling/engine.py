"""From image numbers to pixels: one full batch at a time through denoiser and decoder, on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from facesyn_cli import signals
from facesyn_cli.data.decoded_latents import LatentDecoder
from facesyn_cli.diffusion.guidance import Guidance
from facesyn_cli.diffusion.sampling import sample_latents
from facesyn_cli.diffusion.schedulers import Scheduler
from facesyn_cli.errors import UserError
from facesyn_cli.sampling.conditions import Conditions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class BatchEngine:
    """Computes batches of one size.

    Args:
        denoiser: On `device`, in eval mode.
        decode: Latents to images, on `device`.
        conditions: What belongs to each image.
        make_scheduler: Returns a fresh scheduler; each batch has its own.
        guidance: How outputs under several contexts are combined.
        batch_size: Images the network sees at once, always.
        precision: fp32, bf16 or fp16: the number format of the denoiser.
        device: Where the networks are.
        num_timesteps: T of the noise schedule.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        decode: LatentDecoder,
        conditions: Conditions,
        make_scheduler: Callable[[], Scheduler],
        guidance: Guidance,
        batch_size: int,
        precision: str,
        device: torch.device,
        num_timesteps: int = 1000,
    ) -> None:
        self.batch_size, self.device = batch_size, device
        self._denoiser, self._decode, self._conditions = denoiser, decode, conditions
        self._make_scheduler, self._guidance = make_scheduler, guidance
        self._precision, self._dtype, self._num_timesteps = precision, DTYPES[precision], num_timesteps

    def start(self, batch: Sequence[int], attempts: Sequence[int] | None = None) -> Callable[[int], np.ndarray]:
        """Compute a batch of image numbers; on a GPU only queue it.

        Args:
            batch: 1 to `batch_size` numbers; a short batch is filled up with its last image.
            attempts: How often each image was refused and is drawn again; None: it is the first time for all.

        Returns:
            A function from a row of the batch to its (S, S, 3) uint8 pixels, for the writer's threads; it
            waits for the device, and raises UserError where the network's numbers are not finite.
        """
        num_empty = self.batch_size - len(batch)
        images = [*batch, *[batch[-1]] * num_empty]
        again = None if attempts is None else [*attempts, *[attempts[-1]] * num_empty]
        negatives = self._conditions.negatives(images)
        latents = sample_latents(
            self._denoiser,
            self._make_scheduler(),
            self._guidance,
            self._send(self._conditions.contexts(images)),
            self._send(self._conditions.noise(images, again)),
            draw_noise=lambda step: self._send(self._conditions.step_noise(images, step, again)),
            dtype=self._dtype,
            on_step=signals.check,
            negatives=None if negatives is None else self._send(negatives),
            num_timesteps=self._num_timesteps,
        )
        return self._fetch(*self._decode(latents), images)

    def measure(self) -> tuple[float, float]:
        """Return the seconds of one network evaluation and of decoding one batch."""
        images = [0] * self.batch_size
        context = self._send(self._conditions.contexts(images))
        latents = torch.zeros(self.batch_size, *self._conditions.latent_shape, device=self.device)
        t = torch.zeros(self.batch_size, dtype=torch.long, device=self.device)
        times = [time.perf_counter()]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not torch.float32),
        ):
            self._denoiser(latents, t, context).sum().item()  # .item() waits for the device
        times.append(time.perf_counter())
        self._decode(latents)[1].all().item()
        times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    def _send(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)  # does not wait for earlier batches

    def _fetch(self, pixels_u8: Tensor, is_finite: Tensor, images: list[int]) -> Callable[[int], np.ndarray]:
        wait = None
        if self.device.type == "cuda":
            pixels_u8, is_finite = (
                torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
                for x in (pixels_u8, is_finite)
            )
            ready = torch.cuda.Event()
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
                    f" (precision {self._precision}); try precision fp32 or a smaller guidance.scale"
                )
            return pixels_u8[row].numpy()

        return get
