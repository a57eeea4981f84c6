"""What goes wrong with Consul and on the way to it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from tests.support.chaos.faults import (
    CONSUL_DOWN,
    CONSUL_UP_0,
    EITHER,
    NOT_READY,
    READY,
    Fault,
    Metric,
    Reason,
    Sign,
    log,
)
from tests.support.chaos.harness import POLICY, TOKEN, Harness, wait_for
from tests.support.chaos.stub import Answer, Rule, Stub
from tests.support.lab import wait_until
from tests.support.lab.failover import Failover
from tests.support.raw import UnexpectedAnswerError


class ConsulKill(Fault):
    """A crash."""

    name = "consul-kill"
    what = "kill -9 of Consul, then a restart with its data"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("broke"))
    readiness = NOT_READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.consul.kill()

    def heal(self, harness: Harness) -> None:
        harness.consul.start()


class ConsulEmpty(Fault):
    """A server that was rebuilt."""

    name = "consul-empty"
    what = "kill -9 of Consul, then a restart with an empty data directory; later the agents register again"
    shows = (log("removal held", "was rebuilt or restored"), Metric('consul_bridge_holds{cause="rebuilt"}', ">0"))
    readiness = READY
    settle_seconds = 18.0
    why_slow = "`guard.restore_hold`, here 6 s, is over first"

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.fleet.hold_back()
        harness.consul.restart(empty=True)
        harness.give_consul_token(harness.token_file.read_text())

    def heal(self, harness: Harness) -> None:
        harness.fleet.register_again()


class ConsulRestored(ConsulEmpty):
    """Somebody restored a snapshot: Consul is what it was, and lacks what came since."""

    name = "consul-restored"
    what = "a snapshot from before the newest services is restored; later the agents register again"
    number = 0

    def inject(self, harness: Harness, rng: random.Random) -> None:
        ConsulRestored.number += 1
        with harness.connect_consul() as consul:
            snapshot = consul.send("GET", "/v1/snapshot")[2]
            new = f"c-restored-{self.number}"
            harness.fleet.add(new, 2)
            wait_until(lambda: harness.observer.has(new), 20, f"{new} in Kubernetes", 0.05)
            harness.fleet.hold_back()
            status, _, said = consul.send("PUT", "/v1/snapshot", snapshot)
        if status != 200:
            raise UnexpectedAnswerError(status, said.decode(errors="replace"))


class ConsulPause(Fault):
    """A stalled disk, a frozen VM."""

    name = "consul-pause"
    what = (
        "SIGSTOP of Consul for 1 to 15 s (to 60 s in `make chaos`), and longer than a request may take: connections "
        "are accepted, not answered"
    )
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("in time"))
    readiness = NOT_READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self.hold_seconds = rng.uniform(1.0, harness.longest_pause)
        harness.consul.pause()

    def heal(self, harness: Harness) -> None:
        harness.consul.resume()


# --------------------------------------------------------------------------- rights


class TokenRevoked(Fault):
    """Somebody deleted the bridge's token."""

    name = "consul-token-revoked"
    what = "the bridge's ACL token is deleted; later a new one is in its file"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("does not know our token"))
    readiness = NOT_READY
    settle_seconds = 65.0
    why_slow = "what our token may not do is asked again after 5 to 60 s"

    def inject(self, harness: Harness, rng: random.Random) -> None:
        mine = harness.token_file.read_text()
        self._next = TOKEN[:-4] + f"{rng.randrange(16**4):04x}"
        with harness.connect_consul() as consul:
            tokens = consul.json("GET", "/v1/acl/tokens")
            for token in tokens:
                if token.get("SecretID") == mine:
                    consul.json("DELETE", f"/v1/acl/token/{token['AccessorID']}")

    def heal(self, harness: Harness) -> None:
        harness.give_consul_token(self._next)


class TokenNarrowed(Fault):
    """A policy that shows only a part: what it hides looks deregistered."""

    name = "consul-token-narrowed"
    what = "the token's policy shows only services that begin with `slice-`; the rest vanishes from every answer"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("ACL"))
    readiness = NOT_READY
    settle_seconds = 65.0
    why_slow = "what our token may not do is asked again after 5 to 60 s"

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.set_policy(POLICY.replace('service_prefix ""', 'service_prefix "slice-"'))

    def heal(self, harness: Harness) -> None:
        harness.set_policy(POLICY)


# --------------------------------------------------------------------------- bytes


class _ConsulToxic(Fault):
    """A toxic on the way to Consul."""

    kind: ClassVar[str]
    attributes: ClassVar[dict[str, int]] = {}

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.to_consul.add(self.kind, **self.attributes)

    def heal(self, harness: Harness) -> None:
        harness.to_consul.heal()


