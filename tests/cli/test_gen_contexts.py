"""`facesyn gen-contexts` on tiny networks: every source, kills, growth, and wrong input."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finish, spawn
from guided_checkpoint import write_small
from tiny_recognizer import embedding_rounding

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.contexts.from_images import Images
from facesyn_cli.contexts.quality import Quality
from facesyn_cli.data.pixels import decode_image, encode_jpeg, encode_png
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.plugins import registry

UNET = {
    "name": "idiff-unet", "in_channels": 3, "channels": 32, "multipliers": [1, 1], "attention": [False, True],
    "num_blocks": 1, "context_width": 32,
}
BACKBONE = {"name": "ir-tiny", "widths": [8, 16], "blocks": [1, 1]}


@pytest.fixture(scope="session")
def recognizer(tmp_path_factory) -> Path:
    return write_recognizer(tmp_path_factory.mktemp("recognizer"), seed=0)


def write_recognizer(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    module = registry.build("backbone", registry.configure("backbone", BACKBONE))
    write_weights(folder, module.state_dict(), {"backbone": BACKBONE})
    return folder


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    """40 images: 20 pictures, each twice in different files, so that half of them are never unique."""
    folder = tmp_path_factory.mktemp("faces")
    for k in range(40):
        blocks = np.random.RandomState(k % 20).randint(256, size=(7, 7, 3), dtype=np.uint8)
        pixels_u8 = blocks.repeat(16, axis=0).repeat(16, axis=1)
        encode = encode_png if k % 2 else encode_jpeg
        write_bytes(folder / f"{k:02d}{'.png' if k % 2 else '.jpg'}", encode(pixels_u8))
    return folder


def write_ldm(folder: Path, **settings) -> Path:
    torch.manual_seed(0)
    unet = ConditionalUNet(UnetConfig(**UNET))
    torch.nn.init.normal_(unet.final.weight, std=0.1)
    values = {"latent_size": 8, "image_size": 32, "output_size": 28,
              "autoencoder": {"name": "pixels", "settings": {"downscale": 4}}, **settings}
    write_weights(folder, unet.state_dict(), LdmSettings(denoiser=UNET, **values).model_dump(mode="json"))
    return folder


@pytest.fixture
def gen(run_cli, tmp_path):
    def run(*arguments, out="out"):
        ran = run_cli("gen-contexts", "--work", tmp_path / "work", "--out", tmp_path / out, "--device", "cpu", "--json",
                      *arguments)
        assert ran.code == 0, ran.err
        return ran.json()

    return run


def images(faces: Path, recognizer: Path) -> list[object]:
    """A filter so strict that about half of the pictures are kept."""
    return ["--source", "images", "--images", faces, "--weights", recognizer, "filters=[{name: unique, r: 0.9999}]",
            "--batch-size", 4]


def content(folder: Path) -> dict[str, str]:
    """Digest of every file but the header."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("facesyn.json", "facesyn.begun.json")
        and not p.name.startswith(".") and "progress" not in p.parts
    }


def header(folder: Path) -> dict:
    """What the header says about the content."""
    found = json.loads((folder / "facesyn.json").read_text())
    return {key: found[key] for key in ("counts", "extra", "digest", "parents")}


# --- the job ----------------------------------------------------------------------------------------------------


def test_sphere_gives_a_published_context_file(gen, tmp_path):
    summary = gen("--source", "sphere", "--count", 50)
    assert summary["contexts"] == summary["candidates"] == 50 and summary["dropped"] == {"unique": 0}
    published = np.load(tmp_path / "out" / "contexts.npy", allow_pickle=False)
    assert published.dtype == np.float32 and published.shape == (50, 512)
    assert np.allclose(np.linalg.norm(published, axis=1), 1, atol=1e-6)
    found = ContextSet.open(tmp_path / "out")
    assert found.identities == [str(i) for i in range(50)] and found.faces == [None] * 50 and found.embedder is None
    assert found.origins[49] == {"source": "sphere", "candidate": 49}
    assert np.array_equal(found.vectors, published)
    assert not (gen("--source", "sphere", "--count", 50, "--seed", 1, out="other")["folder"] == summary["folder"])
    assert content(tmp_path / "other") != content(tmp_path / "out")


