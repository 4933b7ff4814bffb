"""Example <-> one line of a training file: OpenAI, Gradient, TRL, preferences; and what any line holds."""
