"""Choice of device and precision, and control of idle OpenMP threads."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError

if TYPE_CHECKING:
    import torch

__all__ = [
    "AUTO",
    "best_device",
    "chosen_device",
    "device_names",
    "devices_of",
    "has_accelerator",
    "is_divided",
    "peak_memory",
    "precision",
    "release_idle_threads",
    "uploaded",
    "widest_float",
]

_VARIABLE = "LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION"
# Of the drivers of NVIDIA, AMD, Intel (and other graphics), Ascend, Gaudi, TPU, and of GPUs under WSL.
_DEVICE_FILES = ("nvidia[0-9]*", "kfd", "dri/render*", "davinci[0-9]*", "accel*", "vfio/[0-9]*", "dxg")
_SOFT_PAUSE = 1  # omp_pause_soft, OpenMP 5.0
AUTO = "auto"
"""In place of a device's name: all accelerators of the machine, which divide a model's layers."""


def best_device() -> str:
    """The kind of PyTorch's accelerator (``cuda``, ``mps``, ``xpu``), or else ``cpu``."""
    import torch

    if torch.cuda.is_available():  # before torch.accelerator, of PyTorch 2.6
        return "cuda"
    if hasattr(torch, "accelerator") and torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        return "cpu" if found is None else found.type
    return "cpu"


def has_accelerator() -> bool:
    """Whether this machine has an accelerator, also where this environment's PyTorch is for CPUs alone."""
    return best_device() != "cpu" or any(next(Path("/dev").glob(name), None) for name in _DEVICE_FILES)


def chosen_device(name: str | None) -> str:
    """A device of this machine by its name in PyTorch, such as ``cpu`` or ``cuda:1``; of None, the best one.

    Of ``auto``: the same where the machine has several accelerators, else the best device. Raises ConfigurationError,
    with the devices there are, for any other name.
    """
    if name is None:
        return best_device()
    known = _device_names()
    if name == AUTO:
        return AUTO if len(device_names(AUTO)) > 1 else best_device()
    if name in known or name in {one.partition(":")[0] for one in known}:
        return name
    raise ConfigurationError(
        f"device {name!r}: this machine has {', '.join(known)}: name one of these, auto for all accelerators together, "
        "or leave device out for the best one"
    )


def device_names(device: str | None) -> list[str]:
    """The devices that a result of ``chosen_device`` stands for; None: the best one."""
    if device != AUTO:
        return [device or best_device()]
    known = _device_names()
    return known[:-1] or known  # without the CPU, which is the last


def devices_of(model: Any) -> list[torch.device]:
    """The devices that hold the weights of a model, that of its first weight first."""
    return list(dict.fromkeys(weight.device for weight in model.parameters()))


def is_divided(model: Any) -> bool:
    """Whether the layers of a transformers model are on several devices."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def _device_names() -> list[str]:
    import torch

    kind = best_device()
    if kind == "cpu":
        return [kind]
    count = torch.cuda.device_count() if kind == "cuda" else torch.accelerator.device_count()
    return [*(f"{kind}:{number}" for number in range(count)), "cpu"]


def precision(device: str | None = None) -> torch.dtype:
    """Type of the frozen weights: $LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION, ``bf16``, ``fp16`` or ``fp32``, or else
    bf16 where the hardware multiplies it faster than fp32. ``device``: of ``chosen_device``; None: the best one.

    A GPU without bf16 of its own (T4, V100) takes fp16: PyTorch would only emulate bf16. On a CPU bf16 needs AMX, or
    an AMD processor with AVX-512's bf16 instructions, which multiplied bf16 matrices 4.5 times as fast as fp32 ones;
    on an Intel processor without AMX they took twice the time (both measured). By instructions and not by a
    measurement: a run that resumes must compute as before. Raises ConfigurationError for another value of the
    variable.
    """
    import torch

    if wanted := os.environ.get(_VARIABLE):
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        if wanted not in kinds:
            raise ConfigurationError(
                f"${_VARIABLE} is {wanted!r}, expected bf16, fp16 or fp32: set it so, or unset it"
            )
        return kinds[wanted]
    names = device_names(device)
    if names != ["cpu"]:
        return torch.bfloat16 if all(map(_has_bf16, names)) else torch.float16
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    is_fast = features.get("amx_bf16") or (features.get("avx512_bf16") and _is_amd())
    return torch.bfloat16 if is_fast else torch.float32


def uploaded(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Integers as a tensor on a device; the CPU does not wait until they are there, where it need not."""
    import torch

    if device.type != "cuda":
        return torch.tensor(numbers, device=device)
    return torch.tensor(numbers).pin_memory().to(device, non_blocking=True)


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # another system than Linux
        return False


def widest_float(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on a device that has no fp64."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def _has_bf16(device: str) -> bool:
    """Whether an accelerator itself multiplies bf16."""
    import torch

    kind, _, number = device.partition(":")
    if kind == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    supported = getattr(getattr(torch, kind, None), "is_bf16_supported", None)
    place: AbstractContextManager[Any] = nullcontext()
    if kind == "cuda" and number:
        place = torch.cuda.device(device)
    with place:
        return supported is None or bool(supported(including_emulation=False))


def peak_memory(*devices: str) -> int | None:
    """The most bytes so far: of CUDA devices together, or else of this process; None where unknown.

    ``devices``: none: the best one.
    """
    import torch

    devices = devices or (best_device(),)
    if all(device.startswith("cuda") for device in devices):
        return sum(int(torch.cuda.max_memory_allocated(device)) for device in devices)
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
