"""What stands between a bundle that somebody hands out and its code: its digest, and its own place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from common.warm_executor import approved_only, confined


def test_only_approved_bytes_are_unpacked(tmp_path: Path) -> None:
    approved, unpacked = tmp_path / "approved.json", list[bytes]()
    approved.write_text(json.dumps({"apps": {hashlib.sha256(b"good").hexdigest(): "looked at"}}))
    install = approved_only(unpacked.append, approved)
    install(b"good")
    with pytest.raises(PermissionError, match="not approved"):
        install(b"bad")
    approved.write_text('{"apps": {}}')  # taken back
    with pytest.raises(PermissionError):
        install(b"good")
    approved.unlink()
    with pytest.raises(OSError, match="No such file"):
        install(b"good")
    assert unpacked == [b"good"]


@pytest.mark.parametrize("named", ["apps/../../elsewhere.abc", "../apps/other", "apps/deep/er", "/tmp/dropped"])
def test_an_app_is_found_in_its_own_place_only(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "apps").mkdir(parents=True)
    monkeypatch.setenv("FLWR_HOME", str(home))
    assert confined(lambda: home / "apps" / "fedgraft")() == home / "apps" / "fedgraft"
    with pytest.raises(PermissionError, match="named as its bundle is"):
        confined(lambda: home / named)()
