"""Questions and answers in SQuAD's nested JSON, versions 1.1 and 2.0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.data.rows import Rows, parse_json, read_text, rows_of_objects
from common.errors import ConfigError


def is_squad(path: Path) -> bool:
    """Whether a ``.json`` file is one object, rather than a list of rows."""
    return path.suffix.lower() == ".json" and read_text(path).lstrip().startswith("{")


def read_squad(path: Path) -> Rows:
    """Read ``{"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers"}]}]}]}``.

    Returns:
        Rows with ``title``, ``context``, ``question`` and ``answers``; an impossible question has no answer.

    Raises:
        ConfigError: not of this form.
    """
    try:
        rows = [
            (f"{path}, question {number}", row) for number, row in enumerate(_questions(parse_json(read_text(path))), 1)
        ]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} must be SQuAD's JSON (data, paragraphs, context, qas, question, answers), got another form; "
            "correct it, or write one object a line into a .jsonl file"
        ) from error
    if not rows:
        raise ConfigError(f"{path} must hold at least one question, got none; check that this is the right file")
    return rows_of_objects(rows)


def _questions(content: Any) -> Iterator[dict[str, Any]]:
    for number, article in enumerate(content["data"]):
        for paragraph in article["paragraphs"]:
            for item in paragraph["qas"]:
                yield {
                    "title": article.get("title") or f"article {number}",
                    "context": paragraph["context"],
                    "question": item["question"],
                    "answers": [] if item.get("is_impossible") else item["answers"],
                }
