"""The whole tree of settings, and the part of it that each package gets.

Longer than other modules: it is one class, and the parts are best read beside the tree that they come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, PrivateAttr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bridge.config.catalogue import Setting, leaves
from bridge.config.rules import GrantSettings, RouteSettings, RuleSettings
from bridge.config.schema import (
    BackoffSettings,
    ConsulSettings,
    DnsSettings,
    GuardSection,
    KubernetesSettings,
    LogSettings,
    RetrySettings,
    RunSettings,
    SyncSettings,
    leaf,
)
from bridge.config.sources import Layer, LayerSource, Place
from bridge.config.types import LABEL_VALUE, VALUE_RULE, full_match
from bridge.config.yaml_file import Key
from bridge.core.model import (
    Adopt,
    Amount,
    Bounds,
    Combine,
    Destination,
    Failover,
    InstanceRules,
    Parent,
    Policy,
    RouteRule,
    Rule,
    Treatment,
)

if TYPE_CHECKING:
    from bridge.consul.client import ConsulConfig
    from bridge.controller.options import RunOptions
    from bridge.core.annotated import Annotated as AnnotatedPolicy
    from bridge.core.guard import GuardSettings
    from bridge.core.select import Only
    from bridge.kube.client import KubeConfig
    from bridge.kube.members import ElectionConfig
    from bridge.oneshot.inputs import SyncOptions
    from bridge.pipeline.dns import ResolverSettings
    from bridge.retry import RetryPolicy


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=_Dataclass)

SERVICE_ACCOUNT_TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
"""Where Kubernetes puts a pod's token."""


