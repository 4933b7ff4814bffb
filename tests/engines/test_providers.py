"""Provider profiles: deviations of each provider, and the warnings of shutdowns."""

from __future__ import annotations

import codecs
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured.dataset import FinetuneDataset
from llama_index_finetune_structured.engines.hosted.deprecations import SunsetWarning, closing, warn_of_sunset
from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.hosted.providers import PROVIDERS, normal_status, provider_named
from llama_index_finetune_structured.engines.timeouts import Timeouts
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError, EngineError
from tests.fakes.clock import FakeClock
from tests.fakes.openai_server import OpenAIServer
from tests.fakes.rows import json_schema_row, text_row, tools_row, write_rows

JOBS = "/v1/fine_tuning/jobs"
NEBIUS = ("lora", "lora_r", "lora_alpha", "packing", "context_length", "learning_rate")


def engine(server: OpenAIServer, data: Any, **options: Any) -> OpenAIFinetuneEngine:
    given: dict[str, Any] = {
        "api_base": server.base,
        "api_key": server.key,
        "timeouts": Timeouts(clock=FakeClock()),
    } | options
    return OpenAIFinetuneEngine(given.pop("base_model", "gpt-4o-mini"), data, **given)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl")


def test_azure_gets_a_byte_order_mark_once(server: OpenAIServer, data: Path, tmp_path: Path) -> None:
    engine(server, data, provider="azure").finetune()
    (content,) = server.contents.values()
    assert content == codecs.BOM_UTF8 + data.read_bytes()
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(content)
    engine(server, marked, provider="azure", output_dir=tmp_path / "again").finetune()
    assert list(server.contents.values())[-1] == content


def test_openai_gets_no_byte_order_mark_whatever_the_file_has(
    server: OpenAIServer, data: Path, tmp_path: Path
) -> None:
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(codecs.BOM_UTF8 + data.read_bytes())
    engine(server, marked).finetune()
    assert [*server.contents.values()] == [data.read_bytes()]


@pytest.mark.parametrize("suffix", ["v1.5", "x" * 41, "with space"])
def test_azure_refuses_a_suffix_that_the_service_would(suffix: str, server: OpenAIServer, data: Path) -> None:
    with pytest.raises(ConfigurationError, match="no dots"):
        engine(server, data, provider="azure", suffix=suffix).finetune()
    assert server.jobs == {}


def test_azure_serves_under_a_deployments_name(server: OpenAIServer, data: Path) -> None:
    asked = engine(server, data, provider="azure")
    asked.finetune()
    with pytest.raises(EngineError, match=r"made ft:gpt-4o-mini.*deploy it"):
        asked.get_finetuned_model()
    llm: Any = asked.get_finetuned_model(model="my-deployment")
    assert (llm.model, llm.transport) == ("my-deployment", "tools")


def test_nebius_takes_its_own_hyperparameters(data: Path) -> None:
    given = {"n_epochs": 2, "lora": True, "lora_r": 16, "packing": False}
    with OpenAIServer(extra_hyperparameters=NEBIUS, keeps_metadata=False) as server:
        engine(server, data, provider="nebius", base_model="Qwen/Qwen3-4B", hyperparameters=given).finetune()
        body = server.calls("POST", JOBS)[0].json()
    assert body["hyperparameters"] == given
    assert "method" not in body


def test_a_body_of_ones_own_goes_beside_the_request(data: Path) -> None:
    class Lenient(OpenAIServer):
        def _job_problem(self, body: dict[str, Any]) -> str | None:
            return super()._job_problem({k: v for k, v in body.items() if k != "trainingType"})

    with Lenient() as server:
        engine(server, data, provider="azure", extra_body={"trainingType": "Standard"}).finetune()
        assert server.calls("POST", JOBS)[0].json()["trainingType"] == "Standard"


