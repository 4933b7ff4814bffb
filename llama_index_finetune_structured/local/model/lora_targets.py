"""Which weights of a model LoRA adapts, found by the model's structure."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from ...errors import ConfigurationError
from .lora_files import linear_layers, linear_size

__all__ = ["LoraTargets", "lora_targets", "text_blocks"]

_ROUTER = re.compile("gate|router")
# Old names of the experts' layers: peft takes a linear layer of these names for the stacked weights that took their
# place in transformers 5, wherever in the model it is. As weights, such layers are adapted all the same.
_RENAMED = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


@dataclass(frozen=True)
class LoraTargets:
    """What LoRA adapts.

    ``modules`` and ``parameters``: ends of the names of linear layers and of weights, as short as they are unique.
    ``names``: full names of all of them; ``layers``: of the linear layers. ``share``: of the weights in the matrices of
    the adapted blocks.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    names: tuple[str, ...]
    layers: tuple[str, ...]
    share: float


def lora_targets(model: Any, blocks: Collection[int] | None = None) -> LoraTargets:
    """The linear layers and the stacked weights of experts in the blocks of a model's text decoder.

    Embeddings, the output layer, towers for images or sound, and what decides between experts are left out; of
    state-space mixers those layers, too, whose weight the fused kernels read themselves, past LoRA.

    ``blocks``: indices of the blocks to adapt; None: all. Raises ConfigurationError where none has a linear layer.
    """
    prefix, layers = text_blocks(model)
    chosen = [n for n in range(len(layers)) if blocks is None or n in blocks]
    modules: list[str] = []
    parameters: list[str] = []
    lower: list[str] = []
    for n, block in enumerate(layers):
        linear, weights = _of_block(block)
        found = [f"{prefix}.{n}.{name}" for name in linear]
        if n not in chosen:
            lower += found
            continue
        modules += found
        parameters += [f"{prefix}.{n}.{name}" for name in weights]
    if not modules and not parameters:
        raise ConfigurationError(
            f"LoRA cannot be added to this base model: the blocks of its {type(model).__name__} have no linear "
            "layers. Use another base model"
        )
    if parameters:
        renamed = [name for name in modules if name.rpartition(".")[2] in _RENAMED]
        parameters += [f"{name}.weight" for name in renamed]
        modules = [name for name in modules if name not in set(renamed)]
    others = {name for name, _ in model.named_modules()} - {*modules, *lower}
    other_weights = {name for name, _ in model.named_parameters()} - set(parameters)
    return LoraTargets(
        _shortest(modules, others),
        _shortest(parameters, other_weights),
        (*modules, *parameters),
        tuple(modules),
        _share(model, modules, parameters, [layers[n] for n in chosen]),
    )


def text_blocks(model: Any) -> tuple[str, Any]:
    """Name and modules of the list of blocks of a model's text decoder.

    Raises ConfigurationError where there is none of as many as the config says.
    """
    from torch.nn import ModuleList

    count = model.config.get_text_config().num_hidden_layers
    for part in (model.get_decoder(), model):
        place = next(name for name, module in model.named_modules() if module is part)
        lists = [
            (".".join(filter(None, (place, name))), module)
            for name, module in part.named_modules()
            if isinstance(module, ModuleList) and len(module) == count
        ]
        if lists:
            return min(lists, key=lambda item: item[0].count("."))
    raise ConfigurationError(
        f"LoRA cannot be added to this base model: its {type(model).__name__} has no list of {count} blocks. Use "
        "another base model"
    )


def _of_block(block: Any) -> tuple[list[str], list[str]]:
    """Names of the linear layers and of the stacked expert weights in a block that LoRA adapts."""
    modules = dict(block.named_modules())
    experts = _expert_counts(modules)
    linear = [
        name
        for name, layer in linear_layers(block)
        if not _is_router(name, layer, experts) and not _is_read_directly(name, modules)
    ]
    weights = [
        f"{name}.{weight}"
        for name, module in modules.items()
        if "expert" in type(module).__name__.lower()
        for weight, value in module.named_parameters(recurse=False)
        if value.dim() == 3 and min(value.shape) > 1
    ]
    return linear, weights


def _expert_counts(modules: dict[str, Any]) -> set[int]:
    """How many experts the parts of a block have: of stacked weights, or modules in a list."""
    stacked = {
        int(weight.shape[0])
        for module in modules.values()
        if "expert" in type(module).__name__.lower()
        for weight in module.parameters(recurse=False)
        if weight.dim() == 3
    }
    listed = {
        len(module)
        for name, module in modules.items()
        if "expert" in name.rpartition(".")[2] and hasattr(module, "__len__")
    }
    return stacked | listed


def _is_router(name: str, layer: Any, experts: set[int]) -> bool:
    """Whether a linear layer gives a score to each expert, or one to the shared expert."""
    outputs, _ = linear_size(layer)
    return bool(experts) and outputs in {1, *experts} and any(map(_ROUTER.search, name.split(".")[-2:]))


def _is_read_directly(name: str, modules: dict[str, Any]) -> bool:
    """Whether a state-space mixer reads the layer's weight itself, as its fused kernels do."""
    parent, _, child = name.rpartition(".")
    mixer = modules[parent]
    if not hasattr(mixer, "A_log"):
        return False
    read = re.compile(rf"self\.{re.escape(child)}\.weight\b(?!\.(dtype|device|shape))")
    return read.search(inspect.getsource(type(mixer))) is not None


def _shortest(names: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """The shortest ends of ``names``, in whole parts, that no other name ends with; sorted, each once."""
    taken = {end for other in others for end in _ends(other)}
    return tuple(sorted({next(end for end in _ends(name) if end not in taken) for name in names}))


def _ends(name: str) -> Iterator[str]:
    """``c``, ``b.c``, ``a.b.c`` of ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[n:]) for n in reversed(range(len(parts))))


def _share(model: Any, modules: list[str], parameters: list[str], blocks: list[Any]) -> float:
    adapted = sum(prod(linear_size(model.get_submodule(name))) for name in modules)
    adapted += sum(model.get_parameter(name).numel() for name in parameters)
    linear = {
        id(layer.weight): prod(linear_size(layer)) for block in blocks for _, layer in linear_layers(block)
    }
    matrices = sum(
        linear.get(id(weight), weight.numel())  # quantised weights are counted as they were
        for block in blocks
        for weight in block.parameters()
        if weight.dim() > 1
    )
    return float(adapted / matrices)