class ConsulResets(_ConsulToxic):
    """A firewall that forgets, a proxy that restarts."""

    name = "consul-resets"
    what = "every connection to Consul is reset after 50 ms"
    shows = (CONSUL_DOWN, CONSUL_UP_0)
    readiness = NOT_READY
    kind = "reset_peer"
    attributes: ClassVar[dict[str, int]] = {"timeout": 50}


class ConsulHalfOpen(_ConsulToxic):
    """A network that went away silently: no bytes, no FIN."""

    name = "consul-half-open"
    what = "connections to Consul stay open, and no byte comes through"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("in time"))
    readiness = NOT_READY
    kind = "timeout"
    attributes: ClassVar[dict[str, int]] = {"timeout": 0}


class ConsulSlow(_ConsulToxic):
    """A line that is full."""

    name = "consul-slow"
    what = "1 kB/s between the bridge and Consul, for each connection: what is longer than that does not come in time"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("in time"))
    readiness = NOT_READY
    hold_seconds = 6.0
    kind = "bandwidth"
    attributes: ClassVar[dict[str, int]] = {"rate": 1}


class ConsulTrickle(Fault):
    """A middlebox that is overwhelmed: bytes come, one by one, and each comes in time."""

    name = "consul-trickle"
    what = "answers of Consul, headers first, come one byte every 0.2 s"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("in time"))
    readiness = NOT_READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        attributes = {"average_size": 1, "size_variation": 0, "delay": 200_000}
        harness.to_consul.add_to(("downstream",), "slicer", attributes)

    def heal(self, harness: Harness) -> None:
        harness.to_consul.heal()


class ConsulFailover(Fault):
    """A virtual address that moves, a balancer that forgets."""

    name = "consul-failover"
    what = (
        "a balancer in front of Consul fails over: bytes of open connections lead nowhere and neither side closes "
        "them, new connections work; the bridge is well again within 20 s, before the fault is healed"
    )
    shows = (log("consul cannot be asked", "in time"),)
    readiness = EITHER

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self._relay = Failover(harness.to_consul.upstream)
        harness.to_consul.lead_to(self._relay.address)
        wait_for(harness.bridge.ready, 20)
        wait_for(lambda: False, 6.0)  # all its connections are open, and idle ones were used
        self._relay.fail_over()
        self._at = time.monotonic()

    def during(self, harness: Harness) -> Iterator[str]:
        if not wait_for(harness.bridge.ready, self._at + 20.0 - time.monotonic()):
            yield f"20 s after the failover /readyz says {harness.bridge.readiness()}"

    def heal(self, harness: Harness) -> None:
        harness.to_consul.heal()
        self._relay.close()


# --------------------------------------------------------------------------- HTTP


class _ConsulStub(Fault):
    """A stub in front of Consul that answers by a rule of the fault's own."""

    def rule(self, rng: random.Random) -> Rule:
        """What the stub does."""
        raise NotImplementedError

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self._stub = Stub(harness.consul.address, self.rule(rng))
        harness.to_consul.lead_to(self._stub.address)

    def heal(self, harness: Harness) -> None:
        harness.to_consul.heal()
        self._stub.close()


class _ConsulStatus(_ConsulStub):
    """A burst of one status."""

    status: ClassVar[int]
    body: ClassVar[bytes]
    headers: ClassVar[dict[str, str]] = {}

    def rule(self, rng: random.Random) -> Rule:
        return lambda _method, _path: Answer(self.status, self.body, self.headers)


class Consul429(_ConsulStatus):
    """Its limit of requests or connections."""

    name = "consul-429"
    what = "Consul answers 429 to everything, with Retry-After: 1"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("asks us to be slower (429)"))
    readiness = NOT_READY
    status = 429
    body = b"Your IP is issuing too many concurrent connections, please rate limit your calls\n"
    headers: ClassVar[dict[str, str]] = {"Retry-After": "1"}


class Consul500(_ConsulStatus):
    """An agent without servers."""

    name = "consul-500"
    what = "Consul answers 500 (`No known Consul servers`) to everything"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("answers 500"))
    readiness = NOT_READY
    status = 500
    body = b"No known Consul servers"


class Consul503(_ConsulStatus):
    """A load balancer without backends."""

    name = "consul-503"
    what = "a proxy answers 503 for Consul, with a page in HTML"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("answers 503"))
    readiness = NOT_READY
    status = 503
    body = b"<html><body><h1>503 Service Unavailable</h1></body></html>"


