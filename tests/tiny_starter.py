"""A finished run of the smallest networks, and the starter packed from it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from fill import fill_state

from facesyn_cli.artifacts.atomic_files import write_json, write_text
from facesyn_cli.artifacts.context_set import write_contexts
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.models.loading import load_autoencoder
from facesyn_cli.plugins import registry

EMBEDDING_SIZE, LATENT_SIZE, SIDE, NUM_CONTEXTS = 16, 8, 16, 12
AUTOENCODER = {"name": "kl-f4", "channels": 32, "multipliers": [1, 1], "num_blocks": 1, "part": "both"}
EMBEDDER = {"name": "ir-tiny", "widths": [4, 8], "blocks": [1, 1], "embedding_size": EMBEDDING_SIZE}
DENOISER = {
    "name": "idiff-unet", "in_channels": 3, "channels": 32, "multipliers": [1], "attention": [True], "num_blocks": 1,
    "context_size": EMBEDDING_SIZE, "context_width": 32,
}
FLOW_DENOISER = {
    "name": "dit", "patch": 1, "width": 16, "depth": 1, "heads": 2, "context_size": EMBEDDING_SIZE, "context_width": 16,
}
FLOW_SETTINGS = {
    "samples": {"scheduler": {"name": "flow-euler", "steps": 2}, "guidance": {"name": "cfg", "scale": 1.5},
                "size": None},
    "contexts": {"source": {"name": "pca", "groups": ["a*", "b*"]}, "filters": [{"name": "unique", "r": 1.0}]},
}
SETTINGS = {
    "samples": {"scheduler": {"name": "ddim", "steps": 2}, "guidance": {"name": "cfg", "scale": 1.5},
                "variation": {"name": "idperturb", "lowest": 0.9}, "size": None},
    "contexts": {"source": {"name": "two-stage", "scheduler": {"name": "ddim", "steps": 2}},
                 "filters": [{"name": "unique", "r": 1.0}, {"name": "novel", "r": 0.5}]},
}


def write_run(work: Path, is_flow: bool = False) -> Path:
    """Write `1-embedder`, `2-autoencoder`, `2-ldm`, `3-contexts` and the header of `4-samples`, as stages do.

    With `is_flow` the LDM is a rectified flow on latents of the packaged autoencoder, and there is no `2-autoencoder`.
    """
    embedder = _write_network(work / "1-embedder", "train-embedder", "backbone", EMBEDDER)
    shared = {"image_size": SIDE, "output_size": 112, "embedder": embedder, "embedding_size": EMBEDDING_SIZE}
    if is_flow:
        section, kept = FLOW_DENOISER, FLOW_SETTINGS
        settings = LdmSettings(
            denoiser=section, prediction="flow", latent_channels=16, latent_size=SIDE // 8,
            autoencoder=load_autoencoder("taesd3").section, **shared,
        )
    else:
        section, kept = DENOISER, SETTINGS
        _write_network(work / "2-autoencoder", "train-autoencoder", "autoencoder", AUTOENCODER)
        settings = LdmSettings(
            denoiser=section, latent_size=LATENT_SIZE, latent_mean=[0.0, 0.1, 0.2], latent_std=[1.0, 1.1, 0.9],
            autoencoder=load_autoencoder((work / "2-autoencoder").resolve()).section, **shared,
        )
    denoiser = fill_state(registry.build("denoiser", registry.configure("denoiser", section)))
    write_weights(work / "2-ldm", denoiser.state_dict(), settings.model_dump(mode="json"))
    _finish(work / "2-ldm", "Weights", "train-ldm", {"steps": 7}, identity={"denoiser": section})
    write_text(work / "2-ldm" / "metrics.jsonl", '{"step": 5, "loss": 0.5}\n{"step": 7, "loss": 0.25}\n')
    vectors = np.random.default_rng(0).standard_normal((NUM_CONTEXTS, EMBEDDING_SIZE))
    origins = [{"source": "images", "candidate": row, "name": f"somebody/{row}"} for row in range(NUM_CONTEXTS)]
    write_contexts(work / "3-contexts", [str(k) for k in range(NUM_CONTEXTS)], vectors, origins, [None] * NUM_CONTEXTS)
    _finish(work / "3-contexts", "ContextSet", "gen-contexts", {"contexts": NUM_CONTEXTS}, {"embedder": embedder},
            identity=kept["contexts"])
    _finish(work / "4-samples", "ImageSet", "sample", {"images": 4}, identity=kept["samples"])
    return work


def write_starter(folder: Path, is_flow: bool = False) -> Path:
    """Pack a starter into `folder / "starter"` and return that; `is_flow` as in `write_run`."""
    from facesyn_cli.stages import starter

    starter.pack(write_run(folder / "run", is_flow), folder / "starter")
    return folder / "starter"


def _write_network(folder: Path, command: str, kind: str, section: dict) -> str:
    module = fill_state(registry.build(kind, registry.configure(kind, section)))
    write_weights(folder, module.state_dict(), {"kind": kind, kind: section})
    _finish(folder, "Weights", command, {"steps": 3}, identity={"backbone": section, "note": str(folder.resolve())})
    return file_digest(folder / "model.safetensors")


def _finish(folder: Path, kind: str, command: str, counts: dict, extra: dict | None = None, **config: dict) -> None:
    digest = f"sha256:{folder.name:0>64}"
    write_json(folder / "facesyn.json", asdict(Header(kind, command, config, {}, counts, extra or {}, digest, digest)))
