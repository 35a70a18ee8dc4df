"""The few settings and counts by which a reader knows a stage, for `facesyn init` and the picture of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def stage_facts(stage: str, cfg: Any) -> list[str]:
    """Return short phrases on what a stage does with its settings, the most important first.

    Args:
        stage: Its name.
        cfg: Its config.
    """
    return _FACTS[stage](cfg)


def _align(cfg: Any) -> list[str]:
    return [f"faces of {cfg.size} x {cfg.size} px", "detector" if cfg.landmarks is None else "given landmarks"]


def _embed(cfg: Any) -> list[str]:
    return ["mean with the mirrored image" if cfg.flip else "one embedding per face"]


def _train_embedder(cfg: Any) -> list[str]:
    return [f"{cfg.backbone.name}, student", _steps(cfg)]


def _train_autoencoder(cfg: Any) -> list[str]:
    return [f"{cfg.autoencoder.name}, {cfg.image_size} px", _steps(cfg)]


def _train_ldm(cfg: Any) -> list[str]:
    return [f"{cfg.denoiser.name}, {cfg.image_size} px", _steps(cfg)]


def _gen_contexts(cfg: Any) -> list[str]:
    filters = f"filter{'s' if len(cfg.filters) > 1 else ''} {', '.join(one.name for one in cfg.filters)}"
    count = "all identities" if cfg.count is None else f"{cfg.count:,} identities"
    return [count, f"source {cfg.source.name}", filters if cfg.filters else "no filter"]


def _sample(cfg: Any) -> list[str]:
    ids = "all identities" if cfg.ids is None else f"{cfg.ids:,} identities"
    steps = getattr(cfg.scheduler, "steps", None)
    scale = getattr(cfg.guidance, "scale", None)
    guidance = "" if cfg.guidance.name == "none" else f"guidance {cfg.guidance.name}{f' {scale:g}' if scale else ''}"
    variation = f"variation {cfg.variation.name}" if cfg.variation else ""
    chosen = f"filter {cfg.filter.name}" if cfg.filter else ""
    scheduler = cfg.scheduler.name + (f", {steps} steps" if steps else "")
    return [text for text in (f"{ids} x {cfg.per_id} images", scheduler, guidance, variation, chosen) if text]


def _augment(cfg: Any) -> list[str]:
    copies = getattr(cfg.augmentation, "copies", None)
    per = {"oversample": " per identity", "photometric": " per image"}.get(cfg.augmentation.name, "")
    return [cfg.augmentation.name, *([f"{copies} {'copy' if copies == 1 else 'copies'}{per}"] if copies else [])]


def _pack(cfg: Any) -> list[str]:
    return [f"{cfg.format.name}, {cfg.name}", *(["first image left out"] if cfg.drop_first else [])]


def _train_fr(cfg: Any) -> list[str]:
    return [f"{cfg.backbone.name}, {cfg.head.name}", f"{cfg.epochs} epochs, batch {cfg.batch_size:,}"]


def _eval(cfg: Any) -> list[str]:
    names = [one.name for one in cfg.benchmarks] + [Path(path).stem for path in cfg.pairs]
    return [", ".join(names) or "no benchmark named yet"]


def _report(cfg: Any) -> list[str]:
    return ["quality, diversity, privacy", _judges(len(cfg.judges))]


def _select(cfg: Any) -> list[str]:
    return [f"identities closer than cosine {cfg.r:g}", "dropped" if cfg.collisions == "drop" else "merged"]


def _study(cfg: Any) -> list[str]:
    return [", ".join(cfg.schedulers), f"{cfg.ids:,} identities x {cfg.per_id} images"]


def _steps(cfg: Any) -> str:
    limit = "" if cfg.minutes is None else f" or {cfg.minutes:g} minutes"
    return f"{cfg.steps:,} steps{limit}, batch {cfg.batch_size:,}"


def _judges(count: int) -> str:
    return {0: "no judge named yet", 1: "1 judge recognizer"}.get(count, f"{count} judge recognizers")


_FACTS: dict[str, Callable[[Any], list[str]]] = {
    "align": _align, "embed": _embed, "train-embedder": _train_embedder, "train-autoencoder": _train_autoencoder,
    "train-identity": _train_embedder,
    "train-ldm": _train_ldm, "gen-contexts": _gen_contexts, "sample": _sample, "select": _select, "augment": _augment,
    "pack": _pack, "train-fr": _train_fr, "eval": _eval, "report": _report, "study": _study,
}
