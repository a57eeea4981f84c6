"""The labels and annotations that say whose an object is and where it comes from; and those taken from instances.

Nothing that is registered in Consul can reach an ownership label: values from there only ever become values, in a form
that Kubernetes takes, under keys that the rule names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from bridge.core.model import Instance, Pairs, Query
from bridge.core.normalize import truncate
from bridge.core.reasons import Code, Reason
from bridge.core.select import LABEL_LIMIT, digest

MANAGER = "consul-bridge"
MANAGED_BY = "app.kubernetes.io/managed-by"
OWNER = "consul-bridge/owner"
SERVICE = "consul-bridge/service"
DATACENTER = "consul-bridge/datacenter"
ACTIVE = "consul-bridge/active-datacenter"
"""Which of several datacenters the object's endpoints are from (`failover`)."""
PENDING = "consul-bridge/pending-datacenter"
"""On a Service: which datacenter is to carry its traffic, and since when it could: `ams 2026-11-30T09:00:00+00:00`."""
SELECTION = "consul-bridge/selection"
"""On a Service of ours: by which tags, meta and filter its rule selects instances, in short (`rule_matches`)."""
ADOPT = "consul-bridge/adopt"
KEEP = "consul-bridge/keep"
"""Set to "true" by a user on an EndpointSlice that no bridge writes and that has to stay."""
INSTALLATION = "consul-bridge/installation"
"""Which installation wrote the object last, NAMESPACE/NAME (`installation`)."""
SLICE_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
SLICE_SERVICE = "kubernetes.io/service-name"
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
RULE_LABELS = "consul-bridge/rule-labels"
RULE_ANNOTATIONS = "consul-bridge/rule-annotations"
"""Keys that a rule sets, by commas: what it drops later is found by them, also where it is not known any more who set
it (an object that was restored from a backup without managedFields)."""
RELEASED = "consul-bridge/released"
"""When a forced pass took endpoints away from the object (`release`)."""
SIGNATURES = frozenset({INSTALLATION, RELEASED})
"""Annotations that are not compared with what should be: they are written along."""
SERVICE_SYNC = "consul.hashicorp.com/service-sync"
"""Set to "false" it keeps consul-k8s from registering a Service in Consul, where ours comes from."""
CATALOG_SYNC_LABEL = "consul"
"""Set to "true" by HashiCorp's catalog sync (consul-k8s) on the Services that it makes."""

ANNOTATION_LIMIT = 1024
"""Longest annotation that is made of what instances carry."""

_UNSAFE = re.compile("[%,\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPED = re.compile("(?:%[0-9A-F]{2})+")
_NO_LABEL = re.compile(r"[^A-Za-z0-9_.-]")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def ownership_labels(owner: str, queries: Sequence[Query]) -> tuple[Pairs, Pairs]:
    """Labels and annotations of ownership. Several services are joined by commas, in order."""
    names = sorted({(q.datacenter, q.service) for q in queries})
    datacenters, services = [datacenter for datacenter, _ in names], [service for _, service in names]
    if len(set(datacenters)) == 1:
        datacenters = datacenters[:1]
    if len(set(services)) == 1:  # of several datacenters that a rule combines
        services = services[:1]
    annotations = ((DATACENTER, ",".join(map(_escape, datacenters))), (SERVICE, ",".join(map(_escape, services))))
    return ((MANAGED_BY, MANAGER), (OWNER, owner)), annotations


def rule_keys(labels: Pairs, annotations: Pairs) -> Pairs:
    """The annotations that say which labels and annotations a rule gives; none where it gives none."""
    found = ((RULE_ANNOTATIONS, annotations), (RULE_LABELS, labels))
    return tuple((name, ",".join(sorted(key for key, _ in pairs))) for name, pairs in found if pairs)


def origins(service: str, datacenter: str) -> tuple[tuple[str, str], ...]:
    """The other way round: (datacenter, service) pairs from the values of an object's two annotations."""
    services, datacenters = service.split(","), datacenter.split(",")
    pairs = {
        (_unescape(datacenters[min(n, len(datacenters) - 1)]), _unescape(services[min(n, len(services) - 1)]))
        for n in range(max(len(services), len(datacenters) if len(services) == 1 else 1))
    }
    return tuple(sorted(pair for pair in pairs if all(pair)))


def joined(given: Pairs, ownership: Pairs) -> Pairs:
    """A rule's pairs and the ownership labels, which no rule can forge."""
    return tuple(sorted({pair[0]: pair for pair in (*given, *ownership)}.values()))


def is_label_value(text: str) -> bool:
    """Whether Kubernetes takes a text as the value of a label (the empty one apart)."""
    return _LABEL_VALUE.fullmatch(text) is not None


def label_value(text: str) -> str:
    """`text` as a label's value: illegal characters become `_`, what is too long is cut and ends in a hash."""
    value = _NO_LABEL.sub("_", text).strip("_.-")
    if len(value) > LABEL_LIMIT:
        value = f"{value[: LABEL_LIMIT - 9].rstrip('_.-')}-{digest(text)}"
    return value


def derived(sources: Pairs, instances: Sequence[Instance], *, label: bool) -> tuple[Pairs, tuple[Reason, ...]]:
    """The pairs that a rule takes from the instances, and warnings where instances contradict each other.

    A value that no instance has leaves its key out; of several the first in order is taken.
    """
    pairs: list[tuple[str, str]] = []
    warnings: list[Reason] = []
    for key, source in sources:
        found = sorted({value for i in instances for value in values(i, source)})
        if source == "tags":
            found = [("_" if label else ",").join(found)]
        texts = [label_value(v) if label else truncate(v, ANNOTATION_LIMIT) for v in found]
        texts = [text for text in texts if text]
        if texts:
            pairs.append((key, texts[0]))
        if len(set(texts)) > 1:
            kind = "label" if label else "annotation"
            taken = {"kind": kind, "key": key, "source": source, "taken": truncate(texts[0])}
            warnings.append(Reason(Code.CONTRADICTION, count=len(set(texts)), **taken))
    return tuple(sorted(pairs)), tuple(warnings)


def values(instance: Instance, source: str) -> Iterator[str]:
    """What an instance has of `meta:KEY`, `node-meta:KEY`, `tag:PREFIX` or `tags`."""
    kind, _, name = source.partition(":")
    match kind:
        case "meta":
            yield from _of(instance.meta, name)
        case "node-meta":
            yield from _of(instance.node_meta, name)
        case "tag":
            yield from (tag.removeprefix(name) for tag in instance.tags if tag.startswith(name))
        case _:
            yield from instance.tags


def _of(pairs: Iterable[tuple[str, str]], name: str) -> Iterator[str]:
    return (value for key, value in pairs if key == name)


def _escape(name: str) -> str:
    """A name without commas, control characters or halves of characters, so that it can stand in a list and in JSON."""
    return _UNSAFE.sub(lambda c: "".join(f"%{b:02X}" for b in c[0].encode("utf-8", "surrogatepass")), name)


def _unescape(name: str) -> str:
    return _ESCAPED.sub(lambda found: _bytes_text(bytes.fromhex(found[0].replace("%", ""))), name)


def _bytes_text(raw: bytes) -> str:
    """Bytes that we wrote are text again; what a user wrote by hand may be anything."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace")
