"""FIFOs and devices as inputs: every command refuses them at once, in one line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")

SECONDS = 60  # far more than any of them needs; a command that opens a FIFO waits for good
COMMANDS = {
    "align": ["align", "--images", "IN", "--landmarks", "IN"],
    "align detector": ["align", "--images", "FOLDER", "--detector", "IN"],
    "embed": ["embed", "--images", "IN", "--weights", "IN"],
    "embed weights": ["embed", "--images", "FOLDER", "--weights", "IN"],
    "train-ldm": ["train-ldm", "--images", "IN"],
    "train-ldm autoencoder": ["train-ldm", "--images", "FOLDER", "--embeddings", "IN", "--autoencoder", "IN"],
    "train-embedder": ["train-embedder", "--images", "IN"],
    "train-identity": ["train-identity", "--images", "IN"],
    "train-autoencoder": ["train-autoencoder", "--images", "IN"],
    "gen-contexts": ["gen-contexts", "--source", "embeddings", "--embeddings", "IN"],
    "gen-contexts images": ["gen-contexts", "--source", "images", "--images", "IN", "--weights", "IN"],
    "gen-contexts generator": ["gen-contexts", "--source", "guided-diffusion", "--generator", "IN", "--weights", "IN"],
    "sample": ["sample", "--ldm", "IN", "--contexts", "IN"],
    "sample noise": ["sample", "noise.file=IN"],
    "augment": ["augment", "--in", "IN", "--contexts", "IN"],
    "pack": ["pack", "--in", "IN"],
    "pack inside": ["pack", "--in", "FOLDER"],
    "train-fr": ["train-fr", "--in", "IN"],
    "eval": ["eval", "--weights", "IN", "--pairs", "IN"],
    "eval pairs": ["eval", "--pairs", "IN", "--images", "FOLDER"],
    "select": ["select", "--in", "IN", "--embeddings", "IN"],
    "report": ["report", "--judge", "IN", "--groups", "IN", "--table", "IN"],
    "study": ["study", "--judge", "IN", "--ldm", "IN", "--contexts", "IN"],
    "pairs": ["pairs", "IN", "--out", "OUT.bin"],
    "compare": ["compare", "IN", "IN"],
    "starter": ["starter", "pack", "--work", "FOLDER", "--card", "IN", "--out", "OUT"],
    "models inspect": ["models", "inspect", "IN"],
    "models verify": ["models", "verify", "IN"],
    "models fixture": ["models", "verify", "FOLDER", "--fixture", "IN"],
    "models convert": ["models", "convert", "IN", "--out", "OUT"],
    "recipe": ["embed", "--config", "IN"],
    "run": ["run", "--config", "IN"],
    "ablate": ["ablate", "--config", "IN"],
}


@pytest.fixture
def in_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not finished after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("name", "kind"), [*((name, "FIFO") for name in COMMANDS),
                                            *((name, "device") for name in ("embed", "pairs", "models inspect"))])
def test_refused_at_once(
    run_cli, in_time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    special = tmp_path / "in.npy"
    if kind == "FIFO":
        os.mkfifo(special)
    else:
        special.symlink_to("/dev/zero")
    folder = tmp_path / "folder"
    folder.mkdir()
    for suffix in (".jpg", ".tar", ".rec", ".tfrecord", ".parquet", ".npy", ".onnx", ".index"):
        os.mkfifo(folder / f"a{suffix}")
    words = {"IN": str(special), "FOLDER": str(folder), "OUT": str(tmp_path / "out"), "OUT.bin": "out.bin"}
    arguments = [words.get(word, word.replace("=IN", f"={special}")) for word in COMMANDS[name]]
    ran = run_cli(*arguments)
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err and "error: " in ran.err
