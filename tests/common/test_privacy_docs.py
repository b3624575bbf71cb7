"""The table of pitfalls names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def named_tests() -> list[tuple[str, str]]:
    """(file, test) pairs; within a line an ellipsis stands for the file named before it."""
    pairs = []
    for line in (ROOT / "docs" / "privacy-pitfalls.md").read_text().splitlines():
        file = ""
        for place, name in re.findall(r"`([\w/.…]+)::(\w+)`", line):
            file = file if place == "…" else place
            pairs.append((file, name))
    return pairs


def test_every_test_that_the_pitfalls_name_exists() -> None:
    assert len(named_tests()) > 40
    for file, name in named_tests():
        assert re.search(rf"(def |class |^){name}\b", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"
