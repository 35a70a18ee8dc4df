"""The latent cache: what it holds, what it survives, and the images that go into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data import latent_cache
from facesyn_cli.data.face_images import FaceImages, image_batches
from facesyn_cli.data.latent_cache import LatentCache, channel_statistics
from facesyn_cli.data.pixels import encode_png, to_pixels
from facesyn_cli.errors import UserError
from facesyn_cli.progress import progress

COUNT, SIZE = 10, 8


def _images(folder: Path, size: int = SIZE, count: int = COUNT) -> ImageSet:
    rng = np.random.default_rng(3)
    for i in range(count):
        pixels_u8 = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        write_bytes(folder / f"p{i % 3}" / f"{i}.png", encode_png(pixels_u8))
    return ImageSet.open(folder)


def _encode(pixels: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 2)


def _cache(tmp_path: Path, images: ImageSet, autoencoder: str = "a") -> LatentCache:
    faces = FaceImages(images, images.entries, SIZE)
    return LatentCache(tmp_path / "latents", faces, autoencoder, (3, SIZE // 2, SIZE // 2))


def _fill(cache: LatentCache, numbers: list[int], encode=_encode, workers: int = 0) -> None:
    with progress("encode", COUNT) as bar:
        cache.fill(numbers, encode, bar, workers)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "PART_ROWS", 4)
    monkeypatch.setattr(latent_cache, "ENCODE_BATCH", 3)


def test_it_holds_latents_of_images_and_of_their_mirror_images(tmp_path: Path):
    images = _images(tmp_path / "faces")
    cache = _cache(tmp_path, images)
    assert cache.missing() == [0, 1, 2] and cache.num_done() == 0
    _fill(cache, cache.missing())
    assert cache.missing() == [] and cache.num_done() == COUNT
    pixels = to_pixels(torch.stack([torch.from_numpy(cache.faces[row]) for row in range(COUNT)]))
    rows = [7, 0, 9, 7]
    got = cache.read(rows, [False, True, False, True])
    expected = [pixels[7], pixels[0].flip(-1), pixels[9], pixels[7].flip(-1)]
    assert torch.equal(got, _encode(torch.stack(expected)))
    assert sum(path.stat().st_size - 128 for path in cache.folder.glob("part-*.npy")) == cache.num_bytes


def test_a_killed_fill_goes_on_and_finished_parts_are_not_made_again(tmp_path: Path):
    images = _images(tmp_path / "faces")
    whole = _cache(tmp_path / "whole", images)
    _fill(whole, whole.missing())
    seen = []

    def encode_until_killed(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        if len(seen) > 6:  # two calls a batch, two batches a part: dies inside the second part
            raise KeyboardInterrupt
        return _encode(pixels)

    killed = _cache(tmp_path / "killed", images)
    with pytest.raises(KeyboardInterrupt):
        _fill(killed, killed.missing(), encode_until_killed)
    assert killed.missing() == [1, 2]
    stamp = (killed.folder / "part-00000.npy").stat().st_mtime_ns
    _fill(killed, killed.missing())
    assert (killed.folder / "part-00000.npy").stat().st_mtime_ns == stamp
    for path in whole.folder.glob("part-*.npy"):
        assert path.read_bytes() == (killed.folder / path.name).read_bytes()


def test_parts_may_be_made_in_any_order_by_anyone(tmp_path: Path):
    images = _images(tmp_path / "faces")
    first, second = _cache(tmp_path / "a", images), _cache(tmp_path / "b", images)
    _fill(first, [0, 1, 2])
    _fill(second, [2], workers=1)
    _fill(_cache(tmp_path / "b", images), [1, 0])
    for path in first.folder.glob("part-*.npy"):
        assert path.read_bytes() == (second.folder / path.name).read_bytes()


def test_other_content_gets_another_place(tmp_path: Path):
    images = _images(tmp_path / "faces")
    here = _cache(tmp_path, images)
    assert _cache(tmp_path, images).folder == here.folder
    assert _cache(tmp_path, images, "b").folder != here.folder
    fewer = FaceImages(images, images.entries[1:], SIZE)
    assert LatentCache(tmp_path / "latents", fewer, "a", (3, 4, 4)).folder != here.folder
    assert _cache(tmp_path, _images(tmp_path / "more", count=COUNT + 1)).folder != here.folder


def test_damage_and_latents_that_are_not_finite_are_told(tmp_path: Path):
    images = _images(tmp_path / "faces")
    with pytest.raises(UserError, match="not finite.*p0/0"):
        cache = _cache(tmp_path / "nan", images)
        _fill(cache, cache.missing(), lambda pixels: _encode(pixels) * float("nan"))
    cache = _cache(tmp_path, images)
    _fill(cache, cache.missing())
    (cache.folder / "part-00001.npy").write_bytes(b"torn")
    with pytest.raises(UserError, match="part-00001.npy"):
        cache.read([0], [False])
    np.save(cache.folder / "part-00001.npy", np.zeros((4, 2, 3, 2, 2), dtype=np.float32))
    with pytest.raises(UserError, match="part-00001.npy"):
        _cache(tmp_path, images).read([0], [False])


def test_what_is_missing_must_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = _cache(tmp_path, _images(tmp_path / "faces"))
    assert latent_cache.free_bytes(cache.folder) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    free = cache.num_bytes + latent_cache._MARGIN
    monkeypatch.setattr(latent_cache, "free_bytes", lambda folder: free)
    assert cache.fits() and not cache.fits(reserve=1)
    free = cache.num_bytes * 6 // COUNT + latent_cache._MARGIN  # 4 of the 10 images are in the first part
    assert not cache.fits()
    _fill(cache, [0])
    assert cache.fits() and not cache.fits(reserve=1)
    free = 0
    assert not cache.fits()
    _fill(cache, [1, 2])
    assert cache.fits(reserve=1)  # nothing is missing


def test_channel_statistics_equal_numpy():
    latents = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (7, 4, 5, 5)).astype(np.float32))
    latents[:, 1] *= 10
    mean, std = channel_statistics(latents.split(2))
    np.testing.assert_allclose(mean, latents.double().numpy().mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, latents.double().numpy().std(axis=(0, 2, 3)), rtol=1e-9)


def test_a_constant_channel_cannot_be_normalized():
    latents = torch.randn(4, 2, 3, 3)
    latents[:, 1] = 0.25
    with pytest.raises(UserError, match="channel 1"):
        channel_statistics([latents])


def test_faces_are_the_central_square_at_one_size(tmp_path: Path):
    # Differs from IDiff-Face / ADMIS: they stretch what is not square.
    wide = np.zeros((6, 10, 3), dtype=np.uint8)
    wide[:, 2:8] = 200
    write_bytes(tmp_path / "p" / "wide.png", encode_png(wide))
    square = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    write_bytes(tmp_path / "p" / "square.png", encode_png(square))
    images = ImageSet.open(tmp_path)
    faces = FaceImages(images, images.entries, SIZE)
    assert len(faces) == 2
    assert np.array_equal(faces[0], square)
    assert faces[1].shape == (SIZE, SIZE, 3) and (faces[1] == 200).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_order_and_name_a_broken_image(tmp_path: Path, workers: int):
    images = _images(tmp_path)
    faces = FaceImages(images, images.entries, SIZE)
    wanted = [[3, 1], [0], [9, 8, 7]]
    for rows, batch in zip(wanted, image_batches(faces, wanted, workers), strict=True):
        assert np.array_equal(batch.numpy(), np.stack([faces[row] for row in rows]))
    broken = images.entries[5]
    (tmp_path / broken.location).write_bytes(b"no image")
    with pytest.raises(UserError, match=broken.location) as raised:
        list(image_batches(faces, [[5, 4]], workers))
    assert "\n" not in str(raised.value)


def test_without_mirror_images_half_is_encoded(tmp_path: Path):
    images = _images(tmp_path / "faces")
    with_mirror = _cache(tmp_path, images)
    alone = LatentCache(tmp_path / "latents", with_mirror.faces, "a", (3, SIZE // 2, SIZE // 2), has_mirror=False)
    _fill(with_mirror, with_mirror.missing())
    _fill(alone, alone.missing())
    rows = list(range(len(alone.faces)))
    assert torch.equal(alone.read(rows, [False] * len(rows)), with_mirror.read(rows, [False] * len(rows)))
    assert alone.num_bytes * 2 == with_mirror.num_bytes and alone.folder != with_mirror.folder
