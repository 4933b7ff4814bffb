"""Training files -> every problem in them, and what will be trained."""
