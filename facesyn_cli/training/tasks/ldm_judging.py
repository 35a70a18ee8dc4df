"""Identity of an LDM's previews, scored by a judge recognizer while the LDM trains.

For each of K people there is one real photo; its embedding by the conditioning recognizer is the context, its embedding
p by the judge the reference. M previews are sampled from each context; f are their embeddings by the judge, all of unit
length:

    consistency  mean of cos(f, f') over all pairs of previews of one person, then over people
    to_photo     mean of cos(f, p of the same person)
    to_other     mean of cos(f, p of another person), over all other people
    nearest      share of previews to which the own photo is the nearest of all K; 1 / K by chance
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facesyn_cli.artifacts.image_set import ImageEntry
from facesyn_cli.console import log
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedBackbone, load_backbone
from facesyn_cli.training.tasks.ldm_inputs import evenly
from facesyn_cli.training.tasks.previews import PreviewSampler

FIGURES = ("consistency", "to_photo", "to_other", "nearest")

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # (n, S, S, 3) uint8 -> (n, D) unit rows


def open_judge(path: Path, embedder: str | None, has_contexts: bool) -> LoadedBackbone:
    """Load the judge; warn when it is the network behind the contexts.

    Args:
        path: Weights of a recognizer.
        embedder: Digest of the recognizer behind the contexts; None where it is not recorded.
        has_contexts: The denoiser is conditional.

    Raises:
        UserError: It is no recognizer, or there are no people to judge by.
    """
    if not has_contexts:
        raise UserError("judge compares previews with the people of their contexts; an unconditional denoiser has none")
    judge = load_backbone(path)
    if judge.digest == embedder:
        log.warning(
            f"judge {path} is the network behind the contexts: the LDM is trained on its embeddings, so its scores "
            "are better than those of any other recognizer"
        )
    return judge


class IdentityJudging:
    """Samples previews of a few people and scores them; the processes share the work.

    Args:
        sampler: Samples the previews.
        embed: The judge recognizer.
        photos_u8: (K, S, S, 3) uint8, the photo each context comes from.
        contexts: (K, E).
        keys: Keys of the photos; with the seed they decide the noise.
        num_images: M, previews of each person.
        steps: DDIM steps.
        batch_size: Previews of one batch.
        processes: Those that share the work.

    Raises:
        UserError: The judge has no embedding for a photo.
    """

    def __init__(
        self, sampler: PreviewSampler, embed: Embed, photos_u8: NDArray[np.uint8], contexts: Tensor, keys: list[str],
        num_images: int, steps: int, batch_size: int, processes: Processes,
    ) -> None:
        self._sampler, self._embed, self._contexts, self._steps = sampler, embed, contexts, steps
        self._processes, self._num_images = processes, num_images
        self._photos = embed(photos_u8)                                                       # (K, D)
        self._places = [(row, sample) for row in range(len(keys)) for sample in range(num_images)]
        self._keys = keys
        batches = fixed_batches(len(self._places), batch_size)
        self._batches = share(batches, processes.rank, processes.world_size)

    def figures(self, denoiser: nn.Module) -> dict[str, float]:
        """Return the figures of previews by `denoiser`, which is in eval mode. A collective.

        Returns:
            The figures; empty, with a warning, where the judge could not embed a preview.
        """
        vectors = torch.zeros(len(self._places), self._photos.shape[1])
        for batch in self._batches:
            vectors[batch.start : batch.stop] = self._judged(denoiser, batch)
        vectors = self._processes.sum(vectors.to(self._processes.device)).cpu().numpy()
        if not np.isfinite(vectors).all():
            log.warning("the judge has no embedding for some previews, so their identity is not scored at this step")
            return {}
        return identity_figures(vectors.reshape(-1, self._num_images, vectors.shape[1]), self._photos)

    def _judged(self, denoiser: nn.Module, batch: range) -> Tensor:
        places = [self._places[i] for i in batch]
        noise = self._sampler.noise([(self._keys[row], sample) for row, sample in places])
        pictures = self._sampler.draw(denoiser, self._contexts[[row for row, _ in places]], noise, self._steps)
        try:
            return torch.from_numpy(self._embed(pictures.numpy()))
        except UserError:  # a preview without an embedding must not end a training
            return torch.full((len(batch), self._photos.shape[1]), torch.nan)


def identity_figures(images: NDArray, photos: NDArray) -> dict[str, float]:
    """Return the figures of the module docstring; without those that need more people or pictures than there are.

    Args:
        images: (K, M, D) unit embeddings of pictures.
        photos: (K, D) unit embeddings of the photos.
    """
    images, photos = np.asarray(images, dtype=np.float64), np.asarray(photos, dtype=np.float64)
    num_people, num_images = images.shape[:2]
    cosines = images @ photos.T                                                               # (K, M, K)
    is_own = np.broadcast_to(np.eye(num_people, dtype=bool)[:, None], cosines.shape)
    figures = {"to_photo": float(cosines[is_own].mean())}
    if num_images > 1:
        among = images @ images.swapaxes(1, 2)                                                # (K, M, M)
        is_pair = np.triu(np.ones(among.shape[1:], dtype=bool), 1)
        figures["consistency"] = float(among[:, is_pair].mean())
    if num_people > 1:
        figures["to_other"] = float(cosines[~is_own].mean())
        figures["nearest"] = float((cosines.argmax(axis=2) == np.arange(num_people)[:, None]).mean())
    return figures


def judged_rows(entries: Sequence[ImageEntry], held_out: Sequence[int], train: Sequence[int], count: int) -> list[int]:
    """Return at most `count` rows of photos of different people; photos that training does not see come first.

    Args:
        entries: All images.
        held_out: Rows that training does not see.
        train: Rows that it sees.
        count: Most people.
    """
    unseen = _one_each(entries, held_out, set())
    people = {entries[row].identity for row in unseen}
    rows = evenly(unseen, count)
    return rows + evenly(_one_each(entries, train, people), count - len(rows))


def _one_each(entries: Sequence[ImageEntry], rows: Sequence[int], without: set[str]) -> list[int]:
    """Return the first row of every person who is not in `without`."""
    first: dict[str, int] = {}
    for row in rows:
        if entries[row].identity not in without:
            first.setdefault(entries[row].identity, row)
    return list(first.values())
