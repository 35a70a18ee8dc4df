"""Sources: what they read, and that candidate k depends on k alone."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.context_set import write_contexts
from facesyn_cli.artifacts.embedding_set import write_embeddings
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.artifacts.vector_files import normalize
from facesyn_cli.config.fields import (
    StageConfig,
)
from facesyn_cli.contexts.diffusers_pipeline import find_pipeline, load_pipeline
from facesyn_cli.contexts.embedding_files import read_given_vectors
from facesyn_cli.contexts.faces import to_face
from facesyn_cli.contexts.source import CandidateBatch, Resources
from facesyn_cli.data.pixels import decode_image, encode_jpeg, encode_png
from facesyn_cli.diffusion.noise import image_noise
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.plugins import registry

CPU = torch.device("cpu")
PROJECTION = np.random.RandomState(0).standard_normal((3 * 28 * 28, 512)).astype(np.float32)


def embed(faces_u8: np.ndarray) -> np.ndarray:
    """A recognizer whose rows depend on nothing but their own pixels."""
    rows = [(face[::4, ::4].reshape(-1).astype(np.float32) - 127.5) @ PROJECTION for face in faces_u8]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def source(name: str, resources: Resources, **settings):
    made = registry.build("contexts", registry.configure("contexts", {"name": name, **settings}))
    made.open(resources)
    return made


def take(made, start: int, batches: int | None = None) -> list[CandidateBatch]:
    """Return batches, having checked what holds for every source."""
    found, expected = list(islice(made.candidates(start), batches)), start
    for batch in found:
        assert batch.start == expected and batch.stop > batch.start
        assert len(batch.vectors) == len(batch.origins) == len(batch.faces)
        assert all(batch.start <= origin["candidate"] < batch.stop for origin in batch.origins)
        assert batch.vectors.dtype == np.float32 and batch.vectors.shape[1] == 512
        assert np.allclose(np.linalg.norm(batch.vectors, axis=1), 1, atol=1e-6)
        expected = batch.stop
    return found


def face(seed: int, side: int = 112) -> np.ndarray:
    blocks = np.random.RandomState(seed).randint(256, size=(8, 8, 3), dtype=np.uint8)
    return blocks.repeat(-(-side // 8), axis=0).repeat(-(-side // 8), axis=1)[:side, :side]


def unit(num: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.RandomState(seed).standard_normal((num, 512))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_folder(folder: Path, kind: str, embedder: str) -> Path:
    """Give a folder a header."""
    with open_output(folder, kind, "test", StageConfig(), {}) as out:
        out.finish({}, extra={"embedder": embedder})
    return folder


# --- given embeddings -------------------------------------------------------------------------------------------


def test_published_array_and_its_faces_in_string_order(tmp_path):
    vectors = unit(12)
    np.save(tmp_path / "elasticface_embeddings.npy", vectors * 3)
    names = sorted(str(i) for i in range(12))                                  # 0 1 10 11 2 ...
    for row, name in enumerate(names):
        write_bytes(tmp_path / "images" / f"{name}.png", encode_png(face(row)))
    given = read_given_vectors(tmp_path / "elasticface_embeddings.npy")
    assert given.form == "numbered" and given.embedder is None
    assert np.allclose(given.vectors, vectors, atol=1e-7)
    made = source("embeddings", Resources(embeddings=given, images=ImageSet.open(tmp_path / "images")))
    assert made.num_candidates == 12
    (batch,) = take(made, 0)
    for row in range(12):
        assert np.array_equal(decode_image(batch.faces[row]), face(row))
    (tail,) = take(made, 7)
    assert np.array_equal(tail.vectors, batch.vectors[7:]) and tail.faces == batch.faces[7:]
    (tmp_path / "images" / "11.png").unlink()
    with pytest.raises(UserError, match="11 images for the 12 rows"):
        source("embeddings", Resources(embeddings=given, images=ImageSet.open(tmp_path / "images")))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["numpy", "float64", "tensor"])
def test_torch_saved_dict_under_a_misleading_ending(tmp_path, zipped, kind):
    vectors = unit(5)
    convert = {"numpy": lambda v: v, "float64": lambda v: v.astype(np.float64), "tensor": torch.from_numpy}[kind]
    content = {f"person {i}": convert(2 * vectors[i]) for i in range(5)}
    torch.save(content, tmp_path / "contexts.npy", _use_new_zipfile_serialization=zipped)
    given = read_given_vectors(tmp_path / "contexts.npy")
    assert given.form == "named" and given.names == [f"person {i}" for i in range(5)]
    assert np.allclose(given.vectors, vectors, atol=1e-7)
    for i in range(5):
        write_bytes(tmp_path / "faces" / f"person {i}.jpg", encode_jpeg(face(i)))
    made = source("embeddings", Resources(embeddings=given, images=ImageSet.open(tmp_path / "faces")))
    (batch,) = take(made, 0)
    assert batch.faces == [(tmp_path / "faces" / f"person {i}.jpg").read_bytes() for i in range(5)]
    (tmp_path / "faces" / "person 3.jpg").unlink()
    with pytest.raises(UserError, match="no face for 1 of the 5 rows .* first 'person 3'"):
        source("embeddings", Resources(embeddings=given, images=ImageSet.open(tmp_path / "faces")))


def test_dict_as_numpy_1_pickled_it(tmp_path):
    """Older numpy names its core `numpy.core`; the name lies in the file as text."""
    torch.save({"0": unit(1)[0]}, tmp_path / "new.npy", _use_new_zipfile_serialization=False)
    data = (tmp_path / "new.npy").read_bytes()
    assert b"numpy._core.multiarray" in data
    (tmp_path / "old.npy").write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert np.array_equal(read_given_vectors(tmp_path / "old.npy").vectors,
                          read_given_vectors(tmp_path / "new.npy").vectors)


def test_embedding_set_joins_faces_by_key(tmp_path):
    vectors = unit(3)
    write_embeddings(write_folder(tmp_path / "set", "EmbeddingSet", "sha256:abc"), ["b/1", "a/2", "a/1"], vectors)
    for i, key in enumerate(["a/1", "a/2", "b/1", "b/2"]):
        write_bytes(tmp_path / "images" / f"{key}.png", encode_png(face(i)))
    given = read_given_vectors(tmp_path / "set")
    assert given.embedder == "sha256:abc"
    made = source("embeddings", Resources(embeddings=given, images=ImageSet.open(tmp_path / "images")))
    (batch,) = take(made, 0)
    assert [origin["name"] for origin in batch.origins] == ["b/1", "a/2", "a/1"]
    assert [decode_image(data).tobytes() for data in batch.faces] == [face(i).tobytes() for i in (2, 1, 0)]
    assert take(source("embeddings", Resources(embeddings=given)), 0)[0].faces == [None] * 3


def test_context_set_brings_its_own_faces(tmp_path):
    folder = write_folder(tmp_path / "set", "ContextSet", "sha256:abc")
    write_contexts(folder, ["x", "y"], unit(2), [{}, {}], ["x.png", None])
    write_bytes(folder / "faces" / "x.png", encode_png(face(1, 56)))
    given = read_given_vectors(folder)
    (batch,) = take(source("embeddings", Resources(embeddings=given)), 0)
    assert decode_image(batch.faces[0]).shape == (112, 112, 3) and batch.faces[1] is None
    assert given.embedder == "sha256:abc" and given.names == ["x", "y"]


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


def _write(path: Path, kind: str) -> Path:
    vectors = unit(4)
    if kind == "objects":
        np.save(path, np.array([_Evil()], dtype=object), allow_pickle=True)
    elif kind == "code":
        torch.save({"0": _Evil()}, path)
    elif kind == "code in an array":
        torch.save({"0": np.array([_Evil()] * 512, dtype=object)}, path)
    elif kind == "list":
        torch.save([torch.from_numpy(vectors[0])], path)
    elif kind == "short entry":
        torch.save({"0": vectors[0], "1": vectors[1, :100]}, path)
    elif kind == "width":
        np.save(path, vectors[:, :128])
    elif kind == "integers":
        np.save(path, np.ones((4, 512), dtype=np.int64))
    elif kind == "one row":
        np.save(path, vectors[0])
    elif kind == "zero":
        np.save(path, vectors * np.array([[1], [1], [0], [1]]))
    elif kind == "nan":
        torch.save({"0": vectors[0] * np.float32("nan")}, path)
    elif kind == "empty":
        np.save(path, vectors[:0])
    elif kind == "empty dict":
        torch.save({}, path)
    elif kind == "truncated":
        torch.save({"0": vectors[0]}, path)
        path.write_bytes(path.read_bytes()[:700])
    elif kind == "text":
        path.write_text("0.1 0.2\n")
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("objects", "not a plain array file"), ("code", "not read"), ("code in an array", "not read"),
        ("list", "holds a list; a dict"), ("short entry", "entry '1' has 100 numbers, the first entry 512"),
        ("width", "vectors of 128 numbers; 512"), ("integers", "floating-point"), ("one row", "floating-point"),
        ("zero", "zero or not finite, first row 2"), ("nan", "zero or not finite"), ("empty", "no embeddings"),
        ("empty dict", "no embeddings"), ("truncated", "not read"), ("text", "not a plain array file"),
        ("folder", "no facesyn.json"), ("nothing", "does not exist"),
    ],
)
def test_wrong_vector_files_are_refused_in_one_line(tmp_path, monkeypatch, kind, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        read_given_vectors(_write(tmp_path / "file.npy", kind))
    assert "\n" not in str(caught.value) and str(tmp_path / "file.npy") in str(caught.value)
    assert not Path("evil-was-here").exists()


# --- faces ------------------------------------------------------------------------------------------------------


def test_images_are_embedded_and_kept_as_they_came(tmp_path):
    files = {"a/1.jpg": encode_jpeg(face(0)), "a/2.png": encode_png(face(1, 224)), "b/10.png": encode_png(face(2)),
             "b/2.jpg": b"no image", "c.png": encode_png(face(3)[:, :90])}
    for name, data in files.items():
        write_bytes(tmp_path / name, data)
    images = ImageSet.open(tmp_path)
    results = []
    for size in (1, 2, 64):
        made = source("images", Resources(images=images, features=embed, embedder="sha256:abc", batch_size=size))
        assert made.num_candidates == 5 and made.embedder == "sha256:abc"
        batches = take(made, 0)
        results.append((np.concatenate([b.vectors for b in batches]), [f for b in batches for f in b.faces],
                        [o for b in batches for o in b.origins], [line for b in batches for line in b.failed]))
    vectors, faces, origins, failed = results[0]
    assert all(np.array_equal(other[0], vectors) and other[1:] == results[0][1:] for other in results[1:])
    assert [o["name"] for o in origins] == ["a/1", "a/2", "b/10", "c/0"]
    assert [o["candidate"] for o in origins] == [0, 1, 3, 4]
    assert faces[0] == files["a/1.jpg"] and faces[2] == files["b/10.png"]
    assert decode_image(faces[1]).shape == decode_image(faces[3]).shape == (112, 112, 3), "the central square"
    assert np.array_equal(vectors, normalize(embed(np.stack([decode_image(data) for data in faces]))))
    assert [k for k, _ in failed] == [2] and failed[0][1].startswith("b/2.jpg: ")


def test_crop_keeps_the_center():
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    image[50:150, 100:200] = 255                      # the central half of the central square
    assert to_face(image, crop=0.5).min() == 255
    whole = to_face(image)
    assert whole.shape == (112, 112, 3) and whole[56, 56, 0] == 255 and whole[10, 10, 0] == 0


# --- generators -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> Path:
    """Tiny pipelines with random weights: DDPM in color, DDIM in gray."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp("pipelines")
    torch.manual_seed(0)
    for name, channels, make, scheduler in (
        ("ddpm", 3, DDPMPipeline, DDPMScheduler(num_train_timesteps=20)),
        ("ddim", 1, DDIMPipeline, DDIMScheduler(num_train_timesteps=20)),
    ):
        unet = UNet2DModel(
            sample_size=16, in_channels=channels, out_channels=channels, layers_per_block=1, norm_num_groups=4,
            block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )
        make(unet, scheduler).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_pipeline_draws_candidate_k_from_seed_and_k(pipelines, name):
    pipeline = load_pipeline(find_pipeline(str(pipelines / name)), CPU)

    def faces(start: int, size: int, batches: int, seed: int = 0) -> list[np.ndarray]:
        resources = Resources(seed=seed, batch_size=size, generator=pipeline, features=embed)
        found = take(source("diffusers", resources, steps=3), start, batches)
        return [decode_image(data) for batch in found for data in batch.faces]

    whole = faces(0, 4, 2)
    assert whole[0].shape == (112, 112, 3)
    assert all(not np.array_equal(whole[i], whole[j]) for i in range(8) for j in range(i))
    assert all(np.array_equal(a, b) for a, b in zip(faces(4, 4, 1), whole[4:], strict=True))
    for a, b in zip(faces(2, 3, 2), whole[2:], strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1       # another batch size: one gray level
    assert not np.array_equal(faces(0, 4, 1, seed=1)[0], whole[0])
    made = source("diffusers", Resources(generator=pipeline), steps=3)
    assert made.num_candidates is None and made.evaluations == {"generator": 3, "recognizer": 1}


def test_pipeline_that_is_none_is_refused(pipelines, tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "AuraFlowNothing"}')
    with pytest.raises(UserError, match="no model_index.json"):
        find_pipeline(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="is not there"):
        find_pipeline(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="cannot be downloaded from the hub"):
        find_pipeline("nobody/nothing")
    for folder in (broken, other):
        with pytest.raises(UserError, match="does not load as a diffusers pipeline") as caught:
            load_pipeline(folder, CPU)
        assert "\n" not in str(caught.value)


def test_pipeline_with_a_prompt_is_refused(pipelines, monkeypatch):
    from diffusers import DDPMPipeline

    def call(self, prompt, batch_size=1, generator=None):
        raise AssertionError

    monkeypatch.setattr(DDPMPipeline, "__call__", call)
    with pytest.raises(UserError, match="draws from noise alone"):
        load_pipeline(pipelines / "ddpm", CPU)


class _Denoiser(torch.nn.Module):
    """eps = x / 2, and a witness that no context was given."""

    def forward(self, x, t, context):
        assert context is None
        return x / 2


class _Autoencoder(torch.nn.Module):
    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=4.0)


