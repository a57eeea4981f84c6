"""The table of services: what was asked for in the address, and the rows that answer it. Values only, no HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urlencode

PER_PAGE = 50

STATES = ("in sync", "differs", "out of sync", "held", "conflict", "failed", "unknown")
"""What a service can be, in the order in which the filter shows them."""


class Row(Protocol):
    """A mirrored service on both sides."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def service(self) -> str: ...
    @property
    def datacenter(self) -> str: ...
    @property
    def consul_ready(self) -> int: ...
    @property
    def consul_not_ready(self) -> int: ...
    @property
    def kubernetes_ready(self) -> int: ...
    @property
    def kubernetes_not_ready(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def detail(self) -> str: ...


_SORTS: Mapping[str, Callable[[Row], Any]] = {
    "name": lambda r: (r.namespace, r.name),
    "consul": lambda r: (r.consul_ready, r.consul_not_ready),
    "kubernetes": lambda r: (r.kubernetes_ready, r.kubernetes_not_ready),
    "state": lambda r: -STATES.index(r.state) if r.state in STATES else -len(STATES),
}
"""What a column sorts by; ties go by namespace and name."""

COLUMNS = tuple(_SORTS)


@dataclass(frozen=True, slots=True)
class ServiceQuery:
    """Which rows are wanted, and in which order. `page` counts from 1."""

    text: str = ""
    state: str = ""
    sort: str = "name"
    descending: bool = False
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> ServiceQuery:
        """From the parameters of an address. What makes no sense counts as not said."""
        page = query.get("page", "")
        return cls(
            text=query.get("q", "").strip()[:200],
            state=query.get("state", "") if query.get("state") in STATES else "",
            sort=query.get("sort", "") if query.get("sort") in _SORTS else "name",
            descending=query.get("dir") == "desc",
            page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 8 else 1,
        )

    def address(self, **other: Any) -> str:
        """The parameters that lead here, or to `other` than this; only what is not the default."""
        query = replace(self, **other)
        said = {
            "q": query.text,
            "state": query.state,
            "sort": query.sort if query.sort != "name" else "",
            "dir": "desc" if query.descending else "",
            "page": query.page if query.page > 1 else "",
        }
        return "?" + urlencode({k: v for k, v in said.items() if v})


@dataclass(frozen=True, slots=True)
class ResultPage:
    """One page of the rows that were asked for, and counts: of all rows by state, and of those that the text finds."""

    rows: tuple[Row, ...]
    query: ServiceQuery
    total: int
    found: int
    pages: int
    states: Mapping[str, int]

    @property
    def first(self) -> int:
        """Number of the first row shown, counted from 1; 0 when there is none."""
        return (self.query.page - 1) * PER_PAGE + 1 if self.rows else 0


def find(rows: Sequence[Row], query: ServiceQuery) -> ResultPage:
    """Search, sort and cut. Every word of the text must be in the name, the namespace, the service or datacenter."""
    words = query.text.casefold().split()
    named = [r for r in rows if all(w in _haystack(r) for w in words)] if words else list(rows)
    states = Counter(r.state for r in named)
    shown = [r for r in named if r.state == query.state] if query.state else named
    shown.sort(key=_SORTS["name"])
    shown.sort(key=_SORTS[query.sort], reverse=query.descending)
    pages = max(1, -(-len(shown) // PER_PAGE))
    page = min(query.page, pages)
    cut = tuple(shown[(page - 1) * PER_PAGE : page * PER_PAGE])
    return ResultPage(cut, replace(query, page=page), len(rows), len(shown), pages, states)


def _haystack(row: Row) -> str:
    return f"{row.namespace}/{row.name} {row.service} {row.datacenter}".casefold()
