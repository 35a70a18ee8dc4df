"""`facesyn sample` with guidance away from others, contexts per image and redrawing, on a tiny LDM."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_state
from tiny_recognizer import write_recognizer

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.data.pixels import decode_image
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.models.loading import load_backbone

TINY = {
    "name": "idiff-unet", "in_channels": 3, "channels": 32, "multipliers": [1, 1], "attention": [False, True],
    "num_blocks": 1, "context_size": 8, "context_width": 32,
}
NUM_IDS, PER_ID, STEPS = 5, 4, 2
METHODS = {
    "negfacediff": ["guidance.name=negfacediff", "guidance.negative=random"],
    "adaptdiff": ["guidance.name=adaptdiff"],
    "idperturb": ["variation=idperturb"],
    "gaussian": ["variation=gaussian"],
    "shared-noise": ["variation=shared-noise"],
    "scoremix": ["guidance.name=scoremix"],
    "uiface": ["guidance.name=uiface"],
    "consistency": [],  # filled in by the fixture: it needs a judge
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    unet = fill_state(ConditionalUNet(UnetConfig(**TINY)))
    settings = LdmSettings(
        denoiser=TINY, latent_size=6, latent_mean=[0.0] * 3, latent_std=[0.003] * 3, image_size=24, output_size=21,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}}, embedding_size=8,
    )
    write_weights(folder / "ldm", unet.state_dict(), settings.model_dump(mode="json"))
    np.save(folder / "contexts.npy", np.random.RandomState(0).standard_normal((NUM_IDS, 8)).astype(np.float32))
    write_recognizer(folder / "judge")
    return folder


@pytest.fixture
def sample(run_cli, inputs, tmp_path):
    def run(*arguments, out="out", method=""):
        return run_cli(*command(inputs, tmp_path / out, method, *arguments))

    return run


def command(inputs: Path, out: Path, method: str, *arguments: object) -> list[object]:
    words = METHODS.get(method, [])
    if method == "consistency":
        words = ["filter.name=consistency", f"filter.judge={inputs / 'judge'}", "filter.center_images=3",
                 "filter.lowest=0.9", "filter.attempts=2"]
    return ["sample", "--ldm", inputs / "ldm", "--contexts", inputs / "contexts.npy", "--out", out, "--device", "cpu",
            "--steps", STEPS, "--per-id", PER_ID, "--batch-size", 3, "--assume-embedder", "any", "--json", *words,
            *arguments]


def digests(folder: Path) -> dict[str, str]:
    named = [p for p in sorted(folder.rglob("*")) if p.parent != folder or p.suffix != ".png"]
    files = [p for p in named if p.suffix in (".png", ".npy", ".csv", ".txt")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def pixels(folder: Path) -> np.ndarray:
    images = ImageSet.open(folder)
    return np.stack([decode_image(images.read(entry)) for entry in images.entries])


def header(folder: Path) -> dict:
    return json.loads((folder / "facesyn.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_another_set_of_its_own(sample, tmp_path, method):
    """Killed and resumed, in parts or at once: the same files; and not those of plain sampling."""
    ran = sample(method=method)
    assert ran.code == 0, ran.err
    whole = digests(tmp_path / "out")
    assert sum(name.endswith(".png") for name in whole) == NUM_IDS * PER_ID
    assert sample(out="plain").code == 0
    plain = digests(tmp_path / "plain")
    assert any(whole[name] != plain[name] for name in plain)

    killed = tmp_path / "killed"
    sample(out="killed", method=method)
    (killed / "facesyn.json").rename(killed / "facesyn.begun.json")
    for name in ("1/2.png", "4/0.png", "judged.csv", "image-contexts/facesyn.json"):
        (killed / name).unlink(missing_ok=True)
    assert sample(out="killed", method=method).code == 0
    assert digests(killed) == whole

    for part in ("1/2", "2/2"):
        assert sample("--shard", part, out="parts", method=method).code == 0
    assert digests(tmp_path / "parts") == whole
    assert header(tmp_path / "parts")["digest"] == header(tmp_path / "out")["digest"]


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("consistency", "uiface")])
def test_batch_size_changes_at_most_one_gray_level(sample, tmp_path, method):
    sample(method=method)
    sample("--batch-size", NUM_IDS * PER_ID, out="large", method=method)
    assert abs(pixels(tmp_path / "out").astype(int) - pixels(tmp_path / "large")).max() <= 1


@pytest.mark.parametrize(
    ("words", "evaluations"),
    [([], STEPS), (METHODS["negfacediff"], 2 * STEPS), (METHODS["adaptdiff"], 2 * STEPS), (METHODS["idperturb"], STEPS),
     (METHODS["uiface"], 2 * STEPS), (["guidance.name=negfacediff", "guidance.scale=1"], STEPS)],
)
def test_cost_is_in_the_plan_and_in_the_header(sample, tmp_path, words, evaluations):
    plan = sample("--dry-run", *words).json()["plan"]
    assert plan["chosen"]["evaluations_per_image"] == evaluations
    assert not (tmp_path / "out").exists()
    sample(*words)
    assert header(tmp_path / "out")["extra"]["network_evaluations_per_image"] == evaluations


def test_negatives_come_from_the_set_that_is_named(sample, inputs, tmp_path, assert_refused):
    other = np.random.RandomState(1).standard_normal((3, 8)).astype(np.float32)
    np.save(tmp_path / "other.npy", other)
    words = ["guidance.name=negfacediff", f"guidance.contexts={tmp_path / 'other.npy'}"]
    assert sample(*words).code == 0
    assert header(tmp_path / "out")["parents"]["negatives"]["path"] == str(tmp_path / "other.npy")
    sample("guidance.name=negfacediff", out="own")
    assert digests(tmp_path / "own") != digests(tmp_path / "out")
    np.save(tmp_path / "other.npy", other[:2])  # another set under the same name
    assert_refused(*command(inputs, tmp_path / "out", "", *words), says="input negatives")
    np.save(tmp_path / "other.npy", other[:, :4])
    assert_refused(*command(inputs, tmp_path / "new", "", *words), says="holds contexts of 4 numbers")
    np.save(tmp_path / "other.npy", other[:1])
    assert_refused(*command(inputs, tmp_path / "new", "", *words), says="2 or more contexts, there is 1")


def test_people_who_are_mixed_are_not_those_of_their_contexts(sample, inputs, tmp_path, assert_refused):
    assert sample(method="scoremix").code == 0
    assert header(tmp_path / "out")["extra"]["network_evaluations_per_image"] == 2 * STEPS
    assert {"partners", "all_contexts"} <= header(tmp_path / "out")["parents"].keys()
    assert_refused("augment", f"images={tmp_path / 'out'}", "--contexts", inputs / "contexts.npy", "--out",
                   tmp_path / "more", says=("out was sampled with guidance scoremix", "augmentation.name=photometric"))
    words = [*METHODS["scoremix"], "filter.name=consistency", f"filter.judge={inputs / 'judge'}"]
    assert_refused(*command(inputs, tmp_path / "new", "", *words, "filter.reference=context"),
                   says=("between two contexts", "filter.reference=center"))
    assert sample(*words, "filter.center_images=3", "filter.attempts=1", out="judged").code == 0


def test_contexts_of_the_images_are_stored_and_make_the_set_again(sample, tmp_path, inputs, assert_refused):
    assert sample(method="idperturb").code == 0
    stored = EmbeddingSet.open(tmp_path / "out" / "image-contexts")
    assert stored.keys == [f"{i}/{k}" for i in range(NUM_IDS) for k in range(PER_ID)]
    assert stored.vectors.shape == (NUM_IDS * PER_ID, 8)
    assert header(tmp_path / "out")["extra"]["image_contexts"] == {
        "folder": "image-contexts", "digest": stored.digest
    }
    given = ["variation.name=given", f"variation.path={tmp_path / 'out' / 'image-contexts'}"]
    assert sample(*given, out="again").code == 0
    assert (pixels(tmp_path / "again") == pixels(tmp_path / "out")).all()
    assert_refused(*command(inputs, tmp_path / "more", "", *given, "--per-id", PER_ID + 1),
                   says=f"no context for image '0/{PER_ID}'")


def test_growing_keeps_images_and_stores_the_new_contexts_too(sample, tmp_path):
    sample("--ids", 3, method="idperturb")
    before = digests(tmp_path / "out")
    assert sample("--ids", 5, method="idperturb").code == 0
    sample(out="fresh", method="idperturb")
    after = digests(tmp_path / "out")
    assert after == digests(tmp_path / "fresh")
    assert all(after[name] == digest for name, digest in before.items() if name.endswith(".png"))


def test_contexts_that_others_depend_on_must_not_change(sample, inputs, tmp_path, assert_refused):
    """The cones of IDPERTURB follow the nearest of all contexts, so one more of them changes old images."""
    assert sample("--ids", 3, method="idperturb").code == 0
    more = np.random.RandomState(0).standard_normal((NUM_IDS + 1, 8)).astype(np.float32)
    np.save(tmp_path / "more.npy", more)
    arguments = command(inputs, tmp_path / "out", "idperturb", "--ids", 3, "--contexts", tmp_path / "more.npy")
    assert_refused(*arguments, says="input all_contexts")


def test_shared_noise_reaches_the_network(sample, tmp_path):
    """With one style and contexts that hardly matter, all images of a set are nearly one."""
    sample("variation.name=shared-noise", "variation.styles=1")
    sample(out="plain")
    assert not (tmp_path / "out" / "image-contexts").exists()

    def spread(folder):
        return pixels(folder).astype(float).std(axis=0).mean()

    assert spread(tmp_path / "out") < 0.7 * spread(tmp_path / "plain")


def test_refused_images_are_drawn_again_and_the_best_draw_is_kept(sample, inputs, tmp_path):
    ran = sample(method="consistency")
    sample(out="plain")
    rows = list(csv.DictReader((tmp_path / "out" / "judged.csv").read_text().splitlines()))
    backbone = load_backbone(inputs / "judge")
    judge = FaceEmbedder.of(backbone, torch.device("cpu"))
    first, kept = (judge.embed(pixels(tmp_path / name)) for name in ("plain", "out"))
    replaced = 0
    for i, row in enumerate(rows):
        own, sample_number = divmod(i, PER_ID)
        others = [k for k in range(3) if k != sample_number]
        center = first[own * PER_ID : (own + 1) * PER_ID][others].sum(axis=0)
        center /= np.linalg.norm(center)
        assert row["key"] == f"{own}/{sample_number}"
        assert float(row["score"]) == pytest.approx(float(kept[i] @ center), abs=1e-4)
        assert float(row["score"]) >= float(first[i] @ center) - 1e-4
        assert (row["kept"] == "yes") == (float(row["score"]) >= 0.9)
        same = (pixels(tmp_path / "out")[i] == pixels(tmp_path / "plain")[i]).all()
        assert same == (row["draw"] == "0")
        replaced += not same
        if float(first[i] @ center) >= 0.9 + 1e-4:
            assert same  # nothing was wrong with it
    counts = ran.json()
    below = sum(row["kept"] != "yes" for row in rows)
    assert (counts["replaced"], counts["below_filter"]) == (replaced, below)
    assert replaced > 0
    extra = header(tmp_path / "out")["extra"]
    assert extra["network_evaluations_per_image"] == STEPS * counts["draws"] / (NUM_IDS * PER_ID) > STEPS


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_the_progress_counts_refused_images(layout, sample, monkeypatch):
    monkeypatch.setattr("facesyn_cli.progress.LINE_SECONDS", 0)
    ran = sample(f"layout={layout}", method="consistency")
    counts, lines = ran.json(), [line for line in ran.err.splitlines() if line.startswith("sample: ")]
    refused = counts["draws"] - NUM_IDS * PER_ID + counts["below_filter"]
    assert refused and lines[-1].startswith(f"sample: {NUM_IDS * PER_ID} of {NUM_IDS * PER_ID} images")
    assert lines[-1].endswith(f", refused {refused}")


def test_a_damaged_record_and_another_batch_size_cost_only_what_is_missing(sample, tmp_path):
    """What is known of finished identities does not depend on the blocks they were drawn in."""
    out = tmp_path / "out"
    sample(method="consistency")
    whole, judged = digests(out), sorted((out / ".judged").glob("*.npz"))
    assert len(judged) == 1  # 5 identities of 4 images are one block of 8 batches of 3
    (out / "facesyn.json").rename(out / "facesyn.begun.json")
    ran = sample("--batch-size", 1, "--dry-run", method="consistency")  # 2 identities a block
    assert ran.json()["plan"]["network_evaluations"]["denoiser"] == 0
    judged[0].write_bytes(b"PK")
    ran = sample("--batch-size", 1, "--dry-run", method="consistency")
    assert ran.json()["plan"]["network_evaluations"]["denoiser"] == NUM_IDS * PER_ID * STEPS
    assert sample(method="consistency").json()["made_now"] == 0  # judged again, nothing written again
    assert digests(out) == whole


def test_the_plan_says_what_a_filter_may_cost(sample):
    plan = sample("--dry-run", method="consistency").json()["plan"]
    assert plan["chosen"]["evaluations_per_image"] == STEPS
    assert plan["chosen"]["draws_per_image_at_most"] == 3
    assert plan["network_evaluations"]["judge"] == plan["counts"]["images_left"] == NUM_IDS * PER_ID


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["filter.name=consistency"], "filter.judge=FILE"),
        (["filter.name=consistency", "filter.judge={judge}"], "filter.center_images is 8, but an identity has 4"),
        (["filter.name=consistency", "filter.judge={judge}", "filter.reference=context", "--assume-embedder",
          "sha256:" + "a" * 64], "use filter.reference=center"),
        (["filter.name=consistency", "filter.judge={ldm}"], "recognizer"),
        (["variation.name=given"], "variation.path=FOLDER"),
        (["variation.name=idperturbed"], "did you mean 'idperturb'"),
        (["guidance.name=negfacediff", "guidance.negative=none"], "guidance.negative"),
    ],
)
def test_mistakes_are_one_line(assert_refused, inputs, tmp_path, words, says):
    words = [str(w).format(judge=inputs / "judge", ldm=inputs / "ldm") for w in words]
    assert_refused(*command(inputs, tmp_path / "out", "", *words), says=says)


def test_uiface_needs_a_denoiser_with_attention_to_contexts(assert_refused, inputs, tmp_path):
    adagn = {**TINY, "conditioning": "adagn"}
    unet = fill_state(ConditionalUNet(UnetConfig(**adagn)))
    settings = LdmSettings(
        denoiser=adagn, latent_size=6, latent_mean=[0.0] * 3, latent_std=[0.003] * 3, image_size=24, output_size=21,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}}, embedding_size=8,
    )
    write_weights(tmp_path / "ldm", unet.state_dict(), settings.model_dump(mode="json"))
    arguments = command(inputs, tmp_path / "out", "uiface", "--ldm", tmp_path / "ldm", "--dry-run")
    assert_refused(*arguments, says="the guidance records and injects attention to contexts")


# tar shards

TAR = ("layout=tar", "images_per_shard=7", "--batch-size", 1)  # blocks of two identities, 8 images, straddle shards


def test_shards_hold_what_the_filter_kept(sample, tmp_path):
    assert sample("--batch-size", 1, out="folder", method="consistency").code == 0
    ran = sample(*TAR, out="tar", method="consistency")
    assert ran.code == 0, ran.err
    assert ran.json()["made_now"] == 20
    plain, packed = open_images(tmp_path / "folder"), open_images(tmp_path / "tar")
    assert {e.key: plain.read(e) for e in plain.entries} == {e.key: packed.read(e) for e in packed.entries}
    assert (tmp_path / "tar" / "judged.csv").read_bytes() == (tmp_path / "folder" / "judged.csv").read_bytes()
    for part in ("2/2", "1/2"):
        assert sample(*TAR, "--shard", part, out="parts", method="consistency").code == 0
    assert shards(tmp_path / "parts") == shards(tmp_path / "tar")
    assert (tmp_path / "parts" / "judged.csv").read_bytes() == (tmp_path / "tar" / "judged.csv").read_bytes()

    (tmp_path / "tar" / "facesyn.json").rename(tmp_path / "tar" / "facesyn.begun.json")
    before = shards(tmp_path / "tar")
    sorted((tmp_path / "tar" / ".judged").glob("*.npz"))[-1].unlink()  # that of the fifth identity
    (tmp_path / "tar" / "images" / "images-000001.tar").unlink()
    ran = sample(*TAR, out="tar", method="consistency")
    assert ran.json()["made_now"] == 13 and shards(tmp_path / "tar") == before, ran.err


def test_contexts_of_images_lie_beside_shards(sample, tmp_path):
    assert sample(out="folder", method="gaussian").code == 0
    assert sample("layout=tar", "images_per_shard=7", out="tar", method="gaussian").code == 0
    one, two = (EmbeddingSet.open(tmp_path / name / "image-contexts") for name in ("folder", "tar"))
    assert one.keys == two.keys and np.array_equal(one.vectors, two.vectors)
    contexts = f"variation={{name: given, path: {tmp_path / 'tar' / 'image-contexts'}}}"
    assert sample("layout=tar", "images_per_shard=7", contexts, out="again").code == 0
    assert shards(tmp_path / "again") == shards(tmp_path / "tar")


def shards(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "images").glob("*.tar")}
