"""Choice of device and precision, and control of idle OpenMP threads."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["best_device", "precision", "release_idle_threads"]

_SOFT_PAUSE = 1  # omp_pause_soft, OpenMP 5.0


def best_device() -> str:
    """``cuda`` where PyTorch has a CUDA device, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision() -> torch.dtype:
    """Type of the frozen weights: bf16 where the hardware has matrix units for it, else fp32.

    On a CPU that means AMX: without it, AVX-512's bf16 instructions multiply at half the speed of fp32
    (measured).
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if features.get("amx_bf16") else torch.float32


def release_idle_threads() -> None:
    """End the idle OpenMP threads of the calling thread; its next computation starts new ones.

    They would slow down the thread that generates: libgomp (PyTorch's OpenMP runtime on Linux) counts the
    threads of all teams, and with more threads than cores its workers sleep between two pieces of work instead
    of spinning, so that every forward pass waits for them to wake. Does nothing where libgomp is not loaded.
    """
    for library in _libgomps():
        library.omp_pause_resource_all(_SOFT_PAUSE)


@functools.cache
def _libgomps() -> tuple[ctypes.CDLL, ...]:
    """The libgomp libraries that this process has loaded and that can pause (GCC 9 and later)."""
    try:
        fields = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        return ()
    paths = {field[5] for field in fields if len(field) == 6 and "libgomp" in Path(field[5]).name}
    libraries = (ctypes.CDLL(path) for path in sorted(paths) if Path(path).is_file())
    return tuple(library for library in libraries if hasattr(library, "omp_pause_resource_all"))
