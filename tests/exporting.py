"""Tiny base models with trained byte-level BPE tokenizers, and adapters that change their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedTokenizerFast, Qwen3Config

from llama_index_finetune_structured import FinetuneDataset, LoraFinetuneEngine, LoraSettings
from tests import tiny

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS: dict[str, Any] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": lambda: _split(r"\p{N}{1,3}"),
    "qwen2": lambda: _split(r"\p{N}"),
}
CORPUS = [
    "A colour has a name and is warm or not. Red 255 is warm, blue 1234 is not; 'they're said the painter's.\n\n",
    '{"name":"red","warm":true} {"name":"blue","warm":false} Describe colour 12, 345 and 6789.\t\tEnd.  ',
    "Größe, naïve, 颜色, цвет: 1 22 333 4444 and   spaces \r\n lines",
] * 4


class Colour(BaseModel):
    name: str
    warm: bool


def _split(number: str) -> Any:
    words = pre_tokenizers.Split(Regex(WORDS % number), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def tokenizer(cuts: str = "smollm") -> PreTrainedTokenizerFast:
    bare = Tokenizer(models.BPE(ignore_merges=cuts == "llama-bpe"))
    bare.pre_tokenizer = CUTS[cuts]()
    bare.decoder = decoders.ByteLevel()
    if cuts == "qwen2":
        bare.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )
    wrapped.chat_template = tiny.TEMPLATE
    return wrapped


def config(kind: str) -> Any:
    if kind == "qwen3":
        return Qwen3Config(**_sizes(tiny.config("qwen2")), tie_word_embeddings=True)
    if kind == "mistral":
        return MistralConfig(**_sizes(tiny.config("llama")), sliding_window=None)
    found = tiny.config("llama" if kind == "llama3" else kind)
    if kind == "llama3":
        found.rope_parameters = {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        }  # fmt: skip
    return found


def _sizes(other: Any) -> dict[str, Any]:
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    return {name: getattr(other, name) for name in names.split()} | {"head_dim": 8}


def save_base(kind: str, folder: Path, *, cuts: str = "smollm") -> Path:
    import torch

    words, found = tokenizer(cuts), config(kind)
    found.vocab_size = len(words) + 4  # bases often have more rows than their tokenizer has tokens
    found.bos_token_id, found.eos_token_id, found.pad_token_id = 0, 1, 1
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(found).float()
    for weight in model.parameters():  # a wide spread, so that no two tokens are nearly equally likely
        if weight.dim() > 1:
            weight.data.mul_(4)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def colours(rows: int = 4) -> FinetuneDataset:
    names = ["red", "blue", "orange", "green"]
    pairs = [(f"Describe colour {n}.", Colour(name=names[n % 4], warm=n % 2 == 0)) for n in range(rows)]
    return FinetuneDataset.from_pairs(pairs, output_cls=Colour, system_prompt="You know colours.")


def train(base: Path, output: Path) -> LoraFinetuneEngine:
    """An engine that took two large steps, so that its model differs much from the base."""
    settings = LoraSettings(rank=8, alpha=16, batch_size=4, epochs=3, learning_rate=5e-2)
    engine = LoraFinetuneEngine(colours(), base_model=base, output_dir=output, config=settings)
    engine.finetune()
    return engine
