"""How much may be taken away, and how fast. Consul in trouble must not become the cluster in trouble.

| what would happen | what the guard does |
| --- | --- |
| within a minute, more than half of the ready endpoints (and at least ten) are no longer listed | holds the removals |
| within a minute, more than 80 % of the ready endpoints (and at least ten) turn not ready | holds those flips |
| Consul's index went backwards (rebuilt or restored) | holds every removal of that datacenter for ten minutes |
| anything else | lets it pass |

A held target goes on receiving additions and updates. A hold ends when Consul lists the endpoints again, when it is
forced, when the rebuild grace is over (then the first row decides), or after `hold_release_seconds`. Nothing of this is
stored: after a restart Kubernetes still holds what was held, and the same sums are made again.

Time is passed in; not thread-safe (the reconciler holds a lock).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bridge.core.model import Held, Plan, Target


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


@dataclass(slots=True)
class _Taken:
    """What one target lost within the window. Not yet `applied`: planning it again replaces it."""

    at: float
    lost: int
    flipped: int
    applied: bool = False


@dataclass(slots=True)
class _Hold:
    held: Held
    since: float
    lost: int
    flipped: int
    datacenters: frozenset[str] = field(default_factory=frozenset)


class Guard:
    """Keeps the sums of the sliding window and the holds."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._taken: dict[Target, list[_Taken]] = {}
        self._holds: dict[Target, _Hold] = {}
        self._rebuilt: dict[str, float] = {}
        self._freed: dict[Target, float] = {}

    def admit(self, plans: Sequence[Plan], total_ready: int, now: float, *, force: bool = False) -> Verdict:
        """Judge plans together. `total_ready` counts the ready endpoints of all our objects as they are now."""
        self._forget_old(now)
        for plan in plans:
            self._withdraw(plan.target)
            if not plan.lost and not plan.flipped:
                self._holds.pop(plan.target, None)
                self._freed.pop(plan.target, None)
        taking = [p for p in plans if p.lost or p.flipped]
        if not taking:
            return Verdict({})
        held: dict[Target, Held] = {}
        if not force:
            held = self._judge(taking, total_ready, now)
        for plan in taking:
            if plan.target in held:
                continue
            self._holds.pop(plan.target, None)
            self._taken.setdefault(plan.target, []).append(_Taken(now, plan.lost, plan.flipped))
        return Verdict(held)

    def applied(self, target: Target) -> None:
        """What was admitted for `target` has been written."""
        for taken in self._taken.get(target, ()):
            taken.applied = True

    def rebuilt(self, datacenter: str, now: float) -> None:
        """Consul's index went backwards in `datacenter`."""
        self._rebuilt[datacenter] = now + self._settings.rebuild_grace_seconds

    def released(self, now: float) -> frozenset[Target]:
        """Targets whose hold may have ended by the clock; they are to be planned again."""
        due = set()
        for target, hold in self._holds.items():
            after = self._settings.hold_release_seconds
            if after is not None and now - hold.since >= after:
                self._freed[target] = now
                due.add(target)
            if hold.held.cause == "rebuilt" and not self._still_rebuilding(hold.datacenters, now):
                due.add(target)
        return frozenset(due)

    def active(self) -> tuple[Held, ...]:
        """Everything that is held now."""
        return tuple(self._holds[target].held for target in sorted(self._holds))

    def forget(self, target: Target) -> None:
        """Nothing of ours is left at `target`."""
        self._holds.pop(target, None)

    # ------------------------------------------------------------------ the rules

    def _judge(self, plans: Sequence[Plan], total_ready: int, now: float) -> dict[Target, Held]:
        settings = self._settings
        targets = {p.target for p in plans}
        waiting = [h for t, h in self._holds.items() if t not in targets]
        recent_lost = sum(t.lost for entries in self._taken.values() for t in entries)
        recent_flipped = sum(t.flipped for entries in self._taken.values() for t in entries)
        baseline = total_ready + sum(
            t.lost + t.flipped for entries in self._taken.values() for t in entries if t.applied
        )
        lost = recent_lost + sum(p.lost for p in plans) + sum(h.lost for h in waiting)
        flipped = recent_flipped + sum(p.flipped for p in plans) + sum(h.flipped for h in waiting)
        too_much_lost = self._exceeds(lost, baseline, settings.removal_percent)
        too_much_flipped = self._exceeds(flipped, baseline, settings.panic_percent)
        held: dict[Target, Held] = {}
        for plan in plans:
            if plan.target in self._freed:
                continue
            datacenters = frozenset(q.datacenter for q in plan.queries)
            rebuilding = self._still_rebuilding(datacenters, now)
            hold_lost = bool(plan.lost) and (rebuilding or too_much_lost)
            hold_flips = bool(plan.flipped) and too_much_flipped
            if not hold_lost and not hold_flips:
                continue
            if hold_lost and rebuilding:
                cause, reason = "rebuilt", self._rebuilt_reason(datacenters, now)
            elif hold_lost:
                cause, reason = "removal", self._removal_reason(lost, baseline)
            else:
                cause, reason = "panic", self._panic_reason(flipped, baseline)
            count = plan.lost * hold_lost + plan.flipped * hold_flips
            kept = Held(plan.target, cause, count, reason, lost=hold_lost, flips=hold_flips)
            since = self._holds[plan.target].since if plan.target in self._holds else now
            self._holds[plan.target] = _Hold(kept, since, plan.lost, plan.flipped, datacenters)
            held[plan.target] = kept
        return held

    def _rebuilt_reason(self, datacenters: frozenset[str], now: float) -> str:
        left = max(self._rebuilt[dc] for dc in datacenters if dc in self._rebuilt) - now
        return (
            f"Consul in {', '.join(sorted(datacenters))} was rebuilt or restored (its index went backwards): removals "
            f"wait another {left:.0f} s for agents to register again; `bridge sync --force` does not wait"
        )

    def _removal_reason(self, lost: int, baseline: int) -> str:
        settings = self._settings
        return (
            f"{lost} of {baseline} ready endpoints ({_percent(lost, baseline)} %, more than "
            f"{settings.removal_percent} %) would vanish within {settings.window_seconds:.0f} s because Consul no longer lists them; they are kept "
            "until Consul lists them again or `bridge sync --force`"
        )

    def _panic_reason(self, flipped: int, baseline: int) -> str:
        settings = self._settings
        return (
            f"{flipped} of {baseline} ready endpoints ({_percent(flipped, baseline)} %, more than "
            f"{settings.panic_percent} %) would turn not ready within {settings.window_seconds:.0f} s: Consul is the "
            "likelier patient; they are kept ready until it recovers or `bridge sync --force`"
        )

    def _exceeds(self, count: int, baseline: int, percent: int) -> bool:
        return bool(percent) and count >= self._settings.removal_minimum and count * 100 > baseline * percent

    def _still_rebuilding(self, datacenters: frozenset[str], now: float) -> bool:
        return any(self._rebuilt.get(dc, now) > now for dc in datacenters)

    def _withdraw(self, target: Target) -> None:
        """Forget what was admitted for `target` but not written: it is being planned again."""
        entries = [t for t in self._taken.get(target, ()) if t.applied]
        if entries:
            self._taken[target] = entries
        else:
            self._taken.pop(target, None)

    def _forget_old(self, now: float) -> None:
        horizon = now - self._settings.window_seconds
        for target, entries in list(self._taken.items()):
            fresh = [t for t in entries if t.at > horizon]
            if fresh:
                self._taken[target] = fresh
            else:
                del self._taken[target]


def _percent(part: int, whole: int) -> int:
    return round(part * 100 / whole) if whole else 100
