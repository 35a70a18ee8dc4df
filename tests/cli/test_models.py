"""`facesyn models`: what a file is, its way through the formats and back, and wrong files."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from fill import fill_state, golden_uniform, skeleton
from guided_checkpoint import small_tensors, write_small
from tolerance import products_of, rounding

from facesyn_cli.artifacts.lock import Lock
from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.diffusion.schedule import build_schedule, ldm_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.models.catalog import CATALOG
from facesyn_cli.models.convert.guided_diffusion import load_guided_pipeline
from facesyn_cli.models.loading import latents_of, load_autoencoder, load_backbone, load_denoiser
from facesyn_cli.stages.models import list_weights
from facesyn_cli.training.published_export import schedule_buffers

UNET = {"name": "idiff-unet", "channels": 32, "multipliers": [1], "attention": [True], "num_blocks": 1,
        "context_width": 32}
KL = {"channels": 32, "multipliers": [1, 1, 1, 1], "num_blocks": 1}
VQ = {"name": "vq-f4", "channels": 32, "multipliers": [1, 2], "num_blocks": 1, "codebook_size": 64}


def save(path: Path, tensors: dict) -> Path:
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory) -> Path:
    network = fill_state(skeleton("backbone", name="ir-18"))
    tensors = {f"module.{key}": value for key, value in network.state_dict().items()}
    return save(tmp_path_factory.mktemp("recognizer") / "ir.pth", tensors)


@pytest.fixture
def unet(tmp_path) -> Path:
    network = fill_state(skeleton("denoiser", **UNET, learn_empty_context=True))
    return save(tmp_path / "ui.ckpt", {f"module.eps_model.{key}": value for key, value in network.state_dict().items()})


@pytest.fixture
def vq(tmp_path) -> Path:
    return save(tmp_path / "vq.pt", fill_state(skeleton("autoencoder", **VQ)).state_dict())


def same_tensors(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_list(run_cli):
    ran = run_cli("models")
    assert ran.code == 0 and all(name in ran.out for name in CATALOG)
    listed = run_cli("models", "list", "--json").json()
    assert listed == list_weights() and all(entry["license"] and entry["where"] for entry in listed.values())


def test_inspect_tells_what_a_recognizer_is(run_cli, recognizer):
    seen = run_cli("models", "inspect", recognizer, "--json").json()
    assert (seen["kind"], seen["architecture"], seen["prefix"]) == ("backbone", "ir-18", "module.")
    network = skeleton("backbone", name="ir-18")
    assert seen["parameters"] == sum(p.numel() for p in network.parameters())
    assert seen["precision"]["float32"] + seen["precision"]["int64"] == seen["values"]
    assert seen["format"] == "torch" and seen["tensors"] == len(network.state_dict())


def test_inspect_tells_prefix_and_precision_of_a_denoiser(run_cli, tmp_path, unet):
    tensors = {key: value.half() for key, value in read_tensors(unet).items()}
    seen = run_cli("models", "inspect", save(tmp_path / "half.ckpt", tensors), "--json").json()
    assert (seen["kind"], seen["prefix"]) == ("denoiser", "module.eps_model.")
    assert seen["settings"]["learn_empty_context"] and list(seen["precision"]) == ["float16"]


def test_inspect_shows_every_kind_of_file_in_words(run_cli, tmp_path, recognizer, unet, vq):
    head = save(tmp_path / "HEAD_Epoch_1_Split_0_checkpoint.pth", {"Syn": {"kernel": torch.zeros(4, 3)}})
    for path, words in {recognizer: "ir-18", unet: "idiff-unet", vq: "vq-f4", head: "files: 1"}.items():
        ran = run_cli("models", "inspect", path)
        assert ran.code == 0 and words in ran.out, ran.err


def test_inspect_names_the_nearest_network(run_cli, tmp_path, recognizer):
    tensors = read_tensors(recognizer)
    tensors["module.output_layer.3.bias"] = torch.zeros(7)
    seen = run_cli("models", "inspect", save(tmp_path / "odd.pth", tensors), "--json").json()
    assert seen["kind"] == "unknown"
    assert "ir-18" in seen["nearest"] and "output_layer.3.bias [7] instead of [512]" in seen["nearest"]


def test_recognizer_to_ours_and_back(run_cli, tmp_path, recognizer):
    assert run_cli("models", "convert", recognizer, "--out", tmp_path / "ours").code == 0
    assert load_backbone(tmp_path / "ours").name == "ir-18"
    assert run_cli("models", "convert", tmp_path / "ours", "--out", tmp_path / "back", "--to", "published").code == 0
    original = {key.removeprefix("module."): value for key, value in read_tensors(recognizer).items()}
    assert same_tensors(read_tensors(tmp_path / "back" / "backbone.pth"), original)


def test_denoiser_to_ours_and_back(run_cli, tmp_path, unet):
    assert run_cli("models", "convert", unet, "--out", tmp_path / "ours").code == 0
    ours = load_denoiser(tmp_path / "ours")
    assert ours.config == load_denoiser(unet).config and ours.module.cfg.learn_empty_context
    assert run_cli("models", "convert", tmp_path / "ours", "--out", tmp_path / "back", "--to", "published").code == 0
    back = read_tensors(tmp_path / "back" / "ema_averaged_model.ckpt")
    assert len(back) == len(read_tensors(unet)) + 8 and list(back)[-8:][0] == "betas"
    original = {key.removeprefix("module."): value for key, value in read_tensors(unet).items()}
    assert same_tensors({key: back[key] for key in original}, original)
    assert load_denoiser(tmp_path / "back" / "ema_averaged_model.ckpt").config == ours.config


def test_a_denoiser_of_normalized_latents_has_no_published_form(run_cli, assert_refused, tmp_path, unet):
    run_cli("models", "convert", unet, "--out", tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config |= {"latent_mean": [0.1, 0, 0], "latent_std": [1, 1, 1]}
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    assert_refused("models", "convert", tmp_path / "ours", "--out", tmp_path / "back", "--to", "published",
                   says="latent_mean")
    assert not (tmp_path / "back").exists()


def test_autoencoder_to_ours_and_back_in_halves(run_cli, tmp_path, vq):
    assert run_cli("models", "convert", vq, "--out", tmp_path / "ours").code == 0
    pixels = golden_uniform(1, (1, 3, 16, 16))
    with torch.inference_mode():
        expected = load_autoencoder(vq).encode(pixels)
        assert torch.equal(load_autoencoder(tmp_path / "ours").encode(pixels), expected)
    assert run_cli("models", "convert", tmp_path / "ours", "--out", tmp_path / "back", "--to", "published").code == 0
    halves = [read_tensors(tmp_path / "back" / f"first_stage_{part}_state_dict.pt") for part in ("encoder", "decoder")]
    assert not halves[0].keys() & halves[1].keys()
    assert same_tensors(halves[0] | halves[1], read_tensors(vq))
    assert run_cli("models", "verify", tmp_path / "back").code == 0


def test_a_copy_in_half_precision_is_half_as_large_and_loads_in_float32(run_cli, tmp_path, recognizer):
    for precision in ("fp32", "fp16"):
        words = ("--out", tmp_path / precision, "--precision", precision, "--json")
        ran = run_cli("models", "convert", recognizer, *words)
        assert ran.code == 0 and ran.json()["precision"] == precision, ran.err
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("fp16", "fp32")]
    assert 0.5 < sizes[0] / sizes[1] < 0.51
    networks = [load_backbone(tmp_path / name).module for name in ("fp16", "fp32")]
    assert {value.dtype for value in networks[0].state_dict().values()} == {torch.float32, torch.int64}
    for half, full in zip(networks[0].state_dict().values(), networks[1].state_dict().values(), strict=True):
        assert torch.equal(half, full) if full.ndim < 2 else torch.equal(half, full.half().float())
    pixels = golden_uniform(2, (2, 3, 112, 112)) * 2 - 1
    with torch.inference_mode():
        cosines = torch.nn.functional.cosine_similarity(*[network(pixels) for network in networks])
    assert 0.999 < cosines.min() and not torch.equal(*[network.body[0].res_layer[1].weight for network in networks])

    back = run_cli("models", "convert", tmp_path / "fp16", "--out", tmp_path / "back", "--precision", "fp32")
    assert back.code == 0, back.err
    assert same_tensors(load_backbone(tmp_path / "back").module.state_dict(), networks[0].state_dict())
    assert (tmp_path / "back" / "model.safetensors").stat().st_size == sizes[1]


def test_denoiser_and_autoencoder_in_half_precision_keep_their_settings(run_cli, tmp_path, unet, vq):
    assert run_cli("models", "convert", unet, "--out", tmp_path / "ldm", "--precision", "fp16").code == 0
    half, full = load_denoiser(tmp_path / "ldm"), load_denoiser(unet)
    assert half.config == full.config
    inputs = golden_uniform(3, (2, 3, 8, 8)), torch.tensor([5, 500]), golden_uniform(4, (2, 512))
    with torch.inference_mode():
        expected = full.module(*inputs)
        assert 0 < (half.module(*inputs) - expected).abs().max() < 0.01 * expected.abs().max()

    assert run_cli("models", "convert", vq, "--out", tmp_path / "full").code == 0
    assert run_cli("models", "convert", tmp_path / "full", "--out", tmp_path / "half", "--precision", "fp16").code == 0
    latents = golden_uniform(5, (1, 3, 8, 8))
    half, full = (load_autoencoder(tmp_path / name) for name in ("half", "full"))
    with torch.inference_mode():
        expected = full.decode(latents)
        assert 0 < (half.decode(latents) - expected).abs().max() < 0.01 * expected.abs().max()
    originals = {load_autoencoder(vq).section["digest"], full.section["digest"]}  # an LDM of either may use the copy
    assert set(latents_of(tmp_path / "half")) == originals


def test_what_a_folder_says_of_itself_is_kept(run_cli, tmp_path, recognizer):
    run_cli("models", "convert", recognizer, "--out", tmp_path / "ours")
    config = tmp_path / "ours" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "distilled_from": "sha256:1"}))
    assert run_cli("models", "convert", tmp_path / "ours", "--out", tmp_path / "half", "--precision", "fp16").code == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text()) == json.loads(config.read_text())


def test_precision_belongs_to_safetensors_of_networks(assert_refused, tmp_path, recognizer):
    convert = ("models", "convert", recognizer, "--out", tmp_path / "out", "--precision")
    assert_refused(*convert, "fp8", says="expected one of fp32, fp16")
    assert_refused(*convert, "fp16", "--to", "published", says="--precision belongs to networks")
    head = save(tmp_path / "HEAD_Epoch_1_Split_0_checkpoint.pth", {"kernel": torch.zeros(4, 3)})
    out = ("--out", tmp_path / "out", "--precision", "fp16")
    assert_refused("models", "convert", head, *out, says="--precision belongs to networks")
    big = fill_state(skeleton("backbone", name="ir-tiny"))
    big.input_layer[0].weight.data[0] = 1e5
    file = save(tmp_path / "big.pth", big.state_dict())
    says = ("input_layer.0.weight holds 1e+05", "too large for half precision")
    assert_refused("models", "convert", file, *out, says=says)
    assert not (tmp_path / "out").exists()


def test_kl_autoencoder_to_ours_and_back(run_cli, tmp_path):
    tensors = fill_state(skeleton("autoencoder", name="kl-f8", **KL)).state_dict()
    file = save(tmp_path / "kl.ckpt", {"state_dict": tensors | {"loss.logvar": torch.zeros(())}})
    assert run_cli("models", "inspect", file, "--json").json()["architecture"] == "kl-f8"
    assert run_cli("models", "verify", file).code == 0
    assert run_cli("models", "convert", file, "--out", tmp_path / "ours").code == 0
    assert load_autoencoder(tmp_path / "ours").section["name"] == "kl-f8"
    assert run_cli("models", "convert", tmp_path / "ours", "--out", tmp_path / "back", "--to", "published").code == 0
    assert same_tensors(read_tensors(tmp_path / "back" / "model.ckpt"), tensors)


def test_guided_diffusion_to_a_pipeline_and_back(run_cli, assert_refused, tmp_path):
    file = write_small(tmp_path / "ffhq.pt")
    seen = run_cli("models", "inspect", file, "--json").json()
    assert (seen["kind"], seen["settings"]["image_size"]) == ("generator", 32)
    x, t = golden_uniform(1, (1, 3, 16, 16)), torch.tensor([420])
    with torch.inference_mode():
        out = load_guided_pipeline(file).unet(x, t).sample
    np.savez(tmp_path / "good.npz", x=x, t=t, out=out)
    np.savez(tmp_path / "off.npz", x=x, t=t, out=out + 1)
    assert "out" in run_cli("models", "verify", file, "--fixture", tmp_path / "good.npz", "--json").json()[
        "fixture_difference"]
    assert_refused("models", "verify", file, "--fixture", tmp_path / "off.npz", says="out is off by")
    assert run_cli("models", "convert", file, "--out", tmp_path / "pipeline").code == 0
    assert run_cli("models", "inspect", tmp_path / "pipeline", "--json").json()["architecture"] == "DDPMPipeline"
    words = ("models", "convert", tmp_path / "pipeline", "--out", tmp_path / "back", "--to", "published")
    assert run_cli(*words).code == 0
    assert same_tensors(read_tensors(tmp_path / "back" / "guided_diffusion.pt"), small_tensors())
    assert_refused("models", "convert", file, "--out", tmp_path / "x", "--to", "published", says="already")
    with pytest.raises(UserError, match="is a guided-diffusion UNet .* --generator"):
        load_denoiser(file)


def test_onnx_takes_any_batch_and_agrees(run_cli, tmp_path):
    network = fill_state(skeleton("backbone", name="ir-tiny"))
    file = save(tmp_path / "tiny.pth", network.state_dict())
    done = run_cli("models", "convert", file, "--out", tmp_path / "onnx", "--to", "onnx", "--json").json()
    tolerance = rounding(products_of(network))
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        pixels = golden_uniform(batch, (batch, 3, 112, 112))
        with torch.inference_mode():
            expected = network(pixels).numpy()
        (found,) = session.run(None, {"pixels": pixels.numpy()})
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * expected.std())
        assert done["largest_difference"] < tolerance * np.abs(expected).max()
    assert run_cli("models", "verify", tmp_path / "onnx" / "model.onnx").code == 0
    assert load_backbone(tmp_path / "onnx" / "model.onnx").module(pixels).shape == expected.shape
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack:
        pack.write(tmp_path / "onnx" / "model.onnx", "pack/rec.onnx")
    for path in (tmp_path / "pack.zip", tmp_path / "onnx", tmp_path / "onnx" / "model.onnx"):
        seen = run_cli("models", "inspect", path, "--json").json()
        assert seen["outputs"] == {"embedding": ["batch", 512]} and not seen["quantizes_dynamically"]
        assert seen["digest"] == done["files"]["model.onnx"]


def adaface(tensors: dict) -> dict:
    """A Lightning checkpoint: the network beside its head, by which AdaFace's are known."""
    inside = {f"model.{key}": value for key, value in tensors.items()}
    return {"state_dict": inside | {"head.kernel": torch.zeros(5, 2)}}


