"""YAML and JSON of others: limits, and one line for everything a parser can raise."""

from __future__ import annotations

import json
import math

import pytest

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted import parsing as untrusted
from facesyn_cli.untrusted.parsing import parse_json, parse_yaml, read_json_lines

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED_YAML = {
    "integer that is none": "!!int x", "empty integer": '!!int ""', "bool that is none": "!!bool x",
    "float that is none": "!!float x", "empty float": '!!float ""', "timestamp": "!!timestamp x",
    "timestamp of a date": "!!timestamp 2024-01-01", "binary": "!!binary aGFsbG8=", "set": "!!set {a, b}",
    "python": "!!python/object/apply:os.system [true]", "list as integer": "!!int [1]", "text as list": "!!seq x",
    "alias to itself": "&a [*a]", "alias to a mapping around it": "a: &a {b: {c: *a}}", "bomb": BOMB,
    "merge of itself": "a: &a {<<: *a}", "unknown alias": "*a", "nested lists": "[" * 100_000,
    "nested and closed": "[" * 1000 + "]" * 1000, "nested mappings": "".join(" " * i + "a:\n" for i in range(200)),
    "decimal of 5,000 digits": "9" * 5000, "hexadecimal of 5,000 digits": "0x" + "f" * 5000,
    "binary of 65 digits": "0b" + "1" * 66, "base 60": ":".join(["59"] * 40), "NaN as key": "{.nan: 1}",
    "number as key": "{1: 1}", "truth as key": "{yes: 1}", "list as key": "{[a]: 1}", "null as key": "{~: 1}",
    "key twice": "a: 1\nb: 2\na: 3", "NUL": "a: \0", "unclosed": "a: [1, 2", "tab": "a:\n\t- b", "two": "a\n---\nb",
    "large": "a: " + "x" * untrusted.MAX_YAML, "surrogate": "a: \ud800",
}


@pytest.mark.parametrize("text", REFUSED_YAML.values(), ids=REFUSED_YAML)
def test_yaml_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_yaml_of_recipes() -> None:
    recipe = "base: &b {steps: 20, scale: 1.5}\nsample: {<<: *b, steps: 10, names: [a, ~], since: 2024-99-99}\n"
    assert parse_yaml(recipe) == {
        "base": {"steps": 20, "scale": 1.5},
        "sample": {"scale": 1.5, "steps": 10, "names": ["a", None], "since": "2024-99-99"},
    }
    assert parse_yaml("") is None and parse_yaml("1e-3") == "1e-3" and parse_yaml("1.0e-3") == 1e-3
    assert parse_yaml("18446744073709551616") == 2**64 and math.isinf(parse_yaml(".inf"))
    assert parse_yaml("{a: true, '1': no}") == {"a": True, "1": False}


def test_yaml_says_where() -> None:
    with pytest.raises(UserError, match="line 2, column 4: the key 'b' is given twice|line 2"):
        parse_yaml("a:\n  {b: 1, b: 2}")
    with pytest.raises(UserError, match=r"line 1, column 4: 'x' is not a valid int"):
        parse_yaml("a: !!int x")


@pytest.mark.parametrize("text", [
    "", "{", "[" * 100_000, "[" * 100 + "]" * 100, '{"a":' * 80 + "1" + "}" * 80, "9" * 5000, "-" + "9" * 30, "[1,]",
    "nul", '"\\ud8', '{"a": 1} x', "\ufeff{}", '{"a": "\n"}',
], ids=repr)
def test_json_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_json_reads_what_is_written() -> None:
    value = {"a": [1, -2.5, None, True, "\udcff", 2**64], "b": {"c": [[[]]] * 100}, "text": "[" * 1000}
    assert parse_json(json.dumps(value)) == value
    assert math.isnan(parse_json("NaN"))
    assert parse_json("5") == 5


def test_json_lines(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}')
    assert list(read_json_lines(path)) == [{"a": 1}, {"a": 2}]
    path.write_bytes(b'{"a": 1}\n\n')
    with pytest.raises(UserError, match="line 2"):
        list(read_json_lines(path))
