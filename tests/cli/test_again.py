"""The same command again: finished, nothing is written; another setting is refused; what a kill leaves is completed.

One table for all commands that write a folder with a header. `models convert`, `pairs`, `starter pack`, `ablate`, `run`
and `demo` have tests of this kind beside their others.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import tiny_embedder
import tiny_fr
import tiny_ldm
from damage import unfinish
from fill import fill_state
from tiny_recognizer import write_faces, write_recognizer

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig

UNET = {
    "name": "idiff-unet", "in_channels": 3, "channels": 32, "multipliers": [1], "attention": [False], "num_blocks": 1,
    "context_size": 512, "context_width": 32,
}
STEPS = ("scheduler={name: ddim, steps: 2}",)
WEIGHTS = ("model.safetensors",)
AUTOENCODER = (
    "device=cpu", f"image_size={tiny_ldm.SIZE}", "autoencoder.patch=2", "autoencoder.channels=[8]",
    "autoencoder.num_groups=4", "autoencoder.latent_channels=4", "preview_every=0",
)

# command -> its words, another setting, and files that are written just before the header
COMMANDS: dict[str, tuple[list[object], list[object], tuple[str, ...]]] = {
    "align": (["align", "--images", "{}/photos", "--landmarks", "{}/landmarks.csv"], ["size=96"], ("landmarks.csv",)),
    "embed": (["embed", "--images", "{}/faces", "--weights", "{}/judge", "workers=1"], ["--images", "{}/photos"], ()),
    "train-ldm": (
        ["train-ldm", "--images", "{}/tiny/faces", "--embeddings", "{}/tiny/embeddings", "--steps", 2, "--batch-size",
         8, *tiny_ldm.SETTINGS],
        ["--seed", 1], WEIGHTS,
    ),
    "train-embedder": (
        ["train-embedder", "--images", "{}/taught/faces", "--embeddings", "{}/taught/embeddings", "--steps", 2,
         "--backbone", "ir-lite", *tiny_embedder.SETTINGS],
        ["--seed", 1], WEIGHTS,
    ),
    "train-autoencoder": (
        ["train-autoencoder", "--images", "{}/tiny/faces", "--steps", 2, "--batch-size", 8, *AUTOENCODER],
        ["--seed", 1], WEIGHTS,
    ),
    "gen-contexts": (["gen-contexts", "--source", "sphere", "--count", 4], ["--seed", 1], ("contexts.jsonl",)),
    "sample": (["sample", "--work", "{}", "--ids", 3, "--per-id", 2, *STEPS], ["--seed", 1], ()),
    "augment": (["augment", "--work", "{}", "--copies", 2, "augmentation=photometric"], ["--seed", 1], ()),
    "pack": (["pack", "--in", "{}/faces", "name=tiny", "size=112"], ["size=64"], ()),
    "train-fr": ([*tiny_fr.train_arguments(Path("{}/faces"), Path("x"), epochs=1)[:3],
                  *tiny_fr.train_arguments(Path(), Path(), epochs=1)[5:]], ["--seed", 1], WEIGHTS),
    "eval": (
        ["eval", "--weights", "{}/judge", "--pairs", "{}/pairs.txt", "--images", "{}/faces"],
        ["--weights", "{}/other"], ("table.json",),
    ),
    "select": (["select", "--work", "{}", "--embeddings", "{}/judged", "--r", 0.1], ["--r", 0.2], ()),
    "report": (
        ["report", "{}/4-samples", "--judge", "{}/judge", "perceptual_images=0", "workers=1"], ["r=0.5"],
        ("report.json", "report.html"),
    ),
    "study": (
        ["study", "--work", "{}", "--judge", "{}/judge", "--ids", 2, "--per-id", 2, "schedulers=[ddim]", "steps=[2]",
         "reference_steps=4", "seeds=1"],
        ["--seed", 1], ("study.json",),
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A work folder with contexts, samples and their embeddings, and what else the commands read."""
    from facesyn_cli.cli.main import run_command_line

    work = tmp_path_factory.mktemp("world")
    write_faces(work / "faces", people=4, photos=3)
    write_faces(work / "photos", people=2, photos=2)
    write_recognizer(work / "judge")
    write_recognizer(work / "other", widths=[4, 8, 12, 20])
    points = "38.3,51.7,73.5,51.5,56.0,71.7,41.5,92.4,70.7,92.2"
    (work / "landmarks.csv").write_text("".join(f"p{i}/{j}.png,{points}\n" for i in range(2) for j in range(2)))
    rows = [("p0/0", "p0/1", 1), ("p0/0", "p1/1", 0), ("p2/1", "p2/0", 1), ("p2/0", "p1/0", 0)]
    (work / "pairs.txt").write_text("2\n" + "".join(f"{a}.png {b}.png {same}\n" for a, b, same in rows))
    for name, write in (("tiny", tiny_ldm.write_faces), ("taught", tiny_embedder.write_taught_faces)):
        (work / name).mkdir()
        write(work / name)
    settings = LdmSettings(
        denoiser=UNET, latent_size=6, latent_mean=[0.0] * 3, latent_std=[0.003] * 3, image_size=24, output_size=112,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}},
    )
    write_weights(work / "2-ldm", fill_state(ConditionalUNet(UnetConfig(**UNET))).state_dict(),
                  settings.model_dump(mode="json"))
    for words in (
        ["gen-contexts", "--source", "sphere", "--count", 4, "--work", work],
        ["sample", "--work", work, "--ids", 3, "--per-id", 2, *STEPS],
        ["embed", "--images", work / "4-samples", "--weights", work / "judge", "--out", work / "judged"],
    ):
        assert run_command_line([str(word) for word in words]) == 0
    return work


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.rglob("*") if path.is_file()}


def _content(folder: Path) -> dict[str, bytes]:
    """Return the files without logs, which hold speeds."""
    logs = ("metrics.jsonl", "speed/")
    return {name: data for name, (_, data) in _state(folder).items() if not name.startswith(logs)}


def _said(text: str) -> list[str]:
    """Return the lines of a summary, without that which says how much this run has made."""
    return sorted(line for line in text.splitlines() if "made now" not in line)


@pytest.mark.parametrize("name", COMMANDS)
def test_again(name: str, world: Path, tmp_path: Path, run_cli, assert_refused) -> None:
    out = tmp_path / "out"
    words, other, last = COMMANDS[name]
    command = [*(str(word).replace("{}", str(world)) for word in words), "--out", out, "--device", "cpu"]
    first = run_cli(*command)
    assert first.code == 0, first.err
    finished, content = _state(out), _content(out)

    again = run_cli(*command)
    assert again.code == 0, again.err
    assert "is finished already" in again.err and _said(again.out) == _said(first.out)
    assert _state(out) == finished, "something was written"
    says = ("was started with other", "setting in the folder now", "another one with --out")
    assert_refused(*command, *(str(word).replace("{}", str(world)) for word in other), says=says)
    assert _state(out) == finished

    unfinish(out, *last)
    gone = {"host": socket.gethostname(), "process": 2**22, "started": "1"}
    (out / ".lock-all").write_text(json.dumps(gone))
    (out / ".tmp-facesyn.json-1-1").write_text('{"kind": "Ima')
    (out / ".tmp-folder").mkdir()
    (out / ".tmp-folder" / "x").write_bytes(b"half")
    ran = run_cli(*command)
    assert ran.code == 0, ran.err
    assert "taking over" in ran.err
    left = _content(out)
    assert left.keys() == content.keys()
    assert [name for name in left if left[name] != content[name]] == []
