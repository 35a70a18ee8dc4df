"""TFace's classifiers in parts: joined in order, from any name for them; parts that do not belong together."""

from __future__ import annotations

import re

import pytest
import torch

from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.tface_head import find_files, read_head

KERNEL = torch.arange(7 * 4, dtype=torch.float32).reshape(7, 4).t().contiguous()  # (4, 7): 7 classes


def _write(folder, kernel=KERNEL, parts=3, wrap=lambda part: {"Syn_10k": {"kernel": part}}, epoch=22):
    """Split a kernel as TFace does: the first K % n ranks hold one class more."""
    widths = [kernel.shape[1] // parts + (rank < kernel.shape[1] % parts) for rank in range(parts)]
    for rank, part in enumerate(kernel.split(widths, 1)):
        torch.save(wrap(part.clone()), folder / f"HEAD_Epoch_{epoch}_Split_{rank}_checkpoint.pth")
    return folder / f"HEAD_Epoch_{epoch}"


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 12])
def test_parts_are_joined_in_the_order_of_their_ranks(tmp_path, parts):
    kernel = torch.randn(4, 25)
    prefix = _write(tmp_path, kernel, parts)
    _write(tmp_path, torch.zeros(4, 5), 5, epoch=2)  # another epoch beside it
    assert len(find_files(prefix)) == parts
    for path in (prefix, tmp_path / f"HEAD_Epoch_22_Split_{parts - 1}_checkpoint.pth"):
        tensors = read_head(path)
        assert tensors.keys() == {"kernel"} and torch.equal(tensors["kernel"], kernel)


def test_every_content_tface_writes(tmp_path):
    partial_fc = _write(tmp_path, wrap=lambda part: {"Syn_10k": part}, epoch=1)
    assert torch.equal(read_head(partial_fc)["kernel"], KERNEL)
    curricular = _write(tmp_path, wrap=lambda part: {"a": {"kernel": part, "t": torch.tensor([0.3])}}, epoch=2)
    assert read_head(curricular)["t"].item() == pytest.approx(0.3)
    half = _write(tmp_path, wrap=lambda part: {"a": {"kernel": part.half()}}, epoch=3)
    assert torch.equal(read_head(half)["kernel"], KERNEL)
    torch.save({"a": {"kernel": KERNEL}}, tmp_path / "HEAD_Epoch_4_checkpoint.pth")  # not distributed
    for name in ("HEAD_Epoch_4", "HEAD_Epoch_4_checkpoint.pth"):
        assert torch.equal(read_head(tmp_path / name)["kernel"], KERNEL)
    torch.save({"kernel": KERNEL}, tmp_path / "flat.pth")
    assert torch.equal(read_head(tmp_path / "flat.pth")["kernel"], KERNEL)


def test_several_data_sets(tmp_path):
    prefix = _write(tmp_path, wrap=lambda part: {"a": {"kernel": part}, "b": {"kernel": part + 100}})
    with pytest.raises(UserError, match=r"holds several classifiers \(a, b\); one was expected"):
        read_head(prefix)
    assert torch.equal(read_head(prefix, "b")["kernel"], KERNEL + 100)
    with pytest.raises(UserError, match="holds no classifier of 'c'; it has a, b"):
        read_head(prefix, "c")


def test_a_missing_part_is_named(tmp_path):
    prefix = _write(tmp_path)
    (tmp_path / "HEAD_Epoch_22_Split_1_checkpoint.pth").unlink()
    with pytest.raises(UserError, match=r"HEAD_Epoch_22_Split_1_checkpoint\.pth is missing; 3 parts were expected$"):
        read_head(prefix)
    (tmp_path / "HEAD_Epoch_22_Split_2_checkpoint.pth").unlink()
    (tmp_path / "HEAD_Epoch_22_Split_0_checkpoint.pth").unlink()
    with pytest.raises(UserError, match=r"HEAD_Epoch_22 does not exist; a classifier was expected"):
        read_head(prefix)


def test_parts_of_different_runs_are_refused(tmp_path):
    prefix = _write(tmp_path, parts=3)                                    # 3, 2, 2 classes
    part = tmp_path / "HEAD_Epoch_22_Split_1_checkpoint.pth"
    torch.save({"Syn_10k": {"kernel": torch.zeros(4, 9)}}, part)
    with pytest.raises(UserError, match=re.escape("parts of 3, 9, 2 classes; 14 classes in 3 parts would be 5, 5, 4")):
        read_head(prefix)
    torch.save({"Syn_10k": {"kernel": torch.zeros(5, 2)}}, part)
    with pytest.raises(UserError, match=r"are no parts of one classifier: kernel \[5, 2\] and kernel \[4, 3\]"):
        read_head(prefix)
    moments = iter((0.1, 0.1, 0.2))
    prefix = _write(tmp_path, wrap=lambda part: {"a": {"kernel": part, "t": torch.tensor([next(moments)])}}, epoch=5)
    with pytest.raises(UserError, match="are of different moments: t differ"):
        read_head(prefix)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds a dict"),
        ({"a": {"weight": KERNEL}}, r"a tensor kernel \(embedding, classes\) was expected"),
        ({"a": {"kernel": torch.zeros(4)}}, r"a tensor kernel \(embedding, classes\) was expected"),
        ({"a": 3}, r"a tensor kernel \(embedding, classes\) was expected"),
        ({"a": {"kernel": torch.full((4, 2), float("nan"))}}, "not finite"),
    ],
)
def test_files_that_hold_no_classifier(tmp_path, content, message):
    torch.save(content, tmp_path / "HEAD_Epoch_1_checkpoint.pth")
    with pytest.raises(UserError, match=message):
        read_head(tmp_path / "HEAD_Epoch_1")


def test_damaged_files(tmp_path):
    prefix = _write(tmp_path)
    part = tmp_path / "HEAD_Epoch_22_Split_2_checkpoint.pth"
    part.write_bytes(part.read_bytes()[:300])
    with pytest.raises(UserError, match=r"Split_2_checkpoint\.pth is not a torch"):
        read_head(prefix)
