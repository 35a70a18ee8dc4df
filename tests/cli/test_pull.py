"""`facesyn pull`: what was pushed comes back whole and verified, or not at all. The hub is a stand-in."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hub_stand_in import Handler, Hub, Repository, connected, environment
from published_folders import recognizer, report, sampled
from tiny_starter import write_run

from facesyn_cli.artifacts.file_manifest import MANIFEST
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.origins import origin_of
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.models.loading import load_backbone


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with connected(monkeypatch, tmp_path / "home") as hub:
        monkeypatch.chdir(tmp_path)
        yield hub


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder that are pushed as they are on disk."""
    changed = ("README.md", "facesyn.json", "checkpoints", "previews", "cache")
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix(): path.read_bytes() for name, path in files.items() if name.parts[0] not in changed}


def damaged(data: bytes) -> bytes:
    """Return other bytes of the same length."""
    return data[:-1] + bytes([data[-1] ^ 1])


def test_weights(run_cli, hub: Hub, tmp_path: Path) -> None:
    folder = recognizer(tmp_path / "fr")
    run_cli("push", folder, "me/net")
    ran = run_cli("pull", "me/net")
    assert ran.code == 0 and "folder: net" in ran.out
    assert "net is complete (Weights, 4 files); every digest is verified" in ran.err
    assert "next: facesyn embed --weights net" in ran.err
    assert content(tmp_path / "net") == content(folder)
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "README.md", "config.json", "facesyn.json", "metrics.jsonl", "model.safetensors"]
    pixels = torch.zeros(1, 3, 112, 112)
    with torch.inference_mode():
        assert torch.equal(load_backbone(tmp_path / "net").module(pixels), load_backbone(folder).module(pixels))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_images_and_a_packed_set_are_inputs_of_the_next_stages(run_cli, hub: Hub, tmp_path: Path) -> None:
    images, packed = sampled(tmp_path / "images"), tmp_path / "packed"
    run_cli("pack", "--in", images, "--out", packed, "--to", "webdataset")
    for folder in (images, packed):
        run_cli("push", folder, f"me/{folder.name}")
        done = run_cli("pull", f"me/{folder.name}", "--out", f"deep/{folder.name}", "--json").json()
        found = tmp_path / "deep" / folder.name
        assert (done["state"], done["repo_type"], done["folder"]) == ("new", "dataset", f"deep/{folder.name}")
        assert content(found) == content(folder)
        assert origin_of(found) == "generated"  # although the folders that it was made from are not there
        assert run_cli("pack", "--in", found, "--out", f"again-{folder.name}").code == 0
    assert ImageSet.open(tmp_path / "deep" / "images").digest == ImageSet.open(images).digest
    assert RecordSet.open(tmp_path / "deep" / "packed").digest == RecordSet.open(packed).digest


def test_a_report_and_a_starter(run_cli, hub: Hub, tmp_path: Path) -> None:
    made = report(tmp_path / "made", sampled(tmp_path / "images"))
    run_cli("push", made, "me/report")
    ran = run_cli("pull", "me/report")
    assert "next: open report/report.html" in ran.err
    assert (tmp_path / "report" / "report.html").read_bytes() == (made / "report.html").read_bytes()
    assert (tmp_path / "report" / "README.md").read_bytes() == (made / "README.md").read_bytes()
    assert not (tmp_path / "report" / "cache").exists()

    packed = tmp_path / "packed"
    assert run_cli("starter", "pack", "--work", write_run(tmp_path / "run"), "--out", packed).code == 0
    assert run_cli("push", packed, "me/starter", "--json").json()["repo_type"] == "model"
    assert run_cli("pull", "me/starter", "--json").json()["kind"] == "Starter"
    assert run_cli("starter", "show", tmp_path / "starter").code == 0
    assert content(tmp_path / "starter") == content(packed)


def test_again_it_is_there_already_and_other_content_is_kept(run_cli, assert_refused, hub: Hub, tmp_path: Path) -> None:
    run_cli("push", recognizer(tmp_path / "fr"), "me/net")
    run_cli("pull", "me/net")
    (tmp_path / "net" / "README.md").write_text("my notes")
    asked = hub.count("GET /me/net/resolve")
    ran = run_cli("pull", "me/net", "--json")
    assert ran.json()["state"] == "finished" and "is there already" in ran.err
    assert hub.count("GET /me/net/resolve") == asked + 1  # of the manifest
    (tmp_path / "net" / "metrics.jsonl").write_text("mine")
    assert_refused("pull", "me/net", says=("net exists with other content", "metrics.jsonl has 4 bytes", "--out"))
    assert (tmp_path / "net" / "metrics.jsonl").read_text() == "mine"


