"""The studies by name: a line here and a file or folder of its own for each."""

from reproduce import answer
from reproduce.rehmer_kroll import page as rehmer_kroll
from reproduce.study import Study

STUDIES: dict[str, Study] = {"answer": answer.STUDY, "rehmer-kroll": rehmer_kroll.STUDY}
