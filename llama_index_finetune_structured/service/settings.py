"""Settings of the service: its folder, the base models it offers, and its limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ..local.model.base_models import DEFAULT_BASE_MODEL
from ..local.train.settings import LoraSettings

__all__ = ["ServiceSettings"]

_MIB, _GIB = 1 << 20, 1 << 30
# What OpenAI's model names hold; no colon, which separates the parts of a tuned model's name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def _base_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no model name: expected letters, digits and . _ / - alone")
    return name


class ServiceSettings(BaseModel):
    """Settings of the service. Those of bytes and counts hold for each key.

    Attributes:
        folder: Folder of the database, uploaded files, runs and tuned models.
        bases: Base models by the names that clients use; each as ``base_model`` of ``LoraFinetuneEngine``. By default
            the embedded one.
        embeddings: Embedding models by the names that clients use: folders as sentence-transformers saves them.
        organization: The third part of a tuned model's name.
        training: Training settings of all jobs; a job's own hyperparameters replace theirs.
        devices: Devices that train, one job each at a time, as values of ``CUDA_VISIBLE_DEVICES``. Empty (default): one
            worker with the environment's own devices.
        workers: Whether this server starts the workers that train.
        attempts: How often a job is started again after its worker died without finishing a step.
        max_file_bytes: Most bytes of one file; 512 MiB by default, as OpenAI's.
        max_part_bytes: Most bytes of one part of an upload; 64 MiB by default, as OpenAI's.
        max_body_bytes: Most bytes of any other request; 16 MiB by default.
        max_stored_bytes: Most bytes of all files and parts.
        max_waiting_jobs: Most jobs that have not ended.
        max_models: Most tuned models, jobs that have not ended, and adapters of Gradient's protocol, together.
        max_loaded_models: Most models in memory for answers, of all keys together.
        max_waiting_calls: Most calls of models that wait to be answered, of all keys together.
        backend: What answers: ``own``, the models in this process, or ``vllm``, a vLLM server of the only base.
        vllm_command: The program of vLLM, and options for its ``serve``; it is started with the service.
        vllm_url: Address of a vLLM server that runs already, of the only base; None (default): one is started.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    bases: dict[Annotated[str, AfterValidator(_base_name)], str] = Field(
        default={DEFAULT_BASE_MODEL: DEFAULT_BASE_MODEL}, min_length=1
    )
    embeddings: dict[Annotated[str, AfterValidator(_base_name)], str] = {}
    organization: str = Field(default="local", pattern=r"^[a-z0-9-]{1,32}$")
    training: LoraSettings = LoraSettings()
    devices: tuple[str, ...] = ()
    workers: bool = True
    attempts: int = Field(default=5, gt=0)
    max_file_bytes: int = Field(default=512 * _MIB, gt=0)
    max_part_bytes: int = Field(default=64 * _MIB, gt=0)
    max_body_bytes: int = Field(default=16 * _MIB, gt=0)
    max_stored_bytes: int = Field(default=64 * _GIB, gt=0)
    max_waiting_jobs: int = Field(default=100, gt=0)
    max_models: int = Field(default=1000, gt=0)
    max_loaded_models: int = Field(default=8, gt=0)
    max_waiting_calls: int = Field(default=256, gt=0)
    backend: Literal["own", "vllm"] = "own"
    vllm_command: tuple[str, ...] = Field(default=("vllm",), min_length=1)
    vllm_url: str | None = Field(default=None, pattern=r"^https?://")

    @field_validator("embeddings")
    @classmethod
    def _has_names_of_its_own(cls, embeddings: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if both := sorted(embeddings.keys() & info.data.get("bases", {}).keys()):
            raise ValueError(f"{both[0]!r} is the name of a base model too: each model has a name of its own")
        return embeddings

    @field_validator("backend")
    @classmethod
    def _has_one_base(cls, backend: str, info: ValidationInfo) -> str:
        if backend == "vllm" and len(info.data.get("bases", ())) > 1:
            raise ValueError("a vLLM server has one base model: run a service for each of several")
        return backend

    @property
    def database_path(self) -> Path:
        """The SQLite file."""
        return self.folder / "service.sqlite"

    @property
    def blobs_folder(self) -> Path:
        """Where the contents of files are."""
        return self.folder / "blobs"

    @property
    def runs_folder(self) -> Path:
        """Where the run of each job is, named by the job's id."""
        return self.folder / "runs"

    @property
    def gradient_folder(self) -> Path:
        """Where the adapters of Gradient's protocol are, each in a folder named by its id."""
        return self.folder / "gradient"
