"""In: training data. Out: training runs, and the tuned model as a LlamaIndex LLM."""
