"""The application: routes, state, and what runs from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from ..locks import locked_folder
from . import (
    chat,
    checks,
    completions,
    embeddings,
    files,
    jobs,
    key_routes,
    models,
    scorecards,
    uploads,
)
from .blobs import Blobs
from .call_queue import CallQueue
from .database import Database
from .embeddings_models import EmbeddingModels
from .errors import ErrorReply, add_error_handlers
from .gradient_api import routes as gradient
from .gradient_api.adapters import GradientAdapters
from .gradient_api.training import GradientTraining
from .guards import RequestGuard
from .json_log import log_failure
from .keys import CurrentKey, KeyStore
from .metrics import ServiceMetrics
from .models import ModelStore
from .page import routes as page
from .pool import ModelPool
from .runs import remove_runs
from .settings import ServiceSettings
from .stored_files import sweep
from .workers import WorkerProcesses

__all__ = ["create_app"]

_SWEEP_S = 60
_MOST_ANSWERED = {"own": 32, "vllm": 256}  # chosen: vLLM's batches are larger
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def create_app(settings: ServiceSettings) -> FastAPI:
    """The ASGI application of a service's folder.

    ``app.state`` has ``settings``, ``database``, ``blobs``, ``keys``, ``models``, ``pool``, ``calls``, ``checks``,
    ``scorecards``, ``metrics``, ``embeddings``, ``gradient_adapters``, ``gradient_training`` and ``workers``. One
    server at a time serves a folder: its start raises EngineError while another one does.
    """
    database = Database(settings.database_path)
    app = FastAPI(
        title="finetune-structured",
        lifespan=_lifespan,
        openapi_url=None,
        redirect_slashes=False,
        responses={"4XX": {"model": ErrorReply, "description": "Refused"}},
    )
    app.state.settings, app.state.database = settings, database
    app.state.blobs = Blobs(settings.blobs_folder, database)
    app.state.keys = KeyStore(database, settings)
    app.state.models = ModelStore(database, settings)
    app.state.pool = _pool(settings, app.state.models)
    app.state.calls = CallQueue(
        app.state.pool,
        most_answered=_MOST_ANSWERED[settings.backend],
        most_waiting=settings.max_waiting_calls,
    )
    app.state.scorecards = scorecards.Scorecards(settings)
    app.state.checks = checks.FileChecks()
    app.state.metrics = ServiceMetrics(database)
    app.state.embeddings = EmbeddingModels(settings.embeddings, most_waiting=settings.max_waiting_calls)
    app.state.gradient_adapters = GradientAdapters(database, settings)
    app.state.gradient_training = GradientTraining(settings, app.state.gradient_adapters, app.state.pool)
    add_error_handlers(app)
    app.add_middleware(RequestGuard, settings=settings, metrics=app.state.metrics)
    for module in (
        *(files, uploads, checks, jobs, scorecards, models),
        *(chat, completions, embeddings, gradient, key_routes, page),
    ):
        app.include_router(module.router)
    _add_health(app)
    return app


def _pool(settings: ServiceSettings, models: ModelStore) -> ModelPool:
    if settings.backend == "own":
        return ModelPool(most_loaded=settings.max_loaded_models)
    from .vllm.pool import vllm_pool  # imports what answers need, which others load with the first model

    return vllm_pool(settings, models)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    with locked_folder(state.settings.folder):
        await run_in_threadpool(state.blobs.clean_up)
        await run_in_threadpool(state.pool.start)
        await run_in_threadpool(state.gradient_adapters.clean_up)
        workers = WorkerProcesses(state.settings) if state.settings.workers else None
        if workers is not None:
            await run_in_threadpool(workers.start)
        state.workers = workers
        sweeping = asyncio.create_task(_sweep(app))
        try:
            yield
        finally:
            if workers is not None:
                await run_in_threadpool(workers.end)
            await state.scorecards.end()
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            await run_in_threadpool(state.gradient_training.close)
            state.embeddings.close()
            await run_in_threadpool(state.pool.close)
            state.database.close()


async def _sweep(app: FastAPI) -> None:
    while True:
        try:
            await run_in_threadpool(sweep, app.state.database, app.state.blobs)
            await run_in_threadpool(remove_runs, app.state.settings, app.state.database)
        except Exception as error:  # a full disk, say: the next time may be better
            log_failure(error, "sweep")
        await asyncio.sleep(_SWEEP_S)


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz(request: Request) -> JSONResponse:
        """The database answers, each device has its worker, and models can be loaded."""
        with request.app.state.database.read():
            workers: WorkerProcesses | None = request.app.state.workers
        is_ready = request.app.state.pool.is_ready and (workers is None or workers.are_alive)
        return JSONResponse({"status": "ready" if is_ready else "starting"}, 200 if is_ready else 503)

    @app.get("/metrics")
    def metrics(request: Request, _key: CurrentKey) -> Response:
        """Figures for Prometheus."""
        return Response(request.app.state.metrics.text(), media_type=_TEXT)
