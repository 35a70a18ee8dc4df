"""The source `guided-diffusion`: candidate k depends on k alone, and what it refuses."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from guided_checkpoint import small_tensors, write_small

from facesyn_cli.contexts.diffusers_pipeline import find_pipeline, load_pipeline
from facesyn_cli.contexts.source import Resources
from facesyn_cli.data.pixels import decode_image
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

CPU = torch.device("cpu")


def embed(faces_u8: np.ndarray) -> np.ndarray:
    rows = faces_u8.reshape(len(faces_u8), -1)[:, :512].astype(np.float32) + 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def pipeline(tmp_path):
    return load_pipeline(find_pipeline(str(write_small(tmp_path / "ffhq.pt"))), CPU)


def faces(pipeline, batch_size: int, start: int, count: int, seed: int = 3, steps: int = 4) -> list[bytes]:
    resources = Resources(seed=seed, batch_size=batch_size, generator=pipeline, features=embed)
    made = registry.build("contexts", registry.configure("contexts", {"name": "guided-diffusion", "steps": steps}))
    made.open(resources)
    assert made.evaluations == {"generator": steps, "recognizer": 1}
    batches = islice(made.candidates(start), -(-count // batch_size))
    return [face for batch in batches for face in batch.faces][:count]


def test_a_candidate_depends_on_its_number_and_the_seed_alone(pipeline):
    together = faces(pipeline, 4, 0, 4)
    assert len(set(together)) == 4
    assert decode_image(together[0]).shape == (112, 112, 3)
    for alone, batched in zip(faces(pipeline, 1, 2, 2), together[2:], strict=True):
        apart = decode_image(alone).astype(int) - decode_image(batched)
        assert abs(apart).max() <= 1  # one gray level: sums in another order
    assert faces(pipeline, 4, 0, 4) == together
    assert faces(pipeline, 4, 0, 4, seed=4) != together


def test_another_pipeline_is_refused(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), norm_num_groups=8,
    )
    made = registry.build("contexts", registry.configure("contexts", {"name": "guided-diffusion"}))
    with pytest.raises(UserError, match="source diffusers"):
        made.open(Resources(generator=DDPMPipeline(unet, DDPMScheduler()), features=embed))


@pytest.mark.parametrize(("change", "says"), [
    (lambda t: t.pop("output_blocks.3.0.in_layers.0.weight"), "does not fit"),
    (lambda t: t.pop("middle_block.1.qkv.bias"), "does not fit: 'middle_block.1.qkv.bias'"),
    (lambda t: t.update(extra=torch.zeros(1)), "unexpected tensors such as extra"),
    (lambda t: t.update({"label_emb.weight": torch.zeros(3, 128)}), "class-conditional"),
    (lambda t: t.update({"out.2.bias": torch.zeros(5)}), "out.2.bias|conv_out.bias"),
    (lambda t: t["out.2.bias"].fill_(torch.nan), "not finite"),
    (lambda t: [t.pop(key) for key in list(t) if key.startswith("output_blocks.1.2")], "residual up- and downsampling"),
    (lambda t: t.pop("time_embed.0.weight"), "not a guided-diffusion UNet"),
])
def test_wrong_files(tmp_path, change, says):
    tensors = small_tensors()
    change(tensors)
    torch.save(tensors, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=says) as caught:
        load_pipeline(find_pipeline(str(tmp_path / "odd.pt")), CPU)
    assert "odd.pt" in str(caught.value) and "\n" not in str(caught.value)
