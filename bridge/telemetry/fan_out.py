"""Several observers behind one: what the engine says reaches all of them, and one that fails spoils nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.telemetry.logs import logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.core.model import Held, Query
    from bridge.report import Observer, Outcome, Report


class FanOutObserver:
    """Hands everything on to its observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def outcome(self, outcome: Outcome, lag_seconds: float | None) -> None:
        """Handed on."""
        self._tell("outcome", outcome, lag_seconds)

    def consul(self, datacenter: str, up: bool, reason: str) -> None:
        """Handed on."""
        self._tell("consul", datacenter, up, reason)

    def kubernetes(self, up: bool, reason: str) -> None:
        """Handed on."""
        self._tell("kubernetes", up, reason)

    def held(self, held: tuple[Held, ...]) -> None:
        """Handed on."""
        self._tell("held", held)

    def leading(self, shards: frozenset[int], of: int) -> None:
        """Handed on."""
        self._tell("leading", shards, of)

    def service_read_errors(self, unread: Mapping[Query, str], annotated: frozenset[Query] = frozenset()) -> None:
        """Handed on."""
        self._tell("service_read_errors", unread, annotated)

    def warned(self, warnings: tuple[str, ...]) -> None:
        """Handed on."""
        self._tell("warned", warnings)

    def unreadable(self, namespaces: Mapping[str, str]) -> None:
        """Handed on."""
        self._tell("unreadable", namespaces)

    def slices_forbidden(self, namespaces: Mapping[str, str]) -> None:
        """Handed on."""
        self._tell("slices_forbidden", namespaces)

    def conflicting_writer(self, reason: str) -> None:
        """Handed on."""
        self._tell("conflicting_writer", reason)

    def streaming_mismatch(self, query: Query, reason: str) -> None:
        """Handed on."""
        self._tell("streaming_mismatch", query, reason)

    def server_warning(self, text: str) -> None:
        """Handed on."""
        self._tell("server_warning", text)

    def credentials(self, trouble: str) -> None:
        """Handed on."""
        self._tell("credentials", trouble)

    def pass_done(self, duration_seconds: float, report: Report) -> None:
        """Handed on."""
        self._tell("pass_done", duration_seconds, report)

    def _tell(self, what: str, *said: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, what)(*said)
            except Exception as error:  # noqa: BLE001 - telling must never stop the work that is told about
                logger().error("an observer failed", observer=type(observer).__name__, event_kind=what, exc_info=error)
