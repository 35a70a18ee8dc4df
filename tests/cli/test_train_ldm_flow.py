"""LDMs that predict flow through the commands: training, sampling, contexts, study, copies, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_state
from tiny_ldm import EMBEDDING_SIZE, train_arguments, write_faces
from tiny_recognizer import write_recognizer

from facesyn_cli import signals
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.ldm_settings import FlowTimes, LdmSettings
from facesyn_cli.artifacts.weights import read_tensors, write_weights
from facesyn_cli.data.pixels import decode_image
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.models.loading import load_backbone, load_denoiser
from facesyn_cli.training.trainer import Trainer

FLOW = ("prediction=flow", "flow.shift=2", "context_dropout=0.3")
DIT = (f"denoiser={{name: dit, in_channels: 3, width: 16, depth: 1, heads: 1, context_size: {EMBEDDING_SIZE}, "
       "context_width: 8}",)
UNET = {
    "name": "idiff-unet", "in_channels": 3, "channels": 32, "multipliers": [1, 1], "attention": [False, True],
    "num_blocks": 1, "context_size": 512, "context_width": 32,
}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-flow")
    write_faces(folder)
    write_recognizer(folder / "judge")
    np.save(folder / "contexts.npy", np.random.RandomState(0).standard_normal((3, EMBEDDING_SIZE)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def trained(faces: Path) -> Path:
    """An LDM that a training with previews and a judge wrote."""
    from facesyn_cli.cli.main import run_command_line

    more = ("preview_every=10", "preview_steps=3", "preview_identities=2", "preview_samples=2",
            f"judge={faces / 'judge'}", "judge_every=10", "judge_identities=3", "judge_images=2", "judge_steps=2")
    assert run_command_line(train_arguments(faces, faces / "ldm", *FLOW, *more, steps=40)) == 0
    return faces / "ldm"


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an LDM `ldm` of the recognizer `recognizer`, and contexts."""
    folder = tmp_path_factory.mktemp("drawing-flow")
    recognizer = write_recognizer(folder / "recognizer")
    write_recognizer(folder / "judge", widths=[4, 8, 12, 20])
    settings = LdmSettings(
        denoiser=UNET, prediction="flow", flow={"shift": 2.0}, latent_size=6, latent_mean=[0.0] * 3,
        latent_std=[0.5] * 3, image_size=24, output_size=21, embedder=load_backbone(recognizer).digest,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}},
    )
    unet = fill_state(ConditionalUNet(UnetConfig(**UNET)))
    write_weights(folder / "ldm", unet.state_dict(), settings.model_dump(mode="json"))
    np.save(folder / "contexts.npy", np.random.RandomState(0).standard_normal((4, 512)).astype(np.float32))
    return folder


def header(folder: Path) -> dict:
    return json.loads((folder / "facesyn.json").read_text())


def sample(faces: Path, out: Path, *more: object) -> list[object]:
    return ["sample", "--ldm", faces / "ldm", "--contexts", faces / "contexts.npy", "--out", out, "--device", "cpu",
            "assume_embedder=any", "--ids", 2, "--per-id", 2, "--batch-size", 4, "contact_sheet=false", *more]


def images(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob("*.png"))}


def test_training_learns_and_says_what_it_predicts(trained: Path):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:3])
    assert any("val_loss" in line for line in lines) and any("to_photo" in line for line in lines)
    assert (trained / "previews" / "step-00000010.png").is_file()
    written = json.loads((trained / "config.json").read_text())
    assert written["prediction"] == "flow" and written["flow"] == {"mean": 0.0, "std": 1.0, "shift": 2.0}
    assert not {"num_timesteps", "beta_schedule", "beta_start", "zero_terminal_snr"} & set(written)
    assert load_denoiser(trained).config.flow == FlowTimes(shift=2.0)
    assert header(trained)["config"]["identity"]["flow"] == {"mean": 0.0, "std": 1.0, "shift": 2.0}


