"""Recognition of published files by names and shapes. Tensors are one number spread over the shape."""

from __future__ import annotations

import json
import re

import pytest
import torch
from fill import load_golden, load_keys, skeleton

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.diffusion.schedule import NoiseSchedule, build_schedule, describe_betas, ldm_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.detect_architecture import detect
from facesyn_cli.plugins import registry
from facesyn_cli.training.published_export import schedule_buffers

PREFIXES = ["", "eps_model.", "module.eps_model.", "_module.eps_model.", "_module.module.eps_model."]
PUBLISHED = {
    "ir18": ("backbone", "ir-18"), "ir50": ("backbone", "ir-50"), "ir101": ("backbone", "ir-101"),
    "irse50": ("backbone", "ir-se-50"), "elastic_iresnet50": ("backbone", "iresnet-50"),
    "elastic_iresnet100": ("backbone", "iresnet-100"),
    "ldm_unet_ca": ("denoiser", "idiff-unet"), "ldm_unet_cond_adagn": ("denoiser", "idiff-unet"),
    "ldm_unet_uncond_adagn": ("denoiser", "idiff-unet"),
    "vq_encoder": ("autoencoder", "vq-f4"), "vq_decoder": ("autoencoder", "vq-f4"),
}


def _tensors(keys: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(()).expand(shape) for key, shape in keys.items()}


def _published(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in _tensors(load_keys(name)).items()}


def _schedule(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + key: torch.from_numpy(value) for key, value in load_golden("schedule").items()}


def _of_plugin(kind: str, settings: dict) -> dict[str, torch.Tensor]:
    module = skeleton(kind, **settings)
    return _tensors({key: tuple(value.shape) for key, value in module.state_dict().items()})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_recognized_with_their_settings(name):
    found = detect(_published(name), "file")
    kind, plugin = PUBLISHED[name]
    assert (found.kind, found.name, set(found.tensors)) == (kind, plugin, set(load_keys(name)))
    default = registry.configure(kind, {"name": plugin})
    cfg = registry.configure(kind, {"name": plugin, **found.settings})
    changed = {key: getattr(cfg, key) for key in type(cfg).model_fields if getattr(cfg, key) != getattr(default, key)}
    assert changed == {
        "ldm_unet_cond_adagn": {"conditioning": "adagn"},
        "ldm_unet_uncond_adagn": {"conditioning": "unconditional"},
        "vq_encoder": {"part": "encoder"},
        "vq_decoder": {"part": "decoder"},
    }.get(name, {})


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("with_schedule", [False, True])
def test_denoisers_under_every_prefix(prefix, with_schedule):
    tensors = _published("ldm_unet_ca", prefix)
    if with_schedule:
        tensors |= _schedule(prefix.removesuffix("eps_model."))
    found = detect(tensors, "file")
    assert set(found.tensors) == set(load_keys("ldm_unet_ca"))
    linear = {"num_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    assert found.schedule == (linear if with_schedule else {})


@pytest.mark.parametrize("name", ["ir50", "elastic_iresnet50"])
def test_backbones_of_a_data_parallel_wrapper(name):
    found = detect(_published(name, "module."), "file")
    assert (found.name, set(found.tensors)) == (PUBLISHED[name][1], set(load_keys(name)))


def test_prefixes_are_taken_off_at_the_start_only():
    tensors = _published("ldm_unet_ca", "eps_model.")
    tensors["eps_model.down.eps_model.0"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"1 unexpected \(down\.eps_model\.0\)"):
        detect(tensors, "file")
    mixed = _published("ldm_unet_ca")
    mixed["eps_model.final.bias"] = mixed.pop("final.bias")
    with pytest.raises(UserError, match=r"1 missing \(final\.bias\); 1 unexpected \(eps_model\.final\.bias\)"):
        detect(mixed, "file")


def test_whole_autoencoders():
    whole = _published("vq_encoder") | _published("vq_decoder")
    loss = {"loss.discriminator.main.0.weight": torch.zeros(1), "loss.logvar": torch.zeros(1)}
    ldm = {"betas": torch.zeros(1000), "scale_factor": torch.ones(()), "model.diffusion_model.x": torch.zeros(1),
           "model_ema.decay": torch.zeros(1), "cond_stage_model.y": torch.zeros(1)}
    inside = {f"first_stage_model.{key}": value for key, value in (whole | loss).items()} | ldm
    for tensors in (whole, whole | loss, inside):
        found = detect(tensors, "file")
        assert (found.settings["part"], set(found.tensors)) == ("both", set(whole))
        assert found.title == "a vq-f4 autoencoder"
    beside = detect({**inside, "other.z": torch.zeros(1)}, "file").left_out
    assert {"other.z", "betas", "first_stage_model.loss.logvar"} <= set(beside)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("denoiser", {"name": "idiff-unet", "in_channels": 16, "channels": 64, "multipliers": (1, 3, 1, 2),
                      "attention": (True, False, True, False), "head_channels": 16, "num_blocks": 1,
                      "context_size": 128, "context_width": 64, "learn_empty_context": True}),
        ("denoiser", {"name": "idiff-unet", "channels": 32, "multipliers": (2,), "attention": (True,), "num_blocks": 3,
                      "conditioning": "adagn", "context_width": 32}),
        ("denoiser", {"name": "idiff-unet", "channels": 64, "conditioning": "unconditional"}),
        ("autoencoder", {"name": "vq-f4", "channels": 32, "multipliers": (1, 3), "num_blocks": 1, "latent_channels": 4,
                         "codebook_size": 10}),
        ("backbone", {"name": "ir-tiny", "widths": (8, 24), "blocks": (2, 1), "stem_stride": 1, "embedding_size": 64}),
        ("backbone", {"name": "ir-tiny", "widths": (64, 128, 256, 512), "blocks": (2, 2, 2, 2), "stem_stride": 2}),
        ("backbone", {"name": "ir-34", "embedding_size": 256}),
        ("backbone", {"name": "ir-se-18"}),
        ("backbone", {"name": "iresnet-34", "embedding_size": 128}),
    ],
)
def test_settings_follow_from_shapes(kind, settings):
    found = detect(_of_plugin(kind, settings), "file")
    assert registry.configure(kind, {"name": found.name, **found.settings}) == registry.configure(kind, settings)


