"""Training of an adapter step by step: its weights and the optimizer's state, in memory and in a folder.

The same steps give the same bytes, whether the trainer stayed in memory between them or was read from its folder.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load, save_file
from torch.nn import Parameter

from ...checksums import read_checked_json, with_checksum
from ...descriptors import open_regular
from ...errors import CheckpointError, ConfigurationError
from ...example import content_hash
from ...files import replacing_folder, write_json
from ...local.model.adapter import AdapterCard, add_lora, read_matching_card, save_adapter
from ...local.model.base_files import file_sha256
from ...local.model.base_models import BaseModelFiles, context_window, load_model
from ...local.model.chat_template import system_form
from ...local.model.devices import precision
from ...local.model.finite import not_finite
from ...local.model.lora_files import read_lora_config
from ...local.model.lora_targets import lora_targets
from ...local.model.lora_weights import load_start, lora_weights
from ...local.model.prompts import TokenRow
from ...local.model.reading import seeding, structure
from ...local.model.rope import forget_lengths
from ...local.schema.bounds import AnswerBounds
from ...local.train.fused_linear import fuse_lora
from ...local.train.gradient_scale import GradientScale
from ...local.train.layer_checkpointing import checkpoint_layers
from ...local.train.loss import AnswerLoss
from .samples import TrainingSample

__all__ = ["NotFiniteError", "StepLora", "StepResult", "StepTrainer"]

_ADAPTER, _MOMENTS, _STATE = "adapter", "optimizer.safetensors", "state.json"
_MOMENTS_SHA256 = "optimizer sha256"
_GRADIENT_NORM = 1.0  # gradients are clipped to this norm, as in the trainer of runs


class NotFiniteError(Exception):
    """The loss, the gradient or a weight is not finite."""


class StepLora(BaseModel):
    """What is decided of an adapter when it is created."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    alpha: int
    upper_layers: int | None
    learning_rate: float
    seed: int


class StepResult(NamedTuple):
    """``loss``: sum over the trainable tokens, before the step."""

    tokens: int
    loss: float


