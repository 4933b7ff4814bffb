"""How a local model is asked: its prompts' form, and the reasoning before its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llama_index.core.llms.llm import LLM
from pydantic import Field, PrivateAttr

from ..json_schema import without_titles
from ..local.model.prompts import DEFAULT_SCHEMA_PROMPT, PromptForm, SchemaPrompt, ToolPrompt

if TYPE_CHECKING:
    from ..local.generate.loaded_models import LocalModel
    from ..local.generate.reasoning import ReasoningLimit

__all__ = ["PromptSettingsLLM"]

_REASONING_TOKENS = 1024  # chosen: default for a base model alone; an adapter has its own from training


class PromptSettingsLLM(LLM):
    """The settings of ``LoraLLM`` that decide the form of its prompts, by default those of training.

    Attributes:
        trained_schemas: Schemas of the training rows.
        schema_prompt: How prompts say the schema.
        reads_twice: Whether short questions stand twice in prompts of structured answers.
        tool_prompt: How tools and calls are written.
        thinking: Whether reasoning stands before each answer.
        thinking_tokens: Token limit of the reasoning.
    """

    trained_schemas: list[dict[str, Any]] = Field(
        default_factory=list, repr=False, description="Schemas of the training rows."
    )
    reads_twice: bool | None = Field(default=None, description="Whether short questions stand twice.")
    schema_prompt: SchemaPrompt | None = Field(
        default=None, description="How prompts say the schema: compact, json or none; None: as in training."
    )
    tool_prompt: ToolPrompt | None = Field(
        default=None, description="How tools and calls are written: own or json; None: as in training."
    )
    thinking: bool | None = Field(
        default=None, description="Whether reasoning stands before each answer; None: as in training."
    )
    thinking_tokens: int | None = Field(default=None, ge=0, description="Token limit of the reasoning.")

    _trained_form: PromptForm = PrivateAttr(default=PromptForm())

    def _form(self, schema: Mapping[str, Any] | None) -> PromptForm:
        """The form of the prompt: a schema that training did not show is said."""
        said = self.schema_prompt or self._trained_form.schema_prompt
        is_new = schema is not None and without_titles(schema) not in self.trained_schemas
        said = DEFAULT_SCHEMA_PROMPT if said == "none" and is_new and self.trained_schemas else said
        twice = self._trained_form.reads_twice if self.reads_twice is None else self.reads_twice
        thinking = self._trained_form.thinking if self.thinking is None else self.thinking
        return PromptForm(said, twice, thinking, self.tool_prompt or self._trained_form.tool_prompt)

    def _reasoning(self, model: LocalModel, tokens: int | None) -> ReasoningLimit:
        """The reasoning before an answer of at most so many tokens."""
        from ..local.generate.reasoning import ReasoningLimit

        return ReasoningLimit(model.reasoning, _REASONING_TOKENS if tokens is None else tokens)

    def _reasoning_room(self, room: int) -> int:
        """Tokens of ``room`` that query engines leave free for reasoning: half of it at most."""
        if not self._form(None).thinking:
            return 0
        wanted = _REASONING_TOKENS if self.thinking_tokens is None else self.thinking_tokens
        return min(wanted, max(0, room) // 2)
