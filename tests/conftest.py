"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two cores, and other processes beside us: spinning threads would slow everybody down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny, untrained Llama."""
    from tests import tiny

    return tiny.save("llama", tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny, untrained GPT-2: another architecture, with learned positions."""
    from tests import tiny

    return tiny.save("gpt2", tmp_path_factory.mktemp("tiny-gpt2"))