class StepTrainer:
    """The LoRA weights of one adapter and their optimizer, at a constant learning rate.

    ``served``: the base's transformers model, whose weights are never changed. ``shares_base``: whether they are used;
    else the trainer has a base of its own.
    ``folder``: of the newest version; None: an adapter without steps. Raises ConfigurationError where the base does not
    load or is not the adapter's, CheckpointError where the version is damaged.
    """

    def __init__(
        self,
        served: Any,
        tokenizer: Any,
        base: BaseModelFiles,
        lora: StepLora,
        folder: Path | None,
        *,
        piece_tokens: int,
        checkpointed: bool,
    ) -> None:
        self._base, self._lora, self._system_messages = base, lora, system_form(tokenizer)
        with torch.inference_mode(False):
            shared = _sharing_copy(served, base)
            self.shares_base = shared is not None
            model = load_model(base, dtype=precision()) if shared is None else shared
            with seeding:  # the random generator is shared by all threads
                torch.manual_seed(lora.seed)
                self.model = add_lora(model, rank=lora.rank, alpha=lora.alpha, upper_layers=lora.upper_layers)
            # PEFT's own takes half of the time in which a small adapter is written, and is replaced anyway.
            self.model.create_or_update_model_card = lambda _folder: None
            fuse_lora(self.model)
            self._loss = AnswerLoss.for_model(self.model, piece_tokens)
            if checkpointed:
                checkpoint_layers(self.model)
            self._weights = [weight for weight in self.model.parameters() if weight.requires_grad]
            self._optimizer = torch.optim.AdamW(self._weights, lr=lora.learning_rate, weight_decay=0.0)
            self._scale = GradientScale.for_weights(self.model.parameters())
            self.steps = self._rows = 0
            if folder is not None:
                self._load(folder)

    def step(self, samples: Sequence[TrainingSample]) -> StepResult:
        """Take one optimizer step on all samples.

        Raises NotFiniteError, also where only the new weights are not finite, and PyTorch's error where memory does not
        suffice. After an error the trainer is not to be used again.
        """
        with torch.inference_mode(False), torch.enable_grad():
            loss, norm = self._gradient(samples)
            while math.isfinite(loss) and not math.isfinite(norm) and self._scale.lower():
                loss, norm = self._gradient(samples)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NotFiniteError(f"the loss is {loss}, the gradient's norm {norm}")
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._scale.step()
        if names := not_finite(self._tensors()):
            raise NotFiniteError(f"after the step, {names[0]} is not finite")
        self.steps += 1
        self._rows += len(samples)
        return StepResult(sum(map(_tokens, samples)), loss)

    def save(self, folder: Path) -> None:
        """Write the version: the adapter as all adapters are, and what the next step needs. Whole, or not at all.

        Raises CheckpointError.
        """
        try:
            with replacing_folder(folder) as unfinished:
                save_adapter(self.model, unfinished / _ADAPTER, self._card())
                save_file(self._moments(), unfinished / _MOMENTS)
                state = {
                    "steps": self.steps,
                    "rows": self._rows,
                    "piece_tokens": self._loss.piece_tokens,
                    "scale": self._scale.state,
                    _MOMENTS_SHA256: file_sha256(unfinished / _MOMENTS),
                }
                write_json(unfinished / _STATE, with_checksum(state))
        except CheckpointError:
            raise
        except Exception as error:  # safetensors raises its own error type for a full disk
            raise CheckpointError(f"{folder}: could not be written ({error})") from error

    def _gradient(self, samples: Sequence[TrainingSample]) -> tuple[float, float]:
        """Compute the gradient of the mean loss, each row's by its multiplier, clipped.

        Returns the sum of the losses, without multipliers, and the gradient's norm before it was clipped.
        """
        by_multiplier = defaultdict[float, list[TokenRow]](list)
        for sample in samples:
            by_multiplier[sample.multiplier] += sample.rows
        tokens = sum(map(_tokens, samples))
        pieces = None
        while (
            pieces != self._loss.piece_tokens
        ):  # out of memory, the loss drops the gradients of earlier groups
            pieces, loss = self._loss.piece_tokens, 0.0
            self._optimizer.zero_grad(set_to_none=True)
            for multiplier, rows in by_multiplier.items():
                own = sum(len(row.answer) for row in rows)
                self._loss.scale = self._scale.value * multiplier * own / tokens
                loss += float(self._loss.backward(rows)) * own
        self._scale.undo(self._weights)
        return loss, float(torch.nn.utils.clip_grad_norm_(self._weights, _GRADIENT_NORM))

    def _load(self, folder: Path) -> None:
        try:
            state = read_checked_json(folder / _STATE)
            with open_regular(folder / _MOMENTS) as file:
                content = file.read()
            if hashlib.sha256(content).hexdigest() != state[_MOMENTS_SHA256]:
                raise ValueError("the optimizer's state does not match its checksum")
            read_matching_card(folder / _ADAPTER, self._base)  # checks the adapter's files, too
            load_start(self.model, folder / _ADAPTER, read_lora_config(folder / _ADAPTER))
        except ConfigurationError:
            raise
        except Exception as error:  # safetensors and JSON raise errors of many kinds
            raise CheckpointError(f"{folder}: cannot be read ({error})") from error
        moments: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in load(content).items():
            number, name = key.split(".")
            moments[int(number)][name] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": dict(moments), "param_groups": groups})
        self.steps, self._rows = state["steps"], state["rows"]
        self._loss.piece_tokens = min(self._loss.piece_tokens, state["piece_tokens"])
        self._scale.state = state["scale"]

    def _moments(self) -> dict[str, torch.Tensor]:
        return {
            f"{number}.{name}": value.contiguous()
            for number, weight in enumerate(self._weights)
            for name, value in self._optimizer.state.get(weight, {}).items()
        }

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [*lora_weights(self.model).items(), *self._moments().items()]

    def _card(self) -> AdapterCard:
        return AdapterCard(
            base_model=self._base.name,
            base_sha256=self._base.sha256,
            base_files=dict(self._base.files),
            bounds=AnswerBounds(),
            longest_answer_tokens=1,  # unknown: a sample need not say where its answer begins
            rows=self._rows,
            fingerprint=content_hash(self._lora.model_dump()),
            context_window=context_window(self._base),
            system_messages=self._system_messages,
        )


def _tokens(sample: TrainingSample) -> int:
    """The trainable tokens of a sample."""
    return sum(len(row.answer) for row in sample.rows)


def _sharing_copy(served: Any, base: BaseModelFiles) -> Any:
    """A model with the weights of ``served``, whose layers LoRA can be added to, while ``served`` answers.

    None where answers change the weights themselves, as they do those of stacked experts, or where ``served`` has
    tensors that are in no list.
    """
    model = structure(base.path)
    held = [
        (name, Parameter(weight.detach(), requires_grad=False))
        for name, weight in served.named_parameters(remove_duplicate=False)
    ]
    held += [(name, buffer.clone()) for name, buffer in served.named_buffers(remove_duplicate=False)]
    for name, tensor in held:
        place, _, last = name.rpartition(".")
        owner = model.get_submodule(place)
        (owner._parameters if isinstance(tensor, Parameter) else owner._buffers)[last] = tensor
    if lora_targets(model).parameters or _is_incomplete(model):
        return None
    forget_lengths(model)
    return model.eval()


def _is_incomplete(model: Any) -> bool:
    """Whether any tensor of a model is still without data."""
    attributes = (value for module in model.modules() for value in vars(module).values())
    tensors = [*model.parameters(), *model.buffers(), *attributes]
    return any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in tensors)
