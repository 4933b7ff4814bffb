"""ServingRecipe: the prompt template of a data set, and the settings that serve the same prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import ConfigurationError, DatasetError
from ...example import Example, Message

__all__ = ["DEFAULT_QA_TEMPLATE", "ServingRecipe", "context_text", "prompted_as", "template_text"]

# The text of LlamaIndex's DEFAULT_TEXT_QA_PROMPT, copied so that a data set does not change with its version.
DEFAULT_QA_TEMPLATE = (
    "Context information is below.\n"
    "---------------------\n"
    "{context_str}\n"
    "---------------------\n"
    "Given the context information and not prior knowledge, "
    "answer the query.\n"
    "Query: {query_str}\n"
    "Answer: "
)
_METADATA_KEY = "serving"


class ServingRecipe(BaseModel):
    """How the prompts of a data set were made; stored in the metadata of every built Example.

    A LlamaIndex query engine built with ``query_engine_kwargs`` sends the same prompts, as long as the chunks
    fit the model's context window.

    Attributes:
        qa_template: Text with ``{context_str}`` and ``{query_str}``. None: the prompt is the question alone.
        system_prompt: System message of every prompt. None: there is none.
        separate_context: Whether a prompt contains one chunk only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    qa_template: str | None = DEFAULT_QA_TEMPLATE
    system_prompt: str | None = None
    separate_context: bool = False

    @classmethod
    def of(cls, examples: Iterable[Example]) -> ServingRecipe:
        """The recipe that all examples were built with.

        Args:
            examples: Examples of a RetrievalAugmentedDatasetBuilder.

        Raises:
            DatasetError: There is not exactly one recipe, or an example has none.
        """
        recipes = {_recipe_of(example) for example in examples}
        if len(recipes) != 1 or None in recipes:
            without = ", and some examples without a recipe" if None in recipes else ""
            raise DatasetError(
                f"expected examples of one serving recipe, found {len(recipes - {None})}{without}; "
                "give examples of one RetrievalAugmentedDatasetBuilder"
            )
        return next(recipe for recipe in recipes if recipe is not None)

    def prompt(self) -> ChatPromptTemplate:
        """The messages as a chat template of ``context_str`` and ``query_str``."""
        turns = [ChatMessage(role=MessageRole.USER, content=self.qa_template or "{query_str}")]
        if self.system_prompt is not None:
            turns.insert(0, ChatMessage(role=MessageRole.SYSTEM, content=self.system_prompt))
        return ChatPromptTemplate(message_templates=turns)

    def messages(self, query: str, context: str | None) -> tuple[Message, ...]:
        """The messages of one row.

        Args:
            query: The question.
            context: The chunks as one text. None: the prompt is the question alone.
        """
        recipe = self if context is not None else self.model_copy(update={"qa_template": None})
        messages = recipe.prompt().format_messages(query_str=query, context_str=context or "")
        return tuple(Message(role=m.role.value, content=m.content) for m in messages)

    def query_engine_kwargs(self, output_cls: type[BaseModel] | None = None) -> dict[str, Any]:
        """Arguments for ``index.as_query_engine`` or ``RetrieverQueryEngine.from_args`` that send these prompts.

        With ``separate_context`` only the best chunk is sent.

        Args:
            output_cls: Class of a structured answer. None: the answer is text.

        Raises:
            ConfigurationError: ``output_cls`` is given and the prompt has no context; use
                ``llm.structured_predict(output_cls, recipe.prompt(), query_str=...)``.
        """
        if self.qa_template is not None:
            structured = {} if output_cls is None else {"output_cls": output_cls}
            return {
                "response_mode": "compact",
                "text_qa_template": self.prompt(),
                "node_postprocessors": [_BestChunk()] if self.separate_context else [],
                **structured,
            }
        if output_cls is not None:
            raise ConfigurationError(
                "LlamaIndex's query engines give no structured answer without context; use "
                "llm.structured_predict(output_cls, recipe.prompt(), query_str=question)"
            )
        return {"response_mode": "generation", "simple_template": self.prompt()}

    def llm_kwargs(self) -> dict[str, Any]:
        """Arguments for the LLM: no system prompt, which the template already contains."""
        return {"system_prompt": None}

    def metadata(self) -> dict[str, Any]:
        """The entry in an Example's metadata, which ``of`` reads."""
        return {_METADATA_KEY: self.model_dump()}


class _BestChunk(BaseNodePostprocessor):
    """Keeps the first chunk only, as each prompt of ``separate_context`` contains one."""

    def _postprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: QueryBundle | None = None,
    ) -> list[NodeWithScore]:
        return nodes[:1]


def _recipe_of(example: Example) -> ServingRecipe | None:
    try:
        return ServingRecipe.model_validate(example.metadata.get(_METADATA_KEY))
    except ValidationError:
        return None


def prompted_as(example: Example, other: Example) -> Example:
    """The example with the prompt that the recipe of another one makes of its question and context.

    The example as it is where one of them has no recipe, or its messages were not made by its own.
    """
    own, recipe, text = _recipe_of(example), _recipe_of(other), example.messages[-1].content
    if own is None or recipe is None or own == recipe or not isinstance(text, str):
        return example
    if own.separate_context != recipe.separate_context:
        return example
    parts = re.split(r"\{(context_str|query_str)\}", own.qa_template or "{query_str}")
    pattern = "".join(f"(?P<{part}>.*)" if at % 2 else re.escape(part) for at, part in enumerate(parts))
    try:
        found = re.fullmatch(pattern, text, re.DOTALL)
    except re.error:  # a placeholder that stands twice
        return example
    asked = {} if found is None else found.groupdict()
    query, context = asked.get("query_str", ""), asked.get("context_str")
    if found is None or own.messages(query, context) != example.messages:
        return example
    metadata = {**example.metadata, _METADATA_KEY: recipe.model_dump()}
    return Example(**{**dict(example), "messages": recipe.messages(query, context), "metadata": metadata})


def template_text(template: str | PromptTemplate) -> str:
    """The template as text. Raises ConfigurationError without ``{context_str}`` and ``{query_str}``."""
    text = template if isinstance(template, str) else template.template
    missing = [name for name in ("{context_str}", "{query_str}") if name not in text]
    if missing:
        raise ConfigurationError(f"qa_template: {' and '.join(missing)} missing, expected both placeholders")
    return text


def context_text(nodes: Iterable[NodeWithScore]) -> str:
    """Chunks joined as LlamaIndex's compact synthesizer joins them, with the metadata that an LLM sees."""
    texts = (n.node.get_content(metadata_mode=MetadataMode.LLM).strip() for n in nodes)
    return "\n\n".join(text for text in texts if text)
