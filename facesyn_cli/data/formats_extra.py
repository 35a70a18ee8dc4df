"""Packages that only some record formats need; imported when they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from facesyn_cli.errors import UserError


def formats_package(name: str) -> ModuleType:
    """Import a package of the extra `formats`.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f'this record format needs a package that is not installed ({name}): pip install "facesyn[formats]"'
        ) from error
