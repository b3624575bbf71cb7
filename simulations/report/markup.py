"""HTML that escapes by default: only what this module or a figure made passes through unescaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

VOID = frozenset({"meta", "br", "hr", "col"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str | None, **attributes: str | bool | None) -> Markup:
    """Return an HTML element.

    Args:
        name: the tag.
        children: its content in order; plain text is escaped, ``Markup`` is taken as it is, ``None`` is left out.
        attributes: ``class_`` stands for ``class``, other underscores for hyphens; ``True`` gives a bare attribute,
            ``False`` and ``None`` none.

    >>> element("td", "<script>", class_="name")
    '<td class="name">&lt;script&gt;</td>'
    """
    opening = f"<{name}{''.join(attribute(key, value) for key, value in attributes.items())}>"
    return Markup(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def attribute(key: str, value: str | bool | None) -> str:
    """Return one attribute with a space before it, or nothing."""
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(value)}"'


def join(children: Iterable[str | None]) -> Markup:
    """Return the children one after the other, plain text escaped.

    >>> join(["a & b", None, element("b", "c")])
    'a &amp; b<b>c</b>'
    """
    return Markup("".join(safe(child) for child in children if child is not None))


def safe(text: str) -> str:
    """Escape plain text."""
    return text if isinstance(text, Markup) else escape(text)


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    wide: bool = True,
) -> Markup:
    """Return a table whose first column holds the rows' headers.

    Args:
        caption: what the table says, read out by screen readers and shown above it.
        columns: the columns' headings.
        rows: as many cells as there are columns, each plain text or ``Markup``.
        numeric: indices of the columns that hold numbers: aligned to the right.
        wide: false for a table that is only as wide as its content.
    """
    right = ["num" if index in numeric else None for index in range(len(columns))]
    head = element(
        "tr", *(element("th", text, scope="col", class_=side) for text, side in zip(columns, right, strict=True))
    )
    body = join(table_row(cells, right) for cells in rows)
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", head),
        element("tbody", body),
        class_=None if wide else "slim",
    )
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def table_row(cells: Sequence[str], sides: Sequence[str | None]) -> Markup:
    """Return one row, its first cell the row's header."""
    names = ["th", *["td"] * (len(cells) - 1)]
    return element(
        "tr",
        *(
            element(name, cell, class_=side, scope="row" if name == "th" else None)
            for name, cell, side in zip(names, cells, sides, strict=True)
        ),
    )


def definitions(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Return a list of terms with their values."""
    return element("dl", *(element("div", element("dt", term), element("dd", value)) for term, value in pairs))


def folded(summary: str, *content: str, open_: bool = False) -> Markup:
    """Return content that opens on a click, without a script."""
    return element("details", element("summary", summary), *content, open=open_)


def paragraph(*children: str, class_: str | None = None) -> Markup:
    """Return a paragraph."""
    return element("p", *children, class_=class_)
