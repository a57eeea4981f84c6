"""The words of the bridge as values: what Consul holds, what is wanted, what Kubernetes holds.

All values are frozen, slotted and hashable; collections in them are sorted tuples without duplicates, so that `==`
is the comparison that matters and a second pass finds nothing to do.

One module, although it is long: the values refer to each other, and most modules need several of them.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import field
from enum import StrEnum
from itertools import compress, count, islice
from operator import ne

from bridge.core.reasons import Code, Reason
from bridge.core.values import dataclass

# --------------------------------------------------------------------------- what Consul holds


class Status(StrEnum):
    """Health of an instance: the worst of its own and its node's checks. Order: see `consul.decode.worst`."""

    PASSING = "passing"
    WARNING = "warning"
    UNKNOWN = "unknown"
    CRITICAL = "critical"
    MAINTENANCE = "maintenance"


@dataclass(frozen=True, slots=True, order=True)
class Query:
    """One question to Consul: the instances of a service. The key of everything on Consul's side.

    `datacenter` is always filled in (the agent's own when the user named none). `namespace`, `partition` and `peer`
    are Enterprise's or peering's and empty otherwise. `filter` is Consul's filter language, evaluated by Consul.
    """

    datacenter: str
    service: str
    namespace: str = ""
    partition: str = ""
    peer: str = ""
    filter: str = ""


@dataclass(frozen=True, slots=True, order=True)
class NamedPort:
    """A port of a multi-port service (Consul >= 1.22)."""

    name: str
    number: int
    default: bool = False


@dataclass(frozen=True, slots=True, order=True)
class TaggedAddress:
    """A further address of a service (port > 0 possible) or node (port 0) under a name such as `lan` or `wan_ipv4`."""

    name: str
    address: str
    port: int = 0


Place = tuple[str, str, str, int]
"""An instance where it is: node, id, address and port."""

Pairs = tuple[tuple[str, str], ...]
"""A mapping as a sorted tuple of (key, value)."""


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Instance:
    """One instance of a service as `health/service/<name>` shows it.

    Addresses are as registered (unparsed; `address` is "" when the service has none of its own); `port` is 0 when
    none was given. `check` names the check that decided `status` ("" when there was none), `output` is what that check
    said last, cut (of a maintenance its reason). It decides nothing, and an instance whose check says something else is
    the same as before.
    """

    node: str
    id: str
    address: str
    node_address: str
    port: int
    status: Status
    check: str = ""
    ports: tuple[NamedPort, ...] = ()
    tags: tuple[str, ...] = ()
    meta: Pairs = ()
    node_meta: Pairs = ()
    tagged_addresses: tuple[TaggedAddress, ...] = ()
    node_tagged_addresses: tuple[TaggedAddress, ...] = ()
    kind: str = ""
    output: str = field(default="", compare=False, repr=False)

    @property
    def place(self) -> Place:
        """What has to be healthy for a while (`settle`): an instance that moves to another address is a new one."""
        return self.node, self.id, self.address or self.node_address, self.port


