"""The least plugin of every kind, written from `facesyn_cli.plugins.builtin.INTERFACES` alone, as a user would."""

from __future__ import annotations

import numpy as np
from torch import nn

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.augmentations.addition import Addition, next_number
from facesyn_cli.contexts.source import CandidateBatch
from facesyn_cli.contexts.variation import ContextVariation
from facesyn_cli.evaluation.benchmarks import Part
from facesyn_cli.evaluation.pairs import PairSet
from facesyn_cli.models.heads.margin import Head
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

NAME = "theirs"


class TheirConfig(PluginConfig):
    """Settings of the plugins that have none."""


class TheirDenoiserConfig(PluginConfig):
    context_size: int = 32


class TheirFilterConfig(PluginConfig):
    judge: str = ""


class TheirBackbone(nn.Module):
    embedding_size, input_size = 8, 112

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 49, 8), nn.BatchNorm1d(8))

    def forward(self, pixels):
        return self.network(pixels)


class TheirHead(Head):
    def forward(self, embeddings, labels):
        return 8 * self.cosines(embeddings)


class TheirDenoiser(nn.Module):
    def __init__(self, context_size: int) -> None:
        super().__init__()
        self.enter, self.context = nn.Conv2d(12, 12, 3, padding=1), nn.Linear(context_size, 12)

    def forward(self, x, t, context=None, drop_context=None, component_mask=None):
        y = self.enter(x)
        return y if context is None else y + self.context(context)[:, :, None, None]


class TheirAutoencoder(nn.Module):
    latent_channels, downscale = 12, 2

    def encode(self, pixels):
        return nn.functional.pixel_unshuffle(pixels, 2)

    def decode(self, latents):
        return nn.functional.pixel_shuffle(latents, 2)


class TheirScheduler:
    timesteps = (900, 500)

    def __init__(self, schedule) -> None:
        self.schedule = schedule

    def start(self, noise):
        return noise

    def model_input(self, x, index):
        return x

    def step(self, output, index, x, draw_noise):
        return 0.9 * x - 0.1 * output


class TheirGuidance:
    negatives, needs_attention = None, False

    def evaluations(self, step):
        return 1

    def begin(self, positive, negative):
        return lambda network, step: network(positive)


class TheirSource:
    needs, may_use, evaluations = frozenset(), frozenset(), {}
    num_candidates, embedder, face_origin = 6, None, "unknown"

    def open(self, resources):
        pass

    def candidates(self, start):
        vectors = np.eye(512, dtype=np.float32)[start:6]
        yield CandidateBatch(start, 6, vectors, [{"candidate": k} for k in range(start, 6)], [None] * (6 - start))


class TheirContextFilter:
    needs, evaluations, remembers = frozenset(), {}, False

    def open(self, resources):
        pass

    def restore(self, vectors):
        pass

    def select(self, vectors):
        return vectors[:, 0] == 0


class TheirVariation(ContextVariation):
    def context(self, row, sample):
        return -self.vectors[row]


class TheirSampleFilter:
    attempts, lowest = 1, -2.0

    def __init__(self, judge: str) -> None:
        self.judge = judge

    def check(self, per_id, judge, embedder):
        pass

    def scores(self, vectors, samples, first, context):
        return np.zeros(len(vectors))


class TheirAugmentation:
    needs_faces = allow_real = False

    def additions(self, identity, samples, read, face, seed):
        yield Addition(str(next_number(samples)), ".png", render=lambda: read(samples[0]))

    def num_additions(self, num_samples):
        return 1


class TheirWriter:
    def __init__(self, folder) -> None:
        self.folder = folder

    def append(self, identity, sample, data):
        (self.folder / f"{identity}_{sample}.bytes").write_bytes(data)

    def commit(self):
        return {}

    def finish(self, labels, samples):
        pass

    def close(self):
        pass


class TheirFormat:
    kind = "RecordSet"

    def fit(self, data, size):
        return data

    def writer(self, folder, name, scratch, state):
        return TheirWriter(folder)

    def recognizes(self, path):
        return False

    def open(self, path, header):
        raise NotImplementedError


class TheirBenchmark:
    def parts(self, data, images):
        crops = ImageSet.open(images)
        entries = crops.entries[:8]
        first, second = np.array([0, 1, 0, 1]), np.array([2, 3, 4, 5])
        pairs = PairSet("theirs", first, second, np.array([True, True, False, False]), 2,
                        [entry.key for entry in entries], lambda index: crops.read(entries[index]))
        return [Part("theirs", {"images": crops.parent()}, lambda: pairs)]


def _transform(pixels_u8, generator):
    return pixels_u8[::-1].copy()


@register("backbone", NAME, Card("x"))
def build_backbone(cfg: TheirConfig) -> nn.Module:
    return TheirBackbone()


@register("head", NAME, Card("x"))
def build_head(cfg: TheirConfig) -> nn.Module:
    return TheirHead()


@register("denoiser", NAME, Card("x"))
def build_denoiser(cfg: TheirDenoiserConfig) -> nn.Module:
    return TheirDenoiser(cfg.context_size)


@register("autoencoder", NAME, Card("x"))
def build_autoencoder(cfg: TheirConfig) -> nn.Module:
    return TheirAutoencoder()


@register("scheduler", NAME, Card("x"))
def build_scheduler(cfg: TheirConfig):
    return TheirScheduler


@register("sample_filter", NAME, Card("x"))
def build_sample_filter(cfg: TheirFilterConfig):
    return TheirSampleFilter(cfg.judge)


@register("transform", NAME, Card("x"))
def build_transform(cfg: TheirConfig):
    return _transform


def _register_plain(kind: str, made: type) -> None:
    def build(cfg: TheirConfig):
        return made()

    build.__qualname__ = f"build_{kind}"
    register(kind, NAME, Card("x"))(build)


for _kind, _made in {
    "guidance": TheirGuidance, "contexts": TheirSource, "context_filter": TheirContextFilter,
    "context_variation": TheirVariation, "augmentation": TheirAugmentation, "record_format": TheirFormat,
    "benchmark": TheirBenchmark,
}.items():
    _register_plain(_kind, _made)
