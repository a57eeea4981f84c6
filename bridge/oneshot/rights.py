"""Which rights on Kubernetes a pass lacks, all at once: an API server refuses one request at a time, naming one right.

Asked only after a refusal (a few access reviews for each namespace), so a pass that may do everything pays nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.model import Output, Policy, Rule
from bridge.errors import BridgeError
from bridge.kube.client import KubeClient
from bridge.kube.identity import who_am_i
from bridge.kube.permissions import can_i
from bridge.kube.rbac import bind, binding_of
from bridge.pipeline.scope import namespaces_of

ROLE_NAME = "consul-endpoints-bridge"

_GROUPS = {"services": "", "endpoints": "", "endpointslices": "discovery.k8s.io"}


def missing_verbs(client: KubeClient, group: str, resource: str, verbs: Sequence[str], namespace: str) -> list[str]:
    """Those of the verbs that are missing in a namespace ("" for all): `create services`."""
    return [f"{verb} {resource}" for verb in verbs if not can_i(client, verb, group, resource, namespace)]


def how_to_grant(namespace: str, user: str) -> str:
    """What grants all that a bridge needs in a namespace ("" for all) to `user`."""
    manifest = (
        f"manifests/base/role.yaml in namespace {namespace}" if namespace else "manifests/components/all-namespaces"
    )
    return f"{manifest} and bind it: {bind(binding_of(ROLE_NAME, user), ROLE_NAME, namespace, user)}"


def missing_rights(
    client: KubeClient, rules: Sequence[Rule], further: Sequence[str], policy: Policy
) -> tuple[str, ...]:
    """What a pass with these rules lacks, a sentence for each namespace; () where that cannot be found out."""
    verbs = ("list", "create", "patch", *(("delete",) if policy is Policy.SYNC else ()))
    outputs = {rule.to.output for rule in rules} or {Output.BOTH}
    needed = {
        "services": verbs if rules else ("list",),
        "endpoints": verbs if outputs != {Output.ENDPOINTSLICES} else ("list",),
        "endpointslices": verbs if outputs != {Output.ENDPOINTS} else ("list",),
    }
    found: list[str] = []
    try:
        user = who_am_i(client)
        for namespace in namespaces_of(rules, further, client.namespace) or ("",):
            lacks = [
                text
                for name, wanted in needed.items()
                for text in missing_verbs(client, _GROUPS[name], name, wanted, namespace)
            ]
            if lacks:
                where = f"in namespace {namespace}" if namespace else "in all namespaces"
                way = how_to_grant(namespace, user.name if user is not None else "")
                found.append(f"a pass lacks {where}: {', '.join(lacks)}; apply {way}")
    except BridgeError:
        return ()
    return tuple(found)
