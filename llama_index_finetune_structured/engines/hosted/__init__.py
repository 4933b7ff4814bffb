"""Fine-tuning over OpenAI's protocol: training data in, a job submitted once, its model as an LLM out."""
