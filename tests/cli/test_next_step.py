"""The line after a command: it exists as it is written, with the folders and options of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_lines import check, in_lines
from tiny_recognizer import write_faces, write_recognizer

from facesyn_cli.artifacts.work import FOLDERS, Work
from facesyn_cli.cli import next_step
from facesyn_cli.cli.stage_command import OPTIONS
from facesyn_cli.config.recipe import STAGES

WORK = Path("my runs/a")
FOLDER_OF = {stage: next_step.OUTPUTS.get(stage, "") for stage in STAGES}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finish(*folders: Path | str) -> Path:
    """Make finished folders: names of `FOLDERS` in the run, or paths; return the last one."""
    paths = [folder if isinstance(folder, Path) else Work(WORK).folder(folder) for folder in folders]
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
        (path / "facesyn.json").write_text("{}")
    return paths[-1]


def after(stage: str, folder: Path, **given: object) -> str | None:
    """Return the line after a stage, and check its command."""
    text = next_step.after_stage(stage, folder, Work(Path(str(given.get("work", WORK)))), given, OPTIONS)
    for words in in_lines([text or ""]):
        check(words)
    return text


@pytest.mark.parametrize("where", ["in the run", "elsewhere"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_line_whose_command_exists(stage: str, where: str) -> None:
    is_aside = where == "elsewhere" or not FOLDER_OF[stage]
    folder = finish("samples", Path("other folder") / stage if is_aside else FOLDER_OF[stage])
    text = after(stage, folder, work=WORK, config="admis", device="cpu", seed=3)
    if stage == "report":
        assert text == f"next: open {folder}/report.html in a browser"
        return
    words = in_lines([text])[0]
    assert words[words.index("--work") + 1] == str(WORK) and words[words.index("--config") + 1] == "admis"
    no_input = ("study", "train-embedder", "train-identity")  # what these wrote is no input of the next command
    if is_aside and stage not in no_input:
        assert str(folder) in words, text


CASES = {  # stage -> finished folders, options, line
    "align": (["images"], {"starter": "s"}, "facesyn embed --starter s --work 'my runs/a'"),
    "embed": (["images", "embeddings"], {"starter": "s"}, "facesyn train-ldm --starter s --work 'my runs/a'"),
    "embed, faces elsewhere": (
        ["autoencoder", "embeddings"], {"images": "f.zip"}, "facesyn train-ldm --images f.zip --work 'my runs/a'"
    ),
    "embed, with an LDM": (["ldm", "embeddings"], {}, "facesyn gen-contexts --count 100 --work 'my runs/a'"),
    "train-autoencoder": (["images", "embeddings", "autoencoder"], {}, "facesyn train-ldm --work 'my runs/a'"),
    "train-ldm": (["embeddings", "ldm"], {"device": "cuda"},
                  "facesyn gen-contexts --count 100 --work 'my runs/a' --device cuda"),
    "gen-contexts": (["contexts"], {"ldm": "x.ckpt"}, "facesyn sample --ldm x.ckpt --work 'my runs/a'"),
    "gen-contexts, from a tree": (["contexts"], {"tree": "t"}, "facesyn sample --work 'my runs/a' --tree t"),
    "gen-contexts, of a starter": (["contexts"], {"starter": "s"}, "facesyn sample --starter s --work 'my runs/a'"),
    "sample": (["samples"], {"seed": 1}, "facesyn pack --work 'my runs/a' --seed 1"),
    "sample, with a recipe": (["samples"], {"config": "demo"}, "facesyn augment --config demo --work 'my runs/a'"),
    "sample, again": (["samples", "records", "fr", "table"], {},
                      "(JUDGE: weights of a recognizer other than the one of the contexts): "
                      "facesyn report --judge JUDGE --work 'my runs/a'"),
    "pack": (["records"], {}, "facesyn train-fr --work 'my runs/a'"),
    "train-fr": (["fr"], {}, "(BENCHMARKS: folder that holds lfw.bin): "
                 "facesyn eval --benchmarks lfw --data BENCHMARKS --work 'my runs/a'"),
    "train-fr, with a recipe": (["fr"], {"config": "some.yaml"}, "facesyn eval --config some.yaml --work 'my runs/a'"),
    "eval": (["table"], {"weights": "b.pth"},
             "(PHOTO_1, PHOTO_2: two aligned faces, or folders of them): "
             "facesyn compare PHOTO_1 PHOTO_2 --weights b.pth --table 'my runs/a/8-table'"),
    "eval, of a whole run": (["samples", "table"], {"config": "some.yaml"},
                             "facesyn report --config some.yaml --work 'my runs/a'"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_line_follows_from_the_work_folder_and_the_options(name: str) -> None:
    folders, given, line = CASES[name]
    stage = name.partition(",")[0]
    Path("some.yaml").write_text("eval: {pairs: [p.txt], images: faces}\nreport: {judges: [j.onnx]}\n")
    folder = finish(*[one for one in folders if one != FOLDER_OF[stage]], FOLDER_OF[stage])
    assert after(stage, folder, work=WORK, **given) == f"next{'' if line.startswith('(') else ':'} {line}"


def test_what_lies_elsewhere_is_named() -> None:
    for stage, line in {
        "align": "embed --images x --starter s", "embed": "train-ldm --embeddings x --starter s",
        "sample": "pack --in x", "pack": "train-fr --in x",
        "gen-contexts": "sample --contexts x --starter s",
    }.items():
        finish("images")
        text = after(stage, finish(Path("x")), work=WORK, starter="s")
        assert text == f"next: facesyn {line} --work 'my runs/a'"
    assert "--weights x " in after("train-fr", finish(Path("x")), work=WORK)
    assert after("report", finish(Path("x")), work=WORK) == "next: open x/report.html in a browser"


def test_a_bare_command_is_followed_by_a_bare_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --work and --config the packaged starter is taken by itself; with them it is named."""
    monkeypatch.setattr(next_step, "is_packaged", lambda: True)
    work = Work(Path("work"))
    for folder in ("images", "contexts"):
        finish(work.folder(folder))
    assert next_step.after_stage("align", work.folder("images"), work, {}, OPTIONS) == "next: facesyn embed"
    assert after("align", finish("images"), work=WORK) == "next: facesyn embed --starter packaged --work 'my runs/a'"
    monkeypatch.setattr(next_step, "is_packaged", lambda: False)
    assert after("gen-contexts", finish("contexts"), work=WORK) == (
        "next (LDM: weights of a latent diffusion model): facesyn sample --ldm LDM --work 'my runs/a'"
    )


