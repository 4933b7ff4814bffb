"""Schema evolution: which rows are still valid, which are migrated, which are lost."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from llama_index_finetune_structured.dataset import FinetuneDataset, render


class Old(BaseModel):
    name: str
    length: int | None = None


class New(BaseModel):
    """A song."""

    title: str
    seconds: int = 0


class Wider(BaseModel):
    name: str
    length: int | None = None
    year: int | None = None


DATA = FinetuneDataset.from_pairs(
    [("q0", Old(name="a", length=3)), ("q1", Old(name="b")), ("q2", {"name": "c"})], output_cls=Old
)


def test_a_wider_model_holds_every_row_and_renews_its_schema() -> None:
    found = DATA.revalidate(Wider)
    assert (found.held, found.migrated, found.lost) == ((0, 1, 2), (), ())
    assert {e.schema_name for e in found.examples} == {"Wider"}
    assert found.examples[0].answer_schema == Wider.model_json_schema()
    assert found.examples[0].answer_text() == '{"name":"a","length":3}'
    assert found.examples[0].query == "q0"


def test_rows_are_migrated_given_up_or_lost_with_a_reason() -> None:
    def migrate(old: Any) -> Any:
        if old["name"] == "b":
            return None
        return {"title": old["name"], "seconds": old["length"]}

    found = DATA.revalidate(New, migrate=migrate)
    assert (found.held, found.migrated) == ((), (0,))
    assert [e.answer_text() for e in found.examples] == ['{"title":"a","seconds":3}']
    assert [(lost.row, lost.reason.split(";")[0]) for lost in found.lost] == [
        (1, "title: Field required"),
        (2, "title: Field required"),
    ]
    assert "after migrate: KeyError: 'length'" in found.lost[1].reason
    assert str(found).startswith("0 rows still valid, 1 migrated, 2 lost\n  row 1: title")


def test_without_migration_every_row_that_does_not_hold_is_lost() -> None:
    assert [lost.row for lost in DATA.revalidate(New).lost] == [0, 1, 2]


def test_rows_stay_on_their_transport_with_the_new_schema_written_out() -> None:
    rows = FinetuneDataset([render(DATA[0], "text"), render(DATA[0], "tools")])
    text, tools = rows.revalidate(Wider).examples
    assert "year" in str(text.messages[0].content)
    assert str(text.messages[0].content).count("JSON schema") == 1
    assert tools.tools is not None
    function: Any = tools.tools[0]["function"]
    assert function["name"] == "Wider"
    assert "year" in function["parameters"]["properties"]
    assert text == render(DATA.revalidate(Wider).examples[0], "text")


def test_plain_text_answers_that_hold_become_structured_and_others_are_lost() -> None:
    plain = FinetuneDataset.from_pairs([("q", '{"title": "x"}'), ("q", "prose")])
    found = plain.revalidate(New)
    assert found.examples[0].transport == "json_schema"
    assert [lost.row for lost in found.lost] == [1]
