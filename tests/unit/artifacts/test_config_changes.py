"""Which differences between two configs matter."""

from __future__ import annotations

from facesyn_cli.artifacts.config_changes import Change, change_table, compare_configs


def test_an_option_that_is_off_equals_one_that_did_not_exist() -> None:
    """A folder written before a stage had a new option can still be continued."""
    old, off = {"identity": {"flip": False}}, {"identity": {"flip": False, "align": None}}
    assert compare_configs(old, off).problems == [] and compare_configs(off, old).problems == []
    on = {"identity": {"flip": False, "align": {"pick": "largest"}}}
    assert compare_configs(old, on).problems == [Change("align.pick", "absent", "largest")]
    assert compare_configs(on, off).problems == [Change("align.pick", "largest", "absent")]


def test_false_and_zero_are_settings() -> None:
    for value in (False, 0, "", []):
        assert compare_configs({"identity": {}}, {"identity": {"x": value}}).problems


def test_a_table_has_aligned_columns() -> None:
    assert change_table([Change("seed", "0", "1"), Change("scheduler.steps", "1000", "50")]) == [
        "  setting          in the folder  now",
        "  seed             0              1",
        "  scheduler.steps  1000           50",
    ]


def test_a_table_fits_80_columns_and_keeps_both_ends_of_long_values() -> None:
    lines = change_table([
        Change("a.very.long.name.of.a.setting.of.a.plugin", f"/data/{'x' * 99}/3-contexts", f"[1, {'3, ' * 99}4]"),
        Change("input contexts", "sha256:0123456789ab", "sha256:ba9876543210"),
    ])
    assert max(map(len, lines)) <= 80
    assert "/data/" in lines[1] and "3-contexts" in lines[1] and lines[1].endswith("3, 4]")
    assert "sha256:0123456789ab" in lines[2] and lines[2].endswith("sha256:ba9876543210")
