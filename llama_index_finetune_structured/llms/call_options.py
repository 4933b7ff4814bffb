"""Keywords of a call and of a constructor: checked by name, type and range, with errors that name the right ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from ..errors import ConfigurationError

__all__ = ["CallOptions", "Stops", "one_as_list", "checked_options", "refuse_unknown_fields"]

Options = TypeVar("Options", bound=BaseModel)
_SEEDS = (-(2**63), 2**64 - 1)  # what PyTorch takes


def one_as_list(stop: Any) -> Any:
    """One text as a list of one."""
    return [stop] if isinstance(stop, str) else stop


Stops = Annotated[
    tuple[Annotated[str, StringConstraints(strict=True, min_length=1)], ...], BeforeValidator(one_as_list)
]
"""Texts before which an answer ends; a single one may be given as text."""


class CallOptions(BaseModel):
    """The options of one call of a local model, with the names and ranges of its keywords."""

    model_config = ConfigDict(frozen=True)

    max_new_tokens: int = Field(gt=0, strict=True)
    temperature: float = Field(ge=0, allow_inf_nan=False, strict=True)
    top_k: int = Field(ge=0, strict=True)
    top_p: float = Field(gt=0, le=1, strict=True)
    seed: int | None = Field(default=None, ge=_SEEDS[0], le=_SEEDS[1], strict=True)
    alternatives: int = Field(default=0, ge=0, strict=True)
    answers: int = Field(default=1, ge=1, strict=True)
    windows: int = Field(default=0, ge=0, strict=True)
    thinking_tokens: int | None = Field(default=None, ge=0, strict=True)
    stop: Stops = ()
    response_format: Any = None
    grammar_schema: Any = Field(default=None, description="Internal: the schema for the grammar.")


def checked_options(options: type[Options], keywords: Mapping[str, Any], llm: BaseModel) -> Options:
    """The options of a call: its keywords, and the LLM's fields of their names where one is missing or None.

    ``max_tokens`` stands for ``max_new_tokens`` where the options have that name only. An unknown keyword without
    a value (None, False or empty) is ignored, and so is ``extra_headers``: LlamaIndex's DocumentContextExtractor
    passes headers of one provider to every LLM.

    Args:
        options: The class of the options.
        keywords: Keywords of the call.
        llm: The LLM.

    Raises:
        ConfigurationError: A keyword is unknown, or its value is of the wrong type or out of range.
    """
    given = {name: value for name, value in keywords.items() if value is not None}
    limit_name = "max_new_tokens"
    if "max_new_tokens" in options.model_fields and "max_tokens" in given:
        limit_name, limit = "max_tokens", given.pop("max_tokens")
        if given.setdefault("max_new_tokens", limit) != limit:
            raise ConfigurationError(
                f"max_new_tokens={given['max_new_tokens']!r} and max_tokens={limit!r} are two names of one limit: "
                "pass one of them"
            )
    unknown = [name for name in given if name not in {"extra_headers", *options.model_fields}]
    _refuse([name for name in unknown if _has_value(given[name])], options, type(llm).__name__)
    defaults = {name: getattr(llm, name) for name in options.model_fields if name in type(llm).model_fields}
    known = {name: value for name, value in given.items() if name in options.model_fields}
    try:
        return options.model_validate({**defaults, **known})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])).replace('max_new_tokens', limit_name)}={problem['input']!r}: "
            f"{problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False)
        ]
        raise ConfigurationError("; ".join(problems)) from error


def _has_value(value: Any) -> bool:
    """Whether an option is used: LlamaIndex passes None, False and empty values where it is not."""
    return not (value is None or value is False or (isinstance(value, Sized) and not len(value)))


def _refuse(unknown: Sequence[str], options: type[BaseModel], of: str) -> None:
    if not unknown:
        return
    if "tools" in unknown:
        raise ConfigurationError(
            f"{of} calls no tools: leave tools= out, or use an LLM that has function calls"
        )
    names = [name for name, field in options.model_fields.items() if field.description is None]
    names += ["max_tokens"] if "max_new_tokens" in names else []
    raise ConfigurationError(
        f"{of} has no keyword {', '.join(unknown)}{_nearest(unknown, names)}; "
        f"a call accepts {', '.join(sorted(names))}"
    )


def refuse_unknown_fields(cls: type[BaseModel], names: Iterable[str], also: Iterable[str] = ()) -> None:
    """Raise ConfigurationError for constructor arguments that are no fields of ``cls``, naming the nearest field.

    LlamaIndex's classes ignore them: a misspelt field would silently keep its default.

    Args:
        cls: The class.
        names: Names of the arguments.
        also: Names that the constructor takes beside the fields.
    """
    known = {"class_name", *also, *cls.model_fields}  # class_name is in LlamaIndex's dumps
    known |= {field.alias for field in cls.model_fields.values() if field.alias}
    if unknown := [name for name in names if name not in known]:
        raise ConfigurationError(
            f"{cls.__name__} has no field {', '.join(unknown)}{_nearest(unknown, known)}"
        )


def _nearest(unknown: Sequence[str], known: Iterable[str]) -> str:
    alike = [match for name in unknown for match in difflib.get_close_matches(name, sorted(known), n=1)]
    return f" (did you mean {', '.join(dict.fromkeys(alike))}?)" if alike else ""
