"""The kubectl commands that grant what is missing: a Role alone grants nothing, so each comes with its binding."""

from __future__ import annotations

import re
import shlex

ANONYMOUS = "system:anonymous"
"""Whom the API server takes a request without credentials for; no message says how to give rights to that."""

_ACCOUNT = "system:serviceaccount:"


def grant(name: str, verbs: str, resources: str, namespace: str, user: str) -> str:
    """Commands that let `user` do `verbs` to `resources` in a namespace, "" for all; each of both joined by commas."""
    flag = f" -n {namespace}" if namespace else ""
    create = f"kubectl create {_kind(namespace)} {name} --verb={verbs} --resource={resources}{flag}"
    return f"{create} && {bind(name, name, namespace, user)}"


def bind(binding: str, role: str, namespace: str, user: str) -> str:
    """The command that gives `user` a role that is there. `user` as Kubernetes names it; "": the reader fills it in."""
    kind, flag = _kind(namespace), f" -n {namespace}" if namespace else ""
    account = user.removeprefix(_ACCOUNT)
    name = "USER" if user in ("", ANONYMOUS) else user
    who = f"--serviceaccount={account}" if user != account else f"--user={shlex.quote(name)}"
    return f"kubectl create {kind}binding {binding} --{kind}={role} {who}{flag}"


def binding_of(role: str, user: str) -> str:
    """A name for the binding that gives `user` a role of the manifests, which have bindings of their own."""
    return f"{role}-{re.sub('[^a-z0-9]+', '-', user.removeprefix(_ACCOUNT).lower()).strip('-') or 'user'}"


def _kind(namespace: str) -> str:
    return "role" if namespace else "clusterrole"
