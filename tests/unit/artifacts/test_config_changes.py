"""Which differences between two configs matter."""

from __future__ import annotations

from facesyn_cli.artifacts.config_changes import compare_configs


def test_an_option_that_is_off_equals_one_that_did_not_exist() -> None:
    """A folder written before a stage had a new option can still be continued."""
    old, off = {"identity": {"flip": False}}, {"identity": {"flip": False, "align": None}}
    assert compare_configs(old, off).problems == [] and compare_configs(off, old).problems == []
    on = {"identity": {"flip": False, "align": {"pick": "largest"}}}
    assert compare_configs(old, on).problems == ["align.pick: was absent, is 'largest'"]
    assert compare_configs(on, off).problems == ["align.pick: was 'largest', is absent"]


def test_false_and_zero_are_settings() -> None:
    for value in (False, 0, "", []):
        assert compare_configs({"identity": {}}, {"identity": {"x": value}}).problems