@dataclass(frozen=True, slots=True)
class Known:
    """Consul answered, and this is what it holds: possibly no instance at all. Sorted by (node, id).

    `acl_filtered`: there are more, on nodes that our token may not see. `invalid`: (instance, reason) of those that are
    registered with something that no client could use. `former`: how instances that are still here were seen before
    their tags or meta changed.
    """

    instances: tuple[Instance, ...]
    acl_filtered: bool = False
    invalid: tuple[tuple[str, Reason], ...] = ()
    former: tuple[Instance, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Unknown:
    """Consul could not be asked, or its answer proves nothing. What was known before stays true.

    `lasting`: asking again will not help before the request is changed (a filter that Consul refuses, say).
    `unreachable`: it did not answer; an answer that refuses or hides something is none of that.
    """

    reason: str
    lasting: bool = False
    unreachable: bool = False


Knowledge = Known | Unknown


@dataclass(frozen=True, slots=True)
class Listing:
    """A datacenter's `catalog/services`: every service name with the tags of all its instances together."""

    services: dict[str, frozenset[str]]

    def changes_since(self, before: Listing | None) -> tuple[list[str], list[str]]:
        """The services that came or have other tags than `before`, and those that went.

        Consul lists thousands of names in the same order each time: only what is between an equal beginning and an
        equal end is looked up by name.
        """
        old, new = {} if before is None else before.services, self.services
        shorter = min(len(old), len(new))
        head = _equal(old.items(), new.items(), shorter)
        tail = _equal(reversed(old.items()), reversed(new.items()), shorter - head)
        was = dict(islice(old.items(), head, len(old) - tail))
        now = dict(islice(new.items(), head, len(new) - tail))
        return [name for name, tags in now.items() if was.get(name) != tags], [name for name in was if name not in now]


def _equal(one: Iterable[object], other: Iterable[object], most: int) -> int:
    """How many items, `most` at most, are equal before the first that differ."""
    return min(next(compress(count(), map(ne, one, other)), most), most)


# --------------------------------------------------------------------------- what is wanted


class Output(StrEnum):
    """Which kind of objects carries the addresses: `both` are EndpointSlices for traffic, and Endpoints for tools."""

    ENDPOINTS = "endpoints"
    ENDPOINTSLICES = "endpointslices"
    BOTH = "both"


class Policy(StrEnum):
    """What the bridge may do to objects of its own."""

    SYNC = "sync"
    UPSERT_ONLY = "upsert-only"
    CREATE_ONLY = "create-only"


class Adopt(StrEnum):
    """Which objects that are not ours may be taken over on purpose (never another owner's)."""

    NEVER = "never"
    UNOWNED = "unowned"
    CONSUL_K8S = "consul-k8s"


class Treatment(StrEnum):
    """What happens to instances of a given health."""

    READY = "ready"
    NOT_READY = "not-ready"
    OMIT = "omit"


class Combine(StrEnum):
    """How one Service is made of the services of one name in a rule's datacenters."""

    UNION = "union"
    FAILOVER = "failover"


@dataclass(frozen=True, slots=True, order=True)
class Amount:
    """A number of instances, or a percentage of those that there are."""

    value: int = 0
    percent: bool = False

    def of(self, total: int) -> int:
        """The number that it is; of a percentage no less than that."""
        return -(-total * self.value // 100) if self.percent else self.value

    def __str__(self) -> str:
        return f"{self.value}%" if self.percent else str(self.value)


NO_AMOUNT = Amount()


class Family(StrEnum):
    """IP family; the value is EndpointSlice's addressType and Service's ipFamily."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """Where a service goes: namespace and name of the Service and of its Endpoints. The key of Kubernetes' side."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """A port of a Service or of endpoints. `name` joins the two ("" is allowed when it is the only one)."""

    name: str
    number: int
    protocol: str = "TCP"
    app_protocol: str = ""


NO_PORTS = (Port("", 0),)
"""What is written as the port of endpoints without one (of a headless Service that is there for DNS alone)."""


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One canonical address with its conditions.

    `ready` implies `serving`, unless the Service publishes what is not ready as well. `for_zone` is the zone whose
    clients are to prefer it. `hostname` is its own name in the DNS of a headless Service ("": it has none).
    """

    address: str
    ready: bool
    serving: bool = True
    terminating: bool = False
    zone: str = ""
    node_name: str = ""
    for_zone: str = ""
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints of one family that share their ports: one Endpoints subset, or one or more slices."""

    family: Family
    ports: tuple[Port, ...]
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, order=True)
class Parent:
    """What an HTTPRoute hangs on: a Gateway, or a listener of it. `namespace` "": the route's own."""

    name: str
    namespace: str = ""
    section: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """What an HTTPRoute says: requests for `hostnames` (none: any) under `path` go to a port of the Service."""

    parents: tuple[Parent, ...]
    hostnames: tuple[str, ...]
    path: str
    port: int


@dataclass(frozen=True, slots=True)
class Mirror:
    """What one target should be. Without `service_ports` the Service is user-managed and is never written.

    `groups` are sorted by (family, ports) and never empty inside. `queries` are the Consul services behind it.
    `labels` and `annotations` are those that we set in addition to the ownership labels. `omitted_unhealthy` are
    endpoints that Consul lists and that are left out for their health: they are not lost, they are worse than not
    ready. `deselected` are endpoints of instances that Consul lists and that have lost what the rule selects by. `type`
    is the Service's type where the rule sets one ("": whatever it is). `route` is None where the rule asks for
    none, and a reason where it cannot be made (`core.routes`). `marks` are further annotations of ours on all
    objects, `service_marks` on the Service alone (`core.failover`).
    """

    target: Target
    queries: tuple[Query, ...]
    output: Output
    groups: tuple[Group, ...]
    service_ports: tuple[Port, ...] | None
    headless: bool = False
    families: tuple[Family, ...] = (Family.IPV4,)
    labels: Pairs = ()
    annotations: Pairs = ()
    max_endpoints_per_slice: int = 100
    omitted_unhealthy: tuple[Group, ...] = ()
    deselected: tuple[Group, ...] = ()
    type: str = ""
    marks: Pairs = ()
    service_marks: Pairs = ()
    route: Route | Reason | None = None

    @property
    def ready(self) -> int:
        """Number of ready endpoints (an address on two port groups counts twice: it is two endpoints)."""
        return sum(e.ready for g in self.groups for e in g.endpoints)

    @property
    def not_ready(self) -> int:
        return sum(not e.ready for g in self.groups for e in g.endpoints)


@dataclass(frozen=True, slots=True, order=True)
class Skipped:
    """An instance (or, with an empty `instance`, a whole service) that is not mirrored, and why."""

    service: str
    instance: str
    reason: Reason


# --------------------------------------------------------------------------- what Kubernetes holds


class Kind(StrEnum):
    SERVICE = "Service"
    ENDPOINTS = "Endpoints"
    ENDPOINT_SLICE = "EndpointSlice"
    HTTP_ROUTE = "HTTPRoute"


SERVICE_KINDS = (Kind.SERVICE, Kind.ENDPOINTS, Kind.ENDPOINT_SLICE)
"""Those that every cluster has and every target consists of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """Identity and ownership of an object that exists.

    `owner` is the value of our owner label when the object also carries our managed-by label, else None: it is
    another owner's. `labels` and `annotations` hold the pairs that OUR field manager owns (what a user adds is not
    in there), ownership labels included. `ownership` are the labels and annotations under `consul-bridge/` whatever set
    them (adopt, mirror, service, ...), plus the label `consul` that HashiCorp's catalog sync sets. `written` is when
    our field manager changed it last (RFC 3339, "" when it never did); it says nothing about the content.
    """

    kind: Kind
    namespace: str
    name: str
    uid: str
    resource_version: str
    owner: str | None
    labels: Pairs = ()
    annotations: Pairs = ()
    ownership: Pairs = ()
    deleting: bool = False
    written: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy:
    """What a Service's own fields say about its endpoints. No rule sets them: they are left as they are, and honoured.

    `publish_not_ready` is spec.publishNotReadyAddresses; `internal_local` and `external_local` say that the traffic
    policy of that name is Local; `distribution` is spec.trafficDistribution ("" when it is not set).
    """

    publish_not_ready: bool = False
    internal_local: bool = False
    external_local: bool = False
    distribution: str = ""


USUAL_TRAFFIC = TrafficPolicy()
"""What nearly all Services have."""


@dataclass(frozen=True, slots=True)
class CurrentService:
    """A Service that exists. `families` is spec.ipFamilies; `type` is spec.type ("ClusterIP", "ExternalName", ...).

    `target_ports` are those of `ports`, a number or a name. `family_policy` is spec.ipFamilyPolicy. `applied` are the
    fields that OUR field manager owns and that a rule need not set: `type`, and `appProtocol 80/TCP` of a port.
    """

    meta: Meta
    type: str
    headless: bool
    has_selector: bool
    ports: tuple[Port, ...]
    target_ports: tuple[int | str, ...] = ()
    families: tuple[Family, ...] = ()
    family_policy: str = "SingleStack"
    traffic: TrafficPolicy = USUAL_TRAFFIC
    applied: tuple[str, ...] = ()

    @property
    def dual_stack(self) -> bool:
        """Whether it asks for both families, whether or not the cluster has them."""
        return self.family_policy in ("PreferDualStack", "RequireDualStack")


@dataclass(frozen=True, slots=True)
class CurrentEndpoints:
    """An Endpoints object that exists, its subsets taken apart by family as `groups`.

    `normalized` is False when what is stored is not what we would write for the same groups (order, duplicates,
    addresses twice): it is rewritten then.
    """

    meta: Meta
    groups: tuple[Group, ...]
    normalized: bool = True


SLICE_MANAGER = "consul-bridge"
"""What EndpointSlices of a bridge have as `endpointslice.kubernetes.io/managed-by`."""


@dataclass(frozen=True, slots=True)
class CurrentSlice:
    """An EndpointSlice that exists. `normalized` as for Endpoints: others wrote nothing into its endpoints.

    `manager` is the label that says which controller writes it, "" without one. Of slices that no bridge writes the
    metadata is bare: only what names them.
    """

    meta: Meta
    service: str
    group: Group
    normalized: bool = True
    manager: str = SLICE_MANAGER


@dataclass(frozen=True, slots=True)
class CurrentRoute:
    """An HTTPRoute that exists. `route` is None when it says something that we would never write.

    `refused` is what gateways say against it, in its status: it never makes a difference to what is written.
    """

    meta: Meta
    route: Route | None
    refused: tuple[Reason, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Current:
    """Everything that Kubernetes holds at one target. `service`, `endpoints` and `route` may be another owner's.

    `slices` are those that a bridge writes, `others` all further ones of the Service, by name; None when not read.

    `mirrored` are the groups that the control plane made of the Endpoints (slices managed by its mirroring
    controller); None when not read, which is enough until a plan says `unmirrored`.

    `route` is a reason while HTTPRoutes cannot be read.
    """

    target: Target
    service: CurrentService | None = None
    endpoints: CurrentEndpoints | None = None
    slices: tuple[CurrentSlice, ...] = ()
    mirrored: tuple[Group, ...] | None = None
    others: tuple[CurrentSlice, ...] | None = None
    route: CurrentRoute | Reason | None = None

    @property
    def objects(self) -> tuple[CurrentService | CurrentEndpoints | CurrentSlice | CurrentRoute, ...]:
        found = (self.service, self.endpoints, *self.slices, self.route)
        return tuple(o for o in found if o is not None and not isinstance(o, Reason))

    def groups(self, owner: str | None = None) -> list[Group]:
        """What an owner's slices and Endpoints hold (None: any bridge's); the slices', which tell more, come first."""
        found = [(s.meta, s.group) for s in self.slices]
        if self.endpoints is not None:
            found += [(self.endpoints.meta, group) for group in self.endpoints.groups]
        return [group for meta, group in found if meta.owner is not None and owner in (None, meta.owner)]


