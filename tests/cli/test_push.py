"""`facesyn push`: what arrives on the hub, and what is refused. The hub is a stand-in on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hub_stand_in import Hub, connected
from published_folders import HOME, finish, recognizer, report, sampled
from tiny_records import FORMATS

import facesyn_cli.api as facesyn
from facesyn_cli.artifacts.atomic_files import write_bytes, write_text
from facesyn_cli.artifacts.file_manifest import MANIFEST
from facesyn_cli.artifacts.header import BEGUN, Header, Parent
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.errors import UserError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with connected(monkeypatch, tmp_path / "home") as hub:
        yield hub


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_weights_go_to_a_private_model_repository(run_cli, hub: Hub, tmp_path: Path) -> None:
    folder = recognizer(tmp_path / "fr")
    before = content(folder)
    done = run_cli("push", folder, "me/net", "--license", "cc-by-nc-4.0", "--json").json()
    repository = hub.repositories["models", "me/net"]
    assert repository.private and done["private"] and done["state"] == "new"
    assert set(repository.files) == {".gitattributes", "README.md", MANIFEST, "facesyn.json", "config.json",
                                     "metrics.jsonl", "model.safetensors"}
    assert repository.files["model.safetensors"] == before["model.safetensors"]
    assert done["left_out"] == {"checkpoints": 1, "previews, which show training images": 1}
    assert done["url"] == f"{hub.url}/me/net" and done["license"] == "cc-by-nc-4.0"
    card = repository.files["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\ntags:\n") and "facesyn pull me/net" in card
    assert content(folder) == before  # the folder itself is not changed


def test_no_path_of_this_machine_arrives(run_cli, hub: Hub, tmp_path: Path) -> None:
    done = run_cli("push", report(tmp_path / "r", sampled(tmp_path / "s")), "me/report", "--json").json()
    files = hub.repositories["datasets", "me/report"].files
    assert done["without_local_paths"] == ["facesyn.json", "report.json"] and done["left_out"] == {"a cache": 3}
    assert "gallery/index.html" in files
    for name, data in files.items():
        assert HOME.encode() not in data and str(tmp_path).encode() not in data, name
    assert json.loads(files["report.json"])["sets"][0] == {"name": "samples", "path": "4-samples"}
    header = json.loads(files["facesyn.json"])
    assert header["parents"]["set samples"]["path"] == "s" and header["extra"]["face_origin"] == "generated"


def test_text_that_names_folders_of_this_machine_is_shown(run_cli, hub: Hub, tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s")
    write_text(folder / "notes.txt", f"made in {tmp_path}\n")
    ran = run_cli("push", folder, "me/faces", "--dry-run")
    assert ran.code == 0 and "notes.txt: names folders of this machine" in ran.err


def test_the_card_of_the_folder_is_pushed_as_it_is(run_cli, assert_refused, hub: Hub, tmp_path: Path) -> None:
    folder = recognizer(tmp_path / "fr")
    mine = "---\n# my own\nlicense: mit\n---\n\nMy network.\n"
    write_text(folder / "README.md", mine)
    assert run_cli("push", folder, "me/net", "--json").json()["license"] == "mit"
    assert hub.repositories["models", "me/net"].files["README.md"] == mine.encode()
    assert_refused("push", folder, "me/net", "--license", "apache-2.0", says=("license mit", "--license apache-2.0"))
    assert_refused("push", folder, "me/net", "--license", "My Own", says="a name as the hub has it")


def test_a_card_that_was_edited_on_the_hub_stays(run_cli, hub: Hub, tmp_path: Path) -> None:
    folder = recognizer(tmp_path / "fr")
    run_cli("push", folder, "me/net")
    repository = hub.repositories["models", "me/net"]
    repository.branches["main"].append({**repository.files, "README.md": b"edited by hand", "LICENSE": b"text"})
    write_text(folder / "metrics.jsonl", '{"step": 2, "loss": 0.25}\n')
    for _ in range(2):
        ran = run_cli("push", folder, "me/net", "--json")
        assert ran.json()["card"] == "of the hub" and "edited on the hub" in ran.err
        assert repository.files["README.md"] == b"edited by hand" and repository.files["LICENSE"] == b"text"
    assert repository.files["metrics.jsonl"] == (folder / "metrics.jsonl").read_bytes()


def test_again_changes_nothing_and_a_file_that_is_gone_is_deleted(run_cli, hub: Hub, tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s")
    run_cli("push", folder, "me/faces")
    repository, sent = hub.repositories["datasets", "me/faces"], hub.count("PUT ")
    assert run_cli("push", folder, "me/faces", "--json").json()["state"] == "unchanged"
    assert len(repository.branches["main"]) == 2 and hub.count("PUT ") == sent

    (folder / "id1" / "0.jpg").unlink()
    finish(folder, "ImageSet", "sample", {"images": 7, "identities": 2})
    done = run_cli("push", folder, "me/faces", "--json").json()
    assert (done["state"], done["deleted"]) == ("updated", ["id1/0.jpg"])
    assert "id1/0.jpg" not in repository.files and len(repository.branches["main"]) == 3


def test_large_files_that_arrived_before_an_interruption_are_not_sent_again(
    run_cli, assert_refused, hub: Hub, tmp_path: Path
) -> None:
    folder = recognizer(tmp_path / "fr")
    hub.answers["POST", "/api/models/me/net/commit"] = lambda handler: handler.fail(503)
    assert_refused("push", folder, "me/net", says=("cannot be pushed", "503", "again"))
    assert set(hub.repositories["models", "me/net"].files) == {".gitattributes"}  # nobody sees a half of it
    sent = hub.count("PUT /large")
    hub.answers.clear()
    assert run_cli("push", folder, "me/net").code == 0 and hub.count("PUT /large") == sent > 0


def test_branch_message_and_links(run_cli, hub: Hub, tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s")
    original = folder / "id1" / "0.jpg"
    os.replace(original, tmp_path / "elsewhere.jpg")
    original.symlink_to(tmp_path / "elsewhere.jpg")
    ran = run_cli("push", folder, "me/faces", "--revision", "v2", "--message", "second", "--public")
    assert ran.code == 0 and "visible to: everybody" in ran.out
    repository = hub.repositories["datasets", "me/faces"]
    assert not repository.private and set(repository.files) == {".gitattributes"}
    assert repository.branches["v2"][-1]["id1/0.jpg"] == (tmp_path / "elsewhere.jpg").read_bytes()


def test_every_record_format_arrives_whole(run_cli, hub: Hub, tmp_path: Path) -> None:
    source = sampled(tmp_path / "s")
    for name in (*FORMATS, "folder"):
        packed = tmp_path / name
        assert run_cli("pack", "--in", source, "--out", packed, "--to", name).code == 0
        done = run_cli("push", packed, f"me/{name}", "--json").json()
        assert done["left_out"] == {}, name
        assert set(content(packed)) <= set(hub.repositories["datasets", f"me/{name}"].files)


def test_dry_run_asks_nobody(run_cli, hub: Hub, tmp_path: Path) -> None:
    ran = run_cli("push", sampled(tmp_path / "s"), "me/faces", "--dry-run")
    assert ran.code == 0 and "state: planned" in ran.out and "visible to: you only" in ran.out
    assert "no license is stated" in ran.err and hub.asked == []


def test_a_public_repository_takes_no_private_push(assert_refused, run_cli, hub: Hub, tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s")
    run_cli("push", folder, "me/faces", "--public")
    assert_refused("push", folder, "me/faces", says=("everybody can see it", "--public"))
    assert run_cli("push", folder, "me/faces", "--public").code == 0


def test_files_of_somebody_else_are_not_overwritten(assert_refused, run_cli, hub: Hub, tmp_path: Path) -> None:
    folder = recognizer(tmp_path / "fr")
    run_cli("push", folder, "me/net")
    repository = hub.repositories["models", "me/net"]
    repository.branches["main"].append({"config.json": b"{}"})
    assert_refused("push", folder, "me/net", says=("did not push there", "config.json"))
    assert repository.files == {"config.json": b"{}"}


def test_unfinished_damaged_and_foreign_folders_are_refused(assert_refused, hub: Hub, tmp_path: Path) -> None:
    folder = recognizer(tmp_path / "fr")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert_refused("push", folder, "me/net", says=("train-embedder", "its digest is not the one"))
    os.replace(folder / "facesyn.json", folder / BEGUN)
    assert_refused("push", folder, "me/net", says=("is unfinished", "facesyn train-embedder"))
    (folder / BEGUN).unlink()
    assert_refused("push", folder, "me/net", says="no facesyn.json")
    assert_refused("push", tmp_path / "gone", "me/net", says="is not a folder")
    images = sampled(tmp_path / "s")
    (images / "id1" / "0.jpg").unlink()
    assert_refused("push", images, "me/faces", says="8 images and holds 7")
    assert hub.asked == []


def test_faces_of_real_people_are_refused(assert_refused, run_cli, hub: Hub, tmp_path: Path) -> None:
    photos = sampled(tmp_path / "photos")
    finish(photos, "ImageSet", "align", {"images": 8}, extra={"face_origin": "photo"})
    assert_refused("push", photos, "me/faces", says=("photos of real people", "--allow-real"))
    packed = tmp_path / "packed"
    run_cli("pack", "--in", photos, "--out", packed)
    assert_refused("push", packed, "me/faces", says="holds photos of real people")
    seen = report(tmp_path / "report", photos)
    assert_refused("push", seen, "me/faces", says="holds photos of real people")

    (photos / "facesyn.json").unlink()  # a folder of anybody
    other = tmp_path / "other"
    run_cli("pack", "--in", photos, "--out", other)
    assert_refused("push", other, "me/faces", says=("may hold photos", "headers do not say"))
    assert hub.asked == []
    assert run_cli("push", other, "me/faces", "--allow-real").code == 0
    header = json.loads(hub.repositories["datasets", "me/faces"].files["facesyn.json"])
    assert "face_origin" not in header["extra"]


def test_embeddings_of_photos_are_refused(assert_refused, tmp_path: Path) -> None:
    import numpy as np

    from facesyn_cli.artifacts.embedding_set import write_embeddings

    photos, vectors = sampled(tmp_path / "photos"), tmp_path / "vectors"
    header = finish(photos, "ImageSet", "align", {"images": 8}, extra={"face_origin": "photo"})
    write_embeddings(vectors, ["a/0", "b/0"], np.eye(2, 512, dtype=np.float32))
    finish(vectors, "EmbeddingSet", "embed", {"embeddings": 2}, {"images": Parent(str(photos), header.digest)})
    assert_refused("push", vectors, "me/vectors", "--dry-run", says="or data made from them")


def test_names_tokens_and_answers_of_the_hub(
    assert_refused, run_cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = recognizer(tmp_path / "fr")
    assert_refused("push", folder, "net", says="owner/name was expected")
    assert_refused("push", folder, "datasets/me/net", says="goes to a model repository")
    hub.answers["POST", "/api/repos"] = lambda handler: handler.fail(403, message="no write access")
    assert_refused("push", folder, "they/net", says=("they/net cannot be pushed", "403", "write access"))
    hub.answers["POST", "/api/repos"] = lambda handler: handler.fail(429)
    assert_refused("push", folder, "me/net", says=("429", "wait some minutes"))
    hub.answers.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert_refused("push", folder, "me/net", says=("the token is missing or not accepted", "hf auth login"))
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.asked)
    assert_refused("push", folder, "me/net", says=("no token is known", "hf auth login", "HF_TOKEN"))
    assert len(hub.asked) == asked and not hub.repositories


def test_hub_that_is_not_there(assert_refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(monkeypatch, tmp_path / "home"):
        pass  # its port is free again
    assert_refused("push", recognizer(tmp_path / "fr"), "me/net", says=("cannot be reached", "is this machine online?"))


def test_too_many_files_are_to_be_packed_first(
    assert_refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facesyn_cli.artifacts import publication

    folder = sampled(tmp_path / "s")
    monkeypatch.setattr(publication, "MAX_FILES", 8)
    assert_refused("push", folder, "me/faces", says=("9 files", f"facesyn pack --in {folder} --to webdataset"))
    monkeypatch.setattr(publication, "MAX_ENTRIES", 3)
    assert_refused("push", folder, "me/faces", says=("4 entries", "3 in a folder"))


def test_what_is_no_part_of_a_folder(assert_refused, run_cli, tmp_path: Path) -> None:
    folder = recognizer(tmp_path / "fr")
    write_bytes(folder / "run.py", b"print()")
    write_bytes(folder / ".lock-all", b"")
    done = run_cli("push", folder, "me/net", "--dry-run", "--json").json()
    assert done["left_out"]["a file of an unknown kind (.py)"] == done["left_out"]["a hidden file"] == 1
    (folder / "more").symlink_to(tmp_path)
    assert_refused("push", folder, "me/net", "--dry-run", says="is a link to a folder")


def test_from_python(hub: Hub, tmp_path: Path) -> None:
    source = sampled(tmp_path / "s")
    packed = facesyn.pack(tmp_path / "work", inputs=[source], out=tmp_path / "packed")
    done = facesyn.push(packed.folder, "me/faces", license="cc-by-4.0")
    assert done["state"] == "new" and done["repo_type"] == "dataset"
    found = facesyn.pull("me/faces", tmp_path / "again")
    assert isinstance(found, facesyn.Records) and found.folder == tmp_path / "again"
    assert len(RecordSet.open(found.folder)) == 8
    assert Header.read(tmp_path / "again" / "facesyn.json").digest == packed.header.digest
    with pytest.raises(UserError, match="no such repository"):
        facesyn.pull("me/nothing", tmp_path / "nothing")
