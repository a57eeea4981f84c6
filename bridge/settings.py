"""The user's settings: one frozen tree, validated before anything is read or written.

From the strongest to the weakest:

1. flags of the command line
2. `BRIDGE_…` environment variables
3. Consul's own variables (`CONSUL_HTTP_ADDR`, …) and `KUBECONFIG`
4. the YAML file (`--config`, `BRIDGE_CONFIG`)
5. defaults

The environment as a whole beats the file, because the same file (a ConfigMap, an image) is deployed to several places
and the environment says which one this is. That has a danger: a variable that is set for other tools may silently
redirect the bridge. So wherever one of Consul's or Kubernetes' own variables replaces what the file says, a note
tells it (`Settings.notes`).

The tree knows types and rules only. `load` brings the sources together (pydantic-settings merges them) and turns what
pydantic finds into sentences that name the place. What other rooms need they get as their own plain dataclasses.
Importing this module costs 0.1 s (pydantic): the command line does it only when a command really runs.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import shlex
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bridge import yaml_file
from bridge.core import labels, select
from bridge.core.model import (
    METADATA_CIDRS,
    Adopt,
    Bounds,
    Destination,
    InstanceRules,
    Output,
    Policy,
    Rule,
    Treatment,
)
from bridge.errors import ConfigurationError
from bridge.yaml_file import Document, Key, kind_of

if TYPE_CHECKING:
    from bridge.consul.client import ConsulConfig
    from bridge.controller.controller import RunOptions
    from bridge.core.annotated import Annotated as AnnotatedPolicy
    from bridge.core.guard import GuardSettings
    from bridge.core.select import Only
    from bridge.kube.client import KubeConfig
    from bridge.kube.election import ElectionConfig
    from bridge.oneshot.check import CheckOptions
    from bridge.oneshot.sync import SyncOptions
    from bridge.pipeline.dns import ResolverSettings
    from bridge.retry import RetryPolicy

# --------------------------------------------------------------------------- texts and what they mean

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_NAME = _LABEL_VALUE
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_TAGGED_ADDRESS = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_PLACEHOLDERS = ("service", "datacenter", "namespace", "partition")
_RESERVED = ("consul-bridge/", "endpointslice.kubernetes.io/", "endpoints.kubernetes.io/")
_RESERVED_KEYS = (
    "app.kubernetes.io/managed-by",
    "kubernetes.io/service-name",
    "service.kubernetes.io/headless",
    "control-plane.alpha.kubernetes.io/leader",  # Endpoints with it are never mirrored into slices
)


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `5m`, `1h30m`, `250ms`, `0`. Raises ValueError with a sentence."""
    compact = text.strip()
    if compact == "0":
        return 0.0
    pieces = _DURATION.findall(compact)
    if pieces and "".join(number + unit for number, unit in pieces) == compact:
        return float(sum(float(number) * _UNITS[unit] for number, unit in pieces))
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", compact):
        raise ValueError(f"has no unit; write {compact}s, {compact}m or {compact}h")
    raise ValueError("is not a duration; durations are written 250ms, 30s, 5m, 1h30m")


def duration_text(seconds: float) -> str:
    """The shortest way to write a duration: `1h30m`, `5m`, `30s`, `250ms`."""
    if seconds == 0:
        return "0s"
    milliseconds = round(seconds * 1000)
    text = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, size)
        text += f"{count}{unit}" if count else ""
    return text or f"{seconds * 1000:g}ms"


def _duration(minimum: str = "0", maximum: str = "366d") -> BeforeValidator:
    low, high = parse_duration(minimum), parse_duration(maximum)

    def check(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"must be a duration (30s, 5m, 1h30m), not {kind_of(value)}")  # noqa: TRY004
        seconds = parse_duration(str(value))
        if not low <= seconds <= high:
            raise ValueError(f"must be between {duration_text(low)} and {duration_text(high)}")
        return seconds

    return BeforeValidator(check)


def _or_never(value: object) -> object:
    if value is None or value == "never":
        return None
    return _duration("1s").func(value)  # type: ignore[call-arg]


def _percent(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"must be a percentage (50%), not {kind_of(value)}")  # noqa: TRY004
    number = str(value).strip().removesuffix("%").strip()
    if not re.fullmatch(r"[0-9]{1,3}", number) or int(number) > 100:
        raise ValueError("must be a percentage between 0% and 100%, without decimals")
    return int(number)


