"""The adapter folder: PEFT's files, and a card with what serving needs to prompt as in training."""

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
from .base_models import BaseModelFiles
from .chat_template import SystemForm
from .prompts import DEFAULT_SCHEMA_PROMPT, SchemaPrompt

__all__ = [
    "AdapterCard",
    "adapter_or_none",
    "add_lora",
    "find_adapter",
    "merge_adapter",
    "read_card",
    "read_folder_card",
    "read_matching_card",
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
`{card}` what serving needs to prompt as in training.

```python
from llama_index_finetune_structured import LoraLLM

llm = LoraLLM.from_adapter("PATH OF THIS FOLDER")  # a LlamaIndex LLM
```
"""
_ANSWER_TOKENS = 512  # smallest token limit of an answer; chosen: room for an answer of unusual length


class AdapterCard(BaseModel):
    """What serving reads from an adapter folder.

    ``base_model`` and ``base_sha256``: name and content hash of the base. ``bounds``: bounds of answers, learned
    from the training data. ``chat_prompts``: most training prompts lead with a system message, as LlamaIndex's
    chat prompts do. ``longest_answer_tokens`` and ``rows``: of the training data. ``fingerprint``: content hash
    of data, base and settings. ``context_window``: in tokens, of the base. ``prompt_date``: the date, as
    ``2026-01-31``, in the training prompts; None where the chat template prints none. ``schemas``: those of the
    training rows, without titles; ``schema_tokens``: tokens of a prompt that the largest takes.
    ``system_messages``: the form in which the base's chat template takes them. ``schema_prompt``: how prompts say
    the schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: str
    base_sha256: str
    bounds: AnswerBounds
    chat_prompts: bool = True
    longest_answer_tokens: int
    rows: int
    fingerprint: str
    context_window: int | None = None
    prompt_date: str | None = None
    schemas: tuple[dict[str, Any], ...] = ()
    schema_tokens: int | None = None
    system_messages: SystemForm = "own"
    schema_prompt: SchemaPrompt = DEFAULT_SCHEMA_PROMPT

    @property
    def answer_tokens(self) -> int:
        """Token limit of an answer: twice the longest training answer, at least 512."""
        return max(_ANSWER_TOKENS, 2 * self.longest_answer_tokens)


def add_lora(model: Any, *, rank: int, alpha: int, upper_layers: int | None = None) -> Any:
    """Return the model as a PEFT model with LoRA on all linear layers, the rest frozen (arXiv:2106.09685).

    ``upper_layers``: only in that many of the uppermost blocks; None: in all. Raises ConfigurationError where there
    are fewer.
    """
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
    """The layer names that peft's "all-linear" stands for: peft rejects a choice of layers beside that word."""
    head = model.get_output_embeddings()
    kinds = ("Linear", "Conv1D")
    names = {name for name, m in model.named_modules() if type(m).__name__ in kinds and m is not head}
    return sorted({name.rpartition(".")[2] for name in names})


def _upper(count: int, upper: int | None) -> list[int] | None:
    """Indices of the ``upper`` last of ``count`` blocks; None for all. Raises ConfigurationError for more than all."""
    if upper is not None and upper > count:
        raise ConfigurationError(
            f"upper_layers={upper}: the base model has {count} layers; give at most {count}"
        )
    return None if upper is None or upper == count else list(range(count - upper, count))


def merge_adapter(model: Any, folder: Path) -> Any:
    """Return the model with the adapter's weights merged into its own; reads safetensors only."""
    from peft import PeftModel

    with _quiet_peft():
        return PeftModel.from_pretrained(
            model, str(folder), torch_device=str(model.device)
        ).merge_and_unload()


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Silence a warning: peft reads an attribute that transformers 5 deprecates, and users cannot fix that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def save_adapter(model: Any, folder: Path, card: AdapterCard) -> None:
    """Write the adapter folder atomically: weights, card and README. Raises CheckpointError."""
    try:
        with replacing_folder(folder) as unfinished:
            model.save_pretrained(unfinished, safe_serialization=True, save_embedding_layers=False)
            write_json(unfinished / CARD, card.model_dump(mode="json"))
            (unfinished / "README.md").write_text(_model_card(card), encoding="utf-8")
    except Exception as error:  # safetensors raises its own error type for a full disk
        raise CheckpointError(
            f"{folder}: the adapter could not be written ({error}). The checkpoints are complete: free disk "
            "space and run finetune() again."
        ) from error


def _model_card(card: AdapterCard) -> str:
    """README of the adapter folder. peft's is a blank form and shows the path of the base on this machine."""
    local = Path(card.base_model)
    return _README.format(base=local.name if local.exists() else card.base_model, rows=card.rows, card=CARD)


def adapter_or_none(folder: Path) -> Path | None:
    """The adapter folder in ``folder``, a finished run, or ``folder`` itself if it is an adapter; else None.

    Raises ConfigurationError for an unfinished run.
    """
    for place in (folder / "adapter", folder):
        if (place / WEIGHTS).is_file():
            return place
    if (folder / "checkpoints").is_dir():
        raise ConfigurationError(
            f"{folder}: its training is not finished; run the same training again to resume it"
        )
    return None


def find_adapter(folder: Path) -> Path:
    """As ``adapter_or_none``, but raises ConfigurationError where there is no adapter."""
    adapter = adapter_or_none(folder)
    if adapter is None:
        raise ConfigurationError(
            f"{folder}: no adapter there; expected a finished run's folder or its adapter"
        )
    return adapter


def read_card(folder: Path) -> AdapterCard:
    """Read the card of an adapter folder. Raises ConfigurationError where it is not an adapter of this package."""
    if not (folder / WEIGHTS).is_file():
        raise ConfigurationError(
            f"{folder}: holds no {WEIGHTS}; expected an adapter folder written by finetune()"
        )
    return read_folder_card(folder)


def read_folder_card(folder: Path) -> AdapterCard:
    """Read the card in an adapter folder or an exported model. Raises ConfigurationError where there is none."""
    try:
        return AdapterCard.model_validate(read_json(folder / CARD))
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigurationError(
            f"{folder / CARD}: cannot be read ({error}); train or export again to write it"
        ) from error


def read_matching_card(adapter: Path, base: BaseModelFiles) -> AdapterCard:
    """Read the adapter's card. Raises ConfigurationError where the adapter was trained on another base."""
    card = read_card(adapter)
    if card.base_sha256 != base.sha256:
        raise ConfigurationError(
            f"{adapter}: was trained on {card.base_model!r} (sha256 {card.base_sha256[:12]}), not on {base.name!r} "
            f"(sha256 {base.sha256[:12]}): pass base_model={card.base_model!r} or train on this base"
        )
    return card