def test_images_are_filtered_and_kept_with_their_faces(gen, faces, recognizer, tmp_path):
    summary = gen(*images(faces, recognizer))
    found = ContextSet.open(tmp_path / "out")
    assert summary["candidates"] == 40 and summary["failed"] == 0
    assert summary["contexts"] + summary["dropped"]["unique"] == 40
    assert 10 < summary["contexts"] == summary["faces"] == len(found.identities) < 40
    cosines = found.vectors.astype(np.float64) @ found.vectors.astype(np.float64).T - 2 * np.eye(len(found.vectors))
    assert cosines.max() < 0.9999
    for origin, face in zip(found.origins, found.faces, strict=True):
        original = next(faces.glob(f"{origin['name'].split('/')[0]}.*"))
        assert face.read_bytes() == original.read_bytes() and face.suffix == original.suffix
    assert [face.name for face in found.faces] == sorted(face.name for face in found.faces)
    assert found.embedder.startswith("sha256:")


@pytest.mark.parametrize(("source", "origin", "says"), [
    ("images", "unknown", "40 context faces are of unknown origin; images takes source.origin=generated or"),
    ("{name: images, origin: photo}", "photo", "40 context faces are photos of real people; augment does not add them"),
    ("{name: images, origin: generated}", "generated", ""),
])
def test_the_origin_of_the_faces_is_kept(gen, run_cli, faces, recognizer, tmp_path, source, origin, says):
    out = tmp_path / "out"
    arguments = ("gen-contexts", "--images", faces, "--weights", recognizer, "--out", out, "filters=[]")
    ran = run_cli(*arguments, f"source={source}")
    assert ran.code == 0 and says in ran.err and ("unknown origin" in ran.err or "photos" in ran.err) == bool(says)
    assert ContextSet.open(out).face_origin == origin
    again = run_cli(*arguments, "source={name: images, origin: generated}")
    assert again.code == 0 and ("is finished with faces of origin" in again.err) == (origin != "generated")
    gen("--source", "embeddings", "--embeddings", out, "--out", tmp_path / "again")
    assert ContextSet.open(tmp_path / "again").face_origin == origin


def test_given_embeddings_and_the_filter_novel(gen, tmp_path):
    vectors = np.random.RandomState(0).standard_normal((30, 512)).astype(np.float32)
    np.save(tmp_path / "given.npy", vectors)
    torch.save({str(i): vectors[i] for i in (3, 4, 5)}, tmp_path / "known.npy")
    given = ["--source", "embeddings", f"embeddings={tmp_path / 'given.npy'}"]
    summary = gen(*given, f"known={tmp_path / 'known.npy'}", "filters=[unique, {name: novel, r: 0.9}]")
    assert summary["contexts"] == 27 and summary["dropped"] == {"novel": 3, "unique": 0}
    assert [o["candidate"] for o in ContextSet.open(tmp_path / "out").origins] == [0, 1, 2, *range(6, 30)]
    assert gen(*given, "filters=[]", out="all")["contexts"] == 30


