"""What `bridge run` serves, and where: probes, metrics, status and changes as JSON, and the pages for people.

Puts together what the bridge says (`Source`) and what the history remembers; it decides nothing. Every page is made
from the state at that moment.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, Protocol

from bridge.core.explain import Explanation
from bridge.core.model import Skipped
from bridge.core.service_state import ServiceRow
from bridge.telemetry import metrics as metrics_module
from bridge.telemetry import pages
from bridge.telemetry.history import CHANGES, History
from bridge.telemetry.http import Answer, Page, Request, html_answer, json_answer, text_answer
from bridge.telemetry.listing import ServiceQuery, find
from bridge.telemetry.logs import escape
from bridge.telemetry.overview import Overview, is_in_trouble

FRESH_SECONDS = 0.25
"""How old rows may be: many readers share them, so that they cost the bridge no more than one. The script waits for
longer than that after a change."""

SHOWN = 15
"""Changes on the first page and on a service's; /changes has all that are remembered."""

STATIC = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Source(Protocol):
    """The bridge, as the pages see it. Everything is called from several threads."""

    def healthy(self) -> tuple[bool, str]:
        """Whether the loops live, and what is wrong when not."""

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether both sides are followed, with the detail."""

    def status(self) -> dict[str, Any]:
        """Everything, with the report of all services."""

    def state(self) -> dict[str, Any]:
        """The same without the report: quick however many services there are."""

    def services(self) -> Sequence[ServiceRow]:
        """All mirrored services."""

    def unmirrored(self) -> Sequence[Skipped]:
        """Services in Consul that cannot be mirrored at all."""

    def explain(self, namespace: str, name: str) -> Sequence[Explanation] | None:
        """Why the instances at a target are as they are; None when nothing is mirrored there."""


class Routes:
    """The pages of one bridge, for a web server: `pages` are all of them, `probes` those for machines alone."""

    def __init__(
        self,
        source: Source,
        metrics: Callable[[], bytes],
        history: History,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._metrics = metrics
        self._history = history
        self._clock = clock
        self._rows_lock = threading.Lock()
        self._rows: Sequence[ServiceRow] = ()
        self._rows_at = -math.inf
        self.probes: Mapping[str, Page] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": lambda _request: Answer(200, metrics_module.CONTENT_TYPE, self._metrics()),
        }
        self.pages: Mapping[str, Page] = {
            **self.probes,
            "/api/status": lambda _request: json_answer(200, self._source.status()),
            "/api/changes": self._changes,
            "/": self._index,
            "/changes": lambda _request: html_answer(200, pages.changes_page(self._history.changes())),
            "/service/": self._service,
            **{f"/{name}": _static(name, kind) for name, kind in STATIC.items()},
        }

    def _healthz(self, _request: Request) -> Answer:
        ok, detail = self._source.healthy()
        return text_answer(200 if ok else 503, escape(detail))

    def _readyz(self, _request: Request) -> Answer:
        ok, detail = self._source.ready()
        return json_answer(200 if ok else 503, {"ready": ok, **detail})

    def _changes(self, request: Request) -> Answer:
        """What happened after change number `after` (0: all that is remembered), newest first, at most `limit`.

        A number that is larger than `newest` is of another process: this one has restarted its count.
        """
        try:
            after, limit = int(request.query.get("after", "0")), int(request.query.get("limit", str(CHANGES)))
        except ValueError:
            return text_answer(400, "after and limit are numbers: /api/changes?after=17&limit=50")
        remembered = self._history.changes()
        newest = remembered[0].number if remembered else 0
        found = [entry for entry in remembered if entry.number > after or after > newest][: max(limit, 0)]
        return json_answer(200, {"newest": newest, "changes": [entry.to_json() for entry in found]})

    def _services(self) -> Sequence[ServiceRow]:
        with self._rows_lock:
            if self._clock() - self._rows_at > FRESH_SECONDS:
                self._rows = self._source.services()
                self._rows_at = self._clock()
            return self._rows

    def _index(self, request: Request) -> Answer:
        rows = self._services()
        overview = Overview(
            state=self._source.state(),
            services=len(rows),
            states=Counter(row.mark for row in rows),
            ready=sum(r.kubernetes_ready for r in rows),
            not_ready=sum(r.kubernetes_not_ready for r in rows),
            series=self._history.series(),
            unmirrored=self._source.unmirrored(),
            troubled=[row for row in rows if is_in_trouble(row)],
        )
        found = find(rows, ServiceQuery.of(request.query))
        return html_answer(200, pages.index(overview, found, self._history.changes(SHOWN)))

    def _service(self, request: Request) -> Answer:
        _, namespace, name = (*request.segments, "", "")[:3]
        rows = self._services()
        row = next((r for r in rows if r.name == name and r.namespace == namespace), None)
        why = self._source.explain(namespace, name) if row is not None else None
        if row is None or why is None or len(request.segments) != 3:
            return html_answer(404, pages.missing_page(namespace, name, "../" * (len(request.segments) - 1)))
        mine = [e for e in self._history.changes() if e.name == name and e.namespace == namespace]
        return html_answer(200, pages.service_page(row, why, mine[:SHOWN], self._source.state()))


def _static(name: str, kind: str) -> Page:
    """A file that is part of the package, read when it is asked for: it is small."""

    def page(_request: Request) -> Answer:
        return Answer(200, f"{kind}; charset=utf-8", resources.files(__package__).joinpath("static", name).read_bytes())

    return page
