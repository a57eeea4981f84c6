"""Several observers behind one: what the controller reports reaches all of them, and one that fails spoils nothing."""

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
        self._notify("outcome", outcome, lag_seconds)

    def consul(self, datacenter: str, up: bool, reason: str) -> None:
        """Handed on."""
        self._notify("consul", datacenter, up, reason)

    def kubernetes(self, up: bool, reason: str) -> None:
        """Handed on."""
        self._notify("kubernetes", up, reason)

    def held(self, held: tuple[Held, ...]) -> None:
        """Handed on."""
        self._notify("held", held)

    def leading(self, shards: frozenset[int], of: int) -> None:
        """Handed on."""
        self._notify("leading", shards, of)

    def service_read_errors(self, errors: Mapping[Query, str], annotated: frozenset[Query] = frozenset()) -> None:
        """Handed on."""
        self._notify("service_read_errors", errors, annotated)

    def warned(self, warnings: tuple[str, ...]) -> None:
        """Handed on."""
        self._notify("warned", warnings)

    def unreadable(self, namespaces: Mapping[str, str]) -> None:
        """Handed on."""
        self._notify("unreadable", namespaces)

    def slices_forbidden(self, namespaces: Mapping[str, str]) -> None:
        """Handed on."""
        self._notify("slices_forbidden", namespaces)

    def conflicting_writer(self, reason: str) -> None:
        """Handed on."""
        self._notify("conflicting_writer", reason)

    def streaming_mismatch(self, query: Query, reason: str) -> None:
        """Handed on."""
        self._notify("streaming_mismatch", query, reason)

    def server_warning(self, text: str) -> None:
        """Handed on."""
        self._notify("server_warning", text)

    def credentials(self, error: str) -> None:
        """Handed on."""
        self._notify("credentials", error)

    def pass_done(self, duration_seconds: float, report: Report) -> None:
        """Handed on."""
        self._notify("pass_done", duration_seconds, report)

    def _notify(self, what: str, *arguments: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, what)(*arguments)
            except Exception as error:  # noqa: BLE001 - an observer must never stop the work that it observes
                logger().error("an observer failed", observer=type(observer).__name__, event_kind=what, exc_info=error)
