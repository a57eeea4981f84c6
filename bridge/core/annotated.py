"""Services that a user made and asks to have filled: what the label and the annotations on them mean, who may ask.

| on the Service | means |
| --- | --- |
| label `consul-bridge/mirror: "true"` | fill my Endpoints |
| annotation `consul-bridge/service` | from this Consul service; default: the Service's own name |
| annotation `consul-bridge/datacenter` | in this datacenter; default: the bridge's own |
| annotation `consul-bridge/tags` | only instances with all of these tags (comma-separated) |
| annotation `consul-bridge/filter` | only instances for which Consul's filter expression is true |
| annotation `consul-bridge/output` | carried by `both` (default), `endpoints` or `endpointslices` |
| annotation `consul-bridge/hostname-from` | `node`: endpoints get the hostnames of their Consul nodes (`hostnames`) |
| any other annotation under `consul-bridge/`, or a value that means nothing | a warning: it is not as they think |
| the label is taken off, or the Service deleted | take away what you filled, at once: Consul lost nothing |
| anything of this is changed, or the Service's ports | the same with what they do not ask for any more |

Hostnames are made of node names alone here: meta may have what the user is not to read.

What a namespace may ask for is granted by the operator (`Annotated`). A service that was not granted and one that does
not exist look the same to the user: otherwise annotations would tell what is in Consul.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from bridge.core import hostnames, labels, ownership, select
from bridge.core.model import (
    USUAL_BOUNDS,
    Bounds,
    Current,
    CurrentService,
    Destination,
    InstanceRules,
    Mirror,
    Output,
    Pairs,
    Query,
    Rule,
    Target,
)
from bridge.core.normalize import some_of, truncate
from bridge.core.reasons import Code, Reason

MIRROR = "consul-bridge/mirror"
SERVICE = "consul-bridge/service"
DATACENTER = "consul-bridge/datacenter"
TAGS = "consul-bridge/tags"
FILTER = "consul-bridge/filter"
OUTPUT = "consul-bridge/output"
HOSTNAME_FROM = "consul-bridge/hostname-from"
PREFIX = "consul-bridge/"
REQUEST = "consul-bridge/request"
"""On what we write for such a Service: for which request (`_request`)."""
_KNOWN = frozenset({MIRROR, SERVICE, DATACENTER, TAGS, FILTER, OUTPUT, HOSTNAME_FROM, ownership.ADOPT, ownership.OWNER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What users of some namespaces may ask for. Globs; an empty list means everything of its kind.

    `namespace_selector` selects namespaces by their labels (`core.labels`), beside `namespaces`: both have to match.
    `filter`: whether they may give a filter expression, which can tell them of meta that they do not see otherwise.
    `allow_cidrs` bounds the addresses, beside the bounds of the installation; without `node_addresses` none of them
    is one of the cluster's own nodes, as far as those are known.
    """

    namespaces: tuple[str, ...] = ()
    namespace_selector: str = ""
    services: tuple[str, ...] = ()
    datacenters: tuple[str, ...] = ()
    filter: bool = False
    allow_cidrs: tuple[str, ...] = ()
    node_addresses: bool = False

    def covers(self, namespace: str, query: Query) -> bool:
        """Whether it lets a user of `namespace` ask for a service in a datacenter, whatever labels that has."""
        return (
            select.is_named(self.namespaces, namespace)
            and select.is_named(self.services, query.service)
            and select.is_named(self.datacenters, query.datacenter)
        )


@dataclass(frozen=True, slots=True)
class Annotated:
    """Who may ask for what. `grants` None: not configured, see `within`; (): no user may ask.

    `unsaid`: no user may ask because nothing is configured, not because an operator decided so. `labels` are those of
    the namespaces, by name; None while they are not known, because they could not be read.
    """

    bounds: Bounds = USUAL_BOUNDS
    grants: tuple[Grant, ...] | None = (Grant(filter=True),)
    unsaid: bool = False
    labels: Mapping[str, Mapping[str, str]] | None = None

    @property
    def asks_for_labels(self) -> bool:
        """Whether some grant selects namespaces by their labels."""
        return any(grant.namespace_selector for grant in self.grants or ())

    def selects(self, grant: Grant, namespace: str) -> bool | None:
        """Whether a grant's selector takes a namespace; None when its labels are not known."""
        if not grant.namespace_selector:
            return True
        found = None if self.labels is None else self.labels.get(namespace)
        return None if found is None else labels.matches(grant.namespace_selector, found)

    def within(self, namespaces: Sequence[str] | None) -> Annotated:
        """The same for a bridge that watches `namespaces` (None: all of them).

        Without a configuration, users of the one namespace that is watched may ask for everything, and no user when
        there are several: the bridge's Consul token would serve each of them what only some should reach. What is
        filled already stays filled (`request_at`): one more namespace takes nothing away from existing Services.
        """
        if self.grants is not None:
            return self
        alone = namespaces is not None and len(namespaces) == 1
        return Annotated(self.bounds) if alone else Annotated(self.bounds, (), unsaid=True)


