"""With the grammar an untrained model's answer fits at the first attempt, for every shape of schema."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import ipaddress
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pytest
from llama_index.core import PromptTemplate
from pydantic import (
    UUID4,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    EmailStr,
    Field,
    FileUrl,
    HttpUrl,
    NaiveDatetime,
    PostgresDsn,
    RedisDsn,
    RootModel,
    conint,
    conlist,
    constr,
    create_model,
)
from typing_extensions import TypedDict

from llama_index_finetune_structured import LoraLLM
from tests.llms.structured_events import StructuredEvents
from tests.local.random_models import Colour, Level

T = TypeVar("T")


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str] = []


class Tree(BaseModel):
    label: str
    children: list[Tree] = []


class Expression(BaseModel):
    """Two models that hold each other."""

    left: Term
    right: Term | None = None


class Term(BaseModel):
    value: int | Expression


class Box(BaseModel, Generic[T]):
    inside: T


class Row(TypedDict):
    name: str
    count: int


class Point(NamedTuple):
    x: float
    y: float


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    odd: str = Field(alias="an odd / name~")


class Names(RootModel[list[str]]):
    """Not an object, inside one."""


ANNOTATIONS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "finite float": Annotated[float, Field(allow_inf_nan=False)],
    "bool": bool,
    "None": None,
    "any": Any,
    "bytes": bytes,
    "decimal": decimal.Decimal,
    "money": Annotated[decimal.Decimal, Field(ge=0, max_digits=8, decimal_places=2)],
    "date": datetime.date,
    "time": datetime.time,
    "datetime": datetime.datetime,
    "aware": AwareDatetime,
    "naive": NaiveDatetime,
    "timedelta": datetime.timedelta,
    "uuid": uuid.UUID,
    "uuid4": UUID4,
    "url": AnyUrl,
    "web address": HttpUrl,
    "file url": FileUrl,
    "redis": RedisDsn,
    "database": PostgresDsn,
    "email": EmailStr,
    "hostname": Annotated[str, Field(json_schema_extra={"format": "hostname"})],
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "ip": ipaddress.IPv4Address | ipaddress.IPv6Address,
    "network": ipaddress.IPv4Network,
    "interface": ipaddress.IPv4Interface,
    "enum": Colour,
    "int enum": Level,
    "literal": Literal[1, "two", None, True],
    "optional": int | None,
    "union": int | list[float] | Cat | str,
    "discriminated": Annotated[Cat | Dog, Field(discriminator="kind")],
    "optional discriminated": Annotated[Cat | Dog, Field(discriminator="kind")] | None,
    "list": list[int],
    "nested list": list[list[Cat]],
    "sequence": Sequence[str],
    "set": set[Literal["a", "b", "c"]],
    "frozenset": frozenset[int],
    "pair": tuple[int, str],
    "endless tuple": tuple[Cat, ...],
    "empty tuple": tuple[()],
    "dict": dict[str, int],
    "dict of models": dict[str, Cat | None],
    "dict by literal": dict[Literal["a", "b"], int],
    "dict by int": dict[int, str],
    "dict by enum": dict[Colour, list[int]],
    "constr": constr(min_length=3, max_length=5),
    "code": constr(pattern=r"^[A-Z]{3}-\d{2}$"),
    "loose pattern": constr(pattern=r"\d{2}", max_length=20),
    "bounded pattern": Annotated[str, Field(pattern=r"^[a-z]+$", max_length=6)],
    "conint": conint(gt=-3, lt=40),
    "even": conint(multiple_of=2, ge=0, le=1000),
    "positive": Annotated[float, Field(gt=0)],
    "share": Annotated[float, Field(ge=0, le=1)],
    "conlist": conlist(int, min_length=2, max_length=4),
    "generic": Box[list[Colour]],
    "typed dict": Row,
    "named tuple": Point,
    "recursive": Tree,
    "mutually recursive": Expression,
    "alias": Closed,
    "root model": Names,
    "unicode": Literal["naïve", "日本", "\U0001f600"],
}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_every_shape_is_answered_validly_at_the_first_attempt(
    tiny_llama: Path, name: str, structured_events: StructuredEvents
) -> None:
    shape = create_model("Holder", value=(ANNOTATIONS[name], ...), note=(str | None, None))
    # Each list and text is bounded, their sum is not: a dict of lists beside a note of random text takes up to 500.
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=800, temperature=1.5)
    prompt = PromptTemplate("Describe {thing}.")

    async def ask() -> list[Any]:
        calls = (llm.astructured_predict(shape, prompt, thing=str(n)) for n in range(4))
        return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    assert all(isinstance(answer, shape) for answer in answers)
    assert not any(isinstance(a.value, float) and math.isinf(a.value) for a in answers)
    assert sum(retries for retries, _ in structured_events.events) == 0
