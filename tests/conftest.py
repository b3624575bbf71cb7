"""Settings shared by all tests: a cache of their own, and property tests that a busy machine does not fail."""

from __future__ import annotations

import atexit
import os
import tempfile

import pytest
from hypothesis import settings

from common.paths import CACHE

settings.register_profile("fedgraft", deadline=None, derandomize=True)  # the same examples everywhere, every time
settings.register_profile("explore", deadline=None)  # make explore: others each time
settings.load_profile("fedgraft")

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the variable
    _cache = tempfile.TemporaryDirectory(prefix="fedgraft-tests-")
    atexit.register(_cache.cleanup)
    os.environ[CACHE] = _cache.name


LONGEST = ("test_ray_engine.py", "test_packaging.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes: at the end, one worker would wait for it."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
