"""The answer-only loss of a batch, packed where the model's attention can be, row by row where it cannot."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from .attention import IMPLEMENTATION
from .packing import PackedBatch, Row, pack

__all__ = ["AnswerLoss", "precision"]

_logger = logging.getLogger(__name__)
_PIECE_TOKENS = 8192
_LOGITS = 2**25
_PROBE = [Row((5, 6, 7, 8, 9), (10, 11)), Row((5, 6, 7, 8, 12), (13, 10)), Row((5, 6), (7,))]


def precision() -> torch.dtype:
    """bf16 for frozen weights where the hardware has matrix units for it, else fp32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Without AMX's matrix units, AVX-512's bf16 instructions multiply at half the pace of fp32 (measured).
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if features.get("amx_bf16") else torch.float32


@dataclass(frozen=True)
class AnswerLoss:
    """Sums the cross-entropy of answer tokens; ``packed`` says how the model is run.

    Logits are computed only where an answer is predicted, and where the model's output layer stands alone
    (``chunked``), a bounded number at a time.
    """

    model: Any
    packed: bool
    chunked: bool = True

    @classmethod
    def of(cls, model: Any) -> AnswerLoss:
        """Pack if the model computes the same packed as plain; otherwise go row by row and log why.

        Turns the model's dropout off: rows that share a prefix would share its mask.
        """
        model.eval()
        own = _causal_lm(model).config._attn_implementation
        chunked = _has_plain_head(model)
        reason = _why_not_packed(model, own, chunked)
        if reason is not None:
            _logger.warning("Training without prefix packing: %s", reason)
            _use_attention(model, own)
        return cls(model, reason is None, chunked)

    def backward(self, rows: Sequence[Row]) -> float:
        """Accumulate the gradient of the mean answer-token loss of ``rows``; returns that loss."""
        total = sum(len(row.answer) for row in rows)
        loss = 0.0
        for piece in self._pieces(rows):
            part = self._sum(piece) / total
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        return loss

    @torch.no_grad()
    def mean(self, rows: Sequence[Row]) -> float:
        """The mean answer-token loss, without gradients."""
        total = sum(len(row.answer) for row in rows)
        return sum(float(self._sum(piece)) for piece in self._pieces(rows)) / total

    def _pieces(self, rows: Sequence[Row]) -> Iterator[PackedBatch]:
        if not self.packed:
            yield from (pack([row]) for row in rows)
            return
        piece: list[Row] = []
        for row in rows:
            if piece and sum(map(len, piece)) + len(row) > _PIECE_TOKENS:
                yield pack(piece)
                piece = []
            piece.append(row)
        yield pack(piece)

    def _sum(self, batch: PackedBatch) -> torch.Tensor:
        device = next(self.model.parameters()).device
        labels = torch.tensor(batch.labels, device=device)
        if not self.chunked:
            return _cross_entropy(_own_logits(self.model, batch, packed=self.packed), labels)
        states = _answer_states(self.model, batch, packed=self.packed)
        size = max(1, _LOGITS // _output_layer(self.model).weight.shape[0])
        if len(states) <= size:
            return self._of_states(states, labels)
        parts = zip(torch.split(states, size), torch.split(labels, size), strict=True)
        return torch.stack([checkpoint(self._of_states, *part, use_reentrant=False) for part in parts]).sum()

    def _of_states(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with _autocast(self.model, states.device.type):
            return _cross_entropy(_output_layer(self.model)(states), labels)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels, reduction="sum")


def _answer_states(model: Any, batch: PackedBatch, *, packed: bool) -> torch.Tensor:
    """Last hidden states [answer tokens, width] from which answers are predicted."""
    inputs, at = _inputs(model, batch, packed=packed)
    with _autocast(model, at.device.type):
        states: torch.Tensor = _causal_lm(model).base_model(**inputs).last_hidden_state[0]
    return states[at]


def _own_logits(model: Any, batch: PackedBatch, *, packed: bool) -> torch.Tensor:
    """Logits [answer tokens, vocabulary] from the model's own forward, which may scale or cap them."""
    inputs, at = _inputs(model, batch, packed=packed)
    keep = "logits_to_keep" in inspect.signature(_causal_lm(model).forward).parameters
    with _autocast(model, at.device.type):
        logits: torch.Tensor = model(**inputs, **({"logits_to_keep": at} if keep else {})).logits[0]
    return logits if keep else logits[at]


def _answer_logits(model: Any, batch: PackedBatch, *, packed: bool, chunked: bool) -> torch.Tensor:
    if not chunked:
        return _own_logits(model, batch, packed=packed)
    with _autocast(model, next(model.parameters()).device.type):
        logits: torch.Tensor = _output_layer(model)(_answer_states(model, batch, packed=packed))
    return logits


def _inputs(model: Any, batch: PackedBatch, *, packed: bool) -> tuple[dict[str, Any], torch.Tensor]:
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {"input_ids": torch.tensor([batch.ids], device=device), "use_cache": False}
    if packed:
        inputs["position_ids"] = torch.tensor([batch.positions], device=device)
        inputs["segments"] = batch.segments
    return inputs, torch.tensor(batch.answer_at, device=device)


def _autocast(model: Any, device: str) -> contextlib.AbstractContextManager[Any]:
    """LoRA weights are fp32 masters; autocast multiplies in bf16 where the frozen weights are bf16."""
    if any(weight.dtype == torch.bfloat16 for weight in model.parameters()):
        return torch.autocast(device, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _causal_lm(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _use_attention(model: Any, implementation: str) -> None:
    _causal_lm(model).set_attn_implementation(implementation)


def _output_layer(model: Any) -> Any:
    return _causal_lm(model).get_output_embeddings()


@torch.no_grad()
def _has_plain_head(model: Any) -> bool:
    """Whether logits are just the output layer of the last hidden states: not capped, scaled or shifted.

    A cap is read off the config, for an untrained model's small logits would not show it.
    """
    if any("softcap" in name and value for name, value in model.config.get_text_config().to_dict().items()):
        return False
    probe = pack(_PROBE[:1])
    own = _own_logits(model, probe, packed=False).float()
    try:
        return _worst(own, _answer_logits(model, probe, packed=False, chunked=True).float()) <= _tolerance(
            model
        )
    except Exception:  # no separate decoder or output layer, each model in its own way
        return False


@torch.no_grad()
def _why_not_packed(model: Any, own: str, chunked: bool) -> str | None:
    """None when a small packed batch has the plain batch's logits; else the reason, for the log."""
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the model's attention has a sliding window"
    try:
        _use_attention(model, own)
        plain = torch.cat(
            [_answer_logits(model, pack([row]), packed=False, chunked=chunked) for row in _PROBE]
        )
        _use_attention(model, IMPLEMENTATION)
        packed = _answer_logits(model, pack(_PROBE, min_shared=1), packed=True, chunked=chunked)
    except Exception as error:  # models refuse unknown keywords or attention functions each in their own way
        return f"{type(error).__name__}: {error}"
    worst = _worst(plain.float(), packed.float())
    return None if worst <= _tolerance(model) else f"its packed logits are off by {worst:.1e}"


def _worst(plain: torch.Tensor, other: torch.Tensor) -> float:
    return float((plain - other).abs().max() / plain.abs().max().clamp_min(1e-6))


def _tolerance(model: Any) -> float:
    return 0.05 if any(weight.dtype == torch.bfloat16 for weight in model.parameters()) else 1e-3
