"""Training files -> a report of every problem in them, and of what will be trained."""
