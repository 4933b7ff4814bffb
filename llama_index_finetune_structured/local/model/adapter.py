"""The adapter folder: PEFT's files, and a card with what serving needs to prompt as in training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...errors import CheckpointError, ConfigurationError
from ...files import read_json, replacing_folder, write_json
from ...printable import package_logger
from ...trust.calibration import Calibration
from ...trust.tagger import WordTagger
from ..schema.bounds import AnswerBounds
from ..schema.list_items import ListRules
from .base_files import differing_parts, file_hash, hashed_files
from .base_models import DEFAULT_BASE_MODEL, BaseModelFiles
from .chat_template import SystemForm
from .finite import require_finite
from .lora_files import (
    ADAPTER_CONFIG,
    WEIGHTS,
    read_lora_config,
    read_lora_tensors,
    require_complete,
    require_layers,
)
from .lora_targets import LoraTargets, lora_targets
from .lora_weights import load_lora, lora_weights
from .prompts import DEFAULT_SCHEMA_PROMPT, PromptForm, SchemaPrompt, ToolPrompt
from .quantization import Quantization
from .reading import reading
from .versions import serving_folder

if TYPE_CHECKING:
    import torch

__all__ = [
    "AdapterCard",
    "adapter_or_none",
    "add_lora",
    "attach_adapter",
    "adapter_base",
    "find_adapter",
    "fitted_lora",
    "merge_adapter",
    "read_card",
    "read_folder_card",
    "read_merged_card",
    "read_matching_card",
    "save_adapter",
    "write_card",
]

_logger = package_logger(__name__)
_NO_LORA = "LoRA cannot be added to this base model"
CARD = "finetune_structured.json"
_DECISIVE = (WEIGHTS, ADAPTER_CONFIG)
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
_MOST = 2**31


def _iso_date(text: str) -> str:
    date.fromisoformat(text)
    return text


class AdapterCard(BaseModel):
    """What serving reads from an adapter folder.

    ``base_model`` and ``base_sha256``: name and content hash of the base. ``bounds``: bounds of answers, learned from
    the training data. ``chat_prompts``: most training prompts lead with a system message, as LlamaIndex's chat prompts
    do. ``longest_answer_tokens`` and ``rows``: of the training data. ``fingerprint``: content hash of data, base and
    settings. ``context_window``: in tokens, of the base. ``prompt_date``: the date, as ``2026-01-31``, in the training
    prompts; None where the chat template prints none. ``schemas``: those of the training rows, without titles;
    ``schema_tokens``: tokens of a prompt that the largest takes. ``system_messages``: the form in which the base's chat
    template takes them. ``base_files``: SHA-256 of each file of the base that ``base_sha256`` is made of, by name.
    ``files``: SHA-256 of the files beside the card that decide the answers, by name. ``schema_prompt``,
    ``reads_twice``, ``thinking`` and ``tool_prompt``: as in ``PromptForm``, the last decided where agents' turns were
    trained; ``longest_reasoning_tokens``: with its marks, in the training data, and
    ``thinking_switches``: variables by which the base's chat template is told. ``list_rules``: by ``schema_key`` of a
    schema, how its answers are read window by window, of ``windows`` sentences each; 0: texts are read whole.
    ``calibrations`` and ``taggers``: by ``schema_key``, how the probabilities of answers are calibrated, and the
    tagger of the messages' words. ``quantization``: of the
    base's layers while it was trained on; None: as its files have them. ``answer_classes``: by ``schema_key``, the
    class of the training answers, as ``module:Class`` or ``file.py:Class``, which is never imported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: str
    base_sha256: str
    bounds: AnswerBounds
    chat_prompts: bool = True
    longest_answer_tokens: int = Field(ge=1, le=_MOST)
    rows: int = Field(ge=0, le=_MOST)
    fingerprint: str
    context_window: int | None = Field(default=None, ge=1, le=_MOST)
    prompt_date: Annotated[str, AfterValidator(_iso_date)] | None = None
    schemas: tuple[dict[str, Any], ...] = ()
    schema_tokens: int | None = Field(default=None, ge=0, le=_MOST)
    base_files: dict[str, str] = {}
    files: dict[str, str] = {}
    system_messages: SystemForm = "own"
    schema_prompt: SchemaPrompt = DEFAULT_SCHEMA_PROMPT
    reads_twice: bool = False
    thinking: bool = False
    tool_prompt: ToolPrompt | None = None
    longest_reasoning_tokens: int = Field(default=0, ge=0, le=_MOST)
    thinking_switches: tuple[str, ...] = ()
    list_rules: dict[str, ListRules] = {}
    windows: int = Field(default=0, ge=0, le=_MOST)
    calibrations: dict[str, Calibration] = {}
    taggers: dict[str, WordTagger] = {}
    quantization: Quantization | None = None
    answer_classes: dict[str, str] = {}

    @property
    def prompt_form(self) -> PromptForm:
        """The form of the prompts."""
        return PromptForm(self.schema_prompt, self.reads_twice, self.thinking, self.tool_prompt)

    @property
    def answer_tokens(self) -> int:
        """Token limit of an answer: twice the longest training answer, at least 512."""
        return max(_ANSWER_TOKENS, 2 * self.longest_answer_tokens)

    @property
    def thinking_tokens(self) -> int:
        """Token limit of the reasoning before an answer: twice the longest of training."""
        return 2 * self.longest_reasoning_tokens


