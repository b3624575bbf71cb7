"""What a node's log says of an error: on a real node no record, label or path of a patient, whatever went wrong."""

from __future__ import annotations

import traceback

from common.errors import BackboneMismatchError, ConfigError, FederationError


def words_for(error: Exception, *, simulated: bool) -> str:
    """The sentence for the log.

    Args:
        error: that a message ended in.
        simulated: whether the node is; then the whole truth may be told, as nobody else reads it.
    """
    if simulated and isinstance(error, FederationError):
        return str(error)
    if simulated:
        return "".join(traceback.format_exception(error))
    if isinstance(error, ConfigError) and not isinstance(error, BackboneMismatchError):
        return "its records or its configuration cannot be used; `fedgraft node check` says why"
    if isinstance(error, FederationError):
        return str(error)  # of plans, budgets, digests and messages: public constants
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    return f"{type(error).__name__} in {places}; report this"
