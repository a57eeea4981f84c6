"""What the controller tells its observers (logs, metrics, history, Kubernetes Events), and what an observer is.

An event is a change: it comes once, when a state becomes another (`controller.state_changes` compares). So an observer
needs no memory to stay quiet while nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bridge.core.model import Held, Query, Target
from bridge.report import Outcome, Report


@dataclass(frozen=True, slots=True)
class ConsulReachable:
    """A datacenter can (`up`), or cannot be asked, and why not. `first`: this is the first report."""

    datacenter: str
    up: bool
    reason: str
    first: bool


@dataclass(frozen=True, slots=True)
class KubernetesReachable:
    """The API server can, or cannot be used, and why not. `first`: this is the first report."""

    up: bool
    reason: str
    first: bool


@dataclass(frozen=True, slots=True)
class HoldsChanged:
    """All that the guard holds now, and which holds began and ended; `ours`: the same of the targets that we write."""

    held: tuple[Held, ...]
    began: tuple[Held, ...]
    ended: tuple[Target, ...]
    ours_began: tuple[Held, ...]
    ours_ended: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class ReadErrorsChanged:
    """Every service whose last read failed, with the reason; `annotated`: those that only users' Services ask for.

    Of the services that a rule asks for, in datacenters that can be asked: how many (`count`), and the `first` if it is
    not the one that was last told. `over`: all services that a rule asks for can be read again.
    """

    errors: Mapping[Query, str]
    annotated: frozenset[Query]
    count: int
    first: tuple[Query, str] | None
    over: bool


@dataclass(frozen=True, slots=True)
class _Namespaces:
    now: Mapping[str, str]
    began: tuple[str, ...]
    ended: tuple[str, ...]


class UnreadableNamespaces(_Namespaces):
    """Namespaces that we may not list, with the reason: nothing is done there."""


class SlicesForbidden(_Namespaces):
    """Namespaces where EndpointSlices may not be written, with the rights that are missing."""


@dataclass(frozen=True, slots=True)
class Warned:
    """What works, and the operator ought to know of: the warnings that are new."""

    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConflictingWriter:
    """Another process writes what is ours, and why we think so ("": it has gone)."""

    reason: str


@dataclass(frozen=True, slots=True)
class CredentialsChanged:
    """Credentials for the API server cannot be renewed, and why; the old ones are in use ("": all is well again).

    `began`: they could, until now.
    """

    trouble: str
    began: bool


@dataclass(frozen=True, slots=True)
class LeadingChanged:
    """These shards of `of` are ours to write now. Only where leaders are elected."""

    shards: frozenset[int]
    of: int


@dataclass(frozen=True, slots=True)
class StreamingMismatch:
    """Consul showed a service to a query that waited otherwise than its catalog has it. Once for each service."""

    query: Query
    reason: str


@dataclass(frozen=True, slots=True)
class ServerWarning:
    """The API server sent a warning, or a connection to it is not what it should be. Once for each text."""

    text: str


StateEvent = (
    ConsulReachable
    | KubernetesReachable
    | HoldsChanged
    | ReadErrorsChanged
    | UnreadableNamespaces
    | SlicesForbidden
    | Warned
    | ConflictingWriter
    | CredentialsChanged
    | LeadingChanged
    | StreamingMismatch
    | ServerWarning
)


class Observer(Protocol):
    """Receives what the controller reports. Called from any thread; must be quick and must not raise."""

    def outcome(self, outcome: Outcome, lag_seconds: float | None) -> None:
        """A target was worked on. `lag_seconds`: from Consul's answer to the write's answer, None for other causes."""

    def pass_done(self, duration_seconds: float, report: Report) -> None:
        """A full pass is done: the report covers every target."""

    def changed(self, event: StateEvent) -> None:
        """The state of the bridge or of a side has changed."""
