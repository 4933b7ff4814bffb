"""This package's own hosted engine against this package's own service."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_index_finetune_structured import OpenAIFinetuneEngine
from tests.fakes.rows import json_schema_row, write_rows
from tests.service.conftest import Running


@pytest.mark.usefixtures("worker")
def test_the_hosted_engine_trains_at_the_service(service: Running, tmp_path: Path) -> None:
    engine = OpenAIFinetuneEngine(
        "tiny",
        write_rows(tmp_path / "train.jsonl", json_schema_row),
        api_base=f"{service.base}/v1",
        api_key=service.add_key(),
        output_dir=tmp_path / "run",
        validate_json=False,
    )
    engine.finetune()
    engine.wait()
    job = engine.get_current_job()
    assert job.status == "succeeded"
    assert (job.fine_tuned_model or "").startswith("ft:tiny:local:")
    assert next(row["step"] for row in engine.metrics()) == 1
