"""What the columns of rows mean: label, site, patient, split and what a task reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypedDict

import numpy as np

from common.data.labels import index_labels, index_several
from common.data.local import Column, Labels, TaskName
from common.data.patients import refuse_undeclared_patients
from common.data.rows import Rows, is_missing
from common.errors import ConfigError

ORIGINS = ("site", "patient", "split", "group")
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev", "devel"), "train"
)


class Origins(TypedDict):
    """Where each record comes from, each of shape (N,) or None."""

    site: Column | None
    patient: Column | None
    split: Column | None
    group: Column | None


@dataclass(frozen=True)
class Fields:
    """Rows, read by role.

    Attributes:
        rows: N of them.
        keys: role -> the column's own name, for roles whose name differs.
    """

    rows: Rows
    keys: Mapping[str, str]

    def name(self, role: str) -> str:
        """The column's own name."""
        return self.keys.get(role, role)

    def has(self, role: str) -> bool:
        """Whether the rows have a column of this role, or the keys say so."""
        return role in self.keys or role in self.rows.columns

    def read(self, role: str) -> list[Any]:
        """The values of a column, N of them.

        Raises:
            ConfigError: there is no such column.
        """
        name = self.name(role)
        if name not in self.rows.columns:
            names = list(self.rows.columns)
            near = next(iter(get_close_matches(name, names, n=1, cutoff=0.3)), next(iter(names), "x"))
            raise ConfigError(
                f"expected a column {name!r} as {role}, but there are {_listed(names)}; say which is meant in the "
                f'table [data.keys], for example {role} = "{near}"'
            )
        return self.rows.columns[name]

    def strings(self, role: str) -> tuple[str, ...]:
        """The texts of a column, none of them empty.

        Raises:
            ConfigError: there is no such column, or some row has no text there.
        """
        values = self.read(role)
        self.refuse(role, [not is_text(value) for value in values], "text that is not empty")
        return tuple(values)

    def refuse(self, role: str, wrong: list[bool], expected: str) -> None:
        """Refuse rows, naming the first and counting them; what they hold is never quoted.

        Raises:
            ConfigError: some entry of ``wrong`` is true.
        """
        if any(wrong):
            first = self.rows.places[wrong.index(True)]
            raise ConfigError(
                f"{self.name(role)} must be {expected}, got something else or nothing in {sum(wrong)} of "
                f"{len(self.rows)} records, the first is {first}; correct or remove them"
            )


def read_origins(fields: Fields, group: str = "group") -> Origins:
    """Site, patient, split and group of each record, where the rows name them.

    Args:
        fields: the rows.
        group: the column that tells groups unless the keys name one.

    Raises:
        ConfigError: an entry is missing, a split is unknown, or a column that seems to name patients is not declared.
    """
    refuse_undeclared_patients(fields.rows.columns, fields.keys)
    if not fields.has("group"):
        fields = Fields(fields.rows, {**fields.keys, "group": group} if group in fields.rows.columns else fields.keys)
    columns = {role: _names(fields, role) if fields.has(role) else None for role in ORIGINS}
    split = columns["split"]
    return Origins(
        site=columns["site"],
        patient=columns["patient"],
        split=None if split is None else _as_split(fields, split),
        group=columns["group"],
    )


def read_labels(fields: Fields) -> tuple[Labels, tuple[str, ...], TaskName]:
    """Labels, classes and task of rows.

    A column ``label`` (one class a record), or ``labels``: several, as ``a|b|c`` or a JSON list; or, where the key
    ``labels`` lists columns with commas, one column of 0 and 1 for each class.

    Raises:
        ConfigError: neither, both, a missing label, or one that is not among the declared classes.
    """
    declared = declared_classes(fields)
    both = fields.has("label") and fields.has("labels")
    if both and not ("label" in fields.keys) ^ ("labels" in fields.keys):
        raise ConfigError("expected a column label or a column labels, got both; name the one meant in [data.keys]")
    several = fields.has("labels") and "label" not in fields.keys
    if not several:
        return (*index_labels(np.array(_one_label(fields, "label")), declared), "classification")
    if "," in fields.name("labels"):
        return (*_read_indicators(fields), "multilabel")
    return (*index_several(_several_labels(fields), declared), "multilabel")


def declared_classes(fields: Fields) -> tuple[str, ...] | None:
    """The class list that the key ``classes`` gives, names with | between them."""
    if "classes" not in fields.keys:
        return None
    names = tuple(name.strip() for name in fields.keys["classes"].split("|"))
    if "" in names or len(set(names)) != len(names):
        raise ConfigError(f"classes must name each class once with | between them, got {fields.keys['classes']!r}")
    return names


def is_text(value: Any) -> bool:
    """Whether a value is a text with content that can be written down (half of a surrogate pair cannot)."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_name(value: Any) -> str:
    """A label or a name as text; empty where the value is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    fine = isinstance(value, int) or is_text(value)
    return str(value).strip() if fine else ""


def _names(fields: Fields, role: str) -> Column:
    names = [_as_name(value) for value in fields.read(role)]
    fields.refuse(role, [not name for name in names], "a name or a whole number for each record")
    return np.array(names, dtype=np.str_)


def _one_label(fields: Fields, role: str) -> list[str]:
    labels = [_as_name(value) for value in fields.read(role)]
    fields.refuse(role, [not label for label in labels], "a class name or a whole number for each record")
    return labels


def _several_labels(fields: Fields) -> list[list[str]]:
    """The classes of each record; no text and an empty list mean none of them."""
    values = fields.read("labels")
    fields.refuse("labels", [not isinstance(value, str | list | None) for value in values], "a|b|c or a list of names")
    lists = [value if isinstance(value, list) else (value or "").split("|") for value in values]
    named = [[_as_name(item) for item in items if not is_missing(item)] for items in lists]
    fields.refuse("labels", ["" in names for names in named], "a|b|c or a list of names")
    return named


def _read_indicators(fields: Fields) -> tuple[Labels, tuple[str, ...]]:
    """One column of 0 and 1 for each class."""
    names = tuple(name.strip() for name in fields.keys["labels"].split(","))
    columns = []
    for name in names:
        chosen = Fields(fields.rows, {"labels": name})
        column = [_as_name(value) for value in chosen.read("labels")]
        chosen.refuse("labels", [value not in ("0", "1", "0.0", "1.0", "True", "False") for value in column], "0 or 1")
        columns.append([value in ("1", "1.0", "True") for value in column])
    return np.array(columns, dtype=np.int64).T, names


def _as_split(fields: Fields, split: Column) -> Column | None:
    """Validation records count as training records; without a test record nobody has divided them yet."""
    fields.refuse("split", [name.lower() not in SPLIT_NAMES for name in split.tolist()], "train, val or test")
    column = np.array([SPLIT_NAMES[name.lower()] for name in split.tolist()], dtype=np.str_)
    return column if (column == "test").any() else None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") or "none"
