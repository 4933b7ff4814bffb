"""Prompts -> answers, many at once, held to their schema."""
