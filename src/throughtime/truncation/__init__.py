"""Truncated BPTT: what a window loses, what it costs, and which one to use."""
