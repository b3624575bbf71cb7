"""A call is repeated while the other side has trouble of its own, and for nothing else."""

from __future__ import annotations

import httpx
import pytest

from common.patience import patient


def answering(*codes: int) -> tuple[list[int], httpx.Client]:
    """A client whose server answers with these codes, one after the other, and those that it has left."""
    left = list(codes)
    return left, httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(left.pop(0))))


def test_trouble_is_waited_out() -> None:
    left, client = answering(500, 503, 200, 200)
    assert patient(lambda: client.get("http://there").raise_for_status().status_code, pause_s=0.0)() == 200
    assert left == [200]


def test_a_refusal_is_final() -> None:
    left, client = answering(500, 403, 200)
    with pytest.raises(httpx.HTTPStatusError):
        patient(lambda: client.get("http://there").raise_for_status(), pause_s=0.0)()
    assert left == [200]


def test_trouble_that_does_not_end_is_said() -> None:
    left, client = answering(500, 502, 503, 200)
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        patient(lambda: client.get("http://there").raise_for_status(), pause_s=0.0, tries=3)()
    assert left == [200]
