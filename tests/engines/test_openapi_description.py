"""Requests of the engine and replies of the fake server conform to OpenAI's published API description.

Runs only where $OPENAI_OPENAPI names the JSON file of that description.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.timeouts import Timeouts
from llama_index_finetune_structured.errors import EngineError
from tests.fakes.clock import FakeClock
from tests.fakes.loopback import Request
from tests.fakes.openai_server import OpenAIServer, _multipart
from tests.fakes.rows import json_schema_row, text_row, tools_row, write_rows

DESCRIPTION = os.environ.get("OPENAI_OPENAPI", "")
pytestmark = pytest.mark.skipif(not DESCRIPTION, reason="OPENAI_OPENAPI names no OpenAPI description")


def normalised(value: Any) -> Any:
    """Convert OpenAPI 3.0 keywords in a 3.1 file: ``nullable`` and a boolean ``exclusiveMinimum``."""
    if isinstance(value, list):
        return [normalised(item) for item in value]
    if not isinstance(value, dict):
        return value
    schema = {key: normalised(item) for key, item in value.items()}
    if schema.get("exclusiveMinimum") is True:
        schema["exclusiveMinimum"] = schema.pop("minimum")
    if schema.pop("nullable", None) is True:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


class Description:
    """The published description: its ``paths``, and the ``errors`` of a value against a schema."""

    def __init__(self, loaded: dict[str, Any]) -> None:
        self.paths = loaded["paths"]
        self._registry = Registry().with_resource("urn:api", Resource.opaque(absolute(loaded)))

    def errors(self, schema: dict[str, Any], value: Any) -> list[str]:
        found = Draft202012Validator(absolute(schema), registry=self._registry).iter_errors(value)
        return [f"{list(error.path)}: {error.message}" for error in found]


@pytest.fixture(scope="module")
def description() -> Description:
    return Description(normalised(json.loads(Path(DESCRIPTION).read_text(encoding="utf-8"))))


def absolute(schema: dict[str, Any]) -> Any:
    return json.loads(json.dumps(schema).replace('"#/', '"urn:api#/'))


def operation(description: Description, request: Request) -> dict[str, Any]:
    path = request.path.removeprefix("/v1")
    exact_first = sorted(description.paths, key=lambda template: template.count("{"))
    for template in exact_first:
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), path):
            found = description.paths[template].get(request.method.lower())
            assert isinstance(found, dict), (request.method, path)
            return found
    raise AssertionError(f"no such path: {path}")


def request_value(request: Request) -> tuple[str, Any]:
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return "multipart/form-data", {
            name: content.decode() for name, (_, content) in _multipart(request).items()
        }
    return "application/json", request.json()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CreateFineTuningJobRequest", {"model": "gpt-4o-mini"}),
        ("CreateFineTuningJobRequest", {"model": "x", "training_file": "f", "suffix": ""}),
        ("FineTuningJob", {"id": "ftjob-1", "status": "running"}),
        ("ErrorResponse", {"error": {}}),
    ],
)
def test_the_check_can_fail(name: str, value: Any, description: Description) -> None:
    assert description.errors({"$ref": f"#/components/schemas/{name}"}, value) != []


def test_a_run_of_everything_fits_the_description(description: Description, tmp_path: Path) -> None:
    from llama_index.core.prompts import PromptTemplate
    from pydantic import BaseModel

    class Album(BaseModel):
        name: str

    checked = []
    with OpenAIServer(models={"gpt-4o-mini": {"shutdown_date": "2030-01-14"}}) as server:
        for row in (tools_row, json_schema_row, text_row):
            engine = OpenAIFinetuneEngine(
                "gpt-4o-mini",
                write_rows(tmp_path / f"{row.__name__}.jsonl", row),
                validation=write_rows(tmp_path / "validation.jsonl", row, count=11),
                hyperparameters={"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 0.5},
                suffix="albums",
                seed=3,
                api_base=server.base,
                api_key=server.key,
                timeouts=Timeouts(clock=FakeClock()),
            )
            engine.finetune()
            engine.get_current_job()
            engine.get_finetuned_model().structured_predict(Album, PromptTemplate("An album"))
            engine.metrics()
        server.script = ("queued", "failed")
        broken = OpenAIFinetuneEngine(
            "gpt-4o-mini",
            write_rows(tmp_path / "x.jsonl", count=14),
            api_base=server.base,
            api_key=server.key,
            timeouts=Timeouts(clock=FakeClock()),
        )
        broken.finetune()
        with pytest.raises(EngineError):
            broken.wait()
        for request, reply in server.exchanges:
            described = operation(description, request)
            if body := described.get("requestBody"):
                kind, value = request_value(request)
                schema = body["content"][kind]["schema"]
                checked.append(request.path)
                assert description.errors(schema, value) == [], (request.method, request.path)
            if reply.status == 200 and reply.content_type == "application/json":
                schema = described["responses"]["200"]["content"]["application/json"]["schema"]
                checked.append(request.path)
                assert description.errors(schema, reply.body) == [], (request.method, request.path)
            elif reply.status >= 400:
                schema = {"$ref": "#/components/schemas/ErrorResponse"}
                assert description.errors(schema, reply.body) == [], (request.method, request.path)
    assert len(set(checked)) >= 12
