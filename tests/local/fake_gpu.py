"""GPUs that are none: tensors of devices of their own that compute on the CPU, and a count of what is waited for.

Values are real, so whole runs can be compared with those on the CPU. An operation on tensors of several devices raises
the error of a real GPU. The devices, ``fakegpu:0`` and ``fakegpu:1``, are PyTorch's for backends in Python: the process
that registers them has them to its end, so tests start one of their own. To ``torch.accelerator`` they are as CUDA's.
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import accelerate.utils
import safetensors.torch
import torch
from accelerate import dispatch_model
from torch.autograd.graph import _engine_run_backward
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME, COUNT = "fakegpu", 2
_aten = torch.ops.aten
# Of a list of tensors, each is computed by itself, on its own device.
_EACH = "_foreach_"
# What takes tensors of one value as any others.
_EVERY_SHAPE = {"cat", "stack"}
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
    """``held``: the tensor on the CPU that has the values. ``number``: of the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor, number: int = 0) -> GpuTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=torch.device(NAME, number),
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

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()


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
    """Compute on the CPU, with the devices that real GPUs would have."""
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    known = {id(leaf.held): leaf for leaf in given if isinstance(leaf, GpuTensor)}
    name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
    target = kwargs.get("device")
    if name not in ("_to_copy", "copy_", "set_") and not name.startswith(_EACH) and known:
        # A tensor of one value may be on the CPU.
        apart = [t for t in given if isinstance(t, GpuTensor) or t.dim() > 0 or name in _EVERY_SHAPE]
        devices = sorted({str(tensor.device) for tensor in apart})
        if len(devices) > 1:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{devices[0]} and {devices[1]}! ({name}, {[(tuple(t.shape), str(t.device)) for t in apart]})"
            )
    number = _number(name, args, target, known.values())
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    result = func(*tree_map(_real, args), **tree_map(_real, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in known and (number is None or known[id(value)].device.index == number):
            return known[id(value)]
        if name == "copy_" and number is None:
            return args[0]
        if number is not None:
            return GpuTensor(
                value.clone() if name == "_to_copy" and any(value is _real(t) for t in given) else value,
                number,
            )
        return value

    return tree_map(placed, result)


def _number(name: str, args: Any, target: Any, known: Iterable[GpuTensor]) -> int | None:
    """Of the device that a result is on; None: the CPU."""
    if name == "_local_scalar_dense":
        return None
    if name == "copy_":
        return args[0].device.index if isinstance(args[0], GpuTensor) else None
    if target is not None:
        device = torch.device(target)
        return (device.index or 0) if device.type == NAME else None
    return next((tensor.device.index for tensor in known), None)


def _plain_attention(*args: Any, attn_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        added = torch.zeros(attn_mask.shape, dtype=args[0].dtype, device=attn_mask.device)
        attn_mask = added.masked_fill(~attn_mask, float("-inf"))
    attended: torch.Tensor = _aten._scaled_dot_product_attention_math(*args, attn_mask=attn_mask, **kwargs)[0]
    return attended


class _Attention(TorchFunctionMode):
    """Attention by its plain operations: PyTorch chooses a kernel by the device type, and there is none here.

    What asks for memory of the device below all modes is made on the CPU first.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.backward:
            # With this mode, as checkpointed layers are computed again; autograd has no thread for the second device.
            with self, torch.autograd.set_multithreading_enabled(False):
                ones = (torch.ones_like(args[0]),)
                return _engine_run_backward(args, ones, False, False, (), True, accumulate_grad=True)
        if func is torch.Tensor.__getitem__ and isinstance(args[0], GpuTensor) and isinstance(args[1], tuple):
            places = [torch.tensor(n).to(args[0].device) if isinstance(n, list) else n for n in args[1]]
            return func(args[0], tuple(places))
        if func is scaled_dot_product_attention:
            return _plain_attention(*args, **kwargs)
        if (
            func in (torch.tensor, torch.as_tensor)
            and torch.device(kwargs.get("device") or "cpu").type == NAME
        ):
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


class _Module(backend_registration._DummyBackendModule):
    def device_count(self) -> int:
        return COUNT

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _save_file(own: Any, tensors: dict[str, torch.Tensor], file: Path) -> None:
    """safetensors reads memory by its address, which these tensors have none of."""
    own({name: tensor.cpu() for name, tensor in tensors.items()}, file)


def fake_gpu() -> FakeGpu:
    """Give this process the devices, and count from now on what they do."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    gpu = FakeGpu()
    gpu.__enter__()
    _Attention().__enter__()
    run = threading.Thread.run

    def run_with_modes(self: threading.Thread) -> None:
        with gpu, _Attention():
            run(self)

    threading.Thread.run = run_with_modes  # type: ignore[method-assign]
    accelerate.utils.get_max_memory = lambda *_: dict.fromkeys(range(COUNT), 2**30)
    safetensors.torch.save_file = partial(_save_file, safetensors.torch.save_file)
    return gpu


def moved(model: Any, numbers: Mapping[str, int] | None = None) -> Any:
    """The model with its weights and buffers on fake GPUs; tied weights stay tied.

    ``numbers``: of the GPU, by the beginning of names of modules; None: all are on the first.
    """
    made: dict[int, torch.nn.Parameter] = {}
    for place, module in model.named_modules():
        number = next((n for begin, n in (numbers or {}).items() if f"{place}.".startswith(f"{begin}.")), 0)
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    made[id(weight)] = torch.nn.Parameter(
                        GpuTensor(weight.detach(), number), requires_grad=weight.requires_grad
                    )
                module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = GpuTensor(buffer, number)
    return model


def divided(model: Any) -> Any:
    """The transformers model with its upper half on the second GPU, as accelerate divides models."""
    layers = model.config.get_text_config().num_hidden_layers
    numbers = {f"model.layers.{n}": n * COUNT // layers for n in range(layers)} | {"model.norm": COUNT - 1}
    rest = {"model.embed_tokens": 0, "model.rotary_emb": 0, "lm_head": 0}
    devices = {name: torch.device(NAME, number) for name, number in (numbers | rest).items()}
    return dispatch_model(
        moved(model, numbers),
        devices,
        main_device=torch.device(NAME, 0),
        skip_keys=model._skip_keys_device_placement,
    )
