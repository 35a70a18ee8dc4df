"""Sweep over the registry: plugins build from their defaults, run, and every parameter gets a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import BUILTIN

NEED_A_FILE = {"onnx", "diffusers"}
SMALL = {
    "idiff-unet": {"channels": 32, "multipliers": [1, 1], "attention": [False, True], "num_blocks": 1},
    "dit": {"in_channels": 3, "width": 16, "depth": 2, "heads": 2},
}


def build(kind: str, name: str, **settings: object):
    return registry.build(kind, registry.configure(kind, {"name": name, **settings}))


def assert_every_parameter_learns(module: torch.nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    learned = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    without = [name for name, p in learned if p.grad is None]
    assert not without, f"no gradient reaches {without}"
    broken = [name for name, p in learned if not torch.isfinite(p.grad).all()]
    assert not broken, f"gradient of {broken} is not finite"


@pytest.mark.parametrize("name", [n for n in BUILTIN["backbone"] if n not in NEED_A_FILE])
def test_backbone_builds_with_the_shape_its_name_says(name: str) -> None:
    with torch.device("meta"):
        backbone = build("backbone", name).eval()
        shape = (16, 14, 14) if name == "latent-ir" else (3, 112, 112)
        assert backbone(torch.zeros(2, *shape)).shape == (2, 512)


@pytest.mark.parametrize("name", ["ir-tiny", "ir-18", "ir-se-18", "iresnet-18", "mobilefacenet", "mbf"])
def test_backbone_learns(name: str) -> None:
    backbone = build("backbone", name).train()
    out = backbone(torch.randn(2, 3, 112, 112).clamp(-1, 1))
    assert out.shape == (2, 512) and torch.isfinite(out).all()
    assert_every_parameter_learns(backbone, (out * torch.randn_like(out)).sum())


@pytest.mark.parametrize("name", list(BUILTIN["head"]))
def test_head_learns(name: str) -> None:
    head = build("head", name).with_classes(7, 16)
    logits = head(torch.randn(4, 16), torch.tensor([0, 3, 6, 3]))
    assert logits.shape == (4, 7) and torch.isfinite(logits).all()
    assert_every_parameter_learns(head, torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3, 6, 3])))


@pytest.mark.parametrize(
    "name, options",
    [("idiff-unet", {"conditioning": "ca"}), ("idiff-unet", {"conditioning": "adagn"}), ("dit", {}),
     ("dit", {"context_tokens": 0})],
)
def test_denoiser_learns(name: str, options: dict[str, str]) -> None:
    assert set(SMALL) == set(BUILTIN["denoiser"]), "every denoiser is tested"
    denoiser = build("denoiser", name, **options, **SMALL[name]).train()
    for parameter in denoiser.parameters():  # zero-initialized layers would hide the layers before them
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    x = torch.randn(2, 3, 8, 8)
    out = denoiser(x, torch.tensor([3, 700]), torch.randn(2, 512))
    if name == "dit":
        out = out + denoiser(x, torch.tensor([3, 700]))  # the empty context is learned
    assert out.shape == x.shape and torch.isfinite(out).all()
    assert_every_parameter_learns(denoiser, (out * torch.randn_like(out)).sum())


@pytest.mark.parametrize("name", [n for n in BUILTIN["autoencoder"] if n not in NEED_A_FILE])
def test_autoencoder_has_the_shapes_it_says(name: str) -> None:
    autoencoder = build("autoencoder", name).eval()
    with torch.no_grad():
        latents = autoencoder.encode(torch.zeros(1, 3, 32, 32))
        pixels = autoencoder.decode(latents)
    side = 32 // autoencoder.downscale
    assert latents.shape == (1, autoencoder.latent_channels, side, side) and pixels.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", list(BUILTIN["scheduler"]))
def test_scheduler_makes_a_chain(name: str) -> None:
    fits = "flow" in getattr(registry.get("scheduler", name).config_class, "predictions", ())
    schedule = FlowSchedule() if fits else build_schedule("linear", 1000, 1e-4, 0.02)
    assert callable(build("scheduler", name)) and build("scheduler", name)(schedule) is not None


@pytest.mark.parametrize("name", list(BUILTIN["transform"]))
def test_transform_keeps_shape_and_follows_its_generator(name: str) -> None:
    transform = build("transform", name, p=1.0)
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    first = transform(image.copy(), np.random.default_rng(5))
    again = transform(image.copy(), np.random.default_rng(5))
    assert first.shape == image.shape and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, image)


@pytest.mark.parametrize(
    "kind",
    ["guidance", "contexts", "context_filter", "context_variation", "sample_filter", "augmentation", "record_format",
     "benchmark"],
)
def test_other_plugins_build_from_their_defaults(kind: str) -> None:
    for name in BUILTIN[kind]:
        assert build(kind, name) is not None
