"""Small finished folders of every kind that is published, with headers as stages write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fill import fill_state
from tiny_records import tiny_images

from facesyn_cli.artifacts.atomic_files import write_bytes, write_json, write_text
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import Header, Parent, write_header
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.plugins import registry

TINY = {"name": "ir-tiny", "widths": [4, 8], "blocks": [1, 1], "embedding_size": 16}
HOME = "/home/somebody/secret"  # a folder of the maker's machine


def finish(
    folder: Path, kind: str, command: str, counts: dict[str, int], parents: dict[str, Parent] | None = None,
    digest: str | None = None, extra: dict[str, Any] | None = None, settings: dict[str, Any] | None = None,
) -> Header:
    """Write a header that names folders of the maker's machine."""
    config = {"identity": settings or {}, "growing": {}, "recorded": {}, "runtime": {"out": f"{HOME}/out"}}
    return write_header(folder, Header(kind, command, config, parents or {}), counts, extra, digest)


def sampled(folder: Path) -> Path:
    """Write an ImageSet as `sample` does: 8 images of 3 identities."""
    images = tiny_images()
    for (identity, sample), data in images.items():
        write_bytes(folder / identity / f"{sample}{'.png' if data[:1] == bytes([137]) else '.jpg'}", data)
    finish(folder, "ImageSet", "sample", {"images": len(images), "identities": 3},
           {"ldm": Parent(f"{HOME}/2-ldm", "sha256:1")})
    return folder


def recognizer(folder: Path) -> Path:
    """Write Weights as `train-embedder` does, with checkpoints and previews beside them."""
    network = fill_state(registry.build("backbone", registry.configure("backbone", TINY)))
    write_weights(folder, network.state_dict(), {
        "kind": "backbone", "backbone": TINY, "input_size": 112, "embedding_size": 16,
    })
    write_text(folder / "metrics.jsonl", '{"step": 1, "loss": 0.5}\n')
    write_bytes(folder / "checkpoints" / "step-1" / "state.pt", b"x" * 5000)
    write_bytes(folder / "previews" / "step-1.png", b"a real face")
    finish(folder, "Weights", "train-embedder", {"steps": 1}, digest=file_digest(folder / "model.safetensors"))
    return folder


def report(folder: Path, of: Path) -> Path:
    """Write a Report of one set as `report` does."""
    header = Header.read(of / "facesyn.json")
    write_text(folder / "report.html", "<p>all is well</p>")
    for cache in ("cache", "results"):
        (folder / cache).mkdir(parents=True)
        write_text(folder / cache / "kept.json", "{}")
    (folder / "gallery").mkdir()
    write_text(folder / "gallery" / "index.html", "<p>faces</p>")
    write_json(folder / "report.json", {"sets": [{"name": "samples", "path": f"{HOME}/4-samples"}]})
    write_text(folder / "README.md", "---\nlicense: other\nlicense_name: unknown\ntags:\n- mine\n---\n\n# My report\n")
    write_bytes(folder / "cache" / "vectors.npz", b"vectors")
    finish(folder, "Report", "report", {"sets": 1}, {"set samples": Parent(str(of), header.digest)})
    return folder
