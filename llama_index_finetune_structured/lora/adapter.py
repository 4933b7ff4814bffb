"""The adapter folder: PEFT's own files, and what serving needs to ask exactly as in training."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import CheckpointError, ConfigurationError
from .base_models import BaseModel as Base
from .bounds import AnswerBounds
from .checkpoints import read_json, sync_folder, write_json

__all__ = ["AdapterCard", "add_lora", "card_in", "card_of", "merge_adapter", "read_card", "save_adapter"]

CARD = "finetune_structured.json"
WEIGHTS = "adapter_model.safetensors"
_ANSWER_TOKENS = 512


class AdapterCard(BaseModel):
    """Base model, answer bounds, and whether prompts lead with a system message (LlamaIndex's chat prompts)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: str
    base_sha256: str
    bounds: AnswerBounds
    chat_prompts: bool = True
    longest_answer_tokens: int
    rows: int
    fingerprint: str
    context_window: int | None = None

    @property
    def answer_tokens(self) -> int:
        """Token limit of an answer that leaves room for twice the longest of training."""
        return max(_ANSWER_TOKENS, 2 * self.longest_answer_tokens)


def add_lora(model: Any, *, rank: int, alpha: int) -> Any:
    """The model with LoRA on all its linear layers, everything else frozen (arXiv:2106.09685)."""
    from peft import LoraConfig, get_peft_model

    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=transposed,
    )
    with _quiet_peft():
        return get_peft_model(model, config)


def merge_adapter(model: Any, folder: Path) -> Any:
    """The model with an adapter's weights added into its own; the adapter is read from safetensors."""
    from peft import PeftModel

    with _quiet_peft():
        return PeftModel.from_pretrained(
            model, str(folder), torch_device=str(model.device)
        ).merge_and_unload()


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """peft asks transformers 5 by a name that transformers has deprecated; users cannot mend that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def save_adapter(model: Any, folder: Path, card: AdapterCard) -> None:
    """Write the adapter so that it is whole or not there. Raises CheckpointError."""
    unfinished: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        model.save_pretrained(unfinished, safe_serialization=True, save_embedding_layers=False)
        write_json(unfinished / CARD, card.model_dump(mode="json"))
        sync_folder(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    except Exception as error:  # safetensors raises its own error type for a full disk
        raise CheckpointError(
            f"{folder}: the adapter could not be written ({error}). The checkpoints are whole: free disk space "
            "and run finetune() again."
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def read_card(folder: Path) -> AdapterCard:
    """The card of an adapter folder. Raises ConfigurationError where it is no adapter of this package."""
    if not (folder / WEIGHTS).is_file():
        raise ConfigurationError(f"{folder}: holds no {WEIGHTS}; expected an adapter that finetune() made")
    return card_in(folder)


def card_in(folder: Path) -> AdapterCard:
    """The card in a folder, an adapter's or an exported model's. Raises ConfigurationError without one."""
    try:
        return AdapterCard.model_validate(read_json(folder / CARD))
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigurationError(
            f"{folder / CARD}: cannot be read ({error}); train, or export, again to make it"
        ) from error


def card_of(adapter: Path, base: Base) -> AdapterCard:
    """The adapter's card, if the adapter was trained on this base."""
    card = read_card(adapter)
    if card.base_sha256 != base.sha256:
        raise ConfigurationError(
            f"{adapter}: was trained on {card.base_model!r} (sha256 {card.base_sha256[:12]}), not on {base.name!r} "
            f"(sha256 {base.sha256[:12]}): pass base_model={card.base_model!r} or train on this base"
        )
    return card
