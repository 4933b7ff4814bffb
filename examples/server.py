"""A web service with a tuned model: texts in, objects out. For the extras ``local`` and ``service``.

    RUN=songs SCHEMA=models.py:Song uvicorn --factory server:create_app --timeout-graceful-shutdown 60

``RUN``: folder of a run of ``tune`` or of an adapter. ``SCHEMA``: the class of the answers, as ``load_schema`` takes
it. ``BASE_MODEL``: where the base model is, if not where it was in training. ``PROMPT``: the prompt of training, with
``{text}`` in place of the text, which is the default; of rows of ``label_documents`` it is ``Fill Song from this
document.``, an empty line and ``{text}``. ``CAPTURE``: file to which requests and answers are written, to be labelled
and trained on later; none without it.
``MAX_QUEUE`` and ``REQUEST_TIMEOUT``: limits of ``LoraLLM``.

One process, one model: concurrent requests are answered in one batch, so further workers would only divide the
machine. At SIGTERM uvicorn takes no new connections, waits for the answers in progress, and then ends the capture.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from llama_index.core import PromptTemplate
from pydantic import BaseModel, Field

from llama_index_finetune_structured import (
    ConfigurationError,
    DatasetError,
    FinetuneStructuredError,
    LoraLLM,
    PromptTooLongError,
    QueueFullError,
    RequestTimeoutError,
    StructuredAnswerError,
    capture,
    load_schema,
    trust_of,
)

PROMPT = PromptTemplate(os.environ.get("PROMPT", "{text}"))
STATUS: dict[type[Exception], int] = {
    QueueFullError: 503,
    RequestTimeoutError: 504,
    PromptTooLongError: 413,
    DatasetError: 422,
    ConfigurationError: 422,
    StructuredAnswerError: 502,
}


class Text(BaseModel):
    """A text to read."""

    text: str = Field(min_length=1, max_length=100_000)
    document_id: str | None = Field(default=None, min_length=1)


def create_app() -> FastAPI:
    """The service, by the environment."""
    output_cls = load_schema(os.environ["SCHEMA"])
    base = os.environ.get("BASE_MODEL")
    llm = LoraLLM.from_adapter(
        os.environ["RUN"],
        **({"base_model": base} if base else {}),
        max_queue=int(os.environ.get("MAX_QUEUE", "64")),
        request_timeout=float(os.environ.get("REQUEST_TIMEOUT", "60")),
    )
    state = {"ready": False}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Loads the weights, before the capture. It may take longer than a request may.
        await llm.model_copy(update={"request_timeout": None}).acomplete("warm", max_new_tokens=1)
        with captured():
            state["ready"] = True
            yield
            state["ready"] = False

    app = FastAPI(title="Extraction", lifespan=lifespan)

    @app.exception_handler(FinetuneStructuredError)
    async def failed(_: Request, error: FinetuneStructuredError) -> JSONResponse:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
        headers = {"Retry-After": "1"} if status == 503 else {}
        return JSONResponse({"error": type(error).__name__, "message": str(error)}, status, headers)

    @app.get("/healthz")
    async def healthy() -> dict[str, str]:
        """Whether the process lives; restart it where there is no reply."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        """Whether requests may be sent here."""
        return JSONResponse({"ready": state["ready"]}, 200 if state["ready"] else 503)

    @app.post("/extract")
    async def extract(body: Text) -> dict[str, Any]:
        """The object in a text, and how sure it is."""
        with named(body):
            found = await llm.astructured_predict(output_cls, PROMPT, text=body.text)
        return {"object": found.model_dump(mode="json"), "probability": trust_of(found).probability}

    @app.post("/extract/sync")
    def extract_in_a_thread(body: Text) -> dict[str, Any]:
        """The same for code that is not asynchronous."""
        with named(body):
            found = llm.structured_predict(output_cls, PROMPT, text=body.text)
        return {"object": found.model_dump(mode="json"), "probability": trust_of(found).probability}

    @app.post("/extract/stream")
    async def extract_as_it_grows(body: Text) -> StreamingResponse:
        """The object as it grows, one JSON object a line; the last one is whole, or an error."""
        objects = await llm.astream_structured_predict(output_cls, PROMPT, text=body.text)
        first = await anext(objects)  # an error up to here has a status of its own

        async def lines() -> AsyncIterator[str]:
            try:
                yield line(first)
                async for found in objects:
                    yield line(found)
            except FinetuneStructuredError as error:
                yield json.dumps({"error": type(error).__name__, "message": str(error)}) + "\n"
            finally:  # a client that went away frees its place at once
                with anyio.CancelScope(shield=True):
                    await objects.aclose()

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    return app


def captured() -> AbstractContextManager[Any]:
    """The capture of the service's lifetime.

    Requests run in tasks and threads that the server makes, outside of this block: ``everywhere`` takes them in.
    """
    path = os.environ.get("CAPTURE")
    return capture(path, everywhere=True) if path else nullcontext()


def named(body: Text) -> AbstractContextManager[None]:
    """The block in which captured rows get the document's name."""
    return nullcontext() if body.document_id is None else capture.document(body.document_id)


def line(found: Any) -> str:
    """An object, perhaps in part, as a line of JSON."""
    return json.dumps(found.model_dump(mode="json", warnings=False)) + "\n"
