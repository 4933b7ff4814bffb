"""LoRA adapters beside one base: each row of a batch has the low-rank products of its own adapter added.

The products are computed for one adapter after the other, over its rows. On a CPU all linear layers then took 3 to 9%
longer than with the adapters' weights stacked in one product (measured: eight of rank 8 and 16 over 135 million
weights), and nothing has to be copied where the adapters in a batch change.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ...errors import EngineError
from ..model.adapter_weights import AdapterWeights

__all__ = ["AdapterLayers"]


class AdapterLayers:
    """The layers of a base model that adapters add to. Changed and used by the thread that runs the model alone."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._changed = set[str]()
        self._spans: list[tuple[AdapterWeights, slice]] = []
        self._tokens: int | None = None
        self._merged: AdapterWeights | None = None
        self._base_values: dict[str, torch.Tensor] = {}

    def use(self, rows: Sequence[tuple[AdapterWeights | None, int]]) -> None:
        """Choose the adapters of the next forwards: for so many tokens each, in their order; None: the base alone.

        Where all have the same one, it is used for all tokens, whatever their number.
        """
        adapters = {adapter for adapter, _ in rows}
        alone = next(iter(adapters)) if len(adapters) == 1 else None
        self._merge(alone)
        self._spans = _spans(rows) if len(adapters) > 1 else [] if alone is None else [(alone, slice(None))]
        self._tokens = sum(tokens for _, tokens in rows) if len(adapters) > 1 else None
        for adapter, _ in self._spans:
            for name in adapter.layers.keys() - self._changed:
                layer = self._model.get_submodule(name)
                layer.forward = partial(self._forward, name, layer.forward)
                self._changed.add(name)

    def _forward(self, name: str, base: Any, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = base(inputs)
        if not self._spans:
            return outputs
        rows, sums = inputs.reshape(-1, inputs.shape[-1]), outputs.view(-1, outputs.shape[-1])
        if self._tokens not in (None, len(rows)):
            raise EngineError(
                f"{name} computes {len(rows)} of a batch's {self._tokens} tokens, so that adapters cannot share it: "
                "load each adapter alone, with LoraLLM.from_adapter"
            )
        for adapter, tokens in self._spans:
            if (added := adapter.layers.get(name)) is not None:
                sums[tokens].addmm_(rows[tokens] @ added.down.T, added.up.T, alpha=added.scaling)
        return outputs

    def _merge(self, adapter: AdapterWeights | None) -> None:
        """Change the weights that ``adapter`` adapts, and set those back that the one before had changed."""
        if adapter is not None and not adapter.parameters:
            adapter = None
        if adapter is self._merged:
            return
        for name, value in self._base_values.items():
            self._model.get_parameter(name).data = value
        self._base_values, self._merged = {}, None
        if adapter is None:
            return
        with torch.inference_mode(False), torch.no_grad():  # to be ordinary tensors, as before
            for name, wrapper in adapter.parameters.items():
                weight = self._model.get_parameter(name)
                self._base_values[name] = weight.data
                weight.data = weight.data + wrapper.get_delta_weight("default")
        self._merged = adapter


def _spans(rows: Sequence[tuple[AdapterWeights | None, int]]) -> list[tuple[AdapterWeights, slice]]:
    """The adapters in a batch, each with its tokens; neighbours with the same one together."""
    spans = list[tuple[AdapterWeights, slice]]()
    stop = 0
    for adapter, tokens in rows:
        start, stop = stop, stop + tokens
        if adapter is None:
            continue
        if spans and spans[-1][0] is adapter and spans[-1][1].stop == start:
            start = spans.pop()[1].start
        spans.append((adapter, slice(start, stop)))
    return spans
