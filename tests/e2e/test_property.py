"""Random catalogs and objects on the real API server: what the unit tests prove on values holds where they are stored.

The server canonicalises what one writes, its control plane mirrors Endpoints and deletes what has no Service, and
other programs' objects stand in the way: plans must come to rest there, at just what is desired.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bridge.core import normalize
from bridge.core.mirroring import may_refuse, why_not_mirrored
from bridge.core.model import Current, Instance, Known, Mirror, Output, Plan, Query, Rule, Target
from bridge.core.plan import plan
from bridge.core.reasons import Code
from bridge.core.translate import translate
from bridge.errors import StaleError
from bridge.kube.client import KubeClient
from bridge.kube.mirrored import mirrored
from bridge.kube.reads import list_once
from bridge.kube.writer import Writer
from tests.support.lab import Lab
from tests.support.options import kube_config
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawKube
from tests.unit.core.test_properties import catalogs, rules

pytestmark = [pytest.mark.lab, pytest.mark.slow]

Json = dict[str, Any]
OWNER = "default"
QUERY = Query("dc1", "web")
SECONDS = 30.0
OUTPUTS = tuple(Output)
STRANGERS = ("nothing", "nothing", "a Service for pods", "a Service", "Endpoints", "a slice", "another bridge")


class Place:
    """A namespace of one example, as the bridge's own room for Kubernetes reads and writes it."""

    numbers = itertools.count()

    def __init__(self, client: KubeClient, kube: RawKube) -> None:
        self.target = Target(f"example-{next(self.numbers)}", "web")
        self._client, self._kube, self._writer = client, kube, Writer(client)
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.target.namespace}}
        kube.json("POST", "/api/v1/namespaces", body)

    def current(self, owner: str = OWNER) -> Current:
        """What exists now, with the control plane's mirror."""
        store = list_once(self._client, (self.target.namespace,), owner)
        return replace(store.current(self.target), mirrored=mirrored(self._client, self.target))

    def settle(self, found: Sequence[Instance], rule: Rule, owner: str = OWNER) -> tuple[Mirror | None, Plan]:
        """Plan and write until there is nothing left to do; the last mirror and its (empty) plan.

        Only while the control plane is waited for may a plan be followed by another that writes.
        """
        deadline = time.monotonic() + SECONDS
        waited = True
        while time.monotonic() < deadline:
            current = self.current(owner)
            desired = translate(self.target, [(rule, QUERY, Known(tuple(found)))], current).mirror
            made = plan(self.target, desired, current, owner=owner)
            assert waited or not made.writes, made.writes
            if not made.writes and not made.unmirrored:
                return desired, made
            try:
                for change in made.writes:
                    self._writer.apply(change)
                waited = made.unmirrored
            except StaleError:  # the control plane was there in between
                waited = True
        raise AssertionError(f"no rest within {SECONDS:.0f} s")

    def stranger(self, kind: str) -> list[str]:
        """Put another owner's objects there; their paths."""
        paths = {base: base.format(namespace=self.target.namespace) for base in (SERVICES, ENDPOINTS, SLICES)}
        port = [{"port": 80, "protocol": "TCP"}]
        meta: Json = {"name": self.target.name}
        service: Json = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": port}}
        match kind:
            case "a Service for pods":
                service["spec"]["selector"] = {"app": "web"}
                self._kube.json("POST", paths[SERVICES], service)
                return [f"{paths[SERVICES]}/web"]
            case "a Service":
                self._kube.json("POST", paths[SERVICES], service)
                return [f"{paths[SERVICES]}/web"]
            case "Endpoints":
                self._kube.json("POST", paths[SERVICES], {**service, "metadata": {"name": "web"}})
                subsets = [{"addresses": [{"ip": "10.9.9.9"}], "ports": port}]
                body = {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": subsets}
                self._kube.json("POST", paths[ENDPOINTS], body)
                return [f"{paths[SERVICES]}/web", f"{paths[ENDPOINTS]}/web"]
            case "a slice":
                labels = {"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "somebody"}
                body = {
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                    "metadata": {"name": "theirs", "labels": labels}, "endpoints": [{"addresses": ["10.9.9.9"]}],
                    "ports": [{"port": 80}],
                }  # fmt: skip
                self._kube.json("POST", paths[SLICES], body)
                return [f"{paths[SLICES]}/theirs"]
            case "another bridge":
                self.settle([_instance("10.9.9.9")], Rule(), "another")
                return [f"{paths[SERVICES]}/web", f"{paths[ENDPOINTS]}/web"]
            case _:
                return []

    def versions(self, paths: Sequence[str]) -> list[str | None]:
        """Versions of objects, None for one that is gone."""
        found = [self._kube.get(path) for path in paths]
        return [f["metadata"]["resourceVersion"] if f is not None else None for f in found]


def _instance(address: str) -> Instance:
    from bridge.core.model import Status

    return Instance(node="vm", id="i", address=address, node_address="", port=80, status=Status.PASSING)


def holds(current: Current, desired: Mirror | None, last: Plan) -> None:
    """Kubernetes has just what is desired, and no endpoint in two slices.

    With the output endpoints, slices of ours carry the addresses where the control plane's mirror cannot, or where it
    could fail again; the plan says so then.
    """
    ours = [s for s in current.slices if s.meta.owner == OWNER]
    mine = current.endpoints if current.endpoints is not None and current.endpoints.meta.owner == OWNER else None
    inside = [(s.group.family, s.group.ports, e) for s in ours for e in s.group.endpoints]
    if desired is None:
        assert (inside, mine) == ([], None)
        return
    wanted = {(g.family, g.ports, e) for g in desired.groups for e in g.endpoints}
    assert len(inside) == len({(family, ports, e.address) for family, ports, e in inside})
    instead = bool({w.code for w in last.warnings} & {Code.MIRROR_REFUSED, Code.MIRROR_DOUBTFUL})
    refused = bool(why_not_mirrored(desired.groups))
    if desired.output is Output.ENDPOINTS:
        assert instead or not refused
        assert not instead or refused or may_refuse(desired.groups)
    assert set(inside) == (wanted if instead or desired.output is not Output.ENDPOINTS else set())
    assert all(len(s.group.endpoints) <= desired.max_endpoints_per_slice for s in ours)
    if desired.output is Output.ENDPOINTSLICES:
        assert mine is None
    else:
        assert mine is not None
        assert mine.groups == normalize.without_conditions(desired.groups)


@pytest.mark.parametrize("before", OUTPUTS)
@pytest.mark.parametrize("after", OUTPUTS)
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes on servers
)  # fmt: skip
@given(
    stranger=st.sampled_from(STRANGERS),
    first=catalogs,
    second=catalogs,
    one=rules(),
    other=rules(),
)
def test_plans_come_to_rest_at_what_is_desired_and_touch_nothing_of_others(
    dual: Lab, before: Output, after: Output, stranger: str, first: list[Instance], second: list[Instance],
    one: Rule, other: Rule,
) -> None:  # fmt: skip
    """Each output and each way from one to another, whatever else exists."""
    client = KubeClient(kube_config(kubeconfig=str(dual.kubeconfig)))
    try:
        with dual.raw_kube() as kube:
            place = Place(client, kube)
            theirs = place.stranger(stranger)
            untouched = place.versions(theirs)
            for found, rule, output in ((first, one, before), (second, other, after)):
                desired, last = place.settle(found, replace(rule, to=replace(rule.to, output=output)))
                current = place.current()
                if not last.conflicts:
                    holds(current, desired, last)
                else:
                    assert stranger != "nothing"
                    assert not any(s.meta.owner == OWNER for s in current.slices) or current.service is not None
                assert place.versions(theirs) == untouched
    finally:
        client.close()
