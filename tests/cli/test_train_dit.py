"""The denoiser `dit` in every command that takes a denoiser: trained, resumed, sampled, studied, inspected."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_ldm import EMBEDDER, EMBEDDING_SIZE, train_arguments, write_faces
from tiny_recognizer import write_recognizer

from facesyn_cli import signals
from facesyn_cli.artifacts.weights import read_config, read_tensors, write_weights
from facesyn_cli.bench.random_networks import flops
from facesyn_cli.cli.main import run_command_line
from facesyn_cli.data.pixels import decode_image
from facesyn_cli.models.dit import DiffusionTransformer
from facesyn_cli.models.loading import load_denoiser
from facesyn_cli.training.trainer import Trainer

DIT = (f"denoiser={{name: dit, in_channels: 3, width: 32, depth: 2, heads: 2, context_size: {EMBEDDING_SIZE}, "
       "context_width: 16, context_tokens: 2, dropout: 0.1, component_dropout: 0.1}")
MORE = (DIT, "context_dropout=0.3", "flip=0.5", "ema.maximum=0.9")


def arguments(faces: Path, out: Path, *more: object, steps: int = 7) -> list[str]:
    words = [word for word in train_arguments(faces, out, steps=steps) if not word.startswith("denoiser")]
    return [*words, *MORE, *map(str, more)]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-dit")
    write_faces(folder)
    contexts = np.random.RandomState(0).standard_normal((3, EMBEDDING_SIZE))
    np.save(folder / "contexts.npy", contexts.astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def ldm(faces: Path) -> Path:
    out = faces / "ldm"
    assert run_command_line(arguments(faces, out, "prediction=v", "preview_every=20", "preview_steps=2", steps=40)) == 0
    return out


def losses(out: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*.png"))}


def test_it_learns_and_sample_takes_what_it_writes(ldm: Path):
    found = losses(ldm)
    assert np.mean(found[-8:]) < 0.95 * np.mean(found[:3]) and losses(ldm, "val_loss")[-1] < losses(ldm, "val_loss")[0]
    assert (ldm / "previews" / "step-00000020.png").exists()
    loaded = load_denoiser(ldm)
    assert isinstance(loaded.module, DiffusionTransformer) and loaded.config.embedder == EMBEDDER
    last = read_tensors(ldm / "checkpoints" / "step-00000040" / "model.safetensors")
    assert any(not tensor.equal(last[key]) for key, tensor in read_tensors(ldm / "model.safetensors").items()), "EMA"


@pytest.mark.parametrize(
    "settings",
    [("min_snr_gamma=5",), ("prediction=x0",), ("precision=bf16", "denoiser.depth=3", "denoiser.token_drop=0.5")],
)
def test_every_prediction_and_bf16_train(faces: Path, run_cli, tmp_path: Path, settings):
    ran = run_cli(*arguments(faces, tmp_path / "ldm", *settings, steps=3))
    assert ran.code == 0, ran.err
    assert len(losses(tmp_path / "ldm")) == 3 and np.isfinite(losses(tmp_path / "ldm")).all()


def test_a_stopped_training_ends_with_the_same_weights(faces: Path, run_cli, tmp_path: Path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_cli(*arguments(faces, whole)).code == 0
    taken = Trainer._take_step

    def stop_after_four(trainer, *given):
        loss = taken(trainer, *given)
        if trainer.step == 4:
            signals._remember(15, None)
        return loss

    monkeypatch.setattr(Trainer, "_take_step", stop_after_four)
    assert run_cli(*arguments(faces, stopped)).code == 143
    signals.reset()
    monkeypatch.undo()
    assert run_cli(*arguments(faces, stopped)).code == 0
    first, second = read_tensors(whole / "model.safetensors"), read_tensors(stopped / "model.safetensors")
    assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)
    assert losses(stopped) == losses(whole)


def test_inference_options_change_nothing_but_rounding(faces: Path, ldm: Path, run_cli, tmp_path: Path):
    def sample(name: str, *more: object) -> dict[str, bytes]:
        ran = run_cli("sample", "--ldm", ldm, "--contexts", faces / "contexts.npy", "--out", tmp_path / name,
                      "--device", "cpu", "--steps", 3, "--per-id", 2, "--batch-size", 4, "--assume-embedder", EMBEDDER,
                      "guidance={name: cfg, scale: 2}", *more)
        assert ran.code == 0, ran.err
        return pictures(tmp_path / name)

    plain = sample("plain")
    assert len(plain) == 6 and len({hashlib.sha256(data).digest() for data in plain.values()}) == 6
    for name, most, options in (
        ("joint", 1, ["joint_guidance=true"]), ("fused", 1, ["fused_qkv=true"]), ("half", 16, ["precision=bf16"]),
    ):
        other = sample(name, *options)
        assert other.keys() == plain.keys()
        far = [np.abs(decode_image(other[key]).astype(int) - decode_image(plain[key])).max() for key in plain]
        assert max(far) <= most, name


def test_an_early_prediction_is_learned_and_guides(faces: Path, ldm: Path, run_cli, assert_refused, tmp_path: Path):
    out = tmp_path / "early"
    ran = run_cli(*arguments(faces, out, "prediction=v", "denoiser.early_output=1", f"initial_denoiser={ldm}"))
    assert ran.code == 0, ran.err
    found = losses(out, "early")
    assert len(found) == 7 and np.isfinite(found).all() and found[-1] < found[0]

    def sample(folder: Path, name: str, *guidance: object) -> tuple[object, ...]:
        return ("sample", "--ldm", folder, "--contexts", faces / "contexts.npy", "--out", tmp_path / name, "--device",
                "cpu", "--steps", 3, "--per-id", 2, "--assume-embedder", EMBEDDER, *guidance)

    drawn = {}
    for name, *guidance in (("plain",), ("off", "guidance={name: internal, scale: 1}"),
                            ("on", "guidance={name: internal, scale: 2}")):
        ran = run_cli(*sample(out, name, *guidance))
        assert ran.code == 0, ran.err
        header = json.loads((tmp_path / name / "facesyn.json").read_text())
        assert header["extra"]["network_evaluations_per_image"] == 3
        drawn[name] = pictures(tmp_path / name)
    assert drawn["plain"] == drawn["off"] and all(drawn["on"][key] != data for key, data in drawn["plain"].items())
    assert_refused(*sample(ldm, "without", "guidance=internal"), says="denoiser.early_output is needed")
    ran = run_cli(*arguments(faces, tmp_path / "back", "prediction=v", f"initial_denoiser={out}", steps=1))
    assert ran.code == 0 and "its early prediction is left out" in ran.err, ran.err


def test_attention_maps_are_refused(faces: Path, ldm: Path, assert_refused, tmp_path: Path):
    assert_refused("sample", "--ldm", ldm, "--contexts", faces / "contexts.npy", "--out", tmp_path / "out", "--steps",
                   2, "--per-id", 1, "--assume-embedder", EMBEDDER, "--device", "cpu", "guidance=uiface",
                   says="denoiser idiff-unet with conditioning ca is needed")


@pytest.mark.parametrize(
    ("more", "says"),
    [(("denoiser.patch=3",), ("divisible by 3, image_size gives 8", "denoiser.patch (dit)")),
     (("denoiser.heads=5",), "width (32) must be divisible by heads (5)"),
     (("denoiser.in_channels=16",), "set denoiser.in_channels=3"),
     (("denoiser.context_size=64",), f"set denoiser.context_size={EMBEDDING_SIZE}")],
)
def test_what_does_not_fit_is_one_line(faces: Path, assert_refused, tmp_path: Path, more, says):
    assert_refused(*arguments(faces, tmp_path / "out", *more), says=says)


def test_contexts_by_two_stages_and_a_study(faces: Path, ldm: Path, run_cli, tmp_path: Path):
    judge = write_recognizer(tmp_path / "judge", embedding_size=EMBEDDING_SIZE)
    own = tmp_path / "own"  # the same LDM, conditioned on no particular recognizer
    write_weights(own, read_tensors(ldm / "model.safetensors"), {**read_config(ldm), "embedder": None})
    ran = run_cli("gen-contexts", "--source", "two-stage", "--count", 1, "--ldm", own, "--weights", judge, "--out",
                  tmp_path / "contexts", "--device", "cpu", "source.scheduler.steps=2")
    assert ran.code == 0, ran.err
    ran = run_cli("study", "--ldm", ldm, "--contexts", faces / "contexts.npy", "--out", tmp_path / "study", "--judge",
                  judge, "--device", "cpu", f"assume_embedder={EMBEDDER}", "--ids", 3, "--per-id", 2, "--seeds", 1,
                  "--batch-size", 3, "reference_steps=4", "method_steps=2", "--schedulers", "ddim", "--steps", 2,
                  "--methods", "negfacediff", "--json")
    assert ran.code == 0, ran.err


def test_models_inspect_convert_and_verify(ldm: Path, run_cli, tmp_path: Path):
    seen = run_cli("models", "inspect", ldm, "--json").json()
    assert (seen["kind"], seen["architecture"]) == ("denoiser", "dit")
    assert seen["values"] == sum(p.numel() for p in load_denoiser(ldm).module.parameters())
    ran = run_cli("models", "convert", ldm, "--out", tmp_path / "half", "--precision", "fp16")
    assert ran.code == 0, ran.err
    half = read_tensors(tmp_path / "half" / "model.safetensors").values()
    assert {tensor.dtype for tensor in half if tensor.ndim > 1} == {torch.float16}
    assert load_denoiser(tmp_path / "half").config == load_denoiser(ldm).config
    assert run_cli("models", "verify", tmp_path / "half").code == 0


def test_operations_are_those_of_the_formula():
    tokens, n, s, depth = 9, 32, 2, 2
    settings = {"name": "dit", "in_channels": 3, "width": n, "depth": depth, "heads": 2, "context_size": 8,
                "context_width": 8, "context_tokens": s}
    x, t, c = torch.zeros(1, 3, 6, 6), torch.zeros(1, dtype=torch.long), torch.zeros(1, 8)
    counted = flops("denoiser", settings, lambda net: net(x.to("meta"), t.to("meta"), c.to("meta")))
    block = tokens * 12 * n**2 + 2 * s * n**2 + 2 * tokens * (tokens + s) * n
    outside = 2 * tokens * 12 * n + 256 * n + n**2 + 8 * 8 + 8 * n + 8 * s * n + 6 * n**2
    assert counted == 2 * (depth * block + outside)
