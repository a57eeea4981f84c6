"""What readers of EndpointSlices see: the union of all slices of a Service, whatever wrote them, compared with what is
wanted.

kube-proxy, CoreDNS and ingress controllers choose slices by the label `kubernetes.io/service-name` alone. So a slice
that no writer updates any more (left behind when a Service was moved from pods to VMs, restored, made by hand) sends
traffic wherever it says, and an Endpoints object that is not mirrored sends it nowhere.

| slice | is |
| --- | --- |
| ours | as the plan leaves it |
| of the mirroring controller, and the Endpoints carry the addresses | the mirror: it has to have all that is wanted |
| the same, and our slices carry them | about to go, for the Endpoints say skip-mirror |
| any other | foreign: nothing is missing for it, and what it has beyond is superfluous |

An endpoint is an address with a port (name, number, protocol). Of one that stands in several slices with different
conditions readers take either (docs/kubernetes.md), so each slice has to say what is wanted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.core.model import NO_PORTS, SLICE_MANAGER, Current, CurrentSlice, Group, Port, Target
from bridge.core.ownership import KEEP, SKIP_MIRROR
from bridge.core.reasons import Code, Reason

MIRRORING_CONTROLLER = "endpointslicemirroring-controller.k8s.io"
"""The manager of slices that the control plane makes of Endpoints."""

POD_CONTROLLER = "endpointslice-controller.k8s.io"
"""The manager of slices that the control plane makes of the pods that a Service selects."""

SHOWN = 3
"""Endpoints that a sentence names; what is beyond is counted."""

Key = tuple[str, Port]
Conditions = tuple[bool, bool]
"""Whether an endpoint is ready, and whether it is serving."""


@dataclass(frozen=True, slots=True)
class Seen:
    """In what the union differs from what is wanted, and the slices of others, each with what it has beyond.

    `kept`: the same of slices that a user annotated to be kept (`ownership.KEEP`); they deviate from nothing.
    `differences` are the deviations taken apart: each endpoint that is missing, superfluous or has other conditions,
    and each slice of others that has something beyond, whatever that is at the moment.
    """

    deviations: tuple[Reason, ...] = ()
    foreign: tuple[Reason, ...] = ()
    differences: frozenset[Hashable] = frozenset()
    kept: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class _Difference:
    """Endpoints in which a slice, or the whole mirror, differs from what is `expected`, each sorted."""

    expected: Mapping[Key, Conditions]
    missing: Sequence[Key]
    beyond: Sequence[Key]
    otherwise: Sequence[Key]

    @property
    def each(self) -> Iterator[Hashable]:
        yield from (("missing", key) for key in self.missing)
        yield from (("beyond", key) for key in self.beyond)
        yield from (("otherwise", key, self.expected[key]) for key in self.otherwise)

    def __str__(self) -> str:
        """In words, "" when there is none."""
        parts = [
            f"lacks {_some(self.missing)}" if self.missing else "",
            f"has {_some(self.beyond)}, which Consul does not show" if self.beyond else "",
            f"has {_some(self.otherwise)} with other conditions (ready, serving) than Consul" if self.otherwise else "",
        ]
        return " and ".join(filter(None, parts))


def compare(
    target: Target,
    wanted: Iterable[Group],
    own: Mapping[str, Group],
    others: Sequence[CurrentSlice],
    *,
    mirrored: bool,
) -> Seen:
    """Hold the union of `own` slices (by name) and `others` against what is wanted.

    `mirrored`: the control plane's mirror of the Endpoints carries the addresses; it has no `serving` of its own.
    """
    if not others and not mirrored:
        return Seen()  # almost always: the plan is what makes our own slices right
    wanted = tuple(wanted)
    is_plain = mirrored and not own and all(piece.manager == MIRRORING_CONTROLLER for piece in others)
    if is_plain and _ready(wanted) == _ready(piece.group for piece in others):
        return Seen()  # almost always with `output: endpoints`: the mirror has caught up
    expected = dict(_endpoints(wanted, mirrored=mirrored))
    deviations: list[Reason] = []
    foreign: list[Reason] = []
    kept: list[Reason] = []
    differences: set[Hashable] = set()
    mirror: dict[Key, list[Conditions]] = {}
    for name, group in sorted(own.items()):
        found = _difference(group, expected, mirrored=mirrored)
        if what := str(found):
            deviations.append(Reason(Code.SLICE_OUTDATED, name=name, manager=SLICE_MANAGER, what=what))
            differences.update(found.each)
    for piece in sorted(others, key=lambda s: s.meta.name):
        name, manager = piece.meta.name, piece.manager
        if not piece.group.endpoints:
            continue
        if manager == MIRRORING_CONTROLLER and mirrored:
            for key, conditions in _endpoints((piece.group,), mirrored=True):
                mirror.setdefault(key, []).append(conditions)
            continue
        found = _difference(piece.group, expected, mirrored=mirrored)
        what = str(found)
        if manager == MIRRORING_CONTROLLER:
            if what:
                deviations.append(Reason(Code.SLICE_OUTDATED, name=name, manager=manager, what=what))
                differences.update(found.each)
            continue
        if dict(piece.meta.ownership).get(KEEP) == "true":
            has = what or "repeats endpoints that Consul shows"
            kept.append(Reason(Code.SLICE_KEPT_BY_USER, name=name, annotation=KEEP, what=has))
            continue
        said = what or "repeats endpoints that Consul shows, and no controller updates it"
        reason = Reason(Code.FOREIGN_SLICE, name=name, manager=manager, namespace=target.namespace, what=said)
        foreign.append(reason)
        if what:
            deviations.append(reason)
            differences.add(("foreign", name))
    if mirrored:
        had = {key for key, _ in _endpoints(own.values(), mirrored=True)}
        found = _behind(mirror, expected, had)
        if what := str(found):
            deviations.append(Reason(Code.MIRROR_BEHIND, what=what))
            differences.update(found.each)
    return Seen(tuple(deviations), tuple(foreign), frozenset(differences), tuple(kept))


def compare_existing(current: Current, owner: str) -> Seen | None:
    """The same for what exists at a target, taking our own objects for what is wanted; None where none are to be read.

    This shows, without asking Consul, whether what the bridge wrote reaches the clients.
    """
    endpoints, service = current.endpoints, current.service
    own = {s.meta.name: s.group for s in current.slices if s.meta.owner == owner}
    ours = endpoints is not None and endpoints.meta.owner == owner
    if service is None or service.has_selector or current.others is None or not (ours or own):
        return None
    others = (*current.others, *(s for s in current.slices if s.meta.owner != owner))
    if endpoints is not None and ours and (SKIP_MIRROR, "true") not in endpoints.meta.labels:
        return compare(current.target, endpoints.groups, own, others, mirrored=True)
    return compare(current.target, own.values(), own, others, mirrored=False)


def _ready(groups: Iterable[Group]) -> Mapping[tuple[Port, ...], set[tuple[str, bool]]]:
    """Addresses, and whether they are ready, by their ports: quickly compared."""
    found: dict[tuple[Port, ...], set[tuple[str, bool]]] = {}
    for group in groups:
        if group.endpoints:
            found.setdefault(group.ports, set()).update((e.address, e.ready) for e in group.endpoints)
    return found


def _endpoints(groups: Iterable[Group], *, mirrored: bool) -> Iterator[tuple[Key, Conditions]]:
    for group in groups:
        for endpoint in group.endpoints:
            conditions = endpoint.ready, endpoint.ready if mirrored else endpoint.serving
            for port in group.ports or NO_PORTS:
                yield (endpoint.address, _bare(port)), conditions


def _bare(port: Port) -> Port:
    return Port(port.name, port.number, port.protocol) if port.app_protocol else port


def _difference(group: Group, expected: Mapping[Key, Conditions], *, mirrored: bool) -> _Difference:
    """What a slice has that is not wanted."""
    found = list(_endpoints((group,), mirrored=mirrored))
    beyond = sorted(key for key, _ in found if key not in expected)
    otherwise = sorted(key for key, conditions in found if expected.get(key, conditions) != conditions)
    return _Difference(expected, (), beyond, otherwise)


def _behind(
    mirror: Mapping[Key, Sequence[Conditions]], expected: Mapping[Key, Conditions], had: set[Key]
) -> _Difference:
    """In what the mirror differs from the Endpoints. What our own slices have as well (`had`) is not missing."""
    missing = sorted(key for key in expected if key not in mirror and key not in had)
    beyond = sorted(key for key in mirror if key not in expected)
    otherwise = sorted(
        key for key, found in mirror.items() if key in expected and any(c != expected[key] for c in found)
    )
    return _Difference(expected, missing, beyond, otherwise)


def _some(keys: Sequence[Key]) -> str:
    texts = [_text(key) for key in keys[:SHOWN]]
    return ", ".join(texts) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def _text(key: Key) -> str:
    address, port = key
    host = f"[{address}]" if ":" in address and port.number else address
    protocol = f"/{port.protocol}" if port.protocol != "TCP" else ""
    return f"{host}:{port.number}{protocol}" if port.number else address


def endpoint_counts(current: Current) -> tuple[int, int]:
    """Ready and not ready endpoints in objects of ours; one that stands in Endpoints and in a slice counts once."""
    observed: dict[tuple[str, tuple[Any, ...]], bool] = {}
    for group in current.groups():
        for endpoint in group.endpoints:
            key = endpoint.address, group.ports
            observed[key] = endpoint.ready or observed.get(key, False)
    return sum(observed.values()), sum(not ready for ready in observed.values())
