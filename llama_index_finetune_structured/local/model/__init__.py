"""Names -> base models, tokenizers, adapters; messages -> prompts."""
