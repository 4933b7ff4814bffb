"""Liger's kernels (arXiv:2410.10989) in place of a model's norms and gated MLPs, on CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ...printable import package_logger
from ..model.devices import is_divided

__all__ = ["use_liger"]

_logger = package_logger(__name__)
# The loss is this package's own, and rotary embeddings cannot be replaced in one model alone.
_LEFT = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
_TOLERANCE = (
    0.02  # of the loss; chosen: above rounding in bf16, below what a norm computed otherwise would change
)


def use_liger(model: Any, loss: Callable[[], float]) -> bool:
    """Use Liger's kernels in a PEFT model on one CUDA device, where liger-kernel is installed; returns whether.

    ``loss``: the model's loss on a row. Where the kernels fail or change it by more than rounding, the model is left as
    it was, and a warning says why.
    """
    # Its kernels run on the current device alone, and replace the functions that move states to the next one.
    if next(model.parameters()).device.type != "cuda" or is_divided(model.get_base_model()):
        return False
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError:
        return False
    whole = model.get_base_model()
    modules = [(module, dict(vars(module))) for module in whole.modules()]
    # Liger also replaces classes of transformers, for all models made later, of which some may be on a CPU.
    names = vars(sys.modules[type(whole).__module__])
    own, expected = dict(names), loss()
    try:
        _apply_liger_kernel_to_instance(model=whole, **_LEFT)
        found = loss()
        reason = None if abs(found - expected) <= _TOLERANCE * abs(expected) else f"{found} for {expected}"
    except (
        Exception
    ) as error:  # of many kinds: of Triton, of a version of transformers that it does not support
        reason = f"{type(error).__name__}: {error}"
    finally:
        names.update(own)
    if reason is None:
        _logger.info("Liger's kernels compute what they have of %s", type(whole).__name__)
        return True
    for module, before in modules:
        vars(module).clear()
        vars(module).update(before)
    _logger.warning("Liger's kernels are not used: the loss of a row is another with them (%s)", reason)
    return False