@pytest.mark.parametrize(
    ("provider", "variables"),
    [
        ("openai", {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "BASE"}),
        ("openai", {"OPENAI_API_KEY": "k", "OPENAI_API_BASE": "BASE"}),
        ("azure", {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_BASE_URL": "BASE"}),
        ("nebius", {"NEBIUS_API_KEY": "k", "NEBIUS_BASE_URL": "BASE"}),
    ],
)
def test_each_provider_has_its_variables(
    provider: str, variables: dict[str, str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenAIServer(key="k") as server:
        for name, value in variables.items():
            monkeypatch.setenv(name, server.base if value == "BASE" else value)
        OpenAIFinetuneEngine("m", data, provider=provider).finetune()
        assert len(server.jobs) == 1


def test_azure_has_no_common_address(data: Path) -> None:
    with pytest.raises(ConfigurationError, match="AZURE_OPENAI_BASE_URL"):
        OpenAIFinetuneEngine("m", data, provider="azure", api_key="k")


def test_an_unknown_provider_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="known: azure, nebius, openai"):
        provider_named("initech")


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(
    server: OpenAIServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setitem(PROVIDERS, "openai", replace(PROVIDERS["openai"], max_file_bytes=100))
    with pytest.raises(EngineError, match="takes at most 100"):
        engine(server, data).finetune()
    assert server.files == {}


@pytest.mark.parametrize(
    ("status", "normal"),
    [
        ("succeeded", "succeeded"),
        (" Completed ", "succeeded"),
        ("FAILED", "failed"),
        ("canceled", "cancelled"),
        ("paused", "running"),
        ("", "running"),
        (None, "running"),
    ],
)
def test_statuses_are_read_whatever_their_spelling(status: Any, normal: str) -> None:
    assert normal_status(status) == normal


# -- data of every kind --


@pytest.mark.parametrize(
    ("row", "transport"), [(tools_row, "tools"), (text_row, "text"), (json_schema_row, "json_schema")]
)
def test_a_dataset_and_the_file_it_keeps_itself_in_train_alike(
    row: Any, transport: str, server: OpenAIServer, tmp_path: Path
) -> None:
    dataset = FinetuneDataset.load(write_rows(tmp_path / "rows.jsonl", row))
    if transport == "json_schema":
        dataset = FinetuneDataset(e.model_copy(update={"transport": "json_schema"}) for e in dataset)
    canonical = dataset.save(tmp_path / "canonical.jsonl")
    for data in (dataset, canonical):
        asked = engine(server, data)
        asked.finetune()
        llm: Any = asked.get_finetuned_model()
        assert llm.transport == transport
    assert (len(server.files), len(server.jobs)) == (1, 1)


def test_the_preflight_names_every_bad_line_and_costs_nothing(server: OpenAIServer, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl")
    path.write_text(path.read_text() + '{oops\n{"messages": []}\n')
    with pytest.raises(DatasetError) as caught:
        engine(server, path).finetune()
    assert "train.jsonl:13" in str(caught.value)
    assert "train.jsonl:14" in str(caught.value)
    assert server.exchanges == []


def test_too_few_examples_are_refused_before_anything_is_sent(server: OpenAIServer, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="too_few_examples"):
        engine(server, write_rows(tmp_path / "few.jsonl", count=3)).finetune()


def test_a_file_that_is_not_there_is_named(server: OpenAIServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.jsonl: no such training file"):
        engine(server, tmp_path / "nothing.jsonl").finetune()


def test_data_of_another_kind_is_refused(server: OpenAIServer) -> None:
    with pytest.raises(ConfigurationError, match="is a list"):
        engine(server, [1, 2]).finetune()


# -- what closes when --

OPENAI = "https://api.openai.com/v1"


def warned(*arguments: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_sunset(*arguments)
    assert all(issubclass(each.category, SunsetWarning) for each in caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize(
    ("model", "end"),
    [
        ("gpt-4o-mini-2024-07-18", date(2027, 1, 14)),
        ("gpt-4.1", date(2027, 1, 14)),
        ("gpt-4.1-nano-2025-04-14", date(2026, 10, 23)),
        ("ft:gpt-3.5-turbo-0125:org::x", date(2026, 10, 23)),
        ("o4-mini", date(2026, 10, 23)),
        ("gpt-9", None),
    ],
)
def test_openais_closing_dates_are_known(model: str, end: date | None) -> None:
    assert closing(model, OPENAI) == end
    assert closing(model, "https://elsewhere.example/v1") is None


def test_what_the_provider_announces_goes_first() -> None:
    assert closing("gpt-4o", OPENAI, "2028-02-03") == date(2028, 2, 3)
    assert closing("gpt-4o", OPENAI, "soon") is None


def test_the_warning_says_what_to_switch_to() -> None:
    service, model = warned("gpt-4o-mini", OPENAI, date(2026, 11, 21))
    assert "stops taking fine-tuning jobs on 2027-01-06" in service
    assert "gpt-4o-mini shuts down on 2027-01-14" in model
    assert all("LoraFinetuneEngine" in each and "provider=" in each for each in (service, model))


def test_what_has_closed_is_said_to_have() -> None:
    service, model = warned("gpt-4o-mini", OPENAI, date(2027, 2, 1))
    assert "stopped taking" in service
    assert "was shut down" in model


def test_a_far_date_and_another_provider_warn_of_nothing() -> None:
    assert warned("gpt-4o-mini", "https://elsewhere.example/v1", date(2026, 11, 21)) == []
    assert warned("m", "https://elsewhere.example/v1", date(2026, 11, 21), "2028-01-01") == []


def test_the_engine_warns_before_it_submits(server: OpenAIServer, data: Path) -> None:
    server.models["gpt-4o-mini"] = {"shutdown_date": "2026-07-01"}
    timeouts = Timeouts(clock=FakeClock(today=date(2026, 6, 1)))
    with pytest.warns(SunsetWarning, match="gpt-4o-mini shuts down on 2026-07-01"):
        engine(server, data, timeouts=timeouts).finetune()
    assert len(server.jobs) == 1