USUAL = Annotated()
"""Every user may ask for everything, within the usual bounds."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was not granted: what it asked for, the message for the user, and the one for the operator."""

    query: Query
    reason: Reason
    detail: Reason

    def is_of(self, names: Collection[tuple[str, str]]) -> bool:
        """Whether it asks for one of these services, (datacenter, service) in any case."""
        asked = self.query.datacenter, self.query.service.lower()
        return any((datacenter, service.lower()) == asked for datacenter, service in names)


def missing(query: Query, namespace: str) -> Reason:
    """The warning while an annotation names a service that does not exist, or that its namespace may not ask for."""
    names = {"datacenter": truncate(query.datacenter), "service": truncate(query.service)}
    return Reason(Code.SERVICE_MISSING, namespace=namespace, **names)


def request_at(
    current: Current, datacenter: str, annotated: Annotated, filled_from: Collection[tuple[str, str]]
) -> tuple[Rule, Query] | Refusal | None:
    """What the Service at a target asks for, as `request_of`; `filled_from` names what our objects there came from.

    Where no grants are configured, a Service keeps what it was filled from, and nothing else. So it does, within
    the bounds of a grant, while that may cover it and that cannot be determined: unknown labels take nothing away.
    """
    found = request_of(current.service, datacenter, annotated)
    if not isinstance(found, Refusal) or not found.is_of(filled_from):
        return found
    if annotated.unsaid:
        return request_of(current.service, datacenter, Annotated(annotated.bounds))
    if found.detail.code is Code.LABELS_UNKNOWN:
        grants = tuple(
            replace(grant, namespace_selector="")
            for grant in annotated.grants or ()
            if annotated.selects(grant, current.target.namespace) is not False
        )
        return request_of(current.service, datacenter, replace(annotated, grants=grants))
    return found


def request_of(
    service: CurrentService | None, datacenter: str, annotated: Annotated = USUAL
) -> tuple[Rule, Query] | Refusal | None:
    """What a Service asks for, None when it asks for nothing (or is one of our own making), or why it may not."""
    if service is None or service.meta.owner is not None or service.meta.deleting:
        return None
    marks = dict(service.meta.ownership)
    if marks.get(MIRROR) != "true":
        return None
    target = Target(service.meta.namespace, service.meta.name)
    name = marks.get(SERVICE, "").strip() or target.name
    wanted = marks.get(OUTPUT, "").strip()
    output = Output(wanted) if wanted in Output.__members__.values() else Output.BOTH
    tags = tuple(sorted({tag for part in marks.get(TAGS, "").split(",") if (tag := part.strip())}))
    expression = marks.get(FILTER, "").strip()
    query = Query(marks.get(DATACENTER, "").strip() or datacenter, name, filter=expression)
    grant = _granted(annotated, target.namespace, query)
    if isinstance(grant, Refusal):
        return grant
    rule = Rule(
        name=f"Service {target}",
        services=(name,),
        tags=tags,
        filter=expression,
        to=Destination(
            namespace=target.namespace,
            name=target.name,
            output=output,
            annotations=((REQUEST, _request(service, query, tags)),),
            annotated=True,
            hostname_from=hostnames.NODE if marks.get(HOSTNAME_FROM, "").strip() == hostnames.NODE else "",
        ),
        instances=InstanceRules(
            bounds=annotated.bounds, allow_cidrs=grant.allow_cidrs, node_addresses=grant.node_addresses
        ),
        warnings=tuple(_not_understood(marks, output, tags)),
    )
    return rule, query


def _request(service: CurrentService, query: Query, tags: Sequence[str]) -> str:
    """A short word for everything on a Service that decides which endpoints are its."""
    return select.digest(
        repr((query.datacenter, query.service, query.filter, tags, service.ports, service.target_ports))
    )


class Changed(Enum):
    """In what a request differs from the one that a Service was filled for."""

    NOTHING = "nothing"
    SELECTION = "the instances or ports"
    SERVICE = "the service"


