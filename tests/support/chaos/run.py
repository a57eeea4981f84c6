"""The campaign: faults one after the other while services change all the time, and a rest after each.

1. changes run; a user asks for more than all others have, and sends it away
2. the fault is injected and lasts until all its signs were seen (vi), at least `hold_seconds`
3. it is healed; another user's Service loses a VM (vii); changes stop; Consul is made to hold what the VMs say
4. Kubernetes must equal Consul within the fault's `settle_seconds` (iii), and /readyz say yes
5. in steady state: nothing is written (iv), foreign objects are as they were (ii), the process is no bigger (v)
6. what is healthy now is owed from here on (i), and the next fault comes
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.support.chaos.faults import (
    ENDED,
    NOT_READY,
    READY,
    Fault,
    Log,
    Metric,
    Reason,
    Sign,
    has_line,
    holds,
    sample,
)
from tests.support.chaos.harness import STANDING_SERVICE, Harness, wait_for
from tests.support.chaos.observer import Excess, Usage, Violation, usage_of

SIGNS_SECONDS = 25.0
"""How long a fault may last until all its signs were seen."""
REST_SECONDS = 1.0
"""How long nothing may be written in steady state."""
QUERY_SECONDS = 20.0
"""So long after a service's end its watch may wait (the harness's consul.wait, then the slot's idleness)."""
GIVE_UP_SECONDS = 60.0
"""How long a campaign waits for both sides to agree before it goes on with the next fault, whatever `iii` says."""

RETURN_SECONDS = 10.0
"""How long threads and sockets that are more than at the start may need to end."""

