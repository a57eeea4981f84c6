"""What `bridge status` and `bridge explain` say, between a fake Consul and a fake Kubernetes: what `sync` would do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bridge.core.annotated import Annotated
from bridge.core.explain import Explanation
from bridge.core.model import Adopt, Destination, Output, Rule
from bridge.oneshot.inputs import SyncOptions
from bridge.oneshot.inspection import Explained, Status, explain_once, status_once
from bridge.oneshot.sync import sync_once
from bridge.render.inspections import explanation_text
from bridge.report import Report
from bridge.retry import RetryPolicy
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube
from tests.support.options import consul_config, kube_config, sync_options

OPTIONS = sync_options(retry=RetryPolicy(initial_seconds=0.01, max_seconds=0.05, attempts=2))


@dataclass
class Harness:
    """Both sides, and the three commands that compare them."""

    consul: FakeConsul
    kube: FakeKube
    folder: Path
    rules: tuple[Rule, ...] = (Rule(),)
    options: SyncOptions = OPTIONS

    def sync(self, **more: Any) -> Report:
        """One pass."""
        return sync_once(**self._sides(), options=replace(self.options, **more))

    def planned(self) -> Mapping[str, int]:
        """What a pass would do, in numbers."""
        return {k: n for k, n in self.sync(dry_run=True).to_json()["summary"].items() if n}

    def status(self) -> Status:
        """Both sides side by side."""
        return status_once(**self._sides(), options=self.options)

    def states(self) -> dict[str, str]:
        """The state of each service."""
        return {row.name: row.state for row in self.status().services}

    def explain(self, service: str) -> list[Explanation]:
        """Why each instance is where it is."""
        explained = self.explained(service)
        assert explained.trouble == ()
        return list(explained.explanations)

    def explained(self, service: str, **options: Any) -> Explained:
        """The same with what is reported first."""
        return explain_once(service, **self._sides(), options=replace(self.options, **options))

    def register(self, count: int, name: str = "s{n}", status: str = "passing") -> None:
        """Instances on VMs of their own; without `{n}` in the name they are of one service."""
        for n in range(count):
            self.consul.register(name.format(n=n), f"vm-{n}", f"10.0.1.{n + 1}", 80, status=status)

    def deregister(self, count: int, name: str = "s{n}") -> None:
        """Take them out again."""
        for n in range(count):
            self.consul.deregister(name.format(n=n), f"vm-{n}")

    def person(self, name: str, annotations: Mapping[str, str] | None = None) -> None:
        """A Service that a user made; with annotations (even none) it asks to be filled."""
        metadata: dict[str, Any] = {"name": name, "namespace": "default"}
        if annotations is not None:
            metadata |= {"labels": {"consul-bridge/mirror": "true"}, "annotations": dict(annotations)}
        spec = {"ports": [{"port": 80, "protocol": "TCP"}]}
        self.kube.put("services", {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})

    def addresses(self, name: str) -> list[str]:
        """What the Endpoints of this name list as ready."""
        return self.kube.ready_addresses("default", name) or []

    def slice(self, service: str) -> Any:
        """The only EndpointSlice of ours for this Service."""
        keys = list(self.kube.objects["discovery.k8s.io", "endpointslices"])
        ((namespace, name),) = (key for key in keys if key[1].startswith(f"{service}-"))
        return self.kube.get("endpointslices", namespace, name)

    def _sides(self) -> dict[str, Any]:
        return {
            "consul": consul_config(address=self.consul.address),
            "kube": kube_config(kubeconfig=self.kube.kubeconfig(self.folder)),
            "rules": self.rules,
            "stop": threading.Event(),
        }


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """Two datacenters, one namespace."""
    with FakeConsul(("dc1", "dc2")) as consul, FakeKube() as kube:
        yield Harness(consul, kube, tmp_path)


def test_a_filter_that_consul_refuses_is_the_reason_in_its_own_row(harness: Harness) -> None:
    """Consul was asked, and answers what other Services ask: it does not read as if it were away."""
    harness.register(1, "web")
    harness.person("odd", {"consul-bridge/service": "web", "consul-bridge/filter": "((("})
    details = {row.name: row.detail for row in harness.status().services}
    assert details["odd"].startswith("Consul cannot use the filter '(((': ")
    assert details["odd"].endswith("; what is there stays")


# --------------------------------------------------------------------------- what cannot be made


def test_a_namespace_that_does_not_exist_is_the_reason_that_is_given(harness: Harness) -> None:
    """In the row and by `explain`, as by a dry run; where it may not be looked at, what is to be written."""
    harness.rules = (Rule(to=Destination(namespace="nosuch")),)
    harness.register(1)
    reason = "namespace nosuch does not exist: kubectl create namespace nosuch"
    assert [row.detail for row in harness.status().services] == [reason]
    assert [found.warnings for found in harness.explain("s0")] == [(reason,)]
    harness.kube.forbid("admin", "get", "namespaces", "*")
    assert [row.detail for row in harness.status().services] == [
        "create Service, create EndpointSlice, create Endpoints"
    ]
    assert [found.warnings for found in harness.explain("s0")] == [()]


def test_a_service_that_is_not_made_says_why(harness: Harness) -> None:
    """Its only instance cannot be reached and the rule gives no port: nothing is the right content, and no success."""
    harness.consul.register("web", "vm-1", "127.0.0.1", 80)
    harness.sync()
    (row,) = harness.status().services
    assert row.mark == "no_ready_endpoint"
    assert row.detail.startswith("skipped: vm-1/web-vm-1: 127.0.0.1 is a loopback address")
    (explanation,) = harness.explain("web")
    assert explanation.problem.startswith("no instance has an address that can be used")
    assert "Kubernetes holds exactly this" not in explanation_text(explanation)


# --------------------------------------------------------------------------- what is held


@pytest.mark.parametrize("sick", [False, True], ids=["they vanish", "they turn critical"])
def test_many_small_services_that_go_together_are_held_in_every_command(harness: Harness, sick: bool) -> None:
    """None of them is much by itself; sync judges them together, and so do status and explain."""
    harness.register(20)
    harness.sync()
    if sick:
        harness.register(20, status="critical")
    else:
        harness.deregister(20)
    assert harness.planned()["held"] == 20
    status = harness.status()
    assert Counter(row.state for row in status.services) == {"held": 20}
    assert {(row.consul_ready, row.consul_not_ready, row.kubernetes_ready) for row in status.services} == {
        (0, int(sick), 1)
    }
    (explanation,) = harness.explain("s7")
    assert (explanation.target, explanation.differences) == ("default/s7", ())
    assert explanation.held == tuple(row.reason for row in status.held if row.name == "s7")
    assert "20 of 20 ready endpoints" in explanation.held[0]


def test_a_service_that_loses_little_is_not_held_whatever_else_there_is(harness: Harness) -> None:
    """One of twenty: the next pass writes, and all three commands say so."""
    harness.register(20)
    harness.sync()
    harness.deregister(1)
    assert harness.planned() == {"delete": 3, "unchanged": 57}
    assert Counter(harness.states().values()) == {"in_sync": 19, "out_of_sync": 1}
    (explanation,) = harness.explain("s0")
    assert (explanation.held, len(explanation.differences)) == ((), 3)


def test_the_others_are_read_only_when_something_is_lost(harness: Harness) -> None:
    """To explain a healthy service costs no more in a large catalog; trouble of other services is not its own."""
    harness.register(20)
    harness.sync()
    asked = len(harness.consul.requests)
    harness.explain("s3")
    read = {r.path for r in harness.consul.requests[asked:] if "/health/service/" in r.path}
    assert read == {"/v1/health/service/s3"}


# --------------------------------------------------------------------------- what is gone


def test_a_vanished_service_that_is_held_is_explained_with_what_is_kept(harness: Harness) -> None:
    """It is not listed any more, so only Kubernetes still knows where it was."""
    harness.register(12, "web")
    harness.sync()
    harness.deregister(12, "web")
    (explanation,) = harness.explain("web")
    assert (explanation.target, explanation.problem) == ("default/web", "dc1 does not list a service of this name")
    assert sorted(explanation.unaccounted) == sorted(f"10.0.1.{n}:80 ready" for n in range(1, 13))
    assert explanation.held[0].startswith("12 ready endpoints are kept: 12 of 12 ready endpoints mirrored from dc1 (")
    text = explanation_text(explanation, None)
    assert "Held:     12 ready endpoints are kept" in text
    assert (
        "Kubernetes also has, of no instance above (the hold keeps what is ready): 10.0.1.1:80 ready, 10.0.1.10:80 r"
        in text
    )
    assert text.endswith("\nNothing is taken away while it is held.\n")


def test_a_vanished_service_says_what_the_next_pass_deletes(harness: Harness) -> None:
    """Two endpoints are too few to be held."""
    harness.register(2, "web")
    harness.sync()
    harness.deregister(2, "web")
    (explanation,) = harness.explain("web")
    assert [text.split(" ")[1:] for text in explanation.differences] == [
        [kind, name, "(its", "service", "is", "gone", "from", "Consul)"]
        for kind, name in (
            ("Endpoints", "web"),
            ("EndpointSlice", harness.slice("web")["metadata"]["name"]),
            ("Service", "web"),
        )
    ]
    assert "Kubernetes differs; the next pass would:" in explanation_text(explanation)
    harness.sync()
    (explanation,) = harness.explain("web")
    assert (explanation.differences, explanation.unaccounted) == ((), ())
    assert explanation_text(explanation).endswith("\nNothing is to be written.\n")


def test_what_is_left_of_one_of_two_services_at_one_name_is_shown(harness: Harness) -> None:
    """The other is still there and accounts for its own endpoints."""
    harness.rules = tuple(
        Rule(services=(f"web-{port}",), to=Destination(name="web", port_name=port)) for port in ("http", "metrics")
    )
    harness.consul.register("web-http", "vm-0", "10.0.1.1", 8080)
    harness.register(12, "web-metrics")
    harness.sync()
    harness.deregister(12, "web-metrics")
    (explanation,) = harness.explain("web-metrics")
    assert (explanation.target, len(explanation.held)) == ("default/web", 1)
    assert sorted(explanation.unaccounted) == sorted(f"10.0.1.{n}:80 ready" for n in range(1, 13))


def test_a_service_that_goes_elsewhere_now_is_explained_at_both_places(harness: Harness) -> None:
    """Where it goes, and what is left where it was."""
    harness.register(2, "web")
    harness.sync()
    harness.rules = (Rule(to=Destination(name="{service}-new")),)
    here, there = harness.explain("web")
    assert (here.target, here.problem, here.differences) == (
        "default/web-new", "",
        ("create Service web-new", "create EndpointSlice web-new-36f47791", "create Endpoints web-new"),
    )  # fmt: skip
    assert (there.target, there.problem) == (
        "default/web", "it goes to default/web-new now; default/web still has what came from it",
    )  # fmt: skip
    assert [text.split()[1] for text in there.differences] == ["Endpoints", "EndpointSlice", "Service"]


def test_what_is_left_of_a_service_is_found_in_its_datacenter(harness: Harness) -> None:
    """Another one does not list it either, but that is no news."""
    harness.rules = (Rule(datacenters=("dc1", "dc2")),)
    harness.consul.register("web", "vm-1", "10.2.0.1", 80, dc="dc2")
    harness.sync()
    harness.consul.deregister("web", "vm-1", dc="dc2")
    (explanation,) = harness.explain("web")
    assert (explanation.datacenter, explanation.target, len(explanation.differences)) == ("dc2", "default/web", 3)


# --------------------------------------------------------------------------- outputs


def test_slices_that_the_control_plane_has_mirrored_by_now_are_due(harness: Harness) -> None:
    """The output is Endpoints now: a pass asks whether it has, and so does the status."""
    harness.register(1, "web")
    harness.rules = (Rule(to=Destination(output=Output.ENDPOINTSLICES)),)
    harness.sync()
    harness.rules = (Rule(to=Destination(output=Output.ENDPOINTS)),)
    harness.sync()
    assert harness.states() == {"web": "in_sync"}
    body = harness.slice("web")
    labels = {
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
    }
    metadata = {"name": "web-mirrored", "namespace": "default", "labels": labels}
    harness.kube.put("endpointslices", {**body, "metadata": metadata})
    assert [(r.state, r.detail) for r in harness.status().services] == [("out_of_sync", "delete EndpointSlice")]
    assert harness.planned()["delete"] == 1


# --------------------------------------------------------------------------- flags


def test_what_flags_do_not_select_is_not_in_the_status_either(harness: Harness) -> None:
    """`sync --service a`, then `sync --service b`: to `status --service a` the other is none of its business."""
    harness.register(2)
    narrow = replace(harness.options, partial_selection=True)
    for name in ("s0", "s1"):
        harness.rules, harness.options = (Rule(services=(name,)),), narrow
        harness.sync()
    assert (harness.states(), harness.planned()) == ({"s1": "in_sync"}, {"unchanged": 3})
    (explanation,) = harness.explain("s0")
    assert (explanation.problem, explanation.differences) == ("no rule selects it", ())
    assert explanation_text(explanation).endswith("\nNothing is to be written.\n")
    harness.deregister(2)
    assert (harness.states(), harness.planned()) == ({"s1": "out_of_sync"}, {"delete": 3})


# --------------------------------------------------------------------------- people who change their minds


@pytest.mark.parametrize("narrow", [False, True], ids=["rules", "flags"])
@pytest.mark.parametrize("count", [1, 12])
def test_a_service_that_lost_its_label_is_emptied_by_the_next_pass(harness: Harness, narrow: bool, count: int) -> None:
    """Though no bridge ran, whatever the flags select, and however much it is: a user asked for it."""
    harness.rules, harness.options = (Rule(services=("zzz",)),), replace(OPTIONS, partial_selection=narrow)
    harness.register(count, "pg")
    harness.person("database", {"consul-bridge/service": "pg"})
    harness.sync()
    assert len(harness.addresses("database")) == count
    harness.person("database")
    assert [(r.state, r.detail) for r in harness.status().services] == [
        ("out_of_sync", "delete Endpoints, delete EndpointSlice")
    ]
    (explanation,) = harness.explain("pg")
    assert (explanation.target, explanation.held) == ("default/database", ())
    assert explanation.differences == tuple(
        f"delete {what} (no rule or annotation asks for it any more)"
        for what in ("Endpoints database", f"EndpointSlice {harness.slice('database')['metadata']['name']}")
    )
    assert {k: n for k, n in harness.sync().to_json()["summary"].items() if n} == {"delete": 2}
    assert harness.addresses("database") == []
    assert harness.kube.get("services", "default", "database") is not None


@pytest.mark.parametrize(
    ("asks", "granted", "count"),
    [(None, True, 12), ({}, False, 3), ({"consul-bridge/service": "other"}, False, 12)],
    ids=["the label is taken off", "the grant is withdrawn", "another service, which is not granted"],
)
def test_a_service_that_a_rule_wants_too_is_emptied_when_its_user_does_not_have_it_filled(
    harness: Harness, asks: dict[str, str] | None, granted: bool, count: int
) -> None:
    """The rule does not get the Service; what was filled would stay as it is forever."""
    harness.register(count, "pg")
    harness.person("pg", {})
    harness.sync()
    assert len(harness.addresses("pg")) == count
    harness.person("pg", asks)
    if not granted:
        harness.options = replace(harness.options, annotated=Annotated(grants=()))
    report = harness.sync()
    assert {k: n for k, n in report.to_json()["summary"].items() if n} == {"delete": 2, "skipped": 1, "conflicts": 1}
    assert harness.addresses("pg") == []
    assert harness.kube.get("services", "default", "pg") is not None
    assert harness.states() == {"pg": "conflict"}


def test_a_service_that_a_rule_may_take_over_keeps_its_endpoints_when_its_user_does_not_ask_any_more(
    harness: Harness,
) -> None:
    """Nothing is in the rule's way then."""
    harness.register(12, "pg")
    harness.person("pg", {})
    harness.sync()
    harness.person("pg")
    harness.options = replace(harness.options, adopt=Adopt.UNOWNED)
    harness.sync()
    assert len(harness.addresses("pg")) == 12


