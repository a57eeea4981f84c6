"""Kubernetes objects as JSON on one side, the model's values on the other. Pure functions, no requests.

Encoding gives bodies for server-side apply: deterministic, with nothing in them that we do not want to own. Decoding
is slim and never raises: what a user or another program made of an object may be malformed, and then simply differs
from what we would have written.

| thing | as we write it | why |
| --- | --- | --- |
| ports | `protocol` always | Service ports are keyed by (port, protocol) in an apply |
| Endpoints | one subset per port set, both families in it | that is what an Endpoints subset is |
| subsets | no empty `addresses` or `notReadyAddresses` | 422 |
| subsets | `[]` where there are none | what is left out stays while another manager owns it, too |
| Service | `type` only where the rule sets it | what others made of it stays; an adopted ExternalName is an exception |
| Service ports | `targetPort` always | users and some proxies read it; without it it would be the Service's own |
| ipFamilies | only for one family; for both the policy alone | one of two named is refused once it has both (422) |
| slices | `ready`, `serving`, `terminating` always | an absent `ready` means ready |
| HTTPRoutes | what the server would fill in | so that what is stored is what was sent |

One module for both directions: what is encoded has to decode to the value that it was made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from operator import attrgetter
from sys import intern
from typing import Any

from bridge.core import normalize
from bridge.core.model import (
    USUAL_TRAFFIC,
    Change,
    CurrentEndpoints,
    CurrentRoute,
    CurrentService,
    CurrentSlice,
    Endpoint,
    EndpointsBody,
    Family,
    Group,
    Kind,
    Meta,
    Pairs,
    Parent,
    Port,
    Route,
    RouteBody,
    ServiceBody,
    SliceBody,
    Target,
    TrafficPolicy,
)
from bridge.core.normalize import truncate
from bridge.core.ownership import (
    CATALOG_SYNC_LABEL,
    KEEP,
    MANAGED_BY,
    MANAGER,
    OWNER,
    RULE_ANNOTATIONS,
    RULE_LABELS,
    SKIP_MIRROR,
    SLICE_MANAGED_BY,
    SLICE_SERVICE,
)
from bridge.core.ports import app_protocol_field
from bridge.core.reasons import Code, Reason
from bridge.core.slice_union import POD_CONTROLLER
from bridge.kube.client import FIELD_MANAGER

PREFIX = "consul-bridge/"

OURS = f"{MANAGED_BY}={MANAGER}"
"""Selects what any bridge made, whatever its owner id."""
OF_NO_PODS = f"{SLICE_SERVICE},{SLICE_MANAGED_BY}!={POD_CONTROLLER}"
"""Selects the slices of Services that have no pods: ours, the control plane's mirrors, those of others."""
OF_PODS = f"{SLICE_MANAGED_BY}={POD_CONTROLLER}"
"""Selects the slices that the control plane makes of pods, most of a cluster's."""
NOT_OURS = f"{MANAGED_BY}!={MANAGER}"

Json = dict[str, Any]
Decoded = CurrentService | CurrentEndpoints | CurrentSlice | CurrentRoute

GATEWAY_API = "gateway.networking.k8s.io"
API_VERSION = {
    Kind.SERVICE: "v1",
    Kind.ENDPOINTS: "v1",
    Kind.ENDPOINT_SLICE: "discovery.k8s.io/v1",
    Kind.HTTP_ROUTE: f"{GATEWAY_API}/v1",
}
PLURAL = {
    Kind.SERVICE: "services",
    Kind.ENDPOINTS: "endpoints",
    Kind.ENDPOINT_SLICE: "endpointslices",
    Kind.HTTP_ROUTE: "httproutes",
}


def path(kind: Kind, namespace: str | None, name: str = "") -> str:
    """Path of an object, of a namespace's objects (no `name`), or of all objects of the kind (`namespace` None)."""
    within = f"/namespaces/{namespace}" if namespace is not None else ""
    version = API_VERSION[kind]
    base = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{base}{within}/{PLURAL[kind]}" + (f"/{name}" if name else "")


# --------------------------------------------------------------------------- encode


