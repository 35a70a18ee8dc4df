"""`precision=auto` of `sample` and others: the choice, who follows it, warnings of a slow format; nothing is timed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from fill import fill_state
from tiny_recognizer import write_recognizer, write_run_inputs

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.models import precision as formats
from facesyn_cli.plugins import registry

DENOISER = {"name": "dit", "in_channels": 3, "width": 16, "depth": 1, "heads": 1, "context_size": 8, "context_width": 8}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple:
    folder = tmp_path_factory.mktemp("inputs")
    denoiser = fill_state(registry.build("denoiser", registry.configure("denoiser", DENOISER)))
    settings = LdmSettings(
        denoiser=DENOISER, latent_size=4, image_size=16, output_size=16,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}}, embedding_size=8,
    )
    write_weights(folder / "ldm", denoiser.state_dict(), settings.model_dump(mode="json"))
    np.save(folder / "contexts.npy", np.random.RandomState(0).standard_normal((4, 8)).astype(np.float32))
    return ("sample", "--ldm", folder / "ldm", "--contexts", folder / "contexts.npy", "--device", "cpu", "--steps", 2,
            "--assume-embedder", "any", "--json", "--batch-size", 2)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that sets how fast bf16 is on this machine, and the list of measurements."""
    measured: list[str] = []

    def be(speed: float) -> list[str]:
        def gain(evaluate, precision: str, device: object) -> float:
            evaluate(precision)
            measured.append(precision)
            return speed

        monkeypatch.setattr(formats, "gain", gain)
        formats.matrix_gain.cache_clear()
        formats.warn_if_slow.cache_clear()
        return measured

    yield be
    formats.matrix_gain.cache_clear()
    formats.warn_if_slow.cache_clear()


