"""What the web tests show on the pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.core.explain import Explanation, Row, RuleVerdict
from bridge.core.model import Skipped
from bridge.core.service_state import ServiceRow
from bridge.telemetry.history import Entry

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e\"'&"

STATE: dict[str, Any] = {
    "ready": True,
    "first_pass_done": True,
    "consul": "ok",
    "kubernetes": "ok",
    "held": [],
    "owner": "default",
    "queue": 0,
    "seconds_since_last_full_pass": 12.3,
    "catalog": {"dc1": {}},
    "cache": {"objects": {"Service": 3, "Endpoints": 3}},
}


def row(name: str = "radosgw", namespace: str = "storage", state: str = "in_sync", **fields: Any) -> ServiceRow:
    """A service that is in sync with twelve ready instances, unless said otherwise."""
    values: dict[str, Any] = {
        "service": name, "datacenter": "dc1", "consul_ready": 12, "consul_not_ready": 0,
        "kubernetes_ready": 12, "kubernetes_not_ready": 0, "detail": "",
    }  # fmt: skip
    return ServiceRow(namespace=namespace, name=name, state=state, **{**values, **fields})


def entry(number: int = 1, at: float = 0.0, tone: str = "plain", text: str = "12 ready", **fields: Any) -> Entry:
    """Something that happened."""
    return Entry(number=number, at=at, severity=tone, text=text, **fields)


def explanation(word: str = "radosgw", **fields: Any) -> Explanation:
    """An explanation with one instance, in which everything that others choose is `word`."""
    values: dict[str, Any] = {
        "rules": (RuleVerdict(word, word),),
        "rows": (Row(word, "passing", word, word, word, word, "ready", word, "ready"),),
        "rule": word,
        "consul": word,
    }
    return Explanation(service=word, datacenter=word, **{**values, **fields})


class PageSources:
    """What the pages are made from; a test changes it."""

    def __init__(self) -> None:
        self.health_answer: tuple[bool, str] = (True, "ok")
        self.ready_answer: tuple[bool, dict[str, Any]] = (True, {"consul": "ok"})
        self.status_answer: dict[str, Any] = {"ready": True, "report": {"summary": {"create": 1}}}
        self.state_answer = dict(STATE)
        self.rows: list[ServiceRow] = [row()]
        self.skipped: tuple[Skipped, ...] = ()
        self.explanations: tuple[Explanation, ...] | None = (explanation(),)

    def healthy(self) -> tuple[bool, str]:
        """As the test says."""
        return self.health_answer

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """As the test says."""
        return self.ready_answer

    def status(self) -> dict[str, Any]:
        """As the test says."""
        return self.status_answer

    def state(self) -> dict[str, Any]:
        """As the test says."""
        return self.state_answer

    def services(self) -> Sequence[ServiceRow]:
        """As the test says."""
        return self.rows

    def unmirrored(self) -> Sequence[Skipped]:
        """As the test says."""
        return self.skipped

    def explain(self, namespace: str, name: str) -> Sequence[Explanation] | None:
        """As the test says."""
        return self.explanations
