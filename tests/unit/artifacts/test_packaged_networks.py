"""Names of packaged networks: where they lead, what is refused, and that their files are complete."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from facesyn_cli.artifacts import packaged_networks
from facesyn_cli.artifacts.packaged_networks import (
    AUTOENCODERS,
    autoencoder_folder,
    check_autoencoder,
    packaged_name,
    packaged_path,
)
from facesyn_cli.artifacts.starter_files import packaged_folder
from facesyn_cli.errors import UserError


def test_names_stand_for_folders_of_the_package() -> None:
    assert packaged_path("taesd3") == autoencoder_folder("taesd3")
    assert packaged_path("starter-ldm") == packaged_folder() / "ldm"
    assert packaged_path("starter-other") is packaged_path("taesd") is packaged_path("a/taesd3") is None
    assert packaged_name(autoencoder_folder("taesd3")) == "taesd3"
    assert packaged_name(Path("taesd3")) is packaged_name(packaged_folder()) is None


def test_the_former_autoencoder_of_the_starter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no longer part of the package.*taesd3"):
        packaged_path("starter-autoencoder")
    Path("starter-autoencoder").mkdir()
    assert packaged_path("starter-autoencoder") is None  # a folder of the user's own


@pytest.mark.parametrize(("name", "what"), [("taesd3", "a network of the package"),
                                            ("starter-ldm", "a part of the packaged starter")])
def test_a_folder_of_the_same_name_is_not_guessed_about(
    name: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    with pytest.raises(UserError, match=f"{name} is {what} and also a file or folder here"):
        packaged_path(name)
    assert packaged_path(str(Path(name).resolve())) is None


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_card_and_license_lie_beside_the_weights(name: str) -> None:
    folder = autoencoder_folder(name)
    card, terms = (folder / "README.md").read_text(), (folder / "LICENSE").read_text()
    assert AUTOENCODERS[name].license in card and all(digest in card for digest in AUTOENCODERS[name].files.values())
    assert {path.name for path in folder.iterdir()} == {*AUTOENCODERS[name].files, "README.md", "LICENSE"}
    assert "Copyright (c)" in terms and "Permission is hereby granted" in terms and "WITHOUT WARRANTY" in terms
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5.1e6


def test_the_notice_names_the_author_of_taesd() -> None:
    assert "Copyright (c) 2023 Ollin Boer Bohan" in (autoencoder_folder("taesd3") / "LICENSE").read_text()


def test_changed_and_missing_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_autoencoder("taesd3")
    copy = shutil.copytree(autoencoder_folder("taesd3"), tmp_path / "taesd3")
    monkeypatch.setattr(packaged_networks, "autoencoder_folder", lambda name: copy)
    check_autoencoder("taesd3")
    weights = copy / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(UserError, match=r"safetensors has changed: it is sha256:.*install facesyn again"):
        check_autoencoder("taesd3")
    weights.unlink()
    with pytest.raises(UserError, match="safetensors is missing: install facesyn again"):
        check_autoencoder("taesd3")
