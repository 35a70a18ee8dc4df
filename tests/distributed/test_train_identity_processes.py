"""train-identity in two processes trains what one trains, and the identity loss of train-ldm is that of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import finish, spawn
from tiny_latents import embedder_arguments, ldm_arguments, write_faces

from facesyn_cli.artifacts.weights import read_tensors

pytestmark = pytest.mark.dist


def trained(*words: str, processes: int) -> None:
    ran = finish(spawn(*words, processes=processes))
    assert ran.code == 0, ran.err


def assert_alike(first: Path, second: Path) -> None:
    """Sums over processes are rounded in another order."""
    a, b = (read_tensors(folder / "model.safetensors") for folder in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].double() - b[name].double()).abs().max() <= 1e-3 * max(a[name].double().abs().max(), 1e-2), name


def test_two_processes_equal_one(tmp_path: Path):
    faces = write_faces(tmp_path)
    recognizers, ldms = ([tmp_path / f"{kind}-{count}" for count in (1, 2)] for kind in ("recognizer", "ldm"))
    for count, out in enumerate(recognizers, 1):
        cache = f"latent_cache={tmp_path / f'cache-{count}'}"  # each filled by as many processes
        trained(*embedder_arguments(faces, out, cache, "lr_schedule.name=constant", "optimizer.name=adam",
                                    "optimizer.eps=1e-3", steps=3), processes=count)
    assert_alike(*recognizers)
    more = (f"identity_recognizer={recognizers[0]}", f"identity_contexts={faces / 'contexts.npy'}", "identity.images=3",
            "identity.steps=3", "optimizer.eps=1e-3", "perceptual.weight=0.5")
    for count, out in enumerate(ldms, 1):
        trained(*ldm_arguments(faces, out, *more, steps=3), processes=count)
    assert_alike(*ldms)
