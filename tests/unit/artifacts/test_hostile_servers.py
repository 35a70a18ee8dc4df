"""`models pull` from servers that send rubbish, without end, or nothing; and addresses that are none."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from facesyn_cli import signals
from facesyn_cli.artifacts import download
from facesyn_cli.artifacts.download import fetch, file_name
from facesyn_cli.artifacts.hub import fetch_from_hub
from facesyn_cli.errors import Stopped, UserError

OK = b"HTTP/1.1 200 OK\r\n"


class RawServer:
    """Answers every request with the same bytes; `tail` is sent again and again until the client leaves."""

    def __init__(self, answer: bytes, tail: bytes = b"", silent: bool = False) -> None:
        self.answer, self.tail, self.silent = answer, tail, silent
        self.asked: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/net.bin"

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                self._open.append(client)
                try:
                    self.asked.append(client.recv(65536))
                    client.sendall(self.answer)
                    while self.tail:
                        client.sendall(self.tail)
                    if self.silent:
                        client.recv(1)
                except OSError:
                    pass

    def close(self) -> None:
        self._socket.close()
        for client in self._open:
            client.close()


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(answer: bytes, tail: bytes = b"", silent: bool = False) -> RawServer:
        servers.append(RawServer(answer, tail, silent))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize("answer", [
    OK + b"Content-Length: many\r\n\r\nabc", OK + b"Content-Length: -5\r\n\r\nabc",
    OK + b"Content-Length: 9" + b"9" * 4999 + b"\r\n\r\nabc", OK + b"Content-Length: 1e3\r\n\r\nabc",
    OK + "Content-Length: \u0665\r\n\r\nabc".encode(), OK + b"Content-Length: 99999999999999999\r\n\r\nabc",
    OK + b"Content-Length: 400000000000\r\n\r\nabc", OK + b"Content-Length: 9\r\n\r\nabc",
    OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc", b"rubbish\r\n\r\n", b"", b"HTTP/1.1 9999 \x1b[31m\r\n\r\n",
    b"HTTP/1.1 404 \x1b[31mNo\x07 such\r\n\r\n", OK + b"a: b\r\n" * 200 + b"\r\n",
    OK + b"a: " + b"b" * 10**5 + b"\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[::1/x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[zz]/x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:99999/x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /net.bin\r\nContent-Length: 0\r\n\r\n",
], ids=lambda answer: repr(answer[:70]))
def test_rubbish_is_one_line(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 3 * 10**11)
    with pytest.raises(UserError) as caught:
        fetch(serve(answer).url, tmp_path / "net.bin")
    line = str(caught.value)
    assert line.isprintable() and len(line) < 500
    assert not (tmp_path / "net.bin").exists()


@pytest.mark.parametrize("answer", [OK + b"\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"], ids=["plain", "chunked"])
def test_body_without_end(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(download, "MAX_UNANNOUNCED", 2**20)
    block = bytes(2**16)
    tail = b"%x\r\n%s\r\n" % (len(block), block) if b"chunked" in answer else block
    with pytest.raises(UserError, match=f"sends more than {2**20} bytes, without announcing the length"):
        fetch(serve(answer, tail).url, tmp_path / "net.bin")
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_disk_holds(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5}))
    with pytest.raises(UserError, match="no space for the 6 bytes"):
        fetch(serve(OK + b"Content-Length: 6\r\n\r\nabcdef").url, tmp_path / "net.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [b"", OK + b"Content-Length: 6\r\n\r\nabc"], ids=["nothing", "half"])
def test_server_that_falls_silent(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(UserError, match="timed out"):
        fetch(serve(answer, silent=True).url, tmp_path / "net.bin")


@pytest.mark.parametrize("answer", [b"", OK + b'ETag: "1"\r\nContent-Length: 6\r\n\r\nabc'], ids=["nothing", "half"])
def test_stop_signal_is_heard_while_waiting(serve, tmp_path: Path, answer: bytes) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    try:
        signals.install()
        start = time.monotonic()
        timer.start()
        with pytest.raises(Stopped) as caught:
            fetch(serve(answer, silent=True).url, tmp_path / "net.bin")
        assert caught.value.exit_code == 143
        assert time.monotonic() - start < download.TIMEOUT_SECONDS / 2
    finally:
        timer.cancel()
        signals.reset()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert list(tmp_path.iterdir()) == []


NO_ADDRESSES = [
    "http://[::1/net.bin", "http://[zz]/net.bin", "http://[]/net.bin", "http://]/net.bin", "http://h:port/net.bin",
    "http://h:99999/net.bin", "http:///net.bin", "http://", "https://.../net.bin", "http://a b/net.bin",
    "http://a\nb/net.bin", "http://" + "x" * 300 + "/net.bin", "http://user:word@127.0.0.1/net.bin", "ftp://h/net.bin",
    "://h/net.bin", "http://\udcff/net.bin", "file:///etc/hostname", "http://h\0/net.bin",
]
NO_FILES = ["http://h", "http://h/", "http://h/..", "http://h/a/..", "http://h/a/../", "http://h/.", "http://h/?a=b.bin",
            "http://h/" + "x" * 300, "http://h/#net.bin"]


@pytest.mark.parametrize("url", NO_ADDRESSES, ids=repr)
def test_addresses_that_are_none(tmp_path: Path, url: str) -> None:
    for attempt in (lambda: fetch(url, tmp_path / "net.bin"), lambda: file_name(url)):
        with pytest.raises(UserError) as caught:
            attempt()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", NO_FILES, ids=repr)
def test_addresses_of_no_file(url: str) -> None:
    with pytest.raises(UserError, match="the address of a file was expected"):
        file_name(url)


@pytest.mark.parametrize(("url", "name"), [
    ("https://h/a/net.bin?download=1", "net.bin"), ("http://[::1]:80/a.bin", "a.bin"),
    ("http://h/é b.bin", "%C3%A9%20b.bin"),
    ("http://münchen.de/%C3%A9.bin#x", "%C3%A9.bin"), ("http://h/a\\..\\b", "a%5C..%5Cb"),
])
def test_names_of_files(url: str, name: str) -> None:
    assert file_name(url) == name


def test_non_ascii_addresses_are_sent_encoded(serve, tmp_path: Path) -> None:
    server = serve(OK + b"Content-Length: 3\r\n\r\nabc")
    fetch(server.url.replace("net", "nét ä") + "?q=ü#part", tmp_path / "net.bin")
    assert server.asked[0].startswith(b"GET /n%C3%A9t%20%C3%A4.bin?q=%C3%BC HTTP/1.1")


def test_hub_that_cannot_be_reached_and_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client returns a folder that is there already as if it had been fetched."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "name"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache" / "note").write_bytes(b"")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(folder))
    with pytest.raises(UserError, match="nothing has arrived"):
        fetch_from_hub("owner/name", folder)
    (folder / "model.safetensors").write_bytes(b"x")
    assert fetch_from_hub("owner/name", folder) == {"folder": str(folder), "hub": "owner/name"}