# --------------------------------------------------------------------------- what is to be done


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class ServiceBody:
    """Content of a Service to be applied (ownership labels are in `labels` and `annotations` already).

    `target_ports` are those of `ports` (none: the ports' own numbers). `type` is what the Service is afterwards; it is
    sent where the rule sets it (`sets_type`) and otherwise left as it is. `traffic` is left as it is, always.

    `replaces_ports`: what others put among the ports cannot be taken out by an apply, so the list is replaced first.
    `renames`: a port that stands gets another name. Endpoints must not get it unless the Service did.
    """

    ports: tuple[Port, ...]
    headless: bool
    families: tuple[Family, ...]
    labels: Pairs
    annotations: Pairs
    target_ports: tuple[int | str, ...] = ()
    type: str = "ClusterIP"
    sets_type: bool = False
    family_policy: str = "SingleStack"
    traffic: TrafficPolicy = USUAL_TRAFFIC
    replaces_ports: bool = field(default=False, compare=False)
    renames: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class EndpointsBody:
    groups: tuple[Group, ...]
    labels: Pairs
    annotations: Pairs


@dataclass(frozen=True, slots=True)
class SliceBody:
    """Content of an EndpointSlice to be applied. At most `Mirror.max_endpoints_per_slice` endpoints."""

    service: str
    group: Group
    labels: Pairs
    annotations: Pairs


