"""A GPU that is none: tensors of a device of their own that compute on the CPU, and a count of what is waited for.

Values are real, so whole runs can be compared with those on the CPU. An operation on tensors of both devices raises
the error of a real GPU. The device is PyTorch's for backends in Python: the process that registers it has it to its
end, so tests start one of their own. To ``torch.accelerator`` it is as CUDA is.
"""

from __future__ import annotations

import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "fakegpu"
_aten = torch.ops.aten
# What reads values to compute the shape of its result, for which the CPU waits.
_DATA_DEPENDENT = {
    "nonzero",
    "masked_select",
    "repeat_interleave",
    "unique_dim",
    "_unique2",
    "bincount",
}


class GpuTensor(torch.Tensor):
    """``held``: the tensor on the CPU that has the values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> GpuTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.held = real
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()


class FakeGpu(TorchDispatchMode):
    """``syncs``: where the CPU waited for the device; ``uploads``: where it copied to it. ``steps``: by callers."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Count from nought."""
        self.syncs: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.steps = 0

    def seen(self) -> dict[str, Any]:
        """The counts, for JSON."""
        return {"syncs": dict(self.syncs), "uploads": dict(self.uploads), "steps": self.steps}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode, it comes here before it is taken apart
                return func.decompose(*args, **kwargs)
        on_gpu = any(isinstance(leaf, GpuTensor) for leaf in tree_leaves((args, kwargs)))
        result = _run(func, args, kwargs)
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if on_gpu and _waits(name, args, kwargs, result):
            self.syncs[_place()] += 1
        elif any(isinstance(leaf, GpuTensor) for leaf in tree_leaves(result)) and name == "_to_copy":
            self.uploads[_place()] += 1
        return result


def _waits(name: str, args: Any, kwargs: Any, result: Any) -> bool:
    if name == "_local_scalar_dense" or name in _DATA_DEPENDENT:
        return not (name == "repeat_interleave" and kwargs.get("output_size") is not None)
    if name in ("index", "index_put", "index_put_"):  # by a mask, whose true places are counted
        return any(leaf is not None and leaf.dtype in (torch.bool, torch.uint8) for leaf in args[1])
    if name == "_to_copy":
        return not isinstance(result, GpuTensor)
    if name == "copy_":
        return isinstance(args[1], GpuTensor) and not isinstance(args[0], GpuTensor)
    return False


def _place() -> str:
    """The innermost line outside of PyTorch and this file."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{Path(frame.filename).name}:{frame.name}"
    return "?"


def _real(value: Any) -> Any:
    return value.held if isinstance(value, GpuTensor) else value


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute on the CPU, with the devices that a real GPU would have."""
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    known = {id(leaf.held): leaf for leaf in given if isinstance(leaf, GpuTensor)}
    name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
    target = kwargs.get("device")
    to_gpu = bool(known) if target is None else torch.device(target).type == NAME
    if name not in ("_to_copy", "copy_", "set_") and known:
        # A tensor of one value may be on the CPU.
        elsewhere = [t for t in given if not isinstance(t, GpuTensor) and t.dim() > 0]
        if elsewhere:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, fakegpu:0 and cpu! "
                f"({name}, {[tuple(t.shape) for t in elsewhere]})"
            )
    if name == "copy_":
        to_gpu = isinstance(args[0], GpuTensor)
    if name == "_local_scalar_dense":
        to_gpu = False
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    result = func(*tree_map(_real, args), **tree_map(_real, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        if name == "copy_" and not to_gpu:
            return args[0]
        if to_gpu:
            return GpuTensor(
                value.clone() if name == "_to_copy" and any(value is t for t in given) else value
            )
        return value

    return tree_map(placed, result)


def _plain_attention(*args: Any, attn_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        added = torch.zeros(attn_mask.shape, dtype=args[0].dtype, device=attn_mask.device)
        attn_mask = added.masked_fill(~attn_mask, float("-inf"))
    attended: torch.Tensor = _aten._scaled_dot_product_attention_math(*args, attn_mask=attn_mask, **kwargs)[0]
    return attended


class _Attention(TorchFunctionMode):
    """Attention by its plain operations: PyTorch chooses a kernel by the device type, and there is none here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return _plain_attention(*args, **kwargs)
        if (
            func in (torch.tensor, torch.as_tensor)
            and torch.device(kwargs.get("device") or "cpu").type == NAME
        ):
            return func(*args, **{**kwargs, "device": "cpu"}).to(NAME)  # it asks for memory below all modes
        return func(*args, **kwargs)


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _save_file(own: Any, tensors: dict[str, torch.Tensor], file: Path) -> None:
    """safetensors reads memory by its address, which these tensors have none of."""
    own({name: tensor.cpu() for name, tensor in tensors.items()}, file)


def fake_gpu() -> FakeGpu:
    """Give this process the device, and count from now on what it does."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    gpu = FakeGpu()
    gpu.__enter__()
    _Attention().__enter__()
    safetensors.torch.save_file = partial(_save_file, safetensors.torch.save_file)
    return gpu


def moved(model: Any) -> Any:
    """The model with its weights and buffers on the fake GPU; tied weights stay tied."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    made[id(weight)] = torch.nn.Parameter(
                        GpuTensor(weight.detach()), requires_grad=weight.requires_grad
                    )
                module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = GpuTensor(buffer)
    return model
