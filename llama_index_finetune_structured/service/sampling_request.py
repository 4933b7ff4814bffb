"""Fields that requests for chat and for plain completions share, and which of OpenAI's fields are refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ..llms.call_options import one_as_list
from .errors import invalid

__all__ = ["SamplingRequest", "Unsupported", "refused", "unsupported"]

_MOST_CHOICES = 128  # OpenAI's


def refused(why: str) -> PydanticCustomError:
    """The error of a validator, whose text is for the client."""
    return PydanticCustomError("refused", "{why}", {"why": why})


def unsupported(*same: Any, instead: str = "leave it out") -> Any:
    """A validator of a field that is not supported: only values without effect, None among them, are accepted."""

    def check(value: Any) -> Any:
        if value is None or any(value == one and type(value) is not bool for one in same):
            return value
        raise refused(f"not supported by this server: {instead}")

    return AfterValidator(check)


Unsupported = Annotated[Any, unsupported({}, [])]


class _StreamOptions(BaseModel):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingRequest(BaseModel):
    """How tokens are chosen and sent. Fields that would change the answer, and are not supported, are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1)]], BeforeValidator(one_as_list), Field(max_length=4)
        ]
        | None
    ) = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    frequency_penalty: Annotated[float | None, unsupported(0)] = None
    presence_penalty: Annotated[float | None, unsupported(0)] = None
    logit_bias: Unsupported = None
    user: Any = None

    def require_consistent(self) -> None:
        """Raise ApiError, which names the field, for fields that exclude each other."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options: only allowed with stream=true", "stream_options")

    @property
    def answer_fields(self) -> dict[str, str]:
        """The fields of a request that errors of its answer name, by the arguments of ``answer_errors``."""
        return {"limit": "max_tokens"}

    @property
    def choices(self) -> int:
        """How many answers to each prompt are asked for."""
        return self.n or 1

    @property
    def sends_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, choice: int) -> dict[str, Any]:
        """The keywords of ``LoraLLM`` for one of several answers, each of which has a seed of its own."""
        temperature = self.temperature
        if self.top_p == 0:
            temperature = 0.0
        return {
            "temperature": None if temperature is None else float(temperature),
            "top_p": float(self.top_p) if self.top_p else None,
            "seed": None if self.seed is None else (self.seed + choice) % 2**63,
            "stop": self.stop,
        }
