"""What a user calls from Python: reconstruct videos, train a model."""
