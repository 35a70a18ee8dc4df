"""A stand-in of the Hugging Face Hub on this machine: what `huggingface_hub` asks for when it pushes and pulls.

Files of at least `LARGE` bytes take the way of large files (LFS). `Hub.answers` replaces answers: (method, start of the
path) -> function of the handler.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TOKEN = "hf_stand_in"
LARGE = 1000


@dataclass
class Repository:
    """Branches of one repository: name -> commits, each path -> content; the last one is the newest."""

    private: bool
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=lambda: {"main": [{".gitattributes": b""}]})

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"][-1]

    def at(self, revision: str) -> dict[str, bytes] | None:
        """Return the files of a branch or commit."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in commits if oid_of(commit) == revision), None)


class Hub(http.server.ThreadingHTTPServer):
    """The server; repositories by type and name, such as `("datasets", "me/faces")`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}                                   # SHA-256 -> content
        self.answers: dict[tuple[str, str], Callable[[Handler], None]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, start: str) -> int:
        """Return how many requests begin with `METHOD /path`."""
        return sum(line.startswith(start) for line in self.asked)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet
    server: Hub

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True  # the client is gone

    def _any(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.route = urllib.parse.unquote(url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{self.command} {self.route}")
        for (method, start), answer in [*self.server.answers.items()]:
            if self.command == method and self.route.startswith(start):
                answer(self)
                return
        self.answer()

    def answer(self) -> None:
        """Answer as the hub does."""
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            self.fail(401, message="Invalid credentials in Authorization header")
            return
        for pattern, serve in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {self.route}"):
                serve(self, **match.groupdict())
                return
        self.fail(404)

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def reply(self, value: object) -> None:
        self.send(json.dumps(value).encode(), Content_Type="application/json")

    def fail(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X_Error_Code": code} if code else {}
        headers |= {"X_Error_Message": message} if message else {}
        self.send(json.dumps({"error": message or code}).encode(), status, Content_Type="application/json", **headers)

    def found(self, type: str, name: str) -> Repository | None:
        """Return a repository that the sender may see; else answer like the hub."""
        repository = self.server.repositories.get((type, name))
        if repository is None or (repository.private and self.headers.get("Authorization") is None):
            self.fail(404, "RepoNotFound")
            return None
        return repository

    def log_message(self, *args: object) -> None:
        pass


def create(self: Handler) -> None:
    asked = json.loads(self.body)
    key = f"{asked.get('type', 'model')}s", f"{asked['organization']}/{asked['name']}"
    url = f"{self.server.url}/{'datasets/' if key[0] == 'datasets' else ''}{key[1]}"
    if key in self.server.repositories:
        self.send(json.dumps({"url": url, "error": "exists"}).encode(), 409)
        return
    is_private = asked.get("private") or asked.get("visibility") == "private"
    self.server.repositories[key] = Repository(bool(is_private))
    self.reply({"url": url, "name": key[1]})


def info(self: Handler, type: str, name: str, revision: str | None = None) -> None:
    if (repository := self.found(type, name)) is None:
        return
    files = repository.at(revision or "main")
    if files is None:
        self.fail(404, "RevisionNotFound")
        return
    siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
    self.reply({"id": name, "sha": oid_of(files), "private": repository.private, "siblings": siblings, "tags": [],
                "downloads": 0, "likes": 0})


def tree(self: Handler, type: str, name: str, revision: str) -> None:
    if (repository := self.found(type, name)) is not None:
        self.reply([
            {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)} | (
                {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 130}} if len(data) >= LARGE else {})
            for path, data in repository.at(revision).items()
        ])


def preupload(self: Handler, type: str, name: str, revision: str) -> None:
    if (repository := self.found(type, name)) is None:
        return
    files = repository.at(revision)
    modes = []
    for file in json.loads(self.body)["files"]:
        data, is_large = files.get(file["path"]), file["size"] >= LARGE
        oid = None if data is None else sha256(data) if is_large else git_oid(data)
        modes.append({"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False,
                      "oid": oid})
    self.reply({"files": modes})


def batch(self: Handler, name: str) -> None:
    objects = []
    for item in json.loads(self.body)["objects"]:
        upload = {"upload": {"href": f"{self.server.url}/large/{item['oid']}"}}
        objects.append(item if item["oid"] in self.server.large else {**item, "actions": upload})
    self.reply({"transfer": "basic", "objects": objects})


def put_large(self: Handler, oid: str) -> None:
    if sha256(self.body) != oid:
        self.fail(400)
        return
    self.server.large[oid] = self.body
    self.send(b"")


def commit(self: Handler, type: str, name: str, revision: str) -> None:
    if self.headers.get("Authorization") is None:
        self.fail(401)
        return
    if (repository := self.found(type, name)) is None:
        return
    files = dict(repository.at(revision))
    for line in self.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = self.server.large[value["oid"]]
        elif item["key"] == "deletedFile":
            del files[value["path"]]
    repository.branches[revision].append(files)
    oid = oid_of(files)
    self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})


def branch(self: Handler, type: str, name: str, branch: str) -> None:
    repository = self.found(type, name)
    if branch in repository.branches:
        self.fail(409)
        return
    repository.branches[branch] = [repository.files]
    self.reply({})


def resolve(self: Handler, name: str, revision: str, path: str, prefix: str | None = None) -> None:
    if (repository := self.found("datasets" if prefix else "models", name)) is None:
        return
    files = repository.at(revision)
    if files is None or path not in files:
        self.fail(404, "RevisionNotFound" if files is None else "EntryNotFound")
        return
    data, status, headers = files[path], 200, {}
    etag = sha256(data) if len(data) >= LARGE else git_oid(data)
    if part := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
        start = int(part[1])
        headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        data, status = data[start:], 206
    self.send(data, status, ETag=f'"{etag}"', X_Repo_Commit=oid_of(files), Accept_Ranges="bytes", **headers)


_TYPE, _NAME = r"/api/(?P<type>models|datasets)", r"/(?P<name>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable]] = [
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", lambda self: self.reply({"errors": [], "warnings": []})),
    (rf"GET {_TYPE}{_NAME}", info),
    (rf"GET {_TYPE}{_NAME}/revision/(?P<revision>.+)", info),
    (rf"GET {_TYPE}{_NAME}/tree/(?P<revision>[^/]+)/?", tree),
    (rf"POST {_TYPE}{_NAME}/preupload/(?P<revision>.+)", preupload),
    (rf"POST {_TYPE}{_NAME}/commit/(?P<revision>.+)", commit),
    (rf"POST {_TYPE}{_NAME}/branch/(?P<branch>.+)", branch),
    (rf"POST (?:/datasets)?{_NAME}\.git/info/lfs/objects/batch", batch),
    (r"PUT /large/(?P<oid>[0-9a-f]{64})", put_large),
    (rf"(?:GET|HEAD) (?P<prefix>/datasets)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]


def oid_of(files: dict[str, bytes]) -> str:
    """Return the id of a commit."""
    text = json.dumps(sorted((path, sha256(data)) for path, data in files.items()))
    return hashlib.sha1(text.encode()).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def connected(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """Run a hub that `huggingface_hub` in this process talks to; its constants are read from the environment once."""
    from huggingface_hub import constants, file_download

    with running() as hub:
        for name, value in {
            "ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HOME": str(home),
            "HF_TOKEN_PATH": str(home / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
            if hasattr(file_download, name):  # releases before 1.0 hold a copy
                monkeypatch.setattr(file_download, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """Return the environment in which a process of its own talks to a hub."""
    return {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN,
            "HF_HOME": str(home)}


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub in a thread."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
