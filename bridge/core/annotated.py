"""Services that a person made and asks to have filled: what the label and the annotations on them mean.

| on the Service | means |
| --- | --- |
| label `consul-bridge/mirror: "true"` | fill my Endpoints |
| annotation `consul-bridge/service` | from this Consul service; default: the Service's own name |
| annotation `consul-bridge/datacenter` | in this datacenter; default: the bridge's own |
| annotation `consul-bridge/tags` | only instances with all of these tags (comma-separated) |
| annotation `consul-bridge/filter` | only instances for which Consul's filter expression is true |
| annotation `consul-bridge/output` | carried by `endpoints` (default), `endpointslices` or `both` |
| any other annotation under `consul-bridge/`, or a value that means nothing | a warning: it is not as they think |
| the label is taken off, or the Service deleted | take away what you filled, at once: nobody lost it |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bridge.core import marks
from bridge.core.canonical import shorten
from bridge.core.model import (
    USUAL_BOUNDS,
    Bounds,
    Current,
    CurrentService,
    Destination,
    InstanceRules,
    Output,
    Query,
    Rule,
    Target,
)
from bridge.core.reasons import Code, Reason

MIRROR = "consul-bridge/mirror"
SERVICE = "consul-bridge/service"
DATACENTER = "consul-bridge/datacenter"
TAGS = "consul-bridge/tags"
FILTER = "consul-bridge/filter"
OUTPUT = "consul-bridge/output"
PREFIX = "consul-bridge/"
_KNOWN = frozenset({MIRROR, SERVICE, DATACENTER, TAGS, FILTER, OUTPUT, marks.ADOPT, marks.OWNER})


def request_of(
    service: CurrentService | None, datacenter: str, bounds: Bounds = USUAL_BOUNDS
) -> tuple[Rule, Query] | None:
    """What a Service asks for within `bounds`, None when it asks for nothing (or is one of our own making)."""
    if service is None or service.meta.owner is not None or service.meta.deleting:
        return None
    marks = dict(service.meta.marks)
    if marks.get(MIRROR) != "true":
        return None
    target = Target(service.meta.namespace, service.meta.name)
    name = marks.get(SERVICE, "").strip() or target.name
    wanted = marks.get(OUTPUT, "").strip()
    output = Output(wanted) if wanted in Output.__members__.values() else Output.ENDPOINTS
    tags = tuple(sorted({tag for part in marks.get(TAGS, "").split(",") if (tag := part.strip())}))
    expression = marks.get(FILTER, "").strip()
    rule = Rule(
        name=f"Service {target}",
        services=(name,),
        tags=tags,
        filter=expression,
        to=Destination(namespace=target.namespace, name=target.name, output=output, annotated=True),
        instances=InstanceRules(bounds=bounds),
        warnings=tuple(_not_understood(marks, output, tags)),
    )
    return rule, Query(marks.get(DATACENTER, "").strip() or datacenter, name, filter=expression)


def _not_understood(marks: Mapping[str, str], output: Output, tags: Sequence[str]) -> Iterator[Reason]:
    """What is set, and not as its author must have thought."""
    wanted = marks.get(OUTPUT, "").strip()
    if wanted and wanted != output:
        known = ", ".join(Output)
        yield Reason(Code.OUTPUT_UNKNOWN, annotation=OUTPUT, value=shorten(wanted), known=known, taken=output)
    if marks.get(TAGS, "").strip() and not tags:
        yield Reason(Code.TAGS_EMPTY, annotation=TAGS, value=shorten(marks[TAGS]))
    unknown = sorted(key for key in marks if key.startswith(PREFIX) and key not in _KNOWN)
    if unknown:
        some = ", ".join(map(shorten, unknown[:3])) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        yield Reason(Code.ANNOTATION_UNKNOWN, names=some)


def is_abandoned(current: Current) -> bool:
    """Whether a person's Service stands at a target and does not ask to be filled (any more).

    One that we wrote is none, although a person took our label off it: our field manager is still seen on it.
    """
    service = current.service
    if service is None or service.meta.owner is not None:
        return False
    meta = service.meta
    if meta.written or meta.labels or meta.annotations:
        return False
    return meta.deleting or dict(meta.marks).get(MIRROR) != "true"
