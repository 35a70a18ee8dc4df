"""The text of the recipe that `facesyn init` writes: YAML in which every setting carries a comment."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from facesyn_cli.config.fields import role_of
from facesyn_cli.pipelines.stage import config_class_of

_WIDTH = 116      # characters of a line
_COLUMN = 40      # where a comment beside a setting starts

_STAGES = {  # what each stage does; shown above its section
    "align": "Find the face in each photo and cut it out, 112 x 112 px, on the ArcFace template. Writes 0-images.",
    "embed": "Describe each face by an embedding: what a recognizer knows about the person. Writes 1-embeddings.",
    "train-autoencoder": "Train an autoencoder, which turns faces into small latents and back. Writes 2-autoencoder. "
                         "With published weights (VQ-f4 for example) name them as train-ldm.autoencoder and delete "
                         "this section.",
    "train-ldm": "Train the latent diffusion model (LDM), which generates a face of the person that an embedding "
                 "describes. The longest stage; it can be stopped and resumed. Writes 2-ldm.",
    "gen-contexts": "Make the embeddings of people who do not exist, one context per identity of the new set. "
                    "Writes 3-contexts.",
    "sample": "Generate images of each new identity. Writes 4-samples.",
    "augment": "Add images to each identity. Delete this section to train on the samples alone. Writes 5-augmented.",
    "pack": "Pack all images with integer labels into a few large files. Writes 6-records.",
    "train-fr": "Train a face recognizer on the new set. Writes 7-fr.",
    "eval": "Measure that recognizer on verification pairs of real faces. Writes 8-table.",
    "report": "Measure quality, diversity and privacy of the set, with pictures in one HTML page. Writes 9-report.",
}
_SETTINGS = {  # in place of the description of the setting, where a reader needs advice
    "align.images": "your photos",
    "align.detector": "YuNet, the face detector of OpenCV's model zoo",
    "embed.images": "your faces; the same in train-ldm",
    "embed.weights": "recognizer whose embeddings condition the LDM; all later stages depend on it. starter-embedder "
                     "is the small packaged one; a stronger one gives identities that differ more",
    "embed.batch_size": "images a batch; lower it where memory is short",
    "embed.flip": "whether the mirrored image counts as well; published embeddings do without",
    "train-autoencoder.autoencoder": "face-kl: a small KL autoencoder; with other latent_channels change "
                                     "train-ldm.denoiser.in_channels too",
    "train-autoencoder.features": "recognizer that compares photos with their reconstructions in the loss",
    "train-autoencoder.batch_size": "images of one step; lower it where memory is short",
    "train-ldm.images": "your faces",
    "train-ldm.autoencoder": "turns faces into latents and back; the LDM belongs to it",
    "train-ldm.initial_denoiser": "the network to start from; starter-ldm is the packaged one, which knows many people",
    "train-ldm.identity_recognizer": "reads who a predicted latent shows; starter-identity is the packaged one",
    "train-ldm.identity": "loss that asks for the person of the context; a higher weight makes the images of a person "
                          "more alike",
    "train-ldm.denoiser": "the network and its size; another size means another training",
    "train-ldm.minutes": "ends the training after these minutes, where its steps take longer; faces get better with "
                         "every hour",
    "train-ldm.precision": "bf16 where this machine computes faster in it, else fp32",
    "train-ldm.steps": "optimizer steps; more help as long as the validation loss in 2-ldm/metrics.jsonl falls; later "
                       "the LDM learns its photos by heart",
    "train-ldm.batch_size": "images of one step, over all GPUs; where memory is short, add accumulate: 2 (or 4, 8) "
                            "instead of lowering it",
    "train-ldm.context_dropout": "share of the images trained without a context, which guidance and two-stage "
                                 "contexts need",
    "gen-contexts.source": "pca: distributed like the embeddings of your photos; two-stage: embeddings of faces that "
                           "the LDM generates without a context, which gives augment a face to add; more: facesyn "
                           "plugins contexts",
    "gen-contexts.filters": "novel: unlike every known person; unique: unlike each other; a higher r (cosine) drops "
                            "fewer candidates",
    "gen-contexts.count": "identities; sample.ids uses the first of them. Raise both together, a finished set grows",
    "gen-contexts.known": "what the new identities are distributed like",
    "sample.ldm": "the LDM that generates the faces; starter-ldm is the packaged one",
    "sample.contexts": "who is generated; starter-contexts are people who do not exist",
    "sample.ids": "identities of the set; can be raised later, a finished set grows",
    "sample.contact_sheet": "write 4-samples.contact_sheet.png, 10 x 10 of the faces to look at",
    "sample.per_id": "images of each identity; can be raised later",
    "sample.scheduler": "how noise becomes a face; more steps take longer in proportion",
    "sample.guidance": "a higher scale makes the images of a person more alike and less varied; none: off",
    "sample.variation": "how the contexts of a person's images differ; a lower value makes the images differ more",
    "sample.precision": "auto: bf16 where it is faster on this machine",
    "augment.augmentation": "photometric: copies of each image with other colors and light; oversample: copies of the "
                            "face of the context per identity, for contexts that have one",
    "pack.name": "name of the set; TFace reads sets whose name contains TFR",
    "pack.drop_first": "whether the first image of each identity is left out, as published",
    "train-fr.backbone": "network of the recognizer",
    "train-fr.head": "loss; arcface, cosface, ... (facesyn plugins head)",
    "train-fr.batch_size": "images of one step, over all GPUs",
    "train-fr.epochs": "passes over the set",
    "train-fr.workers": "threads that read images; raise it where the GPU waits for them",
    "eval.pairs": "lists of verification pairs, or .bin files",
    "eval.images": "folder or zip of the images that the lists name",
    "report.judges": "recognizers that score the set; best one that is not the recognizer of embed, "
                     "which finds what it conditioned",
    "report.reference": "the photos, to measure whether the set shows a person of theirs",
}
_NO_EVAL = [
    "# No verification pairs were given, so the recognizer is not evaluated. To do it, name a list of pairs and its",
    "# images, or a .bin file (lfw.bin, ...) without images, and remove the # below.",
    "# eval:",
    "#   pairs: [pairs.txt]",
    "#   images: photos.zip",
]


def recipe_text(sections: dict[str, dict[str, Any]], head: list[str]) -> str:
    """Return a recipe as YAML.

    Args:
        sections: Settings of each stage, in order.
        head: Lines of the comment at the top.
    """
    lines = [f"# {line}".rstrip() for line in head]
    for stage, settings in sections.items():
        if stage == "report" and "eval" not in sections:
            lines += ["", *_NO_EVAL]
        lines += ["", *_comment(_STAGES[stage], ""), f"{stage}:"]
        fields = config_class_of(stage).model_fields
        for key in sorted(settings, key=lambda key: role_of(fields[key]) != "input"):
            about = _SETTINGS.get(f"{stage}.{key}") or str(fields[key].description)
            lines += _setting(key, settings[key], about)
    return "\n".join(lines) + "\n"


def _setting(key: str, value: Any, about: str) -> list[str]:
    line = f"  {key}: {_flow(value)}"
    beside = f"{line:{_COLUMN - 2}}  # {about}"
    if len(beside) <= _WIDTH:
        return [beside]
    return [*_comment(about, "  "), line]


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _flow(value: Any) -> str:
    """Return a value as YAML on one line; a plugin starts with its name."""
    if isinstance(value, dict) and "name" in value:
        value = {"name": value["name"], **value}
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