def test_two_stage_draws_with_the_ldm_of_the_run(run_cli, gen, faces, recognizer, tmp_path):
    """Recognizer and LDM come from the folder of --work."""
    ran = run_cli("embed", "--work", tmp_path / "work", "--images", faces, "--weights", recognizer, "--device", "cpu")
    assert ran.code == 0, ran.err
    embedder = json.loads((tmp_path / "work/1-embeddings/facesyn.json").read_text())["extra"]["embedder"]
    write_ldm(tmp_path / "work" / "2-ldm", embedder=embedder)
    arguments = ["--count", 5, "--batch-size", 2, "source.scheduler.steps=2", "filters=[]"]
    assert gen(*arguments)["contexts"] == 5
    found = ContextSet.open(tmp_path / "out")
    assert found.embedder == embedder
    assert all(decode_image(face.read_bytes()).shape == (112, 112, 3) for face in found.faces)
    assert len({face.read_bytes() for face in found.faces}) == 5
    assert set(header(tmp_path / "out")["parents"]) == {"ldm", "autoencoder", "weights"}
    plan = gen(*arguments, "--dry-run", out="planned")
    assert plan["plan"]["network_evaluations"] == {"denoiser": 10, "decoder": 5, "recognizer": 5}
    assert plan["plan"]["state"] == "new" and not (tmp_path / "planned").exists()
    shutil.rmtree(tmp_path / "work" / "2-ldm")
    write_ldm(tmp_path / "work" / "2-ldm", embedder="sha256:" + "b" * 64)
    ran = run_cli("gen-contexts", "--work", tmp_path / "work", "--out", tmp_path / "third", *arguments)
    assert ran.code == 2 and "come from different recognizers" in ran.err


def test_pca_of_known_people_filtered_by_what_the_ldm_draws(
    run_cli, gen, faces, recognizer, tmp_path, monkeypatch
):
    ran = run_cli("embed", "--work", tmp_path / "work", "--images", faces, "--weights", recognizer, "--device", "cpu")
    assert ran.code == 0, ran.err
    embedder = json.loads((tmp_path / "work/1-embeddings/facesyn.json").read_text())["extra"]["embedder"]
    write_ldm(tmp_path / "work" / "2-ldm", embedder=embedder)
    quality = "{name: quality, images: 2, lowest_cosine: %s, lowest_length: 0.5, scheduler: {steps: 2}, guidance: 1}"
    arguments = ["--source", "pca", "--batch-size", 4]

    assert gen(*arguments, "filters=[]", "--count", 12)["contexts"] == 12
    found = ContextSet.open(tmp_path / "out")
    assert found.embedder == embedder and found.faces == [None] * 12
    assert set(header(tmp_path / "out")["parents"]) == {"known"}
    gen(*arguments, "filters=[]", "--count", 5, out="grown")
    gen(*arguments, "filters=[]", "--count", 12, out="grown")
    assert content(tmp_path / "grown") == content(tmp_path / "out")

    cosines = _cosines_seen(monkeypatch)
    assert gen(*arguments, f"filters=[{quality % -1}]", "--count", 12, out="lenient")["dropped"] == {"quality": 0}
    lenient = ContextSet.open(tmp_path / "lenient").vectors
    found = np.array([cosines[row.tobytes()] for row in lenient])
    around_the_middle = np.sort(found)[3:9]
    widest = np.argmax(np.diff(around_the_middle))
    threshold = around_the_middle[widest : widest + 2].mean()  # rounding is far smaller than the gap around it
    expected = np.flatnonzero(found >= threshold)
    kept = gen(*arguments, f"filters=[{quality % threshold}]", "--count", len(expected), out="strict")
    assert kept["dropped"]["quality"] > 0 and kept["contexts"] == len(expected)
    strict = ContextSet.open(tmp_path / "strict")
    assert [origin["candidate"] for origin in strict.origins] == expected.tolist()
    assert np.array_equal(strict.vectors, lenient[expected])
    assert set(header(tmp_path / "strict")["parents"]) == {"known", "ldm", "autoencoder", "weights"}
    for part in ("3/3", "1/3", "2/3"):
        gen(*arguments, f"filters=[{quality % threshold}]", "--count", len(expected), "--shard", part, out="parts")
    assert content(tmp_path / "parts") == content(tmp_path / "strict")
    other = write_recognizer(tmp_path / "stranger", seed=1)
    write_ldm(tmp_path / "any")
    ran = run_cli("gen-contexts", "--work", tmp_path / "work", *arguments, f"filters=[{quality % 0}]", "--count", 5,
                  "--ldm", tmp_path / "any", "--weights", other, "--out", tmp_path / "refused")
    assert ran.code == 2 and "the candidates and" in ran.err and "come from different recognizers" in ran.err
    plan = gen(*arguments, f"filters=[{quality % 0}]", "--count", 5, "--dry-run", out="planned")["plan"]
    assert plan["network_evaluations"] == {"denoiser": 20, "decoder": 10, "recognizer": 10}


