"""Several observers behind one: what the controller reports reaches all of them, and one that fails spoils nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.telemetry.logs import logger

if TYPE_CHECKING:
    from bridge.report import Outcome, Report
    from bridge.telemetry.events import Observer, StateEvent


class FanOutObserver:
    """Passes everything to its observers, in order. `add` another one before the first report."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)

    def outcome(self, outcome: Outcome, lag_seconds: float | None) -> None:
        self._notify("outcome", outcome, lag_seconds)

    def pass_done(self, duration_seconds: float, report: Report) -> None:
        self._notify("pass_done", duration_seconds, report)

    def changed(self, event: StateEvent) -> None:
        self._notify("changed", event)

    def _notify(self, what: str, *arguments: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, what)(*arguments)
            except Exception as error:  # noqa: BLE001 - an observer must never stop the work that it observes
                logger().error("an observer failed", observer=type(observer).__name__, event_kind=what, exc_info=error)
