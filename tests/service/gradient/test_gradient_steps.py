"""Steps are whole or not there: restarts, kills, several clients at a time, lost replies, deletion in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradientai import Gradient
from gradientai.openapi.client.exceptions import NotFoundException
from hypothesis import given
from hypothesis.strategies import booleans, lists, sampled_from, text, tuples

from llama_index_finetune_structured import LoraLLM, LoraSettings
from llama_index_finetune_structured.local.model.base_models import resolve
from llama_index_finetune_structured.local.train.recipe import learning_rate_of
from llama_index_finetune_structured.service.errors import ApiError
from llama_index_finetune_structured.service.gradient_api import trainer as gradient_trainer
from llama_index_finetune_structured.service.gradient_api.requests import CreateModel, Sample
from llama_index_finetune_structured.service.gradient_api.samples import training_samples
from llama_index_finetune_structured.service.gradient_api.training import lora_settings
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests import tiny
from tests.local import families
from tests.service.gradient.conftest import GradientService
from tests.service.gradient.running import sdk, served
from tests.service.gradient.test_gradient_protocol import described, new_adapter, parts
from tests.service.serving import wait_for

TOKENIZER: Any = tiny.tokenizer()
SAMPLES: list[Any] = [parts(f"user: {n}\nassistant: ") for n in range(3)]


class SlowSave:
    """Lets the next save of a version wait, after its step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        save = gradient_trainer.StepTrainer.save

        def slow(trainer: Any, folder: Path) -> None:
            self.begun.set()
            assert self.go_on.wait(60)
            save(trainer, folder)

        monkeypatch.setattr(gradient_trainer.StepTrainer, "save", slow)


@pytest.fixture
def slow_save(monkeypatch: pytest.MonkeyPatch) -> SlowSave:
    return SlowSave(monkeypatch)


@pytest.fixture
def undisturbed(gradient: Gradient, service: GradientService) -> bytes:
    """The weights after one step for each sample."""
    adapter = new_adapter(gradient)
    for sample in SAMPLES:
        adapter.fine_tune(samples=[sample])
    return service.weights(adapter.id)


def test_a_restarted_service_goes_on_with_the_same_bytes(
    restarted: ServiceSettings, undisturbed: bytes
) -> None:
    adapter_id, answers = "", []
    for number, sample in enumerate(SAMPLES):
        with served(restarted) as (url, app):
            service = GradientService(f"{url}/api", restarted.folder, app)
            with service.client() as client:
                adapter = (
                    client.get_model_adapter(model_adapter_id=adapter_id) if number else new_adapter(client)
                )
                adapter_id = adapter.id
                answers.append(adapter.complete(query="a", max_generated_token_count=5))
                adapter.fine_tune(samples=[sample])
                assert service.weights(adapter_id) == undisturbed or number < 2
                leftover = service.folder / "gradient" / adapter_id / str(number + 2)
                leftover.mkdir()  # as of a step that was killed before it was committed
    with served(restarted) as (url, _):
        assert not leftover.exists()
    assert service.weights(adapter_id) == undisturbed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="steps are killed in forked processes here")
@pytest.mark.parametrize("points", [4, pytest.param(9, marks=pytest.mark.slow)])
def test_a_step_killed_at_any_point_is_there_or_not_and_an_acknowledged_one_is_never_lost(
    able_base: Path, tmp_path: Path, points: int
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.service.gradient.killed_steps",
            str(able_base),
            str(tmp_path),
            str(points),
        ],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["runs"]) == points
    for run in found["runs"]:
        assert run["killed"], run
        assert run["acknowledged"] <= run["steps"], run
        assert run["weights"] == found["undisturbed"], run
        assert run["leftovers"] == [], run


def test_steps_of_one_adapter_follow_each_other_while_completions_are_answered(
    gradient: Gradient, service: GradientService
) -> None:
    adapter = new_adapter(gradient)
    with ThreadPoolExecutor(6) as threads:
        steps = [threads.submit(adapter.fine_tune, samples=[SAMPLES[0]]) for _ in range(3)]
        answers = [threads.submit(adapter.complete, query="a", max_generated_token_count=4) for _ in range(8)]
        losses = [step.result().sum_loss for step in steps]
        assert all(answer.result().generated_output for answer in answers)
    assert len(set(losses)) == 3  # each began where another had ended
    one = new_adapter(gradient)
    for _ in range(3):
        one.fine_tune(samples=[SAMPLES[0]])
    assert service.weights(adapter.id) == service.weights(one.id)


