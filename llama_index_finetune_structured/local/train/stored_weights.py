"""Shapes of a base's weights, from the headers of their files: which LoRA adapts, and what they take in memory."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from math import prod

from ..model.base_files import GGUF
from ..model.base_models import BaseModelFiles

__all__ = ["LAYER", "adapted_shapes", "stored_tensors", "text_shapes", "unpacked_shapes"]

LAYER = re.compile(r"^(.*?)\.(\d+)\.")
"""Matches the name of a weight in a layer: the place of the list of layers, and the index in it."""


def stored_tensors(base: BaseModelFiles, itemsize: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Name, shape and bytes in memory of each weight, from the headers of the files that are read."""
    from safetensors import safe_open

    names = [] if GGUF in base.files else [name for name in base.files if name.endswith(".safetensors")]
    for path in [base.path / name for name in names] or sorted(base.path.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                shape, kind = tuple(part.get_shape()), part.get_dtype()
                # Floating-point weights are loaded in the precision that is computed in; quantised ones as they are.
                yield name, shape, prod(shape) * (1 if kind in ("U8", "I8") else itemsize)


def text_shapes(shapes: dict[str, tuple[int, ...]], layers: int) -> dict[str, tuple[int, ...]]:
    """The shapes without those of layers outside the text decoder, which has so many layers, such as an image tower's.

    Of several lists of layers of that length, the decoder has the most weights.
    """
    places = {name: match.groups() for name in shapes if (match := LAYER.search(name))}
    sizes, indices = Counter[str](), defaultdict[str, set[str]](set)
    for name, (place, index) in places.items():
        sizes[place] += prod(shapes[name])
        indices[place].add(index)
    decoder = max(sizes, key=lambda place: (len(indices[place]) == layers, sizes[place]), default="")
    return {name: shape for name, shape in shapes.items() if places.get(name, (decoder,))[0] == decoder}


def adapted_shapes(shapes: dict[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes of the linear layers that LoRA adapts and that quantisation quantises: not those of experts."""
    return [
        shape
        for name, shape in shapes.items()
        if LAYER.search(name) and len(shape) == 2 and "expert" not in name
    ]


def unpacked_shapes(shapes: dict[str, tuple[int, ...]], width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of weights that are stored two in a byte, in one column: one of their sizes is the model's width."""
    return {
        name: (2 * shape[0] // width, width) if shape[1:] == (1,) and width else shape
        for name, shape in shapes.items()
    }
