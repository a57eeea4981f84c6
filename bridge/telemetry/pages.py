"""The pages for people, as HTML: how things are, the services, one service, what happened lately.

Everything works without the script; what it adds is that pages follow the events (it fetches the same page again and
puts in what has changed: elements with `data-live`). Links are relative, so that a proxy may put a path in front.
It must not know sockets or where its values come from.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import quote

from bridge.core.explain import Explanation
from bridge.core.explain import Row as InstanceRow
from bridge.core.reasons import Reason, code_of
from bridge.core.service_state import ServiceRow
from bridge.telemetry.components import (
    LISTED,
    badge,
    change_list,
    changes_title,
    command,
    counts,
    fact,
    mark,
    severity_of,
    text_list,
    with_command,
)
from bridge.telemetry.history import Entry
from bridge.telemetry.listing import ResultPage
from bridge.telemetry.markup import Html, el, join
from bridge.telemetry.overview import Overview, about, cards, judge, problems, unmirrored
from bridge.telemetry.table import results, search

INSTANCES = 500
"""Rows of a service's page; `bridge explain` shows all."""


def index(overview: Overview, found: ResultPage, changes: Sequence[Entry]) -> Html:
    severity, verdict, sentence = judge(overview)
    return _page(
        verdict,
        severity,
        "./",
        el("section", el("h1", mark(severity), " ", verdict), el("p", sentence), problems(overview), id="verdict",
           class_=f"verdict {severity}", data_live=True),
        cards(overview),
        el(
            "div",
            el("section", el("h2", "Services", id="services-title"), search(found), results(found),
               aria_labelledby="services-title", id="services", class_="services"),
            el("section", changes_title("h2", id="changes-title"), change_list(changes, "./"),
               el("p", el("a", "All recent changes", href="changes")) if changes else None,
               aria_labelledby="changes-title", id="changes", data_live=True),
            class_="columns",
        ),
        unmirrored(overview.unmirrored),
        about(overview.state),
        consul_ui=_consul_ui(overview.state),
    )  # fmt: skip


def changes_page(changes: Sequence[Entry]) -> Html:
    return _page(
        "Recent changes", "", "./",
        el("section", changes_title("h1"), change_list(changes, "./", dates=True), id="changes", data_live=True),
    )  # fmt: skip


def service_page(
    row: ServiceRow, explanations: Sequence[Explanation], changes: Sequence[Entry], state: Mapping[str, Any]
) -> Html:
    """Everything about one service. `state` is the bridge's: where Consul's UI is."""
    root, consul_ui = "../../", _consul_ui(state)
    return _page(
        f"{row.namespace}/{row.name}", severity_of(row), root,
        el(
            "section",
            el("h1", row.name, " ", badge(row)),
            el("p", row.detail) if row.detail else None,
            el(
                "dl",
                fact("Namespace", row.namespace), fact("Service in Consul", row.service or "none"),
                fact("Datacenter", row.datacenter or "none"),
                *((fact("Traffic from", row.active_datacenter),) if row.active_datacenter else ()),
                fact("In Consul", counts(row.consul_ready, row.consul_not_ready)),
                fact("In Kubernetes", counts(row.kubernetes_ready, row.kubernetes_not_ready)),
                class_="cards",
            ),
            id="service", data_live=True,
        ),
        el("div", *(_explanation(e, row.command, consul_ui) for e in explanations), id="why", data_live=True),
        el("section", changes_title("h2"), change_list(changes, root), id="changes", data_live=True),
        consul_ui=consul_ui,
    )  # fmt: skip


def missing_page(namespace: str, name: str, root: str) -> Html:
    """There is no such service; `root` leads to the first page."""
    return _page(
        "No such service", "bad", root,
        el("h1", "No such service"),
        el("p", f"Nothing is mirrored to {namespace}/{name}. It may have gone from Consul, or no rule selects it: ",
           command(f"bridge explain {shlex.quote(name) if name.isprintable() else 'SERVICE'}"), " says why."),
        el("p", el("a", "Back to all services", href=root)),
    )  # fmt: skip


def _consul_ui(state: Mapping[str, Any]) -> str:
    """Where Consul's UI is, as the settings say; "" where they do not."""
    bridge = state.get("bridge")
    return str(bridge.get("consul_ui") or "") if isinstance(bridge, Mapping) else ""


def in_consul_ui(base: str, datacenter: str, service: str) -> str:
    """The page of a service in Consul's UI, its first page where a datacenter's name is more than a name."""
    base = base.rstrip("/")
    plain = datacenter.replace("-", "").replace("_", "").isalnum()
    return f"{base}/{quote(datacenter)}/services/{quote(service, safe='')}" if plain else base


def _outside(words: str, address: str) -> Html:
    return el("a", words, href=address, rel="noreferrer noopener")


