"""How much may be taken away, and how fast. Consul in trouble must not become the cluster in trouble.

| what would happen | what the guard does |
| --- | --- |
| within a minute, more than half of the ready endpoints (and at least ten) are no longer listed | holds the removals |
| within a minute, more than 80 % of the ready endpoints (and at least ten) stop being ready, listed or not | holds what only turns not ready |
| Consul was rebuilt or restored | holds every removal of that datacenter for ten minutes |
| a person sends away what was filled for their Service | lets it pass, and charges it to nothing |
| anything else | lets it pass |

What comes back (or is replaced) at a target within the minute counts against what went there, so a service that is
restarted instance by instance is never suspicious.

A held target goes on receiving additions and updates. A hold ends when Consul lists the endpoints again, when at least
half of all that was held has come back (then what is left is judged anew), when it is forced, when the rebuild grace is
over (then the first two rows decide), or after `hold_release_seconds`; not because a minute has passed. What is let go
on purpose, by force or after its time, is not charged to anything else. Nothing of this is stored: after a restart
Kubernetes still holds what was held, and the same sums are made again.

Time is passed in; not thread-safe (the reconciler holds a lock).
"""  # noqa: E501

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bridge.core.canonical import shorten
from bridge.core.model import Held, Plan, Target
from bridge.core.reasons import Code

FORCE = "`bridge sync --force` with this bridge's settings"
"""Whose rules it has matters: without any, every service of the datacenter would be created, and nothing held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """Thresholds in percent of all ready endpoints, durations in seconds. A percentage of 0 switches its rule off."""

    removal_percent: int = 50
    removal_minimum: int = 10
    panic_percent: int = 80
    window_seconds: float = 60.0
    rebuild_grace_seconds: float = 600.0
    hold_release_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may not happen now, by target."""

    held: Mapping[Target, Held]


@dataclass(frozen=True, slots=True)
class _Taking:
    """What is taken away from one target at a time, and what comes to it."""

    at: float
    lost: int
    flipped: int
    gained: int = 0


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why something is held: in a word, and as a sentence's middle."""

    cause: Code
    text: str


@dataclass(frozen=True, slots=True)
class _Hold:
    """A hold, why losses and flips are in it (None: they are not), and what it counts for in the sums."""

    held: Held
    why_lost: _Reason | None
    why_flips: _Reason | None
    since: float
    lost: int
    flipped: int
    datacenters: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Sums:
    """What a set of plans comes to, with all that happened in the window and all that is held."""

    lost: int
    flipped: int
    baseline: int

    @property
    def taken(self) -> int:
        return self.lost + self.flipped


class _Window:
    """What went at each target lately, with the sums over all: one change must not cost more the more there were."""

    def __init__(self) -> None:
        self.lost = 0
        self.flipped = 0
        self._takings: dict[Target, list[_Taking]] = {}
        self._due: list[tuple[float, Target]] = []

    def of(self, target: Target) -> Sequence[_Taking]:
        """What went at a target."""
        return self._takings.get(target, ())

    def pop(self, target: Target) -> Sequence[_Taking]:
        """The same, taken out."""
        takings = self._takings.pop(target, [])
        self.lost -= _lost(takings)
        self.flipped -= _flipped(takings)
        return takings

    def put(self, target: Target, takings: list[_Taking]) -> None:
        """Set what went at a target of which nothing is known (any more)."""
        if not takings:
            return
        self._takings[target] = takings
        self.lost += _lost(takings)
        self.flipped += _flipped(takings)
        heapq.heappush(self._due, (min(t.at for t in takings), target))

    def forget(self, horizon: float) -> None:
        """Leave out what went at `horizon` or before."""
        while self._due and self._due[0][0] <= horizon:
            _, target = heapq.heappop(self._due)
            fresh = [t for t in self.of(target) if t.at > horizon]
            if len(fresh) < len(self.of(target)):  # else the entry was of takings that are not there any more
                self.pop(target)
                self.put(target, fresh)


