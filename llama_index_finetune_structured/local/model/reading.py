"""Read files that may be damaged: whatever a library raises for them becomes an error of this package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, FinetuneStructuredError, MissingDependencyError
from ...forks import ForkSafeLock
from ...panics import is_panic

__all__ = [
    "causal_model",
    "fresh_model",
    "reading",
    "require_buildable",
    "seeding",
    "structure",
    "transformers_library",
]

# transformers replaces its own methods while it loads: a second thread that loads would leave weights untied, and
# the methods replaced for ever.
_loading = ForkSafeLock()
seeding = ForkSafeLock()
"""Held while torch's random generator, which all threads share, is seeded and drawn from."""

_MOST_LAYERS = 1 << 14  # chosen: more than Doge's experts; to build a model of more would take hours
# Names of counts. Gemma 3n's vocab_size_per_layer_input and Qwen2-MoE's shared_expert_intermediate_size are none.
_COUNTED = re.compile("(layer|expert)s?$|(block|expert)_count$|^depth$")


@contextmanager
def reading(what: str, mend: str) -> Iterator[None]:
    """Raise ConfigurationError for every exception of the block; this package's own pass.

    The libraries that read models raise their own classes, and for damaged files also KeyError, struct.error,
    RecursionError or a Rust panic, which is no Exception.

    ``what``: the start of the message, such as "base model 'x': its tokenizer does not load". ``mend``: its end.
    """
    try:
        yield
    except FinetuneStructuredError:
        raise
    except ImportError as error:
        if error.name is None:  # an optional library that no extra of this package has
            raise ConfigurationError(f"{what}: {_reason(error)}. {mend}") from error
        raise MissingDependencyError(error.name, "local", what) from error
    except Exception as error:
        raise ConfigurationError(f"{what}: {_reason(error)}. {mend}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise ConfigurationError(f"{what}: {_reason(error)}. {mend}") from error


def transformers_library() -> Any:
    """Import transformers and disable its progress bars: this package shows its own."""
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("transformers", "local", "The local engine") from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def require_buildable(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a model configuration with more layers or experts than models have."""
    for key, value in config.items():
        if isinstance(value, dict):
            require_buildable(value)
        elif isinstance(value, int) and value > _MOST_LAYERS and _COUNTED.search(key):
            raise ValueError(f"{key} is {value}; expected at most {_MOST_LAYERS}")


def causal_model(folder: Path, **options: Any) -> Any:
    """A transformers causal LM, from safetensors or by ``gguf_file``, without running code from its folder.

    Raises ValueError where weights are missing or of another shape: transformers makes random ones of them.
    """
    kind = (
        transformers_library().AutoModelForCausalLM if "gguf_file" in options else _class_of(_config(folder))
    )
    with _loading:
        found, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
    wrong = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    if wrong:
        more = " and others" if len(wrong) > 3 else ""
        raise ValueError(
            f"weights are missing or of another shape than the config says: {', '.join(wrong[:3])}{more}"
        )
    return found


def structure(folder: Path) -> Any:
    """The transformers causal LM of a folder's config, without weights: its tensors are on the device ``meta``."""
    import torch

    config = _config(folder)
    with _loading, torch.device("meta"):
        return _class_of(config).from_config(config, trust_remote_code=False)


def _config(folder: Path) -> Any:
    return transformers_library().AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _class_of(config: Any) -> Any:
    """transformers' class of models that generate text: for what reads images or sound, the whole model.

    Its text part alone would be saved as another model, without the weights that read images.
    """
    transformers = transformers_library()
    if type(config) not in transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        raise ValueError(
            f"{config.model_type} is an encoder with a decoder, and the base must be a decoder alone"
        )
    return transformers.AutoModelForMultimodalLM


def fresh_model(kind: Any, config: Any) -> Any:
    """A transformers model of the class ``kind`` with random weights in fp32, on the CPU, with eager attention.

    The state of the random generator stays as it is.
    """
    import torch

    with _loading, seeding, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        return kind._from_config(config, dtype=torch.float32, attn_implementation="eager")


def _reason(error: BaseException) -> str:
    """The error in one short line, with its class where its text alone says too little."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 500 else text[:500] + "…"
    return (
        text
        if isinstance(error, (OSError, ValueError)) and text
        else f"{type(error).__name__} {text}".strip()
    )
