"""`facesyn bench` on networks so small that only its bookkeeping is at work."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_fr import write_faces
from tolerance import products_of, rounding

from facesyn_cli.artifacts.text_tables import to_text
from facesyn_cli.bench import plain_loops
from facesyn_cli.bench.machine import Clock, matrix_rate
from facesyn_cli.bench.published_layers import as_published
from facesyn_cli.bench.random_networks import flops, random_network
from facesyn_cli.bench.sample_bench import SampleBench
from facesyn_cli.data.latent_cache import LatentCache
from facesyn_cli.stages.bench import SUBJECTS, blocks

TINY = (
    "denoiser.channels=32", "denoiser.multipliers=[1,1]", "denoiser.attention=[false,true]", "denoiser.num_blocks=1",
    "denoiser.context_size=16", "denoiser.context_width=32", "autoencoder.channels=32",
    "autoencoder.multipliers=[1,2]", "autoencoder.num_blocks=1", "autoencoder.codebook_size=32",
    "backbone.name=ir-tiny", "backbone.widths=[4,8]", "backbone.blocks=[1,1]", "backbone.embedding_size=16",
    "image_size=16", "per_id=4", "rounds=1", "cores=1", "device=cpu", "workers=0",
)
UNET = {"name": "idiff-unet", "channels": 32, "multipliers": [1, 1], "attention": [False, True], "num_blocks": 1,
        "context_size": 16, "context_width": 32}
CPU = torch.device("cpu")


@pytest.mark.parametrize(("bf16", "pays"), [(2.0, "bf16"), (1.02, "fp32"), (0.5, "fp32"), (None, "fp32")])
def test_a_format_pays_where_all_options_together_are_clearly_faster_in_it(bf16, pays):
    rows = [{"name": "as published", "speedup": 1.0}, {"name": "all, fp32", "speedup": 3.0}]
    rows += [{"name": "all, bf16", "speedup": 3.0 * bf16}] if bf16 else []  # slow products are not measured further
    bench = SimpleNamespace(machine=SimpleNamespace(rates={"fp32": 1.0, "bf16": 2.0}))
    assert SampleBench._fastest(bench, rows) == pays


@pytest.mark.parametrize("subject", SUBJECTS)
def test_both_sides_are_measured(run_cli, subject):
    ran = run_cli("bench", subject, "--images", 20, "--batch-size", 4, "--steps", 2, *TINY, "--json")
    assert ran.code == 0, ran.err
    result = ran.json()
    if subject == "reading":
        plain, first, ours = result["runs"]
        assert plain["name"] == "ImageFolder, DataLoader" and first["name"] == "facesyn, first epoch"
        assert result["speedup of the first epoch"] == pytest.approx(first["images/s"] / plain["images/s"], rel=2e-3)
        assert ours["images/s per core"] == ours["images/s"], "one core"
    else:
        plain, *once, ours = result["runs"]
        assert plain["name"] == "plain loop, fp32" and ours["name"].startswith("facesyn")
    expected = {"sample": (20, 20), "train-ldm": (8, 8)}.get(subject, (20, 20))
    assert (plain["images"], ours["images"]) == expected
    for row in (plain, ours):
        assert row["images/s"] == pytest.approx(row["images"] / row["seconds"], rel=2e-3)
    assert result["speedup"] == pytest.approx(ours["images/s"] / plain["images/s"], rel=2e-3)
    assert 0 < result["machine"]["matrix rate"]["fp32"] < 10_000
    assert json.dumps(result) and to_text(blocks(result)).count("images/s") >= 1
    assert all((subject not in ("pack", "reading")) == (row.get("share of ceiling", 0) > 0) for row in (plain, ours))
    if subject == "sample":
        names = [row["name"] for row in result["options"]]
        assert names[0] == "as published" and "all, fp32" in names
        assert {"positions in rows, fused attention", "contexts encoded once", "channels last"} <= set(names)
        assert result["precision that pays"] in ("fp32", "bf16") and "for this network" in to_text(blocks(result))
        assert result["seconds for 10,000 x 50"] == pytest.approx(500_000 / ours["images/s"], rel=1e-2)
    else:
        assert "options" not in result


def test_given_faces_of_whole_batches(run_cli, tmp_path):
    """22 images in batches of 4: both loops read the first 20, whose last identity is the fifth."""
    faces = write_faces(tmp_path / "faces")
    for subject in ("train-fr", "reading"):
        words = ("--images", 22, "--batch-size", 4, "epochs=2", *TINY, "--json")
        ran = run_cli("bench", subject, f"faces={faces}", *words)
        assert ran.code == 0, ran.err
        images = [row["images"] for row in ran.json()["runs"]]
        assert images == ([40, 40] if subject == "train-fr" else [20, 20, 20])
    assert len(list(faces.rglob("*.png"))) == 24, "the given faces stay"


def test_latents_of_train_ldm_are_encoded_once_and_counted_apart(run_cli, monkeypatch):
    fills, fill = [], LatentCache.fill
    monkeypatch.setattr(LatentCache, "fill", lambda cache, numbers, *rest: fills.append(numbers) or fill(
        cache, numbers, *rest))
    ran = run_cli("bench", "train-ldm", "--images", 20, "--batch-size", 4, "--steps", 2, *TINY, "--json")
    assert ran.code == 0, ran.err
    _, encoding, _ = ran.json()["runs"]
    assert encoding["name"] == "facesyn, fp32, latents encoded once" and encoding["images"] == 2 * 20  # and mirrored
    assert fills == [[0]]  # the stage finds the cache


def test_every_core_has_a_batch_and_few_steps_are_compared_with_many(run_cli):
    words = [word for word in TINY if word != "cores=1"]
    ran = run_cli("bench", "sample", "--batch-size", 2, "--steps", 8, "few_steps=2", *words, "cores=2",
                  "each_option=false", "--json")
    assert ran.code == 0, ran.err
    result = ran.json()
    plain, ours, few = result["runs"]
    assert (plain["images"], ours["images"], few["images"]) == (4, 4, 4)
    assert few["name"].endswith("unipc, 2 steps")
    assert result["speedup with few steps"] == pytest.approx(few["images/s"] / plain["images/s"], rel=2e-3)
    assert "speedup with few steps: " in to_text(blocks(result))
    ran = run_cli(
        "bench", "sample", "--batch-size", 2, "--steps", 7, "few_steps=2", *TINY, "each_option=false", "--json"
    )
    assert len(ran.json()["runs"]) == 2, "7 steps are not 4 times 2"


def test_table_for_people(run_cli):
    ran = run_cli("bench", "pack", "--images", 8, *TINY)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert any(line.startswith("runs ") and "images/s" in line for line in lines)
    assert lines[-1].startswith("speedup: ")
    ran = run_cli("bench", "reading", "--images", 8, *TINY, "--markdown")
    assert ran.code == 0 and any(line.startswith("| runs | images |") for line in ran.out.splitlines()), ran.err


def test_wrong_words_are_one_line(assert_refused):
    assert_refused("bench", "everything", says=("'everything'", "sample, embed, train-ldm"))
    assert_refused("bench", "sample", "imags=3", says=("unknown setting 'imags'", "images"))
    assert_refused("bench", "sample", "--device", "cuda:99", says="cuda:99")
    assert_refused("bench", "eval", "--images", 8, *TINY, says="20 images")
    assert_refused("bench", "sample", *TINY, "each_option=false", "--images", 4, "compile=true", "--batch-size", 4,
                   "--steps", 1, says="compile=true needs a CUDA device")


def test_the_published_layers_give_the_same_numbers_on_the_same_weights():
    network = random_network("denoiser", UNET)
    published = as_published(network)
    assert {id(p) for p in published.parameters()} == {id(p) for p in network.parameters()}
    x, t, context = torch.randn(3, 3, 8, 8), torch.tensor([0, 500, 999]), torch.randn(3, 16)
    with torch.no_grad():
        expected, actual = network(x, t, context), published(x, t, context)
        encoded = published(x, t, published.encode_context(context))
    assert not actual.equal(expected), "it is the same code"
    tolerance = rounding(products_of(network), expected.std())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(encoded, actual, rtol=0, atol=tolerance)


def test_operations_are_counted():
    """Two for each multiplication and addition: 3 x 3 convolutions of 3 -> 5 channels on 8 x 8, then 5 -> 5."""
    section = {"name": "ir-tiny", "widths": [4, 8], "blocks": [1, 1], "embedding_size": 16}
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Conv2d(5, 5, 3, padding=1))
    count = flops("backbone", section, lambda _: conv.to("meta")(torch.zeros(1, 3, 8, 8, device="meta")))
    assert count == 2 * 64 * 9 * (3 * 5 + 5 * 5)


def test_random_networks_depend_on_names_alone():
    one, two = random_network("denoiser", UNET), random_network("denoiser", UNET)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert a.equal(b), name
    assert one(torch.randn(1, 3, 8, 8), torch.tensor([5]), torch.randn(1, 16)).std() > 0.01, "the output is alive"


def test_the_plain_loop_is_the_textbook_chain(tmp_path):
    """With a network that knows the answer, DDIM returns it from any noise."""
    answer = torch.linspace(-0.8, 0.8, 3 * 16).view(1, 3, 4, 4)
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def oracle(x, t, context):
        a = alpha_bars[t].view(-1, 1, 1, 1)
        return (x - a.sqrt() * answer) / (1 - a).sqrt()

    class Identity(torch.nn.Module):
        def decode(self, latents):
            return latents

    plain_loops.sample(oracle, Identity(), torch.zeros(2, 1), 2, 4, (3, 4, 4), 4, tmp_path, CPU)
    paths = sorted(tmp_path.rglob("*.png"))
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == ["0/0.png", "0/1.png", "1/0.png", "1/1.png"]
    for path in paths:
        assert (plain_loops._read_batch([path])[0] - answer[0]).abs().max() < 1.01 / 127.5


def test_clock():
    clock = Clock(CPU)
    assert clock.seconds(lambda: sum(range(1_000_000))) > 1e-4
    assert 1e7 < matrix_rate(clock, "fp32", 1) < 1e15


def test_peak_memory_counts_what_was_freed_again():
    """In a process of its own: freed memory that is used again would not raise the peak of this one."""
    script = (
        "import mmap, torch\n"
        "from facesyn_cli.bench.machine import peak_memory\n"
        "with peak_memory(torch.device('cpu')) as small: pass\n"
        "with peak_memory(torch.device('cpu')) as large:\n"
        "    with mmap.mmap(-1, 64 * 2**20) as room:\n"
        "        for page in range(0, len(room), 4096): room[page] = 1\n"
        "print(-1 if small['MiB'] is None else large['MiB'] - small['MiB'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    risen = float(done.stdout)
    assert risen == -1 or 60 < risen < 100, "the system does not tell, or it tells right"
