"""Write a whole model as one GGUF file, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch

from ...errors import ConfigurationError
from ..model.base_models import BaseModelFiles, gguf_source, load_tokenizer
from ..model.chat_template import chat_template
from .gguf_layout import GgufLayout
from .gguf_tokenizer import pre_tokenizer, write_tokenizer
from .output import atomic_output

__all__ = ["TYPES", "save_gguf", "write_tensors"]

TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""``dtype`` of an export -> type of its matrices, type of the file."""
_F16_MAX = float(numpy.finfo(numpy.float16).max)
_LARGEST = {
    gguf.GGMLQuantizationType.F16: _F16_MAX,
    gguf.GGMLQuantizationType.Q8_0: 127
    * _F16_MAX,  # a block's scale, its largest value / 127, is stored in f16
    gguf.GGMLQuantizationType.BF16: float(torch.finfo(torch.bfloat16).max),
}
# Metadata of the base's file that is not copied, for the writer adds its own.
_REWRITTEN = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


def save_gguf(model: Any, base: BaseModelFiles, target: Path, dtype: str, *, date: str | None = None) -> None:
    """Write the model with its tokenizer and chat template. A base from a GGUF file keeps that file's metadata.

    ``date``: the date of training, which the chat template then prints in place of today's.
    Raises ConfigurationError for a model or tokenizer that GGUF export does not support, EngineError for a full
    disk.
    """
    layout = GgufLayout(model.config)
    tensors, tokenizer = dict(layout.tensors(model)), load_tokenizer(base)
    template = chat_template(tokenizer, date)
    source = gguf_source(base)
    with atomic_output(target) as path:
        writer = gguf.GGUFWriter(path, layout.arch_name)
        if source is None:
            writer.add_type(gguf.GGUFType.MODEL)
            writer.add_name(target.stem)
            layout.write_parameters(writer)
            tokenizer.chat_template = template
            write_tokenizer(writer, base.path, tokenizer, model.config.vocab_size)
        else:
            reader = gguf.GGUFReader(source)
            _copy_metadata(
                writer, reader, layout, pre_tokenizer(tokenizer), None if date is None else template
            )
            tensors |= _other_tensors(reader, tensors)
        writer.add_file_type(TYPES[dtype][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_tensors(writer, tensors, dtype)


def write_tensors(writer: Any, tensors: Mapping[str, torch.Tensor], dtype: str) -> None:
    """Write header, metadata and tensors, and close the file. Norms and biases stay fp32."""
    types = {name: _type(weight, dtype) for name, weight in tensors.items()}
    for name, weight in tensors.items():
        bytes_, shape = _size(weight, types[name])
        writer.add_tensor_info(name, shape, numpy.dtype("float32"), bytes_, raw_dtype=types[name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, weight in tensors.items():
            writer.write_tensor_data(_cast(name, weight, types[name]))
    finally:
        writer.close()


def _type(weight: torch.Tensor, dtype: str) -> Any:
    """The GGUF type of a weight: fp32 for vectors, f16 where rows do not divide into quantisation blocks."""
    if weight.dim() < 2:
        return gguf.GGMLQuantizationType.F32
    chosen = TYPES[dtype][0]
    fits = weight.shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0] == 0
    return chosen if fits else gguf.GGMLQuantizationType.F16


def _size(weight: torch.Tensor, kind: Any) -> tuple[int, list[int]]:
    """Bytes of a weight in a GGUF type, and its shape."""
    block, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    return weight.numel() // block * bytes_, list(weight.shape)


def _cast(name: str, weight: torch.Tensor, kind: Any) -> numpy.ndarray[Any, Any]:
    """The weight's values in a GGUF type. Raises ConfigurationError where they are not finite, or would not be."""
    values = numpy.ascontiguousarray(weight.detach().float().numpy())
    largest = float(numpy.abs(values).max(initial=0))  # NaN where there is one
    if not math.isfinite(largest):
        raise ConfigurationError(f"{name} is not finite (it holds NaN or infinity): train the model again")
    if largest > _LARGEST.get(kind, math.inf):
        wider = "f32" if kind == gguf.GGMLQuantizationType.BF16 else "bf16 or f32"
        raise ConfigurationError(f"{name} does not fit into {kind.name.lower()}: export as {wider}")
    cast: numpy.ndarray[Any, Any] = gguf.quants.quantize(values, kind)
    return cast


def _copy_metadata(
    writer: Any, source: Any, layout: GgufLayout, pre: str | None, template: str | None
) -> None:
    """Copy the metadata of the base's own file, but tokenization as in training.

    That is transformers' pre-tokenizer, no BOS token at the start, and a ``template`` that prints the date of
    training; None: the file's own.
    """
    if (architecture := source.fields["general.architecture"].contents()) != layout.arch_name:
        raise ConfigurationError(
            f"the base's GGUF file is a {architecture} model, and it was loaded as {layout.arch_name}"
        )
    changed = {gguf.Keys.Tokenizer.ADD_BOS: False} | ({gguf.Keys.Tokenizer.PRE: pre} if pre else {})
    changed |= {gguf.Keys.Tokenizer.CHAT_TEMPLATE: template} if template else {}
    for key, field in source.fields.items():
        if not key.startswith(_REWRITTEN):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, changed.get(key, field.contents()), field.types[0], sub_type)


def _other_tensors(source: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the base's file that the transformers model does not have, such as rope factors.

    Raises ConfigurationError where a tensor of both differs in shape.
    """
    rest = {}
    for tensor in source.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        if tensor.name not in tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            rest[tensor.name] = torch.from_numpy(numpy.array(values).reshape(shape))
        elif list(tensors[tensor.name].shape) != shape:
            raise ConfigurationError(
                f"{tensor.name}: {shape} in the base's GGUF file, another shape in the model"
            )
    return rest
