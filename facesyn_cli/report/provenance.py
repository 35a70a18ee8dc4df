"""Provenance of a set, from the headers of its stages: for the page and the dataset card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from facesyn_cli.artifacts.config_changes import flatten
from facesyn_cli.artifacts.origins import GENERATED, PHOTO, UNKNOWN

# Licenses of inputs that we detect by name, as their owners publish them; all others are `unknown`, and shown as such.
# Each: prefixes of words in the name of a file or its folder, what it is, its license.
_LICENCES = (
    (("casia",), "CASIA-WebFace", "research only"),
    (("ffhq",), "FFHQ, or a network made from it", "non-commercial (FFHQ: CC BY-NC-SA 4.0)"),
    (("celeba",), "CelebA", "non-commercial research only"),
    (("lfw",), "Labeled Faces in the Wild", "public research set; no license stated"),
    (("idiff",), "IDiff-Face", "CC BY-NC-SA 4.0"),
    (("negfacediff",), "NegFaceDiff", "CC BY-NC"),
    (("insightface", "w600k", "buffalo", "antelope"), "a network of InsightFace", "non-commercial research only"),
    (("arc2face",), "Arc2Face", "code MIT, data CC BY-NC-SA"),
    (("vec2face",), "Vec2Face", "code MIT"),
    (("cvlface",), "CVLface", "code MIT"),
    (("dcface",), "DCFace", "none stated"),
    (("starter",), "a part of a starter, small networks of facesyn", "research use only, see its own card"),
    (("uiface", "tface"), "TFace", "Apache-2.0 (code)"),
)


@dataclass(frozen=True)
class Input:
    """An external input of a set."""

    role: str                 # its role in the stage, such as images, weights or autoencoder
    stage: str                # command that read it
    name: str                 # last part of its path; folders above it are private to the maker's machine
    digest: str               # of its content
    known_as: str             # what it seems to be by its name, or empty
    license: str              # its license, or `unknown`


def origins_text(one: dict[str, Any]) -> str:
    """Return a line on how many images of a set were generated and how many may show real people."""
    words = {GENERATED: "generated", PHOTO: "photos of real people", UNKNOWN: "of unknown origin (real people or not)"}
    origins = one["origins"]
    counts = [f"{words[origin]}: {'some' if origins[origin] is None else format(origins[origin], ',')}"
              for origin in words if origin in origins]
    return f"Origin of the {one['of_images']:,} images: {'; '.join(counts)}."


def about_origins(one: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a warning where a set of generated images holds images that may show real people."""
    if len(one["origins"]) == 1 or GENERATED not in one["origins"]:
        return []
    return [_warning(one["name"], "", "privacy", origins_text(one))]


def about_judge(set_name: str, judge_name: str, is_conditioned: bool) -> list[dict[str, Any]]:
    """Return a warning where a set was made from embeddings of a judge: its figures are then too good."""
    if not is_conditioned:
        return []
    text = f"{set_name} was conditioned on embeddings of {judge_name}, so figures measured with it are better than " \
           "with any other recognizer. Use another judge: --judge WEIGHTS."
    return [_warning(set_name, judge_name, "identity", text)]


def stages_of(one: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the headers of the stages of a set in their order; its own header is the last."""
    stages = list(one["chain"])
    own = one["header"]
    if own and not any(_same(stage, own) for stage in stages):
        stages.append(own)
    return stages


def inputs_of(one: dict[str, Any]) -> list[Input]:
    """Return the external inputs: parents of a stage that no stage of the same set made."""
    stages = stages_of(one)
    made = {stage.get("digest") for stage in stages} - {None, ""}
    found = {}
    for stage in stages:
        for role, parent in stage["parents"].items():
            if parent["digest"] in made or (role, parent["digest"]) in found:
                continue
            known_as, license = license_of(parent["path"])
            name = last_part(parent["path"])
            found[role, parent["digest"]] = Input(role, stage["command"], name, parent["digest"], known_as, license)
    return list(found.values())


def license_of(path: str) -> tuple[str, str]:
    """Return what an input seems to be by its file and folder name, and its license; ("", "unknown") if unclear."""
    words = re.split(r"[^a-z0-9]+", "/".join(path.replace("\\", "/").rstrip("/").split("/")[-2:]).lower())
    for signs, name, license in _LICENCES:
        if any(word.startswith(signs) for word in words):
            return name, license
    return "", UNKNOWN


def last_part(path: str) -> str:
    """Return the name of a file or folder without the folders above it."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path


def settings_of(stage: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage that affect its result, flat: `scheduler.steps` -> 50."""
    config = stage["config"]
    merged = {}
    for role in ("identity", "growing", "recorded"):
        merged.update(flatten(config.get(role) or {}))
    return {name: value for name, value in merged.items() if value is not None}


def short(digest: str | None) -> str:
    """Return the first digits of a digest."""
    return digest.removeprefix("sha256:")[:12] if digest else UNKNOWN


def _warning(set_name: str, judge_name: str, section: str, text: str) -> dict[str, Any]:
    return {"level": "warning", "set": set_name, "judge": judge_name, "section": section, "text": text, "figures": [],
            "lists": []}


def _same(stage: dict[str, Any], own: dict[str, Any]) -> bool:
    return stage["command"] == own["command"] and stage["parents"] == own["parents"]