def test_a_damaged_file_is_not_delivered(run_cli, assert_refused, hub: Hub, tmp_path: Path) -> None:
    run_cli("push", recognizer(tmp_path / "fr"), "me/net")
    repository = hub.repositories["models", "me/net"]
    good = repository.files
    repository.branches["main"].append({**good, "model.safetensors": damaged(good["model.safetensors"])})
    assert_refused("pull", "me/net", says=("comes damaged", "model.safetensors has another SHA-256"))
    assert not (tmp_path / "net").exists()
    repository.branches["main"].append({name: data for name, data in good.items() if name != "config.json"})
    assert_refused("pull", "me/net", says=("lacks 1 of its 4 files", "config.json"))
    repository.branches["main"].append({**good, "config.json": b"{}"})
    asked = hub.count("GET /me/net/resolve")
    assert_refused("pull", "me/net", says=("does not hold the files that were pushed", "config.json has 2 bytes"))
    assert hub.count("GET /me/net/resolve") == asked + 1  # of the manifest
    repository.branches["main"].append({**good, "README.md": b"x" * 2**21})
    assert run_cli("pull", "me/net").code == 0 and not (tmp_path / "net" / "README.md").exists()
    assert (tmp_path / "net" / "model.safetensors").read_bytes() == good["model.safetensors"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_ended_in_the_middle_it_resumes(run_cli, hub: Hub, tmp_path: Path, number: int, code: int) -> None:
    """The command that is ended is a process of its own, which reads endpoint and token from its environment."""
    run_cli("push", recognizer(tmp_path / "fr"), "me/net")
    files, released = hub.repositories["models", "me/net"].files, threading.Event()

    def half(handler: Handler) -> None:
        if handler.route.endswith("model.safetensors"):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(files["model.safetensors"])))
            handler.end_headers()
            handler.wfile.write(files["model.safetensors"][:5000])
            handler.wfile.flush()
            released.wait(60)
            handler.close_connection = True
        else:
            handler.answer()

    hub.answers["GET", "/me/net/resolve"] = half
    process = subprocess.Popen([sys.executable, "-m", "facesyn_cli", "pull", "me/net"],
                               env=environment(hub, tmp_path / "home"), stderr=subprocess.PIPE, cwd=tmp_path)
    there = tmp_path / ".tmp-pull-net"
    try:
        end = time.monotonic() + 120
        while not (hub.count("GET /me/net/resolve") >= 6 and len(list(there.glob("[!.]*"))) == 4):
            assert time.monotonic() < end and process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
    finally:
        process.send_signal(number)
        process.communicate(timeout=50)  # less than the server takes
        released.set()
    assert process.returncode == code
    assert not (tmp_path / "net").exists()
    hub.answers.clear()
    asked = hub.count("GET /me/net/resolve")
    assert run_cli("pull", "me/net").code == 0
    assert hub.count("GET /me/net/resolve") == asked + 2  # the manifest and the file that was not whole
    assert (tmp_path / "net" / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not there.exists()


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "a\\..\\evil.txt", "C:/evil.txt"])
def test_names_that_lead_out_of_the_folder(run_cli, assert_refused, hub: Hub, tmp_path: Path, name: str) -> None:
    run_cli("push", recognizer(tmp_path / "fr"), "me/net")
    repository = hub.repositories["models", "me/net"]
    good = repository.files
    repository.branches["main"].append({**good, name: b"evil"})
    assert_refused("pull", "me/net", says="names the file")
    manifest = json.loads(good[MANIFEST])
    manifest["files"][name] = manifest["files"]["config.json"]
    repository.branches["main"].append({**good, MANIFEST: json.dumps(manifest).encode()})
    assert_refused("pull", "me/net", says="names the file")
    assert not (tmp_path / "net").exists() and not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(("name", "says"), [
    ("run.py", "an unknown kind (.py)"), (".bashrc", "a hidden file"), ("a/.ssh/key.txt", "a hidden file"),
])
def test_kinds_of_files_that_no_stage_writes(
    run_cli, assert_refused, hub: Hub, tmp_path: Path, name: str, says: str
) -> None:
    run_cli("push", recognizer(tmp_path / "fr"), "me/net")
    repository = hub.repositories["models", "me/net"]
    manifest = json.loads(repository.files[MANIFEST])
    manifest["files"][name] = manifest["files"]["config.json"]
    repository.branches["main"].append(
        {**repository.files, name: repository.files["config.json"], MANIFEST: json.dumps(manifest).encode()})
    assert_refused("pull", "me/net", says=says)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(("manifest", "says"), [
    (b"{", "invalid JSON"), (b"[]", "a list of files"), (b'{"format": 9}', "install a newer one"),
    (b'{"format": 1, "kind": "Weights", "card": "", "files": {"a.json": {"size": -1, "sha256": "x"}}}', "size"),
])
def test_a_manifest_that_is_none(run_cli, assert_refused, hub: Hub, tmp_path: Path, manifest: bytes, says: str) -> None:
    hub.repositories["models", "me/net"] = Repository(False, {"main": [{MANIFEST: manifest}]})
    assert_refused("pull", "me/net", says=(MANIFEST, says))


def test_files_that_are_not_of_the_folder_stay_on_the_hub(run_cli, hub: Hub, tmp_path: Path) -> None:
    run_cli("push", recognizer(tmp_path / "fr"), "me/net")
    repository = hub.repositories["models", "me/net"]
    repository.branches["main"].append({**repository.files, "README.md": b"edited", "run.py": b"boom", "[a]*.md": b"x"})
    ran = run_cli("pull", "me/net")
    assert ran.code == 0 and "2 files of me/net are not of the pushed folder" in ran.err
    assert (tmp_path / "net" / "README.md").read_text() == "edited" and not (tmp_path / "net" / "run.py").exists()
    assert hub.count("GET /me/net/resolve") == hub.count("HEAD /me/net/resolve") and "run.py" not in str(hub.asked)


