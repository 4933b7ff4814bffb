"""Errors of a device that is out of memory: which they are, and the release of what they hold."""

from __future__ import annotations

import traceback

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

__all__ = ["is_out_of_memory", "release_memory"]


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had no memory left, a CPU included."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or bool(should_reduce_batch_size(error))


def release_memory(error: Exception) -> None:
    """Release the tensors that the error's frames hold, and the memory that the device keeps for reuse."""
    traceback.clear_frames(error.__traceback__)
    clear_device_cache(garbage_collection=True)
