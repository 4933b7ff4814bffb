"""JSON schemas -> schemas that a grammar can hold an answer to."""
