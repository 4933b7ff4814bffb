"""Training rows -> a tuned model, scored with its base on held-out rows."""