class Guard:
    """Keeps the sums of the sliding window and the holds."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._pending = _Window()
        self._history = _Window()
        self._holds: dict[Target, _Hold] = {}
        self._peak = 0
        self._free: set[Target] = set()
        self._look_again = False
        self._rebuilt: dict[str, tuple[float, str]] = {}

    def admit(self, plans: Sequence[Plan], total_ready: int, now: float, *, force: bool = False) -> Verdict:
        """Judge plans together. `total_ready` counts the ready endpoints of all our objects as they are now."""
        for window in (self._pending, self._history):
            window.forget(now - self._settings.window_seconds)
        taking = []
        for plan in plans:
            self._pending.pop(plan.target)
            if plan.dismissed:
                self._free.discard(plan.target)
                self._end(plan.target)
            elif plan.lost or plan.flipped:
                taking.append(plan)
            else:
                self._recovered(plan.target)
        held = {} if force else self._judge(taking, total_ready, now)
        for plan in taking:
            if plan.target not in held:
                self._end(plan.target)
        for plan in plans:
            on_purpose = force or plan.target in self._free
            self._note(plan, held.get(plan.target), now, charged=not on_purpose)
        return Verdict(held)

    def applied(self, target: Target) -> None:
        """What was admitted for `target` has been written."""
        for taking in self._pending.pop(target):
            history = _without(self._history.pop(target), taking.gained)
            if taking.lost or taking.flipped:
                history.append(replace(taking, gained=0))
            self._history.put(target, history)

    def rebuilt(self, datacenter: str, now: float, sign: str = "its index went backwards") -> None:
        """Consul in `datacenter` is not the one it was, as the `sign` says."""
        self._rebuilt[datacenter] = now + self._settings.rebuild_grace_seconds, sign

    def released(self, now: float) -> frozenset[Target]:
        """Targets whose hold may have ended without news from Consul about them; they are to be planned again."""
        again, self._look_again = self._look_again, False
        # What is left of a hold that is over for the most part is held by the window's sums only: these shrink in time.
        again = again or (bool(self._holds) and self._came_back(()))
        return frozenset(
            target
            for target, hold in self._holds.items()
            if again
            or self._is_due(hold, now)
            or (hold.held.cause is Code.HELD_REBUILT and not self._rebuilding(hold.datacenters, now))
        )

    def active(self) -> tuple[Held, ...]:
        """Everything that is held now, in order of the targets."""
        return tuple(self._holds[target].held for target in sorted(self._holds))

    def forget(self, target: Target) -> None:
        """Nothing of ours is left at `target`. What went there stays in the sums of the window."""
        self._pending.pop(target)
        self._end(target)

    # ------------------------------------------------------------------ the rules

    def _judge(self, plans: Sequence[Plan], total_ready: int, now: float) -> dict[Target, Held]:
        settings = self._settings
        self._free |= {t for t in (p.target for p in plans) if t in self._holds and self._is_due(self._holds[t], now)}
        plans = [p for p in plans if p.target not in self._free]
        sums = self._sums(plans, total_ready)
        removal = panic = None
        if self._exceeds(sums.lost, sums.baseline, settings.removal_percent):
            removal = _Reason(Code.HELD_REMOVAL, self._removal_reason(sums))
        if self._exceeds(sums.taken, sums.baseline, settings.panic_percent):
            panic = _Reason(Code.HELD_PANIC, self._panic_reason(sums))
        trusted = self._came_back(plans)
        held: dict[Target, Held] = {}
        for plan in plans:
            hold = self._holds.get(plan.target)
            datacenters = frozenset(q.datacenter for q in plan.queries)
            why_lost, why_flips = removal, panic
            if hold is not None and not trusted:
                rebuilt = hold.why_lost is not None and hold.why_lost.cause is Code.HELD_REBUILT
                why_lost = why_lost or (None if rebuilt else hold.why_lost)
                why_flips = why_flips or hold.why_flips
            if self._rebuilding(datacenters, now):
                why_lost = _Reason(Code.HELD_REBUILT, self._rebuilt_reason(datacenters, now))
            why_lost = why_lost if plan.lost else None
            why_flips = why_flips if plan.flipped else None
            why = why_lost or why_flips
            if why is None:
                continue
            lost = plan.lost if why_lost is not None else 0
            flipped = plan.flipped if why_flips is not None else 0
            sentence = self._sentence(lost + flipped, why)
            kept = Held(plan.target, why.cause, lost + flipped, sentence, lost=lost > 0, flips=flipped > 0)
            since = now if hold is None else hold.since
            self._holds[plan.target] = _Hold(kept, why_lost, why_flips, since, lost, flipped, datacenters)
            held[plan.target] = kept
        self._peak = max(self._peak, self._held_endpoints())
        return held

    def _sums(self, plans: Sequence[Plan], total_ready: int) -> _Sums:
        """What was let go on purpose is in none of the sums: it says nothing about the rest."""
        mine = {p.target for p in plans} | self._free
        written, pending = self._history, self._pending
        held = [h for target, h in self._holds.items() if target not in mine]
        free = [t for target in mine for t in pending.of(target)]
        return _Sums(
            lost=written.lost + pending.lost - _lost(free) + _lost(held) + sum(p.lost for p in plans),
            flipped=written.flipped + pending.flipped - _flipped(free) + _flipped(held) + sum(p.flipped for p in plans),
            baseline=total_ready + written.lost + written.flipped,
        )

    def _came_back(self, plans: Sequence[Plan]) -> bool:
        """Whether at least half of what was held has come back: then Consul is believed about the rest."""
        planned = {p.target: p.lost + p.flipped for p in plans}
        still = sum(planned.get(target, h.held.endpoints) for target, h in self._holds.items())
        return still * 2 <= self._peak

    def _rebuilt_reason(self, datacenters: Iterable[str], now: float) -> str:
        names = sorted(dc for dc in datacenters if self._rebuilding((dc,), now))
        end, sign = max(self._rebuilt[dc] for dc in names)
        return (
            f"Consul in {', '.join(map(shorten, names))} was rebuilt or restored ({sign}), and for another "
            f"{end - now:.0f} s nothing is removed, so that agents can register again"
        )

    def _removal_reason(self, sums: _Sums) -> str:
        settings = self._settings
        return (
            f"{sums.lost} of {sums.baseline} ready endpoints ({_percent(sums.lost, sums.baseline)} %, the limit is "
            f"{settings.removal_percent} %) would vanish within {settings.window_seconds:.0f} s because Consul no "
            "longer lists them or no rule selects them"
        )

    def _panic_reason(self, sums: _Sums) -> str:
        settings = self._settings
        return (
            f"{sums.taken} of {sums.baseline} ready endpoints ({_percent(sums.taken, sums.baseline)} %, the limit is "
            f"{settings.panic_percent} %) would stop being ready within {settings.window_seconds:.0f} s, so Consul is "
            "the likelier patient"
        )

    def _sentence(self, count: int, why: _Reason) -> str:
        after = self._settings.hold_release_seconds
        ways = ["when Consul recovers", f"by {FORCE}"]
        if why.cause is Code.HELD_REBUILT:
            ways[0] = "when they are registered again"
        if after is not None:
            ways.append(f"{after:.0f} s after the hold began")
        kept = "1 ready endpoint is" if count == 1 else f"{count} ready endpoints are"
        return f"{kept} kept: {why.text}; released {', '.join(ways[:-1])} or {ways[-1]}"

    def _exceeds(self, count: int, baseline: int, percent: int) -> bool:
        return percent > 0 and count >= self._settings.removal_minimum and count * 100 > baseline * percent

    def _rebuilding(self, datacenters: Iterable[str], now: float) -> bool:
        return any(dc in self._rebuilt and self._rebuilt[dc][0] > now for dc in datacenters)

    def _is_due(self, hold: _Hold, now: float) -> bool:
        after = self._settings.hold_release_seconds
        return after is not None and now - hold.since >= after

    # ------------------------------------------------------------------ the books

    def _note(self, plan: Plan, held: Held | None, now: float, *, charged: bool) -> None:
        lost = 0 if not charged or (held is not None and held.lost) else plan.lost
        flipped = 0 if not charged or (held is not None and held.flips) else plan.flipped
        gained = max(0, plan.ready - (plan.ready_before - plan.lost - plan.flipped))
        if lost or flipped or gained:
            self._pending.put(plan.target, [_Taking(now, lost, flipped, gained)])

    def _recovered(self, target: Target) -> None:
        """Consul shows everything again at `target`; that may change what is thought of the other holds."""
        self._free.discard(target)
        if self._holds.pop(target, None) is not None:
            self._look_again = True
        if not self._holds:
            self._peak = 0

    def _end(self, target: Target) -> None:
        """A hold ends without Consul having come back."""
        hold = self._holds.pop(target, None)
        if hold is not None:
            self._peak = max(0, self._peak - hold.held.endpoints) if self._holds else 0

    def _held_endpoints(self) -> int:
        return sum(h.held.endpoints for h in self._holds.values())


def _without(history: Iterable[_Taking], gained: int) -> list[_Taking]:
    """What is left of what went when `gained` endpoints came back, the oldest first."""
    left = []
    for taking in history:
        flipped = max(0, taking.flipped - gained)
        gained -= taking.flipped - flipped
        lost = max(0, taking.lost - gained)
        gained -= taking.lost - lost
        if lost or flipped:
            left.append(_Taking(taking.at, lost, flipped))
    return left


def _lost(takings: Iterable[_Taking | _Hold]) -> int:
    return sum(t.lost for t in takings)


def _flipped(takings: Iterable[_Taking | _Hold]) -> int:
    return sum(t.flipped for t in takings)


def _percent(part: int, whole: int) -> int:
    return round(part * 100 / whole) if whole else 100