def test_a_folder_that_is_not_what_it_says(run_cli, assert_refused, hub: Hub, tmp_path: Path) -> None:
    run_cli("push", recognizer(tmp_path / "fr"), "me/net")
    repository = hub.repositories["models", "me/net"]
    manifest = json.loads(repository.files[MANIFEST])
    repository.branches["main"].append(
        {**repository.files, MANIFEST: json.dumps({**manifest, "kind": "ImageSet"}).encode()})
    assert_refused("pull", "me/net", says=("is a Weights", "says ImageSet"))
    del manifest["files"]["facesyn.json"]
    repository.branches["main"].append({**repository.files, MANIFEST: json.dumps(manifest).encode()})
    assert_refused("pull", "me/net", says="no facesyn.json")
    assert not (tmp_path / "net").exists()


def test_revisions(run_cli, assert_refused, hub: Hub, tmp_path: Path) -> None:
    folder = recognizer(tmp_path / "fr")
    run_cli("push", folder, "me/net")
    (folder / "metrics.jsonl").write_text("{}\n")
    done = run_cli("push", folder, "me/net", "--revision", "v2", "--json").json()
    assert run_cli("pull", "me/net", "--out", "first").code == 0
    for number, words in enumerate([("me/net@v2",), ("me/net", "--revision", "v2"), (f"me/net@{done['commit']}",)]):
        assert run_cli("pull", *words, "--out", f"second-{number}").code == 0
        assert (tmp_path / f"second-{number}" / "metrics.jsonl").read_text() == "{}\n"
    assert (tmp_path / "first" / "metrics.jsonl").read_text() != "{}\n"
    assert_refused("pull", "me/net@v3", says="it has no such revision")
    assert_refused("pull", "me/net@v2", "--revision", "v3", says="give one of them")


def test_weights_of_others_as_before(run_cli, assert_refused, hub: Hub, tmp_path: Path) -> None:
    hub.repositories["models", "them/net"] = Repository(
        False, {"main": [{"model.safetensors": b"x" * 2000, "config.json": b"{}", "tf_model.h5": b"left out"}]})
    for command in (("pull",), ("models", "pull")):
        assert run_cli(*command, "them/net", "--json").json() == {"folder": "weights/net", "hub": "them/net"}
    assert (tmp_path / "weights" / "net" / "model.safetensors").read_bytes() == b"x" * 2000
    assert not (tmp_path / "weights" / "net" / "tf_model.h5").exists()
    assert run_cli("models", "pull", "them/net/config.json", "--json").json()["digest"].startswith("sha256:")
    assert (tmp_path / "weights" / "config.json").read_bytes() == b"{}"
    hub.repositories["datasets", "them/faces"] = Repository(False, {"main": [{"a.png": b"x"}]})
    assert_refused("pull", "them/faces", says=("did not write", "hf download them/faces --repo-type dataset"))


def test_a_model_and_a_data_set_of_one_name(run_cli, hub: Hub, tmp_path: Path) -> None:
    run_cli("push", recognizer(tmp_path / "fr"), "me/both")
    run_cli("push", sampled(tmp_path / "s"), "me/both")
    assert run_cli("pull", "me/both", "--json").json()["repo_type"] == "model"
    assert run_cli("models", "pull", "datasets/me/both", "--out", "data", "--json").json()["kind"] == "ImageSet"


def test_what_may_not_be_seen(
    run_cli, assert_refused, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cli("push", recognizer(tmp_path / "fr"), "me/net")
    assert_refused("pull", "me/other", says=("no such repository, or you may not see it", "hf auth login"))
    hub.answers["GET", "/api/models"] = lambda handler: handler.fail(403, "GatedRepo")
    assert_refused("pull", "me/net", says="ask for access on its page")
    hub.answers["GET", "/api/models"] = lambda handler: handler.fail(429)
    assert_refused("pull", "me/net", says=("does not come from the hub", "429"))
    hub.answers.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert_refused("pull", "me/net", says=("the token is missing or not accepted", "hf auth login"))
    monkeypatch.delenv("HF_TOKEN")
    assert_refused("pull", "me/net", says="no such repository, or you may not see it")
    assert not (tmp_path / "net").exists()


def test_where_it_cannot_go(run_cli, assert_refused, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_cli("push", recognizer(tmp_path / "fr"), "me/net")
    (tmp_path / "file").write_text("")
    assert_refused("pull", "me/net", "--out", "file", says="file is a file")
    assert_refused("pull", "me/net", "--out", ".", says="a folder with a name was expected")
    usage, measure = shutil.disk_usage(tmp_path)._replace(free=10), shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage if Path(path).samefile(tmp_path) else measure(path))
    assert_refused("pull", "me/net", says="no space for")
    assert not (tmp_path / "net").exists()
