"""The answer-only loss of a batch, packed where the model's attention can be, row by row where it cannot."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .attention import IMPLEMENTATION
from .packing import PackedBatch, Row, pack

__all__ = ["AnswerLoss", "precision"]

_logger = logging.getLogger(__name__)
_PIECE_TOKENS = 8192
_PROBE = [Row((5, 6, 7, 8, 9), (10, 11)), Row((5, 6, 7, 8, 12), (13, 10)), Row((5, 6), (7,))]


def precision() -> torch.dtype:
    """bf16 for frozen weights where the hardware multiplies it natively, else fp32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else torch.float32


@dataclass(frozen=True)
class AnswerLoss:
    """Sums the cross-entropy of answer tokens; ``packed`` says how the model is run."""

    model: Any
    packed: bool

    @classmethod
    def of(cls, model: Any) -> AnswerLoss:
        """Pack if the model computes the same packed as plain; otherwise go row by row and log why.

        Turns the model's dropout off: rows that share a prefix would share its mask.
        """
        model.eval()
        own = _causal_lm(model).config._attn_implementation
        reason = _why_not_packed(model, own)
        if reason is not None:
            _logger.warning("Training without prefix packing: %s", reason)
            _use_attention(model, own)
        return cls(model, reason is None)

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
        logits = _answer_logits(self.model, batch, packed=self.packed)
        labels = torch.tensor(batch.labels, device=logits.device)
        precise = logits if logits.dtype == torch.float64 else logits.float()
        return cross_entropy(precise, labels, reduction="sum")


def _answer_logits(model: Any, batch: PackedBatch, *, packed: bool) -> torch.Tensor:
    """Logits [answer tokens, vocabulary], computed only where an answer is predicted."""
    device = next(model.parameters()).device
    at = torch.tensor(batch.answer_at, device=device)
    inputs: dict[str, Any] = {"input_ids": torch.tensor([batch.ids], device=device), "use_cache": False}
    if packed:
        inputs["position_ids"] = torch.tensor([batch.positions], device=device)
        inputs["segments"] = batch.segments
    keep = _takes(model, "logits_to_keep")
    if keep:
        inputs["logits_to_keep"] = at
    with _autocast(model, device.type):
        logits: torch.Tensor = model(**inputs).logits[0]
    return logits if keep else logits[at]


def _autocast(model: Any, device: str) -> contextlib.AbstractContextManager[Any]:
    """LoRA weights are fp32 masters; autocast multiplies in bf16 where the frozen weights are bf16."""
    if any(weight.dtype == torch.bfloat16 for weight in model.parameters()):
        return torch.autocast(device, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(_causal_lm(model).forward).parameters


def _causal_lm(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _use_attention(model: Any, implementation: str) -> None:
    _causal_lm(model).set_attn_implementation(implementation)


def _why_not_packed(model: Any, own: str) -> str | None:
    """None when a small packed batch has the plain batch's logits; else the reason, for the log."""
    config = model.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the model's attention has a sliding window"
    probe: Callable[[bool], torch.Tensor] = lambda packed: torch.cat(  # noqa: E731
        [_answer_logits(model, pack(rows, min_shared=1), packed=packed) for rows in _groups(packed)]
    )
    try:
        with torch.no_grad():
            _use_attention(model, own)
            plain = probe(False).float()
            _use_attention(model, IMPLEMENTATION)
            packed = probe(True).float()
    except Exception as error:  # models refuse unknown keywords or attention functions each in their own way
        return f"{type(error).__name__}: {error}"
    worst = float((plain - packed).abs().max() / plain.abs().max().clamp_min(1e-6))
    tolerance = 0.05 if any(w.dtype == torch.bfloat16 for w in model.parameters()) else 1e-3
    return None if worst <= tolerance else f"its packed logits are off by {worst:.1e}"


def _groups(packed: bool) -> list[list[Row]]:
    return [_PROBE] if packed else [[row] for row in _PROBE]