class ConsulTorn(_ConsulStub):
    """A proxy that gives up in the middle."""

    name = "consul-torn-json"
    what = "every answer is cut in the middle, half of them with a Content-Length that promises more"
    shows = (CONSUL_DOWN, CONSUL_UP_0)
    readiness = NOT_READY

    def rule(self, rng: random.Random) -> Rule:
        def cut(answer: Answer) -> Answer:
            half = answer.body[: len(answer.body) // 2]
            promised = len(answer.body) if len(answer.body) % 2 else None
            return Answer(answer.status, half, answer.headers, promised)

        return lambda _method, _path: cut


class _ConsulIndex(_ConsulStub):
    """Something between us and Consul that spoils the index header."""

    index: ClassVar[str | None]

    def rule(self, rng: random.Random) -> Rule:
        def spoil(answer: Answer) -> Answer:
            headers = {k: v for k, v in answer.headers.items() if k.lower() != "x-consul-index"}
            if self.index is not None:
                headers["X-Consul-Index"] = self.index
            return Answer(answer.status, answer.body, headers)

        return lambda _method, _path: spoil


class ConsulNoIndex(_ConsulIndex):
    """A proxy that drops headers it does not know."""

    name = "consul-no-index"
    what = "answers without X-Consul-Index"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("without a usable index"))
    readiness = NOT_READY
    index = None


class ConsulZeroIndex(_ConsulIndex):
    """A bug that Consul had; an index of 0 would make every blocking query return at once."""

    name = "consul-zero-index"
    what = "answers with X-Consul-Index: 0; blocking queries would turn into a hot loop"
    shows = ()
    readiness = EITHER
    hold_seconds = 4.0
    index = "0"

    def during(self, harness: Harness) -> Iterator[str]:
        asked = self._stub.lies
        began = time.monotonic()
        wait_for(lambda: False, 1.0)
        rate = (self._stub.lies - asked) / (time.monotonic() - began)
        if rate > 400:
            yield f"{rate:.0f} requests a second"


class ConsulBadIndex(_ConsulIndex):
    """Anything else that answers at this address."""

    name = "consul-bad-index"
    what = "answers with X-Consul-Index: soon"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("without a usable index"))
    readiness = NOT_READY
    index = "soon"


class ConsulHuge(_ConsulStub):
    """Somebody who registers without end, or a server that is none."""

    name = "consul-huge-answer"
    what = "answers about one service (`c-0`) are 300 MB of JSON, longer than the bridge takes"
    shows = (log("cannot be read", "c-0", "larger than"), Metric("consul_bridge_service_read_errors", ">0"))
    readiness = EITHER

    def rule(self, rng: random.Random) -> Rule:
        def blow_up(answer: Answer) -> Answer:
            return Answer(answer.status, answer.body + b" " * (300 << 20), answer.headers)

        return lambda _method, path: blow_up if path.startswith("/v1/health/service/c-0") else None


# --------------------------------------------------------------------------- several servers


class LeaderLoss(Fault):
    """The leader dies; the others elect a new one."""

    name = "consul-leader-loss"
    what = "kill -9 of the leader of three Consul servers; where the bridge asks another one, it need not notice"
    shows: ClassVar[Sequence[Sign]] = ()
    readiness = EITHER
    servers = 3
    hold_seconds = 5.0

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self._dead = [leader_of(harness)]
        for server in self._dead:
            harness.cluster[server].kill()

    def heal(self, harness: Harness) -> None:
        for server in self._dead:
            harness.cluster[server].start(wait=False)
        for server in self._dead:
            harness.cluster[server].wait_ready()


class QuorumLoss(LeaderLoss):
    """Two of three die: the third knows everything and may say nothing."""

    name = "consul-quorum-loss"
    what = "kill -9 of two of three Consul servers; the bridge's own one lives and has no leader"
    shows = (CONSUL_DOWN, CONSUL_UP_0)
    readiness = NOT_READY
    servers = 3

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self._dead = [1, 2]
        for server in self._dead:
            harness.cluster[server].kill()


def leader_of(harness: Harness) -> int:
    """Position of the leader in the cluster; waits for an election that is going on."""
    found: list[int] = []

    def named() -> bool:
        with harness.connect_consul() as consul:
            leader = consul.json("GET", "/v1/status/leader")
        found[:] = [n for n, s in enumerate(harness.cluster) if leader.endswith(f":{s.ports['server']}")]
        return bool(found)

    wait_until(named, 30, "a leader of the three servers", 0.1)
    return found[0]


FAULTS: Sequence[type[Fault]] = (
    ConsulKill, ConsulEmpty, ConsulRestored, ConsulPause, TokenRevoked, TokenNarrowed, ConsulResets, ConsulHalfOpen,
    ConsulSlow, ConsulTrickle, ConsulFailover, Consul429, Consul500, Consul503, ConsulTorn, ConsulNoIndex,
    ConsulZeroIndex, ConsulBadIndex, ConsulHuge,
    LeaderLoss, QuorumLoss,
)  # fmt: skip
