"""What is heard of the user's own training step: calls, what they pass on, and the traces that are made of them."""
