"""Gradient's protocol: list, create, train, ask and delete adapters; ``/api/models``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from ...llms.lora import LoraLLM
from ..answer_errors import answer_errors
from ..answering import end_of
from ..app_state import service_settings
from ..call_queue import CallQueue
from ..database import Record
from ..errors import ApiError
from ..event_stream import until_disconnected
from ..gradient_errors import API_PREFIX
from ..keys import ApiKey, CurrentKey, scoped
from ..models import models_of
from .adapters import GradientAdapters, base_model_id, update_time
from .requests import CompleteModel, CreateModel, FineTuneModel
from .training import GradientTraining, lora_settings

__all__ = ["router"]

router = APIRouter(prefix=f"{API_PREFIX}/models", tags=["gradient"])
_TrainingKey = Annotated[ApiKey, Depends(scoped("fine_tuning"))]


def _adapters(request: Request) -> GradientAdapters:
    adapters: GradientAdapters = request.app.state.gradient_adapters
    return adapters


def _training(request: Request) -> GradientTraining:
    training: GradientTraining = request.app.state.gradient_training
    return training


def _bases(request: Request) -> dict[str, str]:
    """The names of the base models by their ids."""
    return {base_model_id(name): name for name in service_settings(request).bases}


def _described(adapter: Record) -> dict[str, Any]:
    return {
        "type": "modelAdapter",
        "id": adapter.id,
        "name": adapter.name,
        "baseModelId": base_model_id(adapter.base),
        "latestUpdateTime": update_time(adapter),
    }


@router.get("")
def list_models(
    request: Request,
    key: CurrentKey,
    only_base: Annotated[bool, Query(alias="onlyBase")] = False,
    capability: Literal["any", "complete", "fineTune"] = "any",
) -> dict[str, Any]:
    """The base models, then the key's adapters; all have every capability."""
    bases = [
        {
            "type": "baseModel",
            "id": base_id,
            "slug": name,
            "name": name,
            "capabilities": ["complete", "fineTune"],
        }
        for base_id, name in _bases(request).items()
    ]
    adapters = [] if only_base else map(_described, _adapters(request).list_adapters(key.id))
    return {"models": [*bases, *adapters]}


@router.post("")
def create_model(request: Request, key: _TrainingKey, body: CreateModel) -> dict[str, str]:
    """Make an adapter, which answers as its base until its first step."""
    settings = service_settings(request)
    base = _bases(request).get(body.model.base_model_id)
    if base is None:
        given = body.model.base_model_id[:200]
        raise ApiError(
            404, f"No such base model: {given!r}; the list of models has all.", type="unknownBaseModel"
        )
    with answer_errors():
        lora = lora_settings(settings, settings.bases[base], body)
    return {"id": _adapters(request).create(key.id, body.model.name, base, lora)}


@router.get("/{model_id}")
async def get_model(request: Request, key: CurrentKey, model_id: str) -> dict[str, Any]:
    """One adapter, with the time of its last step."""
    await asyncio.to_thread(_adapters(request).find, model_id, key.id)  # no key waits for another's step
    await _training(request).settled(model_id)
    return _described(await asyncio.to_thread(_adapters(request).find, model_id, key.id))


@router.delete("/{model_id}")
def delete_model(request: Request, key: _TrainingKey, model_id: str) -> dict[str, Any]:
    """Delete an adapter. Completions in progress end as they would."""
    _adapters(request).remove(model_id, key.id)
    return {}


@router.post("/{model_id}/fine-tune")
async def fine_tune_model(
    request: Request, key: _TrainingKey, model_id: str, body: FineTuneModel
) -> Response:
    """Take one optimizer step on all samples; the reply comes when it is on disk."""
    if model_id in _bases(request):
        message = "A base model cannot be trained itself: create an adapter of it."
        raise ApiError(400, message, type="modelIncapableOfFineTuning")

    async def work() -> Response:
        result = await _training(request).fine_tune(model_id, key, body.samples)
        return JSONResponse({"numberOfTrainableTokens": result.tokens, "sumLoss": result.loss})

    return await until_disconnected(request, work)


@router.post("/{model_id}/complete")
async def complete_model(
    request: Request, key: Annotated[ApiKey, Depends(scoped("chat"))], model_id: str, body: CompleteModel
) -> Response:
    """Continue a text, which is sent to the model as it is, or answer it by the base's chat template."""
    if body.rag is not None:
        message = "This server has no RAG collections: leave rag out, and retrieve before you ask."
        raise ApiError(404, message, type="unknownRagCollection")
    return await until_disconnected(request, lambda: _completed(request, key, model_id, body))


async def _completed(request: Request, key: ApiKey, model_id: str, body: CompleteModel) -> Response:
    queue: CallQueue = request.app.state.calls
    with ExitStack() as stack:
        if (base := _bases(request).get(model_id)) is not None:
            model = await asyncio.to_thread(models_of(request).find, base, key.id)
        else:
            model = stack.enter_context(_adapters(request).serving(model_id, key.id))
        llm = await queue.enter(stack, model)
        with _gradient_types():
            text, reason = await _answer(llm, body)
    return JSONResponse({"finishReason": reason, "generatedOutput": text})


async def _answer(llm: LoraLLM, body: CompleteModel) -> tuple[str, str]:
    """The answer and why it ended."""
    plain = llm.model_copy(update={"confidence": False})
    with answer_errors():
        call = await asyncio.to_thread(
            plain._completion_call, body.query, not body.auto_template, body.keywords
        )
        completion = await call.acomplete()
        text = completion.text if body.guidance is None else json.loads(completion.text)
    return text, end_of(completion)["finish_reason"]


@contextmanager
def _gradient_types() -> Iterator[None]:
    """Raise errors that are of the text itself with the type that the protocol has for them."""
    try:
        yield
    except ApiError as error:
        if error.status_code != 400:
            raise
        raise ApiError(422, str(error.detail), type="unprocessableContent") from error
