"""Who a record is of: patients by number, and columns that tell them apart without being declared to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError

_PERSON = re.compile(
    r"(patient|subject|person)[_ -]?(id|nr|no|num|number|key|name)|patients?|mrn|pat[_ -]?id", re.IGNORECASE
)


def numbered(patients: NDArray[np.str_] | None, records: NDArray[np.int64] | None = None) -> NDArray[np.int64] | None:
    """Number the patients of some records, 0 to P-1; the numbers say nothing of a patient beyond who is the same.

    Args:
        patients: name of each record's patient, shape (N,), or None where the data name none.
        records: those that are meant, shape (n,); by default all.

    Returns:
        Shape (n,), or None.
    """
    if patients is None:
        return None
    _, numbers = np.unique(patients if records is None else patients[records], return_inverse=True)
    return np.asarray(numbers, dtype=np.int64)


def refuse_undeclared_patients(names: Iterable[str], keys: Mapping[str, str], form: str = "{}") -> None:
    """Refuse a column that seems to name patients, where none is declared.

    A patient column that is overlooked would cost a privacy promise, so none is ever ignored.

    Args:
        names: of all columns.
        keys: role -> the column's own name.
        form: how the keys would write a name.

    Raises:
        ConfigError: there is one.
    """
    known = list(names)
    if "patient" in keys or (form == "{}" and "patient" in known):
        return
    for name in known:
        if _PERSON.fullmatch(name) and form.format(name) not in keys.values():
            raise ConfigError(
                f"the column {name!r} seems to tell patients apart, which privacy and splits must know; say "
                f'patient = "{form.format(name)}" in [data.keys], or rename or remove the column if it does not'
            )
