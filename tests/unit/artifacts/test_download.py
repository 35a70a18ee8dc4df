"""Fetching from a server on this machine: whole, in pieces, changed in between, wrong, and not there."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading

import pytest

from facesyn_cli.artifacts.download import fetch
from facesyn_cli.errors import UserError

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; the first `stop_after` answers break off in the middle."""

    content, etag, ranges, broken = CONTENT, '"one"', True, 0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/net.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if self.path != "/net.bin":
            self.send_error(404)
            return
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        if server.broken:
            server.broken -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    running = Server()
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_file_comes_whole_and_leaves_nothing_else(server, tmp_path):
    fetched = fetch(server.url, tmp_path / "deep" / "net.bin", SHA256)
    assert fetched.path.read_bytes() == CONTENT and fetched.digest == f"sha256:{SHA256}" and fetched.reused == 0
    assert [p.name for p in fetched.path.parent.iterdir()] == ["net.bin"]


def test_a_second_time_asks_nobody(server, tmp_path):
    fetch(server.url, tmp_path / "net.bin")
    assert fetch(server.url, tmp_path / "net.bin", SHA256.upper()).reused == len(CONTENT)
    assert len(server.asked) == 1


def test_a_broken_connection_is_gone_on_with(server, tmp_path):
    server.broken = 2
    for _ in range(2):
        with pytest.raises(UserError, match="broke.*goes on from there"):
            fetch(server.url, tmp_path / "net.bin", SHA256)
        assert not (tmp_path / "net.bin").exists()
    half, three_quarters = len(CONTENT) // 2, len(CONTENT) // 4 * 3
    assert fetch(server.url, tmp_path / "net.bin", SHA256).reused == three_quarters
    assert server.asked == [None, f"bytes={half}-", f"bytes={three_quarters}-"]
    assert (tmp_path / "net.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["content", "no ranges", "no version"])
def test_another_version_or_a_server_without_ranges_starts_anew(server, tmp_path, change):
    server.broken = 1
    if change == "no version":
        server.etag = None
    with pytest.raises(UserError, match="broke"):
        fetch(server.url, tmp_path / "net.bin")
    if change == "content":
        server.content, server.etag = CONTENT[::-1], '"two"'
    server.ranges = change != "no ranges"
    assert fetch(server.url, tmp_path / "net.bin").reused == 0
    assert (tmp_path / "net.bin").read_bytes() == server.content


def test_a_wrong_checksum_throws_the_bytes_away(server, tmp_path):
    with pytest.raises(UserError, match=f"checksum sha256:{SHA256}, expected sha256:{'0' * 64}"):
        fetch(server.url, tmp_path / "net.bin", "0" * 64)
    assert list(tmp_path.iterdir()) == []
    fetch(server.url, tmp_path / "net.bin")
    with pytest.raises(UserError, match="another content"):
        fetch(server.url, tmp_path / "net.bin", "0" * 64)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_used(server, tmp_path):
    (tmp_path / "net.bin.part").write_bytes(b"x" * 100)
    state = {"url": "http://elsewhere/net.bin", "version": '"one"', "size": len(CONTENT)}
    (tmp_path / "net.bin.part.json").write_text(json.dumps(state))
    fetch(server.url, tmp_path / "net.bin", SHA256)
    assert server.asked == [None]


@pytest.mark.parametrize(("url", "says"), [
    ("http://127.0.0.1:9/net.bin", "cannot be reached.*online"),
    ("file:///etc/hostname", "https:// or http:// was expected"),
])
def test_no_server(tmp_path, url, says):
    with pytest.raises(UserError, match=says):
        fetch(url, tmp_path / "net.bin")
    assert not (tmp_path / "net.bin").exists()


def test_the_server_refuses_and_a_checksum_is_no_checksum(server, tmp_path):
    with pytest.raises(UserError, match="answers 404"):
        fetch(server.url.replace("net", "other"), tmp_path / "net.bin")
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        fetch(server.url, tmp_path / "net.bin", "abc")


def test_a_folder_made_for_nothing_goes_again(server, tmp_path):
    with pytest.raises(UserError, match="answers 404"):
        fetch(server.url.replace("net", "other"), tmp_path / "weights" / "other.bin")
    assert list(tmp_path.iterdir()) == []
    server.broken = 1
    with pytest.raises(UserError, match="broke"):
        fetch(server.url, tmp_path / "weights" / "net.bin")
    assert (tmp_path / "weights" / "net.bin.part").exists()