def test_adaface_is_read_as_bgr_and_written_so_that_it_takes_rgb(run_cli, tmp_path):
    network = fill_state(skeleton("backbone", name="ir-tiny"))
    file = save(tmp_path / "adaface.ckpt", adaface(network.state_dict()))
    assert run_cli("models", "inspect", file, "--json").json()["settings"]["channel_order"] == "bgr"
    pixels = golden_uniform(1, (2, 3, 112, 112))
    with torch.inference_mode():
        expected = network(pixels.flip(1))
        assert run_cli("models", "convert", file, "--out", tmp_path / "ours").code == 0
        assert torch.equal(load_backbone(tmp_path / "ours").module(pixels), expected)
        assert run_cli("models", "convert", file, "--out", tmp_path / "onnx", "--to", "onnx").code == 0
        found = load_backbone(tmp_path / "onnx" / "model.onnx").module(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(products_of(network), expected.std()))


def test_adaface_goes_to_the_flat_layout_in_rgb(run_cli, tmp_path, recognizer):
    tensors = {key.removeprefix("module."): value for key, value in read_tensors(recognizer).items()}
    file = save(tmp_path / "ada.ckpt", adaface(tensors))
    assert run_cli("models", "convert", file, "--out", tmp_path / "back", "--to", "published").code == 0
    tensors["input_layer.0.weight"] = tensors["input_layer.0.weight"].flip(1)
    assert same_tensors(read_tensors(tmp_path / "back" / "backbone.pth"), tensors)


