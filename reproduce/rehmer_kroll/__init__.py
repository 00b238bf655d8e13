"""Rehmer & Kroll 2020 examined: do gated units avoid large local gradients, and is that why they are easier to train?"""
