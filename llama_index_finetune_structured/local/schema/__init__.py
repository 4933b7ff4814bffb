"""In: JSON schemas and training answers. Out: bounded schemas that a grammar can be compiled from."""
