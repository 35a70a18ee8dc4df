"""Batches of autoencoder training follow from seed, step and place; figures of validation by hand."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import golden_uniform
from one_of_several import one_of
from PIL import Image
from tiny_ldm import SIZE, write_faces

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.face_images import FaceImages
from facesyn_cli.distributed import processes
from facesyn_cli.training.tasks import autoencoder_batches
from facesyn_cli.training.tasks.autoencoder_batches import (
    AutoencoderBatchPlan,
    DecodedFaces,
    StoredFaces,
    open_faces,
)
from facesyn_cli.training.tasks.autoencoder_validation import ReconstructionValidation, psnr, write_reconstructions


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> FaceImages:
    folder, _ = write_faces(tmp_path_factory.mktemp("faces"))
    images = ImageSet.open(folder)
    return FaceImages(images, images.entries, SIZE)


def plan(places: range, **changes) -> AutoencoderBatchPlan:
    settings = {"seed": 3, "batch_size": 6, "train_rows": list(range(2, 17)), "flip": 0.5, "latent_shape": (2, 4, 4)}
    return AutoencoderBatchPlan(places=places, **{**settings, **changes})


def test_shares_of_processes_join_to_the_batch(faces):
    images = DecodedFaces(faces, list(range(2, 17)), 0, processes("cpu"))
    whole = list(plan(range(6)).batches(images, range(4)))
    parts = [list(plan(places).batches(images, range(4))) for places in (range(2), range(2, 6))]
    for step, batch in enumerate(whole):
        for name in ("pixels_u8", "is_mirrored", "noise"):
            joined = torch.cat([getattr(part[step], name) for part in parts])
            assert torch.equal(getattr(batch, name), joined), name
    assert not torch.equal(whole[0].noise, whole[1].noise)
    resumed = next(plan(range(6)).batches(images, range(3, 4)))
    assert torch.equal(resumed.noise, whole[3].noise) and torch.equal(resumed.pixels_u8, whole[3].pixels_u8)


def test_every_image_comes_once_an_epoch_and_about_half_are_mirrored(faces):
    images = DecodedFaces(faces, list(range(2, 17)), 0, processes("cpu"))
    steps = plan(range(6))
    rows = [row for step in range(5) for row in steps.rows(step)]
    assert sorted(rows) == sorted(2 * list(range(2, 17)))
    mirrored = torch.cat([batch.is_mirrored for batch in steps.batches(images, range(50))])
    assert 100 < int(mirrored.sum()) < 200
    assert not any(batch.is_mirrored.any() for batch in plan(range(6), flip=0.0).batches(images, range(9)))


def test_pixels_are_the_images_or_their_mirror_images(faces):
    images = StoredFaces(faces, 0)
    steps = plan(range(6))
    batch = next(steps.batches(images, range(1)))
    pixels = batch.pixels(torch.device("cpu"))
    for row, is_mirrored, made in zip(steps.rows(0), batch.is_mirrored.tolist(), pixels, strict=True):
        image = faces[row][:, ::-1] if is_mirrored else faces[row]
        assert torch.allclose(made, torch.from_numpy(image.copy()).movedim(2, 0) / 127.5 - 1, atol=1e-6)


def test_images_lie_in_memory_where_they_fit(faces):
    rows = list(range(4))
    kept, stored = (open_faces(faces, rows, gib, 0, processes("cpu")) for gib in (1.0, 0.0))
    assert isinstance(kept, DecodedFaces) and isinstance(stored, StoredFaces)
    assert torch.equal(kept.read([3, 1]), stored.read([3, 1]))
    choices = [[0, 2], [3, 3]]
    for a, b in zip(kept.stream(choices), stored.stream(choices), strict=True):
        assert torch.equal(a, b)


def test_processes_decode_a_share_each(faces, monkeypatch):
    monkeypatch.setattr(autoencoder_batches, "_DECODE_BATCH", 4)
    rows = list(range(2, 17))
    whole = DecodedFaces(faces, rows, 0, processes("cpu")).read(rows)
    shares = [DecodedFaces(faces, rows, 0, one_of(5, rank)).read(rows) for rank in range(5)]
    assert not shares[1][:4].any() and torch.equal(sum(shares), whole)


def test_psnr_by_hand():
    real = torch.zeros(3, 2, 2, 3, dtype=torch.uint8)
    made = torch.stack([torch.full((2, 2, 3), value, dtype=torch.uint8) for value in (255, 5, 0)])
    expected = [0.0, 10 * np.log10(255**2 / 25), 10 * np.log10(255**2 * 12)]
    assert psnr(made, real).numpy() == pytest.approx(expected, abs=1e-9)


class _Gray:
    """In place of a judge: its distance is what is wrong with the mean brightness."""

    def __call__(self, made, real):
        return {"identity": (made - real).mean(dim=(1, 2, 3)).abs()}


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_validation_is_the_mean_over_images_whatever_the_batches(batch_size):
    pixels_u8 = ((golden_uniform(1, (5, 4, 4, 3)) + 1) * 100).to(torch.uint8)
    validation = ReconstructionValidation(pixels_u8, _Gray(), batch_size, processes("cpu"))
    figures = validation.figures(lambda x: 2 * x, lambda x: 0.25 * x, nullcontext())
    real = pixels_u8.double().numpy() / 127.5 - 1
    made = np.floor((real / 2 + 1) / 2 * 255 + 0.5)
    errors = ((made - pixels_u8.numpy()) ** 2).mean(axis=(1, 2, 3))
    assert figures["val_psnr"] == pytest.approx((10 * np.log10(255**2 / errors)).mean(), abs=1e-3)
    distances = np.abs((made / 127.5 - 1 - real).mean(axis=(1, 2, 3)))
    assert figures["val_cosine"] == pytest.approx(1 - distances.mean(), abs=1e-4)
    alone = ReconstructionValidation(pixels_u8, None, batch_size, processes("cpu"))
    assert set(alone.figures(lambda x: x, lambda x: x, nullcontext())) == {"val_psnr"}


def test_a_preview_is_originals_over_reconstructions(tmp_path: Path):
    pixels_u8 = ((golden_uniform(1, (3, 8, 8, 3)) + 1) * 127).to(torch.uint8)
    path = tmp_path / "preview.png"
    write_reconstructions(path, lambda x: x, lambda x: -x, pixels_u8, torch.device("cpu"))
    with Image.open(path) as image:
        seen = np.array(image)
    assert seen.shape == (8 + 2 + 8, 3 * 8 + 2 * 2, 3)
    assert np.array_equal(seen[:8, 10:18], pixels_u8[1].numpy())
    assert np.array_equal(seen[10:, 10:18], 255 - pixels_u8[1].numpy())