def two_stage(size: int, seed: int = 0, scheduler: object = "ddim", **settings):
    sizes = {"latent_size": 28, "image_size": 112, **settings}
    ldm = LoadedLdm(_Denoiser(), LdmSettings(denoiser={"name": "idiff-unet"}, **sizes), "sha256:ldm")
    resources = Resources(
        seed=seed, batch_size=size, ldm=ldm, autoencoder=_Autoencoder(), features=embed, embedder="sha256:abc"
    )
    return source("two-stage", resources, scheduler=scheduler)


def test_two_stage_draws_under_the_empty_context():
    settings = {"scheduler": {"steps": 2}, "latent_mean": [0.1, -0.2, 0.3], "latent_std": [0.5, 0.25, 1.0]}
    (batch,) = take(two_stage(3, seed=7, **settings), 3, 1)
    x = image_noise(7, "context", 4, (3, 28, 28)).double()
    ab = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for t, previous in ((999, ab[499]), (499, torch.tensor(1.0))):       # DDIM, two trailing steps, by hand
        x0 = (x - (1 - ab[t]).sqrt() * x / 2) / ab[t].sqrt()
        x = previous.sqrt() * x0 + (1 - previous).sqrt() * x / 2
    mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("latent_mean", "latent_std"))
    expected = ((x * std + mean).clamp(-1, 1) + 1) / 2 * 255
    drawn = decode_image(batch.faces[1])[::4, ::4].transpose(2, 0, 1)
    assert np.abs(drawn - expected.numpy()).max() <= 1
    assert batch.origins[1] == {"candidate": 4}


