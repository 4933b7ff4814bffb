"""Token probabilities of an answer -> how sure each of its fields is, and where it stands in the prompt."""
