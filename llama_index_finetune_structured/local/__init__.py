"""The local trainer: base models, prompts, prefix-tree packing, training, checkpoints, adapters."""
