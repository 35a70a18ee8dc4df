"""Validate what a parsed file holds against a pydantic model, with one line for what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from facesyn_cli.errors import UserError

M = TypeVar("M", bound=BaseModel)
_SHOWN = 3  # problems that a message names


def checked(model: type[M], value: Any, where: Path | str, expected: str) -> M:
    """Return a value as an instance of a model.

    Args:
        model: The model.
        value: What was parsed.
        where: The file (and line), for the message.
        expected: What the file should hold, for the message.

    Raises:
        UserError: The value does not fit; the first problems are named with their fields.
    """
    try:
        return model.model_validate(value)
    except (ValidationError, RecursionError) as error:
        raise UserError(f"{where}: {describe(error)}; {expected} was expected") from error


def describe(error: ValidationError | RecursionError) -> str:
    """Return the first problems of a failed validation in one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    problems = error.errors(include_url=False, include_context=False)
    lines = []
    for problem in problems[:_SHOWN]:
        place = ".".join(str(part)[:80] for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {text}" if place else text)
    more = [f"{len(problems) - _SHOWN} more problems"] if len(problems) > _SHOWN else []
    return " ".join("; ".join([*lines, *more]).split())
