"""Cross-entropy of answer tokens: packed where the model's attention allows it, else row by row."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigurationError
from ...printable import package_logger
from ..model.devices import is_divided, uploaded, widest_float
from ..model.prompts import TokenRow, TrainingRow, token_rows
from ..model.reading import reading
from ..model.rope import most_positions_alike
from .layer_checkpointing import checkpoint_layers
from .memory import LOGITS_AT_ONCE
from .out_of_memory import is_out_of_memory, release_memory
from .packing import PackedBatch, pack, pieces
from .packing_probe import why_not_packed
from .prefix_tree_attention import PREFIX_TREE
from .settings import PIECE_TOKENS

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AnswerLoss"]

_logger = package_logger(__name__)
# Of the largest logit; chosen: rounding of bf16 passes, and the small copy is compared closely.
_COARSE = 0.05
_SAME = 1e-3  # of the largest logit; chosen: far below what a later token does to an attention that sees it
# Rows with nested prefixes, to compare packed and plain logits with; ids that every vocabulary has.
_PROBE = [TokenRow((5, 6, 7, 8, 9), (10, 11)), TokenRow((5, 6, 7, 8, 12), (13, 10)), TokenRow((5, 6), (7,))]
# Of one length, so that a causal model computes the same numbers for their prompt, in any precision.
_ALIKE = [TokenRow(_PROBE[0].prompt, tuple(range(start, start + 20))) for start in (5, 15)]

_HALF = {torch.bfloat16, torch.float16}
_Result = TypeVar("_Result")


@dataclass
class AnswerLoss:
    """The answer-token loss of ``model``.

    ``packed``: rows run as one flat row with prefix-tree attention; else one forward pass a row. Logits are computed
    only where an answer token is predicted; with ``chunked``, a bounded number at a time, which the model allows
    where its logits are no more than the output layer of its last hidden states. ``piece_tokens``: as in
    ``LoraSettings``; halved where the device is out of memory. ``together``: the longest rows that may share a
    forward pass with others; None: any. ``scale``: what gradients are multiplied by.
    """

    model: Any
    packed: bool
    chunked: bool = True
    piece_tokens: int = PIECE_TOKENS
    together: int | None = None
    scale: float = 1.0

    @classmethod
    def for_model(cls, model: Any, piece_tokens: int = PIECE_TOKENS) -> Self:
        """Pack where the model's packed logits equal the plain ones; else go row by row and log the reason.

        Turns the model's dropout off: rows that share a prefix would share its dropout mask. Raises
        ConfigurationError for a model that does not read text alone, or whose tokens depend on later ones.
        """
        model.eval()
        own = _causal_lm(model).config._attn_implementation
        with _untrained(model):
            _require_text_decoder(model)
            chunked = _has_plain_head(model)
            reason = why_not_packed(_causal_lm(model), _own_logits) or _why_not_packed(model, own, chunked)
        if reason is not None:
            _logger.warning("Training without prefix packing: %s", reason)
            _use_attention(model, own)
        return cls(model, reason is None, chunked, piece_tokens, most_positions_alike(model.config))

    def backward(self, rows: Sequence[TrainingRow]) -> torch.Tensor:
        """Compute ``scale`` times the gradient of the rows' mean answer-token loss; returns that loss, [] in fp64.

        The weights must have no gradient yet. The loss stays on the device, so that the caller can read it together
        with other figures. Where the device is out of memory, begins again with checkpointed layers and smaller
        pieces, once; raises PyTorch's error where that is not enough.
        """
        return self._within_memory(self._backward, rows)

    @torch.no_grad()
    def mean(self, rows: Sequence[TrainingRow]) -> float:
        """The mean answer-token loss, without gradients. Begins again as ``backward`` does."""
        return self._within_memory(self._mean, rows)

    def weight(self, rows: Sequence[TrainingRow]) -> int:
        """What these rows count for in a mean over them and others: their trained tokens."""
        return sum(len(row.answer) for row in token_rows(rows))

    def _backward(self, rows: Sequence[TrainingRow]) -> torch.Tensor:
        total = self.weight(rows)
        losses = []
        for piece, _ in self._pieces(token_rows(rows)):
            part = self._loss_sum(piece) / total
            (part * self.scale).backward()  # type: ignore[no-untyped-call]
            losses.append(part.detach())
        return torch.stack(losses).to(widest_float(losses[0].device)).sum()

    def _mean(self, rows: Sequence[TrainingRow]) -> float:
        return sum(float(self._loss_sum(piece)) for piece, _ in self._pieces(token_rows(rows))) / self.weight(
            rows
        )

    def _within_memory(
        self, compute: Callable[[Sequence[TrainingRow]], _Result], rows: Sequence[TrainingRow]
    ) -> _Result:
        try:
            return compute(rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release_memory(error)
        self._take_less(rows)  # not inside the block, whose error would hold memory
        return compute(rows)

    def _take_less(self, rows: Sequence[TrainingRow]) -> None:
        """Halve the pieces, and compute activations again instead of keeping them. Drops what gradient there is."""
        largest = max(len(piece.ids) for piece, _ in self._pieces(token_rows(rows)))
        self.piece_tokens = max(1, min(self.piece_tokens, largest) // 2)
        checkpoint_layers(self.model)
        for weight in self.model.parameters():
            weight.grad = None
        _logger.warning(
            "Out of memory with %d tokens in one forward pass: going on with at most %d, and with checkpointed layers",
            largest,
            self.piece_tokens,
        )

    def _pieces(self, rows: Sequence[TokenRow]) -> Iterator[tuple[PackedBatch, Sequence[TokenRow]]]:
        """The rows as flat rows, each for one forward pass, with the rows that it is of."""
        if not self.packed or (self.together is not None and max(map(len, rows)) > self.together):
            yield from ((pack([row]), [row]) for row in rows)
            return
        yield from ((pack(piece), piece) for piece, _ in pieces(rows, self.piece_tokens))

    def _loss_sum(self, batch: PackedBatch, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Summed cross-entropy [] of the batch's answer tokens; with weights [n, answer tokens], the n sums [n].

        Of more logits than fit at once, each part is checkpointed: the backward pass computes its logits again
        instead of keeping them all.
        """
        device = next(self.model.parameters()).device
        labels = uploaded(batch.labels, device)
        if not self.chunked:
            return _cross_entropy(_own_logits(self.model, batch, self.packed), labels, weights)
        states = _answer_states(self.model, batch, packed=self.packed)
        size = max(1, LOGITS_AT_ONCE // _output_layer(self.model).weight.shape[0])
        if len(states) <= size:
            return self._states_loss(states, labels, weights)
        parts = zip(torch.split(states, size), torch.split(labels, size), strict=True)
        weighted = [None] * -(-len(states) // size) if weights is None else torch.split(weights, size, dim=1)
        losses = [
            checkpoint(self._states_loss, *part, share, use_reentrant=False)
            for part, share in zip(parts, weighted, strict=True)
        ]
        return torch.stack(losses).sum(0)

    def _states_loss(
        self, states: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Loss of hidden states [tokens, width] and labels [tokens], summed as ``_loss_sum`` does."""
        with _autocast(self.model, states.device.type):
            return _cross_entropy(_output_layer(self.model)(states), labels, weights)


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Summed loss [] of logits [tokens, vocabulary] in fp32, or fp64 where they are; labels [tokens].

    With weights [n, tokens], the n weighted sums [n]. On the device of the logits.
    """
    labels = labels.to(logits.device)  # of a model over several devices, that of its output layer
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if weights is None:
        return cross_entropy(logits, labels, reduction="sum")
    losses = cross_entropy(logits, labels, reduction="none")
    return weights.to(losses) @ losses


def _answer_states(model: Any, batch: PackedBatch, *, packed: bool) -> torch.Tensor:
    """Last hidden states [answer tokens, width] where answer tokens are predicted."""
    inputs, at = _inputs(model, batch, packed=packed)
    with _autocast(model, at.device.type):
        states: torch.Tensor = _causal_lm(model).base_model(**inputs).last_hidden_state[0]
    return states[at.to(states.device)]


def _own_logits(model: Any, batch: PackedBatch, packed: bool) -> torch.Tensor:
    """Logits [answer tokens, vocabulary] from the model's own forward call, which may scale or cap them."""
    inputs, at = _inputs(model, batch, packed=packed)
    keep = "logits_to_keep" in inspect.signature(_causal_lm(model).forward).parameters
    # A tensor would come to the first of a model's devices, and the states that it chooses among are on the last.
    kept = batch.answer_at if is_divided(_causal_lm(model)) else at
    with _autocast(model, at.device.type):
        logits: torch.Tensor = model(**inputs, **({"logits_to_keep": kept} if keep else {})).logits[0]
    return logits if keep else logits[at]


def _answer_logits(model: Any, batch: PackedBatch, *, packed: bool, chunked: bool) -> torch.Tensor:
    """Logits [answer tokens, vocabulary], computed as the loss computes them."""
    if not chunked:
        return _own_logits(model, batch, packed)
    with _autocast(model, next(model.parameters()).device.type):
        logits: torch.Tensor = _output_layer(model)(_answer_states(model, batch, packed=packed))
    return logits


def _inputs(model: Any, batch: PackedBatch, *, packed: bool) -> tuple[dict[str, Any], torch.Tensor]:
    """Keywords of the forward call, and the positions [answer tokens] in the flat row to predict from."""
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {"input_ids": uploaded(batch.ids, device)[None], "use_cache": False}
    if packed:
        inputs["position_ids"] = uploaded(batch.positions, device)[None]
        inputs["segments"] = batch.segments
    return inputs, uploaded(batch.answer_at, device)


def _autocast(model: Any, device: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 or fp16 where the frozen weights are: LoRA's master weights are fp32 all the same."""
    for dtype in _HALF.intersection(weight.dtype for weight in model.parameters()):
        return torch.autocast(device, dtype=dtype)
    return contextlib.nullcontext()


def _causal_lm(model: Any) -> Any:
    """The transformers model inside a PEFT model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _use_attention(model: Any, implementation: str) -> None:
    _causal_lm(model).set_attn_implementation(implementation)


def _output_layer(model: Any) -> Any:
    return _causal_lm(model).get_output_embeddings()


@contextlib.contextmanager
def _untrained(model: Any) -> Iterator[None]:
    """LoRA's weights as zeros: what is asked of the base is asked of its own numbers.

    Those of trained weights may be large, and in bf16 they round by more than what a wrong mask does.
    """
    weights = [weight for name, weight in model.named_parameters() if "lora_" in name]
    own = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = torch.zeros_like(weight)
        yield
    finally:
        for weight, data in zip(weights, own, strict=True):
            weight.data = data


@torch.no_grad()
def _require_text_decoder(model: Any) -> None:
    """Raise ConfigurationError where the model cannot be trained to predict each token of a text from those before."""
    name = type(_causal_lm(model)).__name__
    with reading(f"{name} cannot be trained on text alone", "Use another base model"):
        first, other = (_own_logits(model, pack([row]), False)[0].float() for row in _ALIKE)
    if _difference(first, other) > _SAME:
        raise ConfigurationError(
            f"{name} cannot be trained: what it predicts after a prompt depends on the tokens of the answer, for its "
            "attention is not causal. Use another base model"
        )


@torch.no_grad()
def _has_plain_head(model: Any) -> bool:
    """Whether logits are exactly the output layer of the last hidden states: not capped, scaled or shifted.

    A cap is read from the config, for it does not show in the small logits of an untrained model.
    """
    if any("softcap" in name and value for name, value in model.config.get_text_config().to_dict().items()):
        return False
    probe = pack(_PROBE[:1])
    own = _own_logits(model, probe, False).float()
    try:
        return _difference(
            own, _answer_logits(model, probe, packed=False, chunked=True).float()
        ) <= _tolerance(model)
    except Exception:  # models without a separate decoder or output layer raise errors of any kind
        return False


@torch.no_grad()
def _why_not_packed(model: Any, own: str, chunked: bool) -> str | None:
    """None where the model takes a small packed batch and has about the logits of the plain one; else the reason."""
    try:
        _use_attention(model, own)
        plain = torch.cat(
            [_answer_logits(model, pack([row]), packed=False, chunked=chunked) for row in _PROBE]
        )
        _use_attention(model, PREFIX_TREE)
        packed = _answer_logits(model, pack(_PROBE, min_shared=1), packed=True, chunked=chunked)
    except (
        Exception
    ) as error:  # models reject unknown keywords or attention functions with errors of any kind
        return f"{type(error).__name__}: {error}"
    difference = _difference(plain.float(), packed.float())
    return None if difference <= _COARSE else f"its packed logits are off by {difference:.1e}"


def _difference(plain: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference of two sets of logits, relative to the largest logit."""
    return float((plain - other).abs().max() / plain.abs().max().clamp_min(1e-6))


def _tolerance(model: Any) -> float:
    """Allowed difference of logits (chosen: above rounding in that precision, far below a wrong mask's effect)."""
    return 0.05 if any(weight.dtype in _HALF for weight in model.parameters()) else 1e-3