def encode(change: Change) -> Json:
    """The body to apply for `change`, without preconditions. `change.body` must not be None."""
    body = change.body
    metadata: Json = {"name": change.name, "namespace": change.target.namespace}
    match body:
        case ServiceBody():
            content: Json = {"spec": _service_spec(body)}
        case EndpointsBody():
            content = {"subsets": subsets(body.groups)}
        case SliceBody():
            content = _slice(body)
        case RouteBody():
            content = {"spec": _route_spec(body.route, change.name)}
        case None:
            raise ValueError(f"{change.action} of {change.kind} {change.target} has no body")
    labels = slice_labels(body) if isinstance(body, SliceBody) else dict(body.labels)
    if labels:
        metadata["labels"] = dict(sorted(labels.items()))
    if body.annotations:
        metadata["annotations"] = dict(sorted(body.annotations))
    return {"apiVersion": API_VERSION[change.kind], "kind": change.kind.value, "metadata": metadata, **content}


def _service_spec(body: ServiceBody) -> Json:
    spec: Json = {"ipFamilyPolicy": body.family_policy}
    if body.ports:
        spec["ports"] = service_ports(body)
    if body.sets_type:
        spec["type"] = body.type
    if len(body.families) == 1:
        spec["ipFamilies"] = [body.families[0].value]
    if body.headless:
        spec["clusterIP"] = "None"
    return spec


def ports(found: Iterable[Port]) -> list[Json]:
    """Ports as all three kinds want them."""
    encoded = []
    for port in found:
        entry: Json = {"port": port.number, "protocol": port.protocol}
        if port.name:
            entry["name"] = port.name
        if port.app_protocol:
            entry["appProtocol"] = port.app_protocol
        encoded.append(entry)
    return encoded


def service_ports(body: ServiceBody) -> list[Json]:
    """A Service's ports, sorted, each with its targetPort."""
    targets = dict(zip(body.ports, body.target_ports, strict=False))
    found = sorted(body.ports)
    return [
        {**entry, "targetPort": targets.get(port, port.number)} for entry, port in zip(ports(found), found, strict=True)
    ]


def subsets(groups: Iterable[Group]) -> list[Json]:
    """Groups as subsets: one per port set, sorted by it, IPv4 before IPv6."""
    by_ports: dict[tuple[Port, ...], list[Group]] = {}
    for group in groups:
        by_ports.setdefault(tuple(sorted(group.ports)), []).append(group)
    encoded = []
    for port_set, members in sorted(by_ports.items()):
        endpoints = [e for group in sorted(members, key=lambda g: g.family) for e in arranged(group.endpoints)]
        subset: Json = {}
        for key, ready in (("addresses", True), ("notReadyAddresses", False)):
            if addresses := [_address(e) for e in endpoints if e.ready is ready]:
                subset[key] = addresses
        if subset:
            if port_set:
                subset["ports"] = ports(port_set)
            encoded.append(subset)
    return encoded


def _address(endpoint: Endpoint) -> Json:
    return {"ip": endpoint.address, "hostname": endpoint.hostname} if endpoint.hostname else {"ip": endpoint.address}


def slice_labels(body: SliceBody) -> dict[str, str]:
    """Labels of a slice: the given ones and the two that make it a slice of its Service, managed by us."""
    return {**dict(body.labels), SLICE_SERVICE: body.service, SLICE_MANAGED_BY: MANAGER}


def _slice(body: SliceBody) -> Json:
    encoded = [_slice_entry(endpoint) for endpoint in arranged(body.group.endpoints)]
    content: Json = {"addressType": body.group.family.value, "endpoints": encoded}
    if body.group.ports:  # none at all is what the control plane writes for a headless Service without ports
        content["ports"] = ports(sorted(body.group.ports))
    return content


def _slice_entry(endpoint: Endpoint) -> Json:
    entry: Json = {
        "addresses": [endpoint.address],
        "conditions": {
            "ready": endpoint.ready,
            "serving": endpoint.serving,
            "terminating": endpoint.terminating,
        },
    }
    if endpoint.zone:
        entry["zone"] = endpoint.zone
    if endpoint.node_name:
        entry["nodeName"] = endpoint.node_name
    if endpoint.hostname:
        entry["hostname"] = endpoint.hostname
    if endpoint.for_zone:
        entry["hints"] = {"forZones": [{"name": endpoint.for_zone}]}
    return entry


