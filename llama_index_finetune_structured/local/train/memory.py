"""The memory that a training run takes, estimated from the base's files and the rows before anything is loaded.

Activations are counted as the loss computes them: common prefixes once, a fused attention, LoRA's products in one
function a layer. Held against the allocations of whole steps on fake tensors in tests/local/test_memory.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, EngineError
from ..model.base_models import BaseModelFiles, holds_quantized_weights, text_config
from ..model.devices import device_names, precision
from ..model.prompts import TokenRow, TrainingRow, token_rows
from ..model.quantization import WEIGHT_BYTES, Quantization
from ..model.reading import reading
from .batches import batches
from .packing import pieces
from .recipe import rows_a_step, rows_of_length
from .settings import PIECE_TOKENS, LoraSettings
from .stored_weights import LAYER, adapted_shapes, stored_tensors, text_shapes, unpacked_shapes

__all__ = [
    "LOGITS_AT_ONCE",
    "MemoryPlan",
    "ModelShape",
    "PieceSize",
    "free_memory",
    "gib",
    "mend",
    "model_shape",
    "plan_lengths",
    "plan_memory",
    "plan_rows",
    "require_memory",
    "shape_of",
    "step_memory",
]

LOGITS_AT_ONCE = 2**25
"""Most logits that the loss computes at once (chosen: 128 MiB in fp32)."""
_MARGIN = 1.15  # chosen: what the estimate may be off by, and the allocator's fragments
_MASTER_BYTES = 16  # of a trained number: fp32 weight, gradient and AdamW's two moments
_LOGIT_BYTES = (
    12  # of a logit in fp32: itself, its log-softmax and its gradient; in bf16 another copy and its gradient
)
_ADAPTED = 7  # linear layers in a decoder layer: query, key, value, output, gate, up, down
_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a base model.

    ``weights``: bytes in memory. ``adapted``: LoRA's numbers a rank. ``queries`` and ``keys``: widths of all heads
    together. ``inner``: width inside the MLP, of all experts that a token passes. ``itemsize``: bytes of an
    activation. ``normed_heads``: queries and keys are normalised. ``capped``: the logits, so that they are computed all
    at once. ``scored_heads``: heads whose scores of all pairs of tokens are kept, as soft-capped ones are.
    """

    weights: int
    adapted: int
    layers: int
    width: int
    queries: int
    keys: int
    inner: int
    vocabulary: int
    itemsize: int
    experts: int = 0
    normed_heads: bool = False
    capped: bool = False
    scored_heads: int = 0


@dataclass(frozen=True)
class PieceSize:
    """The rows of one forward pass: ``tokens`` with common prefixes once, ``plain`` without, ``answers`` with loss.

    ``longest``: tokens of the longest row.
    """

    tokens: int
    plain: int
    answers: int
    longest: int


@dataclass(frozen=True)
class MemoryPlan:
    """How a run fits into the memory.

    Attributes:
        need: Bytes at the peak of training, estimated.
        free: Bytes that are free. None: unknown.
        checkpoint_layers: Whether only the inputs of layers are kept for the backward pass.
        piece_tokens: Most tokens in one forward pass.
        longest: Tokens of the longest row.
    """

    need: int
    free: int | None
    checkpoint_layers: bool
    piece_tokens: int
    longest: int

    @property
    def fits(self) -> bool:
        """Whether the memory that is free suffices."""
        return self.free is None or self.need <= self.free

    @property
    def ways(self) -> str:
        """What is done otherwise than where memory is plenty, after a semicolon; empty for nothing."""
        checkpointed = "; layers are checkpointed" if self.checkpoint_layers else ""
        pieces = "" if self.piece_tokens == PIECE_TOKENS else f"; at most {self.piece_tokens} tokens at once"
        return checkpointed + pieces

    @property
    def summary(self) -> str:
        """Needed and free memory, and the way that was chosen."""
        free = "" if self.free is None else f", {gib(self.free)} are free"
        short = "" if self.fits else f"; that does not fit: {mend(checkpointed=self.checkpoint_layers)}"
        return f"about {gib(self.need)} of memory are needed{free}{self.ways}{short}"


def require_memory(plan: MemoryPlan, base: str, device: str) -> None:
    """Raise EngineError where a run on the base of that name does not fit on the device, of ``chosen_device``."""
    if not plan.fits:
        raise EngineError(
            f"base model {base!r} cannot be trained on {' and '.join(device_names(device))}, where its longest row has "
            f"{plan.longest} tokens: {plan.summary}"
        )