def _whole(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not true/false")  # noqa: TRY004
    return value


def _plain(value: str) -> str:
    """Text without control characters or blanks around it."""
    if any(not c.isprintable() for c in value):
        raise ValueError("has control characters in it")
    if value != value.strip():
        raise ValueError("has blanks around it")
    return value


def _filled(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return _plain(value)


def _full_match(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    return AfterValidator(check)


_LABEL_RULE: Final = "a DNS label (lower-case letters, digits and -, at most 63)"
_VALUE_RULE: Final = "a label value (letters, digits, -, _ and ., at most 63, a letter or digit at both ends)"


def _template(value: str) -> str:
    """A name with {placeholders}; only those that we know, and braces nowhere else."""
    try:
        parts = list(string.Formatter().parse(value))
    except ValueError as error:
        raise ValueError(f"is not a template: {error}") from error
    for literal, field, spec, conversion in parts:
        if "{" in literal or "}" in literal or spec or conversion:
            raise ValueError("is not a template: braces only around one of " + _placeholders())
        if field is not None and field not in _PLACEHOLDERS:
            raise ValueError(f"knows no {{{field}}}{_did_you_mean(field, _PLACEHOLDERS)}; there are {_placeholders()}")
    if not value:
        raise ValueError("must not be empty")
    return value


def _placeholders() -> str:
    return " ".join(f"{{{p}}}" for p in _PLACEHOLDERS)


def _name_template(value: str) -> str:
    _template(_filled(value))
    fixed = re.sub(r"\{[a-z]+\}", "", value)
    if not re.fullmatch(r"[a-z0-9-]*", fixed):
        raise ValueError("may have lower-case letters, digits and - beside its placeholders")
    if "{" not in value and not _LABEL.fullmatch(value):
        raise ValueError(f"must be {_LABEL_RULE}")
    return value


def _glob(value: str) -> str:
    if not value:
        raise ValueError("must not be empty; '*' selects every service")
    return _plain(value)


def _label_selector(value: object) -> object:
    """The string form of a label selector; a mapping is read as Kubernetes' own."""
    if isinstance(value, str):
        labels.parse(value)
        return value.strip()
    if not isinstance(value, dict):
        raise ValueError(f"must be a label selector (team=a,env in (prod, qa)), not {kind_of(value)}")  # noqa: TRY004
    if strange := sorted(str(key) for key in value.keys() - {"matchLabels", "matchExpressions"}):
        raise ValueError(f"has the key {strange[0]!r}; there are matchLabels, matchExpressions")
    wanted, expressions = value.get("matchLabels") or {}, value.get("matchExpressions") or []
    if not isinstance(wanted, dict) or not all(isinstance(text, str) for pair in wanted.items() for text in pair):
        raise ValueError("has matchLabels that are no mapping of text to text; put true, false and numbers in quotes")
    found = []
    for entry in expressions if isinstance(expressions, list) else [None]:
        if not isinstance(entry, dict) or not {"key", "operator"} <= entry.keys() <= {"key", "operator", "values"}:
            raise ValueError("has matchExpressions that are no list of {key, operator, values}")
        values = entry.get("values") or []
        if not isinstance(values, list):
            raise ValueError("has values in matchExpressions that are no list")  # noqa: TRY004
        if not all(isinstance(text, str) for text in (entry["key"], entry["operator"], *values)):
            raise ValueError("has a value in matchExpressions that is no text; put true, false and numbers in quotes")
        found.append((entry["key"], entry["operator"], values))
    return labels.from_fields(wanted, found)


def _cidr(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError("is not an IP network like 10.0.0.0/8 or fd00::/8") from error
        raise ValueError(f"has bits of a host in it; the network is {network}") from error


def _metadata_key(key: str) -> str:
    """A key as Kubernetes takes it, and none of those that the bridge itself or the control plane sets."""
    prefix, slash, name = key.rpartition("/")
    if not _LABEL_NAME.fullmatch(name) or (slash and not (_SUBDOMAIN.fullmatch(prefix) and len(prefix) <= 253)):
        raise ValueError("is not a key that Kubernetes takes ([prefix/]name)")
    if key.startswith(_RESERVED) or key in _RESERVED_KEYS:
        raise ValueError("is set by the bridge or by Kubernetes itself")
    return key


def _label(value: str) -> str:
    if value and not _LABEL_VALUE.fullmatch(value):
        raise ValueError(f"must be empty or {_VALUE_RULE}")
    return value


def _source_of_value(value: str) -> str:
    """Where a label or annotation gets its value from."""
    kind, colon, name = value.partition(":")
    if value == "tags" or (kind in ("meta", "node-meta", "tag") and colon and name):
        return _plain(value)
    raise ValueError(
        "must be meta:KEY, node-meta:KEY, tag:PREFIX (the rest of the tag that begins so) or tags (all of them)"
    )


def _token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise ValueError("a token has neither blanks nor line ends nor letters outside of ASCII")
    return value


def _consul_address(value: str) -> str:
    """`[scheme://]host[:port][/prefix]` or `unix:///path`, as CONSUL_HTTP_ADDR has it."""
    value = _filled(value)
    if value.startswith("unix:"):
        if not re.fullmatch(r"unix:///.*[^/]", value):
            raise ValueError("must have the socket's whole path: unix:///run/consul/http.sock")
        return value
    scheme, rest = value.split("://", 1) if "://" in value else ("", value)
    if scheme not in ("", "http", "https"):
        raise ValueError("must begin with http://, https:// or unix://")
    if "@" in rest:  # first of all: the other mistakes quote a part
        raise ValueError("must not have a user and password in it; use consul.http_auth, or a token")
    try:
        parts = urlsplit(f"{scheme or 'http'}://{rest}")
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise ValueError(f"is not an address: {error}; write HOST:PORT or http://HOST:PORT") from error
    if not host or parts.query or parts.fragment or port == 0:
        raise ValueError("is not an address; write HOST:PORT or http://HOST:PORT")
    if ":" in host:
        ipaddress.IPv6Address(host.split("%")[0])
    elif not _HOST.fullmatch(host):
        raise ValueError("has a host name that cannot be; write HOST:PORT or http://HOST:PORT")
    return value.rstrip("/")


def _http_auth(value: SecretStr) -> SecretStr:
    if any(not c.isprintable() for c in value.get_secret_value()):
        raise ValueError("has control characters in it")
    return value


_SIZE = re.compile(r"([0-9]+)\s*(KiB|MiB|GiB|Ki|Mi|Gi)")


def parse_size(text: str) -> int:
    """Bytes of `64MiB`, `512KiB`, `1Gi`. Raises ValueError with a sentence."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError("is not a size; sizes are written 512KiB, 32MiB, 1GiB")
    return int(found[1]) << {"K": 10, "M": 20, "G": 30}[found[2][0]]


def size_text(count: int) -> str:
    """The shortest way to write a size: `32MiB`."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count % (1 << shift) == 0:
            return f"{count >> shift}{unit}"
    return str(count)


def _size(minimum: str, maximum: str) -> BeforeValidator:
    low, high = parse_size(minimum), parse_size(maximum)

    def check(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"must be a size (32MiB), not {kind_of(value)}")  # noqa: TRY004
        count = parse_size(str(value))
        if not low <= count <= high:
            raise ValueError(f"must be between {size_text(low)} and {size_text(high)}")
        return count

    return BeforeValidator(check)


def _listen(value: str) -> str:
    host, _, port = value.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or not bare:
        raise ValueError("must be HOST:PORT, for instance 127.0.0.1:9480 or [::1]:9480 (port 0: any free one)")
    if ":" in bare:
        if not host.startswith("["):
            raise ValueError(f"must have its IPv6 address in brackets: [{bare}]:{port}")
        ipaddress.IPv6Address(bare)
    elif not _HOST.fullmatch(bare):
        raise ValueError("must be HOST:PORT, for instance 127.0.0.1:9480")
    return value


def _switch_word(value: object) -> object:
    """YAML reads on and off as true and false."""
    return ("off", "on")[value] if isinstance(value, bool) else value


def _page(value: str) -> str:
    if value in ("on", "off"):
        return value
    try:
        return _listen(value)
    except ValueError:
        raise ValueError("must be on, off or HOST:PORT, for instance 127.0.0.1:9481") from None


Duration = Annotated[float, _duration()]
Percent = Annotated[int, BeforeValidator(_percent)]
Plain = Annotated[str, AfterValidator(_plain)]
Filled = Annotated[str, AfterValidator(_filled)]
Namespace = Annotated[str, _full_match(_LABEL, f"a namespace: {_LABEL_RULE}")]
NamespaceGlob = Annotated[
    str, _full_match(re.compile(r"[-a-z0-9*?\[\]!]{1,63}"), "a namespace or a shell glob of namespaces (team-*)")
]
NameTemplate = Annotated[str, AfterValidator(_name_template)]
Cidr = Annotated[str, AfterValidator(_cidr)]
MetadataKey = Annotated[str, AfterValidator(_metadata_key)]
LabelValue = Annotated[str, AfterValidator(_label)]
ValueSource = Annotated[str, AfterValidator(_source_of_value)]
ProtocolSource = Annotated[str, _full_match(re.compile(r"tag:.+|meta:[^=]+=.*"), "tag:TAG or meta:KEY=VALUE")]


def _number(minimum: int, maximum: int) -> Any:
    return Annotated[int, BeforeValidator(_whole), Field(ge=minimum, le=maximum)]


# --------------------------------------------------------------------------- the tree


def _setting(
    default: Any, description: str, *, flag: str = "", env: str = "", also: Sequence[str] = (), secret: bool = False
) -> Any:
    """A leaf of the tree. `env` is BRIDGE_<FLAG>, or BRIDGE_<PATH> without a flag, unless given; `also` are others'."""
    extra: dict[str, Any] = {"flag": flag, "env": env, "also": list(also), "secret": secret}
    return Field(default, description=description, json_schema_extra=extra)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class LogSettings(_Section):
    """What the bridge writes to standard error."""

    format: Literal["console", "json"] = _setting(
        "console", "`console` is for people, `json` for machines (one object a line).", flag="--log-format"
    )
    level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "The least important thing that is still said. `debug` also shows tracebacks.", flag="--log-level"
    )


class ConsulSettings(_Section):
    """How Consul is asked."""

    address: Annotated[str, AfterValidator(_consul_address)] = _setting(
        "http://127.0.0.1:8500",
        "Where Consul's HTTP API is: [http[s]://]HOST[:PORT][/PATH] (a path where a proxy puts Consul below one), or "
        "unix:///SOCKET. An agent close by is best: it shares its connections.",
        flag="--consul-address",
        also=["CONSUL_HTTP_ADDR"],
    )
    datacenter: Annotated[str, AfterValidator(_plain)] = _setting(
        "",
        "The datacenter that rules and annotated Services without one mean. Empty: the agent's own.",
        flag="--datacenter",
    )
    datacenters: tuple[Filled, ...] = _setting(
        (),
        "Further datacenters that the annotation `consul-bridge/datacenter` may ask for, beside our own and those that "
        "rules name. Each has its share of `connections`, and is asked only while some Service wants it.",
    )
    token: Annotated[SecretStr, AfterValidator(_token)] = _setting(
        SecretStr(""),
        "ACL token. A file is better (`token_file`): it can be rotated and does not show in the environment.",
        env="BRIDGE_TOKEN",
        also=["CONSUL_HTTP_TOKEN"],
        secret=True,
    )
    token_file: Plain = _setting(
        "",
        "File with the ACL token, read again when it changes. Beats `token` of the same source.",
        flag="--token-file",
        also=["CONSUL_HTTP_TOKEN_FILE"],
    )
    auth_method: Plain = _setting(
        "",
        "Name of a Consul auth method to log in with, in place of a token (`consul acl auth-method`): the token that "
        "it gives is renewed before it ends, and logged out at a clean stop.",
    )
    auth_token_file: Plain = _setting(
        "",
        "File with the JWT for `auth_method`, read at every login. Empty: the pod's own service account token; better "
        "one with Consul as its audience, projected for this (component consul-login).",
    )
    http_auth: Annotated[SecretStr, AfterValidator(_http_auth)] = _setting(
        SecretStr(""),
        "USER:PASSWORD for a proxy or balancer in front of Consul that asks for Basic authentication. Consul's own "
        "tokens are something else.",
        also=["CONSUL_HTTP_AUTH"],
        secret=True,
    )
    tls: bool | None = _setting(None, "Speak TLS although the address does not say https://.", also=["CONSUL_HTTP_SSL"])
    verify: bool = _setting(
        True,
        "Check Consul's certificate. Off, anybody in between can choose your endpoints.",
        also=["CONSUL_HTTP_SSL_VERIFY"],
    )
    ca_file: Plain = _setting(
        "",
        "PEM file with the CA of Consul's certificate; changes are followed. Empty: `ca_path`, else the system's.",
        also=["CONSUL_CACERT"],
    )
    ca_path: Plain = _setting(
        "",
        "Directory of PEM files with the CAs of Consul's certificate, in place of `ca_file`, which is stronger.",
        also=["CONSUL_CAPATH"],
    )
    client_cert: Plain = _setting(
        "",
        "PEM file with our certificate, where Consul asks for one. A new one is used from the next request on.",
        also=["CONSUL_CLIENT_CERT"],
    )
    client_key: Plain = _setting("", "PEM file with the key of `client_cert`.", also=["CONSUL_CLIENT_KEY"])
    tls_server_name: Plain = _setting(
        "",
        "The name that Consul's certificate must bear, when it is not the address's.",
        also=["CONSUL_TLS_SERVER_NAME"],
    )
    namespace: Plain = _setting("", "Enterprise namespace that rules without one mean.", also=["CONSUL_NAMESPACE"])
    partition: Plain = _setting("", "Enterprise partition that rules without one mean.", also=["CONSUL_PARTITION"])
    wait: Annotated[float, _duration("1s", "60s")] = _setting(
        55.0,
        "How long a blocking query may wait for a change. At most 60 s: an agent keeps the connections of queries that "
        "we gave up taken for that long. A proxy in front of Consul with a shorter timeout shortens it by itself.",
    )
    max_answer: Annotated[int, _size("1MiB", "4GiB")] = _setting(
        32 << 20,
        "The largest answer that is taken; decoded it needs about six times its size. All connections together hold "
        "one answer of this size and a quarter as much, so the default fits a memory limit of 512 MiB.",
    )
    connect_timeout: Annotated[float, _duration("100ms", "5m")] = _setting(
        3.0, "How long connecting may take before Consul counts as unreachable."
    )
    timeout_margin: Annotated[float, _duration("1s", "5m")] = _setting(
        15.0, "How much longer than `wait` (and Consul's jitter of a sixteenth) an answer may take."
    )
    max_stale: Annotated[float, _duration("1s", "1d")] = _setting(
        60.0, "Any server may answer, but an answer that is older than this proves nothing and changes nothing."
    )
    connections: _number(2, 4096) = _setting(  # type: ignore[valid-type]
        64,
        "Connections to Consul at once. An agent takes 200 from one address (limits.http_max_conns_per_client), which "
        "other programs on this machine share.",
        flag="--connections",
    )


class KubernetesSettings(_Section):
    """How Kubernetes is reached and written."""

    kubeconfig: Plain = _setting(
        "",
        "Kubeconfig file, or several joined by `:`. Empty: ~/.kube/config, then the pod's service account.",
        flag="--kubeconfig",
        also=["KUBECONFIG"],
    )
    context: Plain = _setting("", "Context in the kubeconfig. Empty: its current one.", flag="--context")
    watch_namespaces: tuple[
        Annotated[str, _full_match(re.compile(rf"{_LABEL.pattern}|\*"), f"* or {_LABEL_RULE}")], ...
    ] = _setting(
        (),
        "Namespaces to look for objects of ours in, beside those that the rules name; `*`: all of them. What lies "
        "elsewhere is not seen, and so not cleaned up.",
        flag="--watch-namespace",
    )
    nodes: tuple[
        Annotated[str, _full_match(re.compile(rf"({_SUBDOMAIN.pattern})|\*"), "* or the name of a node")], ...
    ] = _setting(
        (),
        "Nodes of this cluster that are Consul nodes of the same name as well: their endpoints get `nodeName` in "
        "EndpointSlices. `*`: ask the API server for all nodes, which needs the right to list nodes in the cluster.",
    )
    request_timeout: Annotated[float, _duration("1s", "5m")] = _setting(
        10.0, "How long the API server may take to answer a request (a watch is bounded otherwise)."
    )
    connect_timeout: Annotated[float, _duration("100ms", "5m")] = _setting(
        3.0, "How long connecting may take before the API server counts as unreachable."
    )
    max_answer: Annotated[int, _size("1MiB", "1GiB")] = _setting(
        32 << 20,
        "The largest answer of the API server, and the largest event of a watch, that is taken. A page of a list that "
        "is larger is asked for in smaller ones.",
    )
    writers: _number(1, 256) = _setting(  # type: ignore[valid-type]
        16, "Objects that are written at once. Above 16 the API server, not the bridge, is the limit.", flag="--writers"
    )


class DnsSettings(_Section):
    """How host names that stand in Consul as addresses are resolved (A and AAAA, by the system's resolver)."""

    resolve: bool = _setting(
        True,
        "Resolve host names. Off: an instance with a name for an address is skipped. Whoever controls a name chooses "
        "among the addresses that `guard` allows.",
    )
    ttl: Annotated[float, _duration("1s", "1h")] = _setting(
        30.0, "How long an answer counts; a name that fails keeps its last good answer for as long as it fails."
    )
    retry: Annotated[float, _duration("100ms", "1h")] = _setting(
        1.0, "The first wait after a lookup that failed; it grows up to `ttl`."
    )
    parallel: _number(1, 64) = _setting(  # type: ignore[valid-type]
        8, "Names that are looked up at once, by threads of their own: DNS delays no other service."
    )
    wait: Annotated[float, _duration("0", "5m")] = _setting(
        10.0, "How long a one-shot command waits for all names together; what has no answer then is left as it is."
    )


class RunSettings(_Section):
    """What only `bridge run` needs."""

    listen: Annotated[str, AfterValidator(_listen)] = _setting(
        "127.0.0.1:9480",
        "HOST:PORT of /healthz, /readyz, /metrics, /api/status and the page. There is no authentication: loopback "
        "unless something guards it. Port 0: any free one (the log says which).",
        flag="--listen",
    )
    page: Annotated[str, BeforeValidator(_switch_word), AfterValidator(_page)] = _setting(
        "on",
        "The page, /api/status and what belongs to them: `on` (at `listen`), `off`, or a HOST:PORT of their own, so "
        "that `listen` answers probes and scrapes alone.",
    )
    resync: Annotated[float, _duration("10s", "1d")] = _setting(
        300.0,
        "How often everything is compared, so that a missed event costs latency and never correctness.",
        flag="--resync",
    )
    grace: Annotated[float, _duration("0", "7d")] = _setting(
        30.0,
        "How long a service must be gone from Consul before its objects are removed: VMs that re-register come back "
        "within seconds.",
        flag="--grace",
    )
    leader_elect: bool = _setting(
        False, "Elect a leader among several replicas, so that only one writes.", flag="--leader-elect"
    )
    shards: _number(1, 64) = _setting(  # type: ignore[valid-type]
        1,
        "Spread services over so many leases, so that several replicas share the writing; above 1 leaders are elected.",
        flag="--shards",
    )
    events: bool = _setting(
        True, "Write Kubernetes Events on the objects concerned: conflicts, skipped instances, holds, refused writes."
    )
    lease_namespace: str = _setting(
        "",
        "Where the leases are; default: the pod's namespace, or the context's. The same for all replicas.",
    )
    installation: Plain = _setting(
        "",
        "Name of the installation that this replica belongs to, the same before and after a rollout (NAMESPACE/NAME). "
        "Replicas of two installations with one owner id are told by it where leaders are elected: only one of them "
        "writes, and both say so. What is written carries it, `bridge sync` too: what another installation wrote is "
        "not deleted. Empty: not known, and nothing depends on it.",
    )
    lease_duration: Annotated[float, _duration("3s", "10m")] = _setting(
        15.0,
        "How long a replica that vanished keeps its shards. One that cannot renew stops writing when two thirds are "
        "over. Whole seconds; the same for all replicas.",
    )


class GuardSection(_Section):
    """How much may be taken away, and how fast.

    Endpoints are added up per scope: what rules mirror from a datacenter, and the annotated Services of each namespace.
    What is held is said, with the command that releases it (`bridge sync --force`).
    """

    removal_threshold: Percent = _setting(
        50,
        "Removals are held when Consul drops more than this percentage of a scope's ready endpoints within `window`.",
    )
    removal_minimum: _number(0, 1_000_000) = _setting(  # type: ignore[valid-type]
        10,
        "Fewer ready endpoints of a scope than this may always go, or turn not ready: the guard is about catastrophes.",
    )
    panic_threshold: Percent = _setting(
        80,
        "Endpoints stay ready when more than this percentage of a scope's would turn not ready within `window`: our "
        "view of Consul is then the likelier patient. 0 switches it off.",
        flag="--panic-threshold",
    )
    window: Annotated[float, _duration("1s", "1h")] = _setting(60.0, "Over how long losses are added up.")
    rebuild_grace: Annotated[float, _duration("0", "1d")] = _setting(
        600.0,
        "How long every removal is held after Consul was rebuilt or restored (its index went backwards): agents "
        "register again by themselves within minutes.",
        flag="--rebuild-grace",
    )
    hold_release: Annotated[float | None, BeforeValidator(_or_never)] = _setting(
        None,
        "After how long a hold ends whatever Consul says; `never`: when Consul recovers, when the losses of its scope "
        "are below the thresholds for a `window`, or when it is forced.",
        flag="--hold-release",
    )
    allow_cidrs: tuple[Cidr, ...] = _setting(
        (),
        "The networks that endpoints may be in, whatever a rule or a person's Service says. Empty: all. Whoever may "
        "register services in Consul chooses addresses: the VMs' networks here bound that.",
    )
    deny_cidrs: tuple[Cidr, ...] = _setting(
        METADATA_CIDRS,
        "No endpoint in these networks, whatever a rule says. Default: metadata services of clouds (link-local ones "
        "are refused in any case). A list here replaces the default; `extra_deny_cidrs` adds to it.",
    )
    extra_deny_cidrs: tuple[Cidr, ...] = _setting(
        (),
        "Further networks without endpoints, beside `deny_cidrs`: the cluster's Service and pod ranges, the nodes' "
        "networks. The API server's own address is always refused in a cluster.",
    )

    namespaces: tuple[NamespaceGlob, ...] = _setting(
        (),
        "Shell globs of the namespaces that may be written, by rules and for annotated Services. Empty: all that the "
        "rights allow.",
    )
    deny_namespaces: tuple[NamespaceGlob, ...] = _setting(
        (),
        "Shell globs of namespaces that are never written. Besides, a placeholder in `to.namespace` never leads to "
        "`default`, `kube-*` or the bridge's own namespace unless `namespaces` names it.",
    )


class BackoffSettings(_Section):
    """Exponential backoff with full jitter."""

    floor: Annotated[float, _duration("1ms", "1h")] = _setting(0.1, "The shortest wait, and where the growth begins.")
    cap: Annotated[float, _duration("1ms", "1d")] = _setting(
        5.0, "The longest wait from a request that failed to the next; one that hangs fails when its time is up."
    )
    multiplier: Annotated[float, Field(ge=1.0, le=10.0)] = _setting(
        2.0, "How much longer each wait may be than the last."
    )

    @model_validator(mode="after")
    def _in_order(self) -> BackoffSettings:
        if self.floor > self.cap:
            raise ValueError(f"floor ({duration_text(self.floor)}) must not be above cap ({duration_text(self.cap)})")
        return self


class _KubernetesBackoff(BackoffSettings):
    """For the API server as a whole."""


class _ObjectBackoff(BackoffSettings):
    """For one object that cannot be written."""

    floor: Annotated[float, _duration("1ms", "1h")] = _setting(0.05, "The shortest wait, and where the growth begins.")
    cap: Annotated[float, _duration("1ms", "1d")] = _setting(60.0, "The longest wait.")


class _PermanentBackoff(BackoffSettings):
    """For what will not get better by itself (forbidden, invalid)."""

    floor: Annotated[float, _duration("1ms", "1h")] = _setting(5.0, "The shortest wait, and where the growth begins.")
    cap: Annotated[float, _duration("1ms", "1d")] = _setting(300.0, "The longest wait.")


class RetrySettings(_Section):
    """How patient the bridge is, separately for each side. `Retry-After` is obeyed whatever stands here."""

    attempts: _number(1, 100) = _setting(5, "Tries per request of a one-shot command; `bridge run` never gives up.")  # type: ignore[valid-type]
    consul: BackoffSettings = BackoffSettings()
    kubernetes: _KubernetesBackoff = _KubernetesBackoff()
    object: _ObjectBackoff = _ObjectBackoff()
    permanent: _PermanentBackoff = _PermanentBackoff()


class SyncSettings(_Section):
    """What only the one-shot commands need. They have keys so that every flag has one; flags suit them better."""

    output: Literal["table", "json", "yaml", "diff"] = _setting("table", "How the report is printed.", flag="--output")
    dry_run: bool = _setting(False, "Print the plan and stop.", flag="--dry-run")
    exit_code: bool = _setting(False, "With --dry-run: exit status 4 when there are changes.", flag="--exit-code")
    yes: bool = _setting(False, "Ask nothing.", flag="--yes")
    watch: bool = _setting(False, "Of `bridge status`: show it again and again until Ctrl-C.", flag="--watch")
    interval: Annotated[float, _duration("500ms", "1h")] = _setting(
        2.0,
        "How long `bridge status --watch` waits between two readings; where reading takes longer than this, as long as "
        "reading took.",
        flag="--interval",
    )
    offline: bool = _setting(
        False, "Of `bridge check`: look at the settings and rules alone, without any server.", flag="--offline"
    )
    force: bool = _setting(
        False,
        "Apply what the removal guard would hold; `--service` and `--namespace` narrow it, also beside the rules of a "
        "file, to what is mirrored there already, and everything else is left alone. Look at the dry run first; never "
        "leave this on.",
        flag="--force",
    )


class DestinationRule(_Section):
    """Where and as what a rule's services go."""

    namespace: Annotated[str, AfterValidator(_name_template)] | None = Field(
        None,
        description="Namespace, or a template. Default: that of the kubeconfig's context, in a cluster the pod's own.",
    )
    name: NameTemplate = Field("{service}", description=f"Name of the Service; placeholders: {_placeholders()}.")
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
    port: _number(1, 65535) | None = Field(None, description="Port of the Service. Default: the instances' commonest.")  # type: ignore[valid-type]
    port_name: Annotated[str, _full_match(re.compile(rf"({_LABEL.pattern})?"), _LABEL_RULE)] = Field(
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
        _full_match(
            re.compile(rf"(({_SUBDOMAIN.pattern})/)?({_LABEL_NAME.pattern})?"), "a name such as http or example.com/x"
        ),
    ] = Field(
        "",
        description="Application protocol of the port (`http`, `kubernetes.io/h2c`): a hint for meshes.",
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
    max_endpoints_per_slice: _number(1, 1000) = Field(  # type: ignore[valid-type]
        100,
        description="Endpoints in one EndpointSlice (Kubernetes takes 1000); one that changes rewrites its slice.",
    )

    @model_validator(mode="after")
    def _each_key_once(self) -> DestinationRule:
        for one, other in (("labels", "labels_from"), ("annotations", "annotations_from")):
            twice = sorted(getattr(self, one).keys() & getattr(self, other).keys())
            if twice:
                raise ValueError(f"{', '.join(map(repr, twice))} is in {one} and in {other}: which is meant?")
        return self


class InstancesRule(_Section):
    """How instances become endpoints."""

    warning: Literal["ready", "not-ready", "omit"] = Field(
        "ready", description="What becomes of instances with a warning; `omit` leaves them out."
    )
    critical: Literal["not-ready", "omit"] = Field(
        "not-ready", description="What becomes of critical ones, and of those whose health is unknown."
    )
    maintenance: Literal["not-ready", "omit"] = Field(
        "not-ready", description="What becomes of those in maintenance; in EndpointSlices they are drained gracefully."
    )
    address: Annotated[
        str, _full_match(_TAGGED_ADDRESS, "auto, service, node or the name of a tagged address (lan, wan, …)")
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
    keep_last_ready: bool = Field(
        False,
        description="Never let a service's last ready endpoint turn not ready for its health. Right for a service "
        "whose checks are less reliable than the service itself; wrong for an elected primary, where it keeps a dead "
        "or demoted one ready.",
    )


class RuleSettings(_Section):
    """Which services are mirrored, where to, and how."""

    name: Plain = Field("", description="A name for people; shown by `bridge explain`.")
    services: tuple[Annotated[str, AfterValidator(_glob)], ...] = Field(
        (), description="Shell globs on the Consul name (`radosgw*`). Empty: every service."
    )
    tags: tuple[Filled, ...] = Field(
        (),
        description="Tags that an instance must have, all of them. Tags, `meta` and `filter` select instances: while "
        "none is selected a Service that was made stays, with empty endpoints, and none is made anew.",
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


class GrantSettings(_Section):
    """What users of some namespaces may ask for by annotation. The first grant that covers a request counts."""

    namespaces: tuple[NamespaceGlob, ...] = Field(
        (), description="Shell globs of the namespaces whose users may ask. Empty: all that are watched."
    )
    namespace_selector: Annotated[str, BeforeValidator(_label_selector)] = Field(
        "",
        description="Labels of the namespaces whose users may ask, as Kubernetes writes them: `team=a,env in (prod, "
        "qa),!legacy`, or a mapping with `matchLabels` and `matchExpressions`. Beside `namespaces` both have to match; "
        "for either of two write two grants. It takes the right to list and watch namespaces in the cluster, without "
        "which such a grant covers nothing new.",
    )
    services: tuple[Annotated[str, AfterValidator(_glob)], ...] = Field(
        (), description="Shell globs of the Consul services that they may ask for. Empty: all."
    )
    datacenters: tuple[Annotated[str, AfterValidator(_glob)], ...] = Field(
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


class Settings(BaseSettings):
    """Everything that a user can say. Made by `load`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    owner: Annotated[str, _full_match(_LABEL_VALUE, _VALUE_RULE)] = _setting(
        "default",
        "Owner id: label `consul-bridge/owner` of all that we make. Bridges with different ids never touch each "
        "other's objects. Default where `run.installation` is set, as the manifests do: that, with a dot for the slash "
        "(`storage.consul-endpoints-bridge`), so that two installations never delete each other's objects.",
        flag="--owner",
    )
    policy: Policy = _setting(
        Policy.SYNC, "What may be done to our own objects: all, never delete one, or only create.", flag="--policy"
    )
    adopt: Adopt = _setting(
        Adopt.NEVER,
        "Which objects that are not ours may be taken over: none, those without an owner, or the ExternalName Services "
        "that HashiCorp's catalog sync left.",
        flag="--adopt",
    )
    log: LogSettings = LogSettings()
    consul: ConsulSettings = ConsulSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    dns: DnsSettings = DnsSettings()
    run: RunSettings = RunSettings()
    guard: GuardSection = GuardSection()
    retry: RetrySettings = RetrySettings()
    sync: SyncSettings = SyncSettings()
    rules: tuple[RuleSettings, ...] | None = Field(
        None,
        description="What is mirrored, in order: a rule that takes all instances of a service leaves nothing of it to "
        "those behind it; `[]`: nothing. Default: none, and then `sync` and `run` write nothing unasked.",
    )

    annotated: tuple[GrantSettings, ...] | None = Field(
        None,
        description="Who may ask for what by annotated Services; `[]`: nobody. Default: users of the one namespace "
        "that is watched may ask for everything; where several are watched, nobody for more than what is filled.",
    )

    _places: Mapping[Key, _Place] = PrivateAttr(default_factory=dict)
    _notes: tuple[str, ...] = PrivateAttr(default=())
    _selected_by: str = PrivateAttr(default="default")
    _partial_selection: bool = PrivateAttr(default=False)
    _only: tuple[tuple[str, ...], str] = PrivateAttr(default=((), ""))
    _command: str = PrivateAttr(default="bridge sync")
    _config_file: str = PrivateAttr(default="")
    _config_digest: bytes = PrivateAttr(default=b"")
    _api_server: tuple[str, ...] = PrivateAttr(default=())
    _proxies: tuple[tuple[str, str], ...] = PrivateAttr(default=())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The layers that `load` hands over replace pydantic-settings' own sources: they know their places."""
        del env_settings, dotenv_settings, file_secret_settings
        layers: Sequence[Layer] = init_settings()["layers"]
        return tuple(_Source(settings_cls, layer) for layer in layers)

    # ------------------------------------------------------------------ what other rooms need

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user ought to be told about these settings (log them once, as warnings)."""
        return self._notes

    @property
    def needs_default_namespace(self) -> bool:
        """Whether some rule leaves its namespace to the kubeconfig's context or the pod."""
        return any(rule.to.namespace is None for rule in self._rules())

    def selection(self) -> str:
        """What is selected, in words, for the message that nothing matched."""
        texts = []
        for rule in self._rules():
            parts = [f"services {', '.join(rule.services)}"] if rule.services else []
            parts += [f"tags {', '.join(rule.tags)}"] if rule.tags else []
            parts += [f"meta {', '.join(f'{k}={v}' for k, v in rule.meta.items())}"] if rule.meta else []
            parts += [f"filter {rule.filter}"] if rule.filter else []
            parts += [f"datacenters {', '.join(rule.datacenters)}"] if rule.datacenters else []
            texts.append("; ".join(parts) or "every service")
        return " | ".join(texts) or "no rule at all (`rules: []`)"

    @property
    def selects(self) -> bool:
        """Whether somebody said which services are meant: by a file's rules, or a flag or variable that selects.

        Where nobody did, the rules are one for every service: good enough to look, not to write.
        """
        if self.rules is None:
            return False
        return not self._partial_selection or any(rule.services or rule.tags or rule.filter for rule in self.rules)

    def core_rules(self, default_namespace: str = "default") -> tuple[Rule, ...]:
        """The rules as `core` wants them."""
        return tuple(self._core_rule(n, rule, default_namespace) for n, rule in enumerate(self._rules()))

    @property
    def partial_selection(self) -> bool:
        """Whether flags or variables (not a file) say what is selected: then the rest is left alone, not removed."""
        return self._partial_selection

    def consul_config(self) -> ConsulConfig:
        """What `consul/` needs."""
        from bridge.consul.client import ConsulConfig

        c = self.consul
        return ConsulConfig(
            address=self.consul_url(),
            token=c.token.get_secret_value(),
            token_file=c.token_file,
            auth_method=c.auth_method,
            auth_token_file=(c.auth_token_file or SERVICE_ACCOUNT_TOKEN) if c.auth_method else "",
            http_auth=c.http_auth.get_secret_value(),
            proxies=self._proxies,
            ca_file=c.ca_file,
            ca_path=c.ca_path,
            client_cert=c.client_cert,
            client_key=c.client_key,
            tls_server_name=c.tls_server_name,
            verify=c.verify,
            datacenter=c.datacenter,
            datacenters=c.datacenters,
            namespace=c.namespace,
            partition=c.partition,
            wait_seconds=c.wait,
            connect_timeout_seconds=c.connect_timeout,
            timeout_margin_seconds=c.timeout_margin,
            max_stale_seconds=c.max_stale,
            connections=c.connections,
            max_answer_bytes=c.max_answer,
        )

    def kube_config(self) -> KubeConfig:
        """What `kube/` needs."""
        from bridge.kube.client import KubeConfig

        k = self.kubernetes
        return KubeConfig(
            kubeconfig=k.kubeconfig,
            context=k.context,
            namespaces=("*",) if "*" in k.watch_namespaces else k.watch_namespaces,
            request_timeout_seconds=k.request_timeout,
            connect_timeout_seconds=k.connect_timeout,
            max_answer_bytes=k.max_answer,
            connections=k.writers + 4,  # the watches need theirs beside the writers
        )

    def check_options(self) -> CheckOptions:
        """What `engine.check` needs."""
        from bridge.oneshot.check import CheckOptions

        return CheckOptions(
            owner=self.owner,
            cluster_nodes=self.kubernetes.nodes,
            policy=self.policy,
            annotated=self.annotated_policy(),
            adopt=Adopt(self.adopt),
            leases=self.run.leader_elect or self.run.shards > 1,
            selects=self.selects,
            readers=min(16, self.consul.connections),
            retry=self.one_shot_retry(),
        )

    def guard_settings(self) -> GuardSettings:
        """What `core.guard` needs."""
        from bridge.core.guard import GuardSettings

        g = self.guard
        return GuardSettings(
            removal_percent=g.removal_threshold,
            removal_minimum=g.removal_minimum,
            panic_percent=g.panic_threshold,
            window_seconds=g.window,
            restore_hold_seconds=g.rebuild_grace,
            hold_release_seconds=g.hold_release,
            command=self._command,
        )

    def bounds(self, own_namespace: str = "") -> Bounds:
        """What no rule and no user's Service can leave. `own_namespace` is the one that the bridge runs in."""
        guard = self.guard
        return Bounds(
            allow_cidrs=guard.allow_cidrs,
            deny_cidrs=tuple(dict.fromkeys((*guard.deny_cidrs, *guard.extra_deny_cidrs))),
            api_server=self._api_server,
            host_names=self.dns.resolve,
            namespaces=guard.namespaces,
            deny_namespaces=guard.deny_namespaces,
            reserved_namespaces=tuple(dict.fromkeys(name for name in ("kube-*", "default", own_namespace) if name)),
        )

    def annotated_policy(self) -> AnnotatedPolicy:
        """Who may ask for what by annotated Services, within the same bounds as the rules."""
        from bridge.core.annotated import Annotated as AnnotatedPolicy
        from bridge.core.annotated import Grant

        grants = None if self.annotated is None else tuple(Grant(**grant.model_dump()) for grant in self.annotated)
        return AnnotatedPolicy(self.bounds(), grants)

    def resolver_settings(self) -> ResolverSettings:
        """What `engine.resolver` needs."""
        from bridge.pipeline.dns import ResolverSettings

        d = self.dns
        return ResolverSettings(ttl_seconds=d.ttl, retry_seconds=d.retry, parallel=d.parallel, wait_seconds=d.wait)

    def run_options(self) -> RunOptions:
        """What `engine.run` needs."""
        from bridge.controller.controller import RunOptions

        return RunOptions(
            owner=self.owner,
            installation=self.run.installation,
            policy=self.policy,
            adopt=self.adopt,
            partial_selection=self.partial_selection,
            guard=self.guard_settings(),
            resolver=self.resolver_settings(),
            cluster_nodes=self.kubernetes.nodes,
            annotated=self.annotated_policy(),
            removal_grace_seconds=self.run.grace,
            resync_seconds=self.run.resync,
            writers=self.kubernetes.writers,
            election=self._election(),
            events=self.run.events,
            consul_retry=_policy(self.retry.consul),
            kube_retry=_policy(self.retry.kubernetes),
            object_retry=_policy(self.retry.object),
            permanent_retry=_policy(self.retry.permanent),
        )

    @property
    def command(self) -> str:
        """`bridge sync` with this installation's settings, as one would type it in the same environment."""
        return self._command

    def only(self) -> Only:
        """What `--force` is narrowed to. A template of a namespace narrows nothing: it is the rule's."""
        from bridge.core.select import Only

        services, namespace = self._only
        return Only(services, namespace if "{" not in namespace else "")

    def sync_options(self) -> SyncOptions:
        """What `engine.sync` needs."""
        from bridge.oneshot.sync import SyncOptions

        return SyncOptions(
            owner=self.owner,
            installation=self.run.installation,
            policy=self.policy,
            adopt=self.adopt,
            partial_selection=self.partial_selection,
            selects=self.selects,
            dry_run=self.sync.dry_run,
            force=self.sync.force,
            only=self.only(),
            guard=self.guard_settings(),
            resolver=self.resolver_settings(),
            cluster_nodes=self.kubernetes.nodes,
            annotated=self.annotated_policy(),
            writers=self.kubernetes.writers,
            readers=min(16, self.consul.connections),
            retry=self.one_shot_retry(),
        )

    def one_shot_retry(self) -> RetryPolicy:
        """How often and how long a command (not the daemon) tries again."""
        from bridge.retry import RetryPolicy

        return RetryPolicy(
            attempts=self.retry.attempts,
            initial_seconds=max(self.retry.consul.floor, 0.2),
            max_seconds=min(self.retry.consul.cap, 5.0),
            multiplier=self.retry.consul.multiplier,
        )

    def consul_url(self) -> str:
        """Consul's address as `scheme://host:port[/prefix]`, or `unix:///path`.

        As in Consul's own tools: without a scheme `tls` decides, without a port the scheme does; `tls` also turns an
        http:// address into TLS, unless the address comes from a stronger source than `tls` does.
        """
        address, tls = self.consul.address, self.consul.tls
        if address.startswith("unix:"):
            return address
        scheme, rest = address.split("://", 1) if "://" in address else ("", address)
        said = self._places.get(("consul", "address"))
        asked = self._places.get(("consul", "tls"))
        stronger = said is not None and asked is not None and said.rank < asked.rank
        if not scheme or (tls and not stronger):
            scheme = "https" if tls else scheme or "http"
        parts = urlsplit(f"{scheme}://{rest}")
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{parts.port or (443 if scheme == 'https' else 80)}{parts.path.rstrip('/')}"

    @property
    def config_file(self) -> str:
        """The settings file that was read, "" without one."""
        return self._config_file

    @property
    def config_digest(self) -> bytes:
        """Of what was read of it (`yaml_file.digest_of`), b"" without one."""
        return self._config_digest

    def differences(self, other: Settings) -> list[str]:
        """Paths of the settings that are not as in `other`, secrets included; rules are looked at apart."""
        changed = [".".join(s.path) for s in catalogue() if self._value(s.path) != other._value(s.path)]
        return sorted([*changed, *(["annotated"] if self.annotated != other.annotated else [])])

    def effective(self) -> dict[str, str]:
        """Every setting as text by its path, secrets masked: for the log at start."""
        values = {}
        for setting in catalogue():
            values[".".join(setting.path)] = setting.text(self._value(setting.path))
        values["consul.address"] = self.consul_url()
        values["annotated"] = "default" if self.annotated is None else f"{len(self.annotated)} grants"
        values["rules"] = f"{len(self._rules())} (from {self._selected_by})"
        return values

    def source(self, path: str) -> str:
        """Where the value of `consul.address` and the like comes from."""
        place = self._places.get(tuple(path.split(".")))
        return place.text if place is not None else "default"

    def secrets(self) -> tuple[str, ...]:
        """Texts that must never be printed."""
        password = self.consul.http_auth.get_secret_value().partition(":")[2]
        proxies = (urlsplit(value if "://" in value else f"http://{value}").password for _, value in self._proxies)
        return tuple(filter(None, (self.consul.token.get_secret_value(), password, *proxies)))

    def _value(self, path: Sequence[str]) -> Any:
        value: Any = self
        for key in path:
            value = getattr(value, key)
        return value

    def _rules(self) -> tuple[RuleSettings, ...]:
        return (RuleSettings(),) if self.rules is None else self.rules

    def _core_rule(self, position: int, rule: RuleSettings, default_namespace: str) -> Rule:
        to, instances = rule.to, rule.instances
        return Rule(
            name=rule.name or self._rule_name(position),
            services=rule.services,
            tags=rule.tags,
            meta=_pairs(rule.meta),
            filter=rule.filter,
            datacenters=rule.datacenters,
            namespace=rule.namespace or self.consul.namespace,
            partition=rule.partition or self.consul.partition,
            peer=rule.peer,
            unlisted=self._is_pinned(rule),
            continues=rule.continue_,
            place=self._rule_place(position),
            to=Destination(
                namespace=to.namespace if to.namespace is not None else default_namespace,
                name=to.name,
                headless=to.type == "Headless",
                type=to.type if to.type is not None and to.type != "Headless" else "",
                output=to.output,
                port=to.port or 0,
                port_name=to.port_name,
                protocol=to.protocol,
                protocol_from=_pairs(to.protocol_from),
                app_protocol=to.app_protocol,
                labels=_pairs(to.labels),
                annotations=_pairs(to.annotations),
                labels_from=_pairs(to.labels_from),
                annotations_from=_pairs(to.annotations_from),
                max_endpoints_per_slice=to.max_endpoints_per_slice,
            ),
            instances=InstanceRules(
                warning=Treatment(instances.warning),
                critical=Treatment(instances.critical),
                maintenance=Treatment(instances.maintenance),
                address=instances.address,
                allow_cidrs=instances.allow_cidrs,
                deny_cidrs=instances.deny_cidrs,
                bounds=self.bounds(default_namespace),
                zone_meta=instances.zone_meta,
                keep_last_ready=instances.keep_last_ready,
            ),
        )

    def _is_pinned(self, rule: RuleSettings) -> bool:
        """Whether a rule is about services that are not in the listing that we read."""
        elsewhere = rule.namespace not in ("", self.consul.namespace) or rule.partition not in (
            "",
            self.consul.partition,
        )
        return elsewhere or bool(rule.peer)

    def _rule_name(self, position: int) -> str:
        if self.rules is None:
            return "every service (no rule given)"
        place = self._places.get(("rules", position))
        return f"rule {position + 1} ({place.text})" if place is not None else f"rule {position + 1}"

    def _rule_place(self, position: int) -> str:
        place = self._places.get(("rules", position))
        return place.text if place is not None and self.rules is not None else ""

    def _election(self) -> ElectionConfig | None:
        from bridge.kube.election import ElectionConfig

        if not self.run.leader_elect and self.run.shards == 1:
            return None
        return ElectionConfig(
            owner=self.owner,
            installation=self.run.installation,
            namespace=self.run.lease_namespace,
            shards=self.run.shards,
            duration_seconds=round(self.run.lease_duration),
        )


def _policy(backoff: BackoffSettings) -> RetryPolicy:
    from bridge.retry import RetryPolicy

    return RetryPolicy(initial_seconds=backoff.floor, max_seconds=backoff.cap, multiplier=backoff.multiplier)


def _pairs(mapping: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(mapping.items()))


# --------------------------------------------------------------------------- every setting, for sources and docs


@dataclass(frozen=True, slots=True)
class Setting:
    """One leaf of the tree with its names in the other sources."""

    path: tuple[str, ...]
    flag: str
    env: str
    also: tuple[str, ...]
    secret: bool
    description: str
    field: FieldInfo

    @property
    def key(self) -> str:
        """Its place in the YAML file: `consul.address`."""
        return ".".join(self.path)

    @property
    def is_list(self) -> bool:
        """Whether it takes several values (in the environment: separated by commas)."""
        return isinstance(self.field.default, tuple)

    @property
    def is_size(self) -> bool:
        """Whether it is written `32MiB`."""
        return any(
            isinstance(m, BeforeValidator) and m.func.__qualname__.startswith("_size") for m in self.field.metadata
        )

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return self.field.annotation in (bool, bool | None)

    @property
    def is_duration(self) -> bool:
        """Whether it is written `30s`."""
        return any(
            isinstance(m, BeforeValidator) and m.func.__qualname__.startswith(("_duration", "_or_never"))
            for m in self.field.metadata
        )

    def text(self, value: Any) -> str:
        """A value as one would write it; secrets are masked."""
        if isinstance(value, SecretStr):
            return "***" if value.get_secret_value() else ""
        if self.is_duration:
            return "never" if value is None else duration_text(value)
        if self.is_size:
            return size_text(value)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        if isinstance(value, float):
            return f"{value:g}"
        return "" if value is None else str(value)


def catalogue() -> tuple[Setting, ...]:
    """All settings but the rules, in the order of the tree."""
    return tuple(_leaves(Settings, ()))


def _leaves(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        path = (*above, name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, path)
        elif isinstance(field.json_schema_extra, dict):
            extra: Mapping[str, Any] = field.json_schema_extra
            flag = extra["flag"]
            env = extra["env"] or "BRIDGE_" + (flag.removeprefix("--").replace("-", "_") or "_".join(path)).upper()
            yield Setting(path, flag, env, tuple(extra["also"]), extra["secret"], field.description or "", field)


SERVICE_ACCOUNT_TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
"""Where Kubernetes puts a pod's token."""

PROXY_VARIABLES: Final = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
"""Everybody's variables about proxies; how Consul is reached follows them as Go's programs do (bridge/proxies.py)."""

RULE_FLAGS: Final[Mapping[str, tuple[str, ...]]] = {
    "--service": ("services",),
    "--tag": ("tags",),
    "--filter": ("filter",),
    "--namespace": ("to", "namespace"),
    "--name": ("to", "name"),
    "--output-kind": ("to", "output"),
}
"""Flags that together make one rule, and the rule's key that each of them sets."""

_LIST_RULE_FLAGS = ("--service", "--tag")

_NARROWING = ("--service", "--namespace")
"""Flags that say what `--force` is about, also beside the rules of a file."""

_REPEATED = (
    "--config", "--consul-address", "--datacenter", "--token-file", "--tag", "--filter", "--name", "--output-kind",
    "--kubeconfig", "--context", "--watch-namespace", "--owner", "--policy", "--adopt",
)  # fmt: skip
"""Flags that a second command beside this one needs to see the same and to own the same; variables are there anyway."""


def rule_env(flag: str) -> str:
    """The environment variable of a rule flag."""
    return "BRIDGE_" + flag.removeprefix("--").replace("-", "_").upper()


# --------------------------------------------------------------------------- the sources


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value came from: the rank of its source (0 is the strongest) and the words for it."""

    rank: int
    text: str


@dataclass(slots=True)
class Layer:
    """What one source says: nested values, and the place of each leaf."""

    name: str
    values: dict[str, Any]
    places: dict[Key, str]

    def set(self, path: Sequence[str | int], value: Any, place: str) -> None:
        """Put a leaf in."""
        at: Any = self.values
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
        self.places[tuple(path)] = place

    def drop(self, path: Sequence[str]) -> None:
        """Take a leaf out, if it is there."""
        at: Any = self.values
        for key in path[:-1]:
            at = at.get(key)
            if not isinstance(at, dict):
                return
        at.pop(path[-1], None)
        self.places.pop(tuple(path), None)

    def has(self, path: Sequence[str]) -> bool:
        """Whether the source says anything about `path`."""
        at: Any = self.values
        for key in path:
            if not isinstance(at, dict) or key not in at:
                return False
            at = at[key]
        return True


class _Source(PydanticBaseSettingsSource):
    """A layer as pydantic-settings knows sources."""

    def __init__(self, settings_cls: type[BaseSettings], layer: Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        return self._layer.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._layer.values


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read all sources, check everything, and return the tree.

    `flags` are those that were given, by their long name (`{"--grace": "30s", "--dry-run": True}`). Reads the file
    that `--config` names and nothing else. Raises ConfigurationError that names every mistake and its place.
    """
    flags = dict(flags or {})
    environ = os.environ if environ is None else environ
    config_flag = flags.pop("--config", None)
    config = config_flag or environ.get("BRIDGE_CONFIG") or ""
    document = yaml_file.read(config) if config else None
    leaves = catalogue()
    notes: list[str] = []
    flag_layer = _flag_layer(leaves, flags)
    own_layer = _own_environment(leaves, environ)
    others_layer = _others_environment(leaves, environ)
    file_layer = _file_layer(document)
    notes += _unknown_variables(leaves, environ)
    notes += _overridden(flag_layer, own_layer, others_layer, file_layer)
    layers = (flag_layer, own_layer, others_layer, file_layer)
    _one_of(layers, ("consul", "auth_method"), ("consul", "token_file"), ("consul", "token"))
    selected_by = _rules_from_flags(layers, flags, environ, document)
    places = {
        key: _Place(rank, text)
        for rank, layer in reversed(list(enumerate(layers)))
        for key, text in layer.places.items()
    }
    try:
        make: Any = Settings  # pydantic-settings hands unknown arguments to `settings_customise_sources`
        settings: Settings = make(layers=(*layers, _derived(layers)))
    except ValidationError as error:
        raise ConfigurationError(_explain(error, places, document)) from None
    settings._places = places
    settings._proxies = tuple((name, environ[name]) for name in PROXY_VARIABLES if environ.get(name))
    settings._config_file = config
    settings._config_digest = document.digest if document else b""
    settings._notes = tuple(notes)
    settings._selected_by = selected_by
    settings._api_server = _addresses_in(environ.get("KUBERNETES_SERVICE_HOST", ""))
    settings._only = tuple(flags.get("--service") or ()), flags.get("--namespace") or ""
    settings._command = _command({**flags, "--config": config_flag})
    settings._partial_selection = settings.rules is not None and not layers[-1].has(("rules",))
    _check_together(settings)
    return settings


def _derived(layers: Sequence[Layer]) -> Layer:
    """Defaults that other settings give: in a cluster each installation is an owner of its own."""
    layer = Layer("derived", {}, {})
    said = next((layer for layer in layers if layer.has(("run", "installation"))), None)
    installation = said.values["run"]["installation"] if said is not None else ""
    if isinstance(installation, str) and installation and not any(layer.has(("owner",)) for layer in layers):
        layer.set(("owner",), owner_of(installation), "run.installation")
    return layer


def owner_of(installation: str) -> str:
    """The owner id of an installation that names none: `storage/consul-endpoints-bridge` -> `storage.consul-...`.

    A label value: over-long names are cut and get a short hash, so that two stay two.
    """
    text = re.sub(r"[^A-Za-z0-9_.-]", ".", installation).strip("_.-")
    if len(text) > select.LABEL_LIMIT:
        text = f"{text[: select.LABEL_LIMIT - 9]}-{select.digest(installation)}"
    return text or "default"


def _addresses_in(text: str) -> tuple[str, ...]:
    """A variable's address in canonical form; () where it has none (a host name, or nothing)."""
    try:
        return (str(ipaddress.ip_address(text)),)
    except ValueError:
        return ()


def _flag_layer(leaves: Sequence[Setting], flags: Mapping[str, Any]) -> Layer:
    layer = Layer("flags", {}, {})
    known = {s.flag: s for s in leaves if s.flag}
    for flag, value in flags.items():
        if flag in RULE_FLAGS:
            continue
        layer.set(known[flag].path, list(value) if isinstance(value, (list, tuple)) else value, flag)
    return layer


def _own_environment(leaves: Sequence[Setting], environ: Mapping[str, str]) -> Layer:
    layer = Layer("environment", {}, {})
    for setting in leaves:
        text = environ.get(setting.env, "")
        if text:
            layer.set(setting.path, _from_text(setting, text), setting.env)
    return layer


def _others_environment(leaves: Sequence[Setting], environ: Mapping[str, str]) -> Layer:
    layer = Layer("Consul's and Kubernetes' environment", {}, {})
    for setting in leaves:
        for variable in setting.also:
            text = environ.get(variable, "")
            if text:
                value = _consuls_bool(variable, text) if setting.is_switch else text
                layer.set(setting.path, value, variable)
    return layer


def _file_layer(document: Document | None) -> Layer:
    if document is None:
        return Layer("file", {}, {})
    places = {key: document.place(key) for key in document.values if key}
    # `consul:` with nothing below it says nothing
    content = {k: v for k, v in document.content.items() if v is not None or k == "rules"}
    if content.get("rules", ()) is None:
        del content["rules"]
    return Layer("file", content, places)


def _from_text(setting: Setting, text: str) -> Any:
    return [part.strip() for part in text.split(",") if part.strip()] if setting.is_list else text


def _consuls_bool(variable: str, text: str) -> bool:
    """As Go's strconv.ParseBool, which is what Consul's own tools use."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ConfigurationError(f"{variable}: {_show(text)} must be true or false")


_SERVICE_LINK = re.compile(r"BRIDGE_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_.*)?)")


def _unknown_variables(leaves: Sequence[Setting], environ: Mapping[str, str]) -> list[str]:
    """Notes on BRIDGE_ variables that mean nothing to us but look as if they should.

    Only a note: a Kubernetes Service named `bridge` puts BRIDGE_PORT and the like into every pod of its namespace.
    """
    known = {s.env for s in leaves} | {rule_env(f) for f in RULE_FLAGS} | {"BRIDGE_CONFIG"}
    notes = []
    for name in sorted(environ):
        if not name.startswith("BRIDGE_") or name in known or _SERVICE_LINK.fullmatch(name):
            continue
        hint = _did_you_mean(name, known, cutoff=0.8)
        if hint:
            notes.append(f"{name}: no such setting{hint}; it is ignored")
    return notes


def _overridden(flags: Layer, own: Layer, others: Layer, file: Layer) -> list[str]:
    """Notes on what the file says and a variable of Consul's or Kubernetes' own replaces."""
    notes = []
    for key, variable in others.places.items():
        path = [str(k) for k in key]
        if not file.has(path) or flags.has(path) or own.has(path):
            continue
        said: Any = file.values
        set_: Any = others.values
        for part in path:
            said, set_ = said[part], set_[part]
        if said != set_:
            notes.append(f"{variable} replaces {'.'.join(path)} of {file.places[key]}")
    return notes


def _one_of(layers: Sequence[Layer], *paths: Sequence[str]) -> None:
    """Keep only the strongest source's word of settings that mean the same; in one source the first of them wins."""
    for rank, layer in enumerate(layers):
        found = [path for path in paths if layer.has(path)]
        if found:
            for path in found[1:]:
                layer.drop(path)
            for weaker in layers[rank + 1 :]:
                for path in paths:
                    weaker.drop(path)
            return


def _rules_from_flags(
    layers: Sequence[Layer], flags: Mapping[str, Any], environ: Mapping[str, str], document: Document | None
) -> str:
    """Make one rule of the rule flags and their variables; say where the rules come from."""
    flag_layer, own_layer, _, file_layer = layers
    given: list[str] = []
    rule = Layer("rule", {}, {})
    for flag, path in RULE_FLAGS.items():
        variable = rule_env(flag)
        if flags.get(flag):
            value, place = flags[flag], flag
        elif environ.get(variable):
            text = environ[variable]
            is_list = flag in _LIST_RULE_FLAGS
            value, place = ([p.strip() for p in text.split(",") if p.strip()] if is_list else text), variable
        else:
            continue
        rule.set(path, list(value) if isinstance(value, (list, tuple)) else value, place)
        given.append(place)
    in_file = file_layer.has(("rules",))
    if in_file and flags.get("--force") and set(given) <= set(_NARROWING):
        given = []  # the file says what is mirrored, these what of it is forced
    if not given:
        return file_layer.places.get(("rules",), document.path if document else "") if in_file else "default"
    if in_file:
        raise ConfigurationError(
            f"{', '.join(given)}: these make a rule, and {file_layer.places[('rules',)]} has rules as well: "
            "use either (bridge cannot know which was meant); leave the flags and variables out, or the file's `rules`"
        )
    layer = flag_layer if any(g.startswith("--") for g in given) else own_layer
    layer.values["rules"] = [rule.values]
    layer.places[("rules",)] = ", ".join(given)
    layer.places[("rules", 0)] = ", ".join(given)
    for key, place in rule.places.items():
        layer.places[("rules", 0, *key)] = place
    return ", ".join(given)


def _command(flags: Mapping[str, Any]) -> str:
    """`bridge sync` with the flags of this process, for a shell; what it does is added behind."""
    words = ["bridge", "sync"]
    for flag in _REPEATED:
        value = flags.get(flag)
        for text in value if isinstance(value, (list, tuple)) else [value] if value else []:
            words += [flag, str(text)]
    return shlex.join(words)


def _check_together(settings: Settings) -> None:
    """What no field can know alone."""
    consul = settings.consul
    if consul.address.startswith("unix:") and consul.tls:
        raise ConfigurationError(
            f"{settings.source('consul.tls')}: consul.tls: a Unix socket (consul.address) is spoken to without TLS"
        )
    for one, other in (("client_cert", "client_key"), ("client_key", "client_cert")):
        if getattr(consul, one) and not getattr(consul, other):
            raise ConfigurationError(f"{settings.source(f'consul.{one}')}: consul.{one} needs consul.{other} as well")
    names: dict[str, int] = {}
    bounds = settings.bounds()
    for position, rule in enumerate(settings.rules or ()):
        namespace = rule.to.namespace
        if namespace and "{" not in namespace and (why := select.namespace_refused(bounds, namespace)) is not None:
            place = settings._places[("rules", position, "to", "namespace")].text
            raise ConfigurationError(f"{place}: rules[{position}].to.namespace: {why}")
        globs = [service for service in rule.services if any(mark in service for mark in "*?[")]
        if settings._is_pinned(rule) and (globs or not rule.services):
            key = next(k for k in ("peer", "namespace", "partition") if getattr(rule, k))
            place = settings._places[("rules", position, key)].text
            raise ConfigurationError(
                f"{place}: rules[{position}].{key}: only the services of consul.namespace and consul.partition are "
                f"listed; elsewhere `services` must be full names, not {', '.join(map(repr, globs)) or 'left out'}"
            )
        if rule.name and rule.name in names:
            place = settings._places[("rules", position, "name")].text
            raise ConfigurationError(
                f"{place}: rules[{position}].name: {rule.name!r} is the name of rules[{names[rule.name]}] already"
            )
        names.setdefault(rule.name, position)


# --------------------------------------------------------------------------- what pydantic found, in words


def _explain(error: ValidationError, places: Mapping[Key, _Place], document: Document | None) -> str:
    """One line per mistake: place, key, what is wrong, what is allowed."""
    lines = []
    for found in error.errors(include_url=False, include_context=True):
        key: Key = tuple(part for part in found["loc"] if part != "[key]")
        lines.append(_sentence(key, found, places, document))
    lines = sorted(dict.fromkeys(lines), key=_in_order_of_lines)
    shown, more = lines[:20], len(lines) - 20
    return "\n".join(shown + ([f"... and {more} more"] if more > 0 else []))


def _in_order_of_lines(text: str) -> list[str | int]:
    """Sorts `f:9:1` before `f:10:1`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", text)]


def _sentence(key: Key, found: Mapping[str, Any], places: Mapping[Key, _Place], document: Document | None) -> str:
    kind, value, context = str(found["type"]), found.get("input"), found.get("ctx") or {}
    place = _place_of(key, places)
    if kind == "extra_forbidden":
        if document is not None:
            place = document.place(key, of_key=True)
        known = _keys_at(key[:-1])
        name = str(key[-1])
        where = f" in {_path_text(key[:-1])}" if len(key) > 1 else ""
        return f"{place}: unknown key {_show(name)}{where}{_did_you_mean(name, known)}; there are {', '.join(known)}"
    if "[key]" in found["loc"]:
        place = document.place(key, of_key=True) if document is not None else place
        key = key[:-1]
    secret = key[-1:] in (("token",), ("http_auth",))
    path = "" if place.startswith(("--", "BRIDGE_", "CONSUL_", "KUBECONFIG")) else f"{_path_text(key)}: "
    shown = "" if secret or kind in _SHAPES or isinstance(value, dict) else f"{_show(value)} "
    return f"{place}: {path}{shown}{_problem(kind, value, context, str(found['msg']))}"


_SHAPES: Final = {
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
}


def _problem(kind: str, value: object, context: Mapping[str, Any], message: str) -> str:
    if kind == "value_error":
        return str(context.get("error", message))
    if kind in _SHAPES:
        hint = ""
        if kind == "string_type":
            hint = "; put it in quotes" if not isinstance(value, list) else ""
        elif kind in ("list_type", "tuple_type") and isinstance(value, str):
            hint = f": [{_show(value)}]"
        return f"{_SHAPES[kind]}, not {kind_of(value)}{hint}"
    if kind in ("literal_error", "enum"):
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"must be one of {', '.join(allowed)}{_did_you_mean(str(value), allowed)}"
    if kind in ("int_parsing", "int_from_float"):
        return "must be a whole number"
    if kind == "float_parsing":
        return "must be a number"
    if kind == "bool_parsing":
        return "must be true or false"
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']:g}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']:g}"
    return message[:1].lower() + message[1:]


def _place_of(key: Key, places: Mapping[Key, _Place]) -> str:
    for length in range(len(key), 0, -1):
        place = places.get(key[:length])
        if place is not None:
            return place.text
    return "settings"


def _path_text(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


_USER = re.compile(r"[^/]*@")


def _show(value: object) -> str:
    """A value in an error: quoted, control characters escaped, cut, without a user and password in front of an `@`."""
    text = repr(_USER.sub("…@", value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


_LISTS: Final[Mapping[str, type[BaseModel]]] = {"rules": RuleSettings, "annotated": GrantSettings}
"""Keys whose values are lists of mappings, and what these mappings are."""


def _keys_at(key: Key) -> list[str]:
    """The keys that the tree has at `key`."""
    model: Any = Settings
    for part in key:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        model = _LISTS.get(part) or (field.annotation if field is not None else None)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _did_you_mean(word: str, known: Sequence[str] | set[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""