def _cosines_seen(monkeypatch) -> dict[bytes, float]:
    """Return a dictionary that the filter `quality` fills: bytes of a candidate -> mean cosine of its faces to it."""
    seen = {}
    judge = Quality._judge

    def remembering(self, contexts):
        lengths, cosines = judge(self, contexts)
        seen.update(zip(map(np.ndarray.tobytes, contexts), cosines.tolist(), strict=True))
        return lengths, cosines

    monkeypatch.setattr(Quality, "_judge", remembering)
    return seen


def test_guided_diffusion_checkpoint(gen, recognizer, tmp_path):
    checkpoint = write_small(tmp_path / "ffhq.pt")
    arguments = ["--source", "guided-diffusion", "--generator", checkpoint, "--weights", recognizer, "source.steps=2",
                 "filters=[]", "--batch-size", 2]
    gen(*arguments, "--count", 5)
    gen(*arguments, "--count", 3, out="grown")
    gen(*arguments, "--count", 5, out="grown")
    assert content(tmp_path / "grown") == content(tmp_path / "out")
    assert len({p.read_bytes() for p in (tmp_path / "out" / "faces").iterdir()}) == 5
    assert header(tmp_path / "out")["parents"]["generator"]["path"] == str(checkpoint)
    arguments[1] = "diffusers"
    assert gen(*arguments, "--count", 1, out="ddpm")["contexts"] == 1


def test_diffusers_pipeline(gen, recognizer, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "ddpm")
    arguments = ["--source", "diffusers", "--generator", tmp_path / "ddpm", "--weights", recognizer, "source.steps=2",
                 "source.crop=0.8", "filters=[]", "--batch-size", 2]
    assert gen(*arguments, "--count", 5)["candidates"] == 5
    gen(*arguments, "--count", 3, out="grown")
    gen(*arguments, "--count", 5, out="grown")
    assert content(tmp_path / "grown") == content(tmp_path / "out")


# --- what must not matter ---------------------------------------------------------------------------------------


def test_growing_gives_the_set_of_a_fresh_run(gen, faces, recognizer, tmp_path):
    for count in (1, 6, 13):
        gen(*images(faces, recognizer), "--count", count, out="grown")
        gen(*images(faces, recognizer), "--count", count, out=f"fresh-{count}")
        assert content(tmp_path / "grown") == content(tmp_path / f"fresh-{count}")
        assert header(tmp_path / "grown") == header(tmp_path / f"fresh-{count}")
    before = (tmp_path / "grown" / "contexts.npy").stat().st_mtime_ns
    gen(*images(faces, recognizer), "--count", 13, out="grown")
    assert (tmp_path / "grown" / "contexts.npy").stat().st_mtime_ns == before, "a finished set was made again"


def test_killed_at_any_moment_and_finished(gen, faces, recognizer, tmp_path):
    gen(*images(faces, recognizer), "--count", 15, out="straight")
    out = tmp_path / "killed"
    command = ["gen-contexts", "--work", tmp_path / "work", "--out", out, "--device", "cpu",
               *images(faces, recognizer), "--count", 15]
    kills = 0
    for blocks in (1, 3):
        process = spawn(*command)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((out / "progress").glob("block-*"))) >= blocks:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += finish(process).code == -signal.SIGKILL
    assert kills, "the runs were too fast to be killed"
    assert not (out / "facesyn.json").exists()
    ran = finish(spawn(*command))
    assert ran.code == 0, ran.err
    assert content(out) == content(tmp_path / "straight") and header(out) == header(tmp_path / "straight")


