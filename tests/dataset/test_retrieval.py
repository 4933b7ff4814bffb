"""Retrieval-augmented rows: joined and separate context, RAFT's shares, and serving the trained prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
from pydantic import BaseModel

from llama_index_finetune_structured.dataset import (
    FinetuneDataset,
    RetrievalAugmentedDatasetBuilder,
    ServingRecipe,
    render,
)
from llama_index_finetune_structured.dataset.pairs import read_pairs
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.example import Example, Source
from tests.dataset.loopback_teacher import Teacher

TEMPLATE = "Context:\n{context_str}\nQuestion: {query_str}"


class Answer(BaseModel):
    """What is known."""

    colour: str


class Plain(BaseModel):
    size: int


def chunk(name: str, document: str, **metadata: Any) -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return TextNode(id_=name, text=f"text of {name}", relationships=source, metadata=metadata)


class FixedRetriever(BaseRetriever):
    """Finds the same chunks for every question, best first."""

    def __init__(self, *nodes: TextNode) -> None:
        self.nodes = [NodeWithScore(node=n, score=1 / (i + 1)) for i, n in enumerate(nodes)]
        self.asked: list[str] = []
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.asked.append(query_bundle.query_str)
        return list(self.nodes)


THREE = (chunk("a1", "A"), chunk("b1", "B"), chunk("a2", "A"))
PAIRS = [(f"question {n}", f"answer {n}") for n in range(40)]


def build(pairs: Any = PAIRS, retriever: BaseRetriever | None = None, **kwargs: Any) -> list[Example]:
    used = FixedRetriever(*THREE) if retriever is None else retriever
    builder = RetrievalAugmentedDatasetBuilder(used, qa_template=TEMPLATE, **kwargs)
    return list(builder.build(pairs, show_progress=False))


def prompts(examples: list[Example]) -> list[Any]:
    return [e.messages[-1].content for e in examples]


def test_joined_mode_makes_one_row_a_pair_with_all_chunks() -> None:
    rows = build(PAIRS[:2])
    assert prompts(rows) == [
        f"Context:\ntext of a1\n\ntext of b1\n\ntext of a2\nQuestion: question {n}" for n in range(2)
    ]
    assert [r.answer_text() for r in rows] == ["answer 0", "answer 1"]
    assert rows[0].query == "question 0"
    assert rows[0].document_id == "A"
    assert rows[0].sources[1] == Source(node_id="b1", score=0.5, document_id="B")


def test_separate_mode_makes_a_row_for_each_chunk() -> None:
    rows = build(PAIRS[:2], separate_context=True)
    assert prompts(rows) == [
        f"Context:\ntext of {name}\nQuestion: question {n}" for n in range(2) for name in ("a1", "b1", "a2")
    ]
    assert [[s.node_id for s in r.sources] for r in rows[:3]] == [["a1"], ["b1"], ["a2"]]
    assert {r.answer_text() for r in rows[:3]} == {"answer 0"}


def test_default_template_is_the_reference_prompt() -> None:
    rows = RetrievalAugmentedDatasetBuilder(FixedRetriever(THREE[0])).build(
        [("q?", "a")], show_progress=False
    )
    assert rows[0].messages[0].content == (
        "Context information is below.\n---------------------\ntext of a1\n---------------------\n"
        "Given the context information and not prior knowledge, answer the query.\nQuery: q?\nAnswer: "
    )


def test_share_without_context_one_bakes_knowledge_in_without_a_retriever() -> None:
    builder = RetrievalAugmentedDatasetBuilder(None, share_without_context=1.0, system_prompt="About Llamas.")
    row = builder.build([("q?", "a")], show_progress=False)[0]
    assert [(m.role, m.content) for m in row.messages] == [("system", "About Llamas."), ("user", "q?")]
    assert row.sources == ()


def test_shares_are_met_and_abstention_replaces_the_answer_only_there() -> None:
    pairs = [(f"question {n}", f"answer {n}") for n in range(1000)]
    rows = build(pairs, share_without_support=0.3, share_without_context=0.2, abstention="I do not know.")
    kinds = {kind: [r for r in rows if r.metadata["context"] == kind] for kind in
             ("with_support", "without_support", "without_context")}  # fmt: skip
    assert len(kinds["without_support"]) == pytest.approx(300, abs=50)
    assert len(kinds["without_context"]) == pytest.approx(200, abs=45)
    assert sum(map(len, kinds.values())) == 1000
    assert {r.answer_text() for r in kinds["without_support"]} == {"I do not know."}
    assert {tuple(s.node_id for s in r.sources) for r in kinds["without_support"]} == {("b1",)}
    assert all(r.answer_text().startswith("answer") for r in kinds["with_support"] + kinds["without_context"])
    assert all(r.messages[-1].content == r.query for r in kinds["without_context"])


def test_rows_without_support_keep_the_answer_when_no_abstention_is_given() -> None:
    rows = build(share_without_support=1.0)
    assert [r.answer_text() for r in rows] == [answer for _, answer in PAIRS]
    assert all("a1" not in str(p) and "a2" not in str(p) for p in prompts(rows))


def test_distractors_are_the_retrievers_best_chunks_that_do_not_support() -> None:
    retriever = FixedRetriever(chunk("b1", "B"), chunk("a1", "A"), chunk("c1", "C"), chunk("d1", "D"))
    pair = {"query": "q", "response": "r", "node_id": "a1"}
    rows = build([pair], retriever, distractors=2)
    assert [s.node_id for s in rows[0].sources] == ["b1", "a1", "c1"]
    assert rows[0].document_id == "A"
    without = build([pair], retriever, distractors=2, share_without_support=1.0)
    assert [s.node_id for s in without[0].sources] == ["b1", "c1"]


MISSED = {"query": "q", "response": "r", "node_id": "elsewhere"}
MISSED_COUNT = "questions whose supporting chunk was not retrieved; raise the retriever's top_k"


def test_a_support_that_was_not_retrieved_is_counted_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    builder = RetrievalAugmentedDatasetBuilder(FixedRetriever(*THREE))
    rows = builder.build([MISSED, {"query": "p", "response": "r", "node_id": "a1"}], show_progress=False)
    assert [row.query for row in rows] == ["p"]
    assert builder.counts == {"rows with_support": 1, MISSED_COUNT: 1}
    assert f"{MISSED_COUNT}: 1" in caplog.text
    caplog.clear()
    builder.build([{"query": "q", "response": "r", "node_id": "a1"}], show_progress=False)
    assert caplog.text == ""


def test_a_missed_support_can_be_kept_or_taught_as_an_abstention(caplog: pytest.LogCaptureFixture) -> None:
    (kept,) = build([MISSED], retrieval_misses="keep")
    assert (kept.metadata["context"], kept.answer_text()) == ("support_missed", "r")
    assert "1 rows contain no chunk that supports their answer, which trains hallucination" in caplog.text
    (taught,) = build([MISSED], retrieval_misses="abstain", abstention="I do not know.")
    assert (taught.metadata["context"], taught.answer_text()) == ("support_missed", "I do not know.")
    assert taught.metadata["answer_as_sent"] == "r"


ABSTAIN: dict[str, Any] = {"retrieval_misses": "abstain", "abstention": "I do not know."}
NAMED = {"query": "q", "response": "r"}


@pytest.mark.parametrize("support", [{"node_id": "a1"}, {"document_id": "A"}])
def test_a_row_with_only_a_distractor_never_teaches_the_answer_from_memory(support: dict[str, str]) -> None:
    pair, own = NAMED | support, ["a1"] if "node_id" in support else ["a1", "a2"]
    rows = build([pair], separate_context=True)
    assert [source.node_id for row in rows for source in row.sources] == own
    rows = build([pair], separate_context=True, **ABSTAIN)
    assert {row.sources[0].node_id: row.answer_text() for row in rows} == {
        name: "r" if name in own else "I do not know." for name in ("a1", "b1", "a2")
    }
    kept = build([pair], separate_context=True, retrieval_misses="keep")
    assert [row.answer_text() for row in kept] == ["r", "r", "r"]
    assert {row.metadata["context"] for row in kept if row.sources[0].node_id not in own} == {"distractor"}


def test_rows_of_distractors_that_are_left_out_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    builder = RetrievalAugmentedDatasetBuilder(FixedRetriever(*THREE), separate_context=True)
    builder.build([NAMED | {"node_id": "a1"}], show_progress=False)
    left_out = "rows whose only chunk does not support the answer, left out; retrieval_misses decides"
    assert builder.counts == {"rows with_support": 1, left_out: 2}
    build([NAMED | {"node_id": "a1"}], separate_context=True, retrieval_misses="keep")
    assert "2 rows contain no chunk that supports their answer" in caplog.text


def test_a_supporting_document_that_was_not_retrieved_is_missed_too() -> None:
    pairs = [{"query": name, "response": "r", "document_id": name} for name in "ABC"]
    assert [row.query for row in build(pairs)] == ["A", "B"]


def test_what_could_not_be_built_is_counted_with_a_fix(caplog: pytest.LogCaptureFixture) -> None:
    builder = RetrievalAugmentedDatasetBuilder(FixedRetriever(), distractors=1)
    assert len(builder.build(PAIRS[:3], show_progress=False)) == 0
    assert builder.counts["questions skipped: nothing retrieved"] == 3
    assert "questions skipped: nothing retrieved: 3" in caplog.text
    alone = RetrievalAugmentedDatasetBuilder(FixedRetriever(THREE[0]), share_without_support=1.0)
    row = alone.build(PAIRS[:1], show_progress=False)[0]
    assert row.metadata["context"] == "with_support"
    assert [count for what, count in alone.counts.items() if "could not be removed" in what] == [1]


def test_the_same_pairs_give_the_same_rows_in_any_order_and_another_seed_others() -> None:
    shuffled = random.Random(1).sample(PAIRS, len(PAIRS))
    options: dict[str, Any] = {"share_without_support": 0.5, "abstention": "no"}
    one, other = build(PAIRS, **options), build(shuffled, **options)
    assert [e.to_json() for e in one] == sorted((e.to_json() for e in other), key=lambda t: int(_number(t)))
    assert {e.to_json() for e in one} != {e.to_json() for e in build(PAIRS, seed=1, **options)}


def _number(line: str) -> str:
    return str(json.loads(line)["query"]).rsplit(" ", maxsplit=1)[-1]


async def test_async_builds_the_same_rows_in_the_same_order() -> None:
    builder = RetrievalAugmentedDatasetBuilder(FixedRetriever(*THREE), separate_context=True)
    rows = await builder.abuild(PAIRS, concurrency=7, show_progress=False)
    assert list(rows) == list(builder.build(PAIRS, show_progress=False))
    assert builder.counts == {"rows with_support": 120}


async def test_a_failing_retriever_stops_the_async_build_and_leaves_no_task() -> None:
    class Failing(FixedRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            raise ConnectionError("index is gone")

    with pytest.raises(ConnectionError, match="index is gone"):
        await RetrievalAugmentedDatasetBuilder(Failing()).abuild(PAIRS, show_progress=False)


def test_writing_streams_the_same_rows_into_a_file(tmp_path: Path) -> None:
    builder = RetrievalAugmentedDatasetBuilder(FixedRetriever(*THREE))
    path = builder.write(PAIRS, tmp_path / "rows.jsonl", show_progress=False)
    assert list(FinetuneDataset.load(path)) == list(builder.build(PAIRS, show_progress=False))
    openai = builder.write(PAIRS, tmp_path / "train.jsonl", "openai", show_progress=False)
    assert len(openai.read_text().splitlines()) == 40


def test_every_source_of_pairs_gives_the_same_rows(tmp_path: Path) -> None:
    from llama_index.core.evaluation import QueryResponseDataset

    with pytest.warns(DeprecationWarning, match="deprecated class QueryResponseDataset"):
        dataset = QueryResponseDataset.from_qr_pairs(PAIRS)
    dataset.save_json(str(tmp_path / "qa.json"))
    (tmp_path / "one_line.json").write_text(json.dumps(dataset.model_dump()))
    lines = [json.dumps({"query": q, "response": r}) for q, r in PAIRS]
    (tmp_path / "qa.jsonl").write_text("\n".join(lines))
    FinetuneDataset.from_pairs(PAIRS).save(tmp_path / "examples.jsonl")
    expected = build(PAIRS)
    for source in ("qa.json", "one_line.json", "qa.jsonl", "examples.jsonl"):
        assert build(tmp_path / source) == expected
    assert build(dataset) == build(str(tmp_path / "qa.jsonl")) == expected
    assert build(FinetuneDataset.from_pairs(PAIRS)) == build(list(map(list, PAIRS))) == expected


def test_captured_examples_are_rebuilt_from_the_question_before_retrieval() -> None:
    captured = FinetuneDataset.from_pairs([("q", Answer(colour="red"))])[0].model_copy(
        update={"sources": (Source(node_id="b1", document_id="B"),)}
    )
    row = build([captured], distractors=1)[0]
    assert row.answer_schema == Answer.model_json_schema()
    assert (row.schema_name, row.answer_text(), row.document_id) == ("Answer", '{"colour":"red"}', "B")
    assert [s.node_id for s in row.sources] == ["a1", "b1"]


def test_structured_answers_are_validated_and_carry_their_schema() -> None:
    rows = build([("q", {"colour": "red"}), ("q", Answer(colour="blue"))], output_cls=Answer)
    assert [(r.answer_text(), r.transport, r.schema_name) for r in rows] == [
        ('{"colour":"red"}', "json_schema", "Answer"),
        ('{"colour":"blue"}', "json_schema", "Answer"),
    ]
    assert build([("q", Answer(colour="blue"))])[0].answer_schema == Answer.model_json_schema()
    with pytest.raises(DatasetError, match=r"the answer to 'which\?': colour: Field required"):
        build([("which?", {"size": 1})], output_cls=Answer)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ([], "no .* pairs were given"),
        ([("q", "a"), ("only",)], r"pairs\[1\]: expected \(question, answer\)"),
        ([("  ", "a")], r"pairs\[0\]: the question is '  '"),
        ([{"prompt": "x"}], r"expected 'query' and 'response', found prompt"),
        ([{"query": "q", "response": "r", "document_id": 7}], r"pairs\[0\]: document_id is 7, expected text"),
        ([{"query": "q", "response": "r", "node_id": ["n"]}], r"pairs\[0\]: node_id is \['n'\], expected"),
        ([FinetuneDataset.from_pairs([("q", "a")])[0].model_copy(update={"query": None})], "no 'query'"),
    ],
)
def test_pairs_that_do_not_fit_are_named(source: Any, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason):
        build(source)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"query": "q", "response": "r"}\n{"query": 1, "response": "r"}', r"pairs:2: the question is 1"),
        ('{"query": "q", "response": "r"}\n{broken', r"pairs:2: not valid JSON"),
        ('{"query": "q", "response": "r"', r"pairs:1: not valid JSON"),
        ('{\n "queries": {"0": "q"}, "responses": {}}', r"pairs: query '0' has no response"),
        ("neither", r"pairs: neither JSONL nor a QueryResponseDataset"),
        ("", r"pairs: neither JSONL nor"),
    ],
)
def test_pair_files_that_do_not_fit_are_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "pairs").write_text(text)
    with pytest.raises(DatasetError, match=reason):
        build(tmp_path / "pairs")


@pytest.mark.parametrize(
    "text", ['{"query": "q", "response": "r"}', '{\n"queries": {"0": "q"}, "responses": {"0": "r"}}']
)
def test_a_byte_order_mark_and_blank_lines_do_not_make_pairs_unreadable(tmp_path: Path, text: str) -> None:
    for written in (text, f"\n{text}", f"{text}\n\n"):
        (tmp_path / "pairs").write_text(written, encoding="utf-8-sig")
        assert [(pair.query, pair.answer) for pair in read_pairs(tmp_path / "pairs")] == [("q", "r")]


def test_settings_that_do_not_fit_are_refused() -> None:
    retriever = FixedRetriever(*THREE)
    for wrong in (
        {"share_without_support": 0.7, "share_without_context": 0.4},
        {"share_without_support": -0.1},
        {"distractors": -1},
        {"qa_template": "no places"},
    ):
        with pytest.raises(ConfigurationError):
            RetrievalAugmentedDatasetBuilder(retriever, **wrong)
    with pytest.raises(ConfigurationError, match="give a retriever"):
        RetrievalAugmentedDatasetBuilder(None)
    with pytest.raises(ConfigurationError, match=r"abstention: .*JSON"):
        RetrievalAugmentedDatasetBuilder(retriever, output_cls=Answer, abstention="I do not know.")


def reply(request: dict[str, Any], answer: str) -> dict[str, Any]:
    """The answer over the transport of the request."""
    if "tools" not in request:
        return {"content": answer}
    name = request["tools"][0]["function"]["name"]
    return {"tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": answer}}]}


def trained_and_served(
    system_prompt: str | None, output_cls: type[BaseModel] | None, separate: bool, **llm_kwargs: Any
) -> tuple[Example, dict[str, Any]]:
    """The trained example and the request that a query engine with its recipe really sends."""
    answers: dict[Any, str] = {Answer: '{"colour":"red"}', Plain: '{"size":1}', None: "red"}
    retriever = FixedRetriever(chunk("a1", "A", title="On {colours}"), chunk("b1", "B"))
    template = PromptTemplate(TEMPLATE)
    builder = RetrievalAugmentedDatasetBuilder(
        retriever,
        qa_template=template,
        system_prompt=system_prompt,
        output_cls=output_cls,
        separate_context=separate,
    )
    data = builder.build([("Which {query_str}?", answers[output_cls])], show_progress=False)
    with Teacher(lambda request: reply(request, answers[output_cls])).running() as teacher:
        recipe = ServingRecipe.of(data)
        llm = teacher.llm(**{**recipe.llm_kwargs(), **llm_kwargs})
        engine = RetrieverQueryEngine.from_args(retriever, llm=llm, **recipe.query_engine_kwargs(output_cls))
        engine.query("Which {query_str}?")
        return data[0], teacher.requests[0]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("system_prompt", [None, "About colours."])
def test_a_query_engine_with_the_recipe_sends_the_trained_messages(
    system_prompt: str | None, separate: bool
) -> None:
    example, request = trained_and_served(system_prompt, None, separate)
    assert request["messages"] == [m.wire() for m in example.messages]
    assert "title: On {colours}\n\ntext of a1" in request["messages"][-1]["content"]


@pytest.mark.parametrize("output_cls", [Answer, Plain])
@pytest.mark.parametrize("system_prompt", [None, "About colours."])
def test_structured_serving_over_json_schema_sends_the_trained_messages(
    system_prompt: str | None, output_cls: type[BaseModel]
) -> None:
    example, request = trained_and_served(system_prompt, output_cls, False)
    assert request["messages"] == [m.wire() for m in example.messages]
    assert request["response_format"]["json_schema"]["name"] == example.schema_name


@pytest.mark.parametrize("output_cls", [Answer, Plain])
@pytest.mark.parametrize("system_prompt", [None, "About colours."])
def test_structured_serving_over_tools_sends_the_rendered_example(
    system_prompt: str | None, output_cls: type[BaseModel]
) -> None:
    example, request = trained_and_served(system_prompt, output_cls, False, model="gpt-4")
    rendered = render(example, "tools")
    assert request["messages"] == [m.wire() for m in rendered.messages]
    for tool in request["tools"]:
        tool["function"].pop("strict", None)
    assert request["tools"] == rendered.tools
    assert (request["tool_choice"], request["parallel_tool_calls"]) == (
        rendered.tool_choice,
        rendered.parallel_tool_calls,
    )


def test_a_recipe_without_context_serves_the_question_alone() -> None:
    builder = RetrievalAugmentedDatasetBuilder(None, share_without_context=1.0, system_prompt="Llamas.")
    data = builder.build([("q?", "a")], show_progress=False)
    recipe = ServingRecipe.of(data)
    with Teacher(lambda _: {"content": "a"}).running() as teacher:
        engine = RetrieverQueryEngine.from_args(
            FixedRetriever(*THREE), llm=teacher.llm(), **recipe.query_engine_kwargs()
        )
        engine.query("q?")
    assert teacher.requests[0]["messages"] == [m.wire() for m in data[0].messages]
    with pytest.raises(ConfigurationError, match="structured_predict"):
        recipe.query_engine_kwargs(Answer)


def test_the_recipe_travels_with_the_data_and_mixed_recipes_are_refused(tmp_path: Path) -> None:
    one, other = build(PAIRS[:1]), build(PAIRS[:1], system_prompt="s")
    loaded = FinetuneDataset.load(FinetuneDataset(other).save(tmp_path / "d.jsonl"))
    assert ServingRecipe.of(loaded) == ServingRecipe(qa_template=TEMPLATE, system_prompt="s")
    for mixed in ([*one, *other], FinetuneDataset.from_pairs([("q", "a")]), []):
        with pytest.raises(DatasetError, match="recipe"):
            ServingRecipe.of(mixed)
