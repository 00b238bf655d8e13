"""The studies by name: a line here and a file of its own for each."""

from reproduce.rehmer_kroll import page as rehmer_kroll
from reproduce.study import Study

STUDIES: dict[str, Study] = {"rehmer-kroll": rehmer_kroll.STUDY}
