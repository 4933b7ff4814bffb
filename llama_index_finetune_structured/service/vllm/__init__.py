"""A vLLM server in place of models in this process: its processes, its protocol, and the engine over it."""
