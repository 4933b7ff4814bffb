"""The settings of a demo run, the folder that belongs to them, and the hosted teacher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_index.core.llms import LLM
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigurationError
from ..files import read_json, write_json
from ..local.model.base_models import DEFAULT_BASE_MODEL
from ..locks import locked_folder

__all__ = ["DemoSettings", "teacher_of", "open_output"]


class DemoSettings(BaseModel):
    """The settings of a demo run; an output folder belongs to one set of them."""

    model_config = ConfigDict(frozen=True)

    train_size: int = Field(default=184, ge=4)
    test_size: int = Field(default=40, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    base_model: str = DEFAULT_BASE_MODEL
    teacher: str | None = None
    api_base: str | None = None
    agent: bool = False


@contextmanager
def open_output(output: Path, settings: DemoSettings) -> Iterator[None]:
    """Hold the lock of the folder, which gets these settings or has the same.

    Raises ConfigurationError where it belongs to a run with other settings, EngineError while another process works
    there.
    """
    with locked_folder(output):
        _claim(output, settings)
        yield


def _claim(output: Path, settings: DemoSettings) -> None:
    settings_file = output / "demo.json"
    if not settings_file.is_file():
        write_json(settings_file, settings.model_dump(mode="json"))
        return
    try:
        stored = DemoSettings.model_validate(read_json(settings_file))
    except (ValueError, ValidationError) as error:
        raise ConfigurationError(
            f"{settings_file}: cannot be read ({error}); remove the folder or choose another"
        ) from error
    if stored != settings:
        raise ConfigurationError(
            f"{output}: holds a run with other options ({stored}); choose another --output or remove the folder"
        )


def teacher_of(settings: DemoSettings) -> LLM | None:
    """The teacher that the settings name; None where they name none. Raises ConfigurationError without a key."""
    if settings.teacher is None:
        return None
    if not os.environ.get("OPENAI_API_KEY"):
        raise ConfigurationError(
            "--teacher needs a key: set OPENAI_API_KEY (any text for a server without keys)"
        )
    from ..llms.hosted import hosted_llm

    api_base = settings.api_base or "https://api.openai.com/v1"
    return hosted_llm(settings.teacher, api_base=api_base, transport="tools", temperature=0.0)