def test_a_picture_of_the_faces_is_named() -> None:
    folder = finish("samples")
    folder.with_name("4-samples.contact_sheet.png").write_bytes(b"x")
    assert after("sample", folder, work=WORK) == (
        "next (faces to look at: my runs/a/4-samples.contact_sheet.png): facesyn pack --work 'my runs/a'"
    )


def test_an_unfinished_part_has_no_line() -> None:
    folder = finish("samples")
    (folder / "facesyn.json").unlink()
    assert after("sample", folder, work=WORK) is None


def test_what_loads_converted_weights() -> None:
    lines = [next_step.after_conversion(kind, "safetensors", Path("w"))
             for kind in ("backbone", "denoiser", "autoencoder", "head")]
    lines.append(next_step.after_conversion("backbone", "onnx", Path("w")))
    found = in_lines(lines)
    assert [words[0] for words in found] == ["embed", "sample", "train-ldm", "train-fr", "embed"]
    for words in found:
        check(words)
    assert next_step.after_conversion("backbone", "published", Path("w")) is None


def test_converted_weights_are_loaded_by_the_command_of_the_line(run_cli, tmp_path: Path) -> None:
    write_recognizer(tmp_path / "net")
    write_faces(tmp_path / "faces", people=2, photos=2)
    ran = run_cli("models", "convert", "net", "--out", "new net")
    assert ran.code == 0, ran.err
    last = ran.err.splitlines()[-1]
    assert last == "next (FACES: folder or zip of aligned faces): facesyn embed --images FACES --weights 'new net'"
    words = ["faces" if word == "FACES" else word for word in in_lines([last])[0]]
    assert run_cli(*words).code == 0 and (tmp_path / "work" / "1-embeddings" / "facesyn.json").is_file()


def test_after_doctor_comes_the_demo_where_a_starter_is_packaged(run_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run_cli("doctor")
    is_packaged = next_step.is_packaged()
    assert ran.code == 0 and ("next: facesyn demo" in ran.err.splitlines()) == is_packaged
    assert "next" not in run_cli("doctor", "--json").err


def test_it_is_on_stderr_only_and_not_for_programs(run_cli, tmp_path: Path) -> None:
    write_recognizer(tmp_path / "net")
    write_faces(tmp_path / "faces", people=2, photos=2)
    command = ("embed", "--images", "faces", "--weights", "net", "--work", "run", "--device", "cpu")
    assert "next" not in run_cli(*command, "--dry-run").err
    ran = run_cli(*command)
    assert ran.code == 0 and "next" not in ran.out
    assert ran.err.splitlines()[-1].startswith("next: facesyn train-ldm --images faces --") and ran.out
    ran = run_cli(*command, "--json")
    assert "next" not in ran.err and json.loads(ran.out)["images"] == 4


def test_every_folder_of_a_run_has_a_stage() -> None:
    assert set(next_step.OUTPUTS.values()) == set(FOLDERS)
