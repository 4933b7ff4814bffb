"""GGUF files as transformers folders: de-quantised once into a cache, with a manifest of sizes and hashes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from ...descriptors import lock
from ...errors import ConfigurationError
from ...files import read_json, remove_leftovers, replacing_folder, write_json
from .base_files import file_hash
from .reading import causal_model, reading, require_buildable, transformers_library

__all__ = ["converted_folder", "require_unchanged"]

_CACHE = "LLAMA_INDEX_FINETUNE_STRUCTURED_CACHE"
_MANIFEST = "conversion.json"  # size and SHA-256 of every other file of the folder
_LOCK = ".lock"


def converted_folder(gguf: Path, digest: str) -> Path:
    """Folder of a GGUF file's weights as fp32 safetensors. ``digest``: SHA-256 of the file.

    A folder in the cache whose files are not those that were written, by name and size, is made again. Raises
    ConfigurationError, or MissingDependencyError.
    """
    target = _cache_root() / "models" / digest
    if not _complete(target):
        _convert(gguf, target)
    return target


def require_unchanged(folder: Path) -> None:
    """Raise ConfigurationError where a file of a converted folder has another content than was written."""
    mend = f"remove the folder {folder}, and it is made again"
    with reading(f"{folder}: cannot be read", mend):
        for name, (_, digest) in _manifest(folder).items():
            if file_hash(folder / name) != digest:
                raise ConfigurationError(f"{folder / name}: is not what was written there: {mend}")


def _cache_root() -> Path:
    root = os.environ.get(_CACHE)
    return Path(root) if root else Path(platformdirs.user_cache_dir("llama-index-finetune-structured"))


def _complete(folder: Path) -> bool:
    try:
        manifest = _manifest(folder)
        return bool(manifest) and all(
            (folder / name).stat().st_size == size for name, (size, _) in manifest.items()
        )
    except (OSError, ValueError):
        return False


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and hash of each file. Raises OSError or ValueError."""
    files = read_json(folder / _MANIFEST)
    for name, entry in files.items():
        if (
            Path(name).name != name
            or not isinstance(entry, list)
            or [type(value) for value in entry] != [int, str]
        ):
            raise ValueError(f"{name}: expected a size and a hash, found {entry}")
    return {name: (size, digest) for name, (size, digest) in files.items()}


def _convert(gguf: Path, target: Path) -> None:
    """Write the folder ``target`` atomically."""
    transformers = transformers_library()
    mend = (
        "Download it again, or use the model's transformers folder; where the cache cannot be written, set "
        f"{_CACHE} to a folder that can"
    )
    with reading(f"{gguf}: cannot be de-quantised", mend), _alone_in(target.parent):
        if not _complete(target):  # else another process wrote it while this one waited
            _write(gguf, target, transformers)


def _write(gguf: Path, target: Path, transformers: Any) -> None:
    import torch
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    require_buildable({key: field.contents() for key, field in fields.items() if key.endswith("_count")})
    with replacing_folder(target) as unfinished:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False
        )
        model = causal_model(gguf.parent, dtype=torch.float32, gguf_file=gguf.name)
        # transformers does not save a model that it holds for quantised; these weights are fp32 now.
        for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
            if hasattr(model, attribute):
                delattr(model, attribute)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        files = sorted(path for path in unfinished.iterdir() if path.is_file())
        write_json(
            unfinished / _MANIFEST, {path.name: [path.stat().st_size, file_hash(path)] for path in files}
        )
        readers = (
            gguf.stat().st_mode & 0o444
        )  # users who share the cache may read what they may read of the source
        for path in unfinished.iterdir():
            path.chmod(0o600 | readers)
        unfinished.chmod(0o700 | readers | readers >> 2)


@contextmanager
def _alone_in(models: Path) -> Iterator[None]:
    """Convert one file at a time, and remove first what conversions of killed processes left.

    The system releases the lock when the process ends.
    """
    models.mkdir(parents=True, exist_ok=True)
    with (models / _LOCK).open("a+") as file:
        lock(file.fileno(), wait=True)
        remove_leftovers(models)
        yield