def test_what_was_filled_for_a_service_that_is_deleted_goes_with_the_next_pass(harness: Harness) -> None:
    """Slices, that is: the control plane deletes Endpoints with their Service, and nothing else."""
    harness.rules = ()
    harness.register(12, "pg")
    harness.person("pg", {"consul-bridge/output": "endpointslices"})
    harness.sync()
    harness.kube.remove("services", "default", "pg")
    assert harness.states() == {"pg": "out_of_sync"}
    assert {k: n for k, n in harness.sync().to_json()["summary"].items() if n} == {"delete": 1}


@pytest.mark.parametrize("narrow", [False, True], ids=["rules", "flags"])
def test_a_service_of_ours_that_lost_its_label_keeps_its_endpoints(harness: Harness, narrow: bool) -> None:
    """It is theirs from then on, and it is not a Service that was filled for anyone."""
    harness.register(12, "web")
    harness.sync()
    service = harness.kube.get("services", "default", "web")
    assert service is not None
    del service["metadata"]["labels"]["consul-bridge/owner"]
    harness.kube.put("services", service)
    harness.rules, harness.options = (Rule(services=("zzz",)),), replace(OPTIONS, partial_selection=narrow)
    harness.sync()
    assert len(harness.addresses("web")) == 12


def test_a_mistyped_annotation_is_reported_wherever_one_looks(harness: Harness) -> None:
    """In the report of a pass, in the status and in the explanation; the Service is filled all the same."""
    harness.rules = ()
    harness.register(1, "pg")
    harness.person("pg", {"consul-bridge/output": "EndpointSlices", "consul-bridge/tag": "primary"})
    said = {warning["message"] for warning in harness.sync().to_json()["warnings"]}
    assert {text.split(":")[0] for text in said} == {
        "the annotation consul-bridge/output is 'EndpointSlices' and not one of endpoints, endpointslices, both",
        "unknown to the bridge, so without effect",
    }
    assert harness.addresses("pg") == ["10.0.1.1"]
    (row,) = harness.status().services
    (explanation,) = harness.explain("pg")
    assert (row.state, set(row.detail.split("; ")), set(explanation.warnings)) == ("in_sync", said, said)