def test_a_channel_order_that_no_file_tells_is_asked_for(run_cli, assert_refused, tmp_path):
    network = fill_state(skeleton("backbone", name="ir-tiny"))
    file = save(tmp_path / "a.ckpt", {f"model.{key}": value for key, value in network.state_dict().items()})
    assert run_cli("models", "inspect", file, "--json").json()["undecided"] == "channel_order"
    for action in (("convert", "--out", tmp_path / "x"), ("verify",)):
        assert_refused("models", action[0], file, *action[1:], says="nothing in the file tells its channel_order: give "
                       "--channel-order rgb, or bgr for weights of AdaFace")
    pixels = golden_uniform(1, (2, 3, 112, 112))
    for order, seen in (("rgb", pixels), ("bgr", pixels.flip(1))):
        assert run_cli("models", "convert", file, "--out", tmp_path / order, "--channel-order", order).code == 0
        with torch.inference_mode():
            assert torch.equal(load_backbone(tmp_path / order).module(pixels), network(seen))
    assert run_cli("models", "verify", file, "--channel-order", "bgr").code == 0
    assert_refused("models", "verify", file, "--channel-order", "grb", says="rgb or bgr was expected")


@pytest.mark.parametrize(("settings", "prefix", "back"), [
    ({"name": "ir-18", "variant": "face-evolve", "embedding_size": 8}, "_orig_mod.module.", ""),
    ({"name": "mbf", "embedding_size": 8}, "module.", ""),
    ({"name": "iresnet", "blocks": (1, 1, 1, 1), "embedding_size": 8, "variant": "magface"}, "features.module.",
     "features.module."),
])
def test_other_recognizers_to_ours_and_back(run_cli, tmp_path, settings, prefix, back):
    tensors = fill_state(skeleton("backbone", **settings)).state_dict()
    wrapped = {f"{prefix}{key}": value for key, value in tensors.items()}
    file = save(tmp_path / "a.pth", {"epoch": np.int64(3), "state_dict_backbone": wrapped,
                                     "state_dict_softmax_fc": {"weight": torch.zeros(3, 8)}})
    seen = run_cli("models", "inspect", file, "--json").json()
    assert (seen["architecture"], seen["prefix"], seen["place"]) == (settings["name"], prefix, "state_dict_backbone")
    assert seen["left_out"] == ["state_dict_softmax_fc"]
    assert run_cli("models", "verify", file).code == 0
    assert run_cli("models", "convert", file, "--out", tmp_path / "ours").code == 0
    pixels = golden_uniform(1, (1, 3, 112, 112))
    with torch.inference_mode():
        assert torch.equal(load_backbone(tmp_path / "ours").module(pixels), load_backbone(file).module(pixels))
    assert run_cli("models", "convert", tmp_path / "ours", "--out", tmp_path / "back", "--to", "published").code == 0
    assert same_tensors(read_tensors(tmp_path / "back" / "backbone.pth"),
                        {f"{back}{key}": value for key, value in tensors.items()})
    with torch.inference_mode():
        assert torch.equal(load_backbone(tmp_path / "back" / "backbone.pth").module(pixels),
                           load_backbone(file).module(pixels))


