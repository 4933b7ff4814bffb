"""Text answers are judged by LlamaIndex's own evaluators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, SummaryIndex
from llama_index.core.embeddings import BaseEmbedding

from llama_index_finetune_structured import Example, FieldRule, Message, compare
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.evaluation import compare_texts, embedding_similarity
from llama_index_finetune_structured.evaluation.texts import read_judgement

from .systems import ScriptedLLM

QUIET: dict[str, Any] = {"show_progress": False}


class Letters(BaseEmbedding):
    """Counts of the letters a to z: equal texts are equal, others are not."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [1.0 + text.lower().count(chr(97 + at)) for at in range(26)]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def text_example(question: str, answer: str) -> Example:
    return Example(
        messages=(Message(role="user", content=question),),
        answer=Message(role="assistant", content=answer),
        query=question,
    )


DATA = [text_example("Where is Berlin?", "In Germany."), text_example("Where is Oslo?", "In Norway.")]
JUDGE = {"## Generated Answer\nIn ": "5.0\nRight.", "## Generated Answer\nNo": "2"}


def test_texts_are_judged_and_tabled_as_the_reference_does(tmp_path: Path) -> None:
    llm = ScriptedLLM(script={"Berlin": "In Germany.", "Oslo": "No idea at all."})
    index = SummaryIndex.from_documents([Document(text="Oslo is in Norway.")])
    engine = index.as_query_engine(llm=ScriptedLLM(script={"Berlin?": "In Germany.", "Oslo?": "In Norway."}))
    judge = ScriptedLLM(script=JUDGE)
    found = compare_texts({"base": llm, "rag": engine}, DATA, judge=judge, embed_model=Letters(), **QUIET)
    assert found.systems["base"].means["correctness"] == pytest.approx(3.5)
    assert found.systems["rag"].means["correctness"] == 5
    similarity = [found.systems[name].means["semantic_similarity"] for name in ("base", "rag")]
    assert similarity[0] is not None
    assert similarity[1] == pytest.approx(1)
    assert similarity[0] < 1
    assert found.rows[0].answers["rag"].sources
    assert found.table().headings[:3] == ("names", "correctness", "semantic_similarity")
    written = json.loads(found.to_json(tmp_path / "texts.json").read_text())
    assert written["systems"]["rag"]["means"]["correctness"] == 5


def test_no_answer_is_worth_the_least_and_an_unjudged_one_nothing() -> None:
    systems: dict[str, Any] = {
        "silent": lambda _: "",
        "broken": ScriptedLLM(script={"Where": OSError("down")}),
        "odd": lambda _: "Odd",
    }
    judge = ScriptedLLM(script={"Generated Answer\nOdd": "I would rather not say."})
    found = compare_texts(systems, DATA, judge=judge, embed_model=MockEmbedding(4), **QUIET).systems
    for name in ("silent", "broken"):
        assert found[name].means == {"correctness": 1.0, "semantic_similarity": 0.0}
        assert found[name].answered == 0
    assert found["odd"].means["correctness"] is None
    assert found["odd"].unjudged == {"correctness": 2, "semantic_similarity": 0}


def test_failing_judge_does_not_end_the_run() -> None:
    judge = ScriptedLLM(script={"Generated": OSError("judge on fire")})
    found = compare_texts({"it": lambda _: "x"}, DATA, judge=judge, **QUIET)
    assert found.systems["it"].unjudged == {"correctness": 2}
    assert "judge on fire" in found.rows[0].answers["it"].feedback["correctness"]


def test_nothing_to_judge_with_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="pass judge=llm"):
        compare_texts({"it": lambda _: "x"}, DATA)
    with pytest.raises(DatasetError, match="nothing to compare"):
        compare_texts({"it": lambda _: "x"}, [], judge=ScriptedLLM(script={}))


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("4.0\nWell done.", 4.0),
        ("4.5", 4.5),
        ("Score: 3", 3.0),
        ("**2.0**: no", 2.0),
        ("5/5", 5.0),
        ("", None),
        ("ten", None),
        ("10", None),
        ("7.5", None),
        ("5.5", None),
    ],
)
def test_judgement_is_read_from_one_line_or_many(reply: str, score: Any) -> None:
    assert read_judgement(reply)[0] == score


def test_free_text_fields_may_be_compared_by_their_embeddings() -> None:
    data = [text_example(word, json.dumps({"desc": word})) for word in ("listen", "stone")]
    answers = {"listen": {"desc": "silent"}, "stone": {"desc": "zzzzzzzz"}}
    rules = {"desc": FieldRule(embedding_similarity(Letters()), correct_from=0.95)}
    systems = {"it": lambda row: answers[str(row.query)]}
    found = compare(systems, data, fields=rules, show_progress=False)
    assert [row.answers["it"].exact for row in found.rows] == [True, False]
    assert 0.5 < found.systems["it"].field_score < 1
