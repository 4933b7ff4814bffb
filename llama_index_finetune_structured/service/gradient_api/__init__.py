"""Gradient's protocol: requests, adapters and their versions, and training one optimizer step a request."""
