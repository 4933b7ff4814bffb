"""The files of a model's folder that decide its answers, and their content hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ...descriptors import open_regular
from ...errors import ConfigurationError
from ...files import read_json
from .lora_files import ADAPTER_CONFIG

__all__ = [
    "GGUF",
    "PROCESSOR_TEMPLATES",
    "differing_parts",
    "file_hash",
    "file_sha256",
    "hash_of_files",
    "hashed_files",
]

GGUF = "GGUF file"
"""Name of the one file of a base that came as GGUF: its own name does not matter."""
PROCESSOR_TEMPLATES = ("chat_template.json", "processor_config.json")
"""Files in which the processor of a model for images or sound can have a chat template that the tokenizer lacks."""

_INDEX, _WEIGHTS, _CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
_TEMPLATES = "additional_chat_templates"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Names of the files, beside the weights, that transformers reads a causal model and its tokenizer from.
_PARTS = {
    "config": re.compile(r"config\.json"),
    "generation config": re.compile(r"generation_config\.json"),
    "chat template": re.compile(
        rf"chat_template\.(json|jinja)|processor_config\.json|{_TEMPLATES}/[^/]+\.jinja"
    ),
    "tokenizer": re.compile(
        r"(tokenizer|tekken|sentencepiece|spiece|spm|special_tokens_map|added_tokens)[^/]*\.(json|model)"
        r"|[^/]+\.(model|spm|tiktoken|codes|tokenizer)|[^/]*vocab[^/]*\.(json|txt|bpe)|encoder\.json"
        r"|merges\.txt|normalizer\.json|word_(shape|pronunciation)\.json|dict\.txt|emoji\.json|byte_maps\.json"
    ),
}


def hashed_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the folder that decides the model's answers, by name.

    These are the weights that transformers reads (those that the index names, where there is no
    ``model.safetensors``), config, generation config, tokenizer and chat templates. Links are followed: caches of
    the hub are made of them. Raises ConfigurationError where the folder is no such model, or where files in it
    make transformers read weights from elsewhere.
    """
    try:
        files = [*_weights(folder), *_other_files(folder)]
        return {name: file_hash(folder / name) for name in sorted(files)}
    except OSError as error:
        raise ConfigurationError(
            f"{folder}: a file cannot be read ({error}); fix it or copy the folder again"
        ) from error


def hash_of_files(files: Mapping[str, str]) -> str:
    """SHA-256 over names and content hashes of files; of a GGUF file alone, its own."""
    if set(files) == {GGUF}:
        return files[GGUF]
    lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def differing_parts(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What differs between two models: "tokenizer (tokenizer.json), weights (model.safetensors)"."""
    if (GGUF in there) != (GGUF in here):
        return "form (one is a GGUF file, the other a folder)"
    parts: dict[str, list[str]] = {}
    for name in sorted(name for name in {*there, *here} if there.get(name) != here.get(name)):
        missing = "" if name in there and name in here else ", not in both"
        parts.setdefault(_part(name), []).append(name + missing)
    return ", ".join(f"{part} ({', '.join(names)})" for part, names in parts.items())


def file_hash(path: Path) -> str:
    """SHA-256 of a file, computed once for each path, size, modification time and inode."""
    found = path.stat()
    return _file_hash(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=1024)
def _file_hash(path: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file, read anew. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _part(name: str) -> str:
    return next((part for part, pattern in _PARTS.items() if pattern.fullmatch(name)), "weights")


def _other_files(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_file()]
    names += [f"{_TEMPLATES}/{path.name}" for path in (folder / _TEMPLATES).glob("*.jinja")]
    return [name for name in names if _part(name) != "weights"]


def _weights(folder: Path) -> list[str]:
    """Names of the weight files, in transformers' order of search."""
    if not (folder / _CONFIG).is_file():
        raise ConfigurationError(f"{folder}: holds no {_CONFIG}; expected a transformers model folder")
    if (folder / ADAPTER_CONFIG).is_file():
        raise ConfigurationError(
            f"{folder}: holds an adapter_config.json, so that transformers would load an adapter, and perhaps the "
            "weights of another folder: merge the adapter into its base, or remove the file"
        )
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    if (folder / _INDEX).is_file():
        return [_INDEX, *_indexed(folder)]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ConfigurationError(
            f"{folder}: holds {pickles[0]} and no *.safetensors. Pickled weights can run code and are never read: "
            "load the model with transformers where you trust it, and save it with save_pretrained()"
        )
    raise ConfigurationError(
        f"{folder}: holds no {_WEIGHTS} and no {_INDEX}; expected a transformers model folder with *.safetensors"
    )


def _indexed(folder: Path) -> list[str]:
    """Names of the weight files in the index."""
    index = folder / _INDEX
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        if not names:
            raise ValueError("it names no file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{index}: is damaged ({error}); expected a weight_map of names: copy the folder again"
        ) from error
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or path.suffix != ".safetensors":
            raise ConfigurationError(
                f"{index}: names the weight file {name!r}; expected *.safetensors files of this folder"
            )
        if not (folder / name).is_file():
            raise ConfigurationError(f"{index}: names {name}, which is not there; copy the folder again")
    return names
