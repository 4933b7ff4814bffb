"""In: token rows and settings. Out: a trained PEFT model, and checkpoints to resume from."""
