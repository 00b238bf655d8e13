"""The numbers of docs/answer.md that need trained networks: what gates say of units, and what the gradient does."""

from reproduce.answer.study import STUDY

__all__ = ["STUDY"]
