"""Functions that the tests run in processes they kill: an engine that submits or waits."""

from __future__ import annotations

import os
from pathlib import Path

from llama_index_finetune_structured.engines.gradient import GradientFinetuneEngine
from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.timeouts import Timeouts


def engine_at(
    base: str, key: str, data: Path, output_dir: Path, request_s: float = 20
) -> OpenAIFinetuneEngine:
    timeouts = Timeouts(request_s=request_s, settle_s=0.5, poll_s=0.05)
    return OpenAIFinetuneEngine(
        "gpt-4o-mini",
        data,
        api_base=base,
        api_key=key,
        output_dir=output_dir,
        timeouts=timeouts,
        validate_json=False,
    )


def submit(base: str, key: str, data: Path, output_dir: Path) -> None:
    engine_at(base, key, data, output_dir).finetune()


def submit_and_wait(base: str, key: str, data: Path, output_dir: Path) -> None:
    engine = engine_at(base, key, data, output_dir)
    engine.finetune()
    engine.wait(timeout_s=60)


def train_gradient(host: str, token: str, workspace: str, data: Path, runs: str) -> None:
    os.environ["LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS"] = (
        runs  # a fork server keeps the environment it was started in
    )
    GradientFinetuneEngine(
        base_model_slug="llama2-7b-chat",
        name="killed",
        data_path=data,
        host=host,
        access_token=token,
        workspace_id=workspace,
    ).finetune()
