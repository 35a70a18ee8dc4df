"""Downloads from a server on this machine: whole, broken off, wrong, and not there."""

from __future__ import annotations

import hashlib
import http.server
import threading

import pytest

from facesyn_cli.artifacts.download import fetch
from facesyn_cli.errors import UserError

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; the first `broken` answers break off in the middle."""

    broken = answers = 0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/net.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.answers += 1
        if self.path != "/net.bin":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        is_broken = self.server.broken > 0
        self.server.broken -= is_broken
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if is_broken else CONTENT)

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
    path = tmp_path / "deep" / "net.bin"
    assert fetch(server.url, path, SHA256) == f"sha256:{SHA256}" and path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["net.bin"]


def test_a_second_time_nothing_is_requested(server, tmp_path):
    fetch(server.url, tmp_path / "net.bin")
    assert fetch(server.url, tmp_path / "net.bin", SHA256.upper()) == f"sha256:{SHA256}"
    assert server.answers == 1


def test_a_broken_connection_leaves_nothing_and_the_next_attempt_works(server, tmp_path):
    server.broken = 1
    with pytest.raises(UserError, match="broke.*run the same command again"):
        fetch(server.url, tmp_path / "net.bin", SHA256)
    assert list(tmp_path.iterdir()) == []
    fetch(server.url, tmp_path / "net.bin", SHA256)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_throws_the_bytes_away(server, tmp_path):
    with pytest.raises(UserError, match=f"checksum sha256:{SHA256}, expected sha256:{'0' * 64}"):
        fetch(server.url, tmp_path / "net.bin", "0" * 64)
    assert list(tmp_path.iterdir()) == []
    fetch(server.url, tmp_path / "net.bin")
    with pytest.raises(UserError, match="another content"):
        fetch(server.url, tmp_path / "net.bin", "0" * 64)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT


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
    assert list(tmp_path.iterdir()) == []
