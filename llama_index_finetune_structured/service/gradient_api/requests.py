"""Requests of Gradient's protocol, with the names and ranges of its SDK."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from ...formats.wire import schema_format

__all__ = ["CompleteModel", "CreateModel", "FineTuneModel", "InputPart", "Sample"]

_MOST_TOKENS = 511  # the protocol's, also where a request says nothing
_LONGEST_NAME = 255  # as of a file
_Text = Annotated[str, Field(min_length=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)


class LoraHyperparameters(_Body):
    """Shape of a new adapter."""

    rank: Annotated[int, Field(gt=0, le=32)] | None = None


class TrainingArguments(_Body):
    """How a new adapter is trained."""

    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None


class InitialHyperparameters(_Body):
    """Hyperparameters of a new adapter, which stay as they are."""

    lora_hyperparameters: LoraHyperparameters | None = None
    training_arguments: TrainingArguments | None = None


class NewModel(_Body):
    """What a new adapter is named, and which base it adapts."""

    base_model_id: _Text
    name: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]


class CreateModel(_Body):
    """A request for a new adapter."""

    initial_hyperparameters: InitialHyperparameters | None = None
    model: NewModel

    @property
    def rank(self) -> int | None:
        """LoRA's rank; None: the service's."""
        given = self.initial_hyperparameters and self.initial_hyperparameters.lora_hyperparameters
        return given.rank if given else None

    @property
    def learning_rate(self) -> float | None:
        """The learning rate of all steps; None: the service's."""
        given = self.initial_hyperparameters and self.initial_hyperparameters.training_arguments
        return given.learning_rate if given else None


class InputPart(_Body):
    """A part of a sample's text. ``parse_special_tokens``: whether control tokens in it are such; else it is text."""

    value: _Text
    trainable: bool | None = True
    parse_special_tokens: bool | None = True

    @property
    def is_trainable(self) -> bool:
        """Whether its tokens are trained."""
        return self.trainable is not False

    @property
    def is_content(self) -> bool:
        """Whether it is text alone, without control tokens."""
        return self.parse_special_tokens is False


class FineTuningParameters(_Body):
    """``multiplier``: weight of the sample's loss."""

    multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Sample(_Body):
    """One sample: a text, all of which is trained, or its parts."""

    inputs: _Text | Annotated[list[InputPart], Field(min_length=1)]
    fine_tuning_parameters: FineTuningParameters | None = None

    @property
    def parts(self) -> list[InputPart]:
        """The parts of the text."""
        return [InputPart(value=self.inputs)] if isinstance(self.inputs, str) else self.inputs

    @property
    def multiplier(self) -> float:
        """Weight of the sample's loss."""
        given = self.fine_tuning_parameters
        return 1.0 if given is None or given.multiplier is None else given.multiplier


class FineTuneModel(_Body):
    """A request for one step."""

    samples: Annotated[list[Sample], Field(min_length=1)]


class Guidance(_Body):
    """Texts of which the answer is one."""

    type: Literal["choice"]
    value: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=32)]], Field(min_length=1, max_length=10)
    ]


class CompleteModel(_Body):
    """A request for a completion.

    ``auto_template``: whether the query is asked by the base's chat template; else it is sent as it is. The protocol's
    description has ``true`` as the default, its SDK sends null, and samples are trained as they are: what is left out
    is false.
    """

    query: _Text
    auto_template: bool | None = None
    guidance: Guidance | None = None
    max_generated_token_count: Annotated[int, Field(gt=0, le=_MOST_TOKENS)] | None = None
    rag: dict[str, Any] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of ``LoraLLM``; what is None is the model's own."""
        keywords: dict[str, Any] = {
            "max_new_tokens": self.max_generated_token_count or _MOST_TOKENS,
            "temperature": None if self.temperature is None else float(self.temperature),
            "top_k": self.top_k,
            "top_p": None if self.top_p is None else float(self.top_p),
        }
        if self.guidance is not None:
            schema = {"type": "string", "enum": list(dict.fromkeys(self.guidance.value))}
            keywords["response_format"] = schema_format("choice", schema)
        return keywords