def model_shape(
    base: BaseModelFiles, quantization: Quantization | None = None, device: str | None = None
) -> ModelShape | None:
    """The sizes of a base model, from its config and the headers of its weights, in the device's precision.

    The arguments are as in ``LoraSettings``. None where they cannot be read, which loading the model says better.
    """
    itemsize = precision(device).itemsize
    try:
        with reading(base.name, ""):
            tensors, config = list(stored_tensors(base, itemsize)), text_config(base)
            shapes = {name: shape for name, shape, _ in tensors}
            if not shapes:
                return None
            weights = sum(size for *_, size in tensors)
            shapes = text_shapes(shapes, _first(config, "num_hidden_layers"))
            if holds_quantized_weights(base):
                shapes = unpacked_shapes(shapes, _first(config, "hidden_size"))
                weights += itemsize * max(map(prod, adapted_shapes(shapes)), default=0)
            return shape_of(config, shapes, weights, itemsize, quantization)
    except ConfigurationError:
        return None


def shape_of(
    config: Any,
    shapes: dict[str, tuple[int, ...]],
    weights: int,
    itemsize: int,
    quantization: Quantization | None = None,
) -> ModelShape:
    """The sizes of a model by its text config and the shapes of its weights by name.

    ``weights``: their bytes before they are quantised. Of quantised ones, the largest is dense while it is used.
    """
    if quantization is not None:
        sizes = [prod(shape) for shape in adapted_shapes(shapes)]
        weights -= round(sum(sizes) * (itemsize - WEIGHT_BYTES[quantization]))
        weights += itemsize * max(sizes, default=0)
    width, heads = _first(config, "hidden_size"), _first(config, "num_attention_heads")
    head = _first(config, "head_dim") or width // max(1, heads)
    of_layers = [shape for name, shape in shapes.items() if LAYER.search(name)]
    active = _first(config, "num_experts_per_tok", "top_k_experts")
    dense = _first(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * width
    inner = active * (_first(config, "moe_intermediate_size") or dense) if active else dense
    return ModelShape(
        weights=weights,
        adapted=sum(sum(shape) for shape in of_layers if len(shape) == 2),
        layers=max(1, _first(config, "num_hidden_layers")),
        width=width,
        queries=heads * head,
        keys=(_first(config, "num_key_value_heads") or heads) * head,
        inner=inner,
        vocabulary=_first(config, "vocab_size"),
        itemsize=itemsize,
        experts=active,
        normed_heads=any("q_norm" in name for name in shapes),
        capped=any("softcap" in name and value for name, value in config.to_dict().items()),
        scored_heads=heads if getattr(config, "attn_logit_softcapping", None) else 0,
    )


def step_memory(shape: ModelShape, piece: PieceSize, *, rank: int, layers: int, checkpointed: bool) -> int:
    """Bytes at the peak of a step: weights, LoRA with optimizer, and the activations of its largest piece.

    ``layers``: how many of the uppermost ones are trained. ``checkpointed``: of each layer only the input is kept,
    and its activations are computed again in the backward pass.
    """
    size = shape.itemsize
    trained = shape.adapted * rank * layers // shape.layers
    layer = _layer_memory(shape, piece, rank)
    logits = piece.answers * shape.vocabulary
    if not shape.capped:
        logits = min(logits, LOGITS_AT_ONCE)
    logit_memory = logits * (_LOGIT_BYTES + (4 if size < 4 else 0))
    gradients = piece.tokens * (3 * shape.inner + 2 * shape.width) * size  # of what the MLP computes
    if checkpointed:
        activations = layers * piece.tokens * shape.width * size + max(logit_memory, layer + gradients)
    else:
        activations = layers * layer + max(logit_memory, gradients)
    return shape.weights + trained * _MASTER_BYTES + activations


def _layer_memory(shape: ModelShape, piece: PieceSize, rank: int) -> int:
    """Bytes that the backward pass through one layer needs of its forward pass.

    Two norms keep their input in fp32 and their output; attention the rotated queries, its output twice, and keys and
    values of every row's whole path; the MLP four times its inner width.
    """
    size = shape.itemsize
    norms = 2 * shape.width * (4 + size) + (4 * (shape.queries + shape.keys) if shape.normed_heads else 0)
    routed = (
        3 * shape.experts * shape.width
    )  # a token for each of its experts, its result, and that by its weight
    token = norms + (3 * shape.queries + 4 * shape.inner + routed + _ADAPTED * rank) * size
    adapters = (
        shape.adapted * rank // shape.layers * (size if size < 4 else 0)
    )  # LoRA's weights as they are multiplied
    # A capped score is kept, and its softmax in fp32 and as it is multiplied.
    scores = shape.scored_heads * piece.tokens * piece.longest * (size + 4 + (size if size < 4 else 0))
    return piece.tokens * token + piece.plain * 2 * shape.queries * size + adapters + scores


def plan_memory(
    shape: ModelShape,
    settings: LoraSettings,
    longest: PieceSize,
    largest: Callable[[int], PieceSize],
    free: int | None,
) -> MemoryPlan:
    """The first way that fits: as set, with checkpointed layers, then with ever smaller pieces down to one row.

    ``longest``: the longest row. ``largest``: the largest piece of a step where a piece has at most so many tokens.
    The last way where none fits.
    """
    layers = min(settings.upper_layers or shape.layers, shape.layers)

    def plan(checkpointed: bool, tokens: int) -> MemoryPlan:
        piece = largest(tokens) if tokens > longest.tokens else longest
        need = step_memory(shape, piece, rank=settings.rank, layers=layers, checkpointed=checkpointed)
        return MemoryPlan(need, free, checkpointed, tokens, longest.tokens)

    ways = _ways(settings, longest.tokens)
    chosen = plan(*next(ways))
    while free is not None and chosen.need * _MARGIN > free and (way := next(ways, None)) is not None:
        chosen = plan(*way)
    return chosen


def mend(*, checkpointed: bool) -> str:
    """What to do where memory does not suffice, for an error."""
    checkpointing = "" if checkpointed else "leave checkpoint_layers out, "
    return (
        f"end other programs that use the memory, {checkpointing}use a smaller base model, shorter rows (max_length "
        "says which are longer), or train fewer upper_layers"
    )


def _ways(settings: LoraSettings, longest: int) -> Iterator[tuple[bool, int]]:
    """Whether layers are checkpointed, and the most tokens of a piece: from the fastest to the smallest."""
    tokens = settings.piece_tokens
    if not settings.checkpoint_layers:
        yield False, tokens
    checkpointed = settings.checkpoint_layers is not False
    if checkpointed:
        yield True, tokens
    while tokens > longest:
        tokens = max(longest, tokens // 2)
        yield checkpointed, tokens


def plan_rows(
    shape: ModelShape, settings: LoraSettings, rows: Sequence[TrainingRow], free: int | None
) -> MemoryPlan:
    """The plan for training rows, by the batches of the first epoch."""
    made = batches(rows, settings.batch_size or rows_a_step(rows), seed=f"{settings.seed}:0")

    def largest(tokens: int) -> PieceSize:
        sizes = [_size(*piece) for batch in made for piece in pieces(token_rows(batch), tokens)]
        return max(sizes, key=lambda size: _layer_memory(shape, size, settings.rank))

    row = max(token_rows(rows), key=len)
    return plan_memory(shape, settings, _size([row], len(row)), largest, free)


def plan_lengths(base: BaseModelFiles, longest: int, tokens: int, rows: int) -> MemoryPlan | None:
    """At most what training takes by default, where only lengths are known: rows are taken to share nothing.

    ``longest``: tokens of the longest row; ``tokens``: of all ``rows``. None where the base cannot be read.
    """
    if (shape := model_shape(base)) is None or not rows:
        return None
    batch = rows_of_length(tokens / rows)

    def largest(most: int) -> PieceSize:
        size = min(batch * longest, max(most, longest))
        return PieceSize(size, size, size, longest)

    return plan_memory(shape, LoraSettings(), largest(longest), largest, free_memory())


def _size(rows: Sequence[TokenRow], tokens: int) -> PieceSize:
    return PieceSize(tokens, sum(map(len, rows)), sum(len(row.answer) for row in rows), max(map(len, rows)))


def free_memory(processes: int = 1, device: str | None = None) -> int | None:
    """Bytes that are free: on a device (None: the best one), or for this one of several processes on a CPU.

    ``device``: of ``chosen_device``; of several, their sum. None where unknown. What PyTorch holds of a GPU without
    using it is free.
    """
    import torch

    names = device_names(device)
    if names[0].startswith("cuda"):
        return sum(
            int(torch.cuda.mem_get_info(name)[0])
            + torch.cuda.memory_reserved(name)
            - torch.cuda.memory_allocated(name)
            for name in names
        )
    try:
        import psutil
    except ImportError:
        return None
    known = [int(psutil.virtual_memory().available), *_free_of_group()]
    return min(known) // processes


def _free_of_group() -> Iterator[int]:
    """Bytes left of the limit of this process's control group, as a container has one; files in the cache are free."""
    for folder, limit, used, cached in (
        (_GROUPS, "memory.max", "memory.current", "inactive_file"),
        (_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = int((folder / limit).read_text())  # "max" where there is none
            lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = next((int(value) for name, value in lines if name == cached), 0)
            yield max(0, most - int((folder / used).read_text()) + files)
        except (OSError, ValueError):
            continue


def _first(config: Any, *names: str) -> int:
    """The first of these settings that is a number; 0 where there is none."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value), 0)


def gib(size: int) -> str:
    """Bytes for a text."""
    return f"{size / 2**30:.1f} GiB"
