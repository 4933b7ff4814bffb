"""In: base model names, messages. Out: models, tokenizers, adapters, token ids of prompts and answers."""