def test_a_denoiser_with_a_cosine_schedule_keeps_it(run_cli, tmp_path):
    network, schedule = fill_state(skeleton("denoiser", **UNET)), build_schedule("cosine")
    tensors = {f"eps_model.{key}": value for key, value in network.state_dict().items()} | schedule_buffers(schedule)
    file = save(tmp_path / "idiff.ckpt", tensors)
    seen = run_cli("models", "inspect", file, "--json").json()
    assert seen["noise_schedule"] == {"num_timesteps": 1000, "beta_schedule": "cosine"}
    assert run_cli("models", "convert", file, "--out", tmp_path / "ours").code == 0
    assert torch.equal(ldm_schedule(load_denoiser(tmp_path / "ours").config).betas, schedule.betas)
    assert run_cli("models", "convert", tmp_path / "ours", "--out", tmp_path / "back", "--to", "published").code == 0
    assert same_tensors(read_tensors(tmp_path / "back" / "ema_averaged_model.ckpt"), tensors)


def test_verify_compares_with_the_golden_fixture(run_cli, assert_refused, golden, tmp_path, recognizer):
    seen = run_cli("models", "verify", recognizer, "--fixture", golden / "backbone_ir18.npz", "--json").json()
    tolerance = rounding(products_of(skeleton("backbone", name="ir-18")))
    assert seen["finite"] and seen["fixture_difference"]["embedding"] < tolerance
    tensors = read_tensors(recognizer)
    tensors["module.output_layer.3.bias"] = tensors["module.output_layer.3.bias"] + 1
    assert_refused("models", "verify", save(tmp_path / "off.pth", tensors), "--fixture", golden / "backbone_ir18.npz",
                   says="embedding is off by")
    assert_refused("models", "verify", recognizer, "--fixture", golden / "vq.npz", says="embedding")


