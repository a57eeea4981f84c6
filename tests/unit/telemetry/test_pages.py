"""The pages for people: what they say, in which order, and that no name becomes markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qsl

import pytest

from bridge.controller.state_changes import StateChanges
from bridge.core.model import Skipped
from bridge.core.service_state import ServiceRow
from bridge.telemetry import pages
from bridge.telemetry.components import duration, service_path
from bridge.telemetry.history import History, Series
from bridge.telemetry.http import Request
from bridge.telemetry.listing import PER_PAGE, ServiceQuery, find
from bridge.telemetry.markup import el, join, text
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.overview import Overview, judge
from bridge.telemetry.routes import Routes
from tests.unit.core.builders import said
from tests.unit.telemetry.builders import HOSTILE, STATE, PageSources, entry, explanation, row

ALLOWED = {
    *("html", "head", "meta", "title", "link", "script", "body", "a", "header", "nav", "p", "main", "section", "div"),
    *(
        "h1",
        "h2",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
        "svg",
        "rect",
        "path",
        "form",
        "label",
        "input",
        "button",
        "span",
    ),
    *("small", "span", "table", "caption", "thead", "tbody", "tr", "th", "td", "time", "details", "summary", "strong"),
    *("h3", "code", "select", "option"),
}


class Elements(HTMLParser):
    """All elements of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remembered."""
        self.found.append((tag, dict(attrs)))

    def having(self, attribute: str) -> list[str]:
        """Values of an attribute, wherever it stands."""
        return [str(a[attribute]) for _, a in self.found if attribute in a]


def overview(**fields: Any) -> Overview:
    """All is well with one service, unless said otherwise."""
    values: dict[str, Any] = {
        "state": STATE, "services": 1, "states": {"in_sync": 1}, "ready": 12, "not_ready": 0,
        "series": Series((None,) * 90, (0,) * 90),
    }  # fmt: skip
    return Overview(**{**values, **fields})


def get(sources: PageSources, path: str, query: dict[str, str] | None = None, history: History | None = None) -> str:
    """A page of what the sources say."""
    routes = Routes(sources, Metrics("1").text, history or History())
    page = routes.pages.get(path) or routes.pages["/service/"]
    return page(Request(path, query or {})).body.decode()


UI = "https://consul.example.com/ui"


def hostile_sources() -> PageSources:
    """Sources in which everything that others choose is hostile."""
    sources = PageSources()
    sources.rows = [row(HOSTILE, HOSTILE, state, service=HOSTILE, datacenter=HOSTILE, detail=HOSTILE, command=HOSTILE)
                  for state in ("in_sync", "held", "conflict", "failed", "unknown", "out_of_sync")]  # fmt: skip
    sources.rows.append(row(HOSTILE, HOSTILE, kubernetes_ready=0))
    sources.explanations = (
        explanation(
            HOSTILE, problem=HOSTILE, held=(HOSTILE,), conflicts=(HOSTILE,), warnings=(HOSTILE,), differences=(HOSTILE,)
        ),
    )
    sources.skipped = (Skipped(HOSTILE, HOSTILE, said(HOSTILE)),)
    sources.state_answer = {
        **STATE, "consul": {HOSTILE: HOSTILE}, "kubernetes": HOSTILE, "held": [HOSTILE], "owner": HOSTILE,
        "catalog": {HOSTILE: {}}, "election": {"held": [0], "shards": 1, "replicas": [HOSTILE], "error": HOSTILE},
        "configuration": HOSTILE, "bridge": {
            "version": HOSTILE, "pod": HOSTILE, "consul_address": HOSTILE, "consul_ui": UI,
            "configuration_file": HOSTILE, "rules": [HOSTILE],
        },
    }  # fmt: skip
    return sources


class Hostile(History):
    """A history in which everything that others choose is hostile."""

    def changes(self, limit: int = 200) -> tuple[Any, ...]:
        """One of each tone."""
        return tuple(entry(tone=t, text=HOSTILE, name=HOSTILE, namespace=HOSTILE) for t in ("good", "bad", "plain"))


SERVICE = "/" + service_path(HOSTILE, HOSTILE)


@pytest.mark.parametrize("path", ["/", "/changes", SERVICE, "/service/a/b"])
def test_hostile_names_stay_text(path: str) -> None:
    """A user who may register in Consul chooses them; so does the user who types the address."""
    page = get(hostile_sources(), path, {"q": HOSTILE, "state": HOSTILE, "sort": HOSTILE, "page": HOSTILE}, Hostile())
    elements = Elements(page)
    assert {tag for tag, _ in elements.found} <= ALLOWED
    assert [a.get("src") for tag, a in elements.found if tag == "script"] == [
        "../../page.js" if "service" in path else "./page.js"
    ]
    assert not [name for _, a in elements.found for name in a if name.startswith("on") or name == "style"]
    assert not {"\x1b", "\u202e"} & set(page)
    if path != "/service/a/b":
        assert "&lt;script&gt;" in page
    inside = [h for h in elements.having("href") if h is None or not h.startswith(UI)]
    assert not [h for h in inside if h is None or ":" in h.split("?")[0] or h.startswith("/")]


def test_a_service_of_any_name_is_reached_by_its_link() -> None:
    """Names are quoted in addresses and read back."""
    page = get(hostile_sources(), SERVICE, history=Hostile())
    assert "No such service" not in page


def test_what_is_not_there_is_reported() -> None:
    """Neither an unknown service nor one that went meanwhile is an error."""
    sources = PageSources()
    assert "Nothing is mirrored to storage/nix" in get(sources, "/service/storage/nix")
    sources.explanations = None
    assert "Nothing is mirrored to storage/radosgw" in get(sources, "/service/storage/radosgw")
    assert "No such service" in get(PageSources(), "/service/storage/radosgw/more")


ELECTION: dict[str, Any] = {"election": {"held": [], "shards": 1, "replicas": [], "error": "forbidden"}}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "In sync"),
        ({"services": 0, "states": {}}, "Nothing to mirror"),
        ({"states": {"unknown": 1}}, "In sync as far as known"),
        ({"states": {"conflict": 1, "unknown": 1}}, "In sync, with conflicts"),
        ({"states": {"out_of_sync": 1, "conflict": 1}}, "Catching up"),
        ({"states": {"held": 1, "out_of_sync": 1}}, "Removals held"),
        ({"states": {"held": 1}, "troubled": [row(state="out_of_sync", slices_deviate=True)]}, "Out of sync"),
        ({"states": {"failed": 1, "held": 1}}, "Write errors"),
        ({"state": {**STATE, "consul": {"dc1": "refused"}}, "states": {"failed": 1}}, "Consul does not answer"),
        ({"state": {**STATE, "consul": {"dc1": "x"}, "kubernetes": "refused"}}, "Cannot write"),
        ({"state": {**STATE, "configuration": "F: no"}, "states": {"out_of_sync": 1}}, "Configuration reload rejected"),
        ({"state": {**STATE, "configuration": "F: no"}, "states": {"held": 1}}, "Removals held"),
        ({"state": {**STATE, **ELECTION}, "states": {"failed": 1}}, "Leader election error"),
        ({"state": {**STATE, **ELECTION, "conflicting_writer": "another"}}, "Conflicting writer detected"),
        ({"state": {**STATE, "consul": {"dc1": "x"}, "conflicting_writer": "another"}}, "Consul does not answer"),
        ({"state": {"first_pass_done": False, "kubernetes": "not started"}}, "Starting"),
        ({"state": {"first_pass_done": False, "kubernetes": "not listed yet"}}, "Starting"),
        ({"state": {"first_pass_done": False, "kubernetes": "refused"}}, "Cannot start yet"),
        ({"state": {"first_pass_done": False, "consul": {"dc1": "x"}}}, "Cannot start yet"),
    ],
)
def test_the_verdict_is_the_worst_that_is_so(change: dict[str, Any], verdict: str) -> None:
    """As the table above `judge` says."""
    assert judge(overview(**change))[1] == verdict


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"conflicting_writer": "another process writes"}, "Conflicting writer: another process writes"),
        (ELECTION, "Leader election: forbidden"),
        ({"configuration": "F:1: no"}, "Configuration: F:1: no"),
        ({"first_pass_done": False, "kubernetes": "connection refused"}, "Kubernetes: connection refused"),
        ({"first_pass_done": False, "consul": {"dc1": "no leader"}}, "Consul, datacenter dc1: no leader"),
    ],
)
def test_what_is_wrong_is_reported_with_its_reason(state: dict[str, Any], words: str) -> None:
    """Under the verdict, which is not that all is well."""
    sources = PageSources()
    sources.state_answer |= state
    page = get(sources, "/")
    assert f"<li>{words}</li>" in page
    assert 'class="verdict good"' not in page


@pytest.mark.parametrize("reason", ["not started", "not listed yet"])
def test_a_start_that_is_merely_not_over_is_no_trouble(reason: str) -> None:
    """Nothing has been asked, or nothing answered yet."""
    sources = PageSources()
    sources.state_answer |= {"first_pass_done": False, "kubernetes": reason}
    page = get(sources, "/")
    assert ("Starting" in page, reason in page, "trouble" in page) == (True, False, False)


def test_the_first_page_before_anything_is_known() -> None:
    """The bridge is served before it has read anything."""
    sources = PageSources()
    sources.rows, sources.state_answer = [], {"first_pass_done": False, "owner": "default", "queue": 0}
    page = get(sources, "/")
    assert "Starting" in page
    assert "No service is mirrored yet." in page


@pytest.mark.parametrize(
    ("election", "words"),
    [
        ({}, "the only one"),
        ({"held": [], "shards": 1, "replicas": ["a", "b"]}, "stands by"),
        ({"held": [0], "shards": 1, "replicas": ["a"]}, "leads"),
        ({"held": [0, 2], "shards": 4, "replicas": ["a", "b"]}, "leads 2 of 4 shards"),
    ],
)
def test_the_role_is_shown(election: dict[str, Any], words: str) -> None:
    """Leader, standby, some of the shards."""
    sources = PageSources()
    sources.state_answer |= {"election": election}
    assert f"<dd>{words}</dd>" in get(sources, "/")


def test_many_holds_are_cut_and_linked() -> None:
    """One whole reason is enough: it is nearly the same for all of them."""
    sources = PageSources()
    kept = "1 ready endpoint kept"
    sources.rows = [row(f"s{n}", "storage", "held", detail=kept, command=f"sync {n}") for n in range(5000)]
    verdict = get(sources, "/").split('id="verdict"')[1].split("</section>")[0]
    assert verdict.count(kept) == 1
    assert [f">storage/s{n}</a>" in verdict for n in (0, 4, 5)] == [True, True, False]
    assert '<a href="?state=held">all 5,000 services: held</a>' in verdict
    assert 'to release storage/s0 alone: <code class="command">sync 0</code>' in verdict


def test_what_is_only_to_be_written_yet_is_no_trouble() -> None:
    """Its row says so and nothing above the table does; slices that deviate are named there, and red."""
    sources = PageSources()
    sources.rows = [row("web", state="out_of_sync", detail="update Endpoints")]
    sources.rows.append(row("db", state="out_of_sync", detail="lacks one", slices_deviate=True))
    page = get(sources, "/")
    verdict = page.split('id="verdict"')[1].split("</section>")[0]
    assert '<strong>Out of sync</strong>: <a href="service/storage/db">storage/db</a>: lacks one' in verdict
    assert "storage/web" not in verdict
    assert [page.count(f'class="badge {severity}">') for severity in ("busy", "bad")] == [1, 1]
    assert 'href="?state=out_of_sync">Out of sync <span>2</span></a>' in page


@pytest.mark.parametrize(
    ("state", "kind"), [("failed", "Write error"), ("conflict", "Conflict"), ("held", "Removals held")]
)
def test_conflicts_holds_and_failures_name_their_services_and_lead_to_them(state: str, kind: str) -> None:
    """Above the table, with what is wrong; a hold with the command that releases it and nothing else."""
    sources = PageSources()
    sources.rows = [
        row("web"),
        row("db", "shop", state, detail="so it is", command="bridge sync" if state == "held" else ""),
    ]
    verdict = get(sources, "/").split('id="verdict"')[1].split("</section>")[0]
    line = f'<li><strong>{kind}</strong>: <a href="service/shop/db">shop/db</a>: so it is'
    assert line in verdict
    assert ('<code class="command">bridge sync</code></li>' in verdict) is (state == "held")
    assert "storage/web" not in verdict


def test_a_service_without_any_ready_endpoint_is_not_green() -> None:
    """An amber mark in its row and on its page, a filter, a sentence in the verdict; a worse state comes before."""
    sources = PageSources()
    empty: dict[str, Any] = {"kubernetes_ready": 0, "kubernetes_not_ready": 3, "consul_ready": 0}
    sources.rows = [row("web"), row("cache", **empty), row("db", state="failed", **empty)]
    page = get(sources, "/")
    assert page.count('<span class="badge warn"><span aria-hidden="true" class="mark">!</span> no ready endpoint') == 1
    assert 'href="?state=no_ready_endpoint">No ready endpoint <span>1</span></a>' in page
    assert "<strong>No ready endpoint</strong>: <a" in page
    sources.rows = sources.rows[:2]
    page = get(sources, "/")
    assert "1 service of 2 has no ready endpoint." in page
    assert 'class="verdict warn"' in page
    assert [r.name for r in find(sources.rows, ServiceQuery(state="no_ready_endpoint")).rows] == ["cache"]
    assert "badge warn" in get(sources, "/service/storage/cache")
    assert 'class="badge good"' in get(sources, "/service/storage/web")


def test_trouble_comes_first() -> None:
    """Where no one asked for an order; the worst at the top, and then by name."""
    states = ("in_sync", "out_of_sync", "unknown", "conflict", "held", "out_of_sync", "failed")
    rows = [row(f"s{n}", state=state, slices_deviate=n == 5) for n, state in enumerate(states)]
    rows += [row("a0", kubernetes_ready=0), row("a1")]
    assert [r.name for r in find(rows, ServiceQuery()).rows] == ["s6", "s5", "s4", "s3", "s2", "a0", "s1", "a1", "s0"]


def test_the_page_says_which_bridge_it_is_of() -> None:
    """Version, pod, owner, Consul and the rules with their places; nothing where it is not known."""
    sources = PageSources()
    assert "<h2>This bridge</h2>" not in get(sources, "/")
    sources.state_answer["bridge"] = {
        "version": "1.2.3", "pod": "bridge-7c9f", "consul_address": "http://consul:8500", "consul_ui": "",
        "configuration_file": "/etc/bridge.yaml", "rules": ["the gateways (bridge.yaml:3:5)"],
    }  # fmt: skip
    about = get(sources, "/").split('id="about"')[1]
    for said_there in ("1.2.3", "bridge-7c9f", "default", "http://consul:8500", "/etc/bridge.yaml"):
        assert f"<dd>{said_there}</dd>" in about
    assert "<li>the gateways (bridge.yaml:3:5)</li>" in about


def test_services_link_to_consuls_ui_where_the_settings_say_where_it_is() -> None:
    """And to nothing else; a datacenter that is more than a name leads to the first page of the UI."""
    sources = PageSources()
    sources.explanations = (replace(explanation(), datacenter="dc1", service="web/a"),)
    assert "Consul&#x27;s UI" not in get(sources, "/service/storage/radosgw")
    sources.state_answer["bridge"] = {"consul_ui": f"{UI}/"}
    assert f'href="{UI}/dc1/services/web%2Fa"' in get(sources, "/service/storage/radosgw")
    assert f'<a href="{UI}/" rel="noreferrer noopener">Consul</a>' in get(sources, "/")
    assert pages.in_consul_ui(UI, "dc1 of partition x", "web") == UI


def test_services_are_filtered_by_namespace() -> None:
    """All namespaces are offered where there are several, and the filter by state counts what is shown."""
    found = find(ROWS, ServiceQuery(namespace="a", state="held"))
    assert (found.found, found.states["held"], found.total, found.namespaces) == (12, 12, 120, ("a", "b"))
    sources = PageSources()
    assert "<select" not in get(sources, "/")
    sources.rows = [row("x", "one"), row("y", "two")]
    page = get(sources, "/", {"namespace": "two"})
    assert '<option value="two" selected>two</option>' in page
    assert ("service/two/y" in page, "service/one/x" in page) == (True, False)
    assert 'href="?namespace=two&amp;sort=name"' in page


def test_the_datacenter_that_carries_the_traffic_is_named_and_why() -> None:
    """Once: where it is not the first, that is a warning as well."""
    why = "datacenter fra carries the traffic, not ams: it has no instance"
    explained = explanation(traffic=why, warnings=(why,))
    page = pages.service_page(row(active_datacenter="fra"), [explained], [], {})
    assert (page.count(why), "Traffic from" in page) == (1, True)
    assert "Traffic" not in pages.service_page(row(), [explanation()], [], {})


def test_instances_stand_in_natural_order_and_fold_by_their_labels() -> None:
    """rgw-2 before rgw-10; each cell says what it is, for a screen that has no room for a head."""
    fine = replace(explanation().rows[0], disposition="ready", kubernetes="ready")
    rows = tuple(replace(fine, instance=f"rgw-{n}") for n in (10, 2, 1))
    page = pages.service_page(row(), [explanation(rows=rows)], [], {})
    assert page.index("rgw-1<") < page.index("rgw-2<") < page.index("rgw-10<")
    assert page.count('data-label="Address"') == 3


@pytest.mark.parametrize(("hostname", "shown"), [("kafka-1", True), ("", False)])
def test_hostnames_have_a_column_where_there_are_some(hostname: str, shown: bool) -> None:
    """Few services have any."""
    found = replace(explanation().rows[0], hostname=hostname)
    page = pages.service_page(row(), [explanation(rows=(found,))], [], {})
    assert ('<td data-label="Hostname">kafka-1</td>' in page, '<th scope="col">Hostname</th>' in page) == (shown, shown)


@pytest.mark.parametrize(("status", "shown"), [("critical", 1), ("warning", 1), ("passing", 0)])
def test_what_a_check_printed_stands_beside_an_instance_that_is_not_passing(status: str, shown: int) -> None:
    """As text, whatever it is."""
    instance = replace(explanation().rows[0], status=status, output=f"503 {HOSTILE}")
    page = pages.service_page(row(), [explanation(rows=(instance,))], [], {})
    assert page.count('<small class="output">503 &lt;script&gt;alert(1)') == shown
    assert page.count("503") == shown


def test_commands_are_marked_for_copying() -> None:
    """The one that releases a hold where its text has it; the one that explains."""
    held = "12 kept; released when Consul recovers or by `bridge sync --force`, or later"
    page = pages.service_page(row(state="held", command="bridge sync --force"), [explanation(held=(held,))], [], {})
    assert 'or by <code class="command">bridge sync --force</code>, or later' in page
    assert '<code class="command">bridge explain radosgw</code>' in page


def test_a_page_has_what_a_screen_reader_needs() -> None:
    """One h1, landmarks, a language, headers with a scope, and an order that assistive technology can read."""
    elements = Elements(get(PageSources(), "/"))
    tags = Counter(tag for tag, _ in elements.found)
    assert {t: tags[t] for t in ("h1", "main", "header", "caption")} == {"h1": 1, "main": 1, "header": 1, "caption": 1}
    assert elements.having("lang") == ["en"]
    assert elements.having("aria-sort") == ["ascending"]
    assert all(a.get("scope") in ("col", "row") for tag, a in elements.found if tag == "th")
    ids = elements.having("id")
    assert len(ids) == len(set(ids))
    assert set(elements.having("aria-labelledby")) | set(elements.having("for")) <= set(ids)


def test_instances_in_trouble_come_first_and_long_lists_are_cut() -> None:
    """A service of a thousand instances is still a page."""
    fine = explanation().rows[0]
    rows = (
        *(replace(fine, instance=f"vm-{n:04}") for n in range(1000)),
        replace(fine, instance="sick", disposition="not ready"),
    )
    page = pages.service_page(row(), [explanation(rows=rows)], [], {})
    assert page.index("sick") < page.index("vm-0000")
    assert page.count("<tr>") == 1 + pages.INSTANCES
    assert "and 501 more" in page


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"disposition": "not ready", "status": "critical", "check": "GET /"}, "critical: check GET /"),
        ({"disposition": "not ready", "status": "maintenance", "check": ""}, "maintenance"),
        ({"disposition": "skipped", "status": "critical", "check": "GET /", "reason": "loopback"}, "loopback"),
        ({"disposition": "ready", "status": "warning", "check": "GET /"}, ""),
    ],
)
def test_an_instance_that_is_not_ready_says_why(fields: dict[str, str], why: str) -> None:
    """What decided it; where nothing else did, its status and the check that made it."""
    fine = replace(explanation().rows[0], reason="")
    page = pages.service_page(row(), [explanation(rows=(replace(fine, **fields),))], [], {})
    assert page.split("</tr></tbody>")[0].endswith(f'<td data-label="Why">{why}</td>')


def test_times_of_changes_say_that_they_are_in_utc() -> None:
    """In words that are seen; where the list is long each has its day as well."""
    history = History(wall_clock=lambda: 0.0)
    states = StateChanges(history)
    states.kubernetes(False, "refused")
    for path in ("/", "/changes"):
        assert 'Recent changes <small class="zone">times in UTC</small>' in get(PageSources(), path, history=history)
    assert ">00:00:00</time>" in get(PageSources(), "/", history=history)
    assert ">1970-01-01 00:00:00</time>" in get(PageSources(), "/changes", history=history)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0084, "8 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (4.24, "4.2 s"),
        (99.94, "99.9 s"),
        (99.96, "2 min"),
        (1020, "17 min"),
    ],
)
def test_durations_change_their_unit_where_they_are_rounded_to_it(seconds: float, words: str) -> None:
    """A second is never written as 1000 ms."""
    assert duration(seconds) == words


def test_what_follows_events_has_its_place_also_while_it_is_empty() -> None:
    """By the places the script tells a page from another one, and what is not there cannot be put in."""
    sources = PageSources()
    before = live(get(sources, "/"))
    sources.skipped = (Skipped("a_b", "", said("no name")),)
    assert live(get(sources, "/")) == before
    assert "unmirrored" in before
    assert live(get(sources, "/service/storage/nix")) == []


def live(page: str) -> list[str]:
    """Ids of the places that follow events."""
    return [str(attributes["id"]) for _, attributes in Elements(page).found if "data-live" in attributes]


# --------------------------------------------------------------------------- search, order, pages

ROWS = [
    row(f"s{n:03}", "b" if n % 2 else "a", "held" if n % 10 == 0 else "in_sync", consul_ready=n) for n in range(120)
]


def names(**wish: Any) -> list[str]:
    """Names that a wish finds."""
    return [f"{r.namespace}/{r.name}" for r in find(ROWS, ServiceQuery(**wish)).rows]


def test_fifty_on_a_page_by_namespace_and_name() -> None:
    """And the last page has the rest."""
    first, last = names(sort="name"), names(sort="name", page=3)
    assert (first[:2], len(first), last[-1], len(last)) == (["a/s000", "a/s002"], PER_PAGE, "b/s119", 20)


def test_a_page_too_far_is_the_last() -> None:
    """Services go while a user reads."""
    assert names(page=99) == names(page=3)


def test_search_wants_every_word_in_any_case() -> None:
    """In the namespace, the name, the service or the datacenter."""
    assert names(text="B/S01 DC1") == ["b/s011", "b/s013", "b/s015", "b/s017", "b/s019"]
    assert names(text="nix") == []


def test_the_filter_counts_what_the_search_finds() -> None:
    """So that the numbers on it are what a click will show."""
    found = find(ROWS, ServiceQuery(text="s01", state="held"))
    assert ([r.name for r in found.rows], dict(found.states), found.found, found.total) == (
        ["s010"], {"held": 1, "in_sync": 9}, 1, 120,
    )  # fmt: skip


def test_columns_sort_both_ways_and_ties_go_by_name() -> None:
    """What is in trouble comes first when states are sorted."""
    assert names(sort="consul", descending=True)[:2] == ["b/s119", "a/s118"]
    assert names(sort="state")[:2] == ["a/s000", "a/s010"]
    assert names(sort="kubernetes") == names(sort="name")


@pytest.mark.parametrize(
    "query",
    [
        {"page": "0"},
        {"page": "-1"},
        {"page": "9" * 100},
        {"page": "²"},
        {"page": "x"},
        {"sort": "x"},
        {"state": "x"},
        {"dir": "x"},
    ],
)
def test_what_makes_no_sense_counts_as_not_given(query: dict[str, str]) -> None:
    """A user edited the address."""
    assert ServiceQuery.of(query) == ServiceQuery()


def test_an_address_leads_back_to_its_wish() -> None:
    """Links and the form say the same."""
    wish = ServiceQuery("a & b=ü", "held", "storage", "consul", True, 3)
    assert ServiceQuery.of(dict(parse_qsl(wish.address()[1:]))) == wish
    assert ServiceQuery().address() == "?"


# --------------------------------------------------------------------------- markup


def test_only_what_was_made_as_markup_is_markup() -> None:
    """Text is escaped wherever it stands: as content, in attributes, joined."""
    assert el("p", "<b>", el("b", "x"), None, class_='"<', hidden=True, title=None) == (
        '<p class="&quot;&lt;" hidden>&lt;b&gt;<b>x</b></p>'
    )
    assert join("<", text("<"), 1) == "&lt;&lt;1"
    assert text("a\x00\x1b\u202e") == "a\\x00\\x1b\\u202e"


def test_many_readers_cost_no_more_than_one() -> None:
    """They share the rows for a moment."""
    sources = PageSources()
    asked: list[int] = []
    rows = sources.rows

    def services() -> Sequence[ServiceRow]:
        asked.append(1)
        return rows

    sources.services = services  # type: ignore[method-assign]  # a sources that counts
    now = [0.0]
    routes = Routes(sources, Metrics("1").text, History(), clock=lambda: now[0])
    for moment in (0.0, 0.1, 0.2, 0.3, 0.4):
        now[0] = moment
        assert routes.pages["/"](Request("/")).status == 200
    assert len(asked) == 2


def test_five_thousand_services_are_a_page_of_the_same_size() -> None:
    """Fifty rows and a bounded number of bytes, however many there are."""
    sources = PageSources()
    sources.rows = [row(f"service-{n:04}") for n in range(5000)]
    page = get(sources, "/", {"page": "40"})
    assert (page.count("<tr>"), "Services 1,951 to 2,000 of 5,000" in page) == (1 + PER_PAGE, True)
    assert len(page) < 60_000
