"""Gradient's protocol on loopback; requests are checked against the ``gradientai`` SDK's own models."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from gradientai.openapi.client.models.complete_model_body_params import CompleteModelBodyParams
from gradientai.openapi.client.models.create_model_body_params import CreateModelBodyParams
from gradientai.openapi.client.models.fine_tune_model_body_params import FineTuneModelBodyParams

from tests.fakes.answers import instance_of, schema_in
from tests.fakes.loopback import LoopbackServer, Reply, Request, route

BASE_ID = f"{uuid.UUID(int=1)}_base_ml_model"
SLUG = "llama2-7b-chat"


class GradientServer(LoopbackServer):
    """State: ``adapters`` and ``trained`` (the batches each adapter accepted), by id.

    ``answer``: (prompt, whether the model is tuned) -> the model's text.
    """

    def __init__(
        self,
        *,
        token: str = "gr-test",
        workspace: str = "ws-test",
        answer: Callable[[str, bool], str] | None = None,
    ) -> None:
        super().__init__()
        self.token, self.workspace = token, workspace
        self.answer_query = answer
        self.adapters: dict[str, dict[str, Any]] = {}
        self.trained: dict[str, list[list[Any]]] = {}
        self._time = datetime(2024, 3, 1, tzinfo=timezone.utc)

    @property
    def host(self) -> str:
        return f"{self.origin}/api"

    def answer(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return _error(401, "unauthorized", "wrong token")
        if request.headers.get("x-gradient-workspace-id") != self.workspace:
            return _error(403, "forbidden", "wrong workspace")
        reply = route(
            [
                ("GET", r"/api/models", self._list),
                ("POST", r"/api/models", self._create),
                ("GET", r"/api/models/([^/]+)", self._get),
                ("DELETE", r"/api/models/([^/]+)", self._delete),
                ("POST", r"/api/models/([^/]+)/fine-tune", self._tune),
                ("POST", r"/api/models/([^/]+)/complete", self._complete),
            ],
            request,
        )
        return reply or _error(404, "notFound", request.path)

    def _list(self, request: Request) -> Reply:
        assert request.query["onlyBase"] in ("True", "False")
        base = {
            "type": "baseModel",
            "id": BASE_ID,
            "slug": SLUG,
            "name": "Llama",
            "capabilities": ["complete"],
        }
        adapters = [] if request.query["onlyBase"] == "True" else list(self.adapters.values())
        return Reply(200, {"models": [base, *adapters]})

    def _create(self, request: Request) -> Reply:
        if problem := _problem(CreateModelBodyParams, request):
            return problem
        model = request.json()["model"]
        if model["baseModelId"] != BASE_ID:
            return _error(400, "unknownBaseModel", model["baseModelId"])
        adapter_id = f"{uuid.UUID(int=100 + len(self.trained))}_model_adapter"
        self.adapters[adapter_id] = {"type": "modelAdapter", "id": adapter_id, **model}
        self.trained[adapter_id] = []
        self._touch(adapter_id)
        return Reply(200, {"id": adapter_id})

    def _touch(self, adapter_id: str) -> None:
        self._time += timedelta(seconds=1)
        self.adapters[adapter_id]["latestUpdateTime"] = self._time.isoformat()

    def _get(self, _: Request, model_id: str) -> Reply:
        if model_id not in self.adapters:
            return _error(404, "unknownModelAdapter", model_id)
        return Reply(200, self.adapters[model_id])

    def _delete(self, _: Request, model_id: str) -> Reply:
        self.adapters.pop(model_id, None)
        return Reply(200, {})

    def _tune(self, request: Request, model_id: str) -> Reply:
        if model_id not in self.adapters:
            return _error(404, "unknownModelAdapter", model_id)
        if problem := _problem(FineTuneModelBodyParams, request):
            return problem
        inputs = [sample["inputs"] for sample in request.json()["samples"]]
        if "nan" in inputs:
            return _error(422, "nanLoss", "the loss is not a number")
        self.trained[model_id].append(inputs)
        self._touch(model_id)
        return Reply(200, {"numberOfTrainableTokens": 10 * len(inputs), "sumLoss": 5.0 * len(inputs)})

    def _complete(self, request: Request, model_id: str) -> Reply:
        if model_id not in self.adapters and model_id != BASE_ID:
            return _error(404, "unknownModelAdapter", model_id)
        if problem := _problem(CompleteModelBodyParams, request):
            return problem
        query = request.json()["query"]
        return Reply(200, {"finishReason": "length", "generatedOutput": self._text(model_id, query)})

    def _text(self, model_id: str, query: str) -> str:
        """A tuned model answers a schema with an instance of it, a base model with prose."""
        is_tuned = bool(self.trained.get(model_id))
        if self.answer_query is not None:
            return self.answer_query(query, is_tuned)
        schema = schema_in(query) if is_tuned else None
        return json.dumps(instance_of(schema)) if schema else "Sure, here is an album! STOP and more"


def _problem(model: Any, request: Request) -> Reply | None:
    try:
        parsed = model.from_dict(request.json())
    except ValueError as error:
        return _error(400, "bodyParsingError", str(error))
    unknown = sorted(parsed.additional_properties)
    return _error(400, "bodyParsingError", f"unknown {unknown}") if unknown else None


def _error(status: int, kind: str, message: str) -> Reply:
    return Reply(status, {"type": kind, "message": message})
