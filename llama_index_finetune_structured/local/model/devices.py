"""The caller's idle OpenMP threads, which would slow down the thread that generates."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

__all__ = ["release_idle_threads"]

_SOFT_PAUSE = 1  # omp_pause_soft, OpenMP 5.0


def release_idle_threads() -> None:
    """End the idle OpenMP threads of the calling thread; its next computation makes new ones.

    libgomp (PyTorch's on Linux) counts the threads of all teams. With more of them than cores, those that wait for
    their next piece of work go to sleep each time instead of spinning, which every forward has to wait for. Does
    nothing where there is no libgomp.
    """
    for library in _libgomps():
        library.omp_pause_resource_all(_SOFT_PAUSE)


@functools.cache
def _libgomps() -> tuple[ctypes.CDLL, ...]:
    """Those that this process has loaded, from GCC 9 on."""
    try:
        fields = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        return ()
    paths = {field[5] for field in fields if len(field) == 6 and "libgomp" in Path(field[5]).name}
    libraries = (ctypes.CDLL(path) for path in sorted(paths) if Path(path).is_file())
    return tuple(library for library in libraries if hasattr(library, "omp_pause_resource_all"))
