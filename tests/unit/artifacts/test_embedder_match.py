"""One check that sources come from one recognizer."""

from __future__ import annotations

import pytest

from facesyn_cli.artifacts.embedder_match import require_same_embedder
from facesyn_cli.errors import UserError

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("sources", "assumed", "expected"),
    [
        ({"ldm": A, "contexts": A}, None, A),
        ({"ldm": A, "contexts": None}, None, A),
        ({"ldm": None, "contexts": A}, "elasticface", A),
        ({"ldm": None, "contexts": None}, "elasticface", "elasticface"),
        ({"ldm": None, "contexts": None}, None, None),
        ({"ldm": A, "contexts": None}, A, A),
        ({"ldm": A, "contexts": A}, B, A),      # nothing is assumed of sources that carry a digest
    ],
)
def test_the_recognizer_is_returned(sources, assumed, expected):
    assert require_same_embedder(sources, "use one", assumed) == expected


@pytest.mark.parametrize(
    ("sources", "assumed"), [({"ldm": A, "x": None, "contexts": B}, None), ({"ldm": A, "contexts": None}, B)]
)
def test_different_recognizers_are_refused(sources, assumed):
    with pytest.raises(UserError, match=r"^ldm and contexts.* come from different recognizers .*; use one$"):
        require_same_embedder(sources, "use one", assumed)
