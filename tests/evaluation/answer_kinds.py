"""Classes of answers of many kinds, each with texts that a model may write: valid ones, and ones it must refuse."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import (
    AliasChoices,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    computed_field,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from llama_index_finetune_structured import AsWritten, Money


class Inner(BaseModel):
    name: str
    year: int = 2000


class Nested(BaseModel):
    inner: Inner
    more: list[Inner] = []


class Limited(BaseModel):
    amount: Decimal = Field(gt=0, max_digits=6, decimal_places=2)


class Exact(BaseModel):
    amount: Decimal


class Multiple(BaseModel):
    price: float = Field(multiple_of=0.01)


class Choice(BaseModel):
    currency: Literal["EUR", "USD"]
    rate: Literal[0, 7, 19] = 19


class Payment(enum.Enum):
    CASH = "cash"
    CARD = "card"


class WithEnum(BaseModel):
    payment: Payment | None = None


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class WithIntEnum(BaseModel):
    size: Size


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Pet(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Loose(BaseModel):
    value: int | str


class SmartUnion(BaseModel):
    value: Inner | list[int] | None


class Optionals(BaseModel):
    a: str | None = None
    b: int | None = None


class Dated(BaseModel):
    day: dt.date
    at: dt.datetime | None = None


class Timed(BaseModel):
    time: dt.time
    span: dt.timedelta


class Few(BaseModel):
    tags: list[Annotated[str, StringConstraints(min_length=2)]] = Field(min_length=1, max_length=3)


class Unique(BaseModel):
    tags: set[str]


class Pair(BaseModel):
    pair: tuple[int, str]


class Upper(BaseModel):
    code: str

    @field_validator("code")
    @classmethod
    def _upper(cls, value: str) -> str:
        return value.strip().upper()


class Twice(BaseModel):
    """A validator that does not give the same value twice."""

    total: int

    @field_validator("total")
    @classmethod
    def _twice(cls, value: int) -> int:
        return value * 2


class Euro(BaseModel):
    currency: str

    @field_validator("currency", mode="before")
    @classmethod
    def _code(cls, value: Any) -> Any:
        return {"€": "EUR"}.get(value, value)


class Sum(BaseModel):
    items: list[int]
    total: int

    @model_validator(mode="after")
    def _adds_up(self) -> Sum:
        if sum(self.items) != self.total:
            raise ValueError("does not add up")
        return self


class Aliased(BaseModel):
    any_of: str = Field(alias="anyOf")


class Choices(BaseModel):
    city: str = Field(validation_alias=AliasChoices("city", "town"))


class WrittenOtherwise(BaseModel):
    name: str = Field(serialization_alias="Name")


class Computed(BaseModel):
    net: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gross(self) -> int:
        return self.net * 2


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    number: int
    day: dt.date


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: int


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: int


class Named(BaseModel):
    name: str = Field(pattern=r"^\p{Lu}\p{L}*$")


class Identified(BaseModel):
    id: uuid.UUID
    url: AnyUrl


class Mapped(BaseModel):
    counts: dict[str, int]


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Rooted(RootModel[list[Inner]]):
    pass


class Maybe(RootModel[Inner | None]):
    pass


class Big(BaseModel):
    number: int
    share: float = Field(ge=0, le=1, default=0.5)


class Place(TypedDict, total=False):
    city: str
    zip: int


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclasses.dataclass
class Span:
    first: int
    last: int = 9


class OtherClasses(BaseModel):
    """What is no model, inside of one."""

    place: Place
    span: Span
    point: Point | None = None


Content = TypeVar("Content")


class Box(BaseModel, Generic[Content]):
    """A box of anything."""

    content: Content
    label: str = "box"


class Boxes(BaseModel):
    numbers: Box[int]
    texts: list[Box[str]] = []


class Written(BaseModel):
    """A bill, as the text has it."""

    net: Annotated[Decimal, AsWritten("de")]
    total: Annotated[Money, AsWritten("de")]
    due: Annotated[dt.date, AsWritten("de")] | None = None
    sent: Annotated[dt.datetime, AsWritten("de")] | None = None


class Swapped(BaseModel):
    low: int
    high: int

    @model_validator(mode="before")
    @classmethod
    def _swapped(cls, value: Any) -> Any:
        if (
            isinstance(value, dict)
            and isinstance(value.get("low"), int)
            and isinstance(value.get("high"), int)
        ):
            low, high = sorted((value["low"], value["high"]))
            return {**value, "low": low, "high": high}
        return value


class Flags(BaseModel):
    done: bool
    kinds: list[Payment] = []
    mood: Literal[True, "maybe"] | None = None


class Leaf(BaseModel):
    tag: Literal["leaf"]
    value: int


class Branch(BaseModel):
    tag: Literal["branch"]
    left: Annotated[Leaf | Branch, Field(discriminator="tag")]


class Tagged(RootModel[Annotated[Leaf | Branch, Field(discriminator="tag")]]):
    """A leaf or a branch."""


class Raising(BaseModel):
    """A validator that raises what Pydantic does not expect."""

    number: int

    @field_validator("number")
    @classmethod
    def _inverted(cls, value: int) -> int:
        return 60 // value


KINDS: list[tuple[type[BaseModel], list[str], list[str]]] = [
    (Nested, ['{"inner":{"name":"a"},"more":[{"name":"b","year":1}]}'], ['{"inner":{"year":1}}', "{}"]),
    (
        Limited,
        ['{"amount":"1.50"}', '{"amount":2}', '{"amount":1.5}'],
        ['{"amount":"0"}', '{"amount":"1.834"}'],
    ),
    (
        Exact,
        ['{"amount":12345678901234567890.123}', '{"amount":"1E+2"}', '{"amount":0.1}'],
        ['{"amount":"1.834,40"}', '{"amount":NaN}', '{"amount":"NaN"}'],
    ),
    (Multiple, ['{"price":0.29}', '{"price":1}'], ['{"price":0.295}']),
    (
        Choice,
        ['{"currency":"EUR"}', '{"currency":"USD","rate":7}'],
        ['{"currency":"eur"}', '{"currency":"EUR","rate":8}'],
    ),
    (WithEnum, ['{"payment":"cash"}', "{}"], ['{"payment":"CASH"}']),
    (WithIntEnum, ['{"size":1}'], ['{"size":3}']),
    (Pet, ['{"pet":{"kind":"cat","lives":9}}'], ['{"pet":{"kind":"dog","lives":9}}']),
    (Loose, ['{"value":1}', '{"value":"1"}'], ['{"value":[1]}']),
    (SmartUnion, ['{"value":{"name":"a"}}', '{"value":[1]}', '{"value":null}'], ['{"value":"a"}']),
    (Optionals, ["{}", '{"a":null,"b":1}', '{"a":"x"}'], ['{"b":"x"}']),
    (
        Dated,
        ['{"day":"2025-01-31"}', '{"day":"2025-01-31","at":"2025-01-31T10:00:00Z"}'],
        ['{"day":"31.01.2025"}'],
    ),
    (Timed, ['{"time":"10:00","span":"PT1H"}'], ['{"time":"25:00","span":"PT1H"}']),
    (Few, ['{"tags":["ab"]}'], ['{"tags":[]}', '{"tags":["a"]}', '{"tags":["ab","ab","ab","ab"]}']),
    (Unique, ['{"tags":["b","a","b"]}'], ['{"tags":"a"}']),
    (Pair, ['{"pair":[1,"a"]}'], ['{"pair":[1]}', '{"pair":["a",1]}']),
    (Upper, ['{"code":" ab "}', '{"code":"AB"}'], ['{"code":1}']),
    (Twice, ['{"total":2}'], ['{"total":"x"}']),
    (Euro, ['{"currency":"€"}', '{"currency":"EUR"}'], ['{"currency":null}']),
    (Sum, ['{"items":[1,2],"total":3}'], ['{"items":[1,2],"total":4}']),
    (Aliased, ['{"anyOf":"x"}'], ['{"any_of":"x"}']),
    (Choices, ['{"city":"Bonn"}', '{"town":"Bonn"}'], ["{}"]),
    (WrittenOtherwise, ['{"name":"a"}'], ['{"Name":"a"}']),
    (Computed, ['{"net":1}', '{"net":1,"gross":5}'], ['{"gross":2}']),
    (Strict, ['{"number":1,"day":"2025-01-31"}'], ['{"number":"1","day":"2025-01-31"}']),
    (Closed, ['{"a":1}'], ['{"a":1,"b":2}']),
    (Open, ['{"a":1,"b":[2]}'], ['{"b":2}']),
    (Named, ['{"name":"Ärzte"}'], ['{"name":"ärzte"}']),
    (
        Identified,
        ['{"id":"12345678123456781234567812345678","url":"https://Example.org"}'],
        ['{"id":"1","url":"https://example.org"}'],
    ),
    (Mapped, ['{"counts":{"a":1,"b":"2"}}'], ['{"counts":{"a":"x"}}']),
    (Tree, ['{"value":1,"children":[{"value":2}]}'], ['{"value":1,"children":[{}]}']),
    (Rooted, ['[{"name":"a"}]', "[]"], ['[{"year":1}]']),
    (Maybe, ['{"name":"a"}', "null"], ["[]"]),
    (
        Big,
        ['{"number":123456789012345678901234567890,"share":1}'],
        ['{"number":1.5}', '{"number":1,"share":2}'],
    ),
    (
        OtherClasses,
        [
            '{"place":{"city":"Bonn"},"span":{"first":1},"point":[1,2]}',
            '{"place":{},"span":{"first":1,"last":2}}',
        ],
        ['{"place":{"zip":"x"},"span":{"first":1}}', '{"place":{},"span":{}}'],
    ),
    (
        Boxes,
        ['{"numbers":{"content":1},"texts":[{"content":"a"}]}', '{"numbers":{"content":"2","label":"b"}}'],
        ['{"numbers":{"content":"x"}}'],
    ),
    (
        Written,
        [
            '{"net":"1.834,40","total":{"amount":"2.182,94","currency":"€"},"due":"3. April 2026"}',
            '{"net":"1.834","total":"12,50 EUR","sent":"3.4.2026, 15:30 Uhr"}',
        ],
        ['{"net":"free","total":"1,00"}', '{"net":"1,00","total":{"amount":"1,00"},"due":"31.02.2026"}'],
    ),
    (Raising, ['{"number":2}'], ['{"number":0}', '{"number":"x"}']),
    (Swapped, ['{"low":2,"high":1}', '{"low":1,"high":2}'], ['{"low":1}']),
    (
        Flags,
        ['{"done":true,"kinds":["cash"],"mood":"maybe"}', '{"done":false,"mood":true}'],
        ['{"done":"perhaps"}', '{"done":true,"kinds":["gold"]}'],
    ),
    (
        Tagged,
        ['{"tag":"leaf","value":1}', '{"tag":"branch","left":{"tag":"leaf","value":1}}'],
        ['{"tag":"branch","left":1}', '{"tag":"root"}'],
    ),
]
NO_ANSWERS = ["", "None", "Empty Response", "no JSON", '{"a":']


def texts_of(valid: list[str], invalid: list[str]) -> Iterator[tuple[str, bool]]:
    """All texts of a class, also inside of other text, with whether they are valid answers."""
    for text in valid:
        yield text, True
        if text.startswith("{"):
            yield f"Here it is:\n```json\n{text}\n```", True
    for text in [*invalid, *NO_ANSWERS]:
        yield text, False