class Settings(BaseSettings):
    """Everything that a user can say. Made by `load`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    owner: Annotated[str, full_match(LABEL_VALUE, VALUE_RULE)] = leaf(
        "default",
        "Owner id: label `consul-bridge/owner` of all that we make. Bridges with different ids never touch each "
        "other's objects. Default where `run.instance_name` is set, as the manifests do: that, with a dot for the "
        "slash (`storage.consul-endpoints-bridge`), so that two installations never delete each other's objects.",
        flag="--owner",
    )
    policy: Policy = leaf(
        Policy.SYNC, "What may be done to our own objects: all, never delete one, or only create.", flag="--policy"
    )
    adopt: Adopt = leaf(
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
        description="Who may ask for what by annotated Services; `[]`: no namespace. Default: users of the one "
        "namespace that is watched may ask for everything; where several are watched, no further Service is filled.",
    )

    _places: Mapping[Key, Place] = PrivateAttr(default_factory=dict)
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
        """The layers that `load` passes replace pydantic-settings' own sources: they know their places."""
        del env_settings, dotenv_settings, file_secret_settings
        layers: Sequence[Layer] = init_settings()["layers"]
        return tuple(LayerSource(settings_cls, layer) for layer in layers)

    # ------------------------------------------------------------------ what other packages need

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about these settings (log them once, as warnings)."""
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
        """Whether a file's rules, or a flag or variable that selects, say which services are meant.

        Otherwise one rule takes every service: good enough to look, not to write.
        """
        if self.rules is None:
            return False
        return not self._partial_selection or any(rule.services or rule.tags or rule.filter for rule in self.rules)

    def core_rules(self, default_namespace: str = "default") -> tuple[Rule, ...]:
        return tuple(self._core_rule(n, rule, default_namespace) for n, rule in enumerate(self._rules()))

    @property
    def partial_selection(self) -> bool:
        """Whether flags or variables (not a file) say what is selected: then the rest is left alone, not removed."""
        return self._partial_selection

    def consul_config(self) -> ConsulConfig:
        from bridge.consul.client import ConsulConfig

        c = self.consul
        return made(
            ConsulConfig,
            c,
            address=self.consul_url(),
            token=c.token.get_secret_value(),
            auth_token_file=(c.auth_token_file or SERVICE_ACCOUNT_TOKEN) if c.auth_method else "",
            http_auth=c.http_auth.get_secret_value(),
            proxies=self._proxies,
            wait_seconds=c.wait,
            connect_timeout_seconds=c.connect_timeout,
            timeout_margin_seconds=c.timeout_margin,
            max_stale_seconds=c.max_stale,
            max_answer_bytes=c.max_answer,
        )

    def kube_config(self) -> KubeConfig:
        from bridge.kube.client import KubeConfig

        k = self.kubernetes
        return made(
            KubeConfig,
            k,
            namespaces=("*",) if "*" in k.watch_namespaces else k.watch_namespaces,
            request_timeout_seconds=k.request_timeout,
            connect_timeout_seconds=k.connect_timeout,
            max_answer_bytes=k.max_answer,
            connections=k.writers + 4,  # the watches need theirs beside the writers
        )

    def guard_settings(self) -> GuardSettings:
        from bridge.core.guard import GuardSettings

        g = self.guard
        return GuardSettings(
            removal_percent=g.removal_threshold,
            removal_minimum=g.removal_minimum,
            panic_percent=g.panic_threshold,
            window_seconds=g.window,
            restore_hold_seconds=g.restore_hold,
            hold_release_seconds=g.hold_release,
            command=self._command,
        )

    def bounds(self, own_namespace: str = "") -> Bounds:
        """What no rule and no user's Service can leave. `own_namespace` is the one that the bridge runs in."""
        guard = self.guard
        return made(
            Bounds,
            guard,
            deny_cidrs=tuple(dict.fromkeys((*guard.deny_cidrs, *guard.extra_deny_cidrs))),
            api_server=self._api_server,
            host_names=self.dns.resolve,
            reserved_namespaces=tuple(dict.fromkeys(name for name in ("kube-*", "default", own_namespace) if name)),
        )

    def annotated_policy(self) -> AnnotatedPolicy:
        """Who may ask for what by annotated Services, within the same bounds as the rules."""
        from bridge.core.annotated import Annotated as AnnotatedPolicy
        from bridge.core.annotated import Grant

        grants = None if self.annotated is None else tuple(Grant(**grant.model_dump()) for grant in self.annotated)
        return AnnotatedPolicy(self.bounds(), grants)

    def resolver_settings(self) -> ResolverSettings:
        from bridge.pipeline.dns import ResolverSettings

        d = self.dns
        return ResolverSettings(
            ttl_seconds=d.ttl, retry_seconds=d.retry, parallel=d.max_concurrent, wait_seconds=d.wait
        )

    def _of_every_pass(self) -> dict[str, Any]:
        """The fields of `PassOptions`."""
        return {
            "owner": self.owner,
            "installation": self.run.instance_name,
            "policy": self.policy,
            "adopt": self.adopt,
            "partial_selection": self.partial_selection,
            "guard": self.guard_settings(),
            "resolver": self.resolver_settings(),
            "cluster_nodes": self.kubernetes.nodes,
            "annotated": self.annotated_policy(),
            "writers": self.kubernetes.writers,
        }

    def run_options(self) -> RunOptions:
        from bridge.controller.options import RunOptions

        return RunOptions(
            **self._of_every_pass(),
            removal_grace_seconds=self.run.removal_grace_period,
            resync_seconds=self.run.resync,
            election=self._election(),
            events=self.run.events,
            consul_retry=retry_policy(self.retry.consul),
            kube_retry=retry_policy(self.retry.kubernetes),
            object_retry=retry_policy(self.retry.object),
            permanent_retry=retry_policy(self.retry.permanent),
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
        from bridge.oneshot.inputs import SyncOptions

        return SyncOptions(
            **self._of_every_pass(),
            selects=self.selects,
            dry_run=self.sync.dry_run,
            force=self.sync.force,
            leases=self.run.leader_elect or self.run.shards > 1,
            lease_namespace=self.run.lease_namespace,
            only=self.only(),
            readers=min(16, self.consul.connections),
            retry=self.one_shot_retry(),
        )

    def one_shot_retry(self) -> RetryPolicy:
        """How often and how long a command (not the daemon) tries again."""
        from bridge.retry import RetryPolicy

        return RetryPolicy(
            attempts=self.retry.attempts,
            initial_seconds=max(self.retry.consul.initial_interval, 0.2),
            max_seconds=min(self.retry.consul.max_interval, 5.0),
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

    def files(self) -> dict[str, str]:
        """The files that have to be there where the bridge runs, by the setting that names them."""
        c = self.consul
        named = {"token_file": c.token_file, "auth_token_file": c.auth_token_file, "ca_file": c.ca_file,
                 "ca_path": c.ca_path, "client_cert": c.client_cert, "client_key": c.client_key}  # fmt: skip
        return {f"consul.{name}": path for name, path in named.items() if path}

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

    def changed(self) -> tuple[str, ...]:
        """Paths of the settings that are not as by default, and of those that say what is mirrored, and from where."""
        differing = {".".join(s.path) for s in catalogue() if self._value(s.path) != s.field.get_default()}
        differing |= {"consul.address", "owner", "rules", *(["annotated"] if self.annotated is not None else [])}
        return tuple(path for path in self.effective() if path in differing)

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
        return made(
            Rule,
            rule,
            name=rule.name or self._rule_name(position),
            namespace=rule.namespace or self.consul.namespace,
            partition=rule.partition or self.consul.partition,
            unlisted=self._is_pinned(rule),
            continues=rule.continue_,
            combine=None if rule.combine is None else Combine(rule.combine),
            failover=Failover(
                below=int(str(rule.failover_below).rstrip("%")),
                percent=str(rule.failover_below).endswith("%"),
                when_unreachable=rule.failover_when == "unreachable",
                unreachable_seconds=rule.unreachable_after,
                failback_seconds=rule.failback_after,
            ),
            place=self._rule_place(position),
            to=made(
                Destination,
                to,
                namespace=to.namespace if to.namespace is not None else default_namespace,
                headless=to.type == "Headless",
                type=to.type if to.type is not None and to.type != "Headless" else "",
                port=to.port or 0,
                route=None if to.route is None else _core_route(to.route),
            ),
            instances=made(
                InstanceRules,
                instances,
                warning=Treatment(instances.warning),
                critical=Treatment(instances.critical),
                maintenance=Treatment(instances.maintenance),
                bounds=self.bounds(default_namespace),
                settle_seconds=instances.settle,
                min_ready=_amount(instances.min_ready),
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
        from bridge.kube.members import ElectionConfig

        if not self.run.leader_elect and self.run.shards == 1:
            return None
        return ElectionConfig(
            owner=self.owner,
            installation=self.run.instance_name,
            namespace=self.run.lease_namespace,
            shards=self.run.shards,
            duration_seconds=round(self.run.lease_duration),
        )


def retry_policy(backoff: BackoffSettings) -> RetryPolicy:
    from bridge.retry import RetryPolicy

    return RetryPolicy(
        initial_seconds=backoff.initial_interval, max_seconds=backoff.max_interval, multiplier=backoff.multiplier
    )


def _core_route(route: RouteSettings) -> RouteRule:
    parents = (Parent(p.name, p.namespace or "", p.section_name or "", p.port or 0) for p in route.parents)
    return RouteRule(parents=tuple(parents), hostnames=route.hostnames, path=route.path, port=route.port or "")


def made(kind: type[T], section: BaseModel, **others: Any) -> T:
    """`kind` of what a section has under the same names (mappings as sorted pairs), and of `others`."""
    alike = {f.name: getattr(section, f.name) for f in fields(kind) if f.name in type(section).model_fields}
    return kind(**{name: pairs(v) if isinstance(v, Mapping) else v for name, v in alike.items()} | others)


def pairs(mapping: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(mapping.items()))


def catalogue() -> tuple[Setting, ...]:
    """All settings but the rules, in the order of the tree."""
    return tuple(leaves(Settings, ()))


def _amount(text: int | str | None) -> Amount:
    """A number of instances, or a percentage of them (`number_or_percent`)."""
    return Amount(int(str(text or 0).rstrip("%")), percent=str(text).endswith("%"))