def test_verify_compares_denoisers_and_autoencoders(run_cli, assert_refused, tmp_path, unet, vq):
    x, context = golden_uniform(1, (2, 3, 8, 8)), golden_uniform(2, (2, 512))
    t = torch.tensor([3, 700])
    image, z = golden_uniform(3, (1, 3, 16, 16)), golden_uniform(4, (1, 3, 8, 8))
    with torch.inference_mode():
        network = load_denoiser(unet).module
        np.savez(tmp_path / "unet.npz", x=x, t=t, context=context, eps_cond=network(x, t, context),
                 eps_uncond=network(x, t, None))
        network = load_autoencoder(vq)
        np.savez(tmp_path / "vq.npz", image=image, latent=network.encode(image), z=z, decoded=network.decode(z) + 1)
    seen = run_cli("models", "verify", unet, "--fixture", tmp_path / "unet.npz", "--json").json()
    assert seen["fixture_difference"].keys() == {"eps_cond", "eps_uncond"}
    assert_refused("models", "verify", vq, "--fixture", tmp_path / "vq.npz", says="decoded is off by")


def test_verify_refuses_what_does_not_compute(assert_refused, tmp_path, recognizer):
    tensors = read_tensors(recognizer)
    tensors["module.output_layer.3.bias"][0] = torch.nan
    assert_refused("models", "verify", save(tmp_path / "nan.pth", tensors), says="not finite")
    dead = {key: torch.zeros_like(value) for key, value in read_tensors(recognizer).items()}
    assert_refused("models", "verify", save(tmp_path / "dead.pth", dead), says="same embedding")


