"""`ir-lite`: its cost, its layout against plain torch, and its way through files."""

from __future__ import annotations

import pytest
import torch
from fill import fill_state, golden_uniform
from pydantic import ValidationError
from tolerance import products_of, rounding
from torch import nn
from torch.nn import functional as F

from facesyn_cli.artifacts.weights import write_tensors, write_weights
from facesyn_cli.models.inspection import inspect
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.models.onnx_export import export_onnx
from facesyn_cli.plugins import registry


def _build(**settings: object) -> nn.Module:
    return registry.build("backbone", registry.configure("backbone", {"name": "ir-lite", **settings}))


def test_it_costs_what_it_says() -> None:
    with torch.device("meta"):
        network = _build().eval()
        multiply_adds = []
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_hook(
                    lambda layer, inputs, output: multiply_adds.append(output[0].numel() * layer.weight[0].numel())
                )
        network(torch.zeros(1, 3, 112, 112))
    assert 85e6 < sum(multiply_adds) < 95e6
    assert 1.35e6 < sum(p.numel() for p in network.parameters()) < 1.4e6


def test_units_step_first_and_the_grid_ends_in_a_depthwise_kernel() -> None:
    """The same forward pass written with plain functions on the network's own tensors."""
    network = fill_state(_build(widths=[4, 6], blocks=[1, 2], embedding_size=5)).eval()
    state = network.state_dict()
    pixels = golden_uniform(1, (2, 3, 112, 112)) * 2 - 1

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        part = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *part)

    x = F.conv2d(pixels, state["input_layer.0.weight"], stride=2, padding=1)
    x = F.prelu(norm(x, "input_layer.1"), state["input_layer.2.weight"])
    for unit, stride in enumerate((2, 2, 1)):
        name = f"body.{unit}"
        shortcut = x[:, :, ::stride, ::stride]
        if f"{name}.shortcut_layer.0.weight" in state:
            shortcut = norm(F.conv2d(shortcut, state[f"{name}.shortcut_layer.0.weight"]), f"{name}.shortcut_layer.1")
        y = F.conv2d(norm(x, f"{name}.res_layer.0"), state[f"{name}.res_layer.1.weight"], stride=stride, padding=1)
        y = F.prelu(norm(y, f"{name}.res_layer.2"), state[f"{name}.res_layer.3.weight"])
        x = shortcut + norm(F.conv2d(y, state[f"{name}.res_layer.4.weight"], padding=1), f"{name}.res_layer.5")
    assert x.shape == (2, 6, 14, 14)
    pooled = (x * state["output_layer.pool.weight"][:, 0]).sum((2, 3))
    pooled = norm(pooled, "output_layer.norm") @ state["output_layer.linear.weight"].T
    with torch.inference_mode():
        expected = norm(pooled, "output_layer.embedding_norm")
        tolerance = rounding(products_of(network), expected.std())
        torch.testing.assert_close(network(pixels), expected, rtol=0, atol=tolerance)


def test_it_starts_as_an_average_over_the_last_grid() -> None:
    assert torch.equal(_build().output_layer.pool.weight, torch.full((192, 1, 7, 7), 1 / 49))


def test_a_bare_file_of_it_is_told_from_other_ir_networks(tmp_path) -> None:
    network = fill_state(_build(widths=[4, 6], blocks=[1, 2], embedding_size=5))
    write_tensors(tmp_path / "lite.safetensors", network.state_dict())
    write_weights(tmp_path / "ours", network.state_dict(), {"backbone": {"name": "ir-lite", "widths": [4, 6],
                                                                         "blocks": [1, 2], "embedding_size": 5}})
    seen = inspect(tmp_path / "lite.safetensors")
    assert seen["architecture"] == "ir-lite" and seen["settings"]["widths"] == [4, 6]
    pixels = golden_uniform(2, (1, 3, 112, 112))
    networks = [load_backbone(tmp_path / name).module for name in ("lite.safetensors", "ours")]
    with torch.inference_mode():
        assert torch.equal(networks[0](pixels), networks[1](pixels))
    assert export_onnx(networks[0], 112, tmp_path / "lite.onnx") < 1e-3


@pytest.mark.parametrize("wrong", [{"widths": [8, 8]}, {"widths": [8]}, {"blocks": [1, 0, 1]}, {"widths": []}])
def test_stages_that_do_not_fit_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        registry.configure("backbone", {"name": "ir-lite", **wrong})
