"""Kinds of heads that are dealt with by name where no head is made: in configurations, and in what nodes are told."""

from __future__ import annotations

SOLVED_HEADS = ("prototype", "ridge")
"""Solved from one noised sum, see ``common.solved_heads``."""