def test_batch_counters_may_be_absent_altogether():
    tensors = {key: value for key, value in _published("ir18").items() if not key.endswith("num_batches_tracked")}
    found = detect(tensors, "file")
    assert set(found.tensors) == set(load_keys("ir18"))
    counters = {value.dtype for key, value in found.tensors.items() if key.endswith("num_batches_tracked")}
    assert counters == {torch.int64}


def test_a_schedule_is_checked_and_read():
    bare = _published("ldm_unet_ca", "eps_model.")
    half = build_schedule("linear", 500)  # of betas from 2e-4 to 0.04, as published for 500 steps
    found = detect(bare | {"betas": half.betas}, "file").schedule
    assert found == {"num_timesteps": 500, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    assert torch.allclose(_schedule_of(found).betas, half.betas, rtol=1e-4)  # six digits of each end are kept
    for name in load_golden("schedule"):
        wrong = _schedule()
        wrong[name] = wrong[name] * 1.01
        if name != "betas":
            with pytest.raises(UserError, match=f"file: schedule buffer {name} does not follow from the betas"):
                detect(bare | wrong, "file")
    with pytest.raises(UserError, match="shape"):
        detect(bare | {"betas": torch.zeros(2, 2)}, "file")
    with pytest.raises(UserError, match="betas is no noise schedule"):
        detect(bare | {"betas": torch.tensor([0.1, float("nan"), 0.3])}, "file")
    with pytest.raises(UserError, match="alphas without betas or alpha_bars"):
        detect(bare | {"alphas": torch.full((4,), 0.9)}, "file")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_schedule_that_is_not_linear_is_taken_as_it_is(prefix):
    """A cosine, whose betas are clipped, and one of no name; the chain of alpha_bars is that of the file."""
    warped = torch.linspace(0.01, 0.3, 1000) ** 3 + 1e-5
    for name, betas in (("cosine", build_schedule("cosine").betas), ("1000 betas from 1.1e-05 to 0.02701", warped)):
        made = build_schedule(betas.tolist())
        buffers = {prefix + key: value for key, value in schedule_buffers(made).items()}
        found = detect(_published("ldm_unet_ca", f"{prefix}eps_model.") | buffers, "file")
        assert found.left_out == ()
        settings = LdmSettings.published({"name": "idiff-unet"}).model_copy(update=found.schedule)
        settings = LdmSettings.from_json(json.loads(settings.model_dump_json()), "config.json")
        assert torch.equal(ldm_schedule(settings).betas, betas)
        assert torch.equal(ldm_schedule(settings).alpha_bars, made.alpha_bars)
        assert describe_betas(settings.beta_schedule) == name
        only_bars = detect(_published("ldm_unet_ca") | {"alpha_bars": made.alpha_bars.double()}, "file").schedule
        # alpha_bars are exponentials of sums of logarithms in float32, whose rounding grows with the sum
        tolerance = 2**-24 * (4 + 2 * abs(made.alpha_bars[-1].log().item()))
        assert torch.allclose(_schedule_of(only_bars).betas, betas, rtol=0, atol=tolerance)


def test_betas_that_fit_no_timesteps_are_refused():
    for betas in ([0.1, 0.2], [0.1, 0.2, 1.5]):
        with pytest.raises(UserError, match="beta"):
            build_schedule(betas, 3)
        with pytest.raises(UserError, match="beta_schedule"):
            settings = {"denoiser": {"name": "idiff-unet"}, "beta_schedule": betas, "num_timesteps": 3}
            LdmSettings.from_json(settings, "config.json")


def _schedule_of(settings: dict) -> NoiseSchedule:
    return ldm_schedule(LdmSettings.published({"name": "idiff-unet"}).model_copy(update=settings))


def _without(name: str, *keys: str) -> dict[str, torch.Tensor]:
    tensors = _published(name)
    for key in keys:
        del tensors[key]
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_without("ir50", "body.7.res_layer.1.weight"),
         "file looks like an ir-50 backbone, but does not fit: 1 missing (body.7.res_layer.1.weight)"),
        (_without("ir50", "input_layer.0.weight"),
         "the nearest is backbone ir-50: 466 of its 467 tensors match; 1 missing (input_layer.0.weight)"),
        (_without("ir50", "body.7.res_layer.4.weight"), "nearest is backbone ir-50: 466 of its 467 tensors match"),
        (_without("ldm_unet_ca", "down.3.res.conv1.weight", "final.bias"),
         "the nearest is denoiser idiff-unet (ca): 840 of its 842 tensors match; "
         "2 missing (down.3.res.conv1.weight, final.bias)"),
        (_without("vq_decoder", "quantize.embedding.weight"),
         "the nearest is autoencoder vq-f4 (decoder): 114 of its 115 tensors match"),
        (_without("elastic_iresnet100", "bn2.bias"), "looks like an iresnet-100 backbone, but does not fit: 1 missing"),
        ({**_published("ir18"), "output_layer.4.running_mean": torch.zeros(7)},
         "1 of another shape (output_layer.4.running_mean [7] instead of [512])"),
        ({**_published("ir18"), "input_layer.0.weight": torch.zeros(3)}, "input_layer.0.weight [3] instead of"),
        ({**_published("ldm_unet_ca"), "image_proj.weight": torch.zeros(3)}, "nearest is denoiser idiff-unet (ca)"),
        ({"0.weight": torch.zeros(64, 3, 3, 3), "1.conv.0.weight": torch.zeros(64, 64, 3, 3)},
         "file looks like a half of a TAESD in its author's own layout, which is not read; its folder"),
        ({"kernel": torch.zeros(512, 10)}, "file holds no network known here; its tensors are called kernel"),
    ],
)
def test_wrong_files_say_what_they_look_like(tensors, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        detect(tensors, "file")
    assert "\n" not in str(error.value)
