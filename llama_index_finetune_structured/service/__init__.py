"""HTTP requests in OpenAI's protocol -> files, fine-tuning jobs and models on this machine."""
