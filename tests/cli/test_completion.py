"""Shell completion: the candidates, and what bash, zsh and fish do with them."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from facesyn_cli.cli import completion, main
from facesyn_cli.stages.bench import ALONE, SUBJECTS

ROOT = typer.main.get_command(main.app)
BASH_BREAKS = " \t\n\"'><=;|&(:"


def values(line: str) -> list[str]:
    return sorted({value for value, _ in completion.complete(ROOT, line)})


def test_commands_and_options() -> None:
    assert values("facesyn ") == sorted(ROOT.commands) and values("facesyn sa") == ["sample"]
    assert values("facesyn models in") == ["inspect"]
    assert values("facesyn sample --pre") == ["--precision"] and "--seed" not in values("facesyn embed --")
    about = dict(completion.complete(ROOT, "facesyn sample --pre"))
    assert about["--precision"] == "fp32, bf16, fp16 or auto."


@pytest.mark.parametrize(("line", "found"), [
    ("sample --scheduler d", ["ddim", "ddim-admis", "ddpm", "dpm-solver++"]),
    ("sample --scheduler=un", ["--scheduler=unipc"]),
    ("embed --backbone ir-1", ["ir-101", "ir-152", "ir-18"]),
    ("train-fr --head cos", ["cosface"]),
    ("gen-contexts --source s", ["sphere"]),
    ("sample --precision f", ["fp16", "fp32"]),
    ("eval --benchmarks lfw,c", ["lfw,calfw", "lfw,cfp-ff", "lfw,cfp-fp", "lfw,cplfw"]),
    ("study --schedulers ddim,u", ["ddim,unipc"]),
    ("run --from se", ["select"]), ("pack --from tf", ["tfrecord"]), ("pack --to w", ["webdataset"]),
    ("config --stage sam", ["sample"]), ("config neg", ["negfacediff"]),
    ("plugins sche", ["scheduler"]), ("plugins head cos", ["cosface"]), ("plugins head cosface ", []),
    ("bench sc", ["scale"]), ("models convert --to o", ["onnx"]), ("sample --device cuda:", ["cuda:0"]),
])
def test_values_of_options_and_arguments(line: str, found: list[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert values(f"facesyn {line}") == found


@pytest.mark.parametrize(("line", "found"), [
    ("sample sched", ["scheduler.name=", "scheduler.spacing=", "scheduler.steps="]),
    ("sample --scheduler ddim sched", ["scheduler.eta=", "scheduler.name=", "scheduler.steps="]),
    ("sample scheduler.name=ddpm sched", ["scheduler.name=", "scheduler.steps=", "scheduler.variance="]),
    ("sample scheduler.name=un", ["scheduler.name=unipc"]), ("sample scheduler=un", ["scheduler=unipc"]),
    ("sample precision=b", ["precision=bf16"]), ("sample compile=", ["compile=false", "compile=true"]),
    ("sample scheduler.spacing=k", ["scheduler.spacing=karras"]), ("sample ids=", []),
    ("sample --ids 3 variation.n", ["variation.name="]), ("sample variation.name=sh", ["variation.name=shared-noise"]),
    ("run sam", ["sample."]), ("run sample.per", ["sample.per_id="]),
    ("run sample.scheduler.name=ddim sample.scheduler.e", ["sample.scheduler.eta="]),
    ("run train-fr.head.name=arc", ["train-fr.head.name=arcface"]), ("run nothing.x", []),
])
def test_settings(line: str, found: list[str]) -> None:
    assert values(f"facesyn {line}") == found


def test_a_recipe_can_be_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("mine.yaml", "mine/one.yml", "mine/photo.jpg", ".hidden.yaml"):
        (tmp_path / name).touch()
    assert values("facesyn run --config mi") == ["mine.yaml", "mine/"]
    assert values("facesyn run --config mine/") == ["mine/one.yml"]
    assert "small" in values("facesyn run --config ") and ".hidden.yaml" not in values("facesyn run --config ")
    assert values("facesyn run --config absent/") == []
    assert values("facesyn sample --starter ") == ["mine/", "packaged"]


def test_a_plugin_of_another_package_is_completed(monkeypatch) -> None:
    monkeypatch.setattr(completion.registry, "available", lambda kind: ["their-head"])
    assert values("facesyn train-fr --head th") == ["their-head"]
    assert values("facesyn train-fr head.name=their-head head.") == ["head.name="]


def test_quotes_and_unfinished_words() -> None:
    assert values("facesyn sample --ldm 'my folder' --prec") == ["--precision"]
    assert values("facesyn sample 'sched") == values("facesyn sample sched")
    for line in ("", "facesyn", "facesyn sample \\", "facesyn sample 'a\\' \"", "facesyn --nothing x"):
        values(line)


def test_the_names_in_the_tables_of_completion_exist() -> None:
    assert completion.SUBJECTS == (*SUBJECTS, *ALONE)
    commands = {f"{name} {inner}".strip(): found for name, command in ROOT.commands.items()
                for inner, found in {"": command, **getattr(command, "commands", {})}.items()}
    everywhere = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    assert set(completion._KIND_OF[""]) <= everywhere
    for name, option in [*completion._WORDS, *(("pack", option) for option in completion._KIND_OF["pack"])]:
        assert any(option in parameter.opts for parameter in commands[name].params), (name, option)


def test_answers_of_the_shells(run_cli, monkeypatch) -> None:
    def answer(shell: str, line: str) -> str:
        monkeypatch.setenv("_FACESYN_COMPLETE", shell)
        monkeypatch.setenv("_FACESYN_LINE", line)
        monkeypatch.setenv("_FACESYN_BREAKS", BASH_BREAKS)
        return run_cli("ignored").out

    assert answer("bash", "facesyn sample scheduler.name=un") == "unipc\n"
    assert answer("bash", "facesyn sample --device cuda:") == "0\n"
    assert answer("bash", "facesyn run sam") == "sample.\n"
    assert answer("zsh", "facesyn sample --device cuda:") == "+cuda\\:0\n"
    assert answer("zsh", "facesyn sample per_") == "-per_id=\n"
    assert answer("fish", "facesyn models in").startswith("inspect\tShow what a file contains")


def test_completion_is_installed_once_and_keeps_the_start_file(run_cli, assert_refused, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'", "utf-8")
    for shell, script, start in (("bash", ".local/share/facesyn/completion.bash", ".bashrc"),
                                 ("zsh", ".local/share/facesyn/completion.zsh", ".zshrc"),
                                 ("fish", ".config/fish/completions/facesyn.fish", None)):
        monkeypatch.setattr(completion, "current_shell", lambda shell=shell: shell)
        assert shell in run_cli("--install-completion").out
        assert run_cli("--install-completion").code == 0
        assert (tmp_path / script).read_text("utf-8") == run_cli("--show-completion").out
        if start is not None:
            lines = (tmp_path / start).read_text("utf-8").splitlines()
            assert [line for line in lines if "facesyn" in line] == lines[-1:] and str(tmp_path / script) in lines[-1]
    assert (tmp_path / ".bashrc").read_text("utf-8").startswith("alias ll='ls -l'\n")
    monkeypatch.setattr(completion, "current_shell", lambda: "tcsh")
    assert_refused("--install-completion", says="there is no completion for the shell 'tcsh'")


@pytest.fixture
def terminal(tmp_path):
    """Return a function that types into a shell in a pseudo-terminal and waits for a text on its screen."""
    launcher = tmp_path / "facesyn"
    root = Path(main.__file__).parents[2]
    launcher.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m facesyn_cli "$@"\n', "utf-8")
    launcher.chmod(0o755)
    opened = []

    def start(*command: str):
        pid, screen = pty.fork()
        if pid == 0:
            os.chdir(tmp_path)
            environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb",
                           "PS1": "$ ", "COLUMNS": "200", "LINES": "50"}
            os.execvpe(command[0], list(command), environment)
        opened.append((pid, screen))

        def type_and_wait(keys: str, expected: str) -> None:
            os.write(screen, keys.encode())
            seen, end = "", time.monotonic() + 60
            while expected not in seen:
                assert time.monotonic() < end, f"{expected!r} is not on the screen: {seen!r}"
                if select.select([screen], [], [], 1)[0]:
                    seen += os.read(screen, 65536).decode(errors="replace")
        return type_and_wait

    yield start
    for pid, screen in opened:
        os.close(screen)
        os.waitpid(pid, 0)


def script_of(shell: str) -> str:
    return str(Path(completion.__file__).with_name(f"completion.{shell}"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_a_setting_and_its_value(terminal) -> None:
    keys = terminal("bash", "--norc", "--noprofile", "-i")
    keys(f"bind 'set enable-bracketed-paste off'; . '{script_of('bash')}'; echo re''ady\n", "ready")
    keys("echo; facesyn sample scheduler.na\t", "scheduler.name=")
    keys("uni\t", "unipc ")   # behind the equals sign, and a space after the only value
    keys("prec\t", "precision=")
    keys("bf\t", "bf16 ")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_a_setting_and_its_value(terminal) -> None:
    keys = terminal("zsh", "-f", "-i")
    keys(f"autoload -Uz compinit && compinit -u -D; . '{script_of('zsh')}'; echo re''ady\n", "ready")
    keys("facesyn sample scheduler.na\t", "me=")  # what it adds
    keys("uni\t", "pc ")
    keys("--device cuda:\t", "0")


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_lists_values_of_a_setting(tmp_path) -> None:
    launcher = tmp_path / "facesyn"
    root = Path(main.__file__).parents[2]
    launcher.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m facesyn_cli "$@"\n', "utf-8")
    launcher.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = f"source '{script_of('fish')}'; complete --do-complete 'facesyn sample scheduler.name=dd'"
    done = subprocess.run(["fish", "--no-config", "-c", command], env=environment, capture_output=True, text=True,
                          timeout=60)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        "scheduler.name=ddim", "scheduler.name=ddim-admis", "scheduler.name=ddpm"
    ], done.stderr