@dataclass(frozen=True, slots=True)
class RouteBody:
    route: Route
    labels: Pairs
    annotations: Pairs


Body = ServiceBody | EndpointsBody | SliceBody | RouteBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One object and what is to happen to it. `existing` carries the preconditions (uid, resourceVersion).

    CREATE: `existing` is None and the write must fail when an object of that name is there after all.
    UPDATE: applied over `existing`. DELETE: `body` is None. UNCHANGED: nothing is sent.
    `ready` and `not_ready` count endpoints after the change; `reason` is None when it is obvious.
    `meanwhile` is written in place of the change while an EndpointSlice of the same plan cannot be written: it leaves
    what carries that slice's endpoints.
    """

    action: Action
    kind: Kind
    target: Target
    name: str
    body: Body | None
    existing: Meta | None
    ready: int = 0
    not_ready: int = 0
    reason: Reason | None = None
    meanwhile: Change | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """An object that we would need but that is not ours: reported, left alone, looked at again when it changes."""

    target: Target
    kind: Kind
    reason: Reason


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """Whose endpoints the guard adds up together; what happens in one scope never holds anything in another.

    Either the annotated Services of a `namespace`, which its users answer for, or all that rules mirror from
    `datacenters` (several when a Service is fed from several: such Services are a scope of their own).
    """

    namespace: str = ""
    datacenters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"namespace {self.namespace}" if self.namespace else ", ".join(self.datacenters)


@dataclass(frozen=True, slots=True)
class Held:
    """Something that the guard refused to take away. `endpoints` counts the ready endpoints kept.

    `cause` is one of the codes HELD_*. `removed`: endpoints that Consul no longer lists stay; `flips`: endpoints that
    would turn not ready stay ready; `deselected`: endpoints stay that are not selected any more. `releasing`: a forced
    pass is taking them away; meanwhile nothing is written at the target.

    `reason` is the whole sentence. What is held together shares `why`; `command` releases this target alone.
    """

    target: Target
    cause: Code
    endpoints: int
    reason: str
    removed: bool = True
    flips: bool = False
    deselected: bool = False
    releasing: bool = False
    why: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveDatacenter:
    """Which datacenter carries a Service's traffic, and `why` it does; `preferred`: it is the rule's first.

    `before`: the one that carried it until this plan, "" when that is the same or there was none. `pending`: which one
    is to take over, when nothing changes before; plan again after `recheck_seconds`.
    """

    name: str
    why: Reason
    preferred: bool = True
    before: str = ""
    pending: tuple[Reason, ...] = ()
    recheck_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one target needs. `changes` are in the order in which they must be applied (`core.plan` has the
    order).

    Counted in ready endpoints of our own objects (an address on two port groups is two): `ready_before` now, `removed`
    those that would go because Consul no longer lists them, `became_unready` those that it lists and that would stop
    being ready, `deselected` those that it lists and whose tags or meta are no longer what the rule selects by. What a
    policy or a conflict prevents counts as none of these, and nothing does that a user sends away or changes
    (`unsubscribed`: the Service that was filled does not ask any more, or asks for something else). `scope`: with whom
    the guard adds this up. `released`: when a forced pass let go what is lost here, as our objects say (`release`).

    `unmirrored`: our slices stay although the output is Endpoints now, until `Current.mirrored` shows that the control
    plane has copied those. Look at its slices and plan again, about a second later.

    `deviations`: in what the union of all EndpointSlices of the Service, whatever wrote them, differs from what is
    wanted once the changes are made; `differences` are the same, endpoint by endpoint. `deviations_recent`: they are
    too young to be reported, for the control plane's mirror is always a little late. `foreign`: how many of the slices
    are neither ours nor the mirror of our Endpoints. `notes` are as they should be; `explain` tells them.

    `active_datacenter`: of several datacenters, the one whose endpoints these are. Endpoints that a change of
    datacenter removes are not counted above. `doubt`: why the cause of what is taken away may be a mistake in
    a rule (`rule_matches`), or why the target that a rule names instead does not serve yet. `moves_to`: those targets.
    """

    target: Target
    queries: tuple[Query, ...] = ()
    changes: tuple[Change, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[Reason, ...] = ()
    notes: tuple[Reason, ...] = ()
    held: tuple[Held, ...] = ()
    ready: int = 0
    not_ready: int = 0
    ready_before: int = 0
    removed: int = 0
    became_unready: int = 0
    deselected: int = 0
    unmirrored: bool = False
    unsubscribed: bool = False
    scope: Scope = Scope()
    released: str = ""
    deviations: tuple[Reason, ...] = ()
    differences: frozenset[Hashable] = frozenset()
    deviations_recent: bool = False
    foreign: int = 0
    active_datacenter: ActiveDatacenter | None = None
    doubt: Reason | None = None
    moves_to: tuple[Target, ...] = ()

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it is not (yet) as it should be, or should be looked at: conflicts, holds, warnings, deviations."""
        held = (Reason(h.cause) for h in self.held)
        return (*(c.reason for c in self.conflicts), *held, *self.warnings, *self.deviations)

    @property
    def deviates(self) -> bool:
        """Whether there are deviations that have lasted."""
        return bool(self.deviations) and not self.deviations_recent

    @property
    def remarks(self) -> tuple[Reason, ...]:
        """What is reported to users: the warnings, and the deviations that have lasted."""
        lasting = self.deviations if self.deviates else ()
        return (*self.warnings, *(reason for reason in lasting if reason not in self.warnings))

    @property
    def writes(self) -> tuple[Change, ...]:
        return tuple(c for c in self.changes if c.action is not Action.UNCHANGED)

    @property
    def release_command(self) -> str:
        """What releases what is held here, "" when nothing is."""
        return next((hold.command for hold in self.held), "")


UNADDRESSABLE = frozenset({".", ".."})
"""Names that mean another path in a URL, however they are escaped: Consul's API cannot be asked about them."""

METADATA_CIDRS = (
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "fd00:ec2::/32",
    "fd20:ce::/32",
)
"""Metadata and platform services of clouds that are not link-local (those are no endpoint anyway): Alibaba, Azure,
Oracle, AWS, Google; of the last two the whole unique-local prefix that the cloud keeps for such services. A client
that reaches them from a node may get the node's credentials."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the whole installation allows, whatever a rule or a user's Service says.

    `api_server` are addresses of this cluster's API server: never an endpoint, whatever is allowed. `host_names` says
    whether names that stand in Consul as addresses are resolved. Namespaces are shell globs; an empty `namespaces`
    allows all, and `reserved_namespaces` are those that no placeholder in a rule's namespace may lead to.
    """

    allow_cidrs: tuple[str, ...] = ()
    deny_cidrs: tuple[str, ...] = METADATA_CIDRS
    api_server: tuple[str, ...] = ()
    host_names: bool = True
    namespaces: tuple[str, ...] = ()
    deny_namespaces: tuple[str, ...] = ()
    reserved_namespaces: tuple[str, ...] = ()


USUAL_BOUNDS = Bounds()
"""Everything but the clouds' own services."""


@dataclass(frozen=True, slots=True)
class ClusterNodes:
    """The nodes of the Kubernetes cluster itself, as far as they are known.

    `names` are those that are Consul nodes of the same name as well. `addresses` tells the node at each address of one;
    it is empty while the bridge may not list nodes.
    """

    names: Collection[str] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)

    def at(self, address: str) -> str:
        """The node at a (canonical) address, "" when none is known to be there."""
        return self.addresses.get(address, "")

    def is_own(self, node: str, consul_node: str) -> bool:
        """Whether a Consul node is the same machine as a node: what is registered there may have its addresses."""
        return node == consul_node and node in self.names


