"""`SamplingJob`: everything one sampling run consists of, decided once; `sample` plans and runs it.

The images of all identities, in order, are cut into units: fixed batches, of which the last one is padded, or blocks of
whole identities where a filter has images drawn again. A unit whose images all lie on disk is skipped, any other one is
computed as a whole and only its missing images are written. So which images share a batch, and with it every bit of
them, does not depend on kills, on the number of processes or on their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from facesyn_cli.artifacts.preview_pictures import picture_path, strip_name
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.sampling.conditions import Conditions
from facesyn_cli.sampling.engine import BatchEngine, measure
from facesyn_cli.sampling.image_folder import ImageFolder, PixelsOf, WriteOptions
from facesyn_cli.sampling.inputs import SampleInputs
from facesyn_cli.sampling.pipeline import LdmPipeline
from facesyn_cli.sampling.rejection_sampling import RejectionSampling
from facesyn_cli.sampling.strip import Strip
from facesyn_cli.sampling.workers import one_core_each


@dataclass(frozen=True)
class SamplingJob:
    """One sampling run.

    Args:
        inputs: Contexts, LDM and decoder.
        pipeline: Contexts and noise to images, on the device of the run.
        conditions: Contexts and noise of each image.
        layout: Where images go: an `ImageFolder` or `TarShards`.
        batch_size: Images the network sees at once.
        workers: Batches computed at once.
        rejection: Draws images again that a filter rejects; None: no filter.
        part: (i, n), i from 1: only part i of n; None: the whole set.
    """

    inputs: SampleInputs
    pipeline: LdmPipeline
    conditions: Conditions
    layout: ImageFolder
    batch_size: int
    workers: int
    rejection: RejectionSampling | None = None
    part: tuple[int, int] | None = None

    @cached_property
    def units(self) -> list[range]:
        """Numbers of the images that are computed together: batches, or blocks of the filter."""
        return self.rejection.blocks if self.rejection else fixed_batches(self.layout.num_images, self.batch_size)

    def unfinished(self, done: set[int]) -> list[range]:
        """Return the units, or the tar shards, of this part of the run that are to be made.

        Args:
            done: Numbers of the images that are finished.
        """
        is_judged = self.rejection.judged() if self.rejection else lambda images: True
        return self.layout.unfinished(self.units, done, self.part, is_judged)

    def expected_seconds(self, num_batches: int) -> float:
        """Return the seconds that batches take one process here, from one measured evaluation and decoding."""
        with one_core_each(1, self.pipeline.device) as pool:
            if self.pipeline.device.type == "cuda":
                pool.submit(self._measure).result()  # the first batch loads kernels
            evaluation, decoding = pool.submit(self._measure).result()
        return math.ceil(num_batches / self.workers) * (self.pipeline.evaluations * evaluation + decoding)

    def sample(
        self, processes: Processes, encode: Callable[[np.ndarray], bytes], writers: int, strip_every: int
    ) -> int:
        """Make what is missing, together with all processes; return how many images were written. A collective.

        Args:
            processes: Those of the run, on the pipeline's device.
            encode: (S, S, 3) uint8 -> bytes of the file.
            writers: Threads that encode and write.
            strip_every: Seconds between two pictures of the latest images; 0: none.
        """
        done = self.layout.finished()
        todo = self.unfinished(done)
        processes.barrier()  # every process has looked before any of them writes, so all see the same list
        mine = self.layout.share(todo, processes.rank, processes.world_size)
        made = 0
        if mine:
            is_alone = self.part is None and processes.world_size == 1
            engine = BatchEngine(self.pipeline, self.conditions, self.batch_size)

            def draw(unit: range, following: range | None) -> PixelsOf:
                if self.rejection:
                    return self.rejection.draw(engine, unit)
                return engine.start(unit, then=following)

            with self._strip(strip_every) if processes.is_first and strip_every else nullcontext() as strip:
                options = WriteOptions(
                    encode, self.pipeline.device, self.workers, writers, max(2 * self.batch_size, 256),
                    len(done) if is_alone else 0, strip.show if strip else None,
                    self.rejection.counts if self.rejection else dict,
                )
                made = self.layout.write(mine, self.units, draw, done, options)
        return int(processes.sum(torch.tensor([made], device=processes.device)).item())  # waits for all

    def check_complete(self) -> bool:
        """Return True when every part of the set is finished; False: only this one.

        Raises:
            UserError: Images are missing.
        """
        layout = self.layout
        index, count = self.part or (1, 1)
        others = [k for k in range(1, count + 1) if k != index]
        is_last = all((layout.folder / f"shard-{k}-of-{count}.json").is_file() for k in others)
        done = layout.finished()
        # All images where this part is the last: parts made with different batch sizes would leave gaps.
        expected = range(layout.num_images) if is_last else [i for unit in self.unfinished(done) for i in unit]
        missing = [i for i in expected if i not in done]
        if missing:
            again = "the same command again" if count == 1 else "the command once more without --shard"
            raise UserError(f"{len(missing)} images are missing, first {layout.path(missing[0])}; run {again}")
        return is_last

    def _measure(self) -> tuple[float, float]:
        return measure(self.pipeline, self.inputs.ldm.config.embedding_size, self.batch_size)

    def _strip(self, every: int) -> Strip:
        layout = self.layout
        faces = self.inputs.contexts.faces[: len(layout.identities)]
        return Strip(picture_path(layout.folder, strip_name(self.part)), layout.per_id, faces, every)
