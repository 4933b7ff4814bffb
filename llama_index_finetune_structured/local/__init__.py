"""The local engine, without LlamaIndex. In: Examples. Out: trained adapters, exports, generated answers."""
