"""What a hosted run is asked to do, before it is one: model, data, settings, and what makes two the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...example import Transport, content_hash
from ..base import Data
from .client import Service
from .journal import Run, runs_root
from .providers import JobRequest
from .submission import KEY_NAME
from .training_file import TrainingFile, preflight, prepare, transport_of

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """The request in the user's terms; ``settings`` are hyperparameters, suffix, seed and extra_body."""

    base_model: str
    data: Data
    validation: Data | None
    settings: Mapping[str, Any]
    transport: Transport | None
    validate_json: bool

    def files(self, service: Service) -> list[TrainingFile]:
        """The training file and, where there is one, the validation file, checked."""
        mark = service.provider.byte_order_mark
        given = [("train", self.data), ("validation", self.validation)]
        files = [
            prepare(data, runs_root() / "data", byte_order_mark=mark, name=name)
            for name, data in given
            if data is not None
        ]
        if self.validate_json:
            for file in files:
                preflight(file.path)
        return files

    def identity(self, service: Service, files: list[TrainingFile]) -> str:
        """Equal for equal requests: provider, address, model, contents of the files, settings."""
        where = [service.provider.name, service.api_base, self.base_model]
        return content_hash([where, [file.sha256 for file in files], dict(self.settings)])

    def run(self, service: Service, files: list[TrainingFile]) -> Run:
        """A run that has not begun. Without files (an attached job) the data is as it was named."""
        path = files[0].path if files else self._named_path()
        learned = files[0].transport if files else None
        if not files and path is not None and path.is_file():
            learned = transport_of(path)
        return Run(
            engine="openai",
            provider=service.provider.name,
            api_base=service.api_base,
            base_model=self.base_model,
            data_path=str(path or ""),
            validation_path=str(files[1].path) if len(files) > 1 else None,
            request=dict(self.settings),
            transport=self.transport or learned,
        )

    def _named_path(self) -> Path | None:
        return Path(self.data) if isinstance(self.data, (str, os.PathLike)) else None

    def request(self, run: Run, files: list[TrainingFile]) -> JobRequest:
        """The request with the ids of the uploaded files and the run's key."""
        ids = [run.files[file.sha256] for file in files]
        return JobRequest(
            base_model=self.base_model,
            training_file=ids[0],
            validation_file=ids[1] if len(ids) > 1 else None,
            metadata={KEY_NAME: run.key},
            **self.settings,
        )