def test_completions_serve_the_last_whole_version_during_a_step(
    gradient: Gradient, slow_save: SlowSave
) -> None:
    adapter = new_adapter(gradient)
    before = adapter.complete(query="a", max_generated_token_count=6)
    with ThreadPoolExecutor(1) as threads:
        step = threads.submit(adapter.fine_tune, samples=[SAMPLES[0]])
        assert slow_save.begun.wait(60)
        assert adapter.complete(query="a", max_generated_token_count=6) == before
        slow_save.go_on.set()
        step.result()


def test_a_keys_limit_of_jobs_is_one_of_steps_that_have_not_ended(
    restarted: ServiceSettings, slow_save: SlowSave
) -> None:
    with served(restarted) as (url, app), ThreadPoolExecutor(1) as threads:
        keys = {name: app.state.keys.add(name, max_waiting_jobs=1) for name in "ab"}
        adapters = {name: new_adapter(sdk(f"{url}/api", secret)) for name, secret in keys.items()}

        def fine_tune(name: str) -> httpx.Response:
            return httpx.post(
                f"{url}/api/models/{adapters[name].id}/fine-tune",
                json={"samples": [{"inputs": "red, blue"}]},
                headers={"authorization": f"Bearer {keys[name]}"},
                timeout=60,
            )

        first = threads.submit(fine_tune, "a")
        assert slow_save.begun.wait(60)
        refused = fine_tune("a")
        assert (refused.status_code, refused.json()["type"]) == (429, "failed")
        assert "This key has 1 steps" in refused.json()["message"]
        slow_save.go_on.set()
        assert first.result().status_code == 200
        assert [fine_tune(name).status_code for name in "ab"] == [200, 200]


def test_a_client_that_left_during_a_step_is_told_of_it_afterwards(
    gradient: Gradient, service: GradientService, slow_save: SlowSave
) -> None:
    adapter = new_adapter(gradient)
    before = described(service, adapter.id)["latestUpdateTime"]
    url, body = f"{service.host}/models/{adapter.id}/fine-tune", {"samples": [{"inputs": "red, blue"}]}
    with ThreadPoolExecutor(1) as threads, httpx.Client(timeout=60) as leaving:
        lost = threads.submit(leaving.post, url, json=body)
        assert slow_save.begun.wait(60)
        # Its connection is closed under it.
        leaving._transport._pool._connections[0]._connection._network_stream._sock.shutdown(2)  # type: ignore[attr-defined]
        with pytest.raises(httpx.TransportError):
            lost.result()
        wait_for(lambda: service.app.state.gradient_training._left)
        found = threads.submit(described, service, adapter.id)
        slow_save.go_on.set()
        assert found.result()["latestUpdateTime"] > before


def test_an_adapter_deleted_during_a_step_is_gone(
    gradient: Gradient, service: GradientService, slow_save: SlowSave
) -> None:
    adapter = new_adapter(gradient)
    with ThreadPoolExecutor(1) as threads:
        step = threads.submit(adapter.fine_tune, samples=[SAMPLES[0]])
        assert slow_save.begun.wait(60)
        adapter.delete()
        slow_save.go_on.set()
        with pytest.raises(NotFoundException, match="unknownModelAdapter"):
            step.result()
    assert not (service.folder / "gradient" / adapter.id).exists()


def test_a_version_in_use_stays_until_nobody_uses_it(gradient: Gradient, service: GradientService) -> None:
    adapter, adapters = new_adapter(gradient), service.app.state.gradient_adapters
    adapter.fine_tune(samples=[SAMPLES[0]])
    with adapters.serving(adapter.id, "local") as first:
        adapter.fine_tune(samples=[SAMPLES[0]])
        with adapters.serving(adapter.id, "local") as second:
            adapter.delete()
            assert first.adapter.is_dir()
            assert second.adapter.is_dir()
        assert not second.adapter.exists()
    assert not first.adapter.parent.parent.exists()


