"""Documents and an LLM -> chunks, questions, answers, retrieval-augmented Examples."""
