"""Documents and an LLM -> questions, answers, retrieval-augmented rows."""
