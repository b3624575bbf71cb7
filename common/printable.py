"""Text that is safe to show: a name from a file or a peer may hold what a terminal takes for a command."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that were not UTF-8


def is_printable(text: str) -> bool:
    r"""Whether a text has neither control characters nor halves of characters.

    >>> is_printable("Genève, 2ᵉ étage"), is_printable("\x1b[31mred"), is_printable("\udce9")
    (True, False, False)
    """
    return _UNPRINTABLE.search(text) is None


def printable(text: str) -> str:
    r"""The text with control characters and halves of characters written as escapes.

    >>> printable("Genève \x1b[31mred\n")
    'Genève \\x1b[31mred\\n'
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
