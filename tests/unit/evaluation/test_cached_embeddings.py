"""Embeddings of a set are computed once, survive kills, and belong to whole identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from one_of_several import one_of
from tiny_recognizer import write_faces

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.pixels import decode_image, encode_png, to_pixels
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation import cached_embeddings
from facesyn_cli.evaluation.cached_embeddings import choose_identities, embed_cached, thumbnails_cached
from facesyn_cli.evaluation.embedding import EmbedOptions, FaceEmbedder
from facesyn_cli.evaluation.near_duplicates import thumbnail

OPTIONS = EmbedOptions(size=112, batch_size=2, device=torch.device("cpu"), flip=False, fit="square", workers=1)


class Means(torch.nn.Module):
    """Embed a face by the mean of its channels, and count the batches."""

    calls = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return pixels.mean((2, 3))


@pytest.fixture
def images(tmp_path) -> ImageSet:
    folder = write_faces(tmp_path / "faces", people=3, photos=3)
    (folder / "p1" / "1.png").write_bytes(b"no image")
    return ImageSet.open(folder)


def test_finished_parts_are_not_computed_again(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cached_embeddings, "PART_SIZE", 4)
    network = Means()
    first = embed_cached(images, images.entries, FaceEmbedder(network, OPTIONS), tmp_path / "cache", "embed").read()
    calls = network.calls
    assert calls == 2 + 2 + 1
    again = embed_cached(images, images.entries, FaceEmbedder(network, OPTIONS), tmp_path / "cache", "embed").read()
    assert network.calls == calls
    (tmp_path / "cache" / "000000004-000000008.npz").write_bytes(b"damaged")
    repaired = embed_cached(images, images.entries, FaceEmbedder(network, OPTIONS), tmp_path / "cache", "embed").read()
    assert network.calls == calls + 2
    for other in (again, repaired):
        np.testing.assert_array_equal(other[0], first[0])
        np.testing.assert_array_equal(other[1], first[1])


def test_processes_compute_a_share_each(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cached_embeddings, "PART_SIZE", 2)
    for rank, firsts in ((0, [0, 4, 8]), (1, [2, 6])):
        folder = tmp_path / str(rank)
        embed_cached(images, images.entries, FaceEmbedder(Means(), OPTIONS), folder, "embed").fill(one_of(2, rank))
        assert sorted(int(path.name[:9]) for path in folder.iterdir()) == firsts
    whole = embed_cached(images, images.entries, FaceEmbedder(Means(), OPTIONS), tmp_path / "0", "embed").read()
    alone = embed_cached(images, images.entries, FaceEmbedder(Means(), OPTIONS), tmp_path / "alone", "embed")
    np.testing.assert_array_equal(whole[0], alone.read()[0])
    np.testing.assert_array_equal(whole[1], alone.last())


def test_lengths_are_kept_and_missing_in_a_cache_of_an_earlier_version(images, tmp_path):
    cache = embed_cached(images, images.entries, FaceEmbedder(Means(), OPTIONS), tmp_path / "cache", "embed")
    assert cache.if_kept("lengths") is None
    _, good = cache.read()
    lengths = cache.if_kept("lengths")
    first = to_pixels(decode_image(images.read(images.entries[0]))).mean((1, 2))
    assert lengths[0] == pytest.approx(float(first.norm()), rel=1e-5) and ((lengths > 0) == good).all()
    (path,) = (tmp_path / "cache").iterdir()
    with np.load(path) as kept:
        np.savez(path, vectors=kept["vectors"], good=kept["good"])
    assert cache.if_kept("lengths") is None
    np.testing.assert_array_equal(cache.read()[1], good)


def test_rows_are_unit_and_unreadable_ones_are_marked(images, tmp_path):
    embedder = FaceEmbedder(Means(), OPTIONS)
    vectors, good = embed_cached(images, images.entries, embedder, tmp_path / "cache", "embed").read()
    assert good.tolist() == [entry.key != "p1/1" for entry in images.entries]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), good.astype(float), atol=1e-6)
    small, readable, cut = thumbnails_cached(images, images.entries, tmp_path / "small", 1, "pixels").read()
    assert not cut.any()
    assert (readable == good).all() and not small[4].any()
    np.testing.assert_array_equal(small[0], thumbnail(decode_image(images.read(images.entries[0]))))


def test_thumbnails_say_which_images_are_not_square(images, tmp_path):
    (images.path / "p1" / "1.png").write_bytes(encode_png(np.zeros((8, 9, 3), np.uint8)))
    cut = thumbnails_cached(images, images.entries, tmp_path / "small", 1, "pixels").read()[2]
    assert cut.tolist() == [entry.key == "p1/1" for entry in images.entries]
    path, = (tmp_path / "small").iterdir()
    with np.load(path) as stored:
        np.savez(path, thumbnails=stored["thumbnails"], good=stored["good"])  # as an earlier version left it
    assert thumbnails_cached(images, images.entries, tmp_path / "small", 1, "pixels").read()[2].sum() == 1


def test_nothing_to_embed_is_one_line(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    images = ImageSet.open(tmp_path / "a")
    with pytest.raises(UserError, match="none of the 1 images"):
        embed_cached(images, images.entries, FaceEmbedder(Means(), OPTIONS), tmp_path / "cache", "embed").read()


def test_identities_are_chosen_whole(images):
    assert choose_identities(images, None, 0) == choose_identities(images, 9, 0) == images.entries
    for seed in range(4):
        chosen = choose_identities(images, 7, seed)
        assert len(chosen) == 6 and [e.key for e in chosen] == sorted(e.key for e in chosen)
        assert len({entry.identity for entry in chosen}) == 2
    assert len({choose_identities(images, 3, seed)[0].identity for seed in range(10)}) > 1
    assert len(choose_identities(images, 1, 0)) == 3, "one identity at least"