def test_a_family_that_the_cluster_lacks_is_reported_once_it_is_known(harness: Harness) -> None:
    """The first pass asks for it, and Kubernetes answers with what there is."""
    harness.register(1, "web")
    harness.consul.register("web", "vm-6", "fd00::1", 80)
    assert harness.sync().to_json()["warnings"] == []
    service = harness.kube.get("services", "default", "web")
    assert service is not None
    service["spec"] |= {"ipFamilies": ["IPv4"], "clusterIPs": service["spec"]["clusterIPs"][:1]}
    harness.kube.put("services", service)
    (warning,) = harness.sync().to_json()["warnings"]
    assert warning["message"].startswith("IPv6 endpoints cannot be reached: the Service asks for both families")
    assert harness.planned() == {"unchanged": 4}


def test_a_service_is_found_by_its_name_in_kubernetes_and_in_another_case(harness: Harness) -> None:
    """Consul's own spelling is reported; a name that is only near is suggested, and is not found."""
    harness.consul.register("RadosGW", "vm-1", "10.0.1.1", 80)
    harness.consul.register("postgres", "vm-1", "10.0.1.1", 5432)
    harness.sync()
    for given, note in (
        ("RadosGW", ""), ("radosgw", "default/radosgw in Kubernetes comes from Consul's RadosGW"),
        ("default/radosgw", "default/radosgw in Kubernetes comes from Consul's RadosGW"),
        ("POSTGRES", "Consul spells it postgres"),
    ):  # fmt: skip
        explained = harness.explained(given)
        (explanation,) = explained.explanations
        assert (explained.found, explained.notes) == (True, (note,) if note else ())
        assert explanation.service == ("postgres" if given == "POSTGRES" else "RadosGW")
        assert len(explanation.rows) == 1
    explained = harness.explained("postgers")
    assert (explained.found, explained.notes) == (False, ("did you mean postgres?",))
    assert (harness.explained("xyz").found, harness.explained("xyz").notes) == (False, ())


