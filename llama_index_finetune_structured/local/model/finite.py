"""Refusal of weights that are not finite: NaN and infinity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...errors import ConfigurationError
from .devices import widest_float

if TYPE_CHECKING:
    import torch

__all__ = ["not_finite", "require_finite"]


def require_finite(weights: Iterable[tuple[str, torch.Tensor]], owner: str) -> None:
    """Raise ConfigurationError for weights that hold NaN or infinity; it names ``owner`` and the first of them.

    ``weights``: names and tensors, such as ``model.named_parameters()``.
    """
    names = not_finite(weights)
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ConfigurationError(
            f"{owner}: the weight {names[0]}{more} is not finite (it holds NaN or infinity), and every answer would be "
            "wrong: copy the files again from where they are whole, or train again"
        )


def not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """The names of the tensors that hold NaN or infinity. Reads each device once where all are finite."""
    import torch

    floating = [(name, weight.detach()) for name, weight in weights if weight.is_floating_point()]
    if not floating:
        return []
    # A sum is one pass without a temporary tensor. It may overflow where all values are finite: hence the second look.
    sums, suspects = defaultdict[torch.device, dict[int, torch.Tensor]](dict), list[int]()
    with torch.no_grad():
        for n, (_, weight) in enumerate(floating):
            sums[weight.device][n] = _sum(weight)
        for found in sums.values():
            places = (~torch.stack([*found.values()]).isfinite()).nonzero()[:, 0].tolist()
            suspects += [[*found][place] for place in places]
        return [floating[n][0] for n in sorted(suspects) if not bool(floating[n][1].isfinite().all())]


def _sum(weight: torch.Tensor) -> torch.Tensor:
    import torch

    total = weight.sum(dtype=None if weight.dtype == torch.float64 else torch.float32)
    return total.to(widest_float(total.device))