def _route_spec(route: Route, service: str) -> Json:
    parents = []
    for parent in route.parents:
        entry: Json = {"group": GATEWAY_API, "kind": "Gateway", "name": parent.name}
        optional = (("namespace", parent.namespace), ("sectionName", parent.section), ("port", parent.port))
        parents.append(entry | {key: value for key, value in optional if value})
    backend = {"group": "", "kind": "Service", "name": service, "port": route.port, "weight": 1}
    match = {"path": {"type": "PathPrefix", "value": route.path}}
    spec: Json = {"parentRefs": parents, "rules": [{"matches": [match], "backendRefs": [backend]}]}
    if route.hostnames:
        spec["hostnames"] = list(route.hostnames)
    return spec


def arranged(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Endpoints in the one order in which they are stored (by text, where others stored what is no address)."""
    found = tuple(endpoints)
    try:
        return normalize.sort_endpoints(found)
    except ValueError:
        return tuple(sorted(found))


def plain(groups: Iterable[Group]) -> tuple[Group, ...]:
    """What is left of groups in an Endpoints object, which knows addresses as ready or not, and hostnames.

    The same (family, ports) given twice becomes one group; empty groups vanish.
    """
    merged: dict[tuple[Family, tuple[Port, ...]], dict[str, tuple[bool, str]]] = {}
    for group in groups:
        found = merged.setdefault((group.family, tuple(sorted(group.ports))), {})
        for endpoint in group.endpoints:
            ready, hostname = found.get(endpoint.address, (True, endpoint.hostname))
            found[endpoint.address] = endpoint.ready and ready, hostname
    return tuple(
        Group(
            family,
            port_set,
            arranged(
                normalize.endpoint_of(a, ready, ready, False, "", "", "", name) for a, (ready, name) in found.items()
            ),
        )
        for (family, port_set), found in sorted(merged.items())
        if found
    )


# --------------------------------------------------------------------------- decode


def target_of(found: Decoded) -> Target:
    """The target that an object belongs to: its own name, for slices that of the Service."""
    if isinstance(found, CurrentSlice):
        return Target(found.meta.namespace, found.service)
    return Target(found.meta.namespace, found.meta.name)


def decode(kind: Kind, raw: object) -> Decoded | None:
    """Any of them by its kind (items of a list carry none themselves)."""
    match kind:
        case Kind.SERVICE:
            return decode_service(raw)
        case Kind.ENDPOINTS:
            return decode_endpoints(raw)
        case Kind.ENDPOINT_SLICE:
            return decode_slice(raw)
        case Kind.HTTP_ROUTE:
            return decode_route(raw)


def decode_meta(kind: Kind, raw: object) -> Meta | None:
    """Identity and ownership of an object or PartialObjectMetadata; None when it has not even a name."""
    metadata = mapping(mapping(raw).get("metadata"))
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        return None
    labels, annotations = _pairs(metadata.get("labels")), _pairs(metadata.get("annotations"))
    owned_labels, owned_annotations, written = _owned_keys(metadata.get("managedFields"))
    owner = labels.get(OWNER) if labels.get(MANAGED_BY) == MANAGER else None
    if owner is not None:
        owned_labels.update(annotations.get(RULE_LABELS, "").split(","))
        owned_annotations.update((RULE_LABELS, RULE_ANNOTATIONS), annotations.get(RULE_ANNOTATIONS, "").split(","))
        if not written:
            owned_labels.add(SKIP_MIRROR)  # restored without managedFields; only the bridge puts it on its own objects
    marks = {
        _pair(intern(k), intern(v)) for found in (labels, annotations) for k, v in found.items() if k.startswith(PREFIX)
    }
    if CATALOG_SYNC_LABEL in labels:
        marks.add((CATALOG_SYNC_LABEL, labels[CATALOG_SYNC_LABEL]))
    return Meta(
        kind=kind,
        namespace=intern(str(metadata.get("namespace") or "")),
        name=intern(name),
        uid=str(metadata.get("uid") or ""),
        resource_version=str(metadata.get("resourceVersion") or ""),
        owner=owner,
        labels=_kept(labels, owned_labels),
        annotations=_kept(annotations, owned_annotations),
        ownership=tuple(sorted(marks)),
        deleting=bool(metadata.get("deletionTimestamp")),
        written=intern(written),
    )


def decode_service(raw: object) -> CurrentService | None:
    """A Service. Ports of one of ours are sorted, ports of others keep their order (it can carry meaning)."""
    meta = decode_meta(Kind.SERVICE, raw)
    if meta is None:
        return None
    spec = mapping(mapping(raw).get("spec"))
    found = [(_port(p), _target_port(mapping(p).get("targetPort"))) for p in _list(spec.get("ports"))]
    if meta.owner is not None:
        found.sort(key=lambda pair: pair[0])
    families = tuple(Family(f) for f in _list(spec.get("ipFamilies")) if f in Family.__members__.values())
    return CurrentService(
        meta=meta,
        type=intern(str(spec.get("type") or "ClusterIP")),
        headless=spec.get("clusterIP") == "None",
        has_selector=bool(spec.get("selector")),
        ports=tuple(port for port, _ in found),
        target_ports=tuple(target for _, target in found),
        families=families,
        family_policy=_text(spec.get("ipFamilyPolicy")) or "SingleStack",
        traffic=_traffic(spec),
        applied=_applied(raw, found) if meta.owner is not None else (),
    )


def _traffic(spec: Mapping[str, Any]) -> TrafficPolicy:
    found = TrafficPolicy(
        publish_not_ready=spec.get("publishNotReadyAddresses") is True,
        internal_local=spec.get("internalTrafficPolicy") == "Local",
        external_local=spec.get("externalTrafficPolicy") == "Local",
        distribution=_text(spec.get("trafficDistribution")),
    )
    return USUAL_TRAFFIC if found == USUAL_TRAFFIC else found


def _applied(raw: object, found: Iterable[tuple[Port, object]]) -> tuple[str, ...]:
    """The fields among those that a rule need not set which our field manager owns."""
    applied: set[str] = set()
    for entry in map(mapping, _list(mapping(mapping(raw).get("metadata")).get("managedFields"))):
        if _is_our_apply(entry):
            spec = mapping(mapping(entry.get("fieldsV1")).get("f:spec"))
            if "f:type" in spec:
                applied.add("type")
            owned = mapping(spec.get("f:ports"))
            for port, _ in found:
                key = f'k:{{"port":{port.number},"protocol":"{port.protocol}"}}'
                if "f:appProtocol" in mapping(owned.get(key)):
                    applied.add(app_protocol_field(port))
    return tuple(sorted(applied))


def decode_endpoints(raw: object) -> CurrentEndpoints | None:
    """An Endpoints object; `normalized` says whether writing `groups` again would leave it as it is."""
    meta = decode_meta(Kind.ENDPOINTS, raw)
    if meta is None:
        return None
    stored = _list(mapping(raw).get("subsets"))
    groups: list[Group] = []
    for subset in stored:
        content = mapping(subset)
        port_set = tuple(sorted(_port(p) for p in _list(content.get("ports"))))
        for key, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in _list(content.get(key)):
                ip, hostname = mapping(address).get("ip"), intern(_text(mapping(address).get("hostname")))
                if isinstance(ip, str) and ip:
                    one = normalize.endpoint_of(ip, ready, ready, False, "", "", "", hostname)
                    groups.append(Group(_family(ip), port_set, (one,)))
    decoded = plain(groups)
    return CurrentEndpoints(meta=meta, groups=decoded, normalized=subsets(decoded) == stored)


def decode_slice(raw: object) -> CurrentSlice | None:
    """An EndpointSlice of any writer; None without a Service's name, or with addresses that no reader uses (FQDN).

    Endpoints that are there twice stay there twice, so that such a slice never equals one that we want. `normalized`
    says whether writing `group` again would leave its endpoints as they are.
    """
    meta = decode_meta(Kind.ENDPOINT_SLICE, raw)
    content = mapping(raw)
    labels = _pairs(mapping(content.get("metadata")).get("labels"))
    service, manager = labels.get(SLICE_SERVICE, ""), labels.get(SLICE_MANAGED_BY, "")
    kind = content.get("addressType")
    if meta is None or not service or not isinstance(kind, str) or kind not in Family.__members__.values():
        return None
    endpoints = []
    for entry in map(mapping, _list(content.get("endpoints"))):
        conditions = mapping(entry.get("conditions"))
        ready = conditions.get("ready") is not False
        serving = conditions.get("serving")
        endpoints += [
            normalize.endpoint_of(
                address,
                ready,
                serving if isinstance(serving, bool) else ready,
                conditions.get("terminating") is True,
                intern(str(entry.get("zone") or "")),
                intern(str(entry.get("nodeName") or "")),
                _for_zone(entry),
                intern(_text(entry.get("hostname"))),
            )
            for address in _list(entry.get("addresses"))
            if isinstance(address, str)
        ]
    port_set = tuple(sorted(_port(p) for p in _list(content.get("ports"))))
    group = Group(Family(kind), port_set, arranged(endpoints))
    if manager != MANAGER:
        return CurrentSlice(meta=_bare(meta), service=service, group=group, manager=manager)
    canonical = [_slice_entry(e) for e in group.endpoints] == _list(content.get("endpoints"))
    return CurrentSlice(meta=meta, service=service, group=group, normalized=canonical)


def decode_route(raw: object) -> CurrentRoute | None:
    """An HTTPRoute of whomever. Its `route` is what we would write to have just this; None where we never would."""
    meta = decode_meta(Kind.HTTP_ROUTE, raw)
    if meta is None:
        return None
    content = mapping(raw)
    spec = mapping(content.get("spec"))
    rule = mapping(next(iter(_list(spec.get("rules"))), None))
    path = mapping(mapping(next(iter(_list(rule.get("matches"))), None)).get("path"))
    backend = mapping(next(iter(_list(rule.get("backendRefs"))), None))
    route = Route(
        parents=tuple(_parent(mapping(entry), meta.namespace) for entry in _list(spec.get("parentRefs"))),
        hostnames=tuple(_text(name) for name in _list(spec.get("hostnames"))),
        path=_text(path.get("value")) or "/",
        port=_number(backend.get("port")),
    )
    stored = {key: spec[key] for key in ("hostnames", "parentRefs", "rules") if spec.get(key)}
    if parents := _list(stored.get("parentRefs")):  # its own namespace may be named, and says nothing then
        here = ("namespace", meta.namespace)
        stored["parentRefs"] = [{k: v for k, v in mapping(entry).items() if (k, v) != here} for entry in parents]
    return CurrentRoute(
        meta, route if _route_spec(route, meta.name) == stored else None, tuple(_refusals(content, meta.namespace))
    )


def _parent(entry: Mapping[str, Any], namespace: str) -> Parent:
    place = _text(entry.get("namespace"))
    return Parent(
        name=_text(entry.get("name")),
        namespace="" if place == namespace else place,
        section=_text(entry.get("sectionName")),
        port=_number(entry.get("port")),
    )


def _refusals(content: Mapping[str, Any], namespace: str) -> Iterable[Reason]:
    """What gateways say against a route, in its status."""
    for parent in map(mapping, _list(mapping(content.get("status")).get("parents"))):
        ref = mapping(parent.get("parentRef"))
        gateway = f"{ref.get('kind') or 'Gateway'} {ref.get('namespace') or namespace}/{ref.get('name')}"
        for condition in map(mapping, _list(parent.get("conditions"))):
            if condition.get("type") in ("Accepted", "ResolvedRefs") and condition.get("status") == "False":
                why, said = (truncate(str(condition.get(key) or "")) for key in ("reason", "message"))
                kind = condition["type"]
                yield Reason(Code.ROUTE_REFUSED, gateway=truncate(gateway), condition=kind, why=why, said=said)


def _bare(meta: Meta) -> Meta:
    """What names an object, and whether a user keeps it. A mirrored slice has copies of our labels, and is not ours."""
    return Meta(
        kind=meta.kind,
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        resource_version=meta.resource_version,
        owner=None,
        ownership=tuple(pair for pair in meta.ownership if pair[0] == KEEP),
        deleting=meta.deleting,
    )


def _for_zone(entry: Mapping[str, Any]) -> str:
    """The first zone that an endpoint is a hint for; we write no more than one."""
    zones = _list(mapping(entry.get("hints")).get("forZones"))
    return _text(mapping(zones[0]).get("name")) if zones else ""


def expected(change: Change, meta: Meta) -> Decoded:
    """What the server will show after `change` was applied and answered with `meta`: equal to decoding it."""
    body = change.body
    match body:
        case ServiceBody():
            stored = service_ports(body)
            found = tuple(sorted(body.ports))
            applied = {"type"} if body.sets_type else set()
            return CurrentService(
                meta=meta,
                type=body.type,
                headless=body.headless,
                has_selector=False,
                ports=found,
                target_ports=tuple(entry["targetPort"] for entry in stored),
                families=body.families,
                family_policy=body.family_policy,
                traffic=body.traffic,
                applied=tuple(sorted({*applied, *(app_protocol_field(p) for p in found if p.app_protocol)})),
            )
        case EndpointsBody():
            return CurrentEndpoints(meta=meta, groups=plain(body.groups))
        case SliceBody():
            group = replace(body.group, ports=tuple(sorted(body.group.ports)), endpoints=arranged(body.group.endpoints))
            return CurrentSlice(meta=meta, service=body.service, group=group)
        case RouteBody():
            return CurrentRoute(meta, body.route)
        case None:
            raise ValueError(f"{change.action} of {change.kind} {change.target} has no body")


def alterations(sent: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Where an object is not stored as it was sent, for people; what others add beside our fields is none of it."""
    found: list[str] = []
    for section in ("labels", "annotations"):
        have = _pairs(mapping(stored.get("metadata")).get(section))
        for key, value in mapping(mapping(sent.get("metadata")).get(section)).items():
            if key not in have:
                found.append(f"metadata.{section}[{key}] is gone")
            elif have[key] != value:
                found.append(f"metadata.{section}[{key}] is {truncate(have[key])!r}, not {truncate(value)!r}")
    lists = ((field, _list(sent.get(field)), _list(stored.get(field))) for field in ("subsets", "endpoints"))
    found += [_list_altered(field, wanted, have) for field, wanted, have in lists if wanted != have]
    spec, shown = mapping(sent.get("spec")), mapping(stored.get("spec"))
    others = [(field, sent[field], stored.get(field)) for field in ("addressType", "ports") if field in sent]
    others += [(f"spec.{field}", wanted, shown.get(field)) for field, wanted in spec.items()]
    return found + [f"{field} is not as it was sent" for field, wanted, have in others if not _holds(wanted, have)]


def leftovers(existing: Meta, sent: Mapping[str, Any], stored: Mapping[str, Any]) -> Json:
    """Labels and annotations that were ours, are not sent any more and stay, as a merge patch of metadata.

    An apply leaves what another field manager owns as well. If that manager is a user, it is theirs. If it restored the
    object from a backup, it owns our label of ownership, too, and what it restored of ours is ours.
    """
    metadata = mapping(stored.get("metadata"))
    restored = _restored_keys(metadata.get("managedFields"))
    patch: Json = {}
    for section, ours, keys in (
        ("labels", existing.labels, restored[0]),
        ("annotations", existing.annotations, restored[1]),
    ):
        kept, wanted = mapping(metadata.get(section)), mapping(mapping(sent.get("metadata")).get(section))
        gone = {key: None for key, _ in ours if key in kept and key not in wanted and key in keys}
        if gone:
            patch[section] = gone
    return patch


def _restored_keys(managed_fields: object) -> tuple[set[str], set[str]]:
    """Keys of labels and annotations that managers own who also own our label of ownership."""
    labels: set[str] = set()
    annotations: set[str] = set()
    for entry in map(mapping, _list(managed_fields)):
        metadata = mapping(mapping(entry.get("fieldsV1")).get("f:metadata"))
        if not _is_our_apply(entry) and f"f:{OWNER}" in mapping(metadata.get("f:labels")):
            labels.update(k[2:] for k in mapping(metadata.get("f:labels")))
            annotations.update(k[2:] for k in mapping(metadata.get("f:annotations")))
    return labels, annotations


def _holds(sent: object, stored: object) -> bool:
    """Whether what was sent is in what is stored, defaults and fields of others beside it."""
    if isinstance(sent, dict) and isinstance(stored, dict):
        return all(_holds(value, stored.get(key)) for key, value in sent.items())
    if isinstance(sent, list) and isinstance(stored, list):
        return len(sent) <= len(stored) and all(any(_holds(one, other) for other in stored) for one in sent)
    return sent == stored


def _list_altered(field: str, sent: list[Any], stored: list[Any]) -> str:
    """Which addresses came or went on the way; else just that it is different."""
    wanted, have = _addresses_in(sent), _addresses_in(stored)
    missing, further = sorted(wanted - have), sorted(have - wanted)
    words = [
        f"{', '.join(missing[:3])} is gone" if missing else "",
        f"{', '.join(further[:3])} was added" if further else "",
    ]
    return (
        f"{field}: {' and '.join(filter(None, words)) or 'conditions, ports or other fields are not as they were sent'}"
    )


def _addresses_in(entries: list[Any]) -> set[str]:
    """Addresses of subsets or of a slice's endpoints."""
    found: set[str] = set()
    for entry in map(mapping, entries):
        for address in (*_list(entry.get("addresses")), *_list(entry.get("notReadyAddresses"))):
            text = address if isinstance(address, str) else mapping(address).get("ip")
            found.add(truncate(str(text)))
    return found


def same(one: Decoded, other: Decoded) -> bool:
    """Whether two states of an object differ in nothing but the version."""
    if type(one) is not type(other):
        return False
    content = _CONTENT[type(one)]
    return bool(_IDENTITY(one.meta) == _IDENTITY(other.meta) and content(one) == content(other))


def _compared(kind: type, but: str) -> attrgetter[Any]:
    """The fields of a dataclass that `==` compares, but one."""
    return attrgetter(*(field.name for field in fields(kind) if field.compare and field.name != but))


_IDENTITY = _compared(Meta, "resource_version")
_CONTENT = {kind: _compared(kind, "meta") for kind in (CurrentService, CurrentEndpoints, CurrentSlice, CurrentRoute)}


def version(text: str) -> int:
    """A resourceVersion as a number; 0 for anything odd."""
    return int(text) if text.isascii() and text.isdigit() else 0


# --------------------------------------------------------------------------- odd input


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a JSON object, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _pairs(value: object) -> dict[str, str]:
    return {intern(k): intern(v) for k, v in mapping(value).items() if isinstance(v, str)}


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _target_port(value: object) -> int | str:
    """A number, or the name of a port."""
    return intern(value) if isinstance(value, str) else _number(value)


def _text(value: object) -> str:
    return intern(value) if isinstance(value, str) else ""


def _port(value: object) -> Port:
    found = mapping(value)
    return Port(
        name=_text(found.get("name")),
        number=_number(found.get("port")),
        protocol=_text(found.get("protocol")) or "TCP",
        app_protocol=_text(found.get("appProtocol")),
    )


def _family(address: str) -> Family:
    return Family.IPV6 if ":" in address else Family.IPV4


def _owned_keys(managed_fields: object) -> tuple[set[str], set[str], str]:
    """Keys of labels and annotations that our field manager applied, and when it changed the object last."""
    labels: set[str] = set()
    annotations: set[str] = set()
    written = ""
    for entry in map(mapping, _list(managed_fields)):
        if not _is_our_apply(entry):
            continue
        written = max(written, str(entry.get("time") or ""))
        metadata = mapping(mapping(entry.get("fieldsV1")).get("f:metadata"))
        for found, key in ((labels, "f:labels"), (annotations, "f:annotations")):
            found.update(k[2:] for k in mapping(metadata.get(key)) if k.startswith("f:"))
    return labels, annotations, written


def _is_our_apply(entry: Mapping[str, Any]) -> bool:
    ours = entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
    return ours and not entry.get("subresource")


def _kept(found: Mapping[str, str], keys: set[str]) -> Pairs:
    return tuple(sorted(_pair(intern(k), intern(v)) for k, v in found.items() if k in keys))


@lru_cache(maxsize=4096)
def _pair(key: str, value: str) -> tuple[str, str]:
    """The labels of our objects are the same ones thousands of times."""
    return key, value
