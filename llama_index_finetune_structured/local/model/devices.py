"""Choice of device and precision, and control of idle OpenMP threads."""

from __future__ import annotations

import ctypes
import functools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["best_device", "peak_memory", "precision", "release_idle_threads"]

_TRIES = 5  # chosen: about 20 ms in all
_SOFT_PAUSE = 1  # omp_pause_soft, OpenMP 5.0


def best_device() -> str:
    """``cuda`` where PyTorch has a CUDA device, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision() -> torch.dtype:
    """Type of the frozen weights: bf16 where this machine multiplies it faster than fp32, else fp32.

    On a CPU that is measured, for instructions do not tell: AVX-512's for bf16 took twice the time of fp32 on one
    processor and a fifth on another.
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _is_faster(torch.bfloat16) else torch.float32


@functools.cache
def _is_faster(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of a type in at most two thirds of the time of fp32 ones."""
    import torch

    def seconds(kind: torch.dtype) -> float:
        rows, columns = torch.ones(256, 1024, dtype=kind), torch.ones(1024, 1024, dtype=kind)
        times = []
        for _ in range(_TRIES):
            started = time.perf_counter()
            torch.nn.functional.linear(rows, columns)
            times.append(time.perf_counter() - started)
        return min(times)

    return 1.5 * seconds(dtype) < seconds(torch.float32)


def peak_memory() -> int | None:
    """The most bytes so far: of the device that computes, or of this process on a CPU; None where unknown."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


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
