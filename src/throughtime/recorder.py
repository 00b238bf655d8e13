"""Record one backward pass of the user's own training step."""
