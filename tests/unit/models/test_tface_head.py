"""TFace's classifiers in parts: joined in order, from any name for them; parts that do not belong together."""

from __future__ import annotations

import json
import re

import pytest
import torch

from facesyn_cli.artifacts.weights import read_tensors, write_tensors
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.tface_head import find_files, is_head, read_any_head, read_head, split_head
from facesyn_cli.models.convert.wrappers import WRAPPERS

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


@pytest.mark.parametrize("wrapper", [*WRAPPERS, "module._orig_mod"])
def test_wrappers_are_taken_off_a_classifier(tmp_path, wrapper):
    state = {f"{wrapper}.kernel": KERNEL, f"{wrapper}.t": torch.tensor([0.3])}
    torch.save(state, tmp_path / "HEAD_Epoch_1_checkpoint.pth")
    torch.save({"Syn_10k": state}, tmp_path / "HEAD_Epoch_2_checkpoint.pth")
    write_tensors(tmp_path / "head.safetensors", state)
    for name in ("HEAD_Epoch_1", "HEAD_Epoch_2", "head.safetensors"):
        tensors, _ = read_any_head(tmp_path / name)
        assert tensors.keys() == {"kernel", "t"} and torch.equal(tensors["kernel"], KERNEL)
    assert is_head(tmp_path / "head.safetensors")


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


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_a_classifier_goes_to_one_file_and_back(run_cli, tmp_path, parts):
    prefix = _write(tmp_path, parts=parts)
    seen = json.loads(run_cli("models", "inspect", prefix, "--json").out)
    assert (seen["kind"], seen["embedding_size"], seen["classes"], seen["files"]) == ("head", 4, 7, parts)
    run_cli("models", "convert", prefix.with_name(f"{prefix.name}_Split_0_checkpoint.pth"), "--out", tmp_path / "one")
    joined = tmp_path / "one" / "head.safetensors"
    assert torch.equal(read_tensors(joined)["kernel"], KERNEL)
    run_cli("models", "convert", joined, "--to", "published", "--parts", str(parts), "--dataset", "Syn_10k",
            "--out", tmp_path / "back")
    for rank in range(parts):
        ending = f"_Split_{rank}_checkpoint.pth"
        given, back = torch.load(f"{prefix}{ending}"), torch.load(tmp_path / "back" / f"HEAD{ending}")
        assert back.keys() == given.keys() == {"Syn_10k"}
        assert torch.equal(back["Syn_10k"]["kernel"], given["Syn_10k"]["kernel"])


def test_buffers_of_a_head_go_into_every_part(tmp_path):
    contents = split_head({"kernel": KERNEL, "t": torch.tensor([0.5])}, 2, "a")
    assert [content["a"]["kernel"].shape[1] for content in contents] == [4, 3]
    assert all(content["a"]["t"].item() == 0.5 for content in contents)


def test_wrong_words_for_classifiers(assert_refused, tmp_path):
    prefix, out = _write(tmp_path), tmp_path / "out"
    ours = tmp_path / "head.safetensors"
    write_tensors(ours, {"kernel": KERNEL})
    convert = ("models", "convert", "--out", out)
    assert_refused(*convert, prefix, "--parts", "2", says="--parts is the number of files")
    assert_refused(*convert, prefix, "--to", "onnx", says="it can be converted --to safetensors")
    assert_refused(*convert, ours, says="it can be converted --to published")
    assert_refused(*convert, ours, "--to", "published", "--parts", "8", says="from 1 to 7")
    assert_refused(*convert, prefix, "--dataset", "b", says="holds no classifier of 'b'; it has Syn_10k")
    write_tensors(ours, {"kernel": KERNEL, "bias": torch.zeros(7)})
    assert_refused(*convert, ours, "--to", "published", says="this head keeps bias")
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    assert_refused(*convert, tmp_path / "other.pth", "--parts", "2", says="belong to classifiers")
    assert_refused("models", "verify", prefix, says="a single network was expected")
    assert not out.exists()