@pytest.mark.parametrize("scheduler", ["ddim", {"name": "ddpm", "steps": 4}, {"name": "dpm-solver++", "steps": 3}])
def test_two_stage_candidate_depends_on_its_number_alone(scheduler):
    whole = [data for batch in take(two_stage(4, scheduler=scheduler), 0, 2) for data in batch.faces]
    assert len(set(whole)) == 8
    assert [data for batch in take(two_stage(2, scheduler=scheduler), 2, 2) for data in batch.faces] == whole[2:6]


def test_two_stage_brings_published_sizes_to_112():
    (batch,) = take(two_stage(1, latent_size=32, image_size=128, scheduler={"steps": 1}), 0, 1)
    assert decode_image(batch.faces[0]).shape == (112, 112, 3)


def test_two_stage_names_a_wrong_scheduler():
    with pytest.raises(ValidationError, match="unknown scheduler 'dimm', did you mean 'ddim'"):
        two_stage(1, scheduler="dimm")


def test_two_stage_refuses_numbers_that_are_not_finite(monkeypatch):
    nan = torch.full((2, 3, 112, 112), torch.nan)
    monkeypatch.setattr(_Autoencoder, "decode", lambda self, latents: nan)
    with pytest.raises(UserError, match="source two-stage: the output of the LDM is not finite"):
        take(two_stage(2, scheduler={"steps": 1}), 0, 1)
