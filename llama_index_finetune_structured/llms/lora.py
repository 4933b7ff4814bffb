"""LoraLLM: a local, fine-tuned model as a LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, LLMMetadata, MessageRole
from pydantic import BaseModel, Field, PrivateAttr
from typing_extensions import Self

from ..answer_values import class_schema
from ..errors import ConfigurationError, MissingDependencyError, PromptTooLongError
from ..local.model.adapter import find_adapter, read_card, read_matching_card, read_merged_card
from ..local.model.base_models import DEFAULT_BASE_MODEL, context_window, resolve
from ..local.model.control_tokens import encode_parts
from ..local.model.prompts import require_short, schema_room
from ..local.schema.bounds import schema_key
from ..local.schema.list_items import ListRules
from .call_options import CallOptions, checked_options, refuse_unknown_fields
from .local_calls import LocalCall, prompt_ids, require_encodable, schema_reserve, too_long_with_schema
from .local_chat import LocalChatLLM
from .merged_calls import MergedCall, fits, messages_of_windows, options_of_answers
from .model_places import AdapterFolder, BaseModelName
from .own_turns import OwnTurns
from .structured import request_schema
from .trained_schemas import UntrainedSchemas
from .trained_settings import trained_settings

if TYPE_CHECKING:
    from ..local.generate.grammar import AnswerGrammar
    from ..local.generate.loaded_models import LocalModel

__all__ = ["LoraLLM"]

_ANSWER_TOKENS = 512  # chosen: default for a base model alone; an adapter has its own from training


class LoraLLM(LocalChatLLM):
    """A base model on this machine, with or without an adapter of ``LoraFinetuneEngine``.

    Concurrent calls are generated in one batch. Structured calls (``structured_predict``, query engines with
    ``output_cls``, ``as_structured_llm``) have the schema in their prompt exactly as in training, and a grammar holds
    the answer to it unless ``constrained`` is False. An answer that the grammar allows and a validator refuses gets one
    more attempt; answers that do not fit raise StructuredAnswerError, which names field and reason. Calls accept
    ``max_new_tokens`` (or ``max_tokens``), ``temperature``, ``top_k``, ``top_p``, ``seed``, ``stop``, ``answers``,
    ``windows``, ``thinking_tokens`` and ``response_format``; None means the default, other keywords raise
    ConfigurationError. ``stop`` is a text or several: the answer ends before the first one in it; a structured call
    takes none. A structured call with a schema that the adapter was not trained on is logged once, since its bounds are
    not known. Weights are loaded on first use and shared by all objects with the same weights, ``device`` and
    ``batch_size``, so these of an object cannot change. Needs the extra ``local``.

    With ``thinking`` the model first writes reasoning, of ``thinking_tokens`` at most: a ``ThinkingBlock`` before the
    text or the tool calls, in streams ``additional_kwargs["thinking_delta"]``; grammar, limit, stop texts and trust are
    those of the answer alone.

    Text is text: what stands in messages, prompts and schemas never becomes a control token such as
    ``<|im_end|>``. Only a completion prompt with ``formatted=True`` is sent as it is, control tokens included.

    Args:
        **kwargs: The attributes below, and fields of LlamaIndex's ``LLM`` such as ``system_prompt``.

    Attributes:
        adapter: Folder of the adapter; None (default): base model only.
        base_model: Base model: name, folder, .gguf or hub id; ``smollm2-135m-instruct`` by default.
        max_new_tokens: Token limit of an answer; 512 by default.
        temperature: 0 (default): always the likeliest token (greedy).
        top_k: Draw among the k likeliest tokens; 0 (default): among all.
        top_p: Draw among the likeliest tokens of this probability; 1 by default.
        constrained: Hold structured answers to their schema by a grammar; True by default.
        batch_size: Most calls generated together in one batch; 8 by default.
        bounds: Bounds of lists and strings.
        grounded: Hold values that training copied from the messages to those of the call; True by default.
        chat_prompts: Whether prompts are LlamaIndex's chat prompts, as in training; True by default.
        confidence: Whether structured answers come with their ``Trust``, in ``raw["trust"]``; True by default.
            ``trust_of`` gives it for all that LlamaIndex returns.
        calibrations: How probabilities are calibrated for the answers to a schema, by its key.
        taggers: Taggers of the messages' words, by the key of the answers' schema: a second opinion on these.
        answer_classes: The classes of the training answers, as ``module:Class``, by the key of their schema.
        schema_tokens: Tokens of the context window that query engines leave free for the schema, which is added
            to the prompt after they have filled it. None (default): a quarter of the window, at most 1024;
            ``from_adapter`` sets what the largest schema of training takes. At most half of what answers leave.
        trained_schemas: Schemas of the training rows, to log how another one differs.
        list_rules: How answers to the schemas of training, by their key, are read window by window.
        alternatives: Other beginnings followed where the grammar excluded half of an answer; 0. ``from_adapter``: 3.
        answers: Answers to each structured call, merged into one by votes; 1 by default. Plain text is answered once.
        windows: Sentences of each window of the text, whose lists are merged; 0: the text is read whole. By default 0;
            ``from_adapter`` sets 1 or 2 where training had rows of windows.
        reads_twice: Whether short questions stand twice in prompts of structured answers. None (default): as the
            adapter was trained, False for a base model alone.
        schema_prompt: How prompts say the schema: ``compact`` (as types), ``json`` (JSON schema) or ``none``, where
            schemas that are not of training are said as types. None (default): as the adapter was trained, ``compact``
            for a base model alone.
        tool_prompt: How tools and calls are written: ``own``, as the base's chat template does, or ``json``, as a type
            and JSON lists. None (default): as the adapter was trained, and for a base model alone ``own`` where its
            template has a form of calls that can be read back.
        thinking: Whether reasoning stands before each answer, and prompts ask for it where the chat template has a
            switch. None (default): as the adapter was trained, False for a base model alone.
        thinking_tokens: Token limit of the reasoning; 0: it is left empty. None (default): 1024; ``from_adapter`` sets
            twice the longest of training.
        quantization: Hold the base's layers as in ``LoraSettings``; ``from_adapter`` sets what training had.
        device: Where the model is held and computes, as in ``LoraSettings``. None (default): the best device.
        max_queue: Most calls that wait or are answered at a time, of this object and its copies; one more raises
            QueueFullError at once. None (default): any number.
        request_timeout: Seconds that a call may take or wait; then it raises RequestTimeoutError. None: any time.

    Raises:
        ConfigurationError: There is no such base model, or on first use no such ``device``; ``adapter`` is no adapter
            folder, or was trained on another base; an argument is no attribute. Of a call: a keyword is unknown or out
            of range, the prompt is empty, a message has a block that is not text, or a text has half a character (a
            lone surrogate).
        DatasetError: Of a call: the chat template rejects the messages or leaves the text of one out.
        PromptTooLongError: Of a call: the prompt fills the context window.
        QueueFullError: Of a call: ``max_queue`` calls wait or are being answered.
        RequestTimeoutError: Of a call: it took longer than ``request_timeout``.
        MissingDependencyError: On first use, the extra ``local`` is not installed.
    """

    adapter: AdapterFolder = Field(
        default=None, frozen=True, description="Folder of the adapter; None: base model only."
    )
    base_model: BaseModelName = Field(
        default=DEFAULT_BASE_MODEL, frozen=True, description="Base model: name, folder, .gguf or hub id."
    )
    max_new_tokens: int = Field(default=_ANSWER_TOKENS, gt=0, description="Token limit of an answer.")
    temperature: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="0: always the likeliest token (greedy)."
    )
    top_k: int = Field(default=0, ge=0, description="Draw among the k likeliest tokens; 0: among all.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Draw among the likeliest tokens of this probability."
    )
    batch_size: int = Field(
        default=8, gt=0, frozen=True, description="Most calls generated together in one batch."
    )
    schema_tokens: int | None = Field(
        default=None, ge=0, description="Tokens that query engines leave free for a schema."
    )
    list_rules: dict[str, ListRules] = Field(
        default_factory=dict, repr=False, description="How answers are read window by window, by schema."
    )
    alternatives: int = Field(default=0, ge=0, description="Other beginnings followed for a likelier answer.")
    answers: int = Field(default=1, ge=1, description="Answers to each structured call, merged by votes.")
    windows: int = Field(default=0, ge=0, description="Sentences of each window of the text; 0: no windows.")

    _base: str = PrivateAttr()  # with an absolute path
    _context_window: int = PrivateAttr()
    _adapter_files: dict[str, str] = PrivateAttr(default_factory=dict)
    _prompt_date: str | None = PrivateAttr(default=None)
    _untrained: UntrainedSchemas = PrivateAttr(default_factory=UntrainedSchemas)
    _model: LocalModel | None = PrivateAttr(default=None)

    def __init__(self, **kwargs: Any) -> None:
        refuse_unknown_fields(type(self), kwargs)
        super().__init__(**kwargs)
        base = resolve(self.base_model)
        self._base = base.name
        if self.adapter is not None:
            card = read_matching_card(self.adapter, base)
            self._prompt_date, self._adapter_files = card.prompt_date, card.files
            self._trained_form = card.prompt_form
        self._context_window = context_window(base)

    @classmethod
    def from_adapter(cls, adapter: str | Path, **kwargs: Any) -> LoraLLM:
        """The LLM of an adapter's or a finished run's folder, with the settings of training.

        Args:
            adapter: The folder.
            **kwargs: Attributes of the class; they override those of training.

        Raises:
            ConfigurationError: The folder holds no adapter or an unfinished run, or the base is not found.
        """
        folder = find_adapter(Path(adapter))
        return cls(**{"adapter": folder, **trained_settings(read_card(folder)), **kwargs})

    @classmethod
    def from_merged(cls, folder: str | Path, **kwargs: Any) -> LoraLLM:
        """The LLM of a merged folder that ``export_adapter`` wrote, with the settings of training.

        Args:
            folder: The merged folder.
            **kwargs: Attributes of the class; they override those of training.

        Raises:
            ConfigurationError: The folder is not such an export, or a file in it was changed since.
        """
        return cls(
            **{**trained_settings(read_merged_card(Path(folder))), "base_model": str(folder), **kwargs}
        )

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the weights. The copy loads them on first use."""
        bare = self.model_copy()
        bare._model = None
        return dict(super(LoraLLM, bare).__getstate__())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with other settings of the same model.

        Args:
            update: Attributes with new values, those excepted that choose the weights.
            deep: Whether to copy the attributes too; the weights are shared.

        Raises:
            ConfigurationError: ``update`` has an attribute that chooses the weights or their device.
        """
        if fixed := [
            name for name in update or () if (field := type(self).model_fields.get(name)) and field.frozen
        ]:
            raise ConfigurationError(
                f"{', '.join(fixed)} cannot change in a copy: make another {type(self).__name__}"
            )
        return super().model_copy(update=update, deep=deep)

    @classmethod
    def class_name(cls) -> str:
        """The class's name in LlamaIndex's dumps."""
        return "lora_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """Context window, token limit and name, as LlamaIndex reads them.

        ``context_window`` is the model's less the room for a schema: LlamaIndex packs texts into it before the
        schema is added, and cannot know that one will be.
        """
        free = self._context_window - self._reasoning_room(self._context_window - self.max_new_tokens)
        return self._metadata(schema_reserve(free, self.max_new_tokens, self.schema_tokens))

    def metadata_for(self, output_cls: type[BaseModel]) -> LLMMetadata:
        """As ``metadata``, with room for exactly the schema of a class. Loads the model's tokenizer and weights.

        ``PromptHelper.from_llm_metadata(llm.metadata_for(output_cls))`` packs texts for structured calls: pass it
        to ``get_response_synthesizer`` as ``prompt_helper``.

        Args:
            output_cls: Class of the answers.

        Raises:
            ConfigurationError: Schema and answer leave no room for a text.
            MissingDependencyError: The extra ``local`` is not installed.
        """
        room = self._schema_room(class_schema(output_cls))
        if room + self.max_new_tokens >= self._context_window:
            raise ConfigurationError(
                f"{output_cls.__name__}: its schema takes {room} tokens, an answer up to {self.max_new_tokens} "
                f"(max_new_tokens), and the model's context window is {self._context_window}: nothing is left for "
                "a text. Lower max_new_tokens, shorten the class's descriptions, or use a base with a larger window"
            )
        return self._metadata(room)

    def _metadata(self, reserved: int) -> LLMMetadata:
        left = self._context_window - self.max_new_tokens - reserved
        return LLMMetadata(
            context_window=self._context_window - reserved - self._reasoning_room(left),
            num_output=self.max_new_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=str(self.adapter or self.base_model),
        )

    def prompt_token_ids(
        self, messages: Sequence[ChatMessage], output_cls: type[BaseModel] | None = None
    ) -> list[int]:
        """The token ids that a call with these messages sends to the model.

        Args:
            messages: The messages. Thinking and cache points are left out; tool calls are kept.
            output_cls: Class of a structured call, whose schema is in the prompt. None: a plain call.

        Raises:
            ConfigurationError: A message has a block that is not text.
            DatasetError: The model's chat template rejects the messages, or leaves the text of one out.
            MissingDependencyError: The extra ``local`` is not installed.
        """
        schema = None if output_cls is None else class_schema(output_cls)
        return self._prompt(messages, schema)

    @property
    def _loaded(self) -> LocalModel:
        if self._model is None:
            try:
                from ..local.generate.loaded_models import load_local_model
            except ImportError as error:
                raise MissingDependencyError(error.name or "torch", "local", "LoraLLM") from error
            if self.adapter is not None and read_card(self.adapter).files != self._adapter_files:
                raise ConfigurationError(
                    f"{self.adapter}: is another adapter than when this {type(self).__name__} was made, whose bounds "
                    "and prompts are those of the former: make a new one"
                )
            more = (self.batch_size, self.quantization, self.device)
            self._model = load_local_model(self._base, self.adapter, *more)
        return self._model

    def _chat_call(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]
    ) -> LocalCall | MergedCall:
        options = self._options(kwargs)
        schema = request_schema(options.response_format)
        rules = None if schema is None else self._list_rules(schema, options)
        windows = [] if rules is None else messages_of_windows(messages, rules, options.windows)
        if len(windows) < 2:
            windows, rules = [list(messages)], None
        asked = [(self._prompt(window, schema), window) for window in windows]
        return self._call(asked, options, schema, messages, rules)

    def _list_rules(self, schema: Mapping[str, Any], options: CallOptions) -> ListRules | None:
        """The rules by which a call's text is read in windows; None where it is read whole."""
        rules = self.list_rules.get(schema_key(schema)) if options.windows else None
        # A window may have no items: a schema that asks for one at least would make the model invent it.
        return rules if rules is not None and fits(schema, rules.merged([])) else None

    def _prompt(self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None) -> list[int]:
        form = self._form(schema)
        ids = prompt_ids(
            self._loaded.tokenizer,
            messages,
            schema,
            form,
            date=self._prompt_date,
            context_window=self._context_window,
        )
        return [*ids, *self._loaded.reasoning.opening] if form.thinking else ids

    def _schema_room(self, schema: Mapping[str, Any]) -> int:
        return schema_room(self._loaded.tokenizer, schema, self._form(schema))

    def _completion_call(
        self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]
    ) -> LocalCall | MergedCall:
        """A plain prompt becomes a user message; a ``formatted`` one is sent unchanged, control tokens included."""
        if not isinstance(prompt, str) or not prompt:
            raise ConfigurationError(f"the prompt is {prompt or 'empty'!r}: pass a text")
        if not formatted:
            return self._chat_call([ChatMessage(role=MessageRole.USER, content=prompt)], kwargs)
        options = self._options(kwargs)
        require_encodable(prompt, "the prompt")
        require_short([prompt], self._context_window)
        ids = encode_parts(self._loaded.tokenizer, [(prompt, False)])
        return self._call([(ids, ())], options, request_schema(options.response_format))

    def _options(self, kwargs: Mapping[str, Any]) -> CallOptions:
        options = checked_options(CallOptions, kwargs, self)
        if options.response_format is None:
            if (kwargs.get("answers") or 1) > 1:
                raise ConfigurationError(
                    f"answers={options.answers}: votes merge structured answers, and this call asks for a text: "
                    "leave answers= out, or ask with structured_predict or response_format="
                )
            return options.model_copy(update={"answers": 1, "windows": 0})
        if options.stop:
            raise ConfigurationError(
                "stop= would cut a structured answer into broken JSON, and its grammar ends it: leave stop= out"
            )
        return options

    def _call(
        self,
        asked: Sequence[tuple[Sequence[int], Sequence[ChatMessage]]],
        options: CallOptions,
        schema: dict[str, Any] | None,
        messages: Sequence[ChatMessage] = (),
        rules: ListRules | None = None,
    ) -> LocalCall | MergedCall:
        """The call of one prompt, or of those of the windows that ``rules`` merge.

        ``asked``: each prompt, with its messages if any. ``messages``: those of the whole call.
        """
        grammar = None if schema is None else self._grammar(schema, options)
        call, several, calibration = object(), options_of_answers(options), self._calibration(schema)
        turns = OwnTurns.of(self._loaded.tokenizer, schema, self._form(schema))
        thinking = self._form(schema).thinking and any(window for _, window in asked)
        reasoning = self._reasoning(self._loaded, options.thinking_tokens) if thinking else None
        calls: list[list[LocalCall]] = []
        try:
            for prompt, window in asked:
                source, room = self._answer_source(window, schema), self._context_window
                of = partial(LocalCall.of, grammar=grammar, context_window=room, call=call, source=source)
                of = partial(of, calibration=calibration, reasoning=reasoning, turns=turns)
                calls.append([of(self._loaded, prompt, each) for each in several])
        except PromptTooLongError as error:
            if schema is None:
                raise
            free = self._context_window - self.metadata.context_window
            raise too_long_with_schema(error, self._schema_room(schema), free) from None
        if schema is None or len(calls) == len(several) == 1:
            return calls[0][0]
        return MergedCall(calls, schema, rules, self._answer_source(messages, schema), calibration)

    def _grammar(self, schema: dict[str, Any], options: CallOptions) -> AnswerGrammar | None:
        name = options.response_format["json_schema"].get("name")
        self._untrained.warn_of(schema, name, self.trained_schemas, self.bounds)
        if not self.constrained:
            return None
        wanted = schema if options.grammar_schema is None else options.grammar_schema
        return self._loaded.grammar(wanted, schema_key(schema), self.bounds, self._form(schema))
