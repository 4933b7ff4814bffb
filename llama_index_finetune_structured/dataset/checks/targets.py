"""What each training target makes of an Example: its tokens, which of them are trained, and its limits."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, DatasetError, FinetuneStructuredError, MissingDependencyError
from ...example import Example
from ...formats.gradient import gradient_prompt
from ...formats.openai import to_openai
from ...formats.trl import to_trl_prompt_completion

__all__ = ["Target", "Tokens", "target_named"]


@dataclass(frozen=True)
class Tokens:
    """One row as a target reads it, before any cut: token ids, and for each whether the loss is on it.

    ``unseen`` counts tokens that a provider adds; ``faults`` are codes and reasons found on the way.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    unseen: int = 0
    faults: tuple[tuple[str, str], ...] = ()

    @property
    def total(self) -> int:
        return len(self.ids) + self.unseen


@dataclass(frozen=True)
class Target:
    """A training target. ``max_length`` in tokens a row, ``max_bytes`` a file; ``estimated``: the tokenizer
    is not the target's own.
    """

    name: str
    tokenise: Callable[[Example], Tokens]
    decode: Callable[[Sequence[int]], str]
    max_length: int | None = None
    min_examples: int = 0
    max_bytes: int | None = None
    estimated: bool = field(default=False)


def target_named(name: str, base_model: str | Path | None, max_length: int | None) -> Target:
    """The target of that name. Raises ConfigurationError for an unknown name or a base that does not load."""
    if name == "openai":
        return _openai(max_length)
    if name == "gradient":
        return _gradient(max_length)
    if name in ("local", "trl"):
        tokenizer = _tokenizer(base_model)
        return _local(tokenizer, max_length) if name == "local" else _trl(tokenizer, max_length)
    raise ConfigurationError(f"target: {name!r}, expected 'openai', 'gradient', 'local' or 'trl'")


def _openai(max_length: int | None) -> Target:
    encoding = _tiktoken("o200k_base")

    def tokenise(example: Example) -> Tokens:
        ids: list[int] = []
        trained: list[bool] = []
        row = to_openai(example)
        for message in row["messages"]:
            text = encoding.encode(_wire_text(message), disallowed_special=())
            ids += text
            learned = message["role"] == "assistant" and message.get("weight") != 0
            trained += [learned] * len(text)
        tools = encoding.encode(str(row["tools"]), disallowed_special=()) if "tools" in row else []
        return Tokens(tuple(ids), tuple(trained), unseen=4 * len(row["messages"]) + 3 + len(tools))

    return Target("openai", tokenise, encoding.decode, max_length or 65_536, 10, 512 * 1024**2)


def _wire_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    functions = (call["function"] for call in message.get("tool_calls") or ())
    return (content or "") + "".join(f"{f['name']}{f['arguments']}" for f in functions)


def _gradient(max_length: int | None) -> Target:
    encoding = _tiktoken("cl100k_base")

    def tokenise(example: Example) -> Tokens:
        prompt = encoding.encode(gradient_prompt(example), disallowed_special=())
        answer = encoding.encode(example.answer_text(), disallowed_special=())
        whole = not example.metadata.get("prompt_not_trained", False)
        return Tokens((*prompt, *answer), (whole,) * len(prompt) + (True,) * len(answer))

    return Target("gradient", tokenise, encoding.decode, max_length, estimated=True)


@contextmanager
def _bundled_encodings() -> Iterator[None]:
    """LlamaIndex carries tiktoken's files; point tiktoken there unless the user has a cache of his own."""
    if "TIKTOKEN_CACHE_DIR" in os.environ:
        yield
        return
    spec = importlib.util.find_spec("llama_index.core")
    folder = Path(str(spec.origin if spec else "")).parent / "_static" / "tiktoken_cache"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TIKTOKEN_CACHE_DIR"]


def _tiktoken(name: str) -> Any:
    import tiktoken

    with _bundled_encodings():
        return tiktoken.get_encoding(name)


def _tokenizer(base_model: str | Path | None) -> Any:
    """The tokenizer of the local engine's base model (None: its default)."""
    try:
        from ...local.model import base_models
    except ImportError as error:
        raise MissingDependencyError(error.name or "transformers", "local", "Counting its tokens") from error
    return base_models.load_tokenizer(base_models.resolve(base_model or base_models.DEFAULT_BASE_MODEL))


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _context_length(tokenizer: Any) -> int | None:
    length = getattr(tokenizer, "model_max_length", None)
    return length if isinstance(length, int) and length < 10**9 else None


def _local(tokenizer: Any, max_length: int | None) -> Target:
    from ...local.model.prompts import stop_token_id, to_row

    stop_id = stop_token_id(tokenizer)

    def tokenise(example: Example) -> Tokens:
        row = to_row(tokenizer, example, stop_id=stop_id)
        faults = () if row.answer[-1] == stop_id else (_untrained_stop(tokenizer, stop_id),)
        trained = (False,) * len(row.prompt) + (True,) * len(row.answer)
        return Tokens(row.prompt + row.answer, trained, faults=faults)

    return Target("local", tokenise, _decoder(tokenizer), max_length or _context_length(tokenizer))


def _untrained_stop(tokenizer: Any, stop_id: int) -> tuple[str, str]:
    name = tokenizer.decode([stop_id])
    return "stop_token_untrained", f"the answer does not end in {name!r}: the model would not learn to stop"


def _trl(tokenizer: Any, max_length: int | None) -> Target:
    """As SFTTrainer reads ``prompt``/``completion`` rows: loss from where prompt and whole diverge."""
    from ...local.model.prompts import stop_token_id

    stop_id = stop_token_id(tokenizer)

    def tokenise(example: Example) -> Tokens:
        row = to_trl_prompt_completion(example)
        prompt = _templated(tokenizer, row["prompt"], example.tools, add_generation_prompt=True)
        whole = _templated(tokenizer, row["prompt"] + row["completion"], example.tools)
        begin = _common_length(prompt, whole)
        faults = list(_trl_faults(tokenizer, example, row))
        if begin < len(prompt):
            faults.append(("prompt_not_prefix", f"{len(prompt) - begin} prompt tokens differ in the whole"))
        if stop_id not in whole[begin:]:
            faults.append(_untrained_stop(tokenizer, stop_id))
        trained = (False,) * begin + (True,) * (len(whole) - begin)
        return Tokens(tuple(whole), trained, faults=tuple(faults))

    return Target("trl", tokenise, _decoder(tokenizer), max_length or 1024)


def _templated(tokenizer: Any, messages: list[Any], tools: Any, **kwargs: Any) -> list[int]:
    text = _template(tokenizer, messages, tools, **kwargs)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _template(tokenizer: Any, messages: list[Any], tools: Any, **kwargs: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **kwargs))
    except Exception as error:  # templates raise jinja's own errors
        raise DatasetError(f"the chat template refuses these messages: {error}") from error


def _trl_faults(tokenizer: Any, example: Example, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A template that drops tools or tool calls renders the same text without them."""
    whole = row["prompt"] + row["completion"]
    text = _template(tokenizer, whole, example.tools)
    if example.tools and text == _template(tokenizer, whole, None):
        yield "tools_not_rendered", "the chat template leaves the tools out"
    for call in example.answer.tool_calls or ():
        function = call.get("function")
        if isinstance(function, dict) and str(function.get("name")) not in text:
            yield "tools_not_rendered", f"the chat template leaves the call of {function.get('name')!r} out"


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


RENDER_ERRORS = (FinetuneStructuredError, ValueError, TypeError, KeyError)
