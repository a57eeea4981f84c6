"""The texts of settings and what they mean: durations, sizes, networks, templates, addresses.

Each checker takes what was written and returns the value, or raises ValueError with the end of a sentence about it
("must be ..."); the place and the key are put in front of it where the mistake is reported (bridge.config.errors).

Its length is that of the list of such texts.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import string
from collections.abc import Sequence
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from bridge.config.yaml_file import kind_of
from bridge.core import labels, routes

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
LABEL_NAME = LABEL_VALUE
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
TAGGED_ADDRESS = re.compile(r"[A-Za-z0-9_.-]{1,128}")
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


def duration(minimum: str = "0", maximum: str = "366d") -> BeforeValidator:
    low, high = parse_duration(minimum), parse_duration(maximum)

    def check(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"must be a duration (30s, 5m, 1h30m), not {kind_of(value)}")  # noqa: TRY004
        seconds = parse_duration(str(value))
        if not low <= seconds <= high:
            raise ValueError(f"must be between {duration_text(low)} and {duration_text(high)}")
        return seconds

    return BeforeValidator(check)


def duration_or_never(value: object) -> object:
    if value is None or value == "never":
        return None
    return duration("1s").func(value)  # type: ignore[call-arg]


def _percent(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"must be a percentage (50%), not {kind_of(value)}")  # noqa: TRY004
    number = str(value).strip().removesuffix("%").strip()
    if not re.fullmatch(r"[0-9]{1,3}", number) or int(number) > 100:
        raise ValueError("must be a percentage between 0% and 100%, without decimals")
    return int(number)


def number_or_percent(value: object) -> object:
    """`1` or `30%`: a whole number from 1 on, or a percentage from 1 to 100, in its one spelling."""
    text = value.strip() if isinstance(value, str) else str(value)
    found = re.fullmatch(r"([0-9]{1,7}) ?(%?)", text) if not isinstance(value, bool | float) else None
    number = int(found[1]) if found is not None else 0
    if found is None or not 1 <= number <= (100 if found[2] else 1_000_000):
        raise ValueError("must be a whole number from 1 on (2), or a percentage from 1 to 100 (30%)")
    return f"{number}%" if found[2] else number


def _whole(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not true/false")  # noqa: TRY004
    return value


def plain_text(value: str) -> str:
    """Text without control characters or blanks around it."""
    if any(not c.isprintable() for c in value):
        raise ValueError("has control characters in it")
    if value != value.strip():
        raise ValueError("has blanks around it")
    return value


def filled_text(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return plain_text(value)


def full_match(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    return AfterValidator(check)


LABEL_RULE: Final = "a DNS label (lower-case letters, digits and -, at most 63)"
VALUE_RULE: Final = "a label value (letters, digits, -, _ and ., at most 63, a letter or digit at both ends)"


def _template(value: str) -> str:
    """A name with {placeholders}; only those that we know, and braces nowhere else."""
    try:
        parts = list(string.Formatter().parse(value))
    except ValueError as error:
        raise ValueError(f"is not a template: {error}") from error
    for literal, field, spec, conversion in parts:
        if "{" in literal or "}" in literal or spec or conversion:
            raise ValueError("is not a template: braces only around one of " + placeholders())
        if field is not None and field not in _PLACEHOLDERS:
            raise ValueError(f"knows no {{{field}}}{did_you_mean(field, _PLACEHOLDERS)}; there are {placeholders()}")
    if not value:
        raise ValueError("must not be empty")
    return value


def placeholders() -> str:
    return " ".join(f"{{{p}}}" for p in _PLACEHOLDERS)


def name_template(value: str) -> str:
    _template(filled_text(value))
    fixed = re.sub(r"\{[a-z]+\}", "", value)
    if not re.fullmatch(r"[a-z0-9-]*", fixed):
        raise ValueError("may have lower-case letters, digits and - beside its placeholders")
    if "{" not in value and not LABEL.fullmatch(value):
        raise ValueError(f"must be {LABEL_RULE}")
    return value


def hostname_template(value: str) -> str:
    """A host name with {placeholders} of the service or of its instances."""
    filled = routes.PLACEHOLDER.sub("a", filled_text(value))
    if "{" in filled or "}" in filled:
        raise ValueError(f"is not a template: braces only around one of {hostname_placeholders()}")
    if not routes.is_hostname(filled):
        raise ValueError(
            "must be a host name in lower case beside its placeholders (`*` only as the first label, no IP address)"
        )
    return value


def hostname_placeholders() -> str:
    return " ".join(f"{{{p}}}" for p in (*routes.OF_SERVICE, "meta:KEY", "node-meta:KEY", "tag:PREFIX"))


def route_path(value: str) -> str:
    if not re.fullmatch(r"/([-A-Za-z0-9._~!$&'()*+,;=:@]+/?)*", value) or set(value.split("/")) & {".", ".."}:
        raise ValueError("must be an absolute path as a gateway takes it, without %, //, . and .. in it: /api")
    return value


def service_port(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    number = value.isdigit() and 1 <= int(value) <= 65535 if isinstance(value, str) else False
    if not number and not (isinstance(value, str) and re.search("[a-z]", value) and LABEL.fullmatch(value)):
        raise ValueError(f"must be the name of a port ({LABEL_RULE}), or a number between 1 and 65535")
    return value


def service_glob(value: str) -> str:
    if not value:
        raise ValueError("must not be empty; '*' selects every service")
    return plain_text(value)


def label_selector(value: object) -> object:
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


def cidr(value: str) -> str:
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
    if not LABEL_NAME.fullmatch(name) or (slash and not (SUBDOMAIN.fullmatch(prefix) and len(prefix) <= 253)):
        raise ValueError("is not a key that Kubernetes takes ([prefix/]name)")
    if key.startswith(_RESERVED) or key in _RESERVED_KEYS:
        raise ValueError("is set by the bridge or by Kubernetes itself")
    return key


def _label(value: str) -> str:
    if value and not LABEL_VALUE.fullmatch(value):
        raise ValueError(f"must be empty or {VALUE_RULE}")
    return value


def _source_of_value(value: str) -> str:
    kind, colon, name = value.partition(":")
    if value == "tags" or (kind in ("meta", "node-meta", "tag") and colon and name):
        return plain_text(value)
    raise ValueError(
        "must be meta:KEY, node-meta:KEY, tag:PREFIX (the rest of the tag that begins so) or tags (all of them)"
    )


def token_text(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise ValueError("a token has neither blanks nor line ends nor letters outside of ASCII")
    return value


def consul_address(value: str) -> str:
    """`[scheme://]host[:port][/prefix]` or `unix:///path`, as CONSUL_HTTP_ADDR has it."""
    value = filled_text(value)
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


def http_auth_text(value: SecretStr) -> SecretStr:
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


def size(minimum: str, maximum: str) -> BeforeValidator:
    low, high = parse_size(minimum), parse_size(maximum)

    def check(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"must be a size (32MiB), not {kind_of(value)}")  # noqa: TRY004
        count = parse_size(str(value))
        if not low <= count <= high:
            raise ValueError(f"must be between {size_text(low)} and {size_text(high)}")
        return count

    return BeforeValidator(check)


def listen_address(value: str) -> str:
    host, _, port = value.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if ":" not in value or not port.isascii() or not port.isdigit() or int(port) > 65535 or host == "[]":
        raise ValueError(
            "must be HOST:PORT, for instance 127.0.0.1:9480 or [::1]:9480, or :9480 for all addresses "
            "(port 0: any free one)"
        )
    if not host:
        return value
    if ":" in bare:
        if not host.startswith("["):
            raise ValueError(f"must have its IPv6 address in brackets: [{bare}]:{port}")
        ipaddress.IPv6Address(bare)
    elif not _HOST.fullmatch(bare):
        raise ValueError("must be HOST:PORT, for instance 127.0.0.1:9480")
    return value


def switch_word(value: object) -> object:
    """YAML reads on and off as true and false."""
    return ("off", "on")[value] if isinstance(value, bool) else value


def page_address(value: str) -> str:
    if value in ("on", "off"):
        return value
    try:
        return listen_address(value)
    except ValueError:
        raise ValueError("must be on, off or HOST:PORT, for instance 127.0.0.1:9481") from None


def web_address(value: str) -> str:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username or not value.isascii()):
        raise ValueError("must be the address of a page without a user: https://consul.example.com/ui")
    return value


Percent = Annotated[int, BeforeValidator(_percent)]
Plain = Annotated[str, AfterValidator(plain_text)]
Filled = Annotated[str, AfterValidator(filled_text)]
Namespace = Annotated[str, full_match(LABEL, f"a namespace: {LABEL_RULE}")]
NamespaceGlob = Annotated[
    str, full_match(re.compile(r"[-a-z0-9*?\[\]!]{1,63}"), "a namespace or a shell glob of namespaces (team-*)")
]
ObjectName = Annotated[
    str, full_match(re.compile(rf"(?=.{{1,253}}$){SUBDOMAIN.pattern}"), "a name as Kubernetes takes it (lower case)")
]
HostnameTemplate = Annotated[str, AfterValidator(hostname_template)]
NameTemplate = Annotated[str, AfterValidator(name_template)]
Cidr = Annotated[str, AfterValidator(cidr)]
MetadataKey = Annotated[str, AfterValidator(_metadata_key)]
LabelValue = Annotated[str, AfterValidator(_label)]
ValueSource = Annotated[str, AfterValidator(_source_of_value)]
ProtocolSource = Annotated[str, full_match(re.compile(r"tag:.+|meta:[^=]+=.*"), "tag:TAG or meta:KEY=VALUE")]


def whole_number(minimum: int, maximum: int) -> Any:
    return Annotated[int, BeforeValidator(_whole), Field(ge=minimum, le=maximum)]


def did_you_mean(word: str, known: Sequence[str] | set[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""
