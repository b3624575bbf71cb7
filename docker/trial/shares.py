"""Deals scikit-learn's digits out to the nodes of compose.yml, with test records for the server.

Usage: ``python shares.py FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from common.data import load_source

SHARES = {"north": (0, 500), "south": (500, 1000), "west": (1000, 1500), "test": (1500, None)}

if __name__ == "__main__":
    digits = load_source("digits")
    images, labels = np.asarray(digits.inputs), np.asarray(digits.labels)
    for name, (first, last) in SHARES.items():
        path = Path(sys.argv[1]) / f"{name}.npz"
        if not path.exists():
            np.savez(path, images=images[first:last], labels=labels[first:last])
