"""Torch files with flipped bits: read, or refused in one line; never a traceback, never a warning of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.errors import UserError


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [{"a": torch.ones(4)}, {"a": np.ones(4, np.float32)}], ids=["tensor", "numpy"])
def test_flipped_bits(tmp_path, zipped, content):
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    rng, refused = np.random.RandomState(0), 0
    for place in range(min(len(data), 700)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randint(8)
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert refused > 100