def test_a_stopped_training_ends_with_the_same_weights(faces: Path, tmp_path: Path, run_cli, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_cli(*train_arguments(faces, whole, *DIT, *FLOW, steps=7)).code == 0
    taken = Trainer._take_step

    def stop_after_four(trainer, *arguments):
        loss = taken(trainer, *arguments)
        if trainer.step == 4:
            signals._remember(15, None)
        return loss

    monkeypatch.setattr(Trainer, "_take_step", stop_after_four)
    assert run_cli(*train_arguments(faces, stopped, *DIT, *FLOW, steps=7)).code == 143
    signals.reset()
    monkeypatch.undo()
    assert run_cli(*train_arguments(faces, stopped, *DIT, *FLOW, steps=7)).code == 0
    first, second = read_tensors(whole / "model.safetensors"), read_tensors(stopped / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = sample(faces, tmp_path / "drawn", "--ldm", whole, "--scheduler", "flow-heun", "--steps", 2)
    assert run_cli(*drawn).code == 0 and len(set(images(tmp_path / "drawn").values())) == 4


@pytest.mark.parametrize(("words", "says"), [
    (("prediction=v", "flow.shift=2"), ("flow belongs to prediction flow", "the prediction is v")),
    (("prediction=flow", "beta_schedule=cosine"), ("no noise schedule", "beta_schedule")),
    (("prediction=flow", "zero_terminal_snr=true", "beta_end=0.01"), ("beta_end, zero_terminal_snr",)),
    (("prediction=flow", "num_timesteps=500"), ("num_timesteps",)),
    (("prediction=flow", "min_snr_gamma=5"), ("min_snr_gamma",)),
    (("prediction=flow", "flow.std=0"), ("flow.std", "greater than 0")),
    (("prediction=flow", "flow.sigma=1"), ("unknown setting 'flow.sigma'",)),
    (("prediction=flow", "export_published=true", "latent_statistics=identity"), ("flow",)),
])
def test_settings_that_do_not_apply_are_refused(words, says, faces: Path, tmp_path: Path, assert_refused):
    assert_refused(*train_arguments(faces, tmp_path / "ldm", *words), says=says)


def test_without_a_stated_scheduler_flow_euler_is_used_and_recorded(trained, faces, tmp_path, run_cli):
    ran = run_cli(*sample(faces, tmp_path / "out"))
    assert ran.code == 0 and "flow-euler with 20 steps is used in place of unipc" in ran.err
    used = {"name": "flow-euler", "steps": 20, "shift": None, "temperature": 1.0}
    assert header(tmp_path / "out")["config"]["identity"]["scheduler"] == used
    assert header(tmp_path / "out")["extra"]["network_evaluations_per_image"] == 20
    before = images(tmp_path / "out")
    assert run_cli(*sample(faces, tmp_path / "out")).code == 0                             # finished
    (tmp_path / "out" / "facesyn.json").rename(tmp_path / "out" / "facesyn.begun.json")
    (tmp_path / "out" / sorted(before)[0]).unlink()
    assert run_cli(*sample(faces, tmp_path / "out", "--scheduler", "flow-euler")).code == 0  # resumes
    assert images(tmp_path / "out") == before
    ran = run_cli(*sample(faces, tmp_path / "out", "--per-id", 3))                         # grows
    assert ran.code == 0 and images(tmp_path / "out").items() > before.items()


def test_stated_steps_are_kept_and_heun_is_counted(trained, faces, tmp_path, run_cli, assert_refused):
    plan = run_cli(*sample(faces, tmp_path / "out", "--steps", 3, "--dry-run", "--json")).json()["plan"]
    assert plan["network_evaluations"]["denoiser"] == 3 * 4
    heun = ("--scheduler", "flow-heun", "--steps", 3, "guidance={name: cfg, scale: 2, end: 0.5}")
    plan = run_cli(*sample(faces, tmp_path / "out", *heun, "--dry-run", "--json")).json()["plan"]
    assert plan["network_evaluations"]["denoiser"] == (5 + 3) * 4  # times 0, 1, 1 of 0, 1, 1, 2, 2 are guided
    assert run_cli(*sample(faces, tmp_path / "out", *heun)).code == 0
    assert header(tmp_path / "out")["extra"]["network_evaluations_per_image"] == 8
    assert_refused(*sample(faces, tmp_path / "other", "--scheduler", "unipc"),
                   says=("scheduler unipc", "predicts flow", "flow-euler, flow-heun do"))


def test_a_copy_in_half_precision_draws_nearly_the_same(trained, faces, tmp_path, run_cli):
    assert run_cli("models", "convert", trained, "--out", tmp_path / "half", "--precision", "fp16").code == 0
    assert load_denoiser(tmp_path / "half").config == load_denoiser(trained).config
    assert run_cli("models", "verify", tmp_path / "half").code == 0
    assert run_cli("models", "inspect", tmp_path / "half", "--json").json()["prediction"] == "flow"
    ran = run_cli("models", "convert", trained, "--out", tmp_path / "published", "--to", "published")
    assert ran.code == 2 and "Traceback" not in ran.err


def test_two_stage_contexts_and_the_filter_quality(drawing, tmp_path, run_cli):
    words = ["gen-contexts", "--ldm", drawing / "ldm", "--weights", drawing / "recognizer", "--device", "cpu",
             "--source", "two-stage", "--count", 3, "--batch-size", 2, "source.scheduler.steps=2",
             "filters=[{name: quality, images: 2, lowest_cosine: -1, guidance: 1, scheduler: {steps: 3}}]", "--json"]
    ran = run_cli(*words, "--out", tmp_path / "out")
    assert ran.code == 0 and "flow-euler with 2 steps is used in place of ddim" in ran.err
    used = header(tmp_path / "out")["config"]["identity"]
    assert used["source"]["scheduler"] == {"name": "flow-euler", "steps": 2, "shift": None, "temperature": 1.0}
    assert used["filters"][0]["scheduler"]["name"] == "flow-euler"
    assert run_cli(*words, "--out", tmp_path / "out").code == 0
    plan = run_cli(*words, "--out", tmp_path / "new", "--dry-run").json()["plan"]
    assert plan["network_evaluations"]["denoiser"] == 3 * (2 + 2 * 3)
    ran = run_cli(*words, "source.scheduler.name=ddim", "--out", tmp_path / "new")
    assert ran.code == 2 and "flow-euler, flow-heun do" in ran.err


@pytest.mark.parametrize(("guidance", "evaluations"), [("cfg", 6), ("negfacediff", 6), ("adaptdiff", 5), ("uiface", 6)])
def test_all_guidance_draws_with_heun(drawing, tmp_path, run_cli, guidance: str, evaluations: int):
    for joint in ("true", "false"):
        words = sample(drawing, tmp_path / joint, "--scheduler", "flow-heun", "--steps", 2, f"guidance={guidance}",
                       f"joint_guidance={joint}")
        assert run_cli(*words).code == 0
        assert header(tmp_path / joint)["extra"]["network_evaluations_per_image"] == evaluations
    assert len(set(images(tmp_path / "true").values())) == 4
    for name in images(tmp_path / "true"):
        first, second = (decode_image((tmp_path / on / name).read_bytes()).astype(int) for on in ("true", "false"))
        assert abs(first - second).max() <= 1


def test_a_study_takes_flow_schedulers(drawing, tmp_path, run_cli):
    ran = run_cli("study", "--ldm", drawing / "ldm", "--contexts", drawing / "contexts.npy", "--judge",
                  drawing / "judge", "--out", tmp_path / "out", "--device", "cpu", "assume_embedder=any", "--ids", 2,
                  "--per-id", 2, "--seeds", 1, "--steps", "2,3", "reference_steps=6", "method_steps=2", "--methods",
                  "negfacediff", "--json")
    assert ran.code == 0, ran.err
    rows = [(row["scheduler"], row["steps"], row["method"], row["evaluations"]) for row in ran.json()["rows"]]
    assert rows == [
        ("flow-euler", 6, "", 6.0), ("flow-euler", 2, "", 2.0), ("flow-euler", 3, "", 3.0), ("flow-heun", 2, "", 3.0),
        ("flow-heun", 3, "", 5.0), ("flow-euler", 2, "negfacediff", 4.0),
    ]
    assert header(tmp_path / "out")["config"]["identity"]["schedulers"] == ["flow-euler", "flow-heun"]
    assert json.loads((tmp_path / "out" / "study.json").read_text())["reference"] == "flow-euler 6 steps"
