"""The sections of the settings: every key with its type, bounds, default, flag, environment names and description.

The environment, the reference's tables and the chart's schema are made of these declarations. Flags name the setting
that they stand for and repeat its default in their help. What rules and grants consist of stands in
`bridge.config.rules`, the whole tree in `bridge.config.tree`. Its length is that of the descriptions, which are the
reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from bridge.config.types import (
    LABEL,
    LABEL_RULE,
    SUBDOMAIN,
    Cidr,
    Filled,
    NamespaceGlob,
    Percent,
    Plain,
    consul_address,
    duration,
    duration_or_never,
    duration_text,
    full_match,
    http_auth_text,
    listen_address,
    page_address,
    plain_text,
    size,
    switch_word,
    token_text,
    web_address,
    whole_number,
)
from bridge.core.model import METADATA_CIDRS


def leaf(
    default: Any,
    description: str,
    *,
    flag: str = "",
    env: str = "",
    also: Sequence[str] = (),
    secret: bool = False,
    was: str = "",
) -> Any:
    """A leaf of the tree. `env` is BRIDGE_<FLAG>, or BRIDGE_<PATH> without a flag, unless given; `also` are others'.

    `was` is the key that it had before: the error for that key, its flag or its variable names the new one.
    """
    extra: dict[str, Any] = {"flag": flag, "env": env, "also": list(also), "secret": secret, "was": was}
    return Field(default, description=description, json_schema_extra=extra)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class LogSettings(Section):
    """What the bridge writes to standard error."""

    format: Literal["console", "json"] = leaf(
        "console", "`console` is for people, `json` for machines (one object a line).", flag="--log-format"
    )
    level: Literal["debug", "info", "warning", "error"] = leaf(
        "info", "The least important thing that is still said. `debug` also shows tracebacks.", flag="--log-level"
    )


class ConsulSettings(Section):
    """How Consul is asked."""

    address: Annotated[str, AfterValidator(consul_address)] = leaf(
        "http://127.0.0.1:8500",
        "Where Consul's HTTP API is: [http[s]://]HOST[:PORT][/PATH] (a path where a proxy puts Consul below one), or "
        "unix:///SOCKET. An agent close by is best: it shares its connections.",
        flag="--consul-address",
        also=["CONSUL_HTTP_ADDR"],
    )
    datacenter: Annotated[str, AfterValidator(plain_text)] = leaf(
        "",
        "The datacenter that rules and annotated Services without one mean. Empty: the agent's own.",
        flag="--datacenter",
    )
    datacenters: tuple[Filled, ...] = leaf(
        (),
        "Further datacenters that the annotation `consul-bridge/datacenter` may ask for, beside our own and those that "
        "rules name. Each has its share of `connections`, and is asked only while some Service wants it.",
    )
    token: Annotated[SecretStr, AfterValidator(token_text)] = leaf(
        SecretStr(""),
        "ACL token. A file is better (`token_file`): it can be rotated and does not show in the environment.",
        env="BRIDGE_TOKEN",
        also=["CONSUL_HTTP_TOKEN"],
        secret=True,
    )
    token_file: Plain = leaf(
        "",
        "File with the ACL token, read again when it changes. Beats `token` of the same source.",
        flag="--token-file",
        also=["CONSUL_HTTP_TOKEN_FILE"],
    )
    auth_method: Plain = leaf(
        "",
        "Name of a Consul auth method to log in with, in place of a token (`consul acl auth-method`): the token that "
        "it gives is renewed before it ends, and logged out at a clean stop.",
    )
    auth_token_file: Plain = leaf(
        "",
        "File with the JWT for `auth_method`, read at every login. Empty: the pod's own service account token; better "
        "one with Consul as its audience, projected for this (component consul-login).",
    )
    http_auth: Annotated[SecretStr, AfterValidator(http_auth_text)] = leaf(
        SecretStr(""),
        "USER:PASSWORD for a proxy or balancer in front of Consul that asks for Basic authentication. Consul's own "
        "tokens are something else.",
        also=["CONSUL_HTTP_AUTH"],
        secret=True,
    )
    tls: bool | None = leaf(None, "Speak TLS although the address does not say https://.", also=["CONSUL_HTTP_SSL"])
    verify: bool = leaf(
        True,
        "Check Consul's certificate. Off: a host on the path can choose your endpoints.",
        also=["CONSUL_HTTP_SSL_VERIFY"],
    )
    ca_file: Plain = leaf(
        "",
        "PEM file with the CA of Consul's certificate; changes are followed. Empty: `ca_path`, else the system's.",
        also=["CONSUL_CACERT"],
    )
    ca_path: Plain = leaf(
        "",
        "Directory of PEM files with the CAs of Consul's certificate, in place of `ca_file`, which is stronger.",
        also=["CONSUL_CAPATH"],
    )
    client_cert: Plain = leaf(
        "",
        "PEM file with our certificate, where Consul asks for one. A new one is used from the next request on.",
        also=["CONSUL_CLIENT_CERT"],
    )
    client_key: Plain = leaf("", "PEM file with the key of `client_cert`.", also=["CONSUL_CLIENT_KEY"])
    tls_server_name: Plain = leaf(
        "",
        "The name that Consul's certificate must bear, when it is not the address's.",
        also=["CONSUL_TLS_SERVER_NAME"],
    )
    namespace: Plain = leaf("", "Enterprise namespace that rules without one mean.", also=["CONSUL_NAMESPACE"])
    partition: Plain = leaf("", "Enterprise partition that rules without one mean.", also=["CONSUL_PARTITION"])
    wait: Annotated[float, duration("1s", "60s")] = leaf(
        55.0,
        "How long a blocking query may wait for a change. At most 60 s: an agent keeps the connections of queries that "
        "we gave up taken for that long. A proxy in front of Consul with a shorter timeout shortens it by itself.",
    )
    max_answer: Annotated[int, size("1MiB", "4GiB")] = leaf(
        32 << 20,
        "The largest answer that is taken; decoded it needs about six times its size. All connections together hold "
        "one answer of this size and a quarter as much, so the default fits a memory limit of 512 MiB.",
    )
    connect_timeout: Annotated[float, duration("100ms", "5m")] = leaf(
        3.0, "How long connecting may take before Consul counts as unreachable."
    )
    timeout_margin: Annotated[float, duration("1s", "5m")] = leaf(
        15.0, "How much longer than `wait` (and Consul's jitter of a sixteenth) an answer may take."
    )
    max_stale: Annotated[float, duration("1s", "1d")] = leaf(
        60.0, "Any server may answer, but an answer that is older than this proves nothing and changes nothing."
    )
    connections: whole_number(2, 4096) = leaf(  # type: ignore[valid-type]
        64,
        "Connections to Consul at once. An agent takes 200 from one address (limits.http_max_conns_per_client), which "
        "other programs on this machine share.",
        flag="--connections",
    )


class KubernetesSettings(Section):
    """How Kubernetes is reached and written."""

    kubeconfig: Plain = leaf(
        "",
        "Kubeconfig file, or several joined by `:`. Empty: ~/.kube/config, then the pod's service account.",
        flag="--kubeconfig",
        also=["KUBECONFIG"],
    )
    context: Plain = leaf("", "Context in the kubeconfig. Empty: its current one.", flag="--context")
    watch_namespaces: tuple[
        Annotated[str, full_match(re.compile(rf"{LABEL.pattern}|\*"), f"* or {LABEL_RULE}")], ...
    ] = leaf(
        (),
        "Namespaces to look for objects of ours in, beside those that the rules name; `*`: all of them. What lies "
        "elsewhere is not seen, and so not cleaned up.",
        flag="--watch-namespace",
    )
    nodes: tuple[
        Annotated[str, full_match(re.compile(rf"({SUBDOMAIN.pattern})|\*"), "* or the name of a node")], ...
    ] = leaf(
        (),
        "Nodes of this cluster that are Consul nodes of the same name as well: their endpoints get `nodeName` in "
        "EndpointSlices. `*`: ask the API server for all nodes, which needs the right to list nodes in the cluster.",
    )
    request_timeout: Annotated[float, duration("1s", "5m")] = leaf(
        10.0, "How long the API server may take to answer a request (a watch is bounded otherwise)."
    )
    connect_timeout: Annotated[float, duration("100ms", "5m")] = leaf(
        3.0, "How long connecting may take before the API server counts as unreachable."
    )
    max_answer: Annotated[int, size("1MiB", "1GiB")] = leaf(
        32 << 20,
        "The largest answer of the API server, and the largest event of a watch, that is taken. A page of a list that "
        "is larger is asked for in smaller ones.",
    )
    writers: whole_number(1, 256) = leaf(  # type: ignore[valid-type]
        16, "Objects that are written at once. Above 16 the API server, not the bridge, is the limit.", flag="--writers"
    )


class DnsSettings(Section):
    """How host names that stand in Consul as addresses are resolved (A and AAAA, by the system's resolver)."""

    resolve: bool = leaf(
        True,
        "Resolve host names. Off: an instance with a name for an address is skipped. The owner of a name chooses among "
        "the addresses that `guard` allows.",
    )
    ttl: Annotated[float, duration("1s", "1h")] = leaf(
        30.0, "How long an answer counts; a name that fails keeps its last good answer for as long as it fails."
    )
    retry: Annotated[float, duration("100ms", "1h")] = leaf(
        1.0, "The first wait after a lookup that failed; it grows up to `ttl`."
    )
    max_concurrent: whole_number(1, 64) = leaf(  # type: ignore[valid-type]
        8, "Names that are looked up at once, by threads of their own: DNS delays no other service.", was="parallel"
    )
    wait: Annotated[float, duration("0", "5m")] = leaf(
        10.0, "How long a one-shot command waits for all names together; what has no answer then is left as it is."
    )


class RunSettings(Section):
    """What only `bridge run` needs."""

    listen: Annotated[str, AfterValidator(listen_address)] = leaf(
        "127.0.0.1:9480",
        "HOST:PORT of /healthz, /readyz, /metrics, /api/status and the page; :PORT is all addresses of both families. "
        "There is no authentication: loopback unless something guards it. Port 0: any free one (the log says which).",
        flag="--listen",
    )
    page: Annotated[str, BeforeValidator(switch_word), AfterValidator(page_address)] = leaf(
        "on",
        "The page, /api/status and what belongs to them: `on` (at `listen`), `off`, or a HOST:PORT of their own, so "
        "that `listen` answers probes and scrapes alone.",
    )
    consul_ui: Annotated[str, AfterValidator(web_address)] = leaf(
        "",
        "The address of Consul's UI as a reader's browser reaches it (https://consul.example.com/ui): the page links "
        "services there. Empty: no links.",
    )
    resync: Annotated[float, duration("10s", "1d")] = leaf(
        300.0,
        "How often everything is compared, so that a missed event costs latency and never correctness.",
        flag="--resync",
    )
    removal_grace_period: Annotated[float, duration("0", "7d")] = leaf(
        30.0,
        "How long a service must be gone from Consul before its objects are removed: VMs that re-register come back "
        "within seconds.",
        flag="--removal-grace-period",
        was="grace",
    )
    leader_elect: bool = leaf(
        False, "Elect a leader among several replicas, so that only one writes.", flag="--leader-elect"
    )
    shards: whole_number(1, 64) = leaf(  # type: ignore[valid-type]
        1,
        "Spread services over so many leases, so that several replicas share the writing; above 1 leaders are elected.",
        flag="--shards",
    )
    events: bool = leaf(
        True, "Write Kubernetes Events on the objects concerned: conflicts, skipped instances, holds, refused writes."
    )
    lease_namespace: str = leaf(
        "",
        "Where the leases are; default: the pod's namespace, or the context's. The same for all replicas.",
    )
    instance_name: Plain = leaf(
        "",
        "Name of the installation that this replica belongs to, the same before and after a rollout (NAMESPACE/NAME). "
        "Leader election uses it to detect replicas of two installations with one owner id: only one of them writes, "
        "and both report that. What is written carries it, `bridge sync` too: what another installation wrote is not "
        "deleted. Empty: not known, and nothing depends on it.",
        was="installation",
    )
    lease_duration: Annotated[float, duration("3s", "10m")] = leaf(
        15.0,
        "How long a replica that vanished keeps its shards. One that cannot renew stops writing when two thirds are "
        "over. Whole seconds; the same for all replicas.",
    )


class GuardSection(Section):
    """How much may be taken away, and how fast.

    Endpoints are added up per scope: what rules mirror from a datacenter, and the annotated Services of each namespace.
    A hold is reported with the command that releases it (`bridge sync --force`).
    """

    removal_threshold: Percent = leaf(
        50,
        "Removals are held when Consul drops more than this percentage of a scope's ready endpoints within `window`.",
    )
    removal_minimum: whole_number(0, 1_000_000) = leaf(  # type: ignore[valid-type]
        10,
        "Fewer ready endpoints of a scope than this may always go, or turn not ready: the guard is about catastrophes.",
    )
    panic_threshold: Percent = leaf(
        80,
        "Endpoints stay ready when more than this percentage of a scope's would turn not ready within `window`: a "
        "fault of Consul is then more likely than one of the instances. 0 switches it off.",
        flag="--panic-threshold",
    )
    window: Annotated[float, duration("1s", "1h")] = leaf(60.0, "Over how long losses are added up.")
    restore_hold: Annotated[float, duration("0", "1d")] = leaf(
        600.0,
        "How long every removal is held after Consul was rebuilt or restored (its index went backwards): agents "
        "register again by themselves within minutes.",
        flag="--restore-hold",
        was="rebuild_grace",
    )
    hold_release: Annotated[float | None, BeforeValidator(duration_or_never)] = leaf(
        None,
        "After how long a hold ends whatever Consul says; `never`: when Consul recovers, when the losses of its scope "
        "are below the thresholds for a `window`, or when it is forced.",
        flag="--hold-release",
    )
    allow_cidrs: tuple[Cidr, ...] = leaf(
        (),
        "The networks that endpoints may be in, whatever a rule or a user's Service says. Empty: all. Clients that may "
        "register services in Consul choose addresses: the VMs' networks here bound that.",
    )
    deny_cidrs: tuple[Cidr, ...] = leaf(
        METADATA_CIDRS,
        "No endpoint in these networks, whatever a rule says. Default: metadata services of clouds (link-local ones "
        "are refused in any case). A list here replaces the default; `extra_deny_cidrs` adds to it.",
    )
    extra_deny_cidrs: tuple[Cidr, ...] = leaf(
        (),
        "Further networks without endpoints, beside `deny_cidrs`: the cluster's Service and pod ranges, the nodes' "
        "networks. The API server's own address is always refused in a cluster.",
    )

    namespaces: tuple[NamespaceGlob, ...] = leaf(
        (),
        "Shell globs of the namespaces that may be written, by rules and for annotated Services. Empty: all that the "
        "rights allow.",
    )
    deny_namespaces: tuple[NamespaceGlob, ...] = leaf(
        (),
        "Shell globs of namespaces that are never written. Besides, a placeholder in `to.namespace` never leads to "
        "`default`, `kube-*` or the bridge's own namespace unless `namespaces` names it.",
    )


def first_wait(default: float) -> Any:
    return leaf(default, "The first wait, and the shortest.", was="floor")


def longest_wait(default: float, text: str = "The longest wait.") -> Any:
    return leaf(default, text, was="cap")


class BackoffSettings(Section):
    """Exponential backoff with full jitter."""

    initial_interval: Annotated[float, duration("1ms", "1h")] = first_wait(0.1)
    max_interval: Annotated[float, duration("1ms", "1d")] = longest_wait(
        5.0, "The longest wait from a request that failed to the next; one that hangs fails when its time is up."
    )
    multiplier: Annotated[float, Field(ge=1.0, le=10.0)] = leaf(2.0, "How much longer each wait may be than the last.")

    @model_validator(mode="after")
    def _in_order(self) -> BackoffSettings:
        first, longest = self.initial_interval, self.max_interval
        if first > longest:
            texts = duration_text(first), duration_text(longest)
            raise ValueError("initial_interval ({}) must not be above max_interval ({})".format(*texts))
        return self


class _KubernetesBackoff(BackoffSettings):
    """For the API server as a whole."""


class _ObjectBackoff(BackoffSettings):
    """For one object that cannot be written."""

    initial_interval: Annotated[float, duration("1ms", "1h")] = first_wait(0.05)
    max_interval: Annotated[float, duration("1ms", "1d")] = longest_wait(60.0)


class _PermanentBackoff(BackoffSettings):
    """For what will not get better by itself (forbidden, invalid)."""

    initial_interval: Annotated[float, duration("1ms", "1h")] = first_wait(5.0)
    max_interval: Annotated[float, duration("1ms", "1d")] = longest_wait(300.0)


class RetrySettings(Section):
    """How failed requests are retried, separately for each side. `Retry-After` is honoured in any case."""

    attempts: whole_number(1, 100) = leaf(5, "Tries per request of a one-shot command; `bridge run` never gives up.")  # type: ignore[valid-type]
    consul: BackoffSettings = BackoffSettings()
    kubernetes: _KubernetesBackoff = _KubernetesBackoff()
    object: _ObjectBackoff = _ObjectBackoff()
    permanent: _PermanentBackoff = _PermanentBackoff()


class SyncSettings(Section):
    """What only the one-shot commands need. They have keys so that every flag has one; flags suit them better."""

    output: Literal["table", "json", "yaml", "diff"] = leaf("table", "How the report is printed.", flag="--output")
    dry_run: bool = leaf(False, "Print the plan and stop.", flag="--dry-run")
    exit_code: bool = leaf(False, "With --dry-run: exit status 4 when there are changes.", flag="--exit-code")
    all: bool = leaf(False, "Of `bridge sync`: show services that stay as they are, too.", flag="--all")
    yes: bool = leaf(False, "Ask nothing.", flag="--yes")
    watch: bool = leaf(False, "Of `bridge status`: show it again and again until Ctrl-C.", flag="--watch")
    interval: Annotated[float, duration("500ms", "1h")] = leaf(
        2.0,
        "How long `bridge status --watch` waits between two readings; where reading takes longer than this, as long as "
        "reading took.",
        flag="--interval",
    )
    offline: bool = leaf(
        False, "Of `bridge check`: look at the settings and rules alone, without any server.", flag="--offline"
    )
    force: bool = leaf(
        False,
        "Apply what the removal guard would hold; `--service` and `--namespace` narrow it, also beside the rules of a "
        "file, to what is mirrored there already, and everything else is left alone. Look at the dry run first; never "
        "leave this on.",
        flag="--force",
    )
