"""A small recognizer with fixed weights, and folders of made-up faces for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from fill import fill_state
from tolerance import products_of, rounding

SETTINGS = {"name": "ir-tiny", "widths": [4, 8, 12, 16]}


def write_recognizer(folder: Path, **settings) -> Path:
    """Write a Weights folder and return it; `settings` come before those above."""
    from facesyn_cli.artifacts.weights import write_weights
    from facesyn_cli.plugins import registry

    settings = {**SETTINGS, **settings}
    module = fill_state(registry.build("backbone", registry.configure("backbone", settings)))
    write_weights(folder, module.state_dict(), {"backbone": json.loads(json.dumps(settings))})
    return folder


def embedding_rounding(weights: Path) -> float:
    """Return what rounding may change of the unit embeddings that a folder of weights gives."""
    from facesyn_cli.models.loading import load_backbone

    return rounding(products_of(load_backbone(weights).module))


def face(person: int, photo: int, side: int = 112) -> np.ndarray:
    """Return (side, side, 3) uint8: coarse colors of the person plus the noise of the photo."""
    colors = np.random.RandomState(person).randint(0, 256, (7, 7, 3))
    coarse = np.kron(colors, np.ones((-(-side // 7), -(-side // 7), 1)))[:side, :side]
    noise = np.random.RandomState(1000 * person + photo).randint(-30, 31, coarse.shape)
    return np.clip(coarse + noise, 0, 255).astype(np.uint8)


def write_faces(folder: Path, people: int, photos: int) -> Path:
    """Write `<folder>/p<person>/<photo>.png` and return the folder."""
    from facesyn_cli.data.pixels import encode_png

    for person in range(people):
        (folder / f"p{person}").mkdir(parents=True, exist_ok=True)
        for photo in range(photos):
            (folder / f"p{person}" / f"{photo}.png").write_bytes(encode_png(face(person, photo)))
    return folder


def write_run_inputs(work: Path, people: int, photos: int) -> tuple[Path, Path]:
    """Write `0-images`, and held-out faces with a pair list in 10 folds; return the list and their folder."""
    write_faces(work / "0-images", people, photos)
    held_out = work / "0-test"
    write_faces(work / "more", people + 5, 3)
    held_out.mkdir()
    for person in range(people, people + 5):
        (work / "more" / f"p{person}").rename(held_out / f"p{person}")
    shutil.rmtree(work / "more")
    lines = ["10\t1"]
    for fold in range(10):
        one, other = people + fold % 5, people + (fold + 1 + fold // 5) % 5
        lines += [f"p{one}/0\tp{one}/{1 + fold // 5}\t1", f"p{one}/{fold // 5}\tp{other}/{fold // 5}\t0"]
    (work / "0-test-pairs.txt").write_text("\n".join(lines) + "\n")
    return work / "0-test-pairs.txt", held_out
