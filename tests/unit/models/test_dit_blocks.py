"""The parts of `dit` against their formulas."""

from __future__ import annotations

import math

import torch
from tolerance import rounding
from torch import Tensor

from facesyn_cli.models.dit_blocks import Block, patchify, positions, unpatchify


def test_a_block_is_its_formula_in_float64():
    torch.manual_seed(1)
    block = Block(24, 3, 4.0, 0.0, has_context=True).double()
    for parameter in block.parameters():
        parameter.data.normal_(std=0.3)
    h, modulation = torch.randn(2, 5, 24).double(), torch.randn(2, 6, 24).double()
    tokens = torch.randn(2, 2, 24).double()
    out = block(h, modulation, *block.attention.read(tokens))
    w = dict(block.named_parameters())

    def normed(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def rms(x: Tensor, scale: Tensor) -> Tensor:
        return scale * x / ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt()

    for b in range(2):
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[b] + w["table"]
        x = normed(h[b]) * (1 + scale1) + shift1
        read = []
        for head in (slice(0, 8), slice(8, 16), slice(16, 24)):
            q = rms((x @ w["attention.to_q.weight"].T)[:, head], w["attention.q_norm.weight"])
            k = torch.cat([x @ w["attention.to_k.weight"].T, tokens[b] @ w["attention.context_k.weight"].T])[:, head]
            v = torch.cat([x @ w["attention.to_v.weight"].T, tokens[b] @ w["attention.context_v.weight"].T])[:, head]
            scores = q @ rms(k, w["attention.k_norm.weight"]).T / math.sqrt(8)
            read.append((scores.exp() / scores.exp().sum(1, keepdim=True)) @ v)
        y = torch.cat(read, 1) @ w["attention.proj_out.weight"].T + w["attention.proj_out.bias"]
        mid = h[b] + gate1 * y
        up = (normed(mid) * (1 + scale2) + shift2) @ w["up.weight"].T + w["up.bias"]
        gelu = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        expected = mid + gate2 * (gelu @ w["down.weight"].T + w["down.bias"])
        torch.testing.assert_close(out[b], expected, rtol=0, atol=rounding(300, expected.std(), torch.float64))


def test_patches_are_cut_row_by_row_and_put_back():
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(tokens[1, 4], x[1, :, 2:4, 2:4].flatten()), "row 1, column 1 of 2 x 3 patches"
    assert torch.equal(unpatchify(tokens, 2, 3, 2), x)


def test_positions_are_sines_and_cosines_of_row_and_column():
    grid = positions(3, 5, 16).view(3, 5, 16)
    expected = [f(place / 10_000 ** (j / 4)) for place in (2, 3) for f in (math.sin, math.cos) for j in range(4)]
    torch.testing.assert_close(grid[2, 3], torch.tensor(expected), rtol=0, atol=rounding(4))
    assert len({tuple(row) for row in grid.flatten(0, 1).tolist()}) == 15
