"""The table of services: search, filter by state, sorting by columns, and pages. It works by plain links and a form."""

from __future__ import annotations

from bridge.core.service_state import ServiceRow, readable
from bridge.telemetry.components import badge, bar, counts, service_path
from bridge.telemetry.listing import STATES, ResultPage
from bridge.telemetry.markup import Html, el


def search(found: ResultPage) -> Html:
    """The form; what else was asked for is kept."""
    query = found.query
    kept = {"state": query.state, "sort": query.sort, "dir": "desc" if query.descending else ""}
    several = len(found.namespaces) > 1 or query.namespace
    names = sorted({*found.namespaces, *([query.namespace] if query.namespace else [])})
    return el(
        "form",
        el("label", "Search services", for_="q", class_="unseen"),
        el("input", type="search", id="q", name="q", value=query.text, autocomplete="off", spellcheck="false",
           placeholder="Search services"),
        el("select", el("option", "All namespaces", value=""),
           *(el("option", name, value=name, selected=name == query.namespace) for name in names),
           name="namespace", id="namespace", aria_label="Namespace") if several else None,
        *(el("input", type="hidden", name=k, value=v) for k, v in kept.items() if v),
        el("button", "Search"),
        role="search", method="get", action="./",
    )  # fmt: skip


def results(found: ResultPage) -> Html:
    """What was found: the filter, how many, the table and the pages."""
    query = found.query
    total = sum(found.states.values())
    others = sorted(found.states.keys() - set(STATES))
    states = [("", "All", total), *((s, readable(s).capitalize(), found.states.get(s, 0)) for s in (*STATES, *others))]
    chips = (
        el("a", words, " ", el("span", f"{count:,}"), href=query.address(state=state, page=1),
           aria_current="true" if query.state == state else None)
        for state, words, count in states
        if count or state in ("", query.state)
    )  # fmt: skip
    if found.rows:
        said = f"Services {found.first:,} to {found.first + len(found.rows) - 1:,} of {found.found:,}"
    else:
        said = "No service is mirrored yet." if not found.total else "No service matches."
    return el(
        "div",
        el("div", el("nav", *chips, aria_label="Filter by state", class_="chips"),
           el("p", said, role="status", id="count"), class_="line"),
        _table(found) if found.rows else None,
        _pager(found),
        id="results", data_live=True,
    )  # fmt: skip


def _table(found: ResultPage) -> Html:
    query = found.query
    heads = []
    for sort, words in (
        ("name", "Service"),
        ("consul", "In Consul"),
        ("kubernetes", "In Kubernetes"),
        ("state", "State"),
    ):
        current = query.sort == sort
        descending = not query.descending if current else False
        heads.append(
            el("th", el("a", words, href=query.address(sort=sort, descending=descending, page=1)), scope="col",
               aria_sort=("descending" if query.descending else "ascending") if current else None)
        )  # fmt: skip
    return el(
        "div",
        el("table", el("caption", "Services on both sides", class_="unseen"), el("thead", el("tr", *heads)),
           el("tbody", *map(_row, found.rows))),
        class_="scroll", role="region", aria_label="Services on both sides", tabindex="0",
    )  # fmt: skip


def _row(row: ServiceRow) -> Html:
    origin = row.service if row.service != row.name else ""
    more = " · ".join(w for w in (row.namespace, origin, row.datacenter) if w)
    return el(
        "tr",
        el("th", el("div", el("a", row.name, href=service_path(row.namespace, row.name)), " ", el("small", more),
                    class_="cut", title=f"{row.name} · {more}"), scope="row"),
        el("td", bar(row.consul_ready, row.consul_not_ready), counts(row.consul_ready, row.consul_not_ready)),
        el("td", bar(row.kubernetes_ready, row.kubernetes_not_ready),
           counts(row.kubernetes_ready, row.kubernetes_not_ready)),
        el("td", el("div", badge(row), " ", el("small", row.detail) if row.detail else None,
                    class_="cut", title=row.detail or None)),
    )  # fmt: skip


def _pager(found: ResultPage) -> Html | None:
    if found.pages == 1:
        return None
    query, last = found.query, found.pages
    steps = (("First", 1), ("Previous", query.page - 1), ("Next", query.page + 1), ("Last", last))
    links = [
        el("a", words, href=query.address(page=page)) if 1 <= page <= last and page != query.page else el("span", words)
        for words, page in steps
    ]
    return el(
        "nav", *links[:2], el("span", f"Page {query.page:,} of {last:,}"), *links[2:],
        aria_label="Pages", class_="pager",
    )  # fmt: skip
