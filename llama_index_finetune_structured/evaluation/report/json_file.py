"""Reads the JSON files of scorecards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from ...descriptors import open_regular
from ...errors import ConfigurationError
from ...jsonl import READ_ERRORS, one_line_reason, parse_line

__all__ = ["read_json_file"]

Model = TypeVar("Model", bound=BaseModel)


def read_json_file(cls: type[Model], path: str | os.PathLike[str]) -> Model:
    """The object that ``cls.to_json`` wrote. Raises ConfigurationError where the file cannot be read or is none."""
    try:
        with open_regular(Path(path)) as file:
            return cls.model_validate(parse_line(file.read()))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    except READ_ERRORS as error:
        raise ConfigurationError(
            f"{path}: not a scorecard as {cls.__name__}.to_json writes it: {one_line_reason(error)}; restore the "
            "file, or compare again to write it"
        ) from error