def images(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*/*.png")}


def recorded(folder: Path) -> str:
    return json.loads((folder / "facesyn.json").read_text())["config"]["identity"]["precision"]


@pytest.mark.parametrize(("speed", "chosen"), [(1.6, "bf16"), (0.6, "fp32"), (1.02, "fp32")])
def test_auto_takes_what_pays_and_the_header_records_it(run_cli, inputs, machine, tmp_path, speed, chosen):
    machine(speed)
    ran = run_cli(*inputs, "--per-id", 2, "--precision", "auto", "--out", tmp_path / "auto")
    assert ran.code == 0 and f"precision=auto: {chosen}; the network is {speed:.2f} times as fast in bf16" in ran.err
    assert recorded(tmp_path / "auto") == chosen
    assert not list((tmp_path / "auto").glob(".agreed-*"))
    assert run_cli(*inputs, "--per-id", 2, "--precision", chosen, "--out", tmp_path / "stated").code == 0
    assert images(tmp_path / "auto") == images(tmp_path / "stated") and len(images(tmp_path / "auto")) == 8


def test_a_set_grows_and_resumes_in_the_format_that_it_was_started_with(run_cli, inputs, machine, tmp_path):
    command = (*inputs, "--precision", "auto", "--out", tmp_path / "out")
    measured = machine(2.0)
    assert run_cli(*command, "--per-id", 1).code == 0 and measured == ["bf16"]
    machine(0.5)
    assert run_cli(*command, "--per-id", 2).code == 0
    (tmp_path / "out" / "facesyn.json").rename(tmp_path / "out" / "facesyn.begun.json")  # as after a kill
    assert run_cli(*command, "--per-id", 2).code == 0
    assert recorded(tmp_path / "out") == "bf16" and measured == ["bf16"]
    ran = run_cli(*inputs, "--precision", "fp32", "--out", tmp_path / "out", "--per-id", 2)
    assert ran.code == 2 and "precision bf16 fp32" in " ".join(ran.err.split())


def test_parts_on_different_machines_agree(run_cli, inputs, machine, tmp_path):
    """The machines of all parts but the first to run would choose fp32."""
    command = (*inputs, "--precision", "auto", "--per-id", 3)
    for part, speed in ((2, 1.5), (1, 0.5), (3, 0.5)):
        measured = machine(speed)
        ran = run_cli(*command, "--shard", f"{part}/3", "--out", tmp_path / "parts")
        assert ran.code == 0, ran.err
    assert measured == ["bf16"] and recorded(tmp_path / "parts") == "bf16"
    machine(1.5)
    assert run_cli(*command, "--out", tmp_path / "whole").code == 0
    assert images(tmp_path / "parts") == images(tmp_path / "whole")


def test_a_machine_without_the_format_is_told(run_cli, inputs, assert_refused, machine, monkeypatch, tmp_path):
    command = (*inputs, "--precision", "auto", "--per-id", 1, "--out", tmp_path / "out")
    machine(2.0)
    assert run_cli(*command).code == 0
    monkeypatch.setattr(formats, "computes", lambda precision, device: precision == "fp32")
    assert_refused(*command, says=("was started with precision=bf16, which cpu cannot compute", "another --out"))
    assert run_cli(*command[:-1], tmp_path / "other").code == 0 and recorded(tmp_path / "other") == "fp32"


def test_a_plan_shows_the_choice_and_writes_nothing(run_cli, inputs, machine, tmp_path):
    machine(2.0)
    ran = run_cli(*inputs, "--precision", "auto", "--per-id", 1, "--out", tmp_path / "out", "--dry-run")
    assert ran.code == 0 and ran.json()["plan"]["chosen"]["precision"] == "bf16"
    assert not (tmp_path / "out").exists()


def test_a_format_that_does_not_pay_is_told_once(run_cli, inputs, machine, tmp_path):
    machine(0.6)
    words = "precision=bf16 does not pay here"
    ran = run_cli(*inputs, "--precision", "bf16", "--per-id", 1, "--out", tmp_path / "out")
    assert ran.code == 0 and ran.err.count(words) == 1 and "0.6 times as fast as in fp32" in ran.err
    again = run_cli(*inputs, "--precision", "bf16", "--per-id", 1, "--out", tmp_path / "again")
    assert again.code == 0 and words not in again.err  # once in a process
    machine(1.4)
    assert words not in run_cli(*inputs, "--precision", "bf16", "--per-id", 1, "--out", tmp_path / "fast").err


def test_embed_eval_and_report_take_auto_as_well(run_cli, machine, tmp_path):
    machine(2.0)
    pairs, held_out = write_run_inputs(tmp_path / "work", people=3, photos=2)
    weights = write_recognizer(tmp_path / "recognizer")
    common = ("--work", tmp_path / "work", "precision=auto", "--device", "cpu", "--json")
    embed = ("embed", *common, "--weights", weights, "--batch-size", 4)
    assert run_cli(*embed, "--out", tmp_path / "auto").code == 0
    machine(0.5)
    assert run_cli(*embed, "--out", tmp_path / "auto").code == 0 and recorded(tmp_path / "auto") == "bf16"
    assert run_cli(*embed, "precision=bf16", "--out", tmp_path / "stated").code == 0
    first, second = (np.load(tmp_path / name / "embeddings.npy") for name in ("auto", "stated"))
    assert np.array_equal(first, second)
    for command in (
        ("eval", *common, "--weights", weights, "--pairs", pairs, "--images", held_out),
        ("report", tmp_path / "work" / "0-images", *common, "--judge", weights),
    ):
        assert run_cli(*command, "--dry-run").json()["plan"]["chosen"]["precision"] == "fp32"
        assert run_cli(*command, "--out", tmp_path / command[0]).code == 0
        assert recorded(tmp_path / command[0]) == "fp32"


def test_doctor_says_which_format_pays(run_cli, machine):
    for speed, pays in ((0.6, "fp32"), (2.25, "bf16")):
        machine(speed)
        ran = run_cli("doctor")
        line = next(line for line in ran.out.splitlines() if line.startswith("cpu  "))
        assert f"  {pays}  " in line and f"  bf16 {speed:.2g}, " in line
    found = run_cli("doctor", "--json").json()["precision"]["cpu"]
    assert found["pays"] == "bf16" and found["times_as_fast_as_fp32"]["bf16"] in (2.2, 2.3)
