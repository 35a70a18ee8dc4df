"""Every command that writes, on inputs so small that it ends within seconds."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny_embedder
import tiny_fr
import tiny_latents
import tiny_ldm
import torch
import yaml
from conftest import finish, spawn
from fill import fill_state
from guided_checkpoint import write_small
from tiny_detector import landmarks, photo, write_detector
from tiny_recognizer import face, write_faces, write_recognizer
from tiny_starter import write_run
from tiny_tars import write_tar_set

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.plugins.builtin import BUILTIN

PEOPLE, PHOTOS = 16, 8
AUTOENCODER = (
    "device=cpu", f"image_size={tiny_ldm.SIZE}", "autoencoder.patch=2", "autoencoder.channels=[8]",
    "autoencoder.num_groups=4", "autoencoder.smooth=4", "autoencoder.latent_channels=4", "ema.maximum=0.5",
    "lr_schedule.warmup_steps=0", "validation_fraction=0.2", "validate_every=5", "log_every=1", "checkpoint_every=3",
)
UNET = {
    "name": "idiff-unet", "in_channels": 3, "channels": 32, "multipliers": [1, 1], "attention": [False, True],
    "num_blocks": 1, "context_size": 512, "context_width": 32,
}
FR = {
    "backbone": {"name": "ir-tiny", "widths": [4, 8, 12, 16], "embedding_size": 16}, "epochs": 1, "batch_size": 8,
    "norm_batch_size": 4, "workers": 0,
}
DDIM = {"name": "ddim", "steps": 2}
ABLATION = {
    "ablate": {"seeds": 1, "images": 12, "rows": [
        {"name": "real", "title": "real faces", "real": True, "identities": 4},
        {"name": "sphere", "gen-contexts": {"source": "sphere", "filters": []}},
        {"name": "copies", "base": "sphere", "gen-contexts": {"source": {"name": "two-stage", "scheduler": DDIM}},
         "augment": {"augmentation": {"name": "oversample", "copies": 2}}},
    ]},
    "gen-contexts": {"count": 4},
    "sample": {"ids": 3, "per_id": 4, "batch_size": 5, "scheduler": DDIM},
    "train-fr": FR,
}


@dataclass(frozen=True)
class Command:
    """One way to write something.

    Args:
        name: Of the test.
        steps: (inputs, out) -> command lines, run one after the other.
        atomic: `out` appears when all is done, so it is whole whenever it is there.
    """

    name: str
    steps: Callable[[Path, Path], list[list[object]]]
    atomic: bool = False


def write_inputs(folder: Path) -> Path:
    """Write what the commands below read and return the folder."""
    write_faces(folder / "faces", PEOPLE, PHOTOS)
    write_recognizer(folder / "judge")
    for person in range(50, 56):
        for number in range(4):
            path = folder / "real" / f"r{person}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(face(person, number)))
    _write_photos(folder)
    _write_pairs(folder)
    _write_ldm(folder / "ldm", 0.003)
    _write_ldm(folder / "plain", 1.0)
    write_small(folder / "guided.pt")
    torch.save(fill_state(ConditionalUNet(UnetConfig(**UNET))).state_dict(), folder / "unet.ckpt")
    np.save(folder / "contexts.npy", np.random.RandomState(0).standard_normal((40, 512)).astype(np.float32))
    tiny_ldm.write_faces(folder / "drawn")
    tiny_embedder.write_taught_faces(folder / "taught")
    tiny_fr.write_faces(folder / "fr", seed=1)
    tiny_latents.write_faces(folder / "latents")
    write_run(folder / "run")
    places = {f"{i}/{k}.png": folder / "faces" / f"p{i}" / f"{k}.png" for i in range(8) for k in range(4)}
    images = {name: path.read_bytes() for name, path in places.items()}
    write_tar_set(folder / "tars", images, per_shard=4)
    angles = np.radians([12 * person + 2 * number for person in range(PEOPLE) for number in range(PHOTOS)])
    keys = [f"p{person}/{number}" for person in range(PEOPLE) for number in range(PHOTOS)]
    tiny_ldm.write_embedding_set(folder / "judged", keys, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    (folder / "table.yaml").write_text(yaml.safe_dump(ABLATION, sort_keys=False))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(_recipe(folder), sort_keys=False))
    for words in (
        ("embed", "--images", folder / "faces", "--weights", folder / "judge", "--out", folder / "known"),
        ("gen-contexts", "--source", "images", "--images", folder / "faces", "--weights", folder / "judge",
         "--count", 12, "filters=[]", "--out", folder / "contexts"),
        ("sample", *_ldm(folder), "--contexts", folder / "contexts", "--ids", 12, "--per-id", 4,
         "--out", folder / "samples"),
    ):
        ran = finish(spawn(*words, "--device", "cpu"))
        assert ran.code == 0, ran.err
    return folder


def _write_photos(folder: Path) -> None:
    lines = []
    for person in range(8):
        for number in range(3):
            cell = (9 + person, 9 + 2 * number)
            path = folder / "photos" / f"p{person}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(photo(cell, seed=3 * person + number)))
            numbers = " ".join(repr(float(v)) for v in landmarks(cell).ravel())
            lines.append(f"p{person}/{number}.png {numbers} 0.9\n")
    (folder / "landmarks.txt").write_text("".join(lines))
    write_detector(folder / "red.onnx")


def _write_pairs(folder: Path) -> None:
    rows = [((p, 0), (p, 1), 1) for p in range(10)] + [((p, 0), (p + 1, 1), 0) for p in range(10)]
    rows = [row for both in zip(rows[:10], rows[10:], strict=True) for row in both]
    lines = ["5", *(f"p{a}/{i}.png p{b}/{j}.png {same}" for (a, i), (b, j), same in rows)]
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    (folder / "bins").mkdir()
    for name, shift in (("lfw", 0), ("cfp_fp", 50), ("agedb_30", 80)):
        images = [encode_png(face(p + shift, k)) for one, other, _ in rows for p, k in (one, other)]
        (folder / "bins" / f"{name}.bin").write_bytes(pickle.dumps((images, [bool(same) for *_, same in rows]), 2))


def _write_ldm(folder: Path, std: float) -> None:
    settings = LdmSettings(
        denoiser=UNET, latent_size=6, latent_mean=[0.0] * 3, latent_std=[std] * 3, image_size=24, output_size=112,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}}, embedding_size=512,
    )
    write_weights(folder, fill_state(ConditionalUNet(UnetConfig(**UNET))).state_dict(),
                  settings.model_dump(mode="json"))


def _recipe(folder: Path) -> dict:
    """Return all stages from photos to report."""
    return {
        "embed": {"images": str(folder / "faces"), "weights": str(folder / "judge")},
        "train-ldm": {
            "images": str(folder / "faces"), "autoencoder_model": {"name": "pixels", "downscale": 7},
            "image_size": 112, "steps": 4, "batch_size": 4, "denoiser": {**UNET, "multipliers": [1],
                                                                         "attention": [False]},
            "preview_every": 0, "validate_every": 0, "validation_fraction": 0, "checkpoint_every": 2,
        },
        "gen-contexts": {"source": {"name": "two-stage", "scheduler": DDIM}, "filters": [], "count": 4,
                         "weights": str(folder / "judge")},
        "sample": {"ids": 4, "per_id": 3, "scheduler": DDIM, "batch_size": 4},
        "augment": {"augmentation": {"name": "oversample", "copies": 2}},
        "pack": {"name": "TFR-tiny"},
        "train-fr": {**FR, "stages": []},
        "eval": {"pairs": [str(folder / "pairs.txt")], "images": str(folder / "faces")},
        "report": {"judges": [str(folder / "judge")]},
    }


def _ldm(i: Path) -> list[object]:
    return ["--ldm", i / "ldm", "scheduler.name=ddim", "--steps", 2, "--batch-size", 4, "assume_embedder=any"]


def _embed(i: Path, out: Path, *more: object) -> list[object]:
    return ["embed", "--images", i / "faces", "--weights", i / "judge", "--out", out, "--device", "cpu", "part_size=6",
            "--batch-size", 2, *more]


def _contexts(i: Path, out: Path, source: str, *more: object) -> list[object]:
    return ["gen-contexts", "--source", source, "--out", out, "--work", out.parent / "none", "--device", "cpu",
            "--batch-size", 2, *more]


def _sample(i: Path, out: Path, *more: object, per_id: int = 4) -> list[object]:
    return ["sample", *_ldm(i), "--contexts", i / "contexts.npy", "--out", out, "--device", "cpu", "--per-id", per_id,
            *more]


def _pack(name: str) -> Command:
    return Command(f"pack-{name}", lambda i, out: [
        ["pack", "--in", i / "faces", "--in", i / "real", "--to", name, "--out", out, "workers=1", "size=96"]])


def _select(name: str) -> Command:
    return Command(f"select-{name}", lambda i, out: [
        ["select", "--in", i / "faces", "--embeddings", i / "judged", "--out", out, "--r", "0.97",
         "--collisions", name]])


def _convert(name: str, file: str, *more: object) -> Command:
    return Command(f"convert-{name}", lambda i, out: [["models", "convert", i / file, "--out", out, *more]],
                   atomic=True)


_QUALITY = "filters=[{name: quality, images: 2, lowest_cosine: -1, lowest_length: 0, scheduler: {steps: 2}}]"
COMMANDS = [
    Command("align-list", lambda i, out: [
        ["align", "--images", i / "photos", "--landmarks", i / "landmarks.txt", "--out", out, "workers=1"]]),
    Command("align-detector", lambda i, out: [
        ["align", "--images", i / "photos", "--detector", i / "red.onnx", "--out", out, "workers=1"]]),
    Command("align-shards", lambda i, out: [
        ["align", "--images", i / "photos", "--landmarks", i / "landmarks.txt", "--out", out, "workers=1",
         "part_size=4", "--shard", f"{k}/3"] for k in (2, 3, 1)]),
    Command("embed", lambda i, out: [_embed(i, out)]),
    Command("embed-shards", lambda i, out: [_embed(i, out, "--shard", f"{k}/3") for k in (2, 3, 1)]),
    Command("embed-aligning", lambda i, out: [_embed(i, out, f"images={i / 'photos'}",
                                                     f"align.detector={i / 'red.onnx'}")]),
    Command("train-embedder", lambda i, out: [tiny_embedder.train_arguments(i / "taught", out, steps=20)]),
    Command("train-identity", lambda i, out: [
        tiny_latents.embedder_arguments(i / "latents", out, f"latent_cache={out.parent / 'cache'}", steps=20)]),
    Command("train-autoencoder", lambda i, out: [
        ["train-autoencoder", "--images", i / "drawn" / "faces", "--out", out, "--steps", 25, "--batch-size", 8,
         *AUTOENCODER, "preview_every=5"]]),
    Command("train-ldm", lambda i, out: [
        tiny_ldm.train_arguments(i / "drawn", out, "preview_every=6", "ema.maximum=0.5", steps=30)]),
    Command("gen-contexts-sphere", lambda i, out: [_contexts(i, out, "sphere", "--count", 4000)]),
    Command("gen-contexts-images", lambda i, out: [
        _contexts(i, out, "images", "--images", i / "faces", "--weights", i / "judge",
                  "filters=[{name: unique, r: 0.9999}]")]),
    Command("gen-contexts-embeddings", lambda i, out: [
        _contexts(i, out, "embeddings", f"embeddings={i / 'known'}", "--images", i / "faces",
                  "filters=[{name: unique, r: 0.9999}]")]),
    Command("gen-contexts-pca", lambda i, out: [
        _contexts(i, out, "pca", f"known={i / 'known'}", "--count", 8, "--ldm", i / "ldm", "--weights", i / "judge",
                  _QUALITY)]),
    Command("gen-contexts-two-stage", lambda i, out: [
        _contexts(i, out, "two-stage", "--ldm", i / "ldm", "--weights", i / "judge", "--count", 20,
                  "source.scheduler.steps=2", "filters=[]")]),
    Command("gen-contexts-grown", lambda i, out: [
        _contexts(i, out, "guided-diffusion", "--generator", i / "guided.pt", "--weights", i / "judge",
                  "source.steps=2", "filters=[]", "--count", count) for count in (6, 14)]),
    Command("gen-contexts-shards", lambda i, out: [
        _contexts(i, out, "images", "--images", i / "faces", "--weights", i / "judge",
                  "filters=[{name: unique, r: 0.9999}]", "--shard", f"{k}/3") for k in (2, 3, 1)]),
    Command("sample", lambda i, out: [_sample(i, out, "--ids", 20)]),
    Command("sample-redrawn", lambda i, out: [
        _sample(i, out, "--ids", 10, "filter.name=consistency", f"filter.judge={i / 'judge'}",
                "filter.center_images=3", "filter.lowest=0.99", "filter.attempts=2")]),
    Command("sample-tar", lambda i, out: [_sample(i, out, "--ids", 20, "layout=tar", "images_per_shard=8")]),
    Command("sample-shards", lambda i, out: [_sample(i, out, "--ids", 20, "--shard", f"{k}/3") for k in (1, 2, 3)]),
    Command("sample-grown", lambda i, out: [_sample(i, out, "--ids", 8), _sample(i, out, "--ids", 14, per_id=6)]),
    _select("drop"), _select("merge"),
    Command("augment-oversample", lambda i, out: [
        ["augment", "--in", i / "samples", "--contexts", i / "contexts", "--copies", 8, "--out", out]]),
    Command("augment-photometric", lambda i, out: [
        ["augment", "--in", i / "faces", "augmentation=photometric", "--out", out]]),
    Command("augment-tars", lambda i, out: [
        ["augment", "--in", i / "tars", "augmentation=photometric", "--out", out]]),
    *map(_pack, BUILTIN["record_format"]),
    Command("pack-shards", lambda i, out: [
        ["pack", "--in", i / "faces", "--in", i / "real", "--out", out, "workers=1", "size=96", "--shard", f"{k}/2"]
        for k in (2, 1)]),
    Command("train-fr", lambda i, out: [tiny_fr.train_arguments(i / "fr", out, "checkpoint_every=3", epochs=6)]),
    Command("eval", lambda i, out: [
        ["eval", "--weights", i / "judge", "--benchmarks", "lfw,cfp-fp,agedb-30", "--data", i / "bins", "--device",
         "cpu", "--out", out, "batch_size=1"]]),
    Command("pairs-bin", lambda i, out: [
        ["pairs", i / "pairs.txt", "--images", i / "faces", "--out", out / "own.bin", "--size", 64, "--resize"]]),
    Command("pairs-folder", lambda i, out: [["pairs", i / "bins" / "lfw.bin", "--out", out]]),
    _convert("weights", "unet.ckpt"), _convert("published", "plain", "--to", "published"),
    _convert("onnx", "judge", "--to", "onnx"),
    Command("report", lambda i, out: [
        ["report", i / "faces", "--judge", i / "judge", "--reference", i / "real", "--out", out, "--device", "cpu",
         "workers=1"]]),
    Command("study", lambda i, out: [
        ["study", "--ldm", i / "ldm", "--contexts", i / "contexts.npy", "--judge", i / "judge", "--out", out,
         "--device", "cpu", "assume_embedder=any", "--ids", 3, "--per-id", 4, "--batch-size", 5, "reference_steps=6",
         "method_steps=2", "--schedulers", "ddim,unipc", "--steps", "2,3", "--seeds", 2]]),
    Command("ablate", lambda i, out: [
        ["ablate", "--config", i / "table.yaml", "--work", out, "--ldm", i / "ldm", "--weights", i / "judge", "--real",
         i / "fr", "--pairs", i / "pairs.txt", "--images", i / "faces", "--device", "cpu"]]),
    Command("run", lambda i, out: [["run", "--config", i / "recipe.yaml", "--work", out, "--device", "cpu"]]),
    Command("starter-pack", lambda i, out: [["starter", "pack", "--work", i / "run", "--out", out]], atomic=True),
]
