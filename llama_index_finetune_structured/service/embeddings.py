"""Embeddings: ``/v1/embeddings``."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .app_state import service_settings
from .embeddings_models import EmbeddingModels, Embeddings
from .errors import ApiError, invalid
from .event_stream import until_disconnected
from .keys import ApiKey, scoped
from .models import models_of

__all__ = ["EmbeddingRequest", "router"]

_MOST_INPUTS = 2048  # OpenAI's
_Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"])


def _as_list(given: Any) -> Any:
    """One text or one list of tokens as a list of one."""
    is_one = isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int))
    return [given] if is_one else given


class EmbeddingRequest(BaseModel):
    """A request for the embeddings of texts or of lists of tokens."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    input: Annotated[
        list[Annotated[str, Field(min_length=1)]] | list[_Tokens],
        BeforeValidator(_as_list),
        Field(min_length=1, max_length=_MOST_INPUTS),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(gt=0)] | None = None
    user: Any = None


@router.post("")
async def create_embeddings(
    request: Request, body: EmbeddingRequest, key: Annotated[ApiKey, Depends(scoped("chat"))]
) -> Response:
    """The embedding of each input, of length 1."""
    models: EmbeddingModels = request.app.state.embeddings

    async def work() -> Response:
        await asyncio.to_thread(_refuse_text_model, request, body.model, key)
        found = await models.embed(body.model, body.input, body.dimensions)
        return JSONResponse(_reply(body, found))

    return await until_disconnected(request, work)


def _refuse_text_model(request: Request, name: str, key: ApiKey) -> None:
    """Raise ApiError (400) for a base model, or a tuned one that the key sees."""
    embeddings = service_settings(request).embeddings
    store = models_of(request)
    if name in embeddings:
        return
    try:
        store.find(name, key.id)
    except ApiError:  # unknown, which is told with what there is
        return
    known = ", ".join(embeddings) or "none"
    raise invalid(
        f"{name!r} writes texts and makes no embeddings. Embedding models: {known}.",
        "model",
        code="unsupported_model",
    )


def _reply(body: EmbeddingRequest, found: Embeddings) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def _encoded(vector: Any, encoding: Literal["float", "base64"]) -> list[float] | str:
    """The numbers, or their bytes in fp32, little-endian."""
    if encoding == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
