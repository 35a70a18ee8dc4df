"""The check that embeddings, contexts and weights come from one recognizer.

Embeddings of different recognizers have the same shape, but cosines between them mean nothing. Sets and weights of ours
carry the digest of the recognizer's weights; published files do not.
"""

from __future__ import annotations

from collections.abc import Mapping

from facesyn_cli.errors import UserError

_SHOWN = 19  # characters of a digest in messages


def require_same_embedder(sources: Mapping[str, str | None], advice: str, assumed: str | None = None) -> str | None:
    """Return the digest of the recognizer that all sources come from; None where it is unknown.

    Args:
        sources: Name of a file, folder or input for the message -> digest of its recognizer; None unknown.
        advice: What the user can do about a difference.
        assumed: `assume_embedder`, the name or digest of the recognizer behind sources that do not carry one. A name
            is returned where no source carries a digest.

    Raises:
        UserError: Two sources come from different recognizers, or an assumed digest differs from a known one.
    """
    known = {name: digest for name, digest in sources.items() if digest is not None}
    compared = dict(known)
    if assumed is not None and assumed.startswith("sha256:") and len(known) < len(sources):
        unknown = " and ".join(name for name in sources if name not in known)
        compared[f"{unknown} (assume_embedder)"] = assumed
    if len(set(compared.values())) > 1:
        (first, digest), *others = compared.items()
        other, different = next(item for item in others if item[1] != digest)
        raise UserError(
            f"{first} and {other} come from different recognizers ({digest[:_SHOWN]}, {different[:_SHOWN]}); {advice}"
        )
    return next(iter(known.values()), assumed)
