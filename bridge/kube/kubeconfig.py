"""Reads kubeconfig files the way kubectl does: which files, which entry wins, and what a relative path is relative to.

The `kubernetes` package has its own reader, which differs where it matters (kubernetes 37: relative paths of a user are
taken relative to the cluster's file, the last current-context wins instead of the first, impersonation and unknown
fields are ignored). So the files are merged here by client-go's rules, and the package gets one context with absolute
paths. Nothing is sent and no credential is read here, so a namespace can be asked for without running a plugin.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import ConfigurationError
from bridge.kube import faults

_USER_FIELDS = frozenset(
    {
        "as", "as-groups", "as-uid", "as-user-extra", "auth-provider", "client-certificate", "client-certificate-data",
        "client-key", "client-key-data", "exec", "extensions", "password", "token", "tokenFile", "username",
    }
)  # fmt: skip
_SECTIONS = ("clusters", "users", "contexts")
_USER_PATHS = ("client-certificate", "client-key", "tokenFile")
_CLUSTER_PATHS = ("certificate-authority",)
_DATA = ("certificate-authority-data", "client-certificate-data", "client-key-data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One context, its paths absolute. `cluster_file` and `user_file` are the kubeconfigs that the entries stand in."""

    name: str
    namespace: str
    cluster: Mapping[str, Any] = field(repr=False)
    user: Mapping[str, Any] = field(repr=False)
    cluster_file: str
    user_file: str

    @property
    def impersonation(self) -> tuple[tuple[str, str], ...]:
        """The headers that make the API server act as another user, () for none."""
        user = self.user
        if not user.get("as"):
            return ()
        headers = [("Impersonate-User", str(user["as"]))]
        if user.get("as-uid"):
            headers.append(("Impersonate-Uid", str(user["as-uid"])))
        headers += [("Impersonate-Group", str(group)) for group in user.get("as-groups") or ()]
        for key, values in sorted((user.get("as-user-extra") or {}).items()):
            headers += [(f"Impersonate-Extra-{_escaped(str(key))}", str(value)) for value in values or ()]
        return tuple(headers)


def files_of(named: str) -> list[str]:
    """The kubeconfig files that exist: the named ones, else $KUBECONFIG's, else ~/.kube/config. Absolute, in order."""
    listed = named or os.environ.get("KUBECONFIG", "")
    paths = [Path(p).expanduser() for p in listed.split(os.pathsep) if p] or [Path("~/.kube/config").expanduser()]
    found = [str(path.absolute()) for path in dict.fromkeys(paths) if path.is_file()]
    if named and not found:
        if any(path.is_dir() for path in paths):
            raise ConfigurationError(
                f"kubeconfig {named} is a directory: name the file in it (a container engine makes a directory of a "
                "mounted file that does not exist)"
            )
        raise ConfigurationError(f"kubeconfig {named} does not exist; --kubeconfig or KUBECONFIG names another one")
    return found


def read(files: Iterable[str], wanted: str = "") -> Context:
    """The context `wanted`, or the current one. Raises ConfigurationError with the file and how to fix it."""
    names = list(files)
    loaded = [(file, _load(file)) for file in names]
    shown = os.pathsep.join(names)
    entries = {section: _merged(section, loaded) for section in _SECTIONS}
    contexts = entries["contexts"]
    name = wanted or next((str(data["current-context"]) for _, data in loaded if data.get("current-context")), "")
    if not name:
        raise ConfigurationError(
            f"kubeconfig {shown} has no current-context: choose one with --context ({_list(contexts)})"
        )
    if name not in contexts:
        raise ConfigurationError(f'kubeconfig {shown} has no context "{name}"; there are: {_list(contexts)}')
    context, _ = contexts[name]
    chosen: dict[str, tuple[dict[str, Any], str]] = {}
    for what in ("cluster", "user"):
        key = str(context.get(what) or "")
        if not key and what == "cluster":
            raise ConfigurationError(f'kubeconfig {shown}: context "{name}" names no cluster')
        if key and key not in entries[f"{what}s"]:
            raise ConfigurationError(f'context "{name}" names {what} "{key}", which kubeconfig {shown} lacks')
        chosen[what] = entries[f"{what}s"].get(key, ({}, names[0]))
    (cluster, cluster_file), (user, user_file) = chosen["cluster"], chosen["user"]
    _check_user(user, str(context.get("user") or ""), user_file)
    _check_data(user, f'kubeconfig {user_file}: user "{context.get("user")}"')
    _check_data(cluster, f'kubeconfig {cluster_file}: cluster "{context["cluster"]}"')
    return Context(
        name=name,
        namespace=str(context.get("namespace") or "default"),
        cluster=_absolute(cluster, _CLUSTER_PATHS, cluster_file),
        user=_absolute(user, _USER_PATHS, user_file),
        cluster_file=cluster_file,
        user_file=user_file,
    )


