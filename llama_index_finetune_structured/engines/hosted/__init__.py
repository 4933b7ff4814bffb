"""Fine-tuning over OpenAI's protocol: a training file -> a job, submitted once and followed."""
