"""DCFace's stage 1 network against its golden output; the way back to the published names is exact."""

from __future__ import annotations

import numpy as np
import torch
from fill import golden_normal, load_golden
from guided_checkpoint import published_tensors
from tolerance import products_of, rounding

from facesyn_cli.models.convert.guided_diffusion import build_pipeline, from_diffusers, read_settings, to_diffusers


@torch.inference_mode()
def test_published_network():
    golden = load_golden("unet_ffhq10m")
    tensors = published_tensors()
    settings = read_settings(tensors)
    assert (settings.image_size, settings.head_channels, settings.num_blocks) == (256, 64, 1)
    unet = build_pipeline(to_diffusers(tensors, settings), settings).unet
    assert sum(p.numel() for p in unet.parameters()) == 93_563_910
    out = unet(golden_normal(31, (1, 3, 64, 64)), torch.from_numpy(golden["t"])).sample
    tolerance = rounding(products_of(unet), golden["out"].std())
    np.testing.assert_allclose(out.numpy(), golden["out"], rtol=0, atol=tolerance)
    back = from_diffusers(unet.state_dict(), settings)
    assert back.keys() == tensors.keys() and all(torch.equal(back[key], tensors[key]) for key in tensors)
