"""The setting `shard` of stages that separate runs can divide among them, such as the jobs of a cluster queue."""

from __future__ import annotations

from pydantic import field_validator

from facesyn_cli.config.fields import StageConfig, runtime_only


class ShardedConfig(StageConfig):
    """Settings of a stage that takes `--shard i/n`."""

    shard: str | None = runtime_only(None, "i/n, i from 1: make part i of n; the run that finds all parts finishes")

    @field_validator("shard")
    @classmethod
    def _is_part(cls, value: str | None) -> str | None:
        if value is not None:
            index, slash, count = value.partition("/")
            if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
                raise ValueError("i/n with 1 <= i <= n is expected, for example 2/8")
        return value

    @property
    def part(self) -> tuple[int, int] | None:
        """(i, n) of `shard`."""
        if self.shard is None:
            return None
        index, count = self.shard.split("/")
        return int(index), int(count)