NO_NODES = ClusterNodes()
"""Nothing is known of the cluster's nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRules:
    """How instances become endpoints (`instances` of a rule in docs/reference.md).

    `settle_seconds`: how long an instance has to be healthy before it is ready. `min_ready`: while fewer instances
    would be ready, none that is ready stops being so for its health.

    `node_addresses`: whether addresses of the cluster's own nodes may be endpoints (`ClusterNodes`). `zone`: that of
    instances whose node's meta names none.
    """

    warning: Treatment = Treatment.READY
    critical: Treatment = Treatment.NOT_READY
    maintenance: Treatment = Treatment.NOT_READY
    address: str = "auto"
    allow_cidrs: tuple[str, ...] = ()
    deny_cidrs: tuple[str, ...] = ()
    bounds: Bounds = USUAL_BOUNDS
    node_addresses: bool = True
    zone_meta: str = "zone"
    zone: str = ""
    settle_seconds: float = 0.0
    min_ready: Amount = NO_AMOUNT


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRule:
    """The HTTPRoute that a rule gives to each of its Services (`to.route`). `hostnames` are templates.

    `port` is the name or the number of the Service's port, "" for the only one.
    """

    parents: tuple[Parent, ...]
    hostnames: tuple[str, ...] = ()
    path: str = "/"
    port: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where and as what a rule's services go (`to:` of a rule). `port` 0 means: from the instances.

    `annotated` marks the rule of a Service that a user made and labelled: it is filled, never written. `type` is the
    Service's ("": none is set: a new one is ClusterIP, and what others make of it stays). `protocol_from` gives
    instances a protocol of their own: (source, protocol), where source is `tag:TAG` or `meta:KEY=VALUE`.
    `labels_from` and `annotations_from` take values from the instances: (key, source), where source is `meta:KEY`,
    `node-meta:KEY`, `tag:PREFIX` (the rest of the tag that begins so) or `tags` (all of them). `hostname_from`: what
    the endpoints of a headless Service get their hostnames of (`hostnames`), "": they get none.
    """

    namespace: str = "default"
    name: str = "{service}"
    headless: bool = False
    output: Output = Output.BOTH
    port: int = 0
    port_name: str = ""
    protocol: str = "TCP"
    protocol_from: Pairs = ()
    app_protocol: str = ""
    labels: Pairs = ()
    annotations: Pairs = ()
    labels_from: Pairs = ()
    annotations_from: Pairs = ()
    max_endpoints_per_slice: int = 100
    annotated: bool = False
    type: str = ""
    hostname_from: str = ""
    route: RouteRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """When another of a rule's datacenters carries the traffic (`core.failover`).

    `below` is a number of ready instances, or a percentage (`percent`) of those that the datacenter has: with fewer it
    does not carry the traffic. `when_unreachable`: nor while it could not be reached for `unreachable_seconds`. One
    that comes first gets the traffic back when it could have carried it for `failback_seconds`.
    """

    below: int = 1
    percent: bool = False
    when_unreachable: bool = False
    unreachable_seconds: float = 30.0
    failback_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which services are mirrored, where to, and how. Empty selectors select everything.

    `services` and `datacenters` select services; `tags`, `meta` and `filter` select instances of them. A rule that
    `uses_up` a service leaves nothing of it to the rules behind it.

    `unlisted`: it is about a namespace, partition or peer whose services are not listed, so `services` are full names
    that are asked for without being listed; what is listed elsewhere does not concern it. `warnings`: what was not
    understood where the rule comes from, to be reported for everything that it mirrors. `place` is where the rule
    stands (`bridge.yaml:3:5`, a flag), "" where that is not known. `combine`: what the `datacenters`, which are named
    then, have under one name becomes one Service; without it the first of them has the name.
    """

    services: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    meta: Pairs = ()
    filter: str = ""
    datacenters: tuple[str, ...] = ()
    namespace: str = ""
    partition: str = ""
    peer: str = ""
    to: Destination = field(default_factory=Destination)
    instances: InstanceRules = field(default_factory=InstanceRules)
    name: str = ""
    unlisted: bool = False
    warnings: tuple[Reason, ...] = ()
    continues: bool | None = None
    place: str = ""
    combine: Combine | None = None
    failover: Failover = field(default_factory=Failover)

    @property
    def narrows(self) -> bool:
        """Whether it selects some of a service's instances rather than all of them."""
        return bool(self.tags or self.meta or self.filter)

    @property
    def uses_up(self) -> bool:
        """Whether the rules behind it get nothing of a service that it names: `continue`, else whether it narrows."""
        return not (self.narrows if self.continues is None else self.continues)

    @property
    def title(self) -> str:
        """Its name, with its place where the name does not say it: `the primary (bridge.yaml:3:5)`."""
        named = self.name or "a rule"
        return named if not self.place or self.place in named else f"{named} ({self.place})"

    @property
    def asks(self) -> str:
        """What it asks of an instance, in words: `the tag primary and the meta env=prod`."""
        parts = [f"the tag{'s' if len(self.tags) > 1 else ''} {', '.join(self.tags)}"] if self.tags else []
        parts += [f"the meta {', '.join(f'{key}={value}' for key, value in self.meta)}"] if self.meta else []
        parts += [f"what the filter wants ({self.filter})"] if self.filter else []
        return " and ".join(parts)
