"""The error about a missing input names the command that writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_lines import check

from facesyn_cli.artifacts.header import require_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.missing_input import missing_input, unfinished_input, writing_command
from facesyn_cli.artifacts.output import FixedConfig, open_output
from facesyn_cli.artifacts.work import FOLDERS
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import load_backbone


def test_a_folder_of_the_run_is_written_by_a_command_to_paste(tmp_path: Path) -> None:
    path = tmp_path / "6-records"
    with pytest.raises(UserError) as missing:
        require_header(path, "RecordSet")
    assert str(missing.value) == f"{path} does not exist; it is written by: facesyn pack --work {tmp_path}"
    with pytest.raises(UserError, match=f"7-fr does not exist; it is written by: facesyn train-fr --work {tmp_path}$"):
        load_backbone(tmp_path / "7-fr")
    assert str(missing_input(tmp_path / "2-ldm", "an LDM", "--ldm PATH")) == (
        f"{tmp_path / '2-ldm'} does not exist; give --ldm PATH, or write it with: facesyn train-ldm --work {tmp_path}"
    )


def test_a_run_that_is_not_there_is_pointed_out() -> None:
    path = Path("runs of me/mistyped/3-contexts")
    assert str(missing_input(path, "contexts")) == (
        "runs of me/mistyped/3-contexts does not exist, nor does the folder runs of me/mistyped; it is written by: "
        "facesyn gen-contexts --work 'runs of me/mistyped'"
    )


def test_without_photos_both_ways_to_give_them_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"with --images, or .*: facesyn align --work {tmp_path} --images PHOTOS$"):
        ImageSet.open(tmp_path / "0-images")


def test_another_folder_only_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError) as missing:
        require_header(tmp_path / "mine", "RecordSet")
    assert str(missing.value) == f"{tmp_path / 'mine'} does not exist; a finished RecordSet folder was expected"


@pytest.mark.parametrize("name", FOLDERS.values())
def test_every_folder_has_a_command_that_exists(name: str) -> None:
    command = writing_command(Path("runs/a") / name)
    check(command.split()[1:] + (["--images", "photos"] if name == "0-images" else []))


def test_an_unfinished_folder_names_the_command_that_finishes_it(tmp_path: Path) -> None:
    path = tmp_path / "4-samples"
    with open_output(path, "ImageSet", "sample", FixedConfig({}), {}):
        pass
    with pytest.raises(UserError, match=f"unfinished; .* begun with: facesyn sample --work {tmp_path}$"):
        ImageSet.open(path)
    with open_output(tmp_path / "7-fr", "Weights", "train-fr", FixedConfig({}), {}):
        pass
    with pytest.raises(UserError, match=f"unfinished; .* begun with: facesyn train-fr --work {tmp_path}$"):
        load_backbone(tmp_path / "7-fr")
    assert "the same `facesyn demo` command" in str(unfinished_input(tmp_path / "3-contexts", "demo"))
