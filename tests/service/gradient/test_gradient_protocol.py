"""The unmodified ``gradientai`` SDK against the service."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from gradientai import Gradient
from gradientai.openapi.client.exceptions import ApiException, NotFoundException

from llama_index_finetune_structured.service.keys import KeyStore
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests.service.gradient.conftest import GradientService
from tests.service.gradient.running import sdk, served

ANSWER = '{"name":"red"}'


def parts(prompt: str, answer: str = ANSWER) -> dict[str, Any]:
    return {"inputs": [{"value": prompt, "trainable": False}, {"value": answer}]}


def new_adapter(gradient: Gradient, **options: Any) -> Any:
    return gradient.get_base_model(base_model_slug="tiny").create_model_adapter(name="colours", **options)


@pytest.fixture
def adapter(gradient: Gradient) -> Any:
    return new_adapter(gradient)


def test_an_adapter_is_made_trained_asked_and_deleted(gradient: Gradient, service: GradientService) -> None:
    adapter = new_adapter(gradient, rank=3, learning_rate=0.02)
    base = gradient.get_base_model(base_model_slug="tiny")
    query = "user: Describe.\nassistant: "
    untrained = adapter.complete(query=query, max_generated_token_count=12)
    assert untrained == base.complete(query=query, max_generated_token_count=12)
    losses = [adapter.fine_tune(samples=[parts(query)]) for _ in range(12)]
    assert losses[-1].sum_loss < losses[0].sum_loss
    answered = adapter.complete(query=query, max_generated_token_count=30)
    assert (answered.generated_output, answered.finish_reason) == (ANSWER, "stop")
    found = gradient.get_model_adapter(model_adapter_id=adapter.id)
    assert (found.name, found.base_model_id) == ("colours", base.id)
    assert adapter.id in [model.id for model in gradient.list_models(only_base=False)]
    (config,) = (service.folder / "gradient" / adapter.id).rglob("adapter_config.json")
    assert json.loads(config.read_text())["r"] == 3
    adapter.delete()
    assert not (service.folder / "gradient" / adapter.id).exists()
    for call in (adapter.delete, lambda: adapter.complete(query="x"), lambda: adapter.fine_tune(samples=[])):
        with pytest.raises(ApiException):
            call()
    assert adapter.id not in [model.id for model in gradient.list_models(only_base=False)]


def test_trainable_tokens_are_those_of_trainable_parts_and_the_stop_token(adapter: Any) -> None:
    whole = adapter.fine_tune(samples=[{"inputs": "2 red 3 blue"}])
    halves = adapter.fine_tune(
        samples=[{"inputs": [{"value": "2 red", "trainable": False}, {"value": " 3 blue"}]}]
    )
    # Nothing is before the first token of a text, so it cannot be predicted.
    first_word = adapter.fine_tune(
        samples=[{"inputs": [{"value": "2 red"}, {"value": " 3 blue", "trainable": False}]}]
    )
    counts = [reply.number_of_trainable_tokens for reply in (whole, halves, first_word)]
    assert counts[0] == counts[1] + counts[2]
    again = adapter.fine_tune(samples=[{"inputs": "2 red 3 blue<|im_end|>"}])
    assert again.number_of_trainable_tokens == counts[0]
    as_text = adapter.fine_tune(
        samples=[{"inputs": [{"value": "2 red 3 blue<|im_end|>", "parse_special_tokens": False}]}]
    )
    assert as_text.number_of_trainable_tokens > counts[0]


def test_a_query_is_sent_as_it_is_or_by_the_chat_template(adapter: Any) -> None:
    rendered = "<|im_start|>user\nDescribe.<|im_end|>\n<|im_start|>assistant\n"
    adapter.fine_tune(samples=[parts(rendered)])
    by_template = adapter.complete(query="Describe.", auto_template=True, max_generated_token_count=8)
    assert by_template == adapter.complete(query=rendered, max_generated_token_count=8)


def test_guidance_gives_one_of_its_choices(adapter: Any) -> None:
    guidance: Any = {"type": "choice", "value": ['say "no"', "yes, größer"]}
    assert adapter.complete(query="Well?", guidance=guidance).generated_output in guidance["value"]


def test_sampling_is_taken_from_the_request(adapter: Any) -> None:
    options: dict[str, Any] = {"query": "Tell", "max_generated_token_count": 24}
    greedy = adapter.complete(**options)
    assert adapter.complete(**options, temperature=5.0, top_k=1) == greedy
    assert adapter.complete(**options, temperature=1e-9, top_p=0.5) == greedy
    assert len({adapter.complete(**options, temperature=5.0).generated_output for _ in range(3)}) > 1


def test_a_loss_that_is_not_finite_leaves_the_adapter_as_it_was(
    adapter: Any, gradient: Gradient, service: GradientService
) -> None:
    adapter.fine_tune(samples=[parts("a")])
    before, weights = described(service, adapter.id), service.weights(adapter.id)
    with pytest.raises(ApiException) as raised:
        adapter.fine_tune(samples=[{**parts("b"), "multiplier": 1e300}])
    assert raised.value.status == 422
    assert body_of(raised.value)["type"] == "nanLoss"
    assert described(service, adapter.id) == before
    assert service.weights(adapter.id) == weights
    adapter.fine_tune(samples=[parts("b")])
    other = new_adapter(gradient)
    for text in "ab":
        other.fine_tune(samples=[parts(text)])
    assert service.weights(adapter.id) == service.weights(other.id)


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("fine-tune", {"samples": []}, 400, "bodyParsingError"),
        ("fine-tune", {"samples": [{"inputs": "a", "weight": 2}]}, 400, "bodyParsingError"),
        ("fine-tune", {"samples": [{"inputs": "a " * 9000}]}, 422, "unprocessableContent"),
        ("fine-tune", {"samples": [{"inputs": "a\ud800"}]}, 400, "bodyParsingError"),
        ("complete", {"query": "a " * 9000}, 422, "unprocessableContent"),
        ("complete", {"query": "a", "rag": {"collectionId": "x"}}, 404, "unknownRagCollection"),
        ("complete", {"query": "a", "maxGeneratedTokenCount": 512}, 400, "bodyParsingError"),
        ("complete", {"query": ""}, 400, "bodyParsingError"),
        ("summarize", {}, 404, "notFound"),
    ],
)
def test_refusals_have_the_protocols_shape(
    adapter: Any, service: GradientService, path: str, body: Any, status: int, kind: str
) -> None:
    reply = httpx.post(
        f"{service.host}/models/{adapter.id}/{path}",
        content=json.dumps(body),  # which escapes half a character
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert (reply.status_code, reply.json()["type"]) == (status, kind)
    assert reply.json().keys() == {"type", "message"}


def test_a_base_is_not_trained_and_unknown_models_are_not_found(
    gradient: Gradient, service: GradientService
) -> None:
    base_id = gradient.get_base_model(base_model_slug="tiny").id
    refused = httpx.post(f"{service.host}/models/{base_id}/fine-tune", json={"samples": [{"inputs": "a"}]})
    assert (refused.status_code, refused.json()["type"]) == (400, "modelIncapableOfFineTuning")
    with pytest.raises(NotFoundException, match="unknownModelAdapter"):
        gradient.get_model_adapter(model_adapter_id="x" * 50)
    unknown = httpx.post(f"{service.host}/models", json={"model": {"baseModelId": "x", "name": "y"}})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "unknownBaseModel")


def test_an_error_names_the_sample(adapter: Any) -> None:
    with pytest.raises(ApiException, match=r"samples\[1\] has no trainable token"):
        adapter.fine_tune(samples=[parts("a"), {"inputs": [{"value": "b", "trainable": False}]}])


def test_a_key_sees_its_own_adapters_alone_and_needs_the_scope(restarted: ServiceSettings) -> None:
    with served(restarted) as (url, app):
        keys: KeyStore = app.state.keys
        secrets = {name: keys.add(name, scopes=scopes) for name, scopes in (("a", None), ("b", ["chat"]))}
        clients = {name: sdk(f"{url}/api", secret) for name, secret in secrets.items()}
        adapter = new_adapter(clients["a"])
        assert [model.id for model in clients["b"].list_models(only_base=False)] == [adapter.base_model_id]
        other: Any = clients["b"]
        with pytest.raises(NotFoundException, match="unknownModelAdapter"):
            other.get_model_adapter(model_adapter_id=adapter.id)
        with pytest.raises(ApiException, match="forbidden"):
            new_adapter(other)
        reply = httpx.get(f"{url}/api/models")
        assert (reply.status_code, reply.json()["type"]) == (401, "unauthorized")


def described(service: GradientService, adapter_id: str) -> Any:
    return httpx.get(f"{service.host}/models/{adapter_id}", timeout=60).json()


def body_of(error: ApiException) -> Any:
    return json.loads(error.body)
