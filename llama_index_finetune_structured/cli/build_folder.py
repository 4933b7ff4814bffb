"""The folder beside a build's output, in which paid answers are kept with the settings they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from ..dataset import FinetuneDataset
from ..errors import ConfigurationError
from ..files import read_json, write_json
from ..locks import locked_folder

__all__ = ["BuildSettings", "DocumentChanges", "build_folder", "folder_of", "save_held_out"]

_SUFFIX = ".build"
_NONE_HELD_OUT = (
    "none_held_out.json"  # there after a build without held-out rows: such a file is not of a build
)


class _Document(BaseModel):
    """``text``: hash of the text. ``split_name``: the name that decides on the side of the split, the first it had.

    ``answer``: hash of the answers in its rows; None where rows are of questions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    split_name: str
    answer: str | None = None


_Documents: TypeAdapter[dict[str, _Document]] = TypeAdapter(dict[str, _Document])


class BuildSettings(BaseModel):
    """The settings that kept answers depend on. ``teacher`` is None where the answers are labels.

    ``instruction``: of rows that hold whole documents, which have no ``top_k`` and ``chunk_size``; their teacher is
    part of the key of each kept answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer_schema: dict[str, Any]
    teacher: str | None
    top_k: int | None = None
    chunk_size: int | None = None
    instruction: str | None = None


class DocumentChanges:
    """What has become of the documents since the last build in ``folder``, and the record of it.

    ``now``: hash of each document's text, by name; ``answers``: of its answers, where rows are of whole documents.
    """

    def __init__(
        self, folder: Path, now: Mapping[str, str], answers: Mapping[str, str] | None = None
    ) -> None:
        self._file, self._now, self._answers = folder / "documents.json", dict(now), dict(answers or {})
        self._before = self._read()
        before = self._before or {}
        gone = {document.text: name for name, document in before.items() if name not in now}
        self._renamed = {new: gone[text] for new, text in now.items() if new not in before and text in gone}

    def _read(self) -> dict[str, _Document] | None:
        """The record of the last build, or None at the first. Raises ConfigurationError where it cannot be read."""
        if not self._file.is_file():
            return None
        try:
            return _Documents.validate_python(read_json(self._file))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self._file}: cannot be read ({' '.join(str(error).split())}); remove it: it only serves to say "
                "which documents have changed, and to keep renamed ones on their side of the split"
            ) from error

    def counts(self) -> dict[str, int]:
        """Documents that are new, changed, removed, or renamed with the same text; empty at the first build."""
        if self._before is None:
            return {}
        added, gone = self._now.keys() - self._before.keys(), self._before.keys() - self._now.keys()
        kept = self._now.keys() & self._before.keys()
        return {
            "new": len(added - self._renamed.keys()),
            "changed": sum(self._before[name].text != self._now[name] for name in kept),
            "removed": len(gone - set(self._renamed.values())),
            "renamed": len(self._renamed),
        }

    def same_answer(self) -> list[str]:
        """The documents that have changed while their answer has not, which may be out of date."""
        before = self._before or {}
        return [
            name
            for name, answer in self._answers.items()
            if name in before and before[name].text != self._now[name] and before[name].answer == answer
        ]

    def split_name(self, document: str) -> str:
        """The name by which a document is held out: a renamed one stays on its side, as rows of it were trained on."""
        known = (self._before or {}).get(self._renamed.get(document, document))
        return document if known is None else known.split_name

    def save(self) -> None:
        """Record the documents as they are now."""
        now = {
            name: {"text": text, "split_name": self.split_name(name), "answer": self._answers.get(name)}
            for name, text in self._now.items()
        }
        write_json(self._file, now)


def folder_of(data: Path) -> Path:
    """The folder of a build's records: ``data.jsonl`` -> ``data.build`` beside it."""
    return data.with_name(f"{data.stem}{_SUFFIX}")


def held_out_path(output: Path) -> Path:
    """``data.jsonl`` -> ``data.validation.jsonl`` in the same folder."""
    return output.with_name(f"{output.stem}.validation{output.suffix}")


def save_held_out(output: Path, rows: FinetuneDataset | None) -> Path | None:
    """Write the held-out rows; without any, remove those of an earlier build, which may be in the training file now.

    Returns the file, None without rows.
    """
    path, mark = held_out_path(output), folder_of(output) / _NONE_HELD_OUT
    if rows is None:
        path.unlink(missing_ok=True)
        write_json(mark, {})
        return None
    mark.unlink(missing_ok=True)
    return rows.save(path)


@contextmanager
def build_folder(output: Path, settings: BuildSettings) -> Iterator[Path]:
    """The folder ``data.build`` beside ``data.jsonl``, locked, and created with these settings if it does not exist.

    Raises ConfigurationError where the folder has other settings, or where ``output`` or the file of held-out rows
    exists without such a folder, that is, was not written by a build, or ``output`` names the folder itself;
    EngineError while another build works there, which would pay for the same answers.
    """
    if not output.name or output.suffix.lower() == _SUFFIX:
        raise ConfigurationError(
            f"{output}: expected the path of a file such as data.jsonl; give another --output"
        )
    folder = folder_of(output)
    settings_file = folder / "build.json"
    _require_own(settings_file, output, settings)  # before anything is written
    with locked_folder(folder):
        _require_own(settings_file, output, settings)  # another build may have begun meanwhile
        if not settings_file.is_file():
            write_json(settings_file, settings.model_dump(mode="json"))
        yield folder


def _require_own(settings_file: Path, output: Path, settings: BuildSettings) -> None:
    if settings_file.is_file():
        _require_same(settings_file, settings)
        others = [held_out_path(output)] if (settings_file.parent / _NONE_HELD_OUT).is_file() else []
    else:
        others = [output, held_out_path(output)]
    for path in others:
        if path.exists():
            raise ConfigurationError(f"{path}: exists and was not made by a build; choose another --output")


def _require_same(settings_file: Path, settings: BuildSettings) -> None:
    try:
        stored = BuildSettings.model_validate(read_json(settings_file))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{settings_file}: cannot be read ({error}); choose another --output"
        ) from error
    changed = [
        name for name in BuildSettings.model_fields if getattr(stored, name) != getattr(settings, name)
    ]
    if changed:
        raise ConfigurationError(
            f"{settings_file.parent}: holds answers that were made with another {', '.join(changed)}; choose "
            "another --output, or remove that folder and lose its answers"
        )
