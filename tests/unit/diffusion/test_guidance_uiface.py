"""UIFace on contexts that write down what is asked of them, and on the UNet."""

from __future__ import annotations

import pytest
import torch
from fill import fill_state
from tolerance import products_of, rounding

from facesyn_cli.diffusion.denoising_loop import count_evaluations, sample_latents
from facesyn_cli.diffusion.guidance import Step
from facesyn_cli.diffusion.guidance_uiface import scaled_maps
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.plugins import registry


class Maps:
    cross: list[torch.Tensor]


class Contexts:
    """A batch of contexts as the guidance sees it; `name` says what was done to it."""

    def __init__(self, name, maps=None):
        self.name, self.maps = name, maps

    def recording(self):
        maps = Maps()
        return Contexts(f"{self.name} recorded", maps), maps

    def injecting(self, maps, with_cross):
        return Contexts(f"{self.name} with {'both maps' if with_cross else 'self maps'}")

    def where(self, condition, other):
        return Contexts("".join(self.name[0] if flag else other.name[0] for flag in condition))


def make(**settings):
    return registry.build("guidance", registry.configure("guidance", {"name": "uiface", **settings}))


def run(guidance, cross_maps, times):
    """Return the contexts of every evaluation and the outputs of every step."""
    seen, outputs = [], []
    predict = guidance.begin(Contexts("identity"), Contexts("empty"))
    for index, time in enumerate(times):

        def network(context, index=index):
            seen.append(context.name)
            if context.maps is not None:
                context.maps.cross = [cross_maps[index]]
            return torch.full((2, 1), 1.0 if "recorded" in context.name else 3.0)

        step = Step(index, len(times), time)
        before = len(seen)
        outputs.append(predict(network, step))
        assert len(seen) - before == guidance.evaluations(step) == 2
    return seen, outputs


def test_identity_begins_sample_by_sample_once_the_map_has_settled():
    """The first sample's map stands still from the third step on, the second one's never does."""
    torch.manual_seed(0)
    still = torch.rand(4, 5).softmax(-1)
    moving = [torch.rand(4, 5).softmax(-1) for _ in range(5)]
    first = [moving[0], still, still, moving[3], still]
    maps = [torch.stack([a, b])[:, None] for a, b in zip(first, moving, strict=True)]  # (B, A = 1, L, S)
    seen, outputs = run(make(), maps, [0.9, 0.8, 0.7, 0.6, 0.4])
    assert seen[0::2] == ["empty recorded"] * 5
    # once settled, identity stays although the map moves again; stage 2 is under the identity for all
    assert seen[1::2] == ["ee with self maps", "ee with self maps", "ie with self maps", "ie with self maps",
                          "identity with both maps"]
    assert all(torch.equal(output, torch.full((2, 1), 3.0)) for output in outputs[:4])
    assert torch.equal(outputs[4], torch.full((2, 1), 2 * 3.0 - 1.0))  # (1 + w) c - w u with w = 1


def test_threshold_and_switch():
    torch.manual_seed(0)
    maps = [torch.rand(2, 1, 4, 5).softmax(-1) for _ in range(2)]
    assert run(make(settled=2.0), maps, [0.9, 0.8])[0][1::2] == ["ee with self maps", "ii with self maps"]
    assert run(make(settled=0.0), maps, [0.9, 0.8])[0][3] == "ee with self maps"
    assert run(make(switch=0.0), maps, [0.9, 0.0])[0][3] == "ee with self maps"
    assert run(make(switch=1.0), maps, [0.9, 0.8])[0][1] == "identity with both maps"


def test_change_is_measured_on_scores_averaged_over_heads_softmaxed_and_scaled():
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)                     # (B, A, L, S)
    expected = scores.mean(1).softmax(-1).flatten(1)
    expected = (expected - expected.amin(1, keepdim=True)) / (expected.amax(1) - expected.amin(1))[:, None]
    torch.testing.assert_close(scaled_maps([scores.softmax(-1)] * 2), torch.cat([expected] * 2, dim=1))


def test_defaults_are_the_published_ones():
    cfg = registry.configure("guidance", {"name": "uiface"})
    assert (cfg.scale, cfg.switch, cfg.settled) == (1 + 1.0, 500 / 1000, 0.006)


@pytest.mark.parametrize("settled", [0.0, 10.0])
def test_on_the_unet_batches_do_not_matter_and_all_passes_are_counted(settled):
    unet = fill_state(ConditionalUNet(UnetConfig(
        name="idiff-unet", channels=32, multipliers=(1, 1), attention=(False, True), num_blocks=1, context_size=8,
        context_width=32, learn_empty_context=True,
    )))
    calls = []
    unet.register_forward_hook(lambda *arguments: calls.append(1))
    contexts = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    noise = torch.randn(3, 3, 4, 4)

    def latents(rows):
        scheduler = registry.build("scheduler", registry.configure("scheduler", {"name": "ddim", "steps": 4}))
        chain = scheduler(build_schedule())
        calls.clear()
        found = sample_latents(unet, chain, make(settled=settled), contexts[rows], noise[rows])
        assert len(calls) == count_evaluations(chain, make(settled=settled)) == 8
        return found

    together = latents([0, 1, 2])
    tolerance = rounding(8 * products_of(unet), together.abs().max())  # 8 evaluations
    torch.testing.assert_close(latents([1]), together[1:2], atol=tolerance, rtol=0)
    assert together.isfinite().all()
