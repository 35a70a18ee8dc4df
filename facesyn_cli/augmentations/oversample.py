"""Augmentation `oversample`: the source face of each identity's context, several times over.

Kim et al. 2023, DCFace, arXiv:2304.07060, section 5.2 (X_id is included five more times), and the ADMIS team
of FRCSyn 2024 after it. The face is repeated without transforms or mixing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from facesyn_cli.artifacts.image_set import ImageEntry
from facesyn_cli.augmentations.addition import Addition, Augmentation, next_number
from facesyn_cli.config.fields import growable, runtime_only
from facesyn_cli.data.pixels import UnreadableImage, decode_image
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.untrusted.input_files import MAX_IMAGE, read_bytes


class OversampleConfig(PluginConfig):
    """Settings of `oversample`."""

    copies: int = growable(5, "copies of the source face per identity", ge=1)
    allow_real: bool = runtime_only(False, "add faces that are photos of real people, too; the set's card then says so")


@register(
    "augmentation", "oversample",
    Card("Adds the source face of each identity's context several times; copies: per identity.",
         "Kim et al. 2023, DCFace, arXiv:2304.07060"),
)
def build_oversample(cfg: OversampleConfig) -> Augmentation:
    """Build the augmentation."""
    return Oversample(cfg.copies, cfg.allow_real)


class Oversample:
    """Link the source face under the numbers that follow the samples' own: 50..54 after 0..49."""

    needs_faces = True

    def __init__(self, copies: int, allow_real: bool = False) -> None:
        self.copies, self.allow_real = copies, allow_real

    def additions(
        self,
        identity: str,
        samples: Sequence[ImageEntry],
        read: Callable[[ImageEntry], bytes],
        face: Path | None,
        seed: int,
    ) -> Iterator[Addition]:
        """Yield the copies of one identity's source face.

        Raises:
            UserError: The face is missing or unreadable.
        """
        if face is None:
            raise UserError(f"the context of identity {identity!r} has no source face, which `oversample` copies")
        # Differs from ADMIS id_augment.py: the suffix is that of the image's content, not always `.png`.
        suffix = _checked_suffix(identity, face)
        first = next_number(samples)
        for number in range(first, first + self.copies):
            yield Addition(str(number), suffix, file=face)

    def num_additions(self, num_samples: int) -> int:
        """Return the number of copies."""
        return self.copies


def _checked_suffix(identity: str, face: Path) -> str:
    try:
        data = read_bytes(face, MAX_IMAGE, "a face")
        decode_image(data)
    except (UserError, UnreadableImage) as error:
        raise UserError(f"cannot read the source face {face} of identity {identity!r}: {error}") from error
    return suffix_of(data)
