"""Every setting with its names in the other sources, as the schema declares it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, BeforeValidator, SecretStr
from pydantic.fields import FieldInfo

from bridge.config.types import duration_text, size_text


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
    former: tuple[str, str, str]
    """Key, flag and variable that it had under an earlier name; empty where there was none."""

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
            isinstance(m, BeforeValidator) and m.func.__qualname__.startswith("size") for m in self.field.metadata
        )

    @property
    def is_switch(self) -> bool:
        return self.field.annotation in (bool, bool | None)

    @property
    def is_duration(self) -> bool:
        """Whether it is written `30s`."""
        return any(
            isinstance(m, BeforeValidator) and m.func.__qualname__.startswith(("duration", "duration_or_never"))
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


def leaves(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        path = (*above, name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, path)
        elif isinstance(field.json_schema_extra, dict):
            extra: Mapping[str, Any] = field.json_schema_extra
            flag = extra["flag"]
            env = extra["env"] or _variable(flag, path)
            former = _former(extra["was"], flag, above) if extra["was"] else ("", "", "")
            yield Setting(
                path, flag, env, tuple(extra["also"]), extra["secret"], field.description or "", field, former
            )


def _variable(flag: str, path: tuple[str, ...]) -> str:
    return rule_env(flag or "_".join(path))


def _former(was: str, flag: str, above: tuple[str, ...]) -> tuple[str, str, str]:
    former_flag = f"--{was.replace('_', '-')}" if flag else ""
    return ".".join((*above, was)), former_flag, _variable(former_flag, (*above, was))


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
    return "BRIDGE_" + flag.removeprefix("--").replace("-", "_").upper()