def add_lora(model: Any, *, rank: int, alpha: int, upper_layers: int | None = None) -> Any:
    """Return the model as a PEFT model with LoRA where ``lora_targets`` says, the rest frozen (arXiv:2106.09685).

    ``upper_layers``: only in that many of the uppermost blocks; None: in all. Logs what is adapted. Raises
    ConfigurationError where there are fewer, or where PEFT does not support the model.
    """
    from peft import LoraConfig, get_peft_model

    upper = _upper(model.config.get_text_config().num_hidden_layers, upper_layers)
    with reading(_NO_LORA, "Use another base model"), _quiet_peft():
        targets = lora_targets(model, upper)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=list(targets.modules),
            target_parameters=list(targets.parameters) or None,
            task_type="CAUSAL_LM",
            fan_in_fan_out=_transposed(model),
            layers_to_transform=upper,
        )
        tuned = get_peft_model(model, config)
    _log_adapted(tuned, targets)
    return tuned


def _log_adapted(tuned: Any, targets: LoraTargets) -> None:
    """Log what LoRA adapts. Raises ConfigurationError where PEFT adapted less or more than was meant."""
    from peft.tuners.lora import LoraLayer

    found = sum(isinstance(module, LoraLayer) for module in tuned.modules())
    if found != len(targets.names):
        raise ConfigurationError(
            f"{_NO_LORA}: {found} of {len(targets.names)} weights. Use another base model"
        )
    weights = sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)
    _logger.info(
        "LoRA adapts %d matrices, which have %.1f%% of the weights of their blocks' matrices, by %d weights",
        found,
        100 * targets.share,
        weights,
    )


def _upper(count: int, upper: int | None) -> list[int] | None:
    """Indices of the ``upper`` last of ``count`` blocks; None for all. Raises ConfigurationError for more than all."""
    if upper is not None and upper > count:
        raise ConfigurationError(
            f"upper_layers={upper}: the base model has {count} layers; give at most {count}"
        )
    return None if upper is None or upper == count else list(range(count - upper, count))


def merge_adapter(model: Any, folder: Path) -> Any:
    """Return the model with the adapter's weights merged into its own, layer by layer; reads safetensors only.

    Sums are computed in fp32 and rounded once (of stacked experts, PEFT rounds the updates too).
    Raises ConfigurationError where the adapter's files are damaged or belong to another base, or where a weight is not
    finite, before or after merging.
    """
    tuned = attach_adapter(model, folder)
    with _fitting(folder):
        merged = tuned.merge_and_unload()
    require_finite(merged.named_parameters(), f"adapter {folder}, merged into its base")
    return merged


def attach_adapter(model: Any, folder: Path) -> Any:
    """The PEFT model with the adapter's weights beside its own, which may be quantised. Raises as ``merge_adapter``."""
    tuned, tensors = fitted_lora(model, folder)
    with _fitting(folder):
        load_lora(tuned, tensors)
    return tuned


