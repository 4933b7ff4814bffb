"""Training targets: how each tokenises an Example, which tokens carry the loss, and the target's limits."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, DatasetError, FinetuneStructuredError, MissingDependencyError
from ...example import Example
from ...formats.gradient import gradient_prompt
from ...formats.openai import to_openai
from ...formats.trl import to_trl_prompt_completion
from .problems import Fault

__all__ = ["RENDER_ERRORS", "TokenisedRow", "TrainingTarget", "target_named"]

RENDER_ERRORS = (FinetuneStructuredError, ValueError, TypeError, KeyError)
"""What rendering and tokenising an Example may raise."""

# OpenAI's fine-tuning guide (tokens of a training example of the GPT-4o and GPT-4.1 families, examples of a
# file) and its files API (bytes of a file).
_OPENAI_MAX_LENGTH = 65_536
_OPENAI_MIN_EXAMPLES = 10
_OPENAI_MAX_BYTES = 512 * 1024**2
# OpenAI's cookbook, "How to count tokens with tiktoken": three tokens of markup and one of the role for each
# message, three that begin the reply.
_OPENAI_MESSAGE_TOKENS = 4
_OPENAI_REPLY_TOKENS = 3
_TRL_MAX_LENGTH = 1024  # the default of SFTConfig.max_length
# transformers gives a tokenizer without a length limit 1e30 as ``model_max_length``.
_NO_LENGTH_LIMIT = 10**9


@dataclass(frozen=True)
class TokenisedRow:
    """One row as a target reads it, before any truncation: token ids, and for each whether the loss is on it.

    ``overhead`` counts tokens that a provider adds and bills; ``faults`` are those found while tokenising.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    overhead: int = 0
    faults: tuple[Fault, ...] = ()

    @property
    def total(self) -> int:
        """Tokens of the row, the provider's own included."""
        return len(self.ids) + self.overhead


@dataclass(frozen=True)
class TrainingTarget:
    """A training target of ``check``.

    Attributes:
        name: Name of the target in reports.
        tokenise: Turns an Example into the row that the target trains on.
        decode: Turns token ids into text.
        max_length: Most tokens of a row. None: no limit.
        min_examples: Least number of examples of a file.
        max_bytes: Most bytes of a file. None: no limit.
        estimated: Whether the tokenizer is not the target's own, so that token counts are approximate.
    """

    name: str
    tokenise: Callable[[Example], TokenisedRow]
    decode: Callable[[Sequence[int]], str]
    max_length: int | None = None
    min_examples: int = 0
    max_bytes: int | None = None
    estimated: bool = False


def target_named(name: str, base_model: str | Path | None, max_length: int | None) -> TrainingTarget:
    """The built-in target of that name; ``base_model`` and ``max_length`` as for ``check``.

    Raises ConfigurationError for an unknown name or a base model that does not load.
    """
    if name == "openai":
        return _openai(max_length)
    if name == "gradient":
        return _gradient(max_length)
    if name in ("local", "trl"):
        tokenizer = _tokenizer(base_model)
        return _local(tokenizer, max_length) if name == "local" else _trl(tokenizer, max_length)
    raise ConfigurationError(f"target: {name!r}, expected 'openai', 'gradient', 'local' or 'trl'")


def _openai(max_length: int | None) -> TrainingTarget:
    encoding = _tiktoken("o200k_base")

    def tokenise(example: Example) -> TokenisedRow:
        ids: list[int] = []
        trained: list[bool] = []
        row = to_openai(example)
        for message in row["messages"]:
            text = encoding.encode(_wire_text(message), disallowed_special=())
            ids += text
            is_trained = message["role"] == "assistant" and message.get("weight") != 0
            trained += [is_trained] * len(text)
        tools = encoding.encode(str(row["tools"]), disallowed_special=()) if "tools" in row else []
        overhead = _OPENAI_MESSAGE_TOKENS * len(row["messages"]) + _OPENAI_REPLY_TOKENS + len(tools)
        return TokenisedRow(tuple(ids), tuple(trained), overhead)

    return TrainingTarget(
        "openai",
        tokenise,
        encoding.decode,
        max_length=max_length or _OPENAI_MAX_LENGTH,
        min_examples=_OPENAI_MIN_EXAMPLES,
        max_bytes=_OPENAI_MAX_BYTES,
    )


