"""A learning curve over a hosted engine: one job for each size, each followed and evaluated."""

from __future__ import annotations

import json

from llama_index_finetune_structured import FinetuneDataset, OpenAIFinetuneEngine, learning_curve
from llama_index_finetune_structured.engines.timeouts import Timeouts
from tests.evaluation.systems import Card, card, example
from tests.fakes.openai_server import OpenAIServer


def test_a_curve_submits_one_job_per_size_and_asks_each_tuned_model(timeouts: Timeouts) -> None:
    def knows_more(body: dict[str, object]) -> str:
        return json.dumps(card("held" if body["model"] in models[1:] else "other"))

    models: list[object] = []
    train = [example(f"How do I call train{n}?", card(f"train{n}")) for n in range(24)]
    held_out = [example(f"How do I call held{n}?", card("held")) for n in range(12)]

    with OpenAIServer(answer_chat=knows_more) as server:

        class Engine(OpenAIFinetuneEngine):
            def __init__(self, rows: FinetuneDataset) -> None:
                super().__init__(
                    "gpt-4.1-mini", rows, api_base=server.base, api_key=server.key, timeouts=timeouts
                )

            def finetune(self) -> None:
                super().finetune()
                models.append(self.wait().fine_tuned_model)

        curve = learning_curve(
            Engine,
            train,
            held_out,
            sizes=[12, 24],
            metric="exact_match",
            output_cls=Card,
            show_progress=False,
        )
        assert len(server.jobs) == 2
    assert [point.rate for _, point in curve.points] == [0, 1]
    assert "worth it" in curve.verdict()
