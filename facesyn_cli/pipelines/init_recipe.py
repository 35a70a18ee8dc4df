"""The sections of the recipe that `facesyn init` writes; networks and their settings come from the built-in recipes.

    small    recipe `starter`: a transformer on the latents of the packaged autoencoder, ten minutes on two cores
    medium   recipe `admis`, trained for a third as long with a quarter of the batch; contexts like real embeddings
    full     recipe `admis` with its numbers

Without photos nothing is trained but the recognizer at the end: the networks of the packaged starter generate the set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.starter_files import IDENTITY, PACKAGED, find_starter
from facesyn_cli.artifacts.weights import read_config
from facesyn_cli.config.recipe import STAGES, load_recipe
from facesyn_cli.pipelines.init_inputs import Machine, Network, Photos

Size = Literal["small", "medium", "full"]
COUNTS: dict[str, tuple[int, int]] = {"small": (200, 10), "medium": (1000, 20), "full": (10_000, 50)}  # ids, per_id
STARTER_EMBEDDER, STARTER_LDM = "starter-embedder", "starter-ldm"
_STARTER_CONTEXTS, _STARTER_IDENTITY = "starter-contexts", "starter-identity"
_ENOUGH_PHOTOS, _ENOUGH_GPU_GIB = 5000, 16  # from which on the published networks are proposed
_PASSES, _FEWEST_STEPS = 80, 300  # of `small` over the photos; of all, where there are few
_MINUTES = 10  # of its training at most: two cores see 24,000 to 48,000 images in them, without and with bf16
_GUIDANCE = 1.75  # scale for an LDM without the identity loss
_FOR_TRAINING = {  # images that differ more than those of the starter train a better recognizer: guide starter
    "scheduler": {"name": "flow-euler", "steps": 12}, "variation": {"name": "idperturb", "lowest": 0.6},
}
_CONTEXT_DROPOUT = 0.1  # guidance and two-stage contexts need an LDM that knows the empty context
_LATENT_CHANNELS = 8    # of `face-kl`
_BYTES_PER_FACE = 23_000  # a PNG of 112 x 112


@dataclass(frozen=True)
class Choices:
    """What a recipe is made of.

    Args:
        size: Networks and lengths of the trainings.
        ids: Identities of the set.
        per_id: Images of each.
        photos: Training photos; None: the starter's networks generate the set.
        align: Cut aligned faces out of the photos first.
        detector: YuNet for it.
        recognizer: Weights of the recognizer whose embeddings condition the LDM; None: the starter's.
        embedding: That recognizer; None: the starter's.
        autoencoder: Weights of an autoencoder for medium and full; None: one is trained.
        latents: That autoencoder.
        bf16: This machine computes faster in bf16 than in fp32.
        pairs: Verification pairs to evaluate on.
        pair_images: The images that a list of pairs names.
        judge: Weights of a recognizer that scores the set; None: the starter's.
    """

    size: Size = "small"
    ids: int = 200
    per_id: int = 10
    photos: Photos | None = None
    align: bool = False
    detector: Path | None = None
    recognizer: Path | None = None
    embedding: Network | None = None
    autoencoder: Path | None = None
    latents: Network | None = None
    bf16: bool = False
    pairs: Path | None = None
    pair_images: Path | None = None
    judge: Path | None = None


def proposed_size(machine: Machine, photos: Photos | None) -> Size:
    """Return the size that suits a machine and a number of photos."""
    has_photos = photos is not None and photos.images >= _ENOUGH_PHOTOS
    return "medium" if has_photos and machine.gpu_memory >= _ENOUGH_GPU_GIB else "small"


def make_sections(choices: Choices) -> dict[str, dict[str, Any]]:
    """Return the settings of each stage, in the order in which the stages run."""
    made = _of_starter(choices) if choices.photos is None else _of_photos(choices)
    made["sample"] |= {"ids": choices.ids, "per_id": choices.per_id, "contact_sheet": True}
    made["pack"] = {**made["pack"], "name": "TFR-faces"}
    if choices.pairs is not None:
        made["eval"] = {"pairs": [str(choices.pairs)]}
        if choices.pair_images is not None:
            made["eval"]["images"] = str(choices.pair_images)
    made["report"] = {"judges": [str(choices.judge or STARTER_EMBEDDER)]}
    if choices.photos is not None and not choices.align:
        made["report"]["reference"] = str(choices.photos.path)
    return {stage: made[stage] for stage in STAGES if stage in made}


def expected_disk_gib(choices: Choices, sections: dict[str, dict[str, Any]]) -> float:
    """Return a rough upper estimate of the disk that a run takes."""
    augmentation = sections["augment"]["augmentation"]
    added = augmentation["copies"] * (1 if augmentation["name"] == "oversample" else choices.per_id)
    total = 2 * choices.ids * (choices.per_id + added) * _BYTES_PER_FACE  # as files, and packed
    if choices.photos is not None:
        latents = 4 * 16 * 14 * 14 if choices.size == "small" else 4 * 3 * 32 * 32
        total += choices.photos.images * (2 * latents + (_BYTES_PER_FACE if choices.align else 0) + 4 * 512)
        total += 0.2e9 if choices.size == "small" else 15e9  # weights, optimizer states, kept checkpoints
    return total / 2**30


def _of_starter(choices: Choices) -> dict[str, dict[str, Any]]:
    base, starter = load_recipe("starter"), find_starter(PACKAGED)
    made = {stage: base[stage] for stage in ("augment", "pack", "train-fr")}
    made["sample"] = {"ldm": STARTER_LDM, **starter.settings.get("sample", base["sample"]), **_FOR_TRAINING}
    header = read_header(starter.part("contexts"))
    if header is not None and choices.ids <= header.counts["contexts"]:
        made["sample"]["contexts"] = _STARTER_CONTEXTS
    else:
        settings = starter.settings.get("gen-contexts", base["gen-contexts"])
        made["gen-contexts"] = {**settings, "known": _STARTER_CONTEXTS, "count": choices.ids}
    return made


def _of_photos(choices: Choices) -> dict[str, dict[str, Any]]:
    starter, admis = load_recipe("starter"), load_recipe("admis")
    is_small = choices.size == "small"
    base = starter if is_small else admis
    made = {stage: dict(base[stage]) for stage in ("embed", "train-ldm", "sample", "augment", "pack", "train-fr")}
    made["embed"]["weights"] = str(choices.recognizer or STARTER_EMBEDDER)
    denoiser = dict(base["train-ldm"]["denoiser"])
    if choices.embedding is not None and choices.embedding.size != 512:
        denoiser["context_size"] = choices.embedding.size
    made["train-ldm"] |= {"denoiser": denoiser, "context_dropout": _CONTEXT_DROPOUT}
    assert choices.photos is not None
    if is_small:
        steps = choices.photos.images * _PASSES // base["train-ldm"]["batch_size"]
        precision = "bf16" if choices.bf16 else "fp32"
        made["train-ldm"] |= {
            "steps": min(max(steps, _FEWEST_STEPS), base["train-ldm"]["steps"]), "minutes": _MINUTES,
            "precision": precision, "latent_precision": precision, "validate_every": 200, "preview_every": 200,
            "checkpoint_every": 100,
        }
        made["sample"] |= _FOR_TRAINING
        if _has_identity_recognizer(choices):
            made["train-ldm"]["identity_recognizer"] = _STARTER_IDENTITY
        else:
            del made["train-ldm"]["identity"]  # its recognizer learns little from a few thousand photos
            made["sample"]["guidance"] = {"name": "cfg", "scale": _GUIDANCE}  # in the place of that loss
            del made["sample"]["variation"]  # without the loss, faces keep too little of an identity to vary it
        if "context_size" not in denoiser:  # the packaged LDM knows many more people, under embeddings of 512 numbers
            made["train-ldm"]["initial_denoiser"] = STARTER_LDM
    else:
        made |= _own_autoencoder(choices, denoiser, made["train-ldm"])
    filters = [dict(one) for one in starter["gen-contexts"]["filters"] if one["name"] != "quality"]
    made["gen-contexts"] = {"source": {"name": "pca"}, "filters": filters, "count": choices.ids}
    if choices.size == "medium":
        made["train-ldm"] |= {"batch_size": 128, "steps": 70_000}  # the end of the third cycle of the learning rate
        made["sample"] = {"scheduler": {"name": "unipc", "steps": 20}, "guidance": "none", "precision": "auto"}
        made["augment"], made["pack"] = dict(starter["augment"]), {}
        made["train-fr"] |= {"precision": "bf16"}
    if choices.size == "full":
        made["gen-contexts"] = {"source": {"name": "two-stage"}, "filters": ["unique"], "count": choices.ids}
        del made["augment"]["faces_origin"]  # the contexts say it
    _place_photos(choices, made)
    return made


def _has_identity_recognizer(choices: Choices) -> bool:
    """Return whether the packaged recognizer of latents knows the embeddings that condition the LDM."""
    starter = find_starter(PACKAGED)
    if IDENTITY not in starter.digests:
        return False
    teacher = read_config(starter.part(IDENTITY)).get("teacher")
    own = choices.embedding.digest if choices.embedding else None
    return choices.recognizer is None or own is not None and own == teacher


def _own_autoencoder(
    choices: Choices, denoiser: dict[str, Any], train_ldm: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Put the given autoencoder into the section `train-ldm`, or return a section that trains one."""
    if choices.autoencoder is not None:
        train_ldm["autoencoder"] = str(choices.autoencoder)
        denoiser["in_channels"] = choices.latents.size if choices.latents else 3
        return {}
    denoiser["in_channels"] = _LATENT_CHANNELS
    return {"train-autoencoder": {
        "autoencoder": {"name": "face-kl", "latent_channels": _LATENT_CHANNELS}, "image_size": train_ldm["image_size"],
        "features": STARTER_EMBEDDER, "steps": 20_000, "batch_size": 32, "precision": "bf16",
    }}


def _place_photos(choices: Choices, made: dict[str, dict[str, Any]]) -> None:
    """Let the stages read the photos, or the faces that `align` cuts out of them."""
    photos = str(choices.photos.path) if choices.photos else ""
    if choices.align:
        made["align"] = {"images": photos, "detector": str(choices.detector)}
        return
    for stage in ("embed", "train-autoencoder", "train-ldm"):
        if stage in made:
            made[stage] = {"images": photos, **made[stage]}
