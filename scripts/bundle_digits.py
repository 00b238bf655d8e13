"""Writes src/throughtime/tasks/data/digits.npz from scikit-learn's copy of the digits. Run once; a test compares."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

DESTINATION = Path(__file__).parents[1] / "src" / "throughtime" / "tasks" / "data" / "digits.npz"

if __name__ == "__main__":
    digits = load_digits()
    np.savez_compressed(DESTINATION, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