def test_parts_grow_like_one_run_and_draw_nothing_twice(gen, run_cli, faces, recognizer, tmp_path, monkeypatch):
    drawn = []
    candidates = Images.candidates

    def counting(self, start):
        for batch in candidates(self, start):
            drawn.append(batch.start)
            yield batch

    monkeypatch.setattr(Images, "candidates", counting)
    for count in (6, 13):
        gen(*images(faces, recognizer), "--count", count, out="straight")
        plan = gen(*images(faces, recognizer), "--count", count, "--shard", "2/2", "--dry-run", out="parts")["plan"]
        batches = {6: 1, 13: 1}[count]  # of 2, and of 2 after the two (one of them cut) that are there
        assert plan["counts"]["candidates_of_part"] == 4 * batches
        assert plan["network_evaluations"] == {"recognizer": 4 * batches}
        drawn.clear()
        for part in ("2/2", "1/2"):
            gen(*images(faces, recognizer), "--count", count, "--shard", part, out="parts")
        assert len(set(drawn)) == len(drawn)
        assert content(tmp_path / "parts") == content(tmp_path / "straight")
        assert header(tmp_path / "parts") == header(tmp_path / "straight")
    assert 4 not in drawn, "the batch in which 6 contexts were reached was drawn again"


def test_parts_of_a_source_that_ends_too_early_say_so(gen, run_cli, faces, recognizer, tmp_path):
    most = gen(*images(faces, recognizer), out="all")["contexts"]
    command = ["gen-contexts", "--work", tmp_path / "work", "--out", tmp_path / "out", "--device", "cpu",
               *images(faces, recognizer), "--count"]
    for _ in range(2):
        assert run_cli(*command, most + 1, "--shard", "1/2").code in (0, 2)
        ran = run_cli(*command, most + 1, "--shard", "2/2")
        assert ran.code == 2 and f"--count {most} finishes" in ran.err
    assert run_cli(*command, most, "--shard", "1/2").code == 0
    assert content(tmp_path / "out") == content(tmp_path / "all")
    assert run_cli(*command, most, "--shard", "3/2").code == 2


def test_lost_blocks_are_made_again(gen, faces, recognizer, tmp_path):
    gen(*images(faces, recognizer), "--count", 15, out="straight")
    gen(*images(faces, recognizer), "--count", 9)
    out = tmp_path / "out"
    sorted((out / "progress").iterdir())[1].write_bytes(b"torn")
    gen(*images(faces, recognizer), "--count", 15)
    assert content(out) == content(tmp_path / "straight") and header(out) == header(tmp_path / "straight")


def test_batch_size_hardly_matters_and_is_mentioned(run_cli, gen, faces, recognizer, tmp_path):
    gen(*images(faces, recognizer), "--count", 8)
    gen(*images(faces, recognizer), "--batch-size", 7, "--count", 8, out="other")
    a, b = ContextSet.open(tmp_path / "out"), ContextSet.open(tmp_path / "other")
    assert a.origins == b.origins and np.abs(a.vectors - b.vectors).max() < embedding_rounding(recognizer)
    ran = run_cli("gen-contexts", "--work", tmp_path / "work", "--out", tmp_path / "out", "--device", "cpu",
                  *images(faces, recognizer), "--batch-size", 7, "--count", 9)
    assert ran.code == 0 and "batch_size was 4, is 7" in ran.err


# --- not enough -------------------------------------------------------------------------------------------------


