"""Every reader of files that others wrote, with a whole file for it, small enough to be damaged thousands of times."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import tiny_starter
import torch
from PIL import Image
from tiny_records import FORMATS, tiny_images, write_set
from tiny_tars import write_tar_set

from facesyn_cli import console
from facesyn_cli.artifacts.atomic_files import write_json
from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.name_lists import read_name_list
from facesyn_cli.artifacts.output import check_output
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.artifacts.starter_files import Starter
from facesyn_cli.artifacts.vector_files import read_vector_file
from facesyn_cli.artifacts.weights import read_tensors, write_tensors
from facesyn_cli.cli.main import run_command_line
from facesyn_cli.config.fields import (
    StageConfig,
)
from facesyn_cli.config.recipe import load_sections, recipe_folder
from facesyn_cli.config.resolve import resolve
from facesyn_cli.data.alignment import TEMPLATE
from facesyn_cli.data.landmarks import COLUMNS, read_landmarks
from facesyn_cli.data.pixels import UnreadableImage, decode_image, encode_png
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.data.tar_set import TarSet
from facesyn_cli.diffusion.noise import open_noise_file
from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.cfp import read_cfp
from facesyn_cli.evaluation.fairness import read_groups
from facesyn_cli.evaluation.pairs import read_bin, read_pairs
from facesyn_cli.evaluation.templates import read_templates
from facesyn_cli.models.inspection import inspect
from facesyn_cli.models.loading import load_autoencoder, load_backbone, load_denoiser
from facesyn_cli.pipelines.stage import config_class_of
from facesyn_cli.stages.starter import pack as pack_starter
from facesyn_cli.training.checkpoint import latest_checkpoint, save_checkpoint
from facesyn_cli.training.metrics_log import read_lines
from facesyn_cli.untrusted.arrays import read_archive

ANSWERS = (TEMPLATE + 0.5).round(2)
POINTS = " ".join(f"{v:.2f}" for v in ANSWERS.ravel())
LISTS = {
    "lfw": "2 1\na\t1\t1\na\t1\tb\t1\na\t1\t1\na\t1\tb\t1\n",
    "own": "2\na.png b.png 0\na.png a.png 1\n",
    "cplfw": "x\n" + "a.png 1\na.png 1\na.png 0\nb.png 0\n" * 5,
}
LANDMARKS = {
    "celeba": f"2\nlefteye_x lefteye_y\na.jpg {POINTS}\nb.jpg {POINTS}\n",
    "tface": f"a.jpg {POINTS} 0.9\nb.jpg {POINTS} 0.8\n",
    "csv": f"{','.join(COLUMNS)}\na.jpg,{POINTS.replace(' ', ',')},1\nb.jpg,{POINTS.replace(' ', ',')},1\n",
}


@dataclass(frozen=True)
class Reader:
    """One kind of file and what reads it.

    Args:
        path: The file to damage; the files beside it are whole.
        mutate: What damages it.
        read: Reads it, as a command would.
    """

    path: Path
    mutate: mutations.Mutate
    read: Callable[[], Any]


def make_readers(root: Path) -> dict[str, Reader]:
    """Write a whole file for every reader below a folder."""
    readers: dict[str, Reader] = {}
    for make in (_texts, _sets, _records, _lists, _arrays, _networks, _images, _others, _commands):
        readers |= make(root / make.__name__.strip("_"))
    return readers


def _file(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _copy_of_run(root: Path) -> Path:
    """Return a copy of a finished run of the smallest networks."""
    first = root.parent / "run"
    if not first.exists():
        tiny_starter.write_run(first)
    shutil.copytree(first, root / "run")
    return root / "run"


def _texts(root: Path) -> dict[str, Reader]:
    def recipe(path: Path) -> Callable[[], Any]:
        def read() -> None:
            for stage, section in load_sections(str(path)).items():
                if stage != "ablate":
                    resolve(config_class_of(stage), stage, section, [], {})
        return read

    readers = {}
    for name in ("admis", "starter"):
        source = next(p for p in sorted(recipe_folder().rglob("*.yaml")) if name in p.stem)
        path = _file(root / f"{name}.yaml", source.read_bytes())
        readers[f"recipe {name}"] = Reader(path, mutations.text, recipe(path))
    words = _file(root / "words", "scheduler={name: ddim, steps: 20}\n"
                  "guidance={name: cfg, scale: 1.5}\nids=10\nprecision=fp32\n")

    def overrides() -> None:
        lines = words.read_bytes().decode("utf-8", "surrogateescape").splitlines()
        resolve(config_class_of("sample"), "sample", {}, lines, {})

    readers["key=value"] = Reader(words, mutations.text, overrides)
    return readers


def _sets(root: Path) -> dict[str, Reader]:
    run = _copy_of_run(root)
    contexts, faces = run / "3-contexts", root / "faces"
    for key in ("a/1", "a/2", "b/1"):
        _file(faces / f"{key}.png", encode_png(np.full((4, 4, 3), 9, np.uint8)))
    header = Header("ImageSet", "sample", {"identity": {"seed": 0}}, {}, {"images": 3})
    write_json(faces / "facesyn.json", asdict(header))
    begun = root / "begun"
    write_json(begun / "facesyn.begun.json", asdict(Header("ImageSet", "sample", StageConfig().to_json(), {})))
    embeddings = root / "embeddings"
    shutil.copytree(contexts, embeddings)
    (embeddings / "contexts.npy").rename(embeddings / "embeddings.npy")
    (embeddings / "contexts.jsonl").unlink()
    _file(embeddings / "keys.txt", "".join(f"a/{k}\n" for k in range(tiny_starter.NUM_CONTEXTS)))
    header = json.loads((embeddings / "facesyn.json").read_text())
    write_json(embeddings / "facesyn.json", {**header, "kind": "EmbeddingSet"})
    tars = write_tar_set(root / "tars", {f"{k}/0.png": encode_png(np.zeros((4, 4, 3), np.uint8)) for k in "abc"}, 2)
    list_of = _file(root / "list.txt", "faces/a/1.png 0\nfaces/a/2.png 0\nfaces/b/1.png 1\n")

    def images(path: Path) -> Callable[[], Any]:
        return lambda: _read_all(ImageSet.open(path))

    return {
        "header of contexts": Reader(contexts / "facesyn.json", mutations.json_text, lambda: ContextSet.open(contexts)),
        "header of embeddings": Reader(embeddings / "facesyn.json", mutations.json_text,
                                       lambda: EmbeddingSet.open(embeddings)),
        "header of images": Reader(faces / "facesyn.json", mutations.json_text, images(faces)),
        "header of tars": Reader(tars / "facesyn.json", mutations.json_text, lambda: _read_tars(tars)),
        "begun header": Reader(begun / "facesyn.begun.json", mutations.json_text,
                               lambda: check_output(begun, "ImageSet", StageConfig(), {})),
        "contexts.jsonl": Reader(contexts / "contexts.jsonl", mutations.json_lines, lambda: ContextSet.open(contexts)),
        "contexts.npy": Reader(contexts / "contexts.npy", mutations.binary, lambda: ContextSet.open(contexts)),
        "keys.txt": Reader(embeddings / "keys.txt", mutations.text, lambda: EmbeddingSet.open(embeddings)),
        "embeddings.npy": Reader(embeddings / "embeddings.npy", mutations.binary,
                                 lambda: EmbeddingSet.open(embeddings)),
        "image list": Reader(list_of, mutations.text, images(list_of)),
        "tar of images": Reader(next((tars / "images").glob("*.tar")), mutations.binary, lambda: _read_tars(tars)),
    }


def _records(root: Path) -> dict[str, Reader]:
    images = tiny_images((2, 2), side=8)
    readers = {}
    for name in FORMATS:
        folder = write_set(name, root / name, images)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            is_text = path.suffix in (".txt", ".index", ".idx", ".lst", ".csv", ".json")
            label = f"{name} {path.suffix or path.name}" if path.name != "labels.txt" else f"{name} labels"
            readers[label] = Reader(path, mutations.text if is_text else mutations.binary,
                                    lambda folder=folder, name=name: _read_records(folder, name))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for (identity, sample), data in images.items():
            archive.writestr(f"{identity}/{sample}{suffix_of(data)}", data)
    path = _file(root / "images.zip", zipped.getvalue())
    readers["zip of images"] = Reader(path, mutations.archive, lambda: _read_all(ImageSet.open(path)))
    return readers


def _lists(root: Path) -> dict[str, Reader]:
    faces = root / "faces"
    for name in ("a", "b", "a/1", "a/a_0001", "b/1", "a/frontal/01", "b/frontal/01"):
        _file(faces / f"{name}.png", encode_png(np.full((4, 4, 3), len(name), np.uint8)))
    images = ImageSet.open(faces)
    readers = {}
    for name, content in LISTS.items():
        path = _file(root / f"{name}.txt", content)
        readers[f"pairs {name}"] = Reader(path, mutations.text, lambda path=path: read_pairs(path, images, "x"))
    for name, content in LANDMARKS.items():
        path = _file(root / f"{name}.pts", content)
        readers[f"landmarks {name}"] = Reader(path, mutations.text, lambda path=path: read_landmarks(path))
    tid, label = _file(root / "tid.txt", "a.png 1 1\nb.png 2 1\n"), _file(root / "label.txt", "1 2 0\n2 2 1\n1 1 1\n")
    for name, path in (("templates", tid), ("template pairs", label)):
        readers[name] = Reader(path, mutations.text, lambda: read_templates(tid, label, images, "x", False, "exact"))
    cfp = root / "cfp"
    listed = _file(cfp / "Protocol/Pair_list_F.txt", "1 x/a/frontal/01.jpg\n2 x/b/frontal/01.jpg\n")
    for fold in ("01", "02"):
        same = _file(cfp / f"Protocol/Split/FF/{fold}/same.txt", "1,1\n2,2\n")
        _file(cfp / f"Protocol/Split/FF/{fold}/diff.txt", "1,2\n2,1\n")
    for name, path in (("cfp list", listed), ("cfp split", same)):
        readers[name] = Reader(path, mutations.text, lambda: read_cfp(cfp, "FF", images, "x"))
    names = _file(root / "image_names.pkl", pickle.dumps(["a/1.jpg", "b/2.jpg"] * 5, protocol=2))
    plain = _file(root / "names.txt", "x/a/1.jpg 0\nx/a/2.jpg 0\nx/b/1.jpg 1\n")
    for path in (names, plain):
        mutate = mutations.text if path is plain else mutations.binary
        readers[f"names {path.suffix}"] = Reader(path, mutate, lambda path=path: read_name_list(path))
    encoded = [encode_png(np.full((4, 4, 3), k, np.uint8)) for k in range(8)]
    path = _file(root / "x.bin", pickle.dumps((encoded, [True, False, True, False]), protocol=2))
    readers["verification .bin"] = Reader(path, mutations.binary, lambda path=path: read_bin(path, "x", 2))
    arrays = _file(root / "y.bin", pickle.dumps(([np.frombuffer(e, np.uint8) for e in encoded], [True, False] * 2)))
    readers["verification .bin of arrays"] = Reader(arrays, mutations.binary, lambda: read_bin(arrays, "x", 2))
    groups = _file(root / "groups.csv", "identity,sex,age\na,m,10\nb,f,20\n")
    readers["groups.csv"] = Reader(groups, mutations.text, lambda: read_groups(groups))
    return readers


def _arrays(root: Path) -> dict[str, Reader]:
    root.mkdir()
    vectors = np.random.RandomState(0).standard_normal((6, 8)).astype(np.float32)
    noise, archive, table, dictionary = root / "noise.npy", root / "a.npz", root / "table.npy", root / "dict.npy"
    np.save(noise, np.zeros((2, 2, 3, 4, 4), np.float32))
    np.savez(archive, embedding=vectors, pixels=np.zeros((2, 3), np.float64))
    np.save(table, vectors)
    with open(dictionary, "wb") as file:
        torch.save({f"p/{k}": row for k, row in enumerate(vectors)}, file)
    folder = root / "one each"
    for k, row in enumerate(vectors):
        (folder / str(k)).mkdir(parents=True)
        np.save(folder / str(k) / "a.npy", row)
    one = folder / "3" / "a.npy"
    return {
        "noise.file": Reader(noise, mutations.binary, lambda: open_noise_file(noise, 2, 2, (3, 4, 4)).sum()),
        ".npz": Reader(archive, mutations.archive, lambda: read_archive(archive)),
        "vectors .npy": Reader(table, mutations.binary, lambda: ContextSet.open(table)),
        "vectors in a dict": Reader(dictionary, mutations.archive, lambda: read_vector_file(dictionary)),
        "vectors, one a file": Reader(one, mutations.binary, lambda: read_vector_file(folder)),
    }


def _networks(root: Path) -> dict[str, Reader]:
    run = _copy_of_run(root)
    readers: dict[str, Reader] = {}
    loaders = {"1-embedder": load_backbone, "2-autoencoder": load_autoencoder, "2-ldm": load_denoiser}
    for name, load in loaders.items():
        folder = run / name
        short = name.partition("-")[2]
        readers[f"config.json of {short}"] = Reader(folder / "config.json", mutations.json_text,
                                                    lambda load=load, folder=folder: load(folder))
        readers[f"safetensors of {short}"] = Reader(folder / "model.safetensors", mutations.safetensors,
                                                    lambda load=load, folder=folder: (load(folder), inspect(folder)))
    config = run / "2-ldm" / "config.json"
    readers["inspected config.json"] = Reader(config, mutations.json_text, lambda: inspect(run / "2-ldm"))
    tensors = read_tensors(run / "1-embedder" / "model.safetensors")
    lightning = {f"model.{key}": value for key, value in tensors.items()} | {"head.kernel": torch.ones(8, 3)}
    for name, content in (("backbone.pth", tensors),
                          ("lightning.ckpt", {"state_dict": lightning, "epoch": 3, "hyper_parameters": {"a": 1}})):
        path = root / name
        torch.save(content, path)
        readers[name] = Reader(path, mutations.archive, lambda path=path: (inspect(path), load_backbone(path)))
    old = root / "old.pth"
    torch.save(tensors, old, _use_new_zipfile_serialization=False)
    readers["old .pth"] = Reader(old, mutations.binary, lambda: (inspect(old), load_backbone(old)))
    flat = root / "flat.safetensors"
    write_tensors(flat, tensors)
    readers["published safetensors"] = Reader(flat, mutations.safetensors, lambda: (inspect(flat), load_backbone(flat)))
    head = root / "head.safetensors"
    write_tensors(head, {"kernel": torch.ones(4, 6)})
    readers["classifier"] = Reader(head, mutations.safetensors, lambda: inspect(head))
    with suppress(ImportError):
        readers |= _onnx(root)
    return readers


def _onnx(root: Path) -> dict[str, Reader]:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((12, 16), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
         helper.make_node("Tile", ["f", "n"], ["t"]), helper.make_node("MatMul", ["t", "w"], ["y"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 16])],
        [weight, numpy_helper.from_array(np.array([1, 4]), "n")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = _file(root / "net.onnx", model.SerializeToString())
    return {"onnx graph": Reader(path, mutations.binary, lambda: inspect(path))}


def _images(root: Path) -> dict[str, Reader]:
    pixels_u8 = np.random.RandomState(0).randint(0, 255, (12, 10, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    readers = {}
    for name, options in {
        "JPEG": {"exif": exif}, "JPEG progressive": {"progressive": True}, "PNG": {}, "PNG gray 16": {},
        "PNG palette": {}, "WEBP": {"exif": exif}, "BMP": {}, "GIF": {}, "TIFF": {"compression": "tiff_lzw"}, "PPM": {},
    }.items():
        image = Image.fromarray(pixels_u8)
        if "16" in name:
            image = Image.fromarray(pixels_u8[:, :, 0].astype(np.uint16) * 257)
        if "palette" in name:
            image = image.quantize(16)
        out = io.BytesIO()
        image.save(out, name.split()[0], **options)
        path = _file(root / name.replace(" ", "-"), out.getvalue())

        def read(path: Path = path) -> None:
            with suppress(UnreadableImage):
                decode_image(path.read_bytes())

        readers[f"image {name}"] = Reader(path, mutations.binary, read)
    return readers


def _others(root: Path) -> dict[str, Reader]:
    metrics = _file(root / "metrics.jsonl", "".join(f'{{"step": {k}, "loss": 0.5}}\n' for k in range(5)))
    starter = root / "starter"
    pack_starter(_copy_of_run(root), starter)
    rows = [BenchmarkRow(benchmark="lfw", pairs=6, genuine=3, folds=1, accuracy=0.5, tar={"1e-03": 0.1})]
    (root / "table").mkdir()
    BenchmarkTable(backbone="ir-tiny", weights="sha256:0", flip=True, rows=rows).write(root / "table")
    checkpoints = root / "checkpoints"
    save_checkpoint(checkpoints, 3, {"model": {"a": torch.ones(3)}}, {"epoch": 1, "scheduler": {"last": 2}})
    saved = next(checkpoints.iterdir())

    def resume() -> None:
        found = latest_checkpoint(checkpoints, processes("cpu"))
        found.state(), found.tensors("model")

    return {
        "metrics.jsonl": Reader(metrics, mutations.json_lines, lambda: read_lines(metrics)),
        "starter.json": Reader(starter / "starter.json", mutations.json_text, lambda: Starter.open(starter).describe()),
        "table.json": Reader(root / "table" / "table.json", mutations.json_text,
                             lambda: BenchmarkTable.read(root / "table").to_markdown()),
        "state.json": Reader(saved / "state.json", mutations.json_text, resume),
        "tensors of a checkpoint": Reader(saved / "model.safetensors", mutations.safetensors, resume),
    }


def _commands(root: Path) -> dict[str, Reader]:
    """The same through the command line: what a stage makes of a damaged input, or of its own damaged folder."""
    run = _copy_of_run(root)
    faces = root / "faces"
    for key in ("a/1", "a/2", "b/1", "b/2"):
        _file(faces / f"{key}.png", encode_png(np.random.RandomState(len(key)).randint(0, 255, (16, 16, 3), np.uint8)))
    listed = _file(root / "pairs.txt", "2\na/1.png\ta/2.png\t1\na/1.png\tb/1.png\t0\na/2.png\ta/1.png\t1\n"
                                       "a/2.png\tb/2.png\t0\n")
    recipe = _file(root / "recipe.yaml", "pack:\n  name: x\n  format: {name: tfrecord}\nsample:\n  ids: 3\n  seed: 1\n")
    packed, made = root / "packed", root / "made"
    _run("pack", "--in", faces, "--out", packed, "--to", "folder")
    _run("gen-contexts", "--source", "sphere", "--count", 5, "--out", made, "--weights", run / "1-embedder")
    shutil.copytree(packed, root / "unfinished")
    unfinished = root / "unfinished"
    (unfinished / "facesyn.json").rename(unfinished / "facesyn.begun.json")
    sample = ("sample", "--ldm", run / "2-ldm", "--contexts", run / "3-contexts", "--dry-run", "--ids", 2, "--per-id",
              1, "--out", root / "samples")
    words = {
        "sample --dry-run, ldm": (run / "2-ldm" / "config.json", mutations.json_text, sample),
        "sample --dry-run, contexts": (run / "3-contexts" / "facesyn.json", mutations.json_text, sample),
        "pack --dry-run, recipe": (recipe, mutations.text, ("pack", "--config", recipe, "--in", faces, "--dry-run",
                                                            "--out", root / "p")),
        "models verify": (run / "1-embedder" / "model.safetensors", mutations.safetensors,
                          ("models", "verify", run / "1-embedder")),
        "models inspect": (run / "2-autoencoder" / "config.json", mutations.json_text,
                           ("models", "inspect", run / "2-autoencoder", "--json")),
        "eval --dry-run, pairs": (listed, mutations.text, ("eval", "--pairs", listed, "--images", faces, "--weights",
                                                           run / "1-embedder", "--dry-run", "--out", root / "t")),
        "pack again, header": (packed / "facesyn.json", mutations.json_text,
                               ("pack", "--in", faces, "--out", packed, "--to", "folder")),
        "pack again, begun": (unfinished / "facesyn.begun.json", mutations.json_text,
                              ("pack", "--in", faces, "--out", unfinished, "--to", "folder", "--dry-run")),
        "gen-contexts again, header": (made / "facesyn.json", mutations.json_text,
                                       ("gen-contexts", "--source", "sphere", "--count", 5, "--out", made, "--weights",
                                        run / "1-embedder")),
    }
    return {f"$ {name}": Reader(path, mutate, lambda arguments=arguments: _run(*arguments))
            for name, (path, mutate, arguments) in words.items()}


def _run(*arguments: object) -> None:
    """Run a command in this process.

    Raises:
        UserError: It ended with exit code 2; the message is the error line.
        AssertionError: It ended with another code than 0 or 2, or with another number of error lines than one.
    """
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = run_command_line([str(argument) for argument in arguments])
        console.log.handlers.clear()
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    assert code in (0, 2) and len(lines) == (code == 2), f"exit code {code}\n{errors.getvalue()}"
    if code == 2:
        raise UserError(lines[0])


def _read_all(images: ImageSet) -> None:
    for entry in images.entries:
        with suppress(UnreadableImage):
            decode_image(images.read(entry))


def _read_records(folder: Path, name: str) -> None:
    records = RecordSet.open(folder, name)
    for row in range(len(records)):
        with suppress(UnreadableImage):
            decode_image(records.read(row))
    list(records.keys())


def _read_tars(folder: Path) -> None:
    tars = TarSet.open(folder)
    if tars is not None:
        for row in range(len(tars.records)):
            tars.records.read(row)