FLUSH_SECONDS = 300.0
"""How long Consul may need to take what thousands of VMs say (the servers' own time, not the bridge's)."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Round:
    """What one fault did. `settled_seconds`: from its end until both sides agreed (None: never)."""

    fault: str
    lasted_seconds: float = 0.0
    settled_seconds: float | None = None
    usage: Usage | None = None
    violations: list[Violation] = field(default_factory=list)

    def __str__(self) -> str:
        settled = "never" if self.settled_seconds is None else f"{self.settled_seconds:.1f} s"
        grown = ""
        if self.usage is not None:
            u = self.usage
            grown = f", {u.memory_bytes >> 20} MiB, {u.threads} threads, {u.descriptors} files"
        return f"{self.fault}: lasted {self.lasted_seconds:.1f} s, agreed after {settled}{grown}"


class Campaign:
    """Plays faults on a harness that was entered."""

    def __init__(self, harness: Harness, say: Say = lambda _text: None) -> None:
        self.harness = harness
        self.rounds: list[Round] = []
        self._say = say
        self._baseline: Usage | None = None
        self._baseline_services = 0
        self._before: dict[str, float | None] = {}
        self._asked = (0, 0.0)
        self._seen = len(harness.observer.violations)

    @property
    def baseline(self) -> Usage | None:
        """What the bridge had taken at the last start of a process."""
        return self._baseline

    def begin(self) -> None:
        """The first rest: everything is mirrored, and from now on owed."""
        harness = self.harness
        self._settle(time.monotonic(), 60.0)
        with harness.fleet.changing():  # one warm-up round of changes, so that the baseline is that of a bridge at work
            before = len(harness.fleet.changes)
            wait_for(lambda: len(harness.fleet.changes) >= before + 10, 20)
        self._settle(time.monotonic(), 30.0)
        self._new_baseline()
        harness.fleet.arm()
        self._seen = len(harness.observer.violations)

    def agree(self) -> bool:
        """Whether both sides come to agree."""
        return self._settle(time.monotonic(), 60.0) is not None

    def play(self, fault: Fault, rng: random.Random) -> Round:
        """One fault with all its checks."""
        harness = self.harness
        done = Round(fault.name)
        with harness.fleet.changing():
            position, bridge = harness.bridge.log_size(), harness.bridge
            page = bridge.get("/metrics")[1].decode()
            self._before = {s.name: sample(page, s.name) for s in fault.shows if isinstance(s, Metric)}
            began = time.monotonic()
            if not harness.send_away(GIVE_UP_SECONDS):
                harness.observer.report("iii", f"before {fault.name}: a user's Services are not filled")
            try:
                fault.inject(harness, rng)
                if harness.bridge is not bridge:
                    position = 0
                self._await_signs(fault, position)
                wait_for(lambda: False, fault.hold_seconds - (time.monotonic() - began))
                for wrong in fault.during(harness):
                    harness.observer.report("vi", f"{fault.name}: {wrong}")
            finally:
                fault.heal(harness)
            healed = time.monotonic()
            harness.fleet.lose(STANDING_SERVICE)
            done.lasted_seconds = healed - began
        if fault.asked:
            self._asked = fault.asked, healed + QUERY_SECONDS
        done.settled_seconds = self._settle(healed, fault.settle_seconds, fault.name)
        if fault.new_process or harness.bridge is not bridge:
            self._new_baseline()
        done.usage = self._rest(fault.name)
        harness.fleet.arm()
        harness.observer.check_foreign()
        done.violations = harness.observer.violations[self._seen :]
        self._seen = len(harness.observer.violations)
        self.rounds.append(done)
        self._say(str(done))
        for violation in done.violations:
            self._say(f"    VIOLATION {violation}")
        return done

    def calm(self, seconds: float) -> None:
        """Go on with changes and without faults for a while; what is violated meanwhile is counted, too."""
        if seconds > 0:
            with self.harness.fleet.changing():
                wait_for(lambda: False, seconds)

    # ------------------------------------------------------------------ what users see, vi

    def _await_signs(self, fault: Fault, position: int) -> None:
        missing: list[Sign] = list(fault.shows)
        readiness_seen = False

        def all_seen() -> bool:
            nonlocal readiness_seen
            missing[:] = [sign for sign in missing if not self._is_seen(sign, position)]
            readiness_seen = readiness_seen or self._readiness_is(fault.readiness)
            return not missing and readiness_seen

        if wait_for(all_seen, SIGNS_SECONDS):
            return
        for sign in missing:
            self.harness.observer.report("vi", f"{fault.name} does not show: {type(sign).__name__} {sign}")
        if not readiness_seen:
            status, body = self.harness.bridge.get("/readyz")
            self.harness.observer.report("vi", f"{fault.name}: /readyz says {status} {body[:300]!r}")

    def _is_seen(self, sign: Sign, position: int) -> bool:
        bridge = self.harness.bridge
        match sign:
            case Log(words):
                return has_line(bridge.log_since(position), words)
            case Metric(name, value):
                return holds(value, sample(bridge.get("/metrics")[1].decode(), name), self._before.get(name))
            case Reason(word):
                return word in bridge.get("/readyz")[1].decode()

    def _readiness_is(self, readiness: str) -> bool:
        if readiness == ENDED:
            return not self.harness.bridge.running
        status = self.harness.bridge.get("/readyz")[0]
        return {READY: status == 200, NOT_READY: status == 503}.get(readiness, True)

    # ------------------------------------------------------------------ both sides agree, iii

    def _settle(self, since: float, seconds: float, what: str = "the start") -> float | None:
        """Wait until both sides agree for good; seconds from `since`, None when they never did. Reports (iii)."""
        harness = self.harness
        took = again = self._agree(since, seconds, what)
        while again is not None and (late := harness.fleet.late_seconds()) > 0:
            wait_for(lambda: False, late)  # what Consul accepts late is no idle write, and may have to be corrected
            again = self._agree(time.monotonic(), seconds, what)
        if again is None:
            return None
        if not wait_for(harness.bridge.ready, seconds):
            harness.observer.report("vi", f"{what} is over, but /readyz says {harness.bridge.readiness()}")
        return took

    def _agree(self, since: float, seconds: float, what: str) -> float | None:
        harness = self.harness
        shown, late = False, 1.0
        while not shown and late > 0:  # what Consul takes late undoes what the agents said: they have to say it again
            if not harness.fleet.flush(FLUSH_SECONDS):
                harness.observer.report("iii", f"{what}: Consul refuses what the VMs say: {harness.fleet.trouble}")
                return None
            flushed, late = time.monotonic(), harness.fleet.late_seconds()
            shown = wait_for(
                lambda: harness.observer.shows(harness.fleet.mirrored()), late if late > 0 else GIVE_UP_SECONDS, 0.05
            )
        if not shown or not wait_for(lambda: not harness.observer.compare_sides(), GIVE_UP_SECONDS, 0.02):
            found = harness.observer.compare_sides() or [("iii", "they agree, but not on what the VMs say")]
            for invariant, difference in found[:5]:
                harness.observer.report(invariant, f"{what}, after {GIVE_UP_SECONDS:.0f} s: {difference}")
            return None
        took = time.monotonic() - since
        # what the agents themselves needed to tell Consul is not the bridge's
        if took - max(0.0, flushed - since) > seconds:
            harness.observer.report("iii", f"{what}: both sides agreed only after {took:.1f} s")
        return took

    # ------------------------------------------------------------------ rest, iv and v

    def _rest(self, what: str) -> Usage:
        harness = self.harness
        began = time.time()
        wait_for(lambda: False, REST_SECONDS)
        wait_for(lambda: False, 0.15)  # the audit log is read so often
        for write in harness.observer.writes_since(began)[:5]:
            harness.observer.report("iv", f"after {what}, in steady state: {write}")
        for invariant, difference in harness.observer.compare_sides()[:5]:
            harness.observer.report(invariant, f"after {what}, in steady state: {difference}")
        return self._weigh(what)

    def _weigh(self, what: str) -> Usage:
        """Compare with the baseline; what only needs a moment to end is given one."""
        harness, before = self.harness, self._baseline
        now = usage_of(harness.bridge.pid)
        if before is None:
            return now
        asked, until = self._asked
        more = harness.fleet.size(QUERY_SECONDS) - self._baseline_services + (asked if time.monotonic() < until else 0)
        if not wait_for(lambda: not list(Excess().of(before, usage_of(harness.bridge.pid), more)), RETURN_SECONDS, 0.2):
            for excess in Excess().of(before, usage_of(harness.bridge.pid), more):
                harness.observer.report("v", f"after {what}: {excess}")
        return usage_of(harness.bridge.pid)

    def _new_baseline(self) -> None:
        self._baseline = usage_of(self.harness.bridge.pid)
        self._baseline_services = self.harness.fleet.size()


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of a campaign in figures."""

    rounds: Sequence[Round]
    changes: int
    latencies: Sequence[float]
    violations: Sequence[Violation]
    events: int
    writes: int

    def lines(self) -> list[str]:
        """For people."""
        settled = [r.settled_seconds for r in self.rounds if r.settled_seconds is not None]
        return [
            f"faults injected: {len(self.rounds)}",
            f"changes made: {self.changes}, writes by the bridge: {self.writes}, events watched: {self.events}",
            f"agreement after a fault: {percentiles(settled)}",
            f"from Consul to Kubernetes, faults included: {percentiles(self.latencies)}",
            f"violations: {len(self.violations)}",
        ]


def percentiles(values: Sequence[float]) -> str:
    """p50, p99 and the largest, in seconds."""
    if not values:
        return "nothing was measured"
    ordered = sorted(values)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * p))] for p in (0.5, 0.99))
    return f"p50 {p50:.3f} s, p99 {p99:.3f} s, max {ordered[-1]:.3f} s ({len(ordered)} values)"


def sequence(names: Sequence[str], seed: int) -> Callable[[], str]:
    """Fault names forever: every fault once in a random order, then once more in another order, and so on."""
    rng = random.Random(seed)
    waiting: list[str] = []

    def following() -> str:
        if not waiting:
            waiting.extend(rng.sample(list(names), len(names)))
        return waiting.pop()

    return following


def summary(campaign: Campaign) -> Summary:
    """What a campaign came to so far."""
    observer = campaign.harness.observer
    return Summary(
        tuple(campaign.rounds), len(campaign.harness.fleet.changes), tuple(observer.latencies),
        tuple(observer.violations), observer.events, len(observer.writes),
    )  # fmt: skip
