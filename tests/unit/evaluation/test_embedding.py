"""Images to embeddings: full batches, the flip test, other sizes, and one benchmark from end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerance import rounding
from torch import nn

from facesyn_cli.data.pixels import UnreadableImage, encode_png, to_pixels
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import EmbedOptions, FaceEmbedder, load_face
from facesyn_cli.evaluation.pairs import PairSet
from facesyn_cli.evaluation.protocol import embed_images

SIZE = 8
ROUNDING = rounding(3 * SIZE**2, scale=2 * SIZE)  # of an output, and of two added: pixels have spread 1 / sqrt(3)


class Linear(nn.Module):
    """A linear network with fixed, non-symmetric weights; notes the batches it sees."""

    def __init__(self) -> None:
        super().__init__()
        weights = np.random.RandomState(1).standard_normal((5, 3 * SIZE * SIZE))
        self.weights = torch.from_numpy(weights.astype(np.float32))
        self.seen: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(pixels))
        return pixels.flatten(1) @ self.weights.T + 0.5


def options(**changes) -> EmbedOptions:
    return EmbedOptions(**{
        "size": SIZE, "batch_size": 4, "device": torch.device("cpu"), "flip": False, "fit": "exact", **changes,
    })


def faces(count: int, size: int = SIZE) -> list[np.ndarray]:
    return list(np.random.RandomState(2).randint(0, 256, (count, size, size, 3), dtype=np.uint8))


def embed_all(network: nn.Module, images: list[bytes], chosen: EmbedOptions) -> tuple[np.ndarray, dict[int, str]]:
    indices = fixed_batches(len(images), chosen.batch_size)
    batches = list(FaceEmbedder(network, chosen).files(images.__getitem__, indices))
    assert [i for b in batches for i in b.indices] == list(range(len(images)))
    return np.concatenate([b.vectors for b in batches]), {k: v for b in batches for k, v in b.problems.items()}


def test_embedding_is_the_network_on_pixels_in_minus_one_to_one():
    images, network = faces(6), Linear()
    vectors, problems = embed_all(network, [encode_png(x) for x in images], options())
    scaled = np.stack(images).astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    expected = scaled.reshape(6, -1) @ network.weights.double().numpy().T + 0.5
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=ROUNDING)
    assert not problems and network.seen == [4, 4], "the second batch is padded"


def test_flip_adds_the_mirrored_output():
    images, network = faces(3), Linear()
    plain, _ = embed_all(network, [encode_png(x) for x in images], options())
    mirrored, _ = embed_all(network, [encode_png(np.ascontiguousarray(x[:, ::-1])) for x in images], options())
    both, _ = embed_all(network, [encode_png(x) for x in images], options(flip=True))
    np.testing.assert_allclose(both, plain + mirrored, rtol=0, atol=ROUNDING)
    assert not np.allclose(plain, mirrored)
    swapped, _ = embed_all(
        network, [encode_png(np.ascontiguousarray(x[:, ::-1])) for x in images], options(flip=True))
    np.testing.assert_allclose(both, swapped, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("workers", [1, 4])
def test_batch_size_does_not_matter(workers):
    images = [encode_png(x) for x in faces(11)]
    expected, _ = embed_all(Linear(), images, options(batch_size=1, flip=True))
    for batch_size in (2, 4, 16):
        vectors, _ = embed_all(Linear(), images, options(batch_size=batch_size, flip=True, workers=workers))
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=ROUNDING)


def test_unreadable_images_keep_their_place():
    images = [encode_png(x) for x in faces(6)]
    expected, _ = embed_all(Linear(), images, options())
    broken = images.copy()
    broken[1] = images[1][:40]
    broken[4] = b"not an image"

    def read(index: int) -> bytes:
        if index == 2:
            raise UserError("the file is gone")
        return broken[index]

    batches = list(FaceEmbedder(Linear(), options()).files(read, fixed_batches(6, 4)))
    problems = {k: v for b in batches for k, v in b.problems.items()}
    assert sorted(problems) == [1, 2, 4] and problems[2] == "the file is gone"
    np.testing.assert_array_equal(np.concatenate([b.vectors for b in batches])[[0, 3, 5]], expected[[0, 3, 5]])


def test_other_sizes():
    big, wide = faces(1, 2 * SIZE)[0], np.zeros((SIZE, 3 * SIZE, 3), dtype=np.uint8)
    wide[:, SIZE : 2 * SIZE] = faces(1)[0]
    with pytest.raises(UnreadableImage, match="16 x 16 pixels, 8 x 8 were expected"):
        load_face(encode_png(big), SIZE, "exact")
    with pytest.raises(UnreadableImage, match="24 x 8 pixels are not square"):
        load_face(encode_png(wide), SIZE, "refuse")
    torch.testing.assert_close(load_face(encode_png(wide), SIZE, "square")[0], to_pixels(faces(1)[0]))
    gray = np.full((20, 20, 3), 200, dtype=np.uint8)
    torch.testing.assert_close(load_face(encode_png(gray), SIZE, "square")[0], torch.full((3, 8, 8), 200 / 127.5 - 1))
    assert load_face(encode_png(big), SIZE, "square")[0].shape == (3, SIZE, SIZE)
    images = [encode_png(wide), encode_png(big), b"", encode_png(wide)]
    found = list(FaceEmbedder(Linear(), options(fit="square")).files(images.__getitem__, fixed_batches(4, 2)))
    assert [batch.num_cut for batch in found] == [1, 1]


def test_resize_is_that_of_torchvision():
    from torchvision.transforms.functional import InterpolationMode, resize

    big = faces(1, 30)[0]
    tensor = torch.from_numpy(big).permute(2, 0, 1).float() / 127.5 - 1
    expected = resize(tensor[None], SIZE, InterpolationMode.BILINEAR, antialias=True)[0]
    tolerance = rounding(16)  # four by four pixels around one
    torch.testing.assert_close(load_face(encode_png(big), SIZE, "square")[0], expected, rtol=0, atol=tolerance)


def test_wrong_network_output_is_named():
    class Flat(nn.Module):
        def forward(self, pixels):
            return pixels.mean((1, 2, 3))

    with pytest.raises(UserError, match=r"the network returned \(4,\) for 4 faces"):
        FaceEmbedder(Flat(), options()).batch([None])


def face_pairs(broken: int | None = None) -> PairSet:
    """Twelve people, two noisy photos each, every other pair of different people."""
    random = np.random.RandomState(5)
    people = random.randint(0, 256, (12, SIZE, SIZE, 3))
    noisy = np.clip(people[:, None] + random.randint(-40, 41, (12, 2, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    images = [encode_png(photo) for person in noisy for photo in person]
    if broken is not None:
        images[broken] = b""
    first, second, is_same = [], [], []
    for person in range(12):
        first += [2 * person, 2 * person]
        second += [2 * person + 1, 2 * ((person + 1) % 12)]
        is_same += [True, False]
    return PairSet("noisy", np.array(first), np.array(second), np.array(is_same), 3,
                   [f"photo {i}" for i in range(24)], images.__getitem__)


def test_benchmark_from_images_to_row():
    pairs, network, chosen = face_pairs(), Linear(), options(flip=True)
    row, scores = pairs.evaluate(embed_images(FaceEmbedder(network, chosen), pairs, processes("cpu")))
    vectors, _ = embed_all(network, [pairs.read(i) for i in range(24)], chosen)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = np.sum(unit[pairs.first] * unit[pairs.second], axis=1)
    np.testing.assert_allclose(scores["distance"], 2 - 2 * cosine, atol=1e-12)
    assert (row.benchmark, row.pairs, row.genuine, row.folds) == ("noisy", 24, 12, 3)
    assert row.accuracy > 0.9 and row.auc > 0.95
    assert row.threshold_cosine == pytest.approx(1 - row.threshold / 2)
    assert row.tar == {"1e-02": None, "1e-03": None, "1e-04": None}


def test_fp32_means_fp32():
    class Watching(MeanColor):
        def forward(self, pixels):
            self.settings = (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)
            return super().forward(pixels)

    network, before = Watching(), torch.backends.cudnn.allow_tf32
    FaceEmbedder(network, options()).batch([None])
    assert network.settings == (False, True) and torch.backends.cudnn.allow_tf32 == before


class MeanColor(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))


def test_unusable_images_and_networks_end_a_benchmark():
    with pytest.raises(UserError, match="noisy: 1 of the first 4 images cannot be used, photo 3: not an image in a"):
        embed_images(FaceEmbedder(Linear(), options()), face_pairs(broken=3), processes("cpu"))
    with pytest.raises(UserError, match="photo 0: 8 x 8 pixels, 9 x 9 were expected"):
        embed_images(FaceEmbedder(MeanColor(), options(size=9)), face_pairs(), processes("cpu"))
    network = Linear()
    network.weights[0, 0] = float("nan")
    with pytest.raises(UserError, match="noisy: 24 of 24 pair distances are not finite"):
        face_pairs().evaluate(embed_images(FaceEmbedder(network, options()), face_pairs(), processes("cpu")))


def test_pixels_give_the_embeddings_of_their_files():
    """`features` and `embed` of arrays, in padded batches, equal `files` of the same images."""
    faces_u8 = np.random.RandomState(0).randint(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    embedder = FaceEmbedder(Linear(), options())
    expected, _ = embed_all(Linear(), [encode_png(face) for face in faces_u8], options())
    np.testing.assert_array_equal(embedder.features(faces_u8), expected)
    unit = embedder.embed(faces_u8)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=0, atol=1e-6)
