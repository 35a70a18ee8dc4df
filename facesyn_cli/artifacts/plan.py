"""The plan of a stage, as `--dry-run` prints it; the same keys in every stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["new", "unfinished", "grows", "finished"]


@dataclass(frozen=True)
class Plan:
    """The plan of one stage; `facesyn STAGE --dry-run --json` prints its fields, so their names are an interface.

    Args:
        folder: Where the stage writes; None for one that writes nothing.
        state: State of the folder, see `artifacts.output.check_output`.
        inputs: Input by name -> path.
        counts: Numbers of items: `images`, `identities`, `images_left`, `steps`, `parameters`, ... Names are nouns in
            snake_case and the same in all stages.
        network_evaluations: Remaining evaluations by network, for example {"denoiser": 20000, "decoder": 1000}.
        disk_mib: Expected size of the output in MiB; None if unknown.
        expected_s: Expected time in seconds; None if nothing was measured.
        chosen: Values that the stage derives: batch size, accumulation, latent shape.
    """

    folder: Path | None
    state: State = "new"
    inputs: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    network_evaluations: dict[str, int] = field(default_factory=dict)
    disk_mib: float | None = None
    expected_s: float | None = None
    chosen: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        disk = None if self.disk_mib is None else round(self.disk_mib, 1)
        seconds = None if self.expected_s is None else round(self.expected_s, 1)
        folder = None if self.folder is None else str(self.folder)
        return {**asdict(self), "folder": folder, "disk_mib": disk, "expected_s": seconds}
