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
    TO_CONSUL,
    Answering,
    FailedOver,
    Fault,
    Metric,
    Paused,
    Reason,
    RuleOf,
    Sign,
    answering,
    log,
    simple,
    toxic,
    trickle,
)
from tests.support.chaos.harness import POLICY, TOKEN, Harness, wait_for
from tests.support.chaos.stub import Answer, Rule, Stub
from tests.support.lab import wait_until
from tests.support.raw import UnexpectedAnswerError

DOWN = (CONSUL_DOWN, CONSUL_UP_0)
IN_TIME = (*DOWN, Reason("in time"))
NOT_ALLOWED = "what our token may not do is asked again after 5 to 60 s"


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
    """A user restored a snapshot: Consul is what it was, and lacks what came since."""

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


class ConsulPause(Paused):
    """A stalled Consul."""

    name = "consul-pause"
    what = (
        "SIGSTOP of Consul for 1 to 15 s (to 60 s in `make chaos`), and longer than a request may take: connections "
        "are accepted, not answered"
    )
    shows = IN_TIME
    server = "consul"


class TokenRevoked(Fault):
    """A user deleted the bridge's token."""

    name = "consul-token-revoked"
    what = "the bridge's ACL token is deleted; later a new one is in its file"
    shows = (*DOWN, Reason("does not know our token"))
    readiness = NOT_READY
    settle_seconds = 65.0
    why_slow = NOT_ALLOWED

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


class ConsulFailover(FailedOver):
    """A balancer that forgets."""

    name = "consul-failover"
    what = (
        "a balancer in front of Consul fails over: bytes of open connections lead nowhere and neither side closes "
        "them, new connections work; the bridge is well again within 20 s, before the fault is healed"
    )
    shows = (log("consul cannot be asked", "in time"),)
    proxy = TO_CONSUL


class Stubbed(Answering):
    """A stub in front of Consul."""

    proxy = TO_CONSUL

    def stub(self, harness: Harness, rule: Rule) -> Stub:
        return Stub(harness.consul.address, rule)


def always(status: int, body: bytes, **headers: str) -> RuleOf:
    """One answer to everything."""
    return lambda _rng: lambda _method, _path: Answer(status, body, headers)


def torn(_rng: random.Random) -> Rule:
    """A proxy that gives up in the middle."""

    def cut(answer: Answer) -> Answer:
        half = answer.body[: len(answer.body) // 2]
        promised = len(answer.body) if len(answer.body) % 2 else None
        return Answer(answer.status, half, answer.headers, promised)

    return lambda _method, _path: cut


def index(value: str | None) -> RuleOf:
    """Something between us and Consul that spoils the index header; None: takes it out."""

    def spoil(answer: Answer) -> Answer:
        headers = {k: v for k, v in answer.headers.items() if k.lower() != "x-consul-index"}
        return Answer(answer.status, answer.body, headers if value is None else {**headers, "X-Consul-Index": value})

    return lambda _rng: lambda _method, _path: spoil


class ConsulZeroIndex(Stubbed):
    """A bug that Consul had; an index of 0 would make every blocking query return at once."""

    name = "consul-zero-index"
    what = "answers with X-Consul-Index: 0; blocking queries would turn into a hot loop"
    shows = ()
    readiness = EITHER
    hold_seconds = 4.0

    def rule_of(self, rng: random.Random) -> Rule:
        return index("0")(rng)

    def during(self, harness: Harness) -> Iterator[str]:
        asked = self._stub.lies
        began = time.monotonic()
        wait_for(lambda: False, 1.0)
        rate = (self._stub.lies - asked) / (time.monotonic() - began)
        if rate > 400:
            yield f"{rate:.0f} requests a second"


def huge(_rng: random.Random) -> Rule:
    """A user who registers without end, or a server that is none."""

    def blow_up(answer: Answer) -> Answer:
        return Answer(answer.status, answer.body + b" " * (300 << 20), answer.headers)

    return lambda _method, path: blow_up if path.startswith("/v1/health/service/c-0") else None


class LeaderLoss(Fault):
    """The leader dies; the rest elect a new one."""

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
    shows = DOWN
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
    simple(
        "consul-kill", "kill -9 of Consul, then a restart with its data", (*DOWN, Reason("broke")),
        lambda harness: harness.consul.kill(), lambda harness: harness.consul.start(),
    ),
    ConsulEmpty,
    ConsulRestored,
    ConsulPause,
    TokenRevoked,
    simple(  # what a policy hides looks deregistered
        "consul-token-narrowed",
        "the token's policy shows only services that begin with `slice-`; the rest vanishes from every answer",
        (*DOWN, Reason("ACL")),
        lambda harness: harness.set_policy(POLICY.replace('service_prefix ""', 'service_prefix "slice-"')),
        lambda harness: harness.set_policy(POLICY),
        settle_seconds=65.0,
        why_slow=NOT_ALLOWED,
    ),
    toxic(  # a firewall that forgets, a proxy that restarts
        "consul-resets", "every connection to Consul is reset after 50 ms", DOWN, TO_CONSUL, "reset_peer", timeout=50
    ),
    # a network that went away silently: no bytes, no FIN
    toxic(
        "consul-half-open", "connections to Consul stay open, and no byte comes through", IN_TIME, TO_CONSUL, "timeout",
        timeout=0,
    ),
    toxic(
        "consul-slow",
        "1 kB/s between the bridge and Consul, for each connection: what is longer than that does not come in time",
        IN_TIME, TO_CONSUL, "bandwidth", hold_seconds=6.0, rate=1,
    ),
    trickle("consul-trickle", "Consul", TO_CONSUL, IN_TIME),
    ConsulFailover,
    answering(
        Stubbed, "consul-429", "Consul answers 429 to everything, with Retry-After: 1",
        (*DOWN, Reason("asks us to be slower (429)")),
        always(
            429, b"Your IP is issuing too many concurrent connections, please rate limit your calls\n",
            **{"Retry-After": "1"},
        ),
    ),
    answering(  # an agent without servers
        Stubbed, "consul-500", "Consul answers 500 (`No known Consul servers`) to everything",
        (*DOWN, Reason("answers 500")), always(500, b"No known Consul servers"),
    ),
    answering(  # a load balancer without backends
        Stubbed, "consul-503", "a proxy answers 503 for Consul, with a page in HTML", (*DOWN, Reason("answers 503")),
        always(503, b"<html><body><h1>503 Service Unavailable</h1></body></html>"),
    ),
    answering(
        Stubbed, "consul-torn-json",
        "every answer is cut in the middle, half of them with a Content-Length that promises more", DOWN, torn,
    ),
    answering(
        Stubbed, "consul-no-index", "answers without X-Consul-Index", (*DOWN, Reason("without a usable index")),
        index(None),
    ),
    ConsulZeroIndex,
    answering(
        Stubbed, "consul-bad-index", "answers with X-Consul-Index: soon", (*DOWN, Reason("without a usable index")),
        index("soon"),
    ),
    answering(
        Stubbed, "consul-huge-answer",
        "answers about one service (`c-0`) are 300 MB of JSON, longer than the bridge takes",
        (log("cannot be read", "c-0", "larger than"), Metric("consul_bridge_service_read_errors", ">0")), huge, EITHER,
    ),
    LeaderLoss,
    QuorumLoss,
)  # fmt: skip
