"""Where the starter's parts are, and what is said when they are not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts import starter_files
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.starter_files import Starter, find_starter, missing
from facesyn_cli.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a starter whose files have names but no sense."""
    for part, files in starter_files.PARTS.items():
        (tmp_path / part).mkdir()
        for name in files:
            (tmp_path / part / name).write_text(f"{part} {name}")
    parts = {part: {"digest": file_digest(tmp_path / part / files[0])} for part, files in starter_files.PARTS.items()}
    index = {"format": 1, "parts": parts, "settings": {"sample": {"per_id": 3}}}
    (tmp_path / "starter.json").write_text(json.dumps(index))
    return tmp_path


def test_a_whole_one_is_described(folder: Path) -> None:
    found = Starter.open(folder)
    assert found.settings == {"sample": {"per_id": 3}} and found.part("ldm") == folder / "ldm"
    assert find_starter(folder) == found
    described = found.describe()
    assert described["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert described["parts"]["contexts"]["digest"] == file_digest(folder / "contexts" / "contexts.npy")


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "ldm" / "config.json").unlink()
    for path in (folder / "embedder").iterdir():
        path.unlink()
    assert missing(folder) == ["ldm/config.json", "embedder/"]
    with pytest.raises(UserError, match=r"ldm/config.json, embedder/ missing"):
        Starter.open(folder)
    with pytest.raises(UserError, match="folder nowhere missing"):
        Starter.open(tmp_path / "nowhere")


def test_an_autoencoder_is_there_where_the_index_names_it(folder: Path) -> None:
    assert Starter.open(folder).autoencoder() == str(folder / "autoencoder")
    (folder / "autoencoder" / "config.json").unlink()
    assert missing(folder) == ["autoencoder/config.json"]
    index = json.loads((folder / "starter.json").read_text())
    for part in ("autoencoder", "identity"):  # the parts that may be absent
        del index["parts"][part]
        shutil.rmtree(folder / part)
    (folder / "starter.json").write_text(json.dumps({**index, "format": 2}))
    found = Starter.open(folder)
    assert set(found.digests) == set(found.describe()["parts"]) == {"ldm", "embedder", "contexts"}
    config = folder / "ldm" / "config.json"
    config.write_text('{"autoencoder": {"path": "taesd3"}}')
    assert found.autoencoder() == "taesd3"
    config.write_text('{"autoencoder": null}')
    with pytest.raises(UserError, match="names no autoencoder"):
        found.autoencoder()


def test_the_packaged_one_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(starter_files, "packaged_folder", lambda: folder / "nowhere")
    assert not starter_files.is_packaged()
    with pytest.raises(UserError, match="no starter is packaged with this facesyn"):
        find_starter("packaged")
    monkeypatch.setattr(starter_files, "packaged_folder", lambda: folder)
    assert starter_files.is_packaged() and find_starter("packaged").folder == folder


@pytest.mark.parametrize("index", ['{"format": 1}', "[]", '{"format": 1, "parts": {}, "settings": {}}'])
def test_a_damaged_index_is_refused(folder: Path, index: str) -> None:
    (folder / "starter.json").write_text(index)
    assert missing(folder) == []
    with pytest.raises(UserError, match="does not describe a starter"):
        Starter.open(folder)


def test_an_unreadable_index_is_refused_when_the_starter_is_opened(folder: Path) -> None:
    (folder / "starter.json").write_text("{")
    assert missing(folder) == []
    with pytest.raises(UserError, match="starter.json"):
        Starter.open(folder)


def test_a_newer_format_and_a_changed_file_are_refused(folder: Path) -> None:
    (folder / "ldm" / "model.safetensors").write_text("other")
    with pytest.raises(UserError, match="has changed"):
        Starter.open(folder).describe()
    index = json.loads((folder / "starter.json").read_text())
    (folder / "starter.json").write_text(json.dumps({**index, "format": 3}))
    with pytest.raises(UserError, match="format 3"):
        Starter.open(folder)


def test_contexts_in_half_precision_have_length_one_when_read(tmp_path: Path) -> None:
    from tiny_starter import write_run

    folder = write_run(tmp_path) / "3-contexts"
    whole = ContextSet.open(folder).vectors
    np.save(folder / "contexts.npy", whole.astype(np.float16))
    read = ContextSet.open(folder).vectors
    assert np.abs(np.linalg.norm(read, axis=1) - 1).max() < 1e-6
    assert (read * whole).sum(axis=1).min() > 0.99999