def _page(title: str, severity: str, root: str, *content: Html | None, consul_ui: str = "") -> Html:
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("title", f"{title} · consul-endpoints-bridge"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href=f"{root}icon.svg", type="image/svg+xml"),
        el("link", rel="stylesheet", href=f"{root}style.css"),
        el("script", src=f"{root}page.js", defer=True),
    )
    links = (
        (root, "Overview"),
        (f"{root}changes", "Changes"),
        (f"{root}api/status", "JSON"),
        (f"{root}metrics", "Metrics"),
    )
    body = el(
        "body",
        el("a", "Skip to content", href="#main", class_="skip"),
        el(
            "header",
            el("a", "consul-endpoints-bridge", href=root, class_="home"),
            el("nav", *(el("a", words, href=href) for href, words in links),
               _outside("Consul", consul_ui) if consul_ui else None, aria_label="Main"),
            el("p", "Reload to see what is new.", id="live", data_changes=f"{root}api/changes"),
        ),
        el("main", *content, id="main", tabindex="-1"),
        class_=severity or None,
    )  # fmt: skip
    return join(Html("<!doctype html>\n"), el("html", head, body, lang="en"), Html("\n"))


# --------------------------------------------------------------------------- one service


def _why(row: InstanceRow) -> str:
    """Why an instance is not ready: what decided it, else the check that made its status."""
    if row.reason or row.disposition == "ready":
        return row.reason
    return f"{row.status}: check {row.check}" if row.check else row.status


def _output(row: InstanceRow) -> Html | None:
    """What the check itself printed, of an instance that is not passing."""
    return el("small", row.output, class_="output") if row.output and row.status != "passing" else None


def _code(text: str) -> str | None:
    """The code of a message, for programs and styles; None for texts that have none."""
    return code_of(text) if isinstance(text, Reason) else None


def _note(what: str, text: str, found: str = "") -> Html:
    return el("li", el("strong", f"{what}: "), with_command(text, found), data_reason=_code(text))


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts rgw-2 before rgw-10."""
    pieces = ["".join(piece) for _, piece in groupby(name, "0123456789".__contains__)]
    return tuple((0, int(p)) if p[0] in "0123456789" else (1, p) for p in pieces)


def _explanation(explanation: Explanation, found: str, consul_ui: str) -> Html:
    """A service in Consul: its instances, those in trouble first. `found` is the command that releases a hold."""
    notes = (
        *((("Problem", explanation.problem),) if explanation.problem else ()),
        *((("Traffic", explanation.traffic),) if explanation.traffic else ()),
        *(("Held", text) for text in explanation.held),
        *(("Conflict", text) for text in explanation.conflicts),
        *(("Warning", text) for text in explanation.warnings if text != explanation.traffic),
        *(("Out of sync", text) for text in explanation.deviations if text not in explanation.warnings),
        *(("Still to do", text) for text in explanation.differences),
        *((("Filter", explanation.filter),) if explanation.filter else ()),
        *(
            (("In Kubernetes without an instance", ", ".join(explanation.unaccounted[:LISTED])),)
            if explanation.unaccounted
            else ()
        ),
    )
    verdicts = [
        f"{r.rule or 'rule'}: {r.why_not or 'mirrors it' + (f' at {r.target}' if r.target else '')}"
        for r in explanation.rules
    ]
    hostname = ("Hostname",) if any(r.hostname for r in explanation.rows) else ()
    heads = ("Instance", "Status", "Address", *hostname, "Ports", "Should be", "Is", "Why")
    sorted_rows = sorted(
        explanation.rows, key=lambda r: (r.disposition == r.kubernetes == "ready", _natural(r.instance))
    )
    rows = (
        el(
            "tr",
            el("th", r.instance, scope="row"),
            *(el("td", value, el("small", more) if more else None, data_label=head) for head, value, more in (
                ("Status", r.status, r.check), ("Address", r.address, r.chosen),
                *((h, r.hostname, "") for h in hostname),
                ("Ports", r.ports, ""), ("Should be", r.disposition, ""), ("Is", r.kubernetes, ""),
            )),
            el("td", _why(r), _output(r), data_label="Why", data_reason=_code(r.reason)),
        )
        for r in sorted_rows[:INSTANCES]
    )  # fmt: skip
    title = f"{explanation.service} in {explanation.datacenter}"
    table = el(
        "div",
        el("table", el("caption", f"Instances of {title}", class_="unseen"),
           el("thead", el("tr", *(el("th", h, scope="col") for h in heads))), el("tbody", *rows)),
        class_="scroll instances", role="region", aria_label=f"Instances of {title}", tabindex="0",
    )  # fmt: skip
    address = in_consul_ui(consul_ui, explanation.datacenter, explanation.service) if consul_ui else ""
    more = len(explanation.rows) - INSTANCES
    return el(
        "section",
        el("h2", title, " ", el("small", _outside("in Consul's UI", address)) if address else None),
        el("p", f"Consul: {explanation.consul or 'not asked'}. Rule: {explanation.rule or 'none'}."),
        el("ul", *(_note(what, text, found if what == "Held" else "") for what, text in notes), class_="notes")
        if notes else None,
        table if explanation.rows else None,
        el("p", f"and {more:,} more (bridge explain shows all)") if more > 0 else None,
        el("details", el("summary", "What the rules say"), text_list(verdicts, LISTED)) if verdicts else None,
        el("p", "On the command line: ", command(f"bridge explain {shlex.quote(explanation.service)}"))
        if explanation.service.isprintable() else None,
    )  # fmt: skip
