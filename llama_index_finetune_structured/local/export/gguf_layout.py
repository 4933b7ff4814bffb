"""GGUF layout of transformers models: tensor names, the order of q/k rows, hyperparameters.

The same as that of llama.cpp's own converter (https://github.com/ggml-org/llama.cpp, conversion/).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gguf
import numpy
import torch

from ...errors import ConfigurationError

__all__ = ["GgufLayout"]

_ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}
_ROPE_FREQS = "rope_freqs.weight"


class GgufLayout:
    """The layout for one model config. Raises ConfigurationError for what GGUF export does not support."""

    def __init__(self, config: Any) -> None:
        name = next(iter(config.architectures or ()), type(config).__name__)
        if name not in _ARCHITECTURES:
            raise ConfigurationError(
                f"GGUF export does not support the architecture {name}, only {', '.join(_ARCHITECTURES)}. "
                "Export as 'merged' and convert that folder with llama.cpp's convert_hf_to_gguf.py"
            )
        self.config = config
        self.arch = _ARCHITECTURES[name]
        self._names = gguf.get_tensor_name_map(self.arch, config.num_hidden_layers)
        self._rope = dict(getattr(config, "rope_parameters", None) or {})
        self._check_supported()

    @property
    def arch_name(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(gguf.MODEL_ARCH_NAMES[self.arch])

    def name(self, tensor: str) -> str:
        """The GGUF name of a transformers tensor. Raises ConfigurationError for an unknown one."""
        name = self._names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ConfigurationError(
                f"GGUF export does not support the tensor {tensor} of {self.arch_name} models"
            )
        return str(name)

    def rows(self, tensor: str, weight: torch.Tensor) -> torch.Tensor:
        """A weight [rows, ...], bias [rows] or LoRA B [rows, rank] with its rows in GGUF's order.

        Only q and k of Llama models change: transformers has the halves of a head's rotary pairs one after the
        other, GGUF has each pair side by side.
        """
        if self.arch is not gguf.MODEL_ARCH.LLAMA:
            return weight
        heads = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}
        count = next((heads[part] for part in tensor.split(".") if part in heads), None)
        if count is None:
            return weight
        split = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
        return split.swapaxes(1, 2).reshape(weight.shape)

    def tensors(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield GGUF name and weight of every tensor. A tied output layer is left out."""
        for name, weight in model.state_dict().items():
            if not (name == "lm_head.weight" and self.config.tie_word_embeddings):
                yield self.name(name), self.rows(name, weight)
        if self._rope.get("rope_type") == "llama3":
            yield _ROPE_FREQS, torch.from_numpy(self._llama3_factors())

    def write_parameters(self, writer: Any) -> None:
        """Write the hyperparameters from which llama.cpp builds the model."""
        config = self.config
        writer.add_vocab_size(config.vocab_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(float(self._rope["rope_theta"]))
        writer.add_rope_dimension_count(self._head_size)
        writer.add_key_length(self._head_size)
        writer.add_value_length(self._head_size)
        if self._rope.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(self._rope["factor"]))

    @property
    def _head_size(self) -> int:
        stated = getattr(self.config, "head_dim", None)
        return int(stated or self.config.hidden_size // self.config.num_attention_heads)

    def _check_supported(self) -> None:
        """Raise ConfigurationError for what the file would not hold: the exported model would answer differently."""
        config = self.config
        sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        unsupported = {
            f"activation {config.hidden_act}": config.hidden_act != "silu",
            "sliding-window attention": bool(sliding),
            f"rope type {self._rope.get('rope_type')}": self._rope.get("rope_type", "default")
            not in ("default", "llama3", "linear"),
        }
        if reasons := [name for name, present in unsupported.items() if present]:
            raise ConfigurationError(
                f"GGUF export of {self.arch_name} models does not support {', '.join(reasons)}. Export as 'merged' and "
                "convert that folder with llama.cpp's convert_hf_to_gguf.py"
            )

    def _llama3_factors(self) -> numpy.ndarray[Any, Any]:
        """Divisors [head size / 2] of the rotary frequencies, by Llama 3.1's rule for long contexts."""
        rope, size = self._rope, self._head_size
        frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        wavelengths = 2 * math.pi / frequencies
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
        smooth = smooth.clamp(0, 1)
        factors: numpy.ndarray[Any, Any] = (1 / ((1 - smooth) / rope["factor"] + smooth)).numpy()
        return factors
