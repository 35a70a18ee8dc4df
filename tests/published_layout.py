"""A small directory laid out as ADMIS tells its users: published names and file forms, small networks."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from fill import fill_state, golden_normal, skeleton
from tiny_recognizer import face
from tiny_records import encoded, write_set

from facesyn_cli.data.pixels import encode_jpeg, encode_png

PEOPLE, PHOTOS, CONTEXTS, PER_ID = 3, 4, 3, 5
DENOISER = {"channels": 32, "multipliers": [1, 1], "attention": [False, True], "num_blocks": 1, "context_width": 32}
VQ = {"channels": 32, "multipliers": [1, 1, 2], "num_blocks": 1, "codebook_size": 16}

RECOGNISER = "generative_model_training/ckpt/elasticface_fr/295672backbone.pth"
AUTOENCODER = "generative_model_training/ckpt/autoencoder"
LDM = "generative_model_training/ckpt/ADMIS_FRCSyn_ckpt/ema_averaged_model_200000.ckpt"
FACES = "dataset/CASIA/images"
FACE_EMBEDDINGS = "dataset/CASIA/elasticface_embeddings/elastic_embed.npy"
CONTEXT_FACES = "dataset/context_database/images"
CONTEXT_EMBEDDINGS = "dataset/context_database/elasticface_embeddings/elasticface_embeddings.npy"
SAMPLES = "generative_model_training/samples"
RECORDS = "dataset/CASIA/TFR_training_data"
TRAINED = "recognition_model_training/ckpt"


def write_tree(root: Path, *parts: str) -> Path:
    """Write the named parts of a tree (the keys of `PARTS`) and return its root."""
    for part in parts:
        PARTS[part](root)
    return root


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Return name -> (size, time of change) of everything below a folder."""
    return {p.relative_to(root).as_posix(): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*")}


def _write_networks(root: Path) -> None:
    _save(root / RECOGNISER, fill_state(skeleton("backbone", name="mobilefacenet")).state_dict())
    unet = fill_state(skeleton("denoiser", name="idiff-unet", **DENOISER)).state_dict()
    _save(root / LDM, {f"module.eps_model.{key}": value for key, value in unet.items()})
    vq = fill_state(skeleton("autoencoder", name="vq-f4", **VQ)).state_dict()
    for half, prefixes in (("encoder", ("encoder.", "quant_conv.")),
                           ("decoder", ("decoder.", "quantize.", "post_quant_conv."))):
        part = {key: value for key, value in vq.items() if key.startswith(prefixes)}
        _save(root / AUTOENCODER / f"first_stage_{half}_state_dict.pt", part)


def _write_faces(root: Path) -> None:
    names = [f"{person:07d}/{photo:03d}.jpg" for person in range(PEOPLE) for photo in range(PHOTOS)]
    for i, name in enumerate(names):
        _write(root / FACES / name, encode_jpeg(face(i // PHOTOS, i % PHOTOS), 95))
    order = [*names[5:], *names[:5]]  # rows need not follow the names
    vectors = golden_normal(1, (len(names), 512)).numpy()
    _write(root / FACE_EMBEDDINGS, b"")
    np.save(root / FACE_EMBEDDINGS, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    _write((root / FACE_EMBEDDINGS).with_name("image_names.pkl"), pickle.dumps(order))
    lines = [f"CASIA-WebFace/{name} {i // PHOTOS}\n" for i, name in enumerate(names)]
    _write(root / "dataset/CASIA/CASIA_namelist.txt", "".join(lines).encode())


def _write_contexts(root: Path) -> None:
    for row in range(CONTEXTS):  # string order: 1 10 2
        _write(root / CONTEXT_FACES / f"{('1', '10', '2')[row]}.png", encode_png(face(10 + row, 0)))
    _write(root / CONTEXT_EMBEDDINGS, b"")
    np.save(root / CONTEXT_EMBEDDINGS, golden_normal(2, (CONTEXTS, 512)).numpy())


def _write_samples(root: Path) -> None:
    for row in range(CONTEXTS):
        for sample in range(PER_ID):
            _write(root / SAMPLES / str(row) / f"{sample}.png", encode_png(face(10 + row, 1 + sample)))
    _write(root / "generative_model_training/samples.yaml", b"n_contexts: 3\n")


def _write_records(root: Path) -> None:
    images = {(str(row), str(sample)): encoded(10 * row + sample + 1, 112) for row in range(3) for sample in range(3)}
    made = write_set("tfrecord", root / "scratch-records", images)
    for path in made.iterdir():
        _write(root / RECORDS / path.name.replace(made.name, "Syn_10k"), path.read_bytes())
        path.unlink()
    for left in sorted((root / "scratch-records").rglob("*"), reverse=True):
        left.rmdir() if left.is_dir() else left.unlink()
    (root / "scratch-records").rmdir()


def _write_trained(root: Path) -> None:
    network = fill_state(skeleton("backbone", name="mobilefacenet")).state_dict()
    for epoch in (5, 40):
        _save(root / TRAINED / f"Backbone_Epoch_{epoch}_checkpoint.pth", network)


def _write_benchmarks(root: Path) -> None:
    photos = [encode_jpeg(face(photo * (pair % 2), photo), 95) for pair in range(20) for photo in range(2)]
    for name in ("lfw", "agedb_30"):
        _write(root / "dataset/val" / f"{name}.bin", pickle.dumps((photos, [pair % 2 == 0 for pair in range(20)])))


PARTS = {
    "networks": _write_networks, "faces": _write_faces, "contexts": _write_contexts, "samples": _write_samples,
    "records": _write_records, "trained": _write_trained, "benchmarks": _write_benchmarks,
}


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
