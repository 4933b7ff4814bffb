"""Embeddings through the ``openai`` SDK, of a tiny model that sentence-transformers saved."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured.cli import app as cli
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.service.embedding_folders import require_embedding_model
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests.service.serving import rows, sdk, serving

library = pytest.importorskip("sentence_transformers")

TEXTS = ["the red house", "größe", "a blue house", "."]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "red",
    "house",
    "a",
    "blue",
    "gr",
    "##ö",
    "##ß",
    "##e",
    ".",
]


@pytest.fixture(scope="session")
def embedding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights, a mean over its tokens, and at most 16 of them."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), strip_accents=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = Transformer(str(folder), max_seq_length=16)
    model = library.SentenceTransformer(modules=[words, Pooling(16, "mean")], device="cpu")
    saved = tmp_path_factory.mktemp("embeddings") / "bert"
    model.save(str(saved), create_model_card=False)
    return saved


@pytest.fixture(scope="session")
def embedding_service(embedding_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServiceSettings(
        folder=tmp_path_factory.mktemp("service"),
        bases={"tiny": "/no/such/base"},
        embeddings={"bert": str(embedding_folder)},
        workers=False,
    )
    with serving(settings) as base:
        yield base


@pytest.fixture
def client(embedding_service: str) -> openai.OpenAI:
    return sdk(embedding_service)


@pytest.fixture(scope="session")
def own(embedding_folder: Path) -> Any:
    """The same model in this process."""
    return library.SentenceTransformer(str(embedding_folder), device="cpu")


def vectors_of(reply: Any) -> Any:
    return np.array([entry.embedding for entry in reply.data])


def test_embeddings_are_those_of_the_library_in_both_encodings(client: openai.OpenAI, own: Any) -> None:
    expected = own.encode(TEXTS, normalize_embeddings=True)
    for encoding in ("float", "base64"):
        reply: Any = client.embeddings.create(model="bert", input=TEXTS, encoding_format=encoding)
        if encoding == "base64":
            found = np.array([np.frombuffer(decoded(entry.embedding), "<f4") for entry in reply.data])
        else:
            found = vectors_of(reply)
        assert np.allclose(found, expected, atol=1e-6)
        assert [entry.index for entry in reply.data] == list(range(len(TEXTS)))
    sdk_default = client.embeddings.create(model="bert", input=TEXTS)  # which asks for base64 and reads it
    assert np.allclose(vectors_of(sdk_default), expected, atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def decoded(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


def test_usage_counts_the_tokens_of_all_inputs(client: openai.OpenAI, own: Any) -> None:
    reply = client.embeddings.create(model="bert", input=TEXTS)
    tokens = sum(len(ids) for ids in own.tokenizer(TEXTS)["input_ids"])
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (tokens, tokens)


def test_tokens_are_those_of_the_model(client: openai.OpenAI, own: Any) -> None:
    expected = vectors_of(client.embeddings.create(model="bert", input=TEXTS[:2]))
    for special in (True, False):
        ids = own.tokenizer(TEXTS[:2], add_special_tokens=special)["input_ids"]
        assert np.allclose(vectors_of(client.embeddings.create(model="bert", input=ids)), expected, atol=1e-6)
    one = client.embeddings.create(model="bert", input=own.tokenizer(TEXTS[0])["input_ids"])
    assert np.allclose(vectors_of(one), expected[:1], atol=1e-6)


def test_many_inputs_and_many_clients_get_their_own(embedding_service: str, own: Any) -> None:
    texts = [" ".join(WORDS[4 + n % 5 :][:3]) for n in range(70)]
    expected = own.encode(texts, normalize_embeddings=True)

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{embedding_service}/v1", api_key="none") as client:
            return await asyncio.gather(
                *(
                    client.embeddings.create(model="bert", input=texts[n:] + texts[:n])
                    for n in range(0, 70, 20)
                )
            )

    for start, reply in zip(range(0, 70, 20), asyncio.run(ask()), strict=True):
        assert np.allclose(vectors_of(reply), np.roll(expected, -start, axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"model": "text-embedding-3-small"}, "model_not_found", "There are: bert"),
        ({"model": "tiny"}, "unsupported_model", "makes no embeddings. Embedding models: bert"),
        ({"input": "red " * 40}, "context_length_exceeded", r"input\[0\] has 42 tokens"),
        ({"input": ["red", ""]}, None, "input"),
        ({"input": []}, None, "input"),
        ({"input": [[4, 99]]}, None, "99 is no token of this model"),
        ({"input": [[0]]}, None, "no text"),
        ({"dimensions": 8}, None, "send 16"),
        ({"encoding_format": "int8"}, None, "encoding_format"),
        ({"extra_body": {"truncate": True}}, None, "truncate"),
    ],
)
def test_what_is_not_supported_is_refused(
    client: openai.OpenAI, options: dict[str, Any], code: str | None, text: str
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=text) as raised:
        client.embeddings.create(**{"model": "bert", "input": "red", **options})
    assert raised.value.code == code


def test_the_models_own_dimensions_may_be_asked_for(client: openai.OpenAI) -> None:
    assert len(client.embeddings.create(model="bert", input="red", dimensions=16).data[0].embedding) == 16


def test_without_an_embedding_model_the_error_says_how_to_add_one(tmp_path: Path) -> None:
    settings = ServiceSettings(folder=tmp_path, bases={"tiny": "/no/such/base"}, workers=False)
    with serving(settings) as base, pytest.raises(openai.NotFoundError, match="--embeddings NAME=FOLDER"):
        sdk(base).embeddings.create(model="text-embedding-3-small", input="red")


def test_an_embedding_model_is_listed_and_found_as_other_models_are(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["tiny", "bert"]
    assert client.models.retrieve("bert") == listed["bert"]
    assert (listed["bert"].object, listed["bert"].owned_by) == ("model", "embeddings")
    with pytest.raises(openai.PermissionDeniedError, match="cannot be deleted"):
        client.models.delete("bert")


def test_an_embedding_model_is_refused_where_a_model_is_asked_or_tuned(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", rows(1)), purpose="fine-tune").id
    message: Any = {"role": "user", "content": "red"}
    check = {"model": "bert", "training_file": file}
    calls: list[Callable[[], Any]] = [
        lambda: client.chat.completions.create(model="bert", messages=[message]),
        lambda: client.completions.create(model="bert", prompt="red"),
        lambda: client.fine_tuning.jobs.create(model="bert", training_file=file),
        lambda: client.post("/fine_tuning/checks", body=check, cast_to=object),
    ]
    for call in calls:
        with pytest.raises(openai.BadRequestError, match="'bert' is an embedding model") as raised:
            call()
        assert (raised.value.code, raised.value.param) == ("unsupported_model", "model")


def without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def unreadable(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x00" * 20)


def replaced(folder: Path, name: str, before: str, after: str) -> None:
    text = (folder / name).read_text()
    assert before in text
    (folder / name).write_text(text.replace(before, after))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: without(folder, "config.json"), "holds no config.json"),
        (lambda folder: without(folder, "model.safetensors"), "holds no model.safetensors"),
        (lambda folder: unreadable(folder, "model.safetensors"), "is no embedding model"),
        (lambda folder: unreadable(folder, "modules.json"), "is no embedding model"),
        (lambda folder: replaced(folder, "config.json", '"bert"', '"no_such_kind"'), "no_such_kind"),
        (lambda folder: shutil.rmtree(folder / "1_Pooling"), "1_Pooling, which is not there"),
        (lambda folder: replaced(folder, "modules.json", "sentence_transformers", "own"), "code of its own"),
    ],
)
def test_a_wrong_folder_is_told_at_the_start(
    embedding_folder: Path, tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    folder = shutil.copytree(embedding_folder, tmp_path / "bert")
    require_embedding_model(folder)
    damage(folder)
    with pytest.raises(ConfigurationError, match=told):
        require_embedding_model(folder)


@pytest.mark.parametrize(
    ("name", "told"),
    [("bert", "has no modules.json and is a LlamaForCausalLM"), ("tiny", "is the name of a base model too")],
)
def test_the_command_does_not_start_with_an_embedding_model_that_is_none(
    tiny_llama: Path, tmp_path: Path, name: str, told: str
) -> None:
    models = ["--base", f"tiny={tiny_llama}", "--embeddings", f"{name}={tiny_llama}"]
    result = CliRunner().invoke(cli, ["serve", "--folder", str(tmp_path), *models])
    assert result.exit_code == 1
    assert told in " ".join(result.output.split())
