"""Token rows -> a trained adapter."""
