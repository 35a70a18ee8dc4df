"""What is recognized in a published tree, what is chosen of several, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from facesyn_cli.errors import UserError
from facesyn_cli.pipelines.published_tree import INPUTS, ITEMS, PRODUCTS, SOURCES, PublishedTree
from facesyn_cli.pipelines.stage import config_class_of

G, R = "generative_model_training", "recognition_model_training"


def make(root: Path, *files: str) -> PublishedTree:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return PublishedTree(root)


@pytest.mark.parametrize("stage", INPUTS)
def test_the_tables_speak_of_settings_and_items_that_exist(stage):
    settings = set(config_class_of(stage).model_fields)
    for use in INPUTS[stage]:
        assert {use.key, use.beside, use.unless} - {""} <= settings and use.item in ITEMS
    assert set(PRODUCTS.values()) | set(SOURCES.values()) <= set(ITEMS)


@pytest.mark.parametrize(("thing", "files", "expected"), [
    ("faces", ["dataset/CASIA/images/0000045/001.jpg"], "dataset/CASIA/images"),
    ("face embeddings", [f"dataset/CASIA/elasticface_embeddings/{n}" for n in ("elastic_embed.npy", "image_names.pkl")],
     "dataset/CASIA/elasticface_embeddings/elastic_embed.npy"),
    ("recognizer", [f"{G}/ckpt/elasticface_fr/295672backbone.pth", f"{G}/ckpt/elasticface_fr/other.pth"],
     f"{G}/ckpt/elasticface_fr/295672backbone.pth"),
    ("recognizer", [f"{G}/ckpt/elasticface_fr/other.pth"], f"{G}/ckpt/elasticface_fr/other.pth"),
    ("ldm", [f"{G}/ckpt/ADMIS_FRCSyn_ckpt/ema_averaged_model_{n}.ckpt" for n in (90000, 200000)],
     f"{G}/ckpt/ADMIS_FRCSyn_ckpt/ema_averaged_model_200000.ckpt"),
    ("contexts", ["dataset/context_database/elasticface_embeddings.npy"],
     "dataset/context_database/elasticface_embeddings.npy"),
    ("trained recognizer", [f"{R}/ckpt/Backbone_Epoch_{n}_checkpoint.pth" for n in (5, 40)],
     f"{R}/ckpt/Backbone_Epoch_40_checkpoint.pth"),
    ("records", [f"dataset/CASIA/TFR_training_data/{n}" for n in ("Syn_10k.index", "Syn_10k-00000.tfrecord")],
     "dataset/CASIA/TFR_training_data/Syn_10k.index"),
    ("records", [f"{R}/data/TFR-Syn/{n}" for n in ("TFR-Syn.index", "TFR-Syn-00000.tfrecord")],
     f"{R}/data/TFR-Syn/TFR-Syn.index"),
    ("benchmarks", ["dataset/val/lfw.bin"], "dataset/val"),
])
def test_found(tmp_path, thing, files, expected):
    assert make(tmp_path, *files).find(thing).path == tmp_path / expected


@pytest.mark.parametrize(("thing", "files", "says"), [
    ("face embeddings", ["dataset/CASIA/elasticface_embeddings/elastic_embed.npy"], "has no image_names.pkl beside it"),
    ("autoencoder", [f"{G}/ckpt/autoencoder/first_stage_decoder_state_dict.pt"],
     "has no first_stage_encoder_state_dict.pt in it"),
    ("recognizer", [f"{G}/ckpt/elasticface_fr/{n}.pth" for n in "ab"], "there are several"),
    ("records", [f"dataset/CASIA/TFR_training_data/Syn_{n}" for n in ("1.index", "1-00000.tfrecord", "2.index",
                                                                     "2-00000.tfrecord")], "there are several"),
    ("records", ["dataset/CASIA/TFR_training_data/Syn.index"], "has no Syn-00000.tfrecord beside it"),
    ("records", [f"dataset/TFR-CASIA/{n}" for n in ("TFR-CASIA.index", "TFR-CASIA-00000.tfrecord")], "is about CASIA"),
    ("ldm", [], "ema_averaged_model*.ckpt is not there"), ("samples", [], "is not there"),
])
def test_missing(tmp_path, thing, files, says):
    found = make(tmp_path, *files).find(thing)
    assert found.path is None and says in found.problem


def test_an_empty_folder_is_missing(tmp_path):
    (tmp_path / G / "samples").mkdir(parents=True)
    assert PublishedTree(tmp_path).find("samples").problem == f"{G}/samples is empty"


def test_samples_that_hold_their_context_faces(tmp_path):
    tree = make(tmp_path, *(f"{G}/samples/0/{k}.png" for k in range(55)))
    assert tree.find("augmented").path == tmp_path / G / "samples"
    (tmp_path / G / "samples/0/53.png").write_bytes(b"y")
    assert PublishedTree(tmp_path).find("augmented").path is None
    assert PublishedTree(tmp_path).find("samples").path is not None


def test_wrong_trees_are_refused_in_one_line(tmp_path):
    make(tmp_path, f"{G}/ckpt/ADMIS_FRCSyn_ckpt/ema_averaged_model_1.ckpt", "file")
    assert PublishedTree.open(tmp_path).is_recognized()
    for path, says in ((tmp_path / "nothing", "is not a directory"), (tmp_path / "file", "is not a directory"),
                       (tmp_path / G / "ckpt", f"did you mean {tmp_path}\\?")):
        with pytest.raises(UserError, match=says) as caught:
            PublishedTree.open(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "other" / "a" / "b" / "c").mkdir(parents=True)
    with pytest.raises(UserError, match="holds nothing of the published layout .dataset/CASIA/images"):
        PublishedTree.open(tmp_path / "other" / "a" / "b" / "c")
