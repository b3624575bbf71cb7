"""What can go wrong, one class per reaction.

Every message is one sentence that says what was expected, what came, and what to do. It never carries records,
features or updates.
"""

from __future__ import annotations


class FederationError(Exception):
    """Base of every error that fedgraft raises on purpose; its text is shown to the user without a traceback."""


class ConfigError(FederationError):
    """The input (configuration, data, weights, files) is not usable: refuse to start."""


class ProtocolError(FederationError):
    """A peer sent something unusable: drop that node and go on."""


class PrivacyError(FederationError):
    """Going on would break a privacy promise: stop. Never a warning."""


class BudgetSpentError(PrivacyError):
    """The release would pass the cap that the hospital set."""


class BackboneMismatchError(ConfigError):
    """The backbone at hand is not the one that is meant."""


class BrokenChainError(PrivacyError):
    """A ledger is not as it was written, so what was spent is unknown."""


class ReleasedOnceError(PrivacyError):
    """Another reply to the same question was committed before this one."""