def _load(file: str) -> dict[str, Any]:
    import yaml

    from bridge.config import yaml_file

    try:
        data = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(f"kubeconfig {yaml_file.fault_of(error, file)}") from None
    except OSError as error:
        raise ConfigurationError(f"kubeconfig {file} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # a tag that its value does not fit, too
        problem = faults.trim(yaml_file.unquoted(str(error)), 200)
        raise ConfigurationError(f"kubeconfig {file} cannot be read: {problem}") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"kubeconfig {file} is {'empty' if data is None else 'no mapping'}")
    return data


def _merged(section: str, loaded: list[tuple[str, dict[str, Any]]]) -> dict[str, tuple[dict[str, Any], str]]:
    """Entries by name, each with its file; the first file that names an entry decides all of it."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for file, data in loaded:
        entries = data.get(section) or []
        if not isinstance(entries, list):
            raise ConfigurationError(f"kubeconfig {file}: {section} is no list")
        for entry in entries:
            body = entry.get(section[:-1], {}) if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or "name" not in entry or not isinstance(body or {}, dict):
                raise ConfigurationError(
                    f"kubeconfig {file}: an entry of {section} is not {{name: ..., {section[:-1]}: {{...}}}}"
                )
            found.setdefault(str(entry["name"]), (dict(body or {}), file))
    return found


def _check_data(entry: Mapping[str, Any], where: str) -> None:
    for key in (key for key in _DATA if entry.get(key)):
        try:
            base64.b64decode(str(entry[key]))
        except ValueError as error:
            raise ConfigurationError(f"{where}: {key} is no whole base64: copy it again") from error


def _check_user(user: Mapping[str, Any], name: str, file: str) -> None:
    where = f'kubeconfig {file}: user "{name}"'
    unknown = sorted(str(key) for key in user if key not in _USER_FIELDS)
    if unknown:
        raise ConfigurationError(
            f"{where} has {', '.join(unknown)}, which the bridge does not know, so it would act as another user than "
            "meant; remove it, or check its spelling"
        )
    more = [key for key in ("as-uid", "as-groups", "as-user-extra") if user.get(key)]
    if more and not user.get("as"):
        raise ConfigurationError(f"{where} has {', '.join(more)} without as: name the user to impersonate")
    groups, extra = user.get("as-groups") or [], user.get("as-user-extra") or {}
    if not isinstance(groups, list):
        raise ConfigurationError(f"{where}: as-groups is no list")
    if not isinstance(extra, dict) or not all(isinstance(values or [], list) for values in extra.values()):
        raise ConfigurationError(f"{where}: as-user-extra is no mapping of lists")
    if user.get("token") and (user.get("username") or user.get("password")):
        raise ConfigurationError(f"{where} has a token and a username: leave one of them")
    certificate = user.get("client-certificate") or user.get("client-certificate-data")
    key = user.get("client-key") or user.get("client-key-data")
    if bool(certificate) != bool(key):
        missing = "client-key" if certificate else "client-certificate"
        raise ConfigurationError(f"{where} has only half of a client certificate: {missing} is missing")
    provider = user.get("auth-provider")
    if provider is not None:
        kind = str(provider.get("name")) if isinstance(provider, dict) else "?"
        if user.get("exec"):
            raise ConfigurationError(f"{where} has auth-provider and exec: leave one of them")
        if kind != "oidc":
            plugin = " (gke-gcloud-auth-plugin)" if kind == "gcp" else ""
            raise ConfigurationError(f"{where}: auth-provider {kind} is not supported; use an exec plugin{plugin}")
    if user.get("exec") is not None:
        plugin = user["exec"]
        lacking = [key for key in ("command", "apiVersion") if not isinstance(plugin, dict) or not plugin.get(key)]
        if lacking:
            raise ConfigurationError(f"{where}: exec has no {' and no '.join(lacking)}")


def _absolute(entry: Mapping[str, Any], fields: Iterable[str], file: str) -> dict[str, Any]:
    """The entry with paths taken relative to its own file; a bare command is looked up in PATH, as kubectl does."""
    base = Path(file).parent
    found = dict(entry)
    for key in fields:
        if found.get(key):
            found[key] = os.path.normpath(base / str(found[key]))
    plugin = found.get("exec")
    if isinstance(plugin, dict) and os.sep in str(plugin.get("command", "")):
        found["exec"] = {**plugin, "command": os.path.normpath(base / str(plugin["command"]))}
    return found


def _escaped(key: str) -> str:
    """A key of `as-user-extra` as part of a header's name: what a header cannot have is percent-encoded."""
    legal = "!#$&'*+-.^_`|~"
    return "".join(
        c if c.isascii() and (c.isalnum() or c in legal) else "".join(f"%{b:02X}" for b in c.encode()) for c in key
    )


def _list(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"
