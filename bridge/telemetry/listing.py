"""The table of services: what was asked for in the address, and the rows that answer it. Values only, no HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from bridge.core.service_state import NO_READY_ENDPOINT, ServiceRow

PER_PAGE = 50

STATES = ("failed", "held", "conflict", "unknown", NO_READY_ENDPOINT, "out_of_sync", "in_sync")
"""What a service can be marked as, the worst first: in this order the filter shows them and the table sorts; services
whose slices deviate come before those that are held."""

_RANKS = {state: rank for rank, state in enumerate(STATES)}


def _rank(row: ServiceRow) -> float:
    return 0.5 if row.slices_deviate else _RANKS.get(row.mark, -1)


_SORTS: Mapping[str, Callable[[ServiceRow], Any]] = {
    "name": lambda r: (r.namespace, r.name),
    "consul": lambda r: (r.consul_ready, r.consul_not_ready),
    "kubernetes": lambda r: (r.kubernetes_ready, r.kubernetes_not_ready),
    "state": _rank,
}
"""What a column sorts by; ties go by namespace and name."""

TROUBLE_FIRST = "state"
"""The order where none is asked for."""


@dataclass(frozen=True, slots=True)
class ServiceQuery:
    """Which rows are wanted, and in which order. `page` counts from 1."""

    text: str = ""
    state: str = ""
    namespace: str = ""
    sort: str = TROUBLE_FIRST
    descending: bool = False
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> ServiceQuery:
        """From the parameters of an address. What makes no sense counts as not said."""
        page = query.get("page", "")
        return cls(
            text=query.get("q", "").strip()[:200],
            state=query.get("state", "") if query.get("state") in STATES else "",
            namespace=query.get("namespace", "")[:253],
            sort=query.get("sort", "") if query.get("sort") in _SORTS else TROUBLE_FIRST,
            descending=query.get("dir") == "desc",
            page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 8 else 1,
        )

    def address(self, **other: Any) -> str:
        """The parameters that lead here, or to `other` than this; only what is not the default."""
        query = replace(self, **other)
        said = {
            "q": query.text,
            "state": query.state,
            "namespace": query.namespace,
            "sort": query.sort if query.sort != TROUBLE_FIRST else "",
            "dir": "desc" if query.descending else "",
            "page": query.page if query.page > 1 else "",
        }
        return "?" + urlencode({k: v for k, v in said.items() if v})


@dataclass(frozen=True, slots=True)
class ResultPage:
    """One page of the rows that were asked for, and counts: of all rows, and by state of those that the text finds.

    `namespaces` are those of all rows.
    """

    rows: tuple[ServiceRow, ...]
    query: ServiceQuery
    total: int
    found: int
    pages: int
    states: Mapping[str, int]
    namespaces: tuple[str, ...] = ()

    @property
    def first(self) -> int:
        """Number of the first row shown, counted from 1; 0 when there is none."""
        return (self.query.page - 1) * PER_PAGE + 1 if self.rows else 0


def find(rows: Sequence[ServiceRow], query: ServiceQuery) -> ResultPage:
    """Search, sort and cut. Every word of the text must be in the name, the namespace, the service or datacenter."""
    words = query.text.casefold().split()
    named = [r for r in rows if all(w in _haystack(r) for w in words)] if words else list(rows)
    if query.namespace:
        named = [r for r in named if r.namespace == query.namespace]
    states = Counter(row.mark for row in named)
    shown = [r for r in named if r.mark == query.state] if query.state else named
    shown.sort(key=_SORTS["name"])
    shown.sort(key=_SORTS[query.sort], reverse=query.descending)
    pages = max(1, -(-len(shown) // PER_PAGE))
    page = min(query.page, pages)
    cut = tuple(shown[(page - 1) * PER_PAGE : page * PER_PAGE])
    namespaces = tuple(sorted({r.namespace for r in rows}))
    return ResultPage(cut, replace(query, page=page), len(rows), len(shown), pages, states, namespaces)


def _haystack(row: ServiceRow) -> str:
    return f"{row.namespace}/{row.name} {row.service} {row.datacenter}".casefold()
