"""`facesyn sample` on a tiny LDM: 6 x 6 latents of 3 channels, 24 pixels decoded, 21 pixels written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finish, spawn
from fill import fill_state
from PIL import Image
from torch import nn

from facesyn_cli.artifacts.atomic_files import host_tag
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.preview_pictures import SHEET, picture_path
from facesyn_cli.artifacts.weights import read_config, read_tensors, write_weights
from facesyn_cli.data.pixels import decode_image
from facesyn_cli.diffusion.noise import image_noise
from facesyn_cli.errors import UserError
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.sampling.inputs import choose_identities
from facesyn_cli.sampling.pipeline import finish_pixels

TINY = {
    "name": "idiff-unet", "in_channels": 3, "channels": 32, "multipliers": [1, 1], "attention": [False, True],
    "num_blocks": 1, "context_size": 8, "context_width": 32,
}
EMBEDDER, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture(scope="session")
def ldm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ldm")
    unet = fill_state(ConditionalUNet(UnetConfig(**TINY)))
    settings = LdmSettings(
        denoiser=TINY, latent_size=6, latent_mean=[0.1, 0.0, -0.1], latent_std=[0.003, 0.003, 0.003], image_size=24,
        output_size=21, autoencoder={"name": "pixels", "settings": {"downscale": 4}}, embedder=EMBEDDER,
        embedding_size=8,
    )
    write_weights(folder, unet.state_dict(), settings.model_dump(mode="json"))
    return folder


@pytest.fixture(scope="session")
def contexts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("contexts") / "contexts.npy"
    np.save(path, np.random.RandomState(0).standard_normal((5, 8)).astype(np.float32))
    return path


@pytest.fixture
def sample(run_cli, ldm, contexts, tmp_path):
    def run(*arguments, out="out"):
        return run_cli(
            "sample", "--ldm", ldm, "--contexts", contexts, "--out", tmp_path / out, "--device", "cpu",
            "--steps", 3, "--assume-embedder", EMBEDDER, "--json", *arguments,
        )

    return run


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.glob("*/**/*")) if p.suffix in (".png", ".jpg")
    }


def pixels(folder: Path) -> np.ndarray:
    return np.stack([decode_image((folder / name).read_bytes()) for name in sorted(digests(folder))]).astype(int)


def header(folder: Path) -> dict:
    return json.loads((folder / "facesyn.json").read_text())


def test_a_kill_leaves_no_half_picture_beside_the_folder(sample, tmp_path):
    mine, other = (tmp_path / f".tmp-{name}.strip.png-{host_tag()}-{2**22}-1" for name in ("out", "other"))
    for path in (mine, other):
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    assert sample("--ids", 2, "--per-id", 1).code == 0
    assert not mine.exists() and other.exists()


def test_images_of_every_identity_and_a_header(sample, tmp_path):
    ran = sample("--per-id", 3)
    assert ran.code == 0, ran.err
    assert ran.json() == {
        "images": 15, "identities": 5, "per_id": 3, "made_now": 15, "folder": str(tmp_path / "out")
    }
    images = ImageSet.open(tmp_path / "out")
    assert [e.location for e in images.entries] == [f"{i}/{k}.png" for i in range(5) for k in range(3)]
    assert header(tmp_path / "out")["extra"] == {
        "embedder": EMBEDDER, "size": 21, "network_evaluations_per_image": 3
    }
    values = pixels(tmp_path / "out")
    assert values.shape == (15, 21, 21, 3)
    assert values.std(axis=(1, 2, 3)).min() > 5  # pictures, not flat color
    assert len(set(digests(tmp_path / "out").values())) == 15  # no two alike
    again = sample("--per-id", 3)
    assert (again.code, again.json()["made_now"]) == (0, 0)


def test_the_numbers_are_those_of_the_formula(sample, ldm, contexts, tmp_path):
    """One image by hand: normalized context, its noise, three DDIM steps, statistics, decoder, 21 pixels."""
    sample("--scheduler", "ddim", "--per-id", 2, "--seed", 7)
    unet = ConditionalUNet(UnetConfig(**TINY)).eval()
    unet.load_state_dict(read_tensors(ldm / "model.safetensors"))
    context = torch.from_numpy(np.load(contexts)[3:4])
    context = context / context.norm()
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    x = image_noise(7, "3", 1, (3, 6, 6))[None]
    with torch.no_grad():
        for t, after in ((999, 666), (666, 332), (332, None)):
            eps = unet(x, torch.tensor([t]), context)
            a, p = alpha_bars[t], alpha_bars[after] if after is not None else torch.tensor(1.0)
            x = (p.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - p).sqrt() * eps).float()
        latents = 0.003 * x + torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1)
        image = nn.functional.interpolate(latents, scale_factor=4, mode="bilinear", align_corners=False)
        image = nn.functional.interpolate(image.clamp(-1, 1), (21, 21), mode="bilinear", align_corners=False)
    expected = ((image[0] + 1) / 2 * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy().astype(int)
    actual = decode_image((tmp_path / "out" / "3" / "1.png").read_bytes()).astype(int)
    assert abs(actual - expected).max() <= 1


def test_post_processing_is_the_published_one(golden):
    decoded = torch.from_numpy(np.load(golden / "vq.npz")["decoded"])
    expected = np.load(golden / "post.npz")["img112"]  # in [0, 1]
    actual = finish_pixels(decoded, 112)
    assert actual.shape == (1, 112, 112, 3)
    published_u8 = np.clip(expected * 255 + 0.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    different = actual.numpy() != published_u8
    assert different.mean() < 1e-3  # ties of rounding
    assert abs(actual.numpy().astype(int) - published_u8).max() <= 1


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "unipc"])
def test_batch_size_changes_at_most_one_gray_level(sample, tmp_path, scheduler):
    for batch_size in (1, 4, 15):
        ran = sample("--scheduler", scheduler, "--per-id", 3, "--batch-size", batch_size, out=str(batch_size))
        assert ran.code == 0, ran.err
    whole = pixels(tmp_path / "15")
    assert abs(pixels(tmp_path / "1") - whole).max() <= 1
    assert abs(pixels(tmp_path / "4") - whole).max() <= 1


def test_seed_identity_and_sample_make_the_image(sample, tmp_path):
    sample("--per-id", 2)
    sample("--per-id", 2, "--seed", 1, out="other")
    one, other = digests(tmp_path / "out"), digests(tmp_path / "other")
    assert not set(one.values()) & set(other.values())


def test_growing_adds_images_and_touches_none(sample, tmp_path):
    sample("--ids", 2, "--per-id", 2, "--batch-size", 4)
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in digests(tmp_path / "out")}
    ran = sample("--ids", 4, "--per-id", 3, "--batch-size", 4)
    assert ran.json()["made_now"] == 8
    after = digests(tmp_path / "out")
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    sample("--ids", 4, "--per-id", 3, "--batch-size", 4, out="fresh")
    assert list(after) == list(digests(tmp_path / "fresh"))
    assert abs(pixels(tmp_path / "out") - pixels(tmp_path / "fresh")).max() <= 1
    assert header(tmp_path / "out")["digest"] == header(tmp_path / "fresh")["digest"]


def test_growing_ids_alone_gives_the_files_of_a_fresh_run(sample, tmp_path):
    sample("--ids", 2, "--per-id", 4, "--batch-size", 3)
    sample("--ids", 5, "--per-id", 4, "--batch-size", 3)
    sample("--ids", 5, "--per-id", 4, "--batch-size", 3, out="fresh")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_lost_and_empty_images_are_made_again_bit_by_bit(sample, tmp_path):
    sample("--per-id", 3, "--batch-size", 4)
    before, folder = digests(tmp_path / "out"), tmp_path / "out"
    (folder / "facesyn.json").rename(folder / "facesyn.begun.json")
    (folder / "1" / "0.png").unlink()
    (folder / "1" / "2.png").write_bytes(b"")
    shutil.rmtree(folder / "4")
    kept = {name: (folder / name).stat().st_mtime_ns for name in digests(folder) if name != "1/2.png"}
    assert sample("--per-id", 3, "--batch-size", 4).json()["made_now"] == 5
    assert digests(folder) == before
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept


def test_given_noise(sample, tmp_path):
    """A file with the noise that would have been drawn gives the same images; other noise does not."""
    noise = np.stack([[image_noise(0, str(i), k, (3, 6, 6)).numpy() for k in range(3)] for i in range(5)])
    np.save(tmp_path / "same.npy", noise)
    np.save(tmp_path / "other.npy", -noise)
    sample("--per-id", 2, "--ids", 3)
    assert sample("--per-id", 2, "--ids", 3, f"noise.file={tmp_path / 'same.npy'}", out="same").code == 0
    assert sample("--per-id", 2, "--ids", 3, f"noise.file={tmp_path / 'other.npy'}", out="other").code == 0
    assert digests(tmp_path / "same") == digests(tmp_path / "out")
    assert not set(digests(tmp_path / "other").values()) & set(digests(tmp_path / "out").values())


def test_jpeg_and_size(sample, tmp_path):
    assert sample("--ids", 1, "--per-id", 2, "format=jpeg", "jpeg_quality=80", "size=30").code == 0
    files = sorted((tmp_path / "out" / "0").iterdir())
    assert [p.name for p in files] == ["0.jpg", "1.jpg"]
    assert all(p.read_bytes()[:2] == b"\xff\xd8" for p in files)
    assert decode_image(files[0].read_bytes()).shape == (30, 30, 3)


def test_guidance_and_half_precision(sample, tmp_path):
    sample("--per-id", 2)
    guided = sample("--per-id", 2, "guidance.name=cfg", "guidance.scale=3", out="guided")
    assert guided.code == 0, guided.err
    assert header(tmp_path / "guided")["extra"]["network_evaluations_per_image"] == 6
    assert abs(pixels(tmp_path / "guided") - pixels(tmp_path / "out")).max() > 3
    assert sample("--per-id", 2, "--precision", "bf16", out="half").code == 0
    difference = abs(pixels(tmp_path / "half") - pixels(tmp_path / "out"))
    assert 0 < difference.mean() < 1.5


def test_the_batch_size_is_chosen_and_recorded(sample, tmp_path):
    """On a CPU, auto is 8."""
    assert sample("--per-id", 3, "--batch-size", "auto").code == 0
    assert header(tmp_path / "out")["config"]["recorded"]["batch_size"] == 8
    sample("--per-id", 3, "--batch-size", 8, out="same")
    assert digests(tmp_path / "same") == digests(tmp_path / "out")


def test_shards_in_any_order_equal_one_run(sample, tmp_path):
    sample("--per-id", 3, "--batch-size", 2)
    for part in ("3/3", "1/3"):
        ran = sample("--per-id", 3, "--batch-size", 2, "--shard", part, out="parts")
        assert ran.code == 0, ran.err
        assert not (tmp_path / "parts" / "facesyn.json").exists()
        assert ran.json()["part"] == part
    assert sample("--per-id", 3, "--batch-size", 2, "--shard", "1/3", out="parts").json()["made_now"] == 0
    assert sample("--per-id", 3, "--batch-size", 2, "--shard", "2/3", out="parts").code == 0
    assert digests(tmp_path / "parts") == digests(tmp_path / "out")
    assert header(tmp_path / "parts")["digest"] == header(tmp_path / "out")["digest"]


def test_shards_of_different_batch_sizes_do_not_leave_gaps_behind_a_header(sample, tmp_path):
    sample("--per-id", 3, "--batch-size", 2, "--shard", "1/2")
    ran = sample("--per-id", 3, "--batch-size", 5, "--shard", "2/2")
    assert ran.code == 2
    assert "images are missing" in ran.err
    assert not (tmp_path / "out" / "facesyn.json").exists()
    assert sample("--per-id", 3, "--batch-size", 2).code == 0
    assert len(digests(tmp_path / "out")) == 15


def test_dry_run_counts_and_writes_nothing(sample, tmp_path):
    plan = sample("--per-id", 4, "--batch-size", 8, "guidance.name=cfg", "guidance.end=0.5", "--dry-run").json()["plan"]
    counts = plan["counts"]
    assert counts["images"] == counts["images_left"] == 20
    assert (counts["batches_left"], plan["chosen"]["batch_size"]) == (3, 8)
    assert plan["chosen"]["evaluations_per_image"] == 3 + 2
    assert plan["network_evaluations"] == {"denoiser": 5 * 24, "decoder": 24}
    assert plan["expected_s"] >= 0 and plan["chosen"]["batches_at_once"] >= 1
    assert plan["folder"] == str(tmp_path / "out") and plan["state"] == "new"
    assert not (tmp_path / "out").exists()
    sample("--per-id", 4, "--ids", 2)
    counts = sample("--per-id", 4, "--ids", 3, "--dry-run").json()["plan"]["counts"]
    assert (counts["images"], counts["images_done"], counts["images_left"]) == (12, 8, 4)


def test_a_published_file_without_recognizer_gets_one_warning(run_cli, ldm, contexts, tmp_path):
    ran = run_cli("sample", "--ldm", ldm, "--contexts", contexts, "--out", tmp_path / "o", "--per-id", 1, "--steps", 1)
    assert ran.code == 0
    assert ran.err.count("warning: ") == 1
    assert "do not say which recognizer" in ran.err


def test_stop_signal_keeps_what_is_done_and_goes_on(ldm, contexts, tmp_path, sample):
    arguments = ("sample", "--ldm", ldm, "--contexts", contexts, "--out", tmp_path / "out", "--device", "cpu",
                 "--assume-embedder", EMBEDDER, "--per-id", 40, "--steps", 100, "--batch-size", 4)
    process = spawn(*arguments)
    _wait_for_images(tmp_path / "out", 4)
    process.send_signal(signal.SIGTERM)
    ran = finish(process)
    assert ran.code == 143, ran.err
    assert "run the same command again" in ran.err
    done = digests(tmp_path / "out")
    assert 0 < len(done) < 200
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    assert not list((tmp_path / "out").glob(".lock-*"))
    plan = sample("--per-id", 40, "--steps", 100, "--batch-size", 4, "--dry-run").json()["plan"]
    assert plan["counts"]["images_done"] == len(done)


def test_killed_several_times_the_files_are_those_of_one_run(ldm, contexts, tmp_path, sample):
    settings = ("--per-id", 8, "--steps", 20, "--batch-size", 3)
    assert sample(*settings, out="whole").code == 0
    for images in (2, 15):
        process = spawn("sample", "--ldm", ldm, "--contexts", contexts, "--out", tmp_path / "killed", "--device", "cpu",
                        "--assume-embedder", EMBEDDER, *settings)
        _wait_for_images(tmp_path / "killed", images)
        process.kill()
        process.communicate()
        assert not (tmp_path / "killed" / "facesyn.json").exists()
    ran = sample(*settings, out="killed")
    assert ran.code == 0, ran.err
    assert "taking over" in ran.err
    assert len(digests(tmp_path / "whole")) == 40
    assert 0 < ran.json()["made_now"] < 40
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert header(tmp_path / "killed")["digest"] == header(tmp_path / "whole")["digest"]
    assert not list((tmp_path / "killed").rglob(".tmp-*"))


@pytest.mark.parametrize("workers", [1, 3])
def test_cores_do_not_change_a_bit(sample, tmp_path, workers):
    sample("--per-id", 4, "--batch-size", 3)
    before = torch.get_num_threads()
    torch.set_num_threads(3 - before if before < 3 else 1)
    try:
        sample("--per-id", 4, "--batch-size", 3, f"workers={workers}", out="other")
    finally:
        torch.set_num_threads(before)
    assert digests(tmp_path / "other") == digests(tmp_path / "out")


def _wait_for_images(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*/*.png"))) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(folder.glob("*/*.png"))) >= count


def _damaged(folder: Path, target: Path, **changes) -> Path:
    shutil.copytree(folder, target)
    config = {**read_config(target), **changes}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_wrong_inputs(assert_refused, ldm, contexts, tmp_path):
    def refused(*arguments, says, ldm=ldm, contexts=contexts):
        assert_refused(
            "sample", "--ldm", ldm, "--contexts", contexts, "--out", tmp_path / "out", "--assume-embedder", EMBEDDER,
            *arguments, says=says,
        )
        assert not (tmp_path / "out").exists()

    np.save(tmp_path / "wide.npy", np.ones((2, 512), np.float32))
    np.save(tmp_path / "noise.npy", np.zeros((5, 2, 3, 8, 8), np.float32))
    np.save(tmp_path / "integers.npy", np.zeros((5, 2, 3, 6, 6), np.int64))
    (tmp_path / "text.ckpt").write_text("no weights")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "facesyn.begun.json").write_text(
        json.dumps({"kind": "Weights", "command": "train-ldm", "config": {}, "parents": {}})
    )
    refused("--ids", 6, says=("ids is 6", "holds 5 contexts"))
    refused("--ids", 0, says="ids: ")
    refused(contexts=tmp_path / "nowhere", says=("nowhere does not exist", "facesyn gen-contexts"))
    refused(ldm=tmp_path / "nowhere", says=("nowhere does not exist", "facesyn train-ldm"))
    refused(ldm=tmp_path / "text.ckpt", says="text.ckpt")
    refused(ldm=tmp_path / "begun", says=("is unfinished", "facesyn train-ldm"))
    refused(contexts=tmp_path / "wide.npy", says=("contexts of 512 numbers", "takes 8"))
    refused("--shard", "3/2", says=("shard", "1 <= i <= n"))
    refused("--scheduler", "dddim", says=("scheduler", "did you mean 'ddim'"))
    refused("--scheduler", "ddim-admis", "--steps", 30, says="divides 1000, got 30; the nearest is 25")
    refused("--steps", 1001, says="1001")
    refused("guidance.scale=2", says="guidance.scale")
    refused("jpeg_quality=90", says="jpeg_quality belongs to format jpeg")
    refused(f"noise.file={tmp_path / 'noise.npy'}", "--per-id", 2,
            says=("5 x 2 x 3 x 6 x 6 was expected", "found 5 x 2 x 3 x 8 x 8"))
    refused(f"noise.file={tmp_path / 'integers.npy'}", "--per-id", 2, says="found int64")
    refused(f"noise.file={tmp_path / 'text.ckpt'}", "--per-id", 2, says="is not a float .npy")
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04" + b"x" * 100)
    refused(f"noise.file={tmp_path / 'torn.zip'}", "--per-id", 2, says="is not a float .npy")
    np.save(tmp_path / "none.npy", np.zeros((0, 8), np.float32))
    refused(contexts=tmp_path / "none.npy", says="holds no contexts")
    refused("--assume-embedder", OTHER, says=("different recognizers (sha256:aaaaaaaaaaaa", "sha256:bbbbbbbbbbbb"))
    refused("--device", "cuda:99", says="cuda:99")
    refused("--precision", "fp8", says="precision")
    refused("batch_size=most", says="batch_size: a number of images from 1, or auto, is expected")
    refused("--batch-size", 0, says="batch_size: a number of images from 1")
    refused("batch_size=auto", "--shard", "1/2", says="need the same batch_size")
    refused("compile=true", "--device", "cpu", says="compile=true needs a CUDA device")
    refused("cuda_graphs=true", "--device", "cpu", says="cuda_graphs=true needs a CUDA device")
    refused(ldm=_damaged(ldm, tmp_path / "no-decoder", autoencoder=None), says="name it with --autoencoder")
    refused(ldm=_damaged(ldm, tmp_path / "other-output", prediction="noise"), says="'epsilon'")
    refused(ldm=_damaged(ldm, tmp_path / "wrong-width", denoiser={**TINY, "channels": 64}), says="does not fit")
    refused("--autoencoder", tmp_path / "text.ckpt", says="text.ckpt")
    unconditional = {**TINY, "conditioning": "unconditional"}
    write_weights(
        tmp_path / "unconditional", ConditionalUNet(UnetConfig(**unconditional)).state_dict(),
        {**read_config(ldm), "denoiser": unconditional},
    )
    refused(ldm=tmp_path / "unconditional", says="unconditional LDM")


def test_given_noise_that_is_not_finite_is_named(assert_refused, ldm, contexts, tmp_path):
    noise = np.zeros((5, 2, 3, 6, 6), np.float32)
    noise[1, 1, 0, 0, 0] = np.nan
    np.save(tmp_path / "noise.npy", noise)
    assert_refused(
        "sample", "--ldm", ldm, "--contexts", contexts, "--out", tmp_path / "out", "--assume-embedder", EMBEDDER,
        "--per-id", 2, f"noise.file={tmp_path / 'noise.npy'}", says=("noise.file", "image 1/1 is not finite"),
    )


def test_contexts_that_have_grown_make_the_images_grow(run_cli, ldm, tmp_path):
    """Also without --ids: all contexts means those that are there now."""
    wide = {**TINY, "context_size": 512}
    unet = fill_state(ConditionalUNet(UnetConfig(**wide)))
    write_weights(tmp_path / "2-ldm", unet.state_dict(), {**read_config(ldm), "denoiser": wide, "embedding_size": 512})
    for count in (2, 3):
        assert run_cli("gen-contexts", "--source", "sphere", "--count", count, "--work", tmp_path).code == 0
        ran = run_cli("sample", "--work", tmp_path, "--per-id", 2, "--steps", 2, "--device", "cpu", "--json")
        assert ran.code == 0, ran.err
        assert (ran.json()["identities"], ran.json()["made_now"]) == (count, 4 if count == 2 else 2)
    assert len(digests(tmp_path / "4-samples")) == 6


@pytest.mark.parametrize("name", ["../up", "/root", ".hidden", "a/../../b", "", "a\0b"])
def test_identities_that_are_no_folder_names_are_refused(name):
    vectors = np.eye(2, 8, dtype=np.float32)
    contexts = ContextSet(["fine", name], vectors, [{}, {}], [None] * 2, None, Path("contexts"), "", "")
    assert choose_identities(contexts, 1) == ["fine"]
    with pytest.raises(UserError, match="cannot be a folder name"):
        choose_identities(contexts, None)


def test_an_identity_named_twice_is_refused():
    contexts = ContextSet(["a", "a"], np.eye(2, 8), [{}, {}], [None] * 2, None, Path("contexts"), "", "")
    with pytest.raises(UserError, match="names 1 identities twice"):
        choose_identities(contexts, None)


def test_a_changed_setting_or_input_is_refused_with_the_difference(sample, tmp_path, contexts, assert_refused, ldm):
    sample("--per-id", 2)
    before = digests(tmp_path / "out")

    def refused(*arguments, says, contexts=contexts):
        assert_refused("sample", "--ldm", ldm, "--contexts", contexts, "--out", tmp_path / "out", "--steps", 3,
                       "--assume-embedder", EMBEDDER, *arguments, says=says)

    refused("--per-id", 1, says="per_id 2 1 (can only be raised)")
    refused("--per-id", 2, "--seed", 1, says="seed 0 1")
    refused("--per-id", 2, "--steps", 4, says="scheduler.steps 3 4")
    np.save(tmp_path / "other.npy", np.ones((5, 8), np.float32))
    refused("--per-id", 2, contexts=tmp_path / "other.npy", says="input contexts")
    assert digests(tmp_path / "out") == before


def test_numbers_that_are_not_finite_are_one_line(run_cli, ldm, contexts, tmp_path):
    target = _damaged(ldm, tmp_path / "huge", latent_std=[1e38, 1e38, 1e38])
    ran = run_cli("sample", "--ldm", target, "--contexts", contexts, "--out", tmp_path / "out", "--per-id", 1,
                  "--assume-embedder", EMBEDDER, "--steps", 3, "--device", "cpu")
    assert ran.code == 2
    assert ran.err.count("error: ") == 1
    assert "not finite" in ran.err
    assert not (tmp_path / "out" / "facesyn.json").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(sample, tmp_path, monkeypatch):
    import errno

    from facesyn_cli.artifacts import atomic_files

    replace, written = atomic_files.os.replace, []

    def full(origin, target):
        if str(target).endswith(".png"):
            written.append(target)
            if len(written) > 5:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(origin, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.os, "replace", full)
        ran = sample("--per-id", 3, "--batch-size", 2)
    assert ran.code == 2
    assert ran.err.count("error: ") == 1
    assert "no space left" in ran.err
    assert len(digests(tmp_path / "out")) == 5
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    assert sample("--per-id", 3, "--batch-size", 2).json()["made_now"] == 10


# the strip


def test_a_strip_shows_the_latest_images_and_is_none(sample, tmp_path):
    assert sample("--per-id", 3).code == 0
    with Image.open(tmp_path / "out.strip.png") as picture:
        assert picture.size == (3 * 66 - 2, 5 * 66 - 2)
    assert len(ImageSet.open(tmp_path / "out").entries) == 15
    assert sample("--per-id", 3, "strip_every=0", out="without").code == 0
    assert not (tmp_path / "without.strip.png").exists()
    assert digests(tmp_path / "without") == digests(tmp_path / "out")
    assert header(tmp_path / "without")["digest"] == header(tmp_path / "out")["digest"]
    for part in ("1/2", "2/2"):
        assert sample("--per-id", 3, "--batch-size", 4, "--shard", part, out="parts").code == 0
    assert {path.name for path in tmp_path.glob("parts.strip*.png")} == {"parts.strip-1.png", "parts.strip-2.png"}
    assert len(ImageSet.open(tmp_path / "parts").entries) == 15


def test_a_contact_sheet_shows_small_sets_and_is_no_image_of_them(sample, tmp_path):
    ran = sample("--per-id", 3)
    sheet = tmp_path / "out.contact_sheet.png"
    assert f"contact sheet: {sheet}" in ran.err
    with Image.open(sheet) as picture:
        assert picture.size == (3 * 112, 5 * 112)
    assert len(ImageSet.open(tmp_path / "out").entries) == 15
    before = sheet.read_bytes()
    sheet.unlink()
    assert sample("--per-id", 3).code == 0
    assert sheet.read_bytes() == before, "missing, it is made again"
    assert sample("--per-id", 4).code == 0
    with Image.open(sheet) as picture:
        assert picture.size == (4 * 112, 5 * 112), "it grows with the set"


def test_other_readers_find_the_images_of_the_set_and_no_others(sample, tmp_path, monkeypatch):
    import datasets
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    assert sample("--per-id", 3).code == 0
    assert len(list((tmp_path / "out").glob("**/*.png"))) == 15, "as pytorch-fid and torchvision list a folder"
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows.features["label"].names == list("01234") and sorted(rows["label"]) == [k // 3 for k in range(15)]


def test_pictures_of_earlier_versions_are_moved_out_of_the_folder(sample, tmp_path):
    assert sample("--per-id", 3).code == 0
    names = ("contact_sheet.png", "strip.png", "strip-2.png")
    for name in names:
        shutil.copy(tmp_path / "out.contact_sheet.png", tmp_path / "out" / name)
    shutil.copy(tmp_path / "out/0/0.png", tmp_path / "out/strip-3.png")  # somebody's own
    assert sample("--per-id", 3).code == 0
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["strip-3.png"]
    assert all((tmp_path / f"out.{name}").is_file() for name in names)


def test_a_contact_sheet_of_a_large_set_is_made_when_asked_for(sample, tmp_path, monkeypatch):
    monkeypatch.setattr("facesyn_cli.stages.sample._FEW", 9)
    assert sample("--per-id", 2).code == 0
    assert not (tmp_path / "out.contact_sheet.png").exists()
    assert sample("--per-id", 2, "--contact-sheet").code == 0
    assert (tmp_path / "out.contact_sheet.png").is_file()
    assert sample("--per-id", 1, "--no-contact-sheet", out="small").code == 0
    assert not (tmp_path / "small.contact_sheet.png").exists()


def test_guidance_in_one_pass_or_two_gives_the_same_images(sample, tmp_path):
    guided = ("guidance.name=cfg", "guidance.scale=2", "--ids", 2, "--per-id", 3, "--batch-size", 4)
    for out, word in (("default", "seed=0"), ("one", "joint_guidance=true"), ("two", "joint_guidance=false")):
        ran = sample(*guided, word, "fused_qkv=true", out=out)
        assert ran.code == 0, ran.err
    assert digests(tmp_path / "default") == digests(tmp_path / "one")  # on a CPU
    assert abs(pixels(tmp_path / "one") - pixels(tmp_path / "two")).max() <= 1
    ran = sample(*guided, "joint_guidance=false", "fused_qkv=false", out="one")
    assert ran.code == 0 and "joint_guidance was True, is False" in ran.err


def test_the_contact_sheet_of_a_smaller_set_is_replaced(sample, tmp_path):
    out = tmp_path / "out"
    sheet = picture_path(out, SHEET)
    assert sample("--ids", 2, "--per-id", 1).code == 0
    small = sheet.read_bytes()
    assert sample("--ids", 3, "--per-id", 1).code == 0
    whole, header = sheet.read_bytes(), (out / "facesyn.json").stat()
    assert whole != small
    sheet.write_bytes(small)  # killed between the header and the sheet
    os.utime(sheet, ns=(header.st_mtime_ns - 1000, header.st_mtime_ns - 1000))
    assert sample("--ids", 3, "--per-id", 1).json()["made_now"] == 0
    assert sheet.read_bytes() == whole
    before = sheet.stat().st_mtime_ns
    assert sample("--ids", 3, "--per-id", 1).code == 0
    assert sheet.stat().st_mtime_ns == before
