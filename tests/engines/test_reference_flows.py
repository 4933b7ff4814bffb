"""The flows of the reference's notebooks, with our import lines and loopback servers.

Differences are marked: no files from the net, and ``text_mode`` for the text-mode teacher.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.evaluation import DatasetGenerator
from llama_index.core.node_parser import SimpleNodeParser
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.schema import MetadataMode
from llama_index.llms.openai import OpenAI
from openai import BadRequestError
from pydantic import BaseModel, Field

from llama_index_finetune_structured import (
    GradientAIFineTuningHandler,
    GradientBaseModelLLM,
    GradientFinetuneEngine,
    OpenAIFinetuneEngine,
    OpenAIFineTuningHandler,
    OpenAIPydanticProgram,
    text_mode,
)
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.llms import ServiceContext
from tests.fakes.gradient_server import GradientServer
from tests.fakes.openai_server import OpenAIServer

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # the notebooks' .json(), DatasetGenerator


class Song(BaseModel):
    """Data model for a song."""

    title: str
    length_seconds: int


class Album(BaseModel):
    """Data model for an album."""

    name: str
    artist: str
    songs: list[Song]


class Citation(BaseModel):
    """Citation class."""

    author: str = Field(..., description="Inferred first author (usually last name")
    year: int = Field(..., description="Inferred year")
    desc: str = Field(..., description="Inferred description of the work that the author is cited for")


class Response(BaseModel):
    """List of author citations.

    Extracted over unstructured text.
    """

    citations: list[Citation] = Field(..., description="List of author citations.")


prompt_template_str = """\
Generate an example album, with an artist and a list of songs. \
Using the movie {movie_name} as inspiration.\
"""
movie_names = [
    "The Shining", "The Departed", "Titanic", "Goodfellas", "Pretty Woman", "Home Alone", "Caged Fury",
    "Edward Scissorhands", "Total Recall", "Ghost", "Tremors", "RoboCop", "Rocky V",
]  # fmt: skip
AN_ALBUM = Album(name="text", artist="text", songs=[Song(title="text", length_seconds=1)])
CITATIONS = Response(citations=[Citation(author="text", year=1, desc="text")])


@pytest.fixture
def openai_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    with OpenAIServer(script=("validating_files", "succeeded")) as running:
        monkeypatch.setenv("OPENAI_API_KEY", running.key)
        monkeypatch.setenv("OPENAI_API_BASE", running.base)
        yield running


@pytest.fixture
def gradient(monkeypatch: pytest.MonkeyPatch) -> Iterator[GradientServer]:
    with GradientServer() as running:
        monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", running.token)
        monkeypatch.setenv("GRADIENT_WORKSPACE_ID", running.workspace)
        monkeypatch.setenv("GRADIENT_API_URL", running.host)
        yield running


@pytest.fixture(autouse=True)
def _in_a_folder_without_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Settings.embed_model = MockEmbedding(embed_dim=8)
    yield
    Settings._embed_model = None


@pytest.fixture
def nodes() -> list[Any]:
    docs = [Document(text=f"Work {i} builds on Author {i} et al. ({1990 + i}).") for i in range(12)]
    node_parser = SimpleNodeParser.from_defaults(chunk_size=1024)
    return list(node_parser.get_nodes_from_documents(docs))


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_openai_programs(openai_server: OpenAIServer, capsys: pytest.CaptureFixture[str]) -> None:
    finetuning_handler = OpenAIFineTuningHandler()
    callback_manager = CallbackManager([finetuning_handler])
    llm = OpenAI(model="gpt-4", callback_manager=callback_manager)
    program = OpenAIPydanticProgram.from_defaults(
        output_cls=Album,
        prompt_template_str=prompt_template_str,
        llm=llm,
        verbose=False,
    )
    for movie_name in movie_names:
        output = program(movie_name=movie_name)
        print(output.json())

    finetuning_handler.save_finetuning_events("mock_finetune_songs.jsonl")
    assert "Wrote 13 examples to mock_finetune_songs.jsonl" in capsys.readouterr().out
    assert all(row["tools"][0]["function"]["name"] == "Album" for row in lines("mock_finetune_songs.jsonl"))

    finetune_engine = OpenAIFinetuneEngine(
        "gpt-3.5-turbo",
        "mock_finetune_songs.jsonl",
        # start_job_id="<start-job-id>"  # if you have an existing job, can specify id here
        validate_json=False,
    )
    finetune_engine.finetune()
    assert finetune_engine.get_current_job().status == "succeeded"
    ft_llm: Any = finetune_engine.get_finetuned_model(temperature=0.3)
    ft_program = OpenAIPydanticProgram.from_defaults(
        output_cls=Album,
        prompt_template_str=prompt_template_str,
        llm=ft_llm,
        verbose=False,
    )
    assert ft_program(movie_name="Goodfellas") == AN_ALBUM
    assert openai_server.calls("POST", "/v1/chat/completions")[-1].json()["model"] == ft_llm.model
    assert asyncio.run(ft_program.acall(movie_name="Goodfellas")) == AN_ALBUM


def test_openai_retrieval(openai_server: OpenAIServer, nodes: list[Any]) -> None:
    finetuning_handler = OpenAIFineTuningHandler()
    callback_manager = CallbackManager([finetuning_handler])
    llm_gpt4 = OpenAI(model="gpt-4-0613", temperature=0.3)
    eval_llm = OpenAI(model="gpt-4-0613", temperature=0)
    node_questions_lists = questions(nodes, eval_llm)

    gpt4_index = VectorStoreIndex(nodes, callback_manager=callback_manager)
    gpt4_query_engine = gpt4_index.as_query_engine(output_cls=Response, llm=llm_gpt4, similarity_top_k=1)
    for node_questions in node_questions_lists:
        for question in node_questions:
            gpt4_query_engine.query(question)
    finetuning_handler.save_finetuning_events("llama2_citation_events.jsonl")
    assert len(lines("llama2_citation_events.jsonl")) == 12

    finetune_engine = OpenAIFinetuneEngine("gpt-3.5-turbo", "llama2_citation_events.jsonl")
    finetune_engine.finetune()
    assert finetune_engine.get_current_job().status == "succeeded"
    ft_llm = finetune_engine.get_finetuned_model(temperature=0.3)
    query_engine = VectorStoreIndex(nodes).as_query_engine(
        output_cls=Response, llm=ft_llm, similarity_top_k=1
    )
    response = query_engine.query("Which citation is used to measure the truthfulness of Llama 2?")
    assert response.response == CITATIONS
    assert response.source_nodes[0].get_content().startswith("Work")
    assert not [refusal for refusal in openai_server.refusals if "/models/" not in refusal]


def questions(nodes: list[Any], eval_llm: Any) -> list[list[str]]:
    question_gen_prompt = PromptTemplate("\n{query_str}\nContext:\n{context_str}\nQuestions:\n")

    async def ask() -> list[list[str]]:
        tasks = [
            DatasetGenerator(
                [node],
                question_gen_query="Please generate questions from the text asking about these citations.",
                text_question_template=question_gen_prompt,
                llm=eval_llm,
                metadata_mode=MetadataMode.ALL,
                num_questions_per_chunk=1,
            ).agenerate_questions_from_nodes(num=1)
            for node in nodes
        ]
        return list(await asyncio.gather(*tasks))

    return asyncio.run(ask())


base_model_slug = "llama2-7b-chat"


@pytest.mark.usefixtures("openai_server")
def test_gradient_programs(gradient: GradientServer, capsys: pytest.CaptureFixture[str]) -> None:
    gradient_handler = LlamaDebugHandler(print_trace_on_end=False)
    base_llm = GradientBaseModelLLM(
        base_model_slug=base_model_slug,
        max_tokens=500,
        callback_manager=CallbackManager([gradient_handler]),
        is_chat_model=True,
    )
    finetuning_handler = GradientAIFineTuningHandler()
    callback_manager = CallbackManager([finetuning_handler])
    llm_gpt4 = OpenAI(model="gpt-4", callback_manager=callback_manager)
    openai_program: Any = LLMTextCompletionProgram.from_defaults(
        output_parser=PydanticOutputParser(Album),
        prompt_template_str=prompt_template_str,
        llm=llm_gpt4,
        verbose=True,
    )
    for movie_name in movie_names:
        output = openai_program(movie_name=movie_name)
        print(output.json())
    finetuning_handler.save_finetuning_events("mock_finetune_songs.jsonl")
    assert "Wrote 13 examples" in capsys.readouterr().out

    finetune_engine = GradientFinetuneEngine(
        base_model_slug=base_model_slug,
        name="movies_structured",
        data_path="mock_finetune_songs.jsonl",
        verbose=True,
        max_steps=200,
        batch_size=1,
    )
    assert finetune_engine.model_adapter_id.endswith("_model_adapter")
    epochs = 2
    for _ in range(epochs):
        finetune_engine.finetune()
    accepted = gradient.trained[finetune_engine.model_adapter_id]
    assert [batch[0] for batch in accepted] == [
        row["inputs"] for row in lines("mock_finetune_songs.jsonl")
    ] * 2

    ft_llm = finetune_engine.get_finetuned_model(max_tokens=500, is_chat_model=True)
    gradient_program: Any = LLMTextCompletionProgram.from_defaults(
        output_parser=PydanticOutputParser(Album),
        prompt_template_str=prompt_template_str + "\nPlease only generate one album.\n",
        llm=ft_llm,
        verbose=True,
    )
    assert gradient_program(movie_name="Goodfellas") == AN_ALBUM

    base_gradient_program: Any = LLMTextCompletionProgram.from_defaults(
        output_parser=PydanticOutputParser(Album),
        prompt_template_str=prompt_template_str,
        llm=base_llm,
        verbose=True,
    )
    with pytest.raises(ValueError, match="json"):  # throws an error
        base_gradient_program(movie_name="Goodfellas")
    payload = gradient_handler.get_llm_inputs_outputs()[0][0].payload
    assert payload is not None
    assert payload["messages"][0]


def test_the_text_that_was_trained_on_is_the_text_that_is_served(
    gradient: GradientServer, openai_server: OpenAIServer
) -> None:
    handler = GradientAIFineTuningHandler()
    teacher = OpenAI(model="gpt-4", callback_manager=CallbackManager([handler]))
    student = GradientBaseModelLLM(base_model_slug=base_model_slug, is_chat_model=True)
    for llm in (teacher, student):
        program: Any = LLMTextCompletionProgram.from_defaults(
            output_parser=PydanticOutputParser(Album), prompt_template_str=prompt_template_str, llm=llm
        )
        try:
            program(movie_name="Ghost")
        except ValueError:
            assert llm is student
    handler.save_finetuning_events("one.jsonl")
    query = gradient.calls("POST", r"/api/models/.*/complete")[0].json()["query"]
    assert lines("one.jsonl")[0]["inputs"] == query + AN_ALBUM.model_dump_json().replace('":', '": ').replace(
        ',"', ', "'
    )
    assert openai_server.refusals == []


def test_gradient_retrieval_with_a_text_mode_teacher(
    gradient: GradientServer, openai_server: OpenAIServer, nodes: list[Any]
) -> None:
    finetuning_handler = GradientAIFineTuningHandler()
    callback_manager = CallbackManager([finetuning_handler])
    llm_gpt4: Any = OpenAI(model="gpt-4-0613", temperature=0.3)
    llm_gpt4.pydantic_program_mode = "llm"
    llm_gpt4 = text_mode(llm_gpt4)  # the one line that is new
    base_llm: Any = GradientBaseModelLLM(base_model_slug=base_model_slug, max_tokens=500, is_chat_model=True)
    base_llm.pydantic_program_mode = "llm"
    eval_llm = OpenAI(model="gpt-4-0613", temperature=0)
    node_questions_lists = questions(nodes, eval_llm)

    gpt4_index = VectorStoreIndex(nodes[:39], callback_manager=callback_manager)
    gpt4_query_engine = gpt4_index.as_query_engine(output_cls=Response, llm=llm_gpt4, similarity_top_k=1)
    for node_questions in node_questions_lists:
        for question in node_questions:
            gpt4_query_engine.query(question)
    finetuning_handler.save_finetuning_events("llama2_citation_events.jsonl")
    assert len(lines("llama2_citation_events.jsonl")) == 12
    assert openai_server.refusals == []

    finetune_engine = GradientFinetuneEngine(
        base_model_slug=base_model_slug,
        name="llama2_structured",
        data_path="llama2_citation_events.jsonl",
        verbose=True,
        max_steps=200,
        batch_size=1,
    )
    finetune_engine.finetune()
    ft_llm = finetune_engine.get_finetuned_model(max_tokens=500)
    query_engine = VectorStoreIndex(nodes).as_query_engine(
        output_cls=Response, llm=ft_llm, similarity_top_k=1
    )
    query_str = "Which citations are mentioned in the section about RLHF Results?"
    response = query_engine.query(query_str)
    assert response.response == CITATIONS
    assert asyncio.run(query_engine.aquery(query_str)).response == CITATIONS

    base_query_engine = VectorStoreIndex(nodes).as_query_engine(
        output_cls=Response, llm=base_llm, similarity_top_k=1
    )
    assert (
        str(base_query_engine.query(query_str)) == "Empty Response"
    )  # today's LlamaIndex swallows the error
    assert len(gradient.adapters) == 1


@pytest.mark.usefixtures("openai_server")
def test_without_text_mode_a_strict_server_refuses() -> None:
    llm: Any = OpenAI(model="gpt-4", max_retries=0)
    llm.pydantic_program_mode = "llm"
    with pytest.raises(BadRequestError, match="tool_choice"):
        llm.structured_predict(Album, PromptTemplate("An album"))
    assert text_mode(llm).structured_predict(Album, PromptTemplate("An album")) == AN_ALBUM


def test_the_older_forms_service_context_says_what_to_write() -> None:
    with pytest.raises(ConfigurationError, match=r"as_query_engine\(llm=llm"):
        ServiceContext.from_defaults(llm=None, callback_manager=None, chunk_size=1024)
    with pytest.raises(ConfigurationError, match="text_mode"):
        ServiceContext()