def _wire_text(message: dict[str, Any]) -> str:
    """A message's text content and the names and arguments of its tool calls."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    functions = (call["function"] for call in message.get("tool_calls") or ())
    return (content or "") + "".join(f"{f['name']}{f['arguments']}" for f in functions)


def _gradient(max_length: int | None) -> TrainingTarget:
    encoding = _tiktoken("cl100k_base")  # stands in for the tokenizers of Gradient's models

    def tokenise(example: Example) -> TokenisedRow:
        prompt = encoding.encode(gradient_prompt(example), disallowed_special=())
        answer = encoding.encode(example.answer_text(), disallowed_special=())
        is_prompt_trained = not example.metadata.get("prompt_not_trained", False)
        trained = (is_prompt_trained,) * len(prompt) + (True,) * len(answer)
        return TokenisedRow((*prompt, *answer), trained)

    return TrainingTarget("gradient", tokenise, encoding.decode, max_length=max_length, estimated=True)


@contextmanager
def _bundled_encodings() -> Iterator[None]:
    """Let tiktoken read the encodings that LlamaIndex ships, unless the user has set a cache: no download."""
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
    return length if isinstance(length, int) and length < _NO_LENGTH_LIMIT else None


def _local(tokenizer: Any, max_length: int | None) -> TrainingTarget:
    from ...local.model.chat_template import prompt_date
    from ...local.model.prompts import stop_token_id, token_row

    stop_id, date = stop_token_id(tokenizer), prompt_date(tokenizer)

    def tokenise(example: Example) -> TokenisedRow:
        row = token_row(tokenizer, example, stop_id=stop_id, date=date)
        faults = () if row.answer[-1] == stop_id else (_untrained_stop(tokenizer, stop_id),)
        trained = (False,) * len(row.prompt) + (True,) * len(row.answer)
        return TokenisedRow(row.prompt + row.answer, trained, faults=faults)

    limit = max_length or _context_length(tokenizer)
    return TrainingTarget("local", tokenise, _decoder(tokenizer), max_length=limit)


def _untrained_stop(tokenizer: Any, stop_id: int) -> Fault:
    name = tokenizer.decode([stop_id])
    return Fault(
        "stop_token_untrained", f"the answer does not end in {name!r}: the model would not learn to stop"
    )


def _trl(tokenizer: Any, max_length: int | None) -> TrainingTarget:
    """Tokens as SFTTrainer reads ``prompt``/``completion`` rows.

    It tokenises the prompt alone and prompt with completion, and puts the loss on all that follows their
    common prefix.
    """
    from ...local.model.prompts import stop_token_id

    stop_id = stop_token_id(tokenizer)

    def tokenise(example: Example) -> TokenisedRow:
        row = to_trl_prompt_completion(example)
        prompt = _template_ids(tokenizer, row["prompt"], example.tools, add_generation_prompt=True)
        whole = _template_ids(tokenizer, row["prompt"] + row["completion"], example.tools)
        begin = _common_prefix_length(prompt, whole)
        faults = list(_trl_faults(tokenizer, example, row))
        if begin < len(prompt):
            differing = len(prompt) - begin
            faults.append(
                Fault(
                    "prompt_not_prefix", f"the last {differing} prompt tokens change when the answer follows"
                )
            )
        if stop_id not in whole[begin:]:
            faults.append(_untrained_stop(tokenizer, stop_id))
        trained = (False,) * begin + (True,) * (len(whole) - begin)
        return TokenisedRow(tuple(whole), trained, faults=tuple(faults))

    return TrainingTarget("trl", tokenise, _decoder(tokenizer), max_length=max_length or _TRL_MAX_LENGTH)


def _template_ids(tokenizer: Any, messages: list[Any], tools: Any, **kwargs: Any) -> list[int]:
    text = _template_text(tokenizer, messages, tools, **kwargs)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _template_text(tokenizer: Any, messages: list[Any], tools: Any, **kwargs: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **kwargs))
    except Exception as error:  # templates raise jinja's own errors
        raise DatasetError(f"the chat template refuses these messages: {error}") from error


def _trl_faults(tokenizer: Any, example: Example, row: dict[str, Any]) -> Iterator[Fault]:
    """Find what a chat template drops: without the tools its text is the same, a call's name is not in it."""
    whole = row["prompt"] + row["completion"]
    text = _template_text(tokenizer, whole, example.tools)
    if example.tools and text == _template_text(tokenizer, whole, None):
        yield Fault("tools_not_rendered", "the chat template leaves the tools out")
    for call in example.answer.tool_calls or ():
        function = call.get("function")
        if isinstance(function, dict) and str(function.get("name")) not in text:
            name = function.get("name")
            yield Fault("tools_not_rendered", f"the chat template leaves the call of {name!r} out")


def _common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
