"""The description of a starter by its packer."""

from __future__ import annotations

from pathlib import Path

import pytest

from facesyn_cli.errors import UserError
from facesyn_cli.report.starter_cards import About


def test_the_old_spelling_of_license_works_with_a_warning(tmp_path: Path, said) -> None:
    (tmp_path / "card.yaml").write_text("data: mine\nlicence: CC0\n")
    about = About.read(tmp_path / "card.yaml")
    assert about.license == "CC0" and about.data == "mine"
    assert said == ["licence is now license; the old spelling will be refused in the next release"]


def test_another_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text("lisence: CC0\n")
    with pytest.raises(UserError, match="lisence"):
        About.read(tmp_path / "card.yaml")
