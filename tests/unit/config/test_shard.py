"""The setting `shard`."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from facesyn_cli.config.shard import ShardedConfig


def test_a_part_is_a_pair_of_numbers_and_does_not_affect_the_result() -> None:
    assert ShardedConfig().part is None and ShardedConfig(shard="2/8").part == (2, 8)
    assert ShardedConfig(shard="2/8").to_json()["runtime"]["shard"] == "2/8"


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "1/", "/2", "a/b", "1/2/3", "-1/2", " 1/2"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="1 <= i <= n"):
        ShardedConfig(shard=text)
