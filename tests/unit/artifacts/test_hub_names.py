"""Names of repositories on the hub."""

from __future__ import annotations

import pytest

from facesyn_cli.artifacts.hub import HubName


@pytest.mark.parametrize(("text", "expected"), [
    ("me/net", HubName("me/net")), ("me/net@v1.0", HubName("me/net", revision="v1.0")),
    ("me/net/a b/c.safetensors", HubName("me/net", file="a b/c.safetensors")),
    ("me/net@v1/net.onnx", HubName("me/net", revision="v1", file="net.onnx")),
    ("datasets/me/faces", HubName("me/faces", "dataset")), ("models/me/net@v1", HubName("me/net", "model", "v1")),
    ("datasets/me", HubName("datasets/me")),
])
def test_parts(text: str, expected: HubName) -> None:
    assert HubName.parse(text) == expected and str(expected) == text


@pytest.mark.parametrize("text", [
    "", "net", "me/", "/net", "me/../net", "me/ net", "https://h/me/net", "me/net@", "ä b/c",
])
def test_other_texts(text: str) -> None:
    assert HubName.parse(text) is None
