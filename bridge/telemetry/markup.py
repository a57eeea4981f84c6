"""HTML as values. Text is escaped unless it was made here, so that forgetting it is not possible.

Every client that may register in Consul chooses names: they are shown as text, never as markup, with escapes for what
is not printable.
"""

from __future__ import annotations

import html

from bridge.telemetry.logs import escape

_VOID = frozenset({"meta", "link", "input", "br", "hr"})


class Html(str):
    """Markup that was made by `el`, `raw` or `join`; everything else is text."""

    __slots__ = ()


Child = str | int | None


def text(value: object) -> Html:
    return Html(html.escape(escape(str(value))))


def join(*children: Child) -> Html:
    """Several pieces one after the other; None is nothing."""
    return Html("".join(c if isinstance(c, Html) else text(c) for c in children if c is not None))


def el(tag: str, *children: Child, **attributes: str | int | bool | None) -> Html:
    """An element. `class_` is class, `aria_sort` is aria-sort; None and False leave an attribute out."""
    pieces = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        written = name.rstrip("_").replace("_", "-")
        pieces.append(f" {written}" if value is True else f' {written}="{text(value)}"')
    start = f"<{tag}{''.join(pieces)}>"
    return Html(start if tag in _VOID else f"{start}{join(*children)}</{tag}>")
