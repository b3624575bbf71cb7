"""Whether bubblewrap can make namespaces here: without them nothing is confined, and nothing of it is tested."""

from __future__ import annotations

import shutil
import subprocess
from functools import lru_cache


@lru_cache(maxsize=1)
def can_confine() -> bool:
    """Try it."""
    if shutil.which("bwrap") is None:
        return False
    tried = ["bwrap", "--ro-bind", "/", "/", "--unshare-user", "--unshare-net", "--unshare-pid", "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0
