"""Which kind of records rows hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.data.fields import ORIGINS, Fields
from common.data.local import LocalData
from common.data.rows import Rows
from common.data.tables import read_table
from common.data.texts import read_pairs, read_spans, read_texts, read_words
from common.errors import ConfigError

COMMON = (*ORIGINS, "classes")


@dataclass(frozen=True)
class Kind:
    """A kind of records.

    Attributes:
        named: what it is called in messages.
        content: roles that only this kind has; all must be there.
        label: roles of its labels; one must be there.
        read: makes records of rows.
        optional: roles that it may have.
    """

    named: str
    content: tuple[str, ...]
    label: tuple[str, ...]
    read: Callable[[Fields], LocalData]
    optional: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """All roles that the keys may name."""
        return (*self.content, *self.label, *self.optional, *COMMON)

    def fits(self, fields: Fields) -> bool:
        """Whether rows have what it needs, and the keys name nothing else."""
        return (
            all(map(fields.has, self.content))
            and any(map(fields.has, self.label))
            and all(role in self.roles for role in fields.keys)
        )


TEXT_KINDS = (
    Kind("tagged words", ("tokens", "tags"), ("tags",), read_words),
    Kind("answers in texts", ("question", "context", "answers"), ("answers",), read_spans),
    Kind("pairs of texts", ("question", "context"), ("label", "labels"), read_pairs),
    Kind("texts", ("text",), ("label", "labels"), read_texts),
)
TABLE = Kind("a table", (), ("label",), read_table, ("columns", "threshold", "codes"))


def read_kind(rows: Rows, keys: Mapping[str, str], files: Kind) -> LocalData:
    """Read rows as the kind that their columns and the keys tell.

    Args:
        rows: of one file or several.
        keys: role -> the file's own name.
        files: the kind whose records are in files of their own.

    Raises:
        ConfigError: none or several kinds fit, or the kind finds something wrong.
    """
    fields = Fields(rows, keys)
    kinds = (files, *TEXT_KINDS)
    _refuse_roles(keys, (*kinds, TABLE))
    fitting = [kind for kind in kinds if kind.fits(fields)]
    if len(fitting) > 1:
        own = [kind for kind in fitting if any(role in (*kind.content, *kind.label) for role in keys)]
        fitting = own or fitting
    if len(fitting) > 1:
        raise ConfigError(
            f"expected one kind of records, but the columns fit {' and '.join(kind.named for kind in fitting)}; name "
            f'the columns meant in [data.keys], for example {fitting[-1].content[0]} = "{fitting[-1].content[0]}"'
        )
    return (fitting[0] if fitting else _likely(fields, kinds)).read(fields)


def _refuse_roles(keys: Mapping[str, str], kinds: tuple[Kind, ...]) -> None:
    known = list(dict.fromkeys(role for kind in kinds for role in kind.roles))
    for role in keys:
        if role not in known:
            raise ConfigError(f"data.keys for such a file must name roles out of {', '.join(known)}, got {role!r}")


def _likely(fields: Fields, kinds: tuple[Kind, ...]) -> Kind:
    """The kind whose content is there but whose label is not, so that its loader says so; else a table."""
    allowed = [kind for kind in kinds if all(role in kind.roles for role in fields.keys)]
    return next((kind for kind in allowed if all(map(fields.has, kind.content))), TABLE)
