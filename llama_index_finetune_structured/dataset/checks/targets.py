"""Training targets: how each tokenises an Example, which tokens carry the loss, and the target's limits."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError, DatasetError, FinetuneStructuredError, MissingDependencyError
from ...example import Example
from ...formats.gradient import gradient_prompt
from ...formats.openai import to_openai
from ...formats.trl import to_trl_prompt_completion
from ...local.schema.bounds import AnswerTexts
from ...local.train.packing import common_length
from .openai_rules import openai_faults
from .problems import Fault

if TYPE_CHECKING:
    from ...local.model.base_models import BaseModelFiles
    from ...local.model.prompts import PromptForm
    from ...local.train.memory import MemoryPlan

__all__ = ["RENDER_ERRORS", "TokenisedRow", "TrainingTarget", "local_target", "target_named"]

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


@dataclass(frozen=True)
class TokenisedRow:
    """One row as a target reads it, before any truncation: token ids, and for each whether the loss is on it.

    ``overhead`` counts tokens that a provider adds and bills; ``faults`` are those found while tokenising.
    ``reasoning``: how many of the tokens with loss are before the answer itself.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    overhead: int = 0
    faults: tuple[Fault, ...] = ()
    reasoning: int = 0

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens without loss."""
        return tuple(token for token, trained in zip(self.ids, self.trained, strict=True) if not trained)

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens with loss."""
        return tuple(token for token, trained in zip(self.ids, self.trained, strict=True) if trained)

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
        walker: Takes the answers of all good rows that have a schema and returns the function that finds why one
            of them could not be generated, from the key of its schema and its trained tokens; it is called with
            all answers to a schema one after the other. None: answers are generated without a grammar.
        default_epochs: Takes the number of good rows, and of those that the engine adds to them and that differ in one
            field, and returns the epochs of a run that sets none.
        schema_tokens: Takes a schema and returns the tokens that it takes in a prompt. None: prompts have no schema of
            the target's own.
        memory: Takes the tokens of the longest row and of all rows, and the number of rows; returns the memory that
            training them takes here, or None.
        reasons: Whether reasoning is trained before answers, so that a source needs some.
    """

    name: str
    tokenise: Callable[[Example], TokenisedRow]
    decode: Callable[[Sequence[int]], str]
    max_length: int | None = None
    min_examples: int = 0
    max_bytes: int | None = None
    estimated: bool = False
    walker: Callable[[AnswerTexts], Callable[[str, Sequence[int]], list[Fault]]] | None = None
    default_epochs: Callable[[int, int], int] = lambda _rows, _made: 1
    schema_tokens: Callable[[Mapping[str, Any]], int] | None = None
    memory: Callable[[int, int, int], MemoryPlan | None] = lambda *_: None
    reasons: bool = False


def target_named(
    name: str, base_model: str | Path | None, max_length: int | None, form: PromptForm
) -> TrainingTarget:
    """The built-in target of that name; the others as for ``check``, ``form`` of local prompts.

    Raises ConfigurationError for an unknown name or a base model that does not load.
    """
    if name == "openai":
        return _openai(max_length)
    if name == "gradient":
        return _gradient(max_length)
    if name == "local":
        return _local(_base(base_model), max_length, form)
    if name == "trl":
        return _trl(_tokenizer(_base(base_model)), max_length)
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
        return TokenisedRow(
            tuple(ids), tuple(trained), overhead, tuple(dict.fromkeys(openai_faults(example)))
        )

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


def _parts_left_out(example: Example) -> Iterator[Fault]:
    """Parts that are not text: chat templates of text models leave them out, or write their Python form."""
    for message in (*example.messages, example.answer):
        for part in message.content if isinstance(message.content, list) else ():
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                yield Fault(
                    "bad_part", f"a {message.role} message has a part {part.get('type')!r}, expected text"
                )


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


def _base(base_model: str | Path | None) -> BaseModelFiles:
    """The local engine's base model (None: its default)."""
    try:
        from ...local.model import base_models
    except ImportError as error:
        raise MissingDependencyError(error.name or "transformers", "local", "Counting its tokens") from error
    return base_models.resolve(base_model or base_models.DEFAULT_BASE_MODEL)


def _tokenizer(base: BaseModelFiles) -> Any:
    from ...local.model.base_models import load_tokenizer

    return load_tokenizer(base)


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _local(base: BaseModelFiles, max_length: int | None, form: PromptForm) -> TrainingTarget:
    from ...local.model.chat_template import prompt_date

    tokenizer = _tokenizer(base)
    return local_target(base, tokenizer, max_length, date=prompt_date(tokenizer), form=form)


def local_target(
    base: BaseModelFiles,
    tokenizer: Any,
    max_length: int | None,
    *,
    date: str | None,
    form: PromptForm,
) -> TrainingTarget:
    """The target "local" of a base model and its tokenizer: what ``LoraFinetuneEngine`` trains on, and its limits.

    ``max_length``: as in ``LoraSettings``. ``form``: of the prompts. ``date``: as for ``token_row``.
    """
    from ...local.model.base_models import context_window, vocabulary_size
    from ...local.model.prompts import schema_room, token_row
    from ...local.model.stop_token import stop_token_id
    from ...local.train.memory import plan_lengths
    from ...local.train.settings import LoraSettings
    from .answer_walk import AnswerWalk

    context, stop_id = context_window(base), stop_token_id(tokenizer)

    def tokenise(example: Example) -> TokenisedRow:
        row = token_row(tokenizer, example, stop_id=stop_id, date=date, form=form)
        trained = (False,) * len(row.prompt) + (True,) * len(row.answer)
        return TokenisedRow(row.prompt + row.answer, trained, reasoning=row.reasoning)

    def walker(answers: AnswerTexts) -> Callable[[str, Sequence[int]], list[Fault]]:
        size = vocabulary_size(base) or len(tokenizer)
        return AnswerWalk(tokenizer, answers, vocabulary=size, stop_id=stop_id, form=form).faults

    return TrainingTarget(
        "local",
        tokenise,
        _decoder(tokenizer),
        max_length=min(context, max_length or context),
        walker=walker,
        default_epochs=LoraSettings().epochs_for,
        schema_tokens=lambda schema: schema_room(tokenizer, schema, form),
        memory=partial(plan_lengths, base),
        reasons=form.thinking,
    )


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
    from ...local.model.stop_token import stop_token_id

    stop_id = stop_token_id(tokenizer)

    def tokenise(example: Example) -> TokenisedRow:
        row = to_trl_prompt_completion(example)
        prompt = _template_ids(tokenizer, row["prompt"], example.tools, add_generation_prompt=True)
        whole = _template_ids(tokenizer, row["prompt"] + row["completion"], example.tools)
        begin = common_length(prompt, whole)
        faults = [*_parts_left_out(example), *_trl_faults(tokenizer, example, row)]
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
