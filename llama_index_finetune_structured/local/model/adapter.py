"""The adapter folder: PEFT's own files, and what serving needs to ask exactly as in training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import CheckpointError, ConfigurationError
from ...files import read_json, replacing_folder, write_json
from ..schema.bounds import AnswerBounds
from .base_models import BaseModel as Base

__all__ = [
    "AdapterCard",
    "adapter_in",
    "add_lora",
    "card_in",
    "card_of",
    "find_adapter",
    "merge_adapter",
    "read_card",
    "save_adapter",
]

CARD = "finetune_structured.json"
WEIGHTS = "adapter_model.safetensors"
_README = """---
base_model: {base}
library_name: peft
tags: [lora, structured-output]
---
# LoRA adapter for structured answers

Trained on {rows} rows over {base} with llama-index-finetune-structured; files in PEFT's own format, and in
`{card}` what serving needs to ask as in training.

```python
from llama_index_finetune_structured import LoraLLM

llm = LoraLLM.from_adapter("PATH OF THIS FOLDER")  # a LlamaIndex LLM
```
"""
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


def add_lora(model: Any, *, rank: int, alpha: int, upper_layers: int | None = None) -> Any:
    """The model with LoRA on all linear layers of its (uppermost) blocks, the rest frozen (arXiv:2106.09685)."""
    from peft import LoraConfig, get_peft_model

    upper = _upper(model.config.get_text_config().num_hidden_layers, upper_layers)
    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear" if upper is None else _linear_names(model),
        task_type="CAUSAL_LM",
        fan_in_fan_out=transposed,
        layers_to_transform=upper,
    )
    with _quiet_peft():
        return get_peft_model(model, config)


def _linear_names(model: Any) -> list[str]:
    """What peft's "all-linear" stands for, by name: it takes no layers beside that word."""
    head = model.get_output_embeddings()
    kinds = ("Linear", "Conv1D")
    found = {name for name, m in model.named_modules() if type(m).__name__ in kinds and m is not head}
    return sorted({name.rpartition(".")[2] for name in found})


def _upper(count: int, upper: int | None) -> list[int] | None:
    return None if upper is None or upper >= count else list(range(count - upper, count))


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
    try:
        with replacing_folder(folder) as unfinished:
            model.save_pretrained(unfinished, safe_serialization=True, save_embedding_layers=False)
            write_json(unfinished / CARD, card.model_dump(mode="json"))
            (unfinished / "README.md").write_text(_model_card(card), encoding="utf-8")
    except Exception as error:  # safetensors raises its own error type for a full disk
        raise CheckpointError(
            f"{folder}: the adapter could not be written ({error}). The checkpoints are whole: free disk space "
            "and run finetune() again."
        ) from error


def _model_card(card: AdapterCard) -> str:
    """In place of peft's, which is empty and names the base model by its path on this machine."""
    local = Path(card.base_model)
    return _README.format(base=local.name if local.exists() else card.base_model, rows=card.rows, card=CARD)


def adapter_in(folder: Path) -> Path | None:
    """The adapter of a finished run's folder, or the folder if it is one. ConfigurationError for an unfinished run."""
    for place in (folder / "adapter", folder):
        if (place / WEIGHTS).is_file():
            return place
    if (folder / "checkpoints").is_dir():
        raise ConfigurationError(
            f"{folder}: its training is not finished; run the same training again to go on"
        )
    return None


def find_adapter(folder: Path) -> Path:
    """As :func:`adapter_in`; raises ConfigurationError where there is none."""
    found = adapter_in(folder)
    if found is None:
        raise ConfigurationError(
            f"{folder}: no adapter there; expected a finished run's folder or its adapter"
        )
    return found


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