@given(
    parts=lists(
        tuples(
            text("aß<|", min_size=1) | sampled_from(["<|im_end|>", "a<|im_start|>b"]), booleans(), booleans()
        ),
        min_size=1,
        max_size=6,
    )
)
def test_rows_train_each_trainable_token_once_after_all_that_is_before_it(
    parts: list[tuple[str, bool, bool]],
) -> None:
    stop, ids, trained = 1, list[int](), list[bool]()
    for value, trainable, parsed in parts:
        tokens = TOKENIZER(value, add_special_tokens=False)["input_ids"] if parsed else as_bytes(value)
        ids += tokens
        trained += [trainable] * len(tokens)
    if trained[-1] and ids[-1] != stop:
        ids, trained = [*ids, stop], [*trained, True]
    inputs = [{"value": v, "trainable": t, "parseSpecialTokens": p} for v, t, p in parts]
    if not any(trained[1:]):
        with pytest.raises(ApiError, match="no trainable token"):
            training_samples([Sample.model_validate({"inputs": inputs})], TOKENIZER, stop, 1000)
        return
    (sample,) = training_samples([Sample.model_validate({"inputs": inputs})], TOKENIZER, stop, 1000)
    places = list[int]()
    for row in sample.rows:
        assert list(row.prompt + row.answer) == ids[: len(row)]
        places += range(len(row.prompt), len(row))
    assert places == [place for place in range(1, len(ids)) if trained[place]]


def as_bytes(value: str) -> list[int]:
    """The tokens of a text in which nothing is a control token."""
    return [
        TOKENIZER.convert_tokens_to_ids(token)
        for character in value
        for token in TOKENIZER.tokenize(character)
    ]


def test_rank_and_rate_are_the_requests_or_the_services(able_base: Path, tmp_path: Path) -> None:
    model = {"baseModelId": "x", "name": "y"}
    plain = ServiceSettings(folder=tmp_path, training=LoraSettings(rank=64, seed=5))
    lora = lora_settings(plain, str(able_base), CreateModel.model_validate({"model": model}))
    assert (lora["rank"], lora["alpha"], lora["seed"]) == (32, 64, 5)
    assert lora["learning_rate"] == pytest.approx(learning_rate_of(32, 1) / 2)
    asked = {"loraHyperparameters": {"rank": 3}, "trainingArguments": {"learningRate": 0.5}}
    given = CreateModel.model_validate({"model": model, "initialHyperparameters": asked})
    lora = lora_settings(plain, str(able_base), given)
    assert (lora["rank"], lora["alpha"], lora["learning_rate"]) == (3, 6, 0.5)


LORA = gradient_trainer.StepLora(rank=2, alpha=4, upper_layers=None, learning_rate=0.01, seed=0)


def trainer_of(base: Path) -> tuple[gradient_trainer.StepTrainer, Any]:
    """A trainer on a served base, and that base in memory."""
    model = LoraLLM(base_model=str(base))._loaded
    made = gradient_trainer.StepTrainer(
        model.engine.model, model.tokenizer, resolve(base), LORA, None, piece_tokens=8192, checkpointed=False
    )
    return made, model


def rows_of(model: Any, *samples: dict[str, Any]) -> list[Any]:
    found = [Sample.model_validate(sample) for sample in samples]
    return training_samples(found, model.tokenizer, model.stop_id, 500)


@pytest.mark.parametrize(
    ("family", "is_shared"), [("gpt2", True), ("gemma3_text", True), ("qwen3_moe", False)]
)
def test_steps_on_the_served_weights_are_those_on_a_base_of_their_own(
    family: str, is_shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, model = trainer_of(families.save(family, tmp_path))
    served = {name: weight.clone() for name, weight in model.engine.model.named_parameters()}
    assert shared.shares_base is is_shared
    monkeypatch.setattr(gradient_trainer, "_sharing_copy", lambda *_: None)
    own, _ = trainer_of(tmp_path)
    rows = rows_of(model, {"inputs": "red, blue"}, {"inputs": "red, green"})
    for _ in range(2):
        assert shared.step(rows) == own.step(rows)
    for ours, theirs in zip(shared._weights, own._weights, strict=True):
        assert ours.equal(theirs)
    for name, weight in model.engine.model.named_parameters():
        assert weight.equal(served[name])


def test_a_multiplier_weighs_a_samples_loss(able_base: Path) -> None:
    def gradient_of(*samples: dict[str, Any]) -> Any:
        trainer, model = trainer_of(able_base)
        trainer._gradient(rows_of(model, *samples))
        return [weight.grad for weight in trainer._weights]

    first, second = {"inputs": "red, blue"}, {"inputs": "Größe 3"}
    heavy = {**first, "fineTuningParameters": {"multiplier": 3.0}}
    thrice = gradient_of(first, first, first, second)
    weighted = gradient_of(heavy, second)
    # Means are over other numbers of tokens: the directions are the same.
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(thrice, weighted, strict=True) if a.any()]
    ratios = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
    assert ratios == pytest.approx([1.0] * len(ratios), abs=1e-4)
