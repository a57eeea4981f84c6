"""Why something is not mirrored, not written, held or worth a look: one closed list of codes, and a sentence for each.

A `Reason` is a code and the data of its sentence; as a string it is that sentence. What decides (a metric's label, a
field of JSON, an exit status) reads `code`. What is shown prints the reason as it is. So no sentence is ever taken
apart again, and nothing that is registered in Consul can become a label.

A new reason is a new code with a new sentence, here. Codes are public: they stand in metrics, in JSON and on Events.

Its length is that of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum


class Code(StrEnum):
    """Every reason that there is. The value is what users see in `reason` fields and labels."""

    # an instance is no endpoint
    PROXY = "proxy"
    KUBERNETES = "kubernetes"
    NOT_SELECTED = "not_selected"
    FILTERED = "filtered"
    FILTERED_PORT = "filtered_port"
    OMITTED = "omitted"
    STANDBY = "standby"
    KEPT_READY = "kept_ready"
    SETTLING = "settling"
    SETTLES_LATER = "settles_later"
    UNUSABLE = "unusable"
    NO_ADDRESS = "no_address"
    NOT_AN_ADDRESS = "not_an_address"
    HOST_NAME = "host_name"
    HOST_NAME_UNRESOLVED = "host_name_unresolved"
    HOST_NAME_EMPTY = "host_name_empty"
    ADDRESS_ZONE = "address_zone"
    ADDRESS_IPV4_MAPPED = "address_ipv4_mapped"
    ADDRESS_UNSPECIFIED = "address_unspecified"
    ADDRESS_LOOPBACK = "address_loopback"
    ADDRESS_LINK_LOCAL = "address_link_local"
    ADDRESS_MULTICAST = "address_multicast"
    ADDRESS_RESERVED = "address_reserved"
    ADDRESS_THIS_NETWORK = "address_this_network"
    ADDRESS_SITE_LOCAL = "address_site_local"
    ADDRESS_EMBEDDED = "address_embedded"
    API_SERVER = "api_server"
    NODE_ADDRESS = "node_address"
    HOST_NAMES_OFF = "host_names_off"
    CIDR_DENIED = "cidr_denied"
    CIDR_DENIED_EMBEDDED = "cidr_denied_embedded"
    CIDR_NOT_ALLOWED = "cidr_not_allowed"
    NO_PORT = "no_port"
    PORT_INVALID = "port_invalid"
    PORTS_INVALID = "ports_invalid"
    SERVICE_WITHOUT_PORTS = "service_without_ports"
    PORTS_AMBIGUOUS = "ports_ambiguous"
    PUBLISHED = "published"
    HOSTNAME_ABSENT = "hostname_absent"
    HOSTNAME_UNMAPPABLE = "hostname_unmappable"
    HOSTNAME_TAKEN = "hostname_taken"
    HOSTNAME_SHARED = "hostname_shared"

    # a service has no target
    CONSUL_ITSELF = "consul_itself"
    NAME_TOO_LONG = "name_too_long"
    NAME_UNPRINTABLE = "name_unprintable"
    NAME_UNADDRESSABLE = "name_unaddressable"
    NAME_UNMAPPABLE = "name_unmappable"
    NAMESPACE_DENIED = "namespace_denied"
    NAMESPACE_NOT_ALLOWED = "namespace_not_allowed"
    NAMESPACE_RESERVED = "namespace_reserved"
    NAME_TAKEN = "name_taken"
    RULES_CLASH = "rules_clash"
    NONE_SELECTED = "none_selected"
    NO_SERVICE_PORT = "no_service_port"
    NO_INSTANCES = "no_instances"
    NO_USABLE_ADDRESSES = "no_usable_addresses"
    PEER_EMPTY = "peer_empty"
    NEVER_MIRRORED = "never_mirrored"
    NOT_LISTED = "not_listed"
    NO_RULE = "no_rule"
    MOVED = "moved"
    NOT_READ = "not_read"

    # an object is in the way
    CONFLICT = "conflict"
    OTHER_OWNER = "other_owner"
    OTHER_INSTALLATION = "other_installation"
    INSTALLATION_CHANGED = "installation_changed"
    NOT_OWNED = "not_owned"
    UNLABELLED = "unlabelled"
    TAKEN = "taken"
    SELECTOR = "selector"
    SELECTOR_KEPT = "selector_kept"
    EXTERNAL_NAME = "external_name"
    HEADLESS_FIXED = "headless_fixed"

    # the guard holds a removal
    HELD_REMOVAL = "removal"
    HELD_PANIC = "panic"
    HELD_REBUILT = "rebuilt"
    HELD_RUNNING = "running_bridge"
    HELD_UNMATCHED = "unmatched_rule"
    HELD_MOVED = "moved_target"

    # a write has a reason of its own
    ADOPTED = "adopted"
    GONE = "gone"
    NOT_WANTED = "not_wanted"
    NOT_NEEDED = "not_needed"
    OUTPUT_CHANGED = "output_changed"
    POLICY = "policy"
    PURGED = "purged"

    # it works, and an operator should look at it
    MIRROR_REFUSED = "mirror_refused"
    MIRROR_DOUBTFUL = "mirror_doubtful"
    SLICES_FORBIDDEN = "slices_forbidden"
    SLICES_EMPTIED = "slices_emptied"
    UNMIRRORED = "unmirrored"
    FAMILY_MISSING = "family_missing"
    FAMILY_UNAVAILABLE = "family_unavailable"
    PORT_UNREACHABLE = "port_unreachable"
    PORT_GUESSED = "port_guessed"
    PORT_UNSERVED = "port_unserved"
    TRAFFIC_LOCAL = "traffic_local"
    DISTRIBUTION_UNHINTED = "distribution_unhinted"
    DISTRIBUTION_UNZONED = "distribution_unzoned"
    PUBLISHED_NOWHERE = "published_nowhere"
    PORTS_UNUSABLE = "ports_unusable"
    PORTS_BESIDE_ADDRESS = "ports_beside_address"
    PORT_NAME_ABSENT = "port_name_absent"
    PORT_NAME_CLASH = "port_name_clash"
    NONE_LEFT = "none_left"
    CONTRADICTION = "contradiction"
    DISAGREEMENT = "disagreement"
    ZONE_INVALID = "zone_invalid"
    NODE_ADDRESSES = "node_addresses"
    HIDDEN = "hidden"
    BEING_DELETED = "being_deleted"
    ENDPOINTS_BEING_DELETED = "endpoints_being_deleted"
    SLICES_KEPT = "slices_kept"
    SLICES_REFUSED = "slices_refused"
    FOREIGN_SLICE = "foreign_slice"
    SLICE_KEPT_BY_USER = "slice_kept_by_user"
    MIRROR_BEHIND = "mirror_behind"
    SLICE_OUTDATED = "slice_outdated"
    MINIMUM_KEPT = "minimum_kept"
    HOSTNAMES_MISSING = "hostnames_missing"
    HOSTNAMES_UNUSED = "hostnames_unused"
    HOSTNAME_SOURCE_UNKNOWN = "hostname_source_unknown"
    OUTPUT_UNKNOWN = "output_unknown"
    TAG_CASE = "tag_case"
    TAG_ABSENT = "tag_absent"
    PATTERN_UNMATCHED = "pattern_unmatched"
    TAGS_UNMATCHED = "tags_unmatched"
    RULE_UNUSED = "rule_unused"
    PATTERN_HOLDS = "pattern_holds"
    SELECTION_HOLDS = "selection_holds"
    MOVE_HOLDS = "move_holds"
    PLACE_HOLDS = "place_holds"
    ADDRESS_KIND_ABSENT = "address_kind_absent"
    NAMESPACE_ABSENT = "namespace_absent"
    RIGHTS_MISSING = "rights_missing"
    TAG_COMMA = "tag_comma"
    TAGS_EMPTY = "tags_empty"
    ANNOTATION_UNKNOWN = "annotation_unknown"
    DATACENTER_UNREAD = "datacenter_unread"
    CARRIES = "carries"
    FAILED_OVER = "failed_over"
    FAILOVER_PENDING = "failover_pending"
    FAILBACK_PENDING = "failback_pending"
    DATACENTER_NOT_ASKED = "datacenter_not_asked"
    SERVICE_MISSING = "service_missing"
    NOT_GRANTED = "not_granted"
    LABELS_UNKNOWN = "labels_unknown"
    FILTER_NOT_GRANTED = "filter_not_granted"
    NAMES_UNRESOLVED = "names_unresolved"
    ROUTES_UNREAD = "routes_unread"
    ROUTE_PORT = "route_port"
    ROUTE_HOSTNAME = "route_hostname"
    ROUTE_HOSTNAMES = "route_hostnames"
    ROUTE_WITHOUT_HOSTNAME = "route_without_hostname"
    ROUTE_WAITS = "route_waits"
    ROUTE_REFUSED = "route_refused"

    # a write or a read failed
    THROTTLED = "throttled"
    STALE = "stale"
    TRANSIENT = "transient"
    PERMANENT = "permanent"
    ALTERED = "altered"
    NOT_TRIED = "not_tried"
    READ_FAILED = "read_failed"

    OTHER = "other"


def _omitted(status: str, check: str) -> str:
    return f"omitted because it is {status}{f' (check {check})' if check else ''}"


def _published(status: str, check: str) -> str:
    said = f" (check {check})" if check else ""
    return f"it is {status}{said}, and the Service asks for such endpoints too (publishNotReadyAddresses)"


def _managed(manager: str) -> str:
    return f"managed by {manager}" if manager else "without a manager"


def _foreign_slice(name: str, manager: str, namespace: str, what: str) -> str:
    return (
        f"EndpointSlice {name} ({_managed(manager)}) is neither the bridge's nor the mirror of its Endpoints: it "
        f"{what}. If nothing else needs it: kubectl delete endpointslice {name} --namespace {namespace}"
    )


def _slice_outdated(name: str, manager: str, what: str) -> str:
    return f"EndpointSlice {name} ({_managed(manager)}) {what}"


SENTENCES: Mapping[Code, str | Callable[..., str]] = {
    Code.PROXY: "a Connect proxy or gateway (kind {kind})",
    Code.KUBERNETES: "it came from a Kubernetes cluster (meta {key}={value})",
    Code.NOT_SELECTED: "the rule's tags or meta do not select it",
    Code.FILTERED: "the rule's filter leaves it out",
    Code.FILTERED_PORT: "the rule's filter leaves it out; for Consul, `Service.Port` of an instance with several ports "
    "is 0, and no filter can match its further ports: select it by tag or meta",
    Code.OMITTED: _omitted,
    Code.KEPT_READY: "it is {status} and stays ready: {left} of {count} instances would be left, and min_ready is "
    "{minimum}",
    Code.SETTLING: "it is {status}, and is ready when it has been so for {seconds} (settle)",
    Code.SETTLES_LATER: "it is {status}; `bridge run` waits until it has been so for {seconds} (settle), one pass does "
    "not",
    Code.STANDBY: "datacenter {active} carries the traffic",
    Code.UNUSABLE: "its {what} has {length} characters, {limit}",
    Code.NO_ADDRESS: "it has no address of the kind {kind}",
    Code.NOT_AN_ADDRESS: "{text!r} is neither an IP address nor a host name{hint}",
    Code.HOST_NAME: "{name} is a host name",
    Code.HOST_NAME_UNRESOLVED: "host name {name} could not be resolved",
    Code.HOST_NAME_EMPTY: "host name {name} has no address",
    Code.ADDRESS_ZONE: "{address} has a zone, which only means something on the host itself",
    Code.ADDRESS_IPV4_MAPPED: "{address} is an IPv4-mapped IPv6 address: register the IPv4 address itself",
    Code.ADDRESS_UNSPECIFIED: "{address} is the unspecified address",
    Code.ADDRESS_LOOPBACK: "{address} is a loopback address: it would mean each client's own machine",
    Code.ADDRESS_LINK_LOCAL: "{address} is a link-local address: it means nothing beyond its own network segment",
    Code.ADDRESS_MULTICAST: "{address} is a multicast address",
    Code.ADDRESS_RESERVED: "{address} is in the reserved range 240.0.0.0/4",
    Code.ADDRESS_THIS_NETWORK: '{address} is in 0.0.0.0/8, which means "this network"',
    Code.ADDRESS_SITE_LOCAL: "{address} is a site-local address (fec0::/10), deprecated by RFC 3879",
    Code.ADDRESS_EMBEDDED: "{address} leads to an IPv4 address: {inner}",
    Code.API_SERVER: "{address} is this cluster's API server",
    Code.NODE_ADDRESS: "{address} is an address of this cluster's node {node}: annotated Services do not lead there "
    "unless their grant has `node_addresses: true`",
    Code.HOST_NAMES_OFF: "{name} is a host name, and dns.resolve is off",
    Code.CIDR_DENIED_EMBEDDED: "{address} leads to {inner}, which is in {section}deny_cidrs ({network})",
    Code.CIDR_DENIED: "{address} is in {section}deny_cidrs ({network})",
    Code.CIDR_NOT_ALLOWED: "{address} is not in {section}allow_cidrs",
    Code.NO_PORT: "it has no port, and the rule gives none",
    Code.PORT_INVALID: "port {number} is not between 1 and 65535",
    Code.PORTS_INVALID: "none of its ports is between 1 and 65535",
    Code.SERVICE_WITHOUT_PORTS: "the Service has no ports",
    Code.PORTS_AMBIGUOUS: "neither a name nor a number says which of its ports ({ports}) the Service means; name them "
    "in the Service's targetPort",
    Code.PUBLISHED: _published,
    Code.HOSTNAME_ABSENT: "it has no hostname, for it has no {source} (`hostname_from`)",
    Code.HOSTNAME_UNMAPPABLE: "it has no hostname: {source} is {text!r}, which has no letter or digit to make one of",
    Code.HOSTNAME_TAKEN: "it has no hostname: {hostname} is that of {holder}, which has another address",
    Code.HOSTNAME_SHARED: "its endpoint is that of {holder} as well and has the hostname {hostname}",
    Code.CONSUL_ITSELF: "Consul's own service",
    Code.NAME_TOO_LONG: "a name of {length} characters",
    Code.NAME_UNPRINTABLE: "control characters in its name: Consul answers no question about it",
    Code.NAME_UNADDRESSABLE: "a name that means another path in a URL: Consul cannot be asked about it",
    Code.NAME_UNMAPPABLE: "the {what} {text!r} has no letter or digit to make a name of",
    Code.NAMESPACE_DENIED: "namespace {namespace} is in guard.deny_namespaces ({pattern})",
    Code.NAMESPACE_NOT_ALLOWED: "namespace {namespace} is not in guard.namespaces",
    Code.NAMESPACE_RESERVED: "namespace {namespace} is reserved: a placeholder leads there only when guard.namespaces "
    "names it",
    Code.NAME_TAKEN: "{target} goes to {holder} ({why}); give one of them another name",
    Code.RULES_CLASH: "{target} goes to {holder} by {rule}, the first rule that sends something there; {other} sends "
    "{service} there as well: give one of them another `to.name`",
    Code.NONE_SELECTED: "{none} of {service} has {asks}, which {rule} asks for: nothing is made before one has",
    Code.NO_SERVICE_PORT: "no instance has a port yet and the rule gives none (`port`): a Service needs one",
    Code.NO_INSTANCES: "Consul shows no instance, and a Service needs a port: name one in the rule (`port`) to have it "
    "made before",
    Code.NO_USABLE_ADDRESSES: "no instance has an address that can be used (each is listed with its reason), and a "
    "Service needs a port: name one in the rule (`port`) to have it made before",
    Code.PEER_EMPTY: "the peer {peer} shows no instance of it: there is no peering of this name, or it does not export "
    "the service (`consul peering list`)",
    Code.NEVER_MIRRORED: "never mirrored: {why}",
    Code.NOT_LISTED: "{datacenter} does not list a service of this name",
    Code.NO_RULE: "no rule selects it",
    Code.MOVED: "it goes to {target} now; {before} still has what came from it",
    Code.NOT_READ: "{what} cannot be listed: {why}",
    Code.CONFLICT: "conflict: {kind} {target}: {why}",
    Code.OTHER_OWNER: "it belongs to the bridge with owner id {owner!r}; if that bridge is meant: --owner {owner}",
    Code.OTHER_INSTALLATION: "installation {installation} wrote it last, under our owner id: it stays. Give each "
    "installation an `owner` of its own; if that one is gone, `bridge sync --force` takes what it left",
    Code.INSTALLATION_CHANGED: "installation {installation} wrote this last, under our owner id; if that one is not "
    "gone, give each installation an `owner` of its own",
    Code.NOT_OWNED: "it is not ours; to hand it over, run with {flag} or annotate it with {annotation}=true",
    Code.UNLABELLED: "this bridge (or another one) wrote it, as its field manager shows, but its labels are gone: an "
    "admission webhook or a user took them off; put back {labels}, or annotate it with {annotation}=true",
    Code.TAKEN: "{said}",
    Code.SELECTOR: "it has a selector, so Kubernetes fills its endpoints; remove the selector first",
    Code.SELECTOR_KEPT: "it has a selector, so Kubernetes fills its endpoints; {why}, but the Service now belongs to "
    "pods and stays",
    Code.EXTERNAL_NAME: "it is of type ExternalName and has no endpoints; make it ClusterIP",
    Code.HEADLESS_FIXED: "it is {now}, which Kubernetes cannot change in place; delete the Service to have it "
    "recreated",
    Code.HELD_REMOVAL: "too many would vanish at once",
    Code.HELD_PANIC: "too many would stop being ready at once",
    Code.HELD_REBUILT: "Consul was rebuilt or restored",
    Code.HELD_RUNNING: "left to the running bridge of this owner id",
    Code.HELD_UNMATCHED: "a rule that matches nothing may be the reason",
    Code.HELD_MOVED: "the target that a rule names instead does not serve the service yet",
    Code.ADOPTED: "adopted",
    Code.GONE: "its service is gone from Consul",
    Code.NOT_WANTED: "no rule or annotation asks for it any more",
    Code.NOT_NEEDED: "not needed any more",
    Code.OUTPUT_CHANGED: "the output is EndpointSlices now",
    Code.POLICY: "policy {policy}: no {action}",
    Code.PURGED: "purged",
    Code.MIRROR_REFUSED: "the control plane cannot mirror these Endpoints: {why}. EndpointSlices of ours carry the "
    "addresses, although the output is endpoints",
    Code.MIRROR_DOUBTFUL: "EndpointSlices of ours carry the addresses, although the output is endpoints: the control "
    "plane's mirror could fail at the next change (one port name stands for several ports, or there are more than "
    "{margin} addresses)",
    Code.SLICES_FORBIDDEN: "no EndpointSlices are written here, for the bridge may not {rights}: the addresses reach "
    "kube-proxy by the control plane's mirror of the Endpoints only, and {costs}",
    Code.SLICES_EMPTIED: "EndpointSlices that are not needed any more are emptied but stay, for the bridge may not "
    "{rights}; grant that right",
    Code.UNMIRRORED: "no EndpointSlices are written here, for the bridge may not {rights}, and the control plane "
    "cannot mirror these Endpoints: {why}",
    Code.FAMILY_MISSING: "{family} endpoints cannot be reached: the Service has no {family} (spec.ipFamilies)",
    Code.FAMILY_UNAVAILABLE: "{family} endpoints cannot be reached: the Service asks for both families, and the "
    "cluster gives it {families} only (spec.ipFamilies)",
    Code.PORT_UNREACHABLE: "port {name!r} cannot be reached: the Service's {protocol} port {number} is {holder!r}; "
    "give one of them another number (`port`)",
    Code.PORT_GUESSED: "port {port} of the Service: neither its name nor its number is that of a port of an instance, "
    "so {number}, the only one left or the default, is taken; name the right one in its targetPort",
    Code.PORT_UNSERVED: "port {port} of the Service has no endpoint: no instance has a port of that name or number; "
    "name one in its targetPort, or remove it",
    Code.TRAFFIC_LOCAL: "{field} is Local, and {count} of {ready} ready endpoints are on no node of the cluster: such "
    "traffic does not reach them; set {field} to Cluster",
    Code.DISTRIBUTION_UNHINTED: "trafficDistribution is {value}, which needs hints in EndpointSlices: it has no effect "
    "with the output endpoints; use both",
    Code.DISTRIBUTION_UNZONED: "trafficDistribution is {value}, and {count} of {ready} ready endpoints are in no known "
    "zone: it has no effect until every node's meta in Consul names one (`zone_meta`)",
    Code.PUBLISHED_NOWHERE: "the annotation {annotation} has no effect: of a headless Service external-dns publishes "
    "pods only; use the type ClusterIP",
    Code.PORTS_UNUSABLE: "no number between 1 and 65535, so not mirrored: the port {names}",
    Code.PORTS_BESIDE_ADDRESS: "the address {address} has a port of its own, so these are not mirrored: {names}",
    Code.PORT_NAME_ABSENT: "no port is called {wanted!r} (`port_name`) but {names}: the default one has that name now",
    Code.PORT_NAME_CLASH: "the ports {holder} and {other} become one name, {name!r}: {other} is not mirrored",
    Code.NONE_LEFT: "{none} of {service} has {asks}, which {rule} asks for: it gets no endpoint",
    Code.CONTRADICTION: "instances have {count} values for the {kind} {key} ({source}): {taken} is taken",
    Code.DISAGREEMENT: "the rules that share this Service differ in {key}: {taken!r} (for {first}) is taken, not "
    "{other!r} (for {second})",
    Code.NODE_ADDRESSES: "{count} addresses are those of this cluster's own nodes ({first}, for example): the Service "
    "leads to what listens there; `deny_cidrs` refuses them",
    Code.ZONE_INVALID: "zone {zone!r} is no label value{more}: its endpoints have no zone",
    Code.HIDDEN: "instances on nodes that the Consul token may not see: what is ready in Kubernetes and not shown "
    'stays; a token with node_prefix "" {{ policy = "read" }} sees them',
    Code.BEING_DELETED: "the Service is being deleted; it is recreated when it is gone",
    Code.ENDPOINTS_BEING_DELETED: "the Endpoints object is being deleted; it is recreated when it is gone",
    Code.SLICES_REFUSED: "an EndpointSlice could not be written: until it can, nothing is taken away that carries its "
    "endpoints",
    Code.FOREIGN_SLICE: _foreign_slice,
    Code.SLICE_KEPT_BY_USER: "EndpointSlice {name}, which no bridge writes, {what}; a user keeps it ({annotation})",
    Code.MIRROR_BEHIND: "kube-proxy does not see these Endpoints as they are, for the control plane's mirror of them "
    "{what}; where that lasts, look at the log of kube-controller-manager (endpointslice-mirroring-controller)",
    Code.SLICE_OUTDATED: _slice_outdated,
    Code.SLICES_KEPT: "the output is Endpoints now; our EndpointSlices stay until the control plane has mirrored them",
    Code.MINIMUM_KEPT: "{kept} of {count} instances of {service} stay ready although they are unhealthy ({first}, for "
    "example): {left} would be left, and min_ready is {minimum}",
    Code.HOSTNAMES_MISSING: "{count} of {all} instances have no hostname of their own by `hostname_from` ({first}, for "
    "example: {why}); give each node a name of its own, or take another source",
    Code.HOSTNAMES_UNUSED: "endpoints get no hostnames, for the Service is not headless: DNS has names of single "
    "endpoints for headless Services only, and to become headless a Service has to be recreated",
    Code.HOSTNAME_SOURCE_UNKNOWN: "the annotation {annotation} is {value!r} and not {known}: endpoints get no "
    "hostnames",
    Code.OUTPUT_UNKNOWN: "the annotation {annotation} is {value!r} and not one of {known}: it is taken as {taken}",
    Code.TAG_CASE: "no instance has the tag {wanted!r}, but {found!r}: Consul tells upper from lower case in tags",
    Code.TAG_ABSENT: "no instance has the tag {wanted!r}; there are {found}",
    Code.PATTERN_UNMATCHED: "{rule}: {where} lists no service {pattern}{hint}",
    Code.TAGS_UNMATCHED: "{rule}: no service that it names has the tag {tags}{hint}",
    Code.RULE_UNUSED: "{rule}: it selects none of the {count} services that Consul lists ({words}); `bridge explain "
    "SERVICE` says why",
    Code.PATTERN_HOLDS: "{rule}: `services` has {pattern}, which matches nothing in Consul, and no rule selects "
    "{service} for this name any more",
    Code.SELECTION_HOLDS: "{rule}: it wants {asks}, which no instance in Consul has",
    Code.PLACE_HOLDS: "{rule}: its peer, namespace or partition has shown no instance since the bridge started",
    Code.MOVE_HOLDS: "a rule sends {service} elsewhere now, which does not serve it yet: {why}",
    Code.ADDRESS_KIND_ABSENT: "no instance has an address of the kind {kind!r} (`instances.address`); there are "
    "{found}",
    Code.NAMESPACE_ABSENT: "namespace {namespace} does not exist: kubectl create namespace {namespace}",
    Code.RIGHTS_MISSING: "{said}",
    Code.TAG_COMMA: "an instance has the tag {found!r}: in the annotation {annotation} a comma ends a tag; ask for it "
    "with {filter}: '\"{found}\" in Service.Tags'",
    Code.TAGS_EMPTY: "the annotation {annotation} is {value!r} and names no tag: instances with any tags are taken",
    Code.ANNOTATION_UNKNOWN: "unknown to the bridge, so without effect: {names}",
    Code.DATACENTER_UNREAD: "what datacenter {datacenter} has is not known ({why}): what is ready in Kubernetes stays",
    Code.CARRIES: "datacenter {active} carries the traffic: it comes first ({has})",
    Code.FAILED_OVER: "datacenter {active} carries the traffic, not {preferred}: {why}",
    Code.FAILOVER_PENDING: "datacenter {active} cannot be reached since {since}; {pending} takes over {seconds} s "
    "after that",
    Code.FAILBACK_PENDING: "datacenter {pending} could carry the traffic since {since}; it takes over from {active} "
    "{seconds} s after that",
    Code.DATACENTER_NOT_ASKED: "the annotation asks for datacenter {datacenter}, which may not be asked: only {known} "
    "may. If it is right, name it in consul.datacenters (BRIDGE_CONSUL_DATACENTERS)",
    Code.SERVICE_MISSING: "{datacenter} lists no service {service} that namespace {namespace} may ask for",
    Code.NOT_GRANTED: "no grant in `annotated` lets namespace {namespace} ask for {service} in {datacenter}",
    Code.LABELS_UNKNOWN: "no grant in `annotated` is known to let namespace {namespace} ask for {service} in "
    "{datacenter}: the namespace's labels, which a `namespace_selector` needs, are not known",
    Code.FILTER_NOT_GRANTED: "namespace {namespace} may not use the annotation {annotation}: ask the operator for a "
    "grant with filter",
    Code.NAMES_UNRESOLVED: "{names}: not resolved yet; until then no endpoint of this service is removed",
    Code.ROUTES_UNREAD: "no HTTPRoute is written: {why}",
    Code.ROUTE_PORT: "no HTTPRoute is written: {problem}; the Service has {ports} (`to.route.port`)",
    Code.ROUTE_HOSTNAME: "{hostname!r} (from {template}) is no host name that a gateway takes, so the HTTPRoute does "
    "not have it{others}: `{{name}}` is always one",
    Code.ROUTE_HOSTNAMES: "{count} host names: an HTTPRoute has {limit} at most, the first in order",
    Code.ROUTE_WITHOUT_HOSTNAME: "there is no HTTPRoute: no instance has what its host names are made of ({templates})",
    Code.ROUTE_WAITS: "no instance is selected, and the host name is made of what instances have ({templates}): the "
    "HTTPRoute stays as it is",
    Code.ROUTE_REFUSED: "{gateway} says {condition} is False for the HTTPRoute: {why}: {said}",
    Code.THROTTLED: "{said}",
    Code.STALE: "{said}",
    Code.TRANSIENT: "{said}",
    Code.PERMANENT: "{said}",
    Code.ALTERED: "{said}",
    Code.NOT_TRIED: "not tried, because the {action} of {kind} {name} failed",
    Code.READ_FAILED: "{said}",
    Code.OTHER: "{said}",
}
"""A template, or a function where parts of a sentence come and go. Data from outside is `truncate`d before."""


class Reason(str):
    """A code and its data; as a string the sentence that is made of them.

    Two reasons are equal when their sentences are: reasons that read the same are the same.
    """

    __slots__ = ("code", "data")

    code: Code
    data: tuple[tuple[str, str], ...]

    def __new__(cls, code: Code, /, **data: object) -> Reason:
        sentence = SENTENCES[code]
        self = super().__new__(cls, sentence.format(**data) if isinstance(sentence, str) else sentence(**data))
        self.code = code
        self.data = tuple((key, str(value)) for key, value in sorted(data.items()))
        return self

    def __deepcopy__(self, _memo: object) -> Reason:
        """It cannot change, so it is its own copy (`dataclasses.asdict` copies everything)."""
        return self


def code_of(reason: str) -> str:
    """The code of a reason, "" where there is none; what carries no code (an error's own words, say) is `other`."""
    if isinstance(reason, Reason):
        return reason.code.value
    return Code.OTHER.value if reason else ""


def codes_of(reasons: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({code_of(reason) for reason in reasons} - {""}))


SKIPS = (
    Code.PROXY,
    Code.KUBERNETES,
    Code.OMITTED,
    Code.UNUSABLE,
    Code.NO_ADDRESS,
    Code.NOT_AN_ADDRESS,
    Code.HOST_NAME,
    Code.HOST_NAME_UNRESOLVED,
    Code.HOST_NAME_EMPTY,
    Code.ADDRESS_ZONE,
    Code.ADDRESS_IPV4_MAPPED,
    Code.ADDRESS_UNSPECIFIED,
    Code.ADDRESS_LOOPBACK,
    Code.ADDRESS_LINK_LOCAL,
    Code.ADDRESS_MULTICAST,
    Code.ADDRESS_RESERVED,
    Code.ADDRESS_THIS_NETWORK,
    Code.ADDRESS_SITE_LOCAL,
    Code.ADDRESS_EMBEDDED,
    Code.API_SERVER,
    Code.NODE_ADDRESS,
    Code.HOST_NAMES_OFF,
    Code.CIDR_DENIED,
    Code.CIDR_DENIED_EMBEDDED,
    Code.CIDR_NOT_ALLOWED,
    Code.NO_PORT,
    Code.PORT_INVALID,
    Code.PORTS_INVALID,
    Code.SERVICE_WITHOUT_PORTS,
    Code.PORTS_AMBIGUOUS,
    Code.NAME_UNMAPPABLE,
    Code.NAMESPACE_DENIED,
    Code.NAMESPACE_NOT_ALLOWED,
    Code.NAMESPACE_RESERVED,
    Code.NAME_TAKEN,
    Code.RULES_CLASH,
    Code.NONE_SELECTED,
    Code.NO_SERVICE_PORT,
    Code.NO_INSTANCES,
    Code.NO_USABLE_ADDRESSES,
    Code.PEER_EMPTY,
)
"""Codes that `Skipped` carries: the labels of `consul_bridge_skipped`, which are there before the first of them is."""

WARNINGS = (
    Code.MIRROR_REFUSED,
    Code.MIRROR_DOUBTFUL,
    Code.SLICES_FORBIDDEN,
    Code.SLICES_EMPTIED,
    Code.UNMIRRORED,
    Code.FAMILY_MISSING,
    Code.FAMILY_UNAVAILABLE,
    Code.PORT_UNREACHABLE,
    Code.PORT_GUESSED,
    Code.PORT_UNSERVED,
    Code.TRAFFIC_LOCAL,
    Code.DISTRIBUTION_UNHINTED,
    Code.DISTRIBUTION_UNZONED,
    Code.PUBLISHED_NOWHERE,
    Code.PORTS_UNUSABLE,
    Code.PORTS_BESIDE_ADDRESS,
    Code.PORT_NAME_ABSENT,
    Code.PORT_NAME_CLASH,
    Code.NONE_LEFT,
    Code.CONTRADICTION,
    Code.DISAGREEMENT,
    Code.ZONE_INVALID,
    Code.INSTALLATION_CHANGED,
    Code.NODE_ADDRESSES,
    Code.HIDDEN,
    Code.BEING_DELETED,
    Code.ENDPOINTS_BEING_DELETED,
    Code.SLICES_KEPT,
    Code.FOREIGN_SLICE,
    Code.MIRROR_BEHIND,
    Code.SLICE_OUTDATED,
    Code.MINIMUM_KEPT,
    Code.HOSTNAMES_MISSING,
    Code.HOSTNAMES_UNUSED,
    Code.HOSTNAME_SOURCE_UNKNOWN,
    Code.OUTPUT_UNKNOWN,
    Code.TAG_CASE,
    Code.ADDRESS_KIND_ABSENT,
    Code.TAG_COMMA,
    Code.TAGS_EMPTY,
    Code.ANNOTATION_UNKNOWN,
    Code.DATACENTER_UNREAD,
    Code.FAILED_OVER,
    Code.FAILOVER_PENDING,
    Code.FAILBACK_PENDING,
    Code.DATACENTER_NOT_ASKED,
    Code.SERVICE_MISSING,
    Code.FILTER_NOT_GRANTED,
    Code.NAMES_UNRESOLVED,
    Code.ROUTES_UNREAD,
    Code.ROUTE_PORT,
    Code.ROUTE_HOSTNAME,
    Code.ROUTE_HOSTNAMES,
    Code.ROUTE_REFUSED,
)
"""The same for warnings and `consul_bridge_warnings`."""