def changed(current: Current, rule: Rule, query: Query, owner: str) -> Changed:
    """What the user changed since a Service was filled: what goes for that, Consul has not lost.

    Our objects say for which request they were written (until every one of them was rewritten), so this is known
    after a restart as well, and by another replica.
    """
    found = Changed.NOTHING
    for said in _said(current, owner):
        origin = ownership.origins(said.get(ownership.SERVICE, ""), said.get(ownership.DATACENTER, ""))
        if origin != ((query.datacenter, query.service),):
            return Changed.SERVICE
        if said.get(REQUEST) not in (None, *_requests(rule.to.annotations)):
            found = Changed.SELECTION
    return found


def as_before(desired: Mirror, current: Current, owner: str) -> Mirror:
    """`desired` with the request that our objects were written for: what they had is kept in place for now.

    So it is still known who wanted it gone when it goes.
    """
    wanted = _requests(desired.annotations)
    before = [said[REQUEST] for said in _said(current, owner) if said.get(REQUEST) not in (None, *wanted)]
    if not before:
        return desired
    return replace(desired, annotations=ownership.joined(desired.annotations, ((REQUEST, before[0]),)))


def _said(current: Current, owner: str) -> Iterator[Mapping[str, str]]:
    """The marks on each of our objects that carries endpoints: one that was emptied was written for none any more."""
    if current.endpoints is not None and current.endpoints.meta.owner == owner and current.endpoints.groups:
        yield dict(current.endpoints.meta.ownership)
    for piece in current.slices:
        if piece.meta.owner == owner and piece.group.endpoints:
            yield dict(piece.meta.ownership)


def _requests(annotations: Pairs) -> tuple[str, ...]:
    return tuple(value for key, value in annotations if key == REQUEST)


def _granted(annotated: Annotated, namespace: str, query: Query) -> Grant | Refusal:
    """The first grant that covers a request. While it cannot be judged whether one does, none behind it counts."""
    covering = [
        grant
        for grant in annotated.grants or ()
        if grant.covers(namespace, query) and annotated.selects(grant, namespace) is not False
    ]
    refused = select.namespace_refused(annotated.bounds, namespace)
    unknown = refused is None and bool(covering)
    if unknown:
        found = next((grant for grant in covering if grant.filter or not query.filter), None)
        if found is not None and annotated.selects(found, namespace):
            return found
        if found is None and any(annotated.selects(grant, namespace) for grant in covering):
            reason = Reason(Code.FILTER_NOT_GRANTED, namespace=namespace, annotation=FILTER)
            return Refusal(query, reason, reason)
    names = {"datacenter": truncate(query.datacenter), "service": truncate(query.service)}
    detail = refused or Reason(Code.LABELS_UNKNOWN if unknown else Code.NOT_GRANTED, namespace=namespace, **names)
    return Refusal(query, missing(query, namespace), detail)


def _not_understood(marks: Mapping[str, str], output: Output, tags: Sequence[str]) -> Iterator[Reason]:
    """Annotations that are set and do not mean what their author likely intended."""
    wanted = marks.get(OUTPUT, "").strip()
    if wanted and wanted != output:
        known = ", ".join(Output)
        yield Reason(Code.OUTPUT_UNKNOWN, annotation=OUTPUT, value=truncate(wanted), known=known, taken=output)
    source = marks.get(HOSTNAME_FROM, "").strip()
    if source not in ("", hostnames.NODE):
        said = {"annotation": HOSTNAME_FROM, "value": truncate(source), "known": hostnames.NODE}
        yield Reason(Code.HOSTNAME_SOURCE_UNKNOWN, **said)
    if marks.get(TAGS, "").strip() and not tags:
        yield Reason(Code.TAGS_EMPTY, annotation=TAGS, value=truncate(marks[TAGS]))
    unknown = sorted(key for key in marks if key.startswith(PREFIX) and key not in _KNOWN)
    if unknown:
        yield Reason(Code.ANNOTATION_UNKNOWN, names=some_of(unknown))


def is_abandoned(current: Current) -> bool:
    """Whether a user-managed Service stands at a target and does not ask to be filled (any more).

    One that we wrote is none, although a user took our label off it: our field manager is still seen on it.
    """
    service = current.service
    if service is None or service.meta.owner is not None:
        return False
    meta = service.meta
    if meta.written or meta.labels or meta.annotations:
        return False
    return meta.deleting or dict(meta.ownership).get(MIRROR) != "true"