def test_without_rules_it_reports_that_first_and_where_our_objects_are(harness: Harness) -> None:
    """Whatever namespace a running bridge with rules has them in; another owner's are not ours."""
    harness.kube.add_namespace("storage")
    harness.consul.register("radosgw", "vm-1", "10.0.1.1", 80)
    harness.consul.register("web", "vm-1", "10.0.1.1", 80)
    with_rules = replace(harness, rules=(Rule(services=("radosgw",), to=Destination(namespace="storage", name="gw")),))
    with_rules.sync()
    for given in ("radosgw", "gw", "storage/gw"):
        explained = harness.explained(given, selects=False)
        meaning, ours, *_ = explained.notes
        assert meaning.startswith("no rules are given")
        assert "namespace default" in meaning
        assert "mirrors radosgw into storage/gw" in ours
        assert [e.service for e in explained.explanations] == ["radosgw"]
    assert "mirrors web nowhere in this cluster" in harness.explained("web", selects=False).notes[1]
    assert "nowhere" in harness.explained("radosgw", selects=False, owner="another").notes[1]
    assert with_rules.explained("radosgw").notes == ()
    status = replace(harness, options=replace(harness.options, selects=False)).status()
    assert status.notes[0] == meaning
    assert "mirrors 1 service into storage" in status.notes[1]
    other = replace(harness, options=replace(harness.options, selects=False, owner="another")).status()
    assert "owner another mirrors nothing in this cluster" in other.notes[1]
    assert with_rules.status().notes == ()


def test_without_rules_and_without_the_right_to_look_everywhere_that_is_reported(harness: Harness) -> None:
    """The rest is reported all the same."""
    harness.consul.register("web", "vm-1", "10.0.1.1", 80)
    harness.kube.forbid("admin", "list", "services", "")
    explained = harness.explained("web", selects=False)
    assert "may not be listed in all namespaces" in explained.notes[1]
    assert [e.service for e in explained.explanations] == ["web"]