def test_what_a_killed_conversion_left_is_cleared(run_cli, assert_refused, tmp_path, vq):
    (tmp_path / ".tmp-ours").mkdir()
    (tmp_path / ".tmp-ours" / "model.safetensors").write_bytes(b"half")
    with Lock(tmp_path, "convert-ours"):
        assert_refused("models", "convert", vq, "--out", tmp_path / "ours", says="is being written")
    assert run_cli("models", "convert", vq, "--out", tmp_path / "ours").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "vq.pt"]


def test_wrong_words(assert_refused, tmp_path, recognizer, unet):
    assert_refused("models", "inspct", recognizer, says="Did you mean 'inspect'")
    assert_refused("models", "inspect", says="Missing argument")
    assert_refused("models", "inspect", recognizer, "--out", tmp_path / "x", says="No such option: --out")
    assert_refused("models", "list", "lfw", says=("lfw is not in the list", "admis-ldm"))
    assert_refused("models", "list", "admis-ldm", recognizer, says="unexpected extra argument")
    assert_refused("models", "convert", recognizer, says="--out")
    assert_refused("models", "convert", recognizer, "--out", tmp_path, says="exists and was not made by facesyn")
    assert_refused("models", "convert", recognizer, "--out", tmp_path / "x", "--to", "caffe", says="safetensors")
    assert_refused("models", "convert", unet, "--out", tmp_path / "x", "--to", "onnx", says="a recognizer")
    assert_refused("models", "inspect", tmp_path / "nothing", says="does not exist")
    assert_refused("models", "inspect", tmp_path, says="no weights are known")
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "other"])
def test_damaged_files(assert_refused, tmp_path, recognizer, damage):
    data = recognizer.read_bytes()
    content = {"truncated": data[: len(data) // 2], "text": b"not weights\n" * 50, "empty": b"", "other": b"PK\3\4" * 9}
    (tmp_path / "bad.pth").write_bytes(content[damage])
    assert_refused("models", "inspect", tmp_path / "bad.pth", says="bad.pth")
    assert_refused("models", "convert", tmp_path / "bad.pth", "--out", tmp_path / "x", says="bad.pth")
    assert not (tmp_path / "x").exists()


def test_pull_from_an_address(run_cli, tmp_path, vq):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _quiet(tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        ran = run_cli("models", "pull", f"http://127.0.0.1:{server.server_port}/vq.pt?x=1", "--out", tmp_path / "got")
    finally:
        server.shutdown()
        server.server_close()
    assert ran.code == 0 and "no checksum was given" in ran.err
    assert (tmp_path / "got" / "vq.pt").read_bytes() == vq.read_bytes()


def _quiet(folder: Path) -> type:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            pass

    return Handler


def test_pull_says_where_to_get_it_and_when_it_is_offline(assert_refused, tmp_path):
    assert_refused("models", "pull", "uiface-ldm", says=("by hand", "Google Drive"))
    assert_refused("models", "pull", "unheard-of", says="facesyn models list")
    assert_refused("models", "pull", "sd-vae-ft-mse", "--out", tmp_path / "vae", says="does not come from the hub")
    assert_refused("models", "pull", "owner/name/net.onnx", "--out", tmp_path, says="does not come from the hub")
    assert_refused("models", "pull", "owner/name", "--sha256", "0" * 64, says="single file")
    assert_refused("models", "pull", "http://127.0.0.1:9/a.bin", "--out", tmp_path, says="cannot be reached")


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_the_same_conversion_again_is_finished_and_another_one_is_refused(run_cli, assert_refused, tmp_path, unet, vq):
    out = tmp_path / "made" / "ours"
    command = ("models", "convert", unet, "--out", out)
    (tmp_path / "made" / ".tmp-ours").mkdir(parents=True)  # a killed run leaves its folder, and an empty target
    (tmp_path / "made" / ".tmp-ours" / "model.safetensors").write_bytes(b"half")
    (out / ".tmp-x").mkdir(parents=True)
    (tmp_path / "made" / ".lock-convert-ours").write_text('{"host": "' + socket.gethostname() + '", "process": 4194304'
                                                          ', "started": "1"}')
    first = run_cli(*command, "--json")
    assert first.code == 0, first.err
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["ours"]
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "facesyn.json", "model.safetensors"]
    before = _state(out)
    again = run_cli(*command, "--json")
    assert again.code == 0 and again.json() == first.json() and "is finished already" in again.err
    assert_refused(*command, "--precision", "fp16", says="precision fp32 fp16")
    assert_refused(*command, "--to", "published", says="to safetensors published")
    assert_refused("models", "convert", vq, "--out", out, says=("input weights", "ui.ckpt", "vq.pt"))
    assert _state(out) == before
