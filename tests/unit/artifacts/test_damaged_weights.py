"""Torch files with flipped bits: read, or refused in one line; never a traceback, never a warning of torch."""

from __future__ import annotations

import warnings

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


def test_a_flipped_bit_among_the_numbers_is_seen(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(5000), "b": torch.zeros(3)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(4000)) + 2000] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.pth is damaged: 1 of \d+ parts have a wrong checksum, first x/data/0$"):
        read_tensors(path)


def test_a_file_written_without_checksums_is_read(tmp_path):
    path = tmp_path / "x.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(4)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_tensors(path)["a"].tolist() == [1.0] * 4


@pytest.mark.parametrize("content", [b"", b"hello\n" * 9])
def test_what_is_no_torch_file_is_said_in_words(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match="no pickle of tensors$"):
        read_tensors(tmp_path / "x.pth")


def _odd_tensors() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # torch warns of sparse tensors and of quantized ones
        return {
            "sparse": torch.sparse_coo_tensor([[0]], [1.0], (3,), check_invariants=True),
            "quantized": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8),
            "meta": torch.zeros(3, device="meta"),
        }


@pytest.mark.parametrize("kind", ["sparse", "quantized", "meta"])
def test_tensors_without_plain_numbers_are_refused(tmp_path, kind):
    torch.save({"w": _odd_tensors()[kind]}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="w is sparse, quantized or without numbers"):
        read_tensors(tmp_path / "x.pth")
