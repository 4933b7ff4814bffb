"""Whether a folder holds an embedding model, told without loading its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..descriptors import read_text_file
from ..errors import ConfigurationError
from ..example import loads
from ..files import read_json
from ..local.model.base_files import hashed_files
from ..local.model.reading import reading, transformers_library

__all__ = ["require_embedding_model"]

_EXPECTED = "Expected a folder as sentence-transformers saves it, in safetensors"
_MOST_BYTES = 1 << 20  # chosen: a list of modules has hundreds
_LIBRARY = "sentence_transformers."
_TEXT_MODELS = ("ForCausalLM", "ForConditionalGeneration")


def require_embedding_model(folder: Path) -> None:
    """Raise ConfigurationError for a folder that sentence-transformers does not load, or only by running its code.

    Its configuration and tokenizer are loaded. Its weights are not: their files are hashed, and their headers read.
    """
    with reading(f"{folder}: is no embedding model", f"{_EXPECTED}: correct the path, or save it again"):
        if not folder.is_dir():
            raise ConfigurationError(f"{folder}: no such folder. {_EXPECTED}")
        if not (folder / "modules.json").is_file():
            _require_transformer(folder)
            _refuse_text_model(folder)
            return
        for number, (kind, place) in enumerate(_modules(folder)):
            if not place.is_dir():
                raise ValueError(f"modules.json names the folder {place.name}, which is not there")
            if number == 0 and kind.endswith(".Transformer"):
                _require_transformer(place)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Class and folder of each module. Raises ValueError for what is no list of sentence-transformers' own."""
    found: Any = loads(read_text_file(folder / "modules.json", max_bytes=_MOST_BYTES))
    if not isinstance(found, list) or not found:
        raise ValueError("modules.json is no list of modules")
    modules = [(str(module["type"]), folder / str(module["path"])) for module in found]
    for kind, _ in modules:
        if not kind.startswith(_LIBRARY):
            raise ValueError(f"its module {kind} is code of its own, which is never run")
    return modules


def _require_transformer(folder: Path) -> None:
    """Raise an error where transformers would not load a model and its tokenizer from the folder."""
    from safetensors import safe_open

    for name in hashed_files(folder):
        if name.endswith(".safetensors"):
            with safe_open(folder / name, "numpy") as weights:
                weights.keys()
    transformers = transformers_library()
    for part in (transformers.AutoConfig, transformers.AutoTokenizer):
        part.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _refuse_text_model(folder: Path) -> None:
    """A mean of the hidden states of a model that was trained to write text is no embedding."""
    for name in read_json(folder / "config.json").get("architectures") or ():
        if str(name).endswith(_TEXT_MODELS):
            raise ValueError(f"it has no modules.json and is a {name}, which was trained to write text")
