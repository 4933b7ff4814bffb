"""What every scorecard can do: print itself, and be written as JSON and read back."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path

from pydantic import BaseModel
from typing_extensions import Self

from ...descriptors import open_regular
from ...errors import ConfigurationError
from ...files import write_text
from ...jsonl import READ_ERRORS, one_line_reason, parse_line
from ...printable import printable
from .terminal import FittedTable, print_result
from .text import json_text

__all__ = ["PrintedCard"]


class PrintedCard(BaseModel):
    """A scorecard as text: in the terminal and as a JSON file."""

    @abstractmethod
    def verdict(self) -> str:
        """The main result in a sentence or two, with 95% intervals."""

    @abstractmethod
    def problems(self) -> list[str]:
        """Sentences on what failed."""

    @abstractmethod
    def table(self) -> FittedTable:
        """A table for rich: one line per system, or one per figure where that is too wide for the terminal."""

    def print(self) -> None:
        """Print the table, the verdict and what failed to the terminal."""
        print_result(self.table(), self.verdict(), *self.problems())

    def __str__(self) -> str:
        return printable(f"{self!r}\n{self.verdict()}")

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write everything as JSON, atomically; a new file is readable by its owner only, as answers are in it.

        Args:
            path: The file; one that exists is replaced.

        Returns:
            ``path``.
        """
        return write_text(Path(path), json_text(self.model_dump(mode="json", exclude_none=True)))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that ``to_json`` wrote.

        Args:
            path: The JSON file.

        Raises:
            ConfigurationError: The file cannot be read, or is not such a scorecard.
        """
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
