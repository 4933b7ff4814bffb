"""A service with Gradient's protocol on loopback, shared by the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from gradientai import Gradient
from safetensors.torch import load_file, save_file

from llama_index_finetune_structured import LoraSettings
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests import exporting
from tests.service.gradient.running import sdk, served

TRAINING = LoraSettings(rank=4, learning_rate=2e-2)


@dataclass
class GradientService:
    """A running service without keys: the host that the SDK is given, its folder and its application."""

    host: str
    folder: Path
    app: FastAPI

    def client(self) -> Gradient:
        """The SDK as it is."""
        return sdk(self.host)

    def weights(self, adapter_id: str) -> bytes:
        """The bytes of an adapter's newest version."""
        (found,) = (self.folder / "gradient" / adapter_id).rglob("adapter_model.safetensors")
        return found.read_bytes()


@pytest.fixture(scope="session")
def able_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base whose output layer has large weights: LoRA soon makes it write one text."""
    folder = exporting.save_base("llama", tmp_path_factory.mktemp("able") / "base")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 8
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def settings(able_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ServiceSettings:
    """Of a service with one base."""
    return ServiceSettings(
        folder=tmp_path_factory.mktemp("gradient"),
        bases={"tiny": str(able_base)},
        training=TRAINING,
        workers=False,
    )


@pytest.fixture(scope="session")
def service(settings: ServiceSettings) -> Iterator[GradientService]:
    """One server."""
    with served(settings) as (url, app):
        yield GradientService(f"{url}/api", settings.folder, app)


@pytest.fixture
def restarted(settings: ServiceSettings, tmp_path: Path) -> ServiceSettings:
    """Settings of a service of the test's own, which it may start several times."""
    shutil.rmtree(tmp_path / "service", ignore_errors=True)
    return settings.model_copy(update={"folder": tmp_path / "service"})


@pytest.fixture
def gradient(service: GradientService) -> Iterator[Gradient]:
    """The SDK as it is, with the shared service."""
    with service.client() as client:
        yield client