def fitted_lora(model: Any, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The PEFT model with LoRA of an adapter's form, and its weights, not in it yet. Raises as ``merge_adapter``."""
    from peft import LoraConfig, get_peft_model

    file = read_lora_config(folder)
    tensors = read_lora_tensors(folder, file)
    require_layers(folder, file, model)
    config = LoraConfig(
        r=file.r,
        lora_alpha=file.lora_alpha,  # type: ignore[arg-type]
        target_modules=file.target_modules,
        target_parameters=file.target_parameters,
        task_type=file.task_type,
        fan_in_fan_out=_transposed(model),
        layers_to_transform=file.layers_to_transform,
        inference_mode=True,
    )
    with _fitting(folder):
        tuned = get_peft_model(model, config)
        require_complete(folder, tensors, lora_weights(tuned))
        require_finite(tensors.items(), f"adapter {folder}")
    return tuned, tensors


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    with reading(f"{folder}: the adapter does not fit the base", "Train on this base"), _quiet_peft():
        yield


def _transposed(model: Any) -> bool:
    """Whether the model's layers hold their weights transposed, as GPT-2's do."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


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
            write_card(unfinished, card, {name: file_hash(unfinished / name) for name in _DECISIVE})
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

    Of a run with several versions, that of the one that serves. Raises ConfigurationError for an unfinished run.
    """
    folder = serving_folder(folder)
    for place in (folder / "adapter", folder):
        if os.path.isfile(place / WEIGHTS):  # False, too, where it may not be read
            return place
    if os.path.isdir(folder / "checkpoints"):
        raise ConfigurationError(
            f"{folder}: its training is not finished; run the same training again to resume it"
        )
    return None


def find_adapter(folder: Path) -> Path:
    """As ``adapter_or_none``, but raises ConfigurationError where there is no adapter."""
    adapter = adapter_or_none(folder)
    if adapter is None:
        raise ConfigurationError(
            f"{folder}: no adapter there ({WEIGHTS}); expected a finished run's folder or its adapter. Copy the "
            "folder again, or train again"
        )
    return adapter


def adapter_base(folder: str | Path | None) -> str:
    """Name of the base that the adapter of a folder or run was trained on; of the embedded one for None."""
    return DEFAULT_BASE_MODEL if folder is None else read_card(find_adapter(Path(folder))).base_model


def write_card(folder: Path, card: AdapterCard, files: Mapping[str, str]) -> None:
    """Write the card into a folder, with the hashes of the files beside it that decide the answers."""
    write_json(folder / CARD, card.model_copy(update={"files": dict(files)}).model_dump(mode="json"))


def read_card(folder: Path) -> AdapterCard:
    """Read the card of an adapter folder.

    Raises ConfigurationError where it is not an adapter of this package, or its weights or configuration are not
    those that the card was written for.
    """
    if not os.path.isfile(folder / WEIGHTS):
        raise ConfigurationError(
            f"{folder}: holds no {WEIGHTS}; expected an adapter folder written by finetune()"
        )
    card = read_folder_card(folder)
    found = {name: _hash_or_none(folder / name) for name in _DECISIVE}
    if changed := [name for name, digest in found.items() if card.files.get(name) != digest]:
        raise _changed(folder, changed, "copy the whole adapter folder again, or remove it and train again")
    return card


def read_merged_card(folder: Path) -> AdapterCard:
    """The card of a merged folder. Raises ConfigurationError where a file that decides the answers is another one."""
    card = read_folder_card(folder)
    found = hashed_files(folder)
    changed = sorted(n for n in {*found, *card.files} if found.get(n) != card.files.get(n))
    if changed:
        raise _changed(
            folder,
            changed,
            "copy the whole folder again, or export again; to use it as it is, pass it as base_model",
        )
    return card


def _hash_or_none(path: Path) -> str | None:
    try:
        return file_hash(path)
    except OSError:
        return None


def _changed(folder: Path, names: list[str], mend: str) -> ConfigurationError:
    return ConfigurationError(
        f"{folder}: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not what {CARD} was written for "
        f"(changed, missing, added, or from another run): {mend}"
    )


def read_folder_card(folder: Path) -> AdapterCard:
    """Read the card in an adapter folder or an exported model, without a check of the files beside it.

    Raises ConfigurationError where there is none, or it is damaged.
    """
    try:
        return AdapterCard.model_validate(read_json(folder / CARD))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{folder / CARD}: cannot be read ({error}); train or export again to write it"
        ) from error


def read_matching_card(adapter: Path, base: BaseModelFiles) -> AdapterCard:
    """Read the adapter's card. Raises ConfigurationError where the adapter was trained on another base."""
    card = read_card(adapter)
    if card.base_sha256 != base.sha256:
        differing = differing_parts(card.base_files, base.files)
        raise ConfigurationError(
            f"{adapter}: was trained on {card.base_model!r}, and {base.name!r} differs in {differing}: restore "
            "these files, pass base_model= the base of training, or train on this base"
        )
    return card
