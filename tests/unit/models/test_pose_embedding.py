"""The yaw as a second condition of both denoisers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from facesyn_cli.models.pose_embedding import PoseEmbedding, split_pose
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.inference import FastDenoiser, InferenceOptions

SIZE = 8
SETTINGS = {
    "dit": {"name": "dit", "in_channels": 3, "patch": 1, "width": 16, "depth": 1, "heads": 2, "context_size": SIZE,
            "context_width": 16},
    "ca": {"name": "idiff-unet", "channels": 32, "multipliers": [1], "attention": [True], "num_blocks": 1,
           "context_size": SIZE, "context_width": 32},
}
SETTINGS["adagn"] = {**SETTINGS["ca"], "conditioning": "adagn"}


def build(name: str, is_trained: bool = True, **more: object) -> nn.Module:
    torch.manual_seed(0)
    network = registry.build("denoiser", registry.configure("denoiser", {**SETTINGS[name], "pose": True, **more}))
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if is_trained or not key.startswith("pose_emb"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def inputs(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(count, 3, 4, 4, generator=generator), torch.full((count,), 300),
            torch.nn.functional.normalize(torch.randn(count, SIZE, generator=generator), dim=1))


def turned(contexts: torch.Tensor, *yaw: float) -> torch.Tensor:
    return torch.cat([contexts, torch.tensor(yaw)[:, None]], dim=1)


def test_an_unknown_yaw_and_a_new_embedding_are_zero() -> None:
    embedding = PoseEmbedding(12)
    assert not embedding(torch.tensor([10.0, math.nan])).any()
    with torch.no_grad():
        embedding.lin2.weight.normal_()
        embedding.lin2.bias.normal_()
    found = embedding(torch.tensor([10.0, math.nan, -10.0, 10.0]))
    assert not found[1].any() and torch.equal(found[0], found[3]) and not torch.allclose(found[0], found[2])


def test_the_yaw_stands_behind_the_embedding() -> None:
    contexts = torch.arange(10.0).view(2, 5)
    assert split_pose(contexts, 5, True)[1] is None
    embedding, yaw = split_pose(contexts, 4, True)
    assert torch.equal(embedding, contexts[:, :4]) and yaw.tolist() == [4, 9]
    with pytest.raises(ValueError, match="contexts of 4 numbers were expected, got 5"):
        split_pose(contexts, 4, False)
    with pytest.raises(ValueError, match="contexts of 3 numbers, or 4 with the yaw, were expected, got 5"):
        split_pose(contexts, 3, True)


@pytest.mark.parametrize("name", SETTINGS)
def test_networks_see_the_yaw(name: str) -> None:
    network = build(name)
    x, t, contexts = inputs()
    plain = network(x, t, contexts)
    torch.testing.assert_close(network(x, t, turned(contexts, *[math.nan] * 3)), plain, rtol=1e-4, atol=1e-4)
    output = network(x, t, turned(contexts, 30, math.nan, -30))
    torch.testing.assert_close(output[1], plain[1], rtol=1e-4, atol=1e-4)
    assert all((output[row] - plain[row]).abs().max() > 0.01 for row in (0, 2))
    encoded = network.encode_context(turned(contexts, 30, math.nan, -30))
    torch.testing.assert_close(network(x, t, encoded), output, rtol=1e-4, atol=1e-4)
    without = build(name, pose=False)
    with pytest.raises(ValueError, match="contexts of 8 numbers were expected, got 9"):
        without(x, t, turned(contexts, 1, 2, 3))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_network_without_poses_goes_on_from_where_it_was(name: str) -> None:
    before, after = build(name, pose=False), build(name, is_trained=False)
    missing, unexpected = after.load_state_dict(before.state_dict(), strict=False)
    assert {key.split(".")[0] for key in missing} == {"pose_emb"} and not unexpected
    x, t, contexts = inputs()
    found, expected = after(x, t, turned(contexts, 40, 0, -5)), before(x, t, contexts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_contexts_in_one_pass(name: str) -> None:
    network = build(name)
    x, t, contexts = inputs()
    fast = FastDenoiser(network, InferenceOptions("fp32", "fp32", joint_guidance=True))
    first, empty = fast.encode_context(turned(contexts, 30, math.nan, -30)), fast.encode_context(None, batch=3)
    both = fast(x.repeat(2, 1, 1, 1), t.repeat(2), fast.join_contexts(first, empty))
    torch.testing.assert_close(both, torch.cat([fast(x, t, first), fast(x, t, empty)]), rtol=1e-4, atol=1e-4)


def test_an_unconditional_network_has_no_pose() -> None:
    with pytest.raises(ValueError, match="pose needs a conditional network"):
        registry.configure("denoiser", {**SETTINGS["ca"], "conditioning": "unconditional", "pose": True})