def test_dry_source_says_how_many_there_are_and_keeps_them(gen, run_cli, faces, recognizer, tmp_path):
    most = gen(*images(faces, recognizer), out="all")["contexts"]
    command = ["gen-contexts", "--work", tmp_path / "work", "--out", tmp_path / "out", "--device", "cpu",
               *images(faces, recognizer), "--count"]
    for _ in range(2):
        ran = run_cli(*command, most + 1)
        assert ran.code == 2
        assert f"accepted {most} of 40 candidates (unique dropped {40 - most}; 0 unreadable)" in ran.err
        assert f"{most + 1} are wanted; --count {most} finishes" in ran.err
        assert not (tmp_path / "out" / "facesyn.json").exists()
    assert run_cli(*command, most).code == 0
    gen(*images(faces, recognizer), "--count", most, out="fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert header(tmp_path / "out") == header(tmp_path / "fresh")


def test_endless_source_that_repeats_itself_is_given_up(assert_refused, tmp_path):
    ran = assert_refused(
        "gen-contexts", "--source", "sphere", "--count", 100, "--out", tmp_path / "out",
        "filters=[{name: unique, r: -0.05}]", "patience=2000", says="its last 2000 candidates were all dropped",
    )
    assert "kept 0" not in ran.err


def test_unreadable_faces_are_listed(gen, faces, recognizer, tmp_path):
    shutil.copytree(faces, tmp_path / "faces")
    (tmp_path / "faces" / "03.png").write_bytes(b"nothing")
    summary = gen(*images(tmp_path / "faces", recognizer))
    assert summary["failed"] == 1 and summary["candidates"] == 40
    assert (tmp_path / "out" / "failed.txt").read_text().startswith("03.png: ")


# --- wrong input ------------------------------------------------------------------------------------------------


def _prepared(kind: str, folder: Path, faces: Path, recognizer: Path) -> list[object]:
    vectors = np.random.RandomState(0).standard_normal((4, 512)).astype(np.float32)
    np.save(folder / "given.npy", vectors)
    np.save(folder / "narrow.npy", vectors[:, :100])
    (folder / "empty").mkdir()
    (folder / "text.pth").write_text("weights")
    given = ["--source", "embeddings", f"embeddings={folder / 'given.npy'}"]
    with_images = ["--source", "images", "--images", faces, "--weights"]
    weights = ["--weights", recognizer]
    two_stage = ["--source", "two-stage", "--count", 2, "--weights", recognizer, "--ldm"]
    return {
        "unknown source": ["--source", "spere", "--count", 2],
        "endless": ["--source", "sphere"],
        "no count": ["--source", "sphere", "--count", 0],
        "nothing given": ["--count", 2],
        "no images": ["--source", "images", "--images", folder / "nothing", "--weights", recognizer],
        "no faces": ["--source", "images", "--images", folder / "empty", "--weights", recognizer],
        "text as weights": [*with_images, folder / "text.pth"],
        "other backbone": [*with_images, recognizer, "--backbone", "ir-50"],
        "narrow": ["--source", "embeddings", f"embeddings={folder / 'narrow.npy'}"],
        "faces do not fit": [*given, "--images", faces],
        "pca of nobody": ["--source", "pca", "--count", 2],
        "pca of too few": ["--source", "pca", "--count", 2, f"known={folder / 'given.npy'}", "source.components=10"],
        "pca of no number": ["--source", "pca", "--count", 2, f"known={folder / 'given.npy'}", "source.components=0"],
        "quality without an ldm": [*given, "filters=[quality]"],
        "quality of no images": [*given, "filters=[{name: quality, images: 0}]"],
        "no known": [*given, "filters=[novel]"],
        "bad r": [*given, "filters=[{name: unique, r: 3}]"],
        "unknown filter": [*given, "filters=[uniqe]"],
        "two greedy filters": [*given, "filters=[unique, {name: unique, r: 0.5}]"],
        "unknown key": [*given, "fliters=[]"],
        "no pipeline": ["--source", "diffusers", "--count", 2, "--generator", folder / "empty", *weights],
        "bad steps": [*two_stage, folder / "ldm", "source.scheduler.steps=0"],
        "recognizer as ldm": [*two_stage, recognizer],
        "no autoencoder": [*two_stage, write_ldm(folder / "bare", autoencoder=None)],
        "autoencoder does not fit": [*two_stage, write_ldm(folder / "wide", latent_channels=4)],
        "bad scheduler": [*two_stage, write_ldm(folder / "ldm"), "source.scheduler.name=dimm"],
        "bad device": [*given, "--device", "tpu9"],
        "out is foreign": [*given, "--out", faces],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("unknown source", "did you mean 'sphere'"), ("endless", "--count"), ("no count", "count"),
        ("nothing given", ("--ldm", "--weights", "sphere")), ("no images", "does not exist"),
        ("no faces", "holds no images"), ("text as weights", "text.pth"), ("other backbone", "ir-50 was asked for"),
        ("narrow", "vectors of 100 numbers; 512"), ("faces do not fit", "40 images for the 4 rows"),
        ("pca of nobody", ("the EmbeddingSet of known people", "known=FOLDER")),
        ("pca of too few", "4 known embeddings are too few for 10 components"),
        ("pca of no number", "components"), ("quality without an ldm", ("--ldm", "--weights")),
        ("quality of no images", "images"),
        ("no known", "known="), ("bad r", "filters"), ("unknown filter", "did you mean 'unique'"),
        ("two greedy filters", "use one of them"), ("unknown key", "did you mean 'filters'"),
        ("no pipeline", "model_index.json"), ("recognizer as ldm", "a denoiser was expected"),
        ("no autoencoder", "--autoencoder"), ("autoencoder does not fit", "has latents of 3 channels"),
        ("bad scheduler", "did you mean 'ddim'"), ("bad steps", "source.scheduler.steps: Input should be"),
        ("bad device", "tpu9"),
        ("out is foreign", "choose another --out"),
    ],
)
def test_wrong_input_is_one_line(assert_refused, faces, recognizer, tmp_path, kind, says):
    arguments = _prepared(kind, tmp_path, faces, recognizer)
    out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    assert_refused("gen-contexts", "--work", tmp_path / "work", *out, *arguments, says=says)
    assert not (tmp_path / "out").exists()


