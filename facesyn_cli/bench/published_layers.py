"""The UNet's layers computed as in the published code, on the same weights, for comparison with ours.

Attention by convolutions of width 1 and a softmax of its own over (B, A, L, S) scores, q and k each scaled by
D^(-1/4); positions last in memory. Written from SYSTEM facts; IDiff-Face, arXiv:2308.04995.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from facesyn_cli.models.idiff_blocks import Attention, CrossAttentionBlock


def as_published(denoiser: nn.Module) -> nn.Module:
    """Return a copy of a network that shares its weights and whose attention is computed as published."""
    shared = {id(tensor): tensor for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    published = copy.deepcopy(denoiser, shared)
    for module in published.modules():
        if type(module) is Attention:
            module.__class__ = _PublishedAttention
        elif type(module) is CrossAttentionBlock:
            module.__class__ = _PublishedCrossAttentionBlock
    return published


class _PublishedAttention(Attention):
    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.to_k(source)), self._heads(self.to_v(source))      # (B, A, D, S)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor] | None = None) -> Tensor:
        k, v = self.keys_values(x) if keys_values is None else keys_values
        scale = self.head_channels**-0.25
        scores = torch.einsum("badl,bads->bals", self._heads(self.to_q(x)) * scale, k * scale)
        weights = torch.softmax(scores.float(), dim=-1).to(v.dtype)
        return self.proj_out(torch.einsum("bals,bads->badl", weights, v).flatten(1, 2))  # (B, C, L)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.head_channels))


class _PublishedCrossAttentionBlock(CrossAttentionBlock):
    def encode_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.c_proj_in(context).unflatten(1, (self.context_width, -1))
        return self.cross_attention.keys_values(self.c_norm(tokens))

    def forward(self, x: Tensor, context_keys_values: tuple[Tensor, Tensor]) -> Tensor:
        y = self.x_proj_in(x).flatten(2)                                           # (B, C, L)
        y = y + self.self_attention(self.x_norm(y))
        y = y + self.cross_attention(self.x_norm(y), context_keys_values)
        y = y + self.ff(self.x_norm(y).transpose(1, 2)).transpose(1, 2)
        return x + self.x_proj_out(y.unflatten(2, x.shape[2:]))
