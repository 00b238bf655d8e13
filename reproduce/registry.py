"""The studies by name: a line here and a file of its own for each."""

from reproduce.study import Study

STUDIES: dict[str, Study] = {}
