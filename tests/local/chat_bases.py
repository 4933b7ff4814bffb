"""Small tokenizers of every kind that base models have, and the chat templates of eight families."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_GENERATION = "{% if add_generation_prompt %}"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    + _GENERATION
    + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Of Qwen3, without tools: looks for tool results among the questions, and cuts reasoning out of earlier answers.
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
      and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' }}
            {{- reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}
{%- endif %}"""
# Of Llama 3.1: trims, prints the date, and writes tool results as JSON.
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now(\"%d %b %Y\") %}{%- else %}{%- set date_string = '26 Jul 2024' %}"
    "{%- endif %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}{{- 'Today Date: ' + date_string + '\\n\\n' }}"
    "{{- system_message }}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}{%- if message.role == 'tool' %}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}{{- message.content | tojson }}{{- '<|eot_id|>' }}"
    "{%- else %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# Phi-3-mini's first: it leaves a system message out.
PHI3 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}"
)
# Mistral v0.3's, without tools: a system message stands before the last question.
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content']|trim + eos_token}}"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content']"
    " + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
GRANITE = (
    "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] +"
    " '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "qwen3": QWEN3, "llama3": LLAMA3, "gemma": GEMMA, "phi3": PHI3, "mistral": MISTRAL,
    "zephyr": ZEPHYR, "granite": GRANITE,
}  # fmt: skip

SPECIAL = (
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "[INST]", "[/INST]",
    "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>",
)  # fmt: skip
ADDED = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<table>",
)
CORPUS = [
    "user assistant system model Today Date: 26 Jul 2024 When was Meddle made? It ends in here.\n\n",
    "<think>im_start user end of turn</think> tool_call <s> [INST] INST im_end eot_id {'a': 1} table",
    "Größe, naïve, 颜色, цвет: 1 22 333 4444 and   spaces \r\n lines",
] * 6


def _byte_level(
    normalizer: Any = None, *, prefix_space: bool = False, ignore_merges: bool = False
) -> Tokenizer:
    bare = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    bare.decoder = decoders.ByteLevel()
    if normalizer is not None:
        bare.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return bare


def _sentencepiece(scheme: str | None) -> Tokenizer:
    """As Llama 2's: byte fallback; spaces by Metaspace, or (None) by normalizers as in its first files."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    trained.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
        ),
    )
    config = json.loads(trained.to_str())
    config["model"]["byte_fallback"] = True
    config["added_tokens"] = [t for t in config["added_tokens"] if not t["content"].startswith("<0x")]
    bare = Tokenizer.from_str(json.dumps(config))
    space = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bare.decoder = decoders.Sequence(space)
    if scheme is None:
        bare.pre_tokenizer = pre_tokenizers.Sequence([])
        bare.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return bare


def _unigram() -> Tokenizer:
    """As T5's and XLM-R's: the control tokens are pieces of the model, with the best score there is."""
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[*SPECIAL, *ADDED], unk_token="<unk>", show_progress=False,
        initial_alphabet=sorted(set("".join([*SPECIAL, *ADDED, *CORPUS])) - {" ", "\n", "\r"}),
    )  # fmt: skip
    trained.train_from_iterator(CORPUS, trainer)
    return trained


def _wordpiece() -> Tokenizer:
    trained = Tokenizer(models.WordPiece(unk_token="<unk>"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    trained.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=[*SPECIAL, *ADDED], show_progress=False,
        initial_alphabet=sorted(set("".join([*SPECIAL, *ADDED, *CORPUS]).lower()) - set(" \n\r")),
    )  # fmt: skip
    trained.train_from_iterator([*CORPUS, *SPECIAL, *ADDED], trainer)
    return trained


BACKENDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": _byte_level,
    "byte-level, whole words first": lambda: _byte_level(ignore_merges=True),
    "byte-level, prefix space": lambda: _byte_level(prefix_space=True),
    "byte-level, NFKC": lambda: _byte_level(normalizers.NFKC()),
    "byte-level, lowercase": lambda: _byte_level(normalizers.Lowercase()),
    "sentencepiece, first": lambda: _sentencepiece("first"),
    "sentencepiece, always": lambda: _sentencepiece("always"),
    "sentencepiece, normalizers": lambda: _sentencepiece(None),
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}
LOSSLESS = [
    "byte-level",
    "byte-level, whole words first",
    "sentencepiece, first",
    "sentencepiece, normalizers",
]


def tokenizer(backend: str, template: str | None, **flags: bool) -> PreTrainedTokenizerFast:
    """``flags``: of the control tokens, such as ``rstrip``."""
    bare = BACKENDS[backend]()
    bare.add_special_tokens([AddedToken(text, special=True, **flags) for text in SPECIAL])
    # The defaults of added tokens that are not special: found after normalizers have run.
    bare.add_tokens([AddedToken(text, **{"normalized": True, **flags}) for text in ADDED])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bare, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    wrapped.chat_template = None if template is None else TEMPLATES[template]
    return wrapped