def test_other_settings_or_inputs_do_not_mix(gen, assert_refused, faces, recognizer, tmp_path):
    gen(*images(faces, recognizer), "--count", 5)
    again = ["gen-contexts", "--work", tmp_path / "work", "--out", tmp_path / "out", *images(faces, recognizer)]
    before = content(tmp_path / "out")
    assert_refused(*again, "--count", 4, says="count 5 4 (can only be raised)")
    assert_refused(*again, "--count", 5, "--seed", 3, says="seed 0 3")
    assert_refused(*again, "--count", 5, "filters=[]", says="filters")
    other = write_recognizer(tmp_path / "other", seed=1)
    assert_refused(*again, "--count", 5, "--weights", other, says="input weights")
    assert content(tmp_path / "out") == before and header(tmp_path / "out")["counts"]["contexts"] == 5


def test_known_people_of_another_recognizer_are_refused(run_cli, assert_refused, faces, recognizer, tmp_path):
    other = write_recognizer(tmp_path / "other", seed=1)
    ran = run_cli("embed", "--work", tmp_path / "work", "--images", faces, "--weights", other, "--device", "cpu")
    assert ran.code == 0, ran.err
    assert_refused("gen-contexts", "--work", tmp_path / "work", "--source", "images", "--images", faces,
                   "--weights", recognizer, "filters=[novel]", says="come from different recognizers")


def test_a_write_that_the_system_refuses_is_one_line(assert_refused, run_cli, limited_files, tmp_path) -> None:
    command = ("gen-contexts", "--source", "sphere", "--count", 20, "--out", tmp_path / "out")
    limited_files(20_000)  # bytes a file may have; the vectors take 40 KiB
    assert_refused(*command, says="cannot write")
    assert not (tmp_path / "out" / "facesyn.json").exists()
    assert not list((tmp_path / "out").rglob("embeddings.npy")) and not list((tmp_path / "out").glob(".tmp-*"))
    limited_files(4_000_000)
    assert run_cli(*command).code == 0
    assert ContextSet.open(tmp_path / "out").vectors.shape == (20, 512)


def test_a_header_without_a_count_is_one_line(run_cli, assert_refused, tmp_path):
    words = ("gen-contexts", "--source", "sphere", "--count", 3, "--out", tmp_path / "out", "--device", "cpu")
    assert run_cli(*words).code == 0
    path = tmp_path / "out" / "facesyn.json"
    header = json.loads(path.read_text())
    del header["counts"]["faces"]
    path.write_text(json.dumps(header))
    assert_refused(*words, says="faces")
