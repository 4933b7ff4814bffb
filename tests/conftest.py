"""What all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from llama_index_finetune_structured.capture import known_secrets

# Two cores, and other processes beside us: spinning threads would slow everybody down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION", "fp32")  # the same on every machine
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what they run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are remembered for the whole process: one test's key may be a word of another's messages."""
    monkeypatch.setattr(known_secrets, "_given", {})
