"""Damaged and hostile variants of a whole file: bits, cuts, splices, other types, absurd numbers. Fixed seeds."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

Random = np.random.RandomState
Mutate = Callable[[bytes, Random], bytes]

NUMBERS = (
    b"-1", b"0", b"1e400", b"nan", b"inf", b"9" * 18, b"9" * 30, b"9" * 5000, b"1000000000000", b"100000", b"0x10", b"",
    b"1.5", "\u0663".encode(), b"true",
)
TEXTS = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n\n\n", b"../../../etc/passwd", b"/etc/passwd", b"a" * 70_000,
    b"[" * 5000, b"{" * 5000, b"\"", b"'", b",", b"\t", b"%", b"\\", "\u2028".encode(), b"\xed\xa0\x80", b"!!int x",
    b"!!timestamp x", b"2024-99-99", b"&a [*a]", b"*a", b"{.nan: 1}", b": ", b"- ", b"<<: *a", b"!!python/name:os.x",
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 10**5, 10**12, 2**63, 2**64 + 1, -(2**63), 1.5, 1e308, float("nan"), float("inf"),
    "", "x", "a" * 5000, "\0", "../../x", "/etc/passwd", "\ud800", "12", "1e999", [], [1], ["x"], [None], [[]],
    [[1, 2], [3]], [10**12] * 4, [1] * 3000, {}, {"name": "x"}, {"": None}, {"name": ["x"]},
)
WORDS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def binary(data: bytes, random: Random) -> bytes:
    """Return bytes with a few places changed."""
    damaged = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        if not damaged:
            break
        at, how = random.randint(len(damaged)), random.randint(8)
        # Half of the changes hit the first or last 256 bytes, where most formats keep what describes the rest.
        if random.randint(2):
            at = (at % 256 if random.randint(2) else len(damaged) - 1 - at % 256) % len(damaged)
        end = min(len(damaged), at + random.randint(1, 40))
        if how == 0:
            damaged[at] ^= 1 << random.randint(8)
        elif how == 1:
            damaged[at] = random.randint(256)
        elif how == 2:
            del damaged[at:]
        elif how == 3:
            del damaged[at:end]
        elif how == 4:
            damaged[at:at] = damaged[max(0, at - (end - at)) : at]
        elif how == 5:
            size = (1, 2, 4, 8)[random.randint(4)]
            word = WORDS[random.randint(len(WORDS))] % 256**size
            damaged[at : at + size] = word.to_bytes(size, ("little", "big")[random.randint(2)])
        elif how == 6:
            damaged[at:end] = bytes([(0, 255)[random.randint(2)]]) * (end - at)
        else:
            other = random.randint(len(damaged))
            damaged[at:end] = damaged[other : other + end - at]
    return bytes(damaged)


def text(data: bytes, random: Random) -> bytes:
    """Return a text with a number blown up, a line moved, or something strange put in; or damaged as bytes."""
    how = random.randint(5)
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if how == 0 and numbers:
        found = numbers[random.randint(len(numbers))]
        return data[: found.start()] + NUMBERS[random.randint(len(NUMBERS))] + data[found.end() :]
    if how == 1:
        at = random.randint(len(data) + 1)
        return data[:at] + TEXTS[random.randint(len(TEXTS))] + data[at:]
    if how == 2:
        words = list(re.finditer(rb"[^\s,:\[\]{}\"]+", data))
        if words:
            found = words[random.randint(len(words))]
            return data[: found.start()] + TEXTS[random.randint(len(TEXTS))] + data[found.end() :]
    if how == 3:
        lines = data.splitlines(keepends=True)
        if lines:
            line = lines.pop(random.randint(len(lines)))
            if random.randint(2):
                lines[random.randint(len(lines) + 1) : 0] = [line, line]
            return b"".join(lines)
    return binary(data, random)


def json_value(value: Any, random: Random) -> Any:
    """Return a JSON value in which one place holds something else, is gone, or stands twice."""
    places: list[tuple[Any, Any]] = []
    root = [value]
    waiting: list[Any] = [root]
    while waiting:
        item = waiting.pop()
        for key, inner in item.items() if isinstance(item, dict) else enumerate(item):
            places.append((item, key))
            if isinstance(inner, dict | list):
                waiting.append(inner)
    item, key = places[random.randint(len(places))]
    how = random.randint(6)
    if how == 0 and item is not root:
        del item[key]
    elif how == 1 and isinstance(item, dict):
        item[("", "name", "x", "\0", "__class__", key.upper())[random.randint(6)]] = item.pop(key)
    elif how == 2 and isinstance(item, list) and item is not root:
        item.append(item[key])
    elif how == 3:
        item[key] = [item[key]] if random.randint(2) else {"a": item[key]}
    else:
        item[key] = VALUES[random.randint(len(VALUES))]
    return root[0]


def json_text(data: bytes, random: Random) -> bytes:
    """Return a JSON document with another value somewhere; every fourth is damaged as text."""
    if random.randint(4) == 0:
        return text(data, random)
    return json.dumps(json_value(json.loads(data), random)).encode()


def json_lines(data: bytes, random: Random) -> bytes:
    """Return JSON lines of which one is changed."""
    lines = data.splitlines()
    at = random.randint(len(lines))
    lines[at] = json_text(lines[at], random)
    return b"\n".join(lines) + b"\n"


def safetensors(data: bytes, random: Random) -> bytes:
    """Return a safetensors file whose JSON header says something else; every third is damaged as bytes."""
    if random.randint(3) == 0:
        return binary(data, random)
    size = int.from_bytes(data[:8], "little")
    header = json_text(data[8 : 8 + size].rstrip(), random)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def archive(data: bytes, random: Random) -> bytes:
    """Return a zip file of which one member is damaged under a right checksum, or that is damaged itself."""
    how = random.randint(4)
    if how == 0:
        return binary(data, random)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        members = old.infolist()
        chosen = members[random.randint(len(members))].filename
        if any(member.filename.endswith("data.pkl") for member in members) and random.randint(2):
            chosen = next(member.filename for member in members if member.filename.endswith("data.pkl"))
        for member in members:
            content, name = old.read(member), member.filename
            if name == chosen and how == 1:
                name = ("../x", "/etc/x", "a\\b", "x" * 300, "\u00e9", name + "/y", "")[random.randint(7)] or "x"
            elif name == chosen:
                content = binary(content, random)
            new.writestr(name, content, zipfile.ZIP_DEFLATED if how == 3 else zipfile.ZIP_STORED)
    return out.getvalue()
