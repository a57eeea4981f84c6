"""What rules and grants consist of: the lists `rules` and `annotated` of the settings."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from bridge.config.schema import Section
from bridge.config.types import (
    LABEL,
    LABEL_NAME,
    LABEL_RULE,
    SUBDOMAIN,
    TAGGED_ADDRESS,
    Cidr,
    Filled,
    HostnameTemplate,
    LabelValue,
    MetadataKey,
    Namespace,
    NamespaceGlob,
    NameTemplate,
    ObjectName,
    Plain,
    ProtocolSource,
    ValueSource,
    duration,
    full_match,
    hostname_placeholders,
    label_selector,
    name_template,
    number_or_percent,
    placeholders,
    plain_text,
    route_path,
    service_glob,
    service_port,
    whole_number,
)
from bridge.core.model import Output


class ParentRule(Section):
    """A Gateway, or one of its listeners."""

    name: ObjectName = Field(description="Name of the Gateway.")
    namespace: Namespace | None = Field(None, description="Its namespace. Default: the Service's.")
    section_name: ObjectName | None = Field(None, description="Name of one of its listeners. Default: all of them.")
    port: whole_number(1, 65535) | None = Field(  # type: ignore[valid-type]
        None, description="Port of its listeners. Default: any."
    )


class RouteSettings(Section):
    """The HTTPRoute (Gateway API) of each Service of a rule."""

    parents: tuple[ParentRule, ...] = Field(
        (),
        description="The Gateways that it hangs on. Those of another namespace have to let it in (`allowedRoutes`).",
    )
    hostnames: tuple[HostnameTemplate, ...] = Field(
        (),
        description=f"Templates of its host names; placeholders: {hostname_placeholders()}. `{{name}}` is the "
        "Service's name; `{tag:PREFIX}` is the rest of a tag that begins so. What instances have gives a host name for "
        "each value; while no instance has one, there is no HTTPRoute.",
    )
    path: Annotated[str, AfterValidator(route_path)] = Field("/", description="Path that its requests begin with.")
    port: Annotated[str, BeforeValidator(service_port)] | None = Field(
        None, description="Name or number of the Service's port that it leads to. Default: the only TCP one."
    )

    @model_validator(mode="after")
    def _says_which_requests(self) -> RouteSettings:
        if not self.parents:
            raise ValueError("must have parents: the Gateways that take the requests")
        if not self.hostnames and self.path == "/":
            raise ValueError("must have hostnames, or a path: it would take every request of its Gateways")
        return self


class DestinationRule(Section):
    """Where and as what a rule's services go."""

    namespace: Annotated[str, AfterValidator(name_template)] | None = Field(
        None,
        description="Namespace, or a template. Default: that of the kubeconfig's context, in a cluster the pod's own.",
    )
    name: NameTemplate = Field("{service}", description=f"Name of the Service; placeholders: {placeholders()}.")
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "Headless"] | None = Field(
        None,
        description="Type of the Service; Headless ones have no address of their own. Default: a new Service is "
        "ClusterIP, and what others make of it (LoadBalancer, say) stays; a type that is set here is put back.",
    )
    output: Output = Field(
        Output.BOTH,
        description="What carries the addresses: `both` (EndpointSlices of ours, which kube-proxy reads, and Endpoints "
        "that say that they are not to be mirrored), `endpoints` (the control plane makes the slices), or "
        "`endpointslices`. It may be changed while the Service is in use.",
    )
    port: whole_number(1, 65535) | None = Field(  # type: ignore[valid-type]
        None, description="Port of the Service. Default: the instances' commonest."
    )
    port_name: Annotated[str, full_match(re.compile(rf"({LABEL.pattern})?"), LABEL_RULE)] = Field(
        "",
        description="Name of the port; needed when several Consul services share one Service. Of an instance with "
        "several named ports it chooses the one of this name, else the default one, which is called so then (a warning "
        "says it).",
    )
    protocol: Literal["TCP", "UDP", "SCTP"] = Field(
        "TCP", description="Protocol of the port; beside TCP the service meta `protocol` (udp, sctp) may say otherwise."
    )
    protocol_from: dict[ProtocolSource, Literal["TCP", "UDP", "SCTP"]] = Field(
        {},
        description="Protocols of instances by what they carry: `tag:TAG` or `meta:KEY=VALUE` (`tag:udp: UDP` for what "
        "Registrator registers). An instance may have several; without any it is as above. Of one name in several "
        "protocols the Service has a port for each: `dns` and `dns-udp`, without a name `tcp` and `udp`.",
    )
    app_protocol: Annotated[
        str,
        full_match(
            re.compile(rf"(({SUBDOMAIN.pattern})/)?({LABEL_NAME.pattern})?"), "a name such as http or example.com/x"
        ),
    ] = Field(
        "",
        description="Application protocol of the port (`http`, `kubernetes.io/h2c`): a hint for meshes.",
    )
    hostname_from: Annotated[
        str,
        AfterValidator(plain_text),
        full_match(re.compile(r"(node|(node-)?meta:.+)?"), "node, meta:KEY or node-meta:KEY"),
    ] = Field(
        "",
        description="Hostnames of the endpoints of a headless Service, so that DNS knows each by a name of its own "
        "(`vm1.kafka.storage.svc`): made of the Consul node's name (`node`), or of a value of the instance's or its "
        "node's meta (`meta:KEY`, `node-meta:KEY`). The first label of a name with dots is taken, lower-case, other "
        "characters become `-`. Of several instances with one name and different addresses the one that has it in "
        "Kubernetes keeps it, else the first in order gets it; the rest have none, and a warning says so.",
    )
    labels: dict[MetadataKey, LabelValue] = Field({}, description="Labels for every object.")
    annotations: dict[MetadataKey, str] = Field({}, description="Annotations for every object.")
    labels_from: dict[MetadataKey, ValueSource] = Field(
        {},
        description="Labels whose values the instances have: `meta:KEY`, `node-meta:KEY`, `tag:PREFIX` (the rest of "
        "the tag that begins so) or `tags` (all, joined). Characters that no label has become `_`; over-long values "
        "are cut and get a hash.",
    )
    annotations_from: dict[MetadataKey, ValueSource] = Field(
        {}, description="The same for annotations; their values stay as they are, up to 1,024 characters."
    )
    max_endpoints_per_slice: whole_number(1, 1000) = Field(  # type: ignore[valid-type]
        100,
        description="Endpoints in one EndpointSlice (Kubernetes takes 1000); one that changes rewrites its slice.",
    )
    route: RouteSettings | None = Field(
        None,
        description="An HTTPRoute for each Service (Gateway API), named as the Service: a mapping with `parents`, "
        "`hostnames`, `path` and `port`. It takes rights on httproutes (manifests/components/http-routes).",
    )

    @field_validator("hostname_from")
    @classmethod
    def _headless_only(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("type") != "Headless":
            raise ValueError("needs `type: Headless`: DNS has names of single endpoints for headless Services only")
        return value

    @model_validator(mode="after")
    def _each_key_once(self) -> DestinationRule:
        for one, other in (("labels", "labels_from"), ("annotations", "annotations_from")):
            twice = sorted(getattr(self, one).keys() & getattr(self, other).keys())
            if twice:
                raise ValueError(f"{', '.join(map(repr, twice))} is in {one} and in {other}: which is meant?")
        return self


class InstancesRule(Section):
    """How instances become endpoints."""

    warning: Literal["ready", "not-ready", "omit"] = Field(
        "ready", description="What happens to instances with a warning; `omit` leaves them out."
    )
    critical: Literal["not-ready", "omit"] = Field(
        "not-ready", description="What happens to critical ones, and to those whose health is unknown."
    )
    maintenance: Literal["not-ready", "omit"] = Field(
        "not-ready", description="What happens to those in maintenance; in EndpointSlices they are drained gracefully."
    )
    address: Annotated[
        str, full_match(TAGGED_ADDRESS, "auto, service, node or the name of a tagged address (lan, wan, …)")
    ] = Field(
        "auto",
        description="Which address: auto (the service's, else the node's), service, node, or a tagged address. One "
        "with a port of its own is reached on that port alone: the instance's named ports are not mirrored then (a "
        "warning says it).",
    )
    allow_cidrs: tuple[Cidr, ...] = Field(
        (), description="Only addresses in these networks. Empty: all that Kubernetes takes."
    )
    deny_cidrs: tuple[Cidr, ...] = Field((), description="No address in these networks; stronger than `allow_cidrs`.")
    zone_meta: Plain = Field(
        "zone", description="Node meta key that holds the topology zone (EndpointSlices); no label, no zone."
    )
    settle: Annotated[float, duration("0", "1h")] = Field(
        0.0,
        description="How long an instance has to be healthy before it is ready; it is not ready at once when it no "
        "longer is. No instance waits that is ready in Kubernetes already, and none while fewer than `min_ready`, or "
        "none, are ready. One pass (`bridge sync`) has no history and does not wait.",
    )
    min_ready: Annotated[int | str, BeforeValidator(number_or_percent)] | None = Field(
        None,
        description="While fewer instances of the service would be ready than this number or percentage, none that is "
        "ready turns not ready for its health; those that Consul no longer lists go. `1` keeps the last ready one. "
        "Right for a service whose checks are less reliable than the service itself; wrong for an elected primary, "
        "where it keeps a dead or demoted one ready.",
    )


class RuleSettings(Section):
    """Which services are mirrored, where to, and how."""

    name: Plain = Field("", description="A name for people; shown by `bridge explain`.")
    services: tuple[Annotated[str, AfterValidator(service_glob)], ...] = Field(
        (), description="Shell globs on the Consul name (`radosgw*`). Empty: every service."
    )
    tags: tuple[Filled, ...] = Field(
        (),
        description="Tags that an instance must have, all of them. Tags, `meta` and `filter` select instances: while "
        "none is selected a Service that was made stays, with empty endpoints, and none is created.",
    )
    meta: dict[str, str] = Field({}, description="Service meta that an instance must have.")
    filter: Plain = Field(
        "",
        description="An expression of Consul's own filter language, evaluated by Consul for each instance. "
        "`Service.Port` is 0 for an instance that registers several ports, and no selector reaches those.",
    )
    continue_: bool | None = Field(
        None,
        alias="continue",
        description="Whether the rules behind this one see the services that it names. Default: when it has `tags`, "
        "`meta` or a `filter`, which leave something of a service to others. Where two rules send something to one "
        "Service, the first has it (`bridge check` says so).",
    )
    datacenters: tuple[Filled, ...] = Field(
        (), description="Datacenters. Empty: `consul.datacenter`, else the agent's own."
    )
    combine: Literal["union", "failover"] | None = Field(
        None,
        description="What happens to services that several `datacenters` have under one name. `union`: one Service "
        "with the instances of all of them; where a node's meta names no zone (`zone_meta`), its datacenter is the "
        "topology zone. `failover`: the instances of the first of the `datacenters` that has enough ready. Default: "
        "one datacenter has the name, and those of the rest are reported as conflicts.",
    )
    failover_below: Annotated[int | str, BeforeValidator(number_or_percent)] = Field(
        1,
        description="With fewer ready instances than this a datacenter does not carry the traffic, if another one has "
        "as many: a number (`1`), or a percentage of the instances that it has itself (`30%`).",
    )
    failover_when: Literal["not-ready", "unreachable"] = Field(
        "not-ready",
        description="When another datacenter takes over: `not-ready` (Consul says that too few are ready; one that "
        "cannot be asked keeps the traffic if it had enough when it last answered), "
        "or `unreachable` (then too, and when it does not answer for "
        "`unreachable_after`). An answer that refuses or hides something is never a reason.",
    )
    unreachable_after: Annotated[float, duration("0", "1d")] = Field(
        30.0, description="For how long the datacenter must not have answered, with `failover_when: unreachable`."
    )
    failback_after: Annotated[float, duration("0", "7d")] = Field(
        60.0,
        description="How long a datacenter that comes before the one that carries the traffic must have had enough "
        "ready without interruption until it gets the traffic back.",
    )
    namespace: Plain = Field(
        "",
        description="Enterprise namespace. Default: `consul.namespace`. No other one is listed, so `services` must be "
        "full names there.",
    )
    partition: Plain = Field(
        "",
        description="Enterprise partition. Default: `consul.partition`. In another one `services` must be full names.",
    )
    peer: Plain = Field(
        "", description="Cluster peer that the services are imported from; `services` must be full names then."
    )
    to: DestinationRule = DestinationRule()
    instances: InstancesRule = InstancesRule()


class GrantSettings(Section):
    """What users of some namespaces may ask for by annotation. The first grant that covers a request counts."""

    namespaces: tuple[NamespaceGlob, ...] = Field(
        (), description="Shell globs of the namespaces whose users may ask. Empty: all that are watched."
    )
    namespace_selector: Annotated[str, BeforeValidator(label_selector)] = Field(
        "",
        description="Labels of the namespaces whose users may ask, as Kubernetes writes them: `team=a,env in (prod, "
        "qa),!legacy`, or a mapping with `matchLabels` and `matchExpressions`. Beside `namespaces` both have to match; "
        "for either of two write two grants. It takes the right to list and watch namespaces in the cluster, without "
        "which such a grant covers nothing new.",
    )
    services: tuple[Annotated[str, AfterValidator(service_glob)], ...] = Field(
        (), description="Shell globs of the Consul services that they may ask for. Empty: all."
    )
    datacenters: tuple[Annotated[str, AfterValidator(service_glob)], ...] = Field(
        (), description="Shell globs of the datacenters that they may name. Empty: all that the bridge may ask."
    )
    filter: bool = Field(
        False,
        description="Whether they may use `consul-bridge/filter`. A filter can tell its author of meta that no "
        "endpoint shows.",
    )
    allow_cidrs: tuple[Cidr, ...] = Field(
        (), description="The networks that their endpoints may be in, beside `guard.allow_cidrs`. Empty: all of those."
    )
    node_addresses: bool = Field(
        False,
        description="Whether their endpoints may be addresses of this cluster's own nodes. They are known where the "
        "bridge may list nodes; what Consul has on a node that `kubernetes.nodes` names may have that node's.",
    )
