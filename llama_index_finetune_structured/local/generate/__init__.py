"""Prompts in, generated answers out: batched, streamed, and held to a schema by a grammar."""
