"""What agents, ESM, Nomad, Registrator and people write into a Consul catalog, chosen by a seed.

Names of nodes, ids and services come back in another case, nodes get another name under one id, ids move between nodes
and services, checks move between instances: all that a catalog takes. What Consul refuses is counted and forgotten.
"""

from __future__ import annotations

import functools
import random
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.support.raw import RawConsul, UnexpectedAnswerError

Json = dict[str, Any]

NODES, IDS, SERVICES = 3, 3, 3
"""Few of each, so that one operation in three meets something that is there."""


def of_instance(change: Callable[[Operations, Json], str]) -> Callable[[Operations], str]:
    """An operation on an instance that is there; where none is, one is registered instead."""

    @functools.wraps(change)
    def operation(self: Operations) -> str:
        there = self._there()
        return self.register() if there is None else change(self, there)

    return operation


class Operations:
    """One round's names, and the hand that writes them."""

    def __init__(self, consul: RawConsul, choose: random.Random, prefix: str, restores: bool = True) -> None:
        self._consul = consul
        self._random = choose
        self.prefix = prefix
        self.services = tuple(f"{prefix}s{n}" for n in range(SERVICES))
        self.refused: Counter[str] = Counter()
        self._ids = {n: str(uuid.UUID(int=choose.getrandbits(128), version=4)) for n in range(NODES)}
        self._snapshot = b""
        self._kinds: tuple[tuple[int, Callable[[], str]], ...] = (
            (10, self.register), (8, self.flip), (4, self.agent_sync), (4, self.esm), (3, self.node_check),
            (3, self.move_node), (4, self.node_case), (4, self.id_case), (2, self.service_case), (3, self.flip_case),
            (3, self.rename_service), (2, self.rename_service_and_node), (2, self.rename_node), (2, self.move_id),
            (2, self.move_check), (3, self.drop_service), (2, self.drop_service_case), (1, self.drop_check),
            (1, self.drop_node), (3, self.transaction), (3, self.nomad), (2, self.nomad_health),
            (1, self.save), (1 if restores else 0, self.restore),
        )  # fmt: skip

    def step(self) -> tuple[str, str]:
        """One operation: its kind, and what it was."""
        (kind,) = self._random.choices([k for _, k in self._kinds], [weight for weight, _ in self._kinds])
        try:
            return kind.__name__, kind()
        except UnexpectedAnswerError as error:
            self.refused[kind.__name__] += 1
            return kind.__name__, f"refused: {kind.__name__}, {str(error)[:120]}"

    def end(self) -> None:
        """Take everything of the round out of the catalog."""
        for entry in self._consul.json("GET", "/v1/catalog/nodes"):
            if entry["Node"].lower().startswith(self.prefix):
                self._consul.drop_node(entry["Node"])
        for identity in self._consul.json("GET", "/v1/agent/services"):
            if self.prefix in identity:
                self._consul.json("PUT", f"/v1/agent/service/deregister/{identity}")

    # ------------------------------------------------------------------ parts

    def _node(self) -> str:
        return f"{self.prefix}vm{self._random.randrange(NODES)}"

    def _identity(self) -> str:
        return f"id{self._random.randrange(IDS)}"

    def _service(self) -> str:
        return self._random.choice(self.services)

    def _other_case(self, name: str) -> str:
        return self._random.choice([name.upper(), name.capitalize(), name.swapcase()])

    def _address(self) -> str:
        return f"10.{self._random.randrange(4)}.0.{self._random.randrange(1, 250)}"

    def _status(self) -> str:
        return self._random.choice(["passing", "passing", "warning", "critical"])

    def _there(self) -> Json | None:
        """An instance that a plain read shows, as {Node, Service, Checks}."""
        found = [e for name in self.services for e in self._consul.json("GET", f"/v1/health/service/{name}?consistent")]
        return self._random.choice(found) if found else None

    def _body(self, node: str, identity: str, service: str) -> Json:
        return {
            "Node": node, "Address": self._address(),
            "Service": {"Service": service, "ID": identity, "Port": 8000 + self._random.randrange(4),
                        "Tags": self._random.sample(["a", "b"], 1), "Meta": {"v": str(self._random.randrange(2))}},
        }  # fmt: skip

    def _check(self, identity: str, status: str = "") -> Json:
        return {
            "CheckID": f"service:{identity.lower()}", "Name": "c", "Status": status or self._status(),
            "ServiceID": identity,
        }  # fmt: skip

    def _register(self, body: Json) -> None:
        self._consul.json("PUT", "/v1/catalog/register", body)

    # ------------------------------------------------------------------ catalog/register, as Registrator and people do

    def register(self) -> str:
        node, identity = self._node(), self._identity()
        body = self._body(node, identity, self._service())
        if self._random.random() < 0.7:
            body["Check"] = self._check(identity)
        self._register(body)
        return f"register {node} {identity} as {body['Service']['Service']}"

    @of_instance
    def node_case(self, there: Json) -> str:
        """A node comes back in another case, with or without an instance, at another address."""
        node = self._other_case(there["Node"]["Node"])
        body: Json = {"Node": node, "Address": self._address()}
        with_service = self._random.random() < 0.6
        if with_service:
            body |= self._body(node, there["Service"]["ID"], there["Service"]["Service"])
        self._register(body)
        return f"node case {there['Node']['Node']} -> {node}{' with its service' if with_service else ''}"

    @of_instance
    def id_case(self, there: Json) -> str:
        identity = self._other_case(there["Service"]["ID"])
        body = self._body(there["Node"]["Node"], identity, there["Service"]["Service"])
        if self._random.random() < 0.5:
            body["Check"] = self._check(identity)
        self._register(body)
        return f"id case {there['Node']['Node']} {there['Service']['ID']} -> {identity}"

    @of_instance
    def service_case(self, there: Json) -> str:
        """The service's name in another case; half of the time the node's address changes at once."""
        name = self._other_case(there["Service"]["Service"])
        body = self._body(there["Node"]["Node"], there["Service"]["ID"], name)
        if self._random.random() < 0.5:
            body |= {"Address": "", "SkipNodeUpdate": True}
        self._register(body)
        return f"service case {there['Service']['Service']} -> {name} on {there['Node']['Node']}"

    @of_instance
    def rename_service(self, there: Json) -> str:
        body = self._body(there["Node"]["Node"], there["Service"]["ID"], self._service())
        body |= {"Address": "", "SkipNodeUpdate": True}
        self._register(body)
        return f"rename service {there['Service']['ID']} on {there['Node']['Node']} to {body['Service']['Service']}"

    @of_instance
    def rename_service_and_node(self, there: Json) -> str:
        node = self._other_case(there["Node"]["Node"])
        body = self._body(node, there["Service"]["ID"], self._service())
        self._register(body)
        return f"rename service {there['Service']['ID']} to {body['Service']['Service']} and node to {node}"

    @of_instance
    def move_node(self, there: Json) -> str:
        self._register({
            "Node": there["Node"]["Node"], "Address": self._address(),
            "NodeMeta": {"rack": str(self._random.randrange(2))},
        })  # fmt: skip
        return f"move node {there['Node']['Node']}"

    @of_instance
    def move_id(self, there: Json) -> str:
        """An id leaves one node and appears on another."""
        self._consul.json(
            "PUT", "/v1/catalog/deregister", {"Node": there["Node"]["Node"], "ServiceID": there["Service"]["ID"]}
        )
        node = self._node()
        self._register(self._body(node, there["Service"]["ID"], there["Service"]["Service"]))
        return f"move id {there['Service']['ID']} from {there['Node']['Node']} to {node}"

    # ------------------------------------------------------------------ checks, as agents and ESM do

    def _write_check(self, node: str, check: Json) -> None:
        self._register({"Node": node, "Address": "", "SkipNodeUpdate": True, "Check": check})

    @of_instance
    def flip(self, there: Json) -> str:
        check = self._check(there["Service"]["ID"])
        self._write_check(there["Node"]["Node"], check)
        return f"flip {there['Node']['Node']} {check['ServiceID']} {check['Status']}"

    @of_instance
    def flip_case(self, there: Json) -> str:
        """A check that names its instance or its node in another case."""
        node, identity = there["Node"]["Node"], there["Service"]["ID"]
        if self._random.random() < 0.5:
            node = self._other_case(node)
        else:
            identity = self._other_case(identity)
        check = self._check(identity)
        self._write_check(node, check)
        return f"flip in another case {node} {identity} {check['Status']}"

    @of_instance
    def move_check(self, there: Json) -> str:
        """A check goes over to another instance, or to the node as a whole."""
        target = self._random.choice(["", self._identity()])
        check = self._check(there["Service"]["ID"]) | {"ServiceID": target}
        self._write_check(there["Node"]["Node"], check)
        return f"move check {check['CheckID']} on {there['Node']['Node']} to {target or 'the node'}"

    @of_instance
    def node_check(self, there: Json) -> str:
        status = self._status()
        self._write_check(there["Node"]["Node"], {"CheckID": "alive", "Name": "alive", "Status": status})
        return f"node check {there['Node']['Node']} {status}"

    def agent_sync(self) -> str:
        """As an agent's anti-entropy writes: the node with its id, the service, its checks and the node's."""
        number, identity = self._random.randrange(NODES), self._identity()
        node = f"{self.prefix}vm{number}"
        body = self._body(node, identity, self._service())
        body["ID"] = self._ids[number]
        body["Checks"] = [self._check(identity), {"CheckID": "alive", "Name": "alive", "Status": self._status()}]
        self._register(body)
        return f"agent sync {node} {identity} as {body['Service']['Service']}"

    def rename_node(self) -> str:
        """A VM's agent starts under another name with the id it had: another word, or another case."""
        number = self._random.randrange(NODES)
        node = f"{self.prefix}vm{number}"
        node = self._random.choice([node.upper(), node, f"{node}-new"])
        self._register({"ID": self._ids[number], "Node": node, "Address": self._address()})
        return f"rename node {number} to {node}"

    def esm(self) -> str:
        """Consul ESM writes the state of external nodes' checks in transactions, compared with the index it saw."""
        there = self._there()
        if there is None or not there["Checks"]:
            return self.register()
        check = self._random.choice(there["Checks"])
        body = {k: check[k] for k in ("Node", "CheckID", "Name", "ServiceID", "ModifyIndex")} | {
            "Status": self._status(), "Output": str(self._random.random()),
        }  # fmt: skip
        self._consul.json("PUT", "/v1/txn", [{"Check": {"Verb": "cas", "Check": body}}])
        return f"esm {check['Node']} {check['CheckID']} {body['Status']}"

    # ------------------------------------------------------------------ what goes

    def _maybe_other_case(self, name: str) -> str:
        return self._other_case(name) if self._random.random() < 0.5 else name

    @of_instance
    def drop_service(self, there: Json) -> str:
        body = {"Node": there["Node"]["Node"], "ServiceID": there["Service"]["ID"]}
        self._consul.json("PUT", "/v1/catalog/deregister", body)
        return f"drop {body}"

    @of_instance
    def drop_service_case(self, there: Json) -> str:
        body = {
            "Node": self._maybe_other_case(there["Node"]["Node"]),
            "ServiceID": self._maybe_other_case(there["Service"]["ID"]),
        }
        self._consul.json("PUT", "/v1/catalog/deregister", body)
        return f"drop {body}, is {there['Node']['Node']} {there['Service']['ID']}"

    def drop_check(self) -> str:
        there = self._there()
        if there is None or not there["Checks"]:
            return self.register()
        check = self._random.choice(there["Checks"])
        body = {"Node": there["Node"]["Node"], "CheckID": self._maybe_other_case(check["CheckID"])}
        self._consul.json("PUT", "/v1/catalog/deregister", body)
        return f"drop check {body}"

    @of_instance
    def drop_node(self, there: Json) -> str:
        node = self._maybe_other_case(there["Node"]["Node"])
        self._consul.drop_node(node)
        return f"drop node {node}, is {there['Node']['Node']}"

    # ------------------------------------------------------------------ transactions, Nomad, snapshots

    def transaction(self) -> str:
        """Several at once: a node with a service and a check, or one that goes while another comes."""
        node, identity, service = self._node(), self._identity(), self._service()
        if self._random.random() < 0.4:
            node = self._other_case(node)
        body = self._body(node, identity, service)
        steps: list[Json] = [
            {"Node": {"Verb": "set", "Node": {"Node": node, "Address": self._address()}}},
            {"Service": {"Verb": "set", "Node": node, "Service": body["Service"]}},
        ]
        if self._random.random() < 0.5:
            steps.append({"Check": {"Verb": "set", "Check": {"Node": node, **self._check(identity)}}})
        there = self._there()
        if there is not None and self._random.random() < 0.5:
            gone = {"ID": there["Service"]["ID"], "Service": there["Service"]["Service"]}
            steps.insert(0, {"Service": {"Verb": "delete", "Node": there["Node"]["Node"], "Service": gone}})
        self._consul.json("PUT", "/v1/txn", steps)
        return f"transaction {[next(iter(s)) + ' ' + next(iter(s.values()))['Verb'] for s in steps]} {node} {identity}"

    def nomad(self) -> str:
        """Nomad's client at the server's own agent: allocations with ids of their own come and go."""
        identity = f"_nomad-task-{self.prefix}{self._random.randrange(4)}-web"
        if self._random.random() < 0.4:
            self._consul.json("PUT", f"/v1/agent/service/deregister/{identity}")
            return f"nomad stops {identity}"
        self._consul.json("PUT", "/v1/agent/service/register", {
            "ID": identity, "Name": self._service(), "Port": 20000 + self._random.randrange(5), "Address": "10.9.0.1",
            "Check": {"CheckID": f"_nomad-check-{identity}", "TTL": "10m", "Status": self._status()},
        })  # fmt: skip
        return f"nomad starts {identity}"

    def nomad_health(self) -> str:
        identity = f"_nomad-task-{self.prefix}{self._random.randrange(4)}-web"
        if self._random.random() < 0.3:
            on = self._random.choice(["true", "false"])
            self._consul.json("PUT", f"/v1/agent/service/maintenance/{identity}?enable={on}")
            return f"nomad maintenance {identity} {on}"
        how = self._random.choice(["pass", "warn", "fail"])
        self._consul.json("PUT", f"/v1/agent/check/{how}/_nomad-check-{identity}")
        return f"nomad {how} {identity}"

    def save(self) -> str:
        status, _, body = self._consul.send("GET", "/v1/snapshot")
        if status == 200:
            self._snapshot = body
        return "save a snapshot"

    def restore(self) -> str:
        if not self._snapshot:
            return self.save()
        status, _, text = self._consul.send("PUT", "/v1/snapshot", self._snapshot)
        if status >= 400:
            raise UnexpectedAnswerError(status, text.decode(errors="replace"))
        return "restore the snapshot"
