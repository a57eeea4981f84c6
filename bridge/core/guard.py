"""How much may be taken away, and how fast. Consul in trouble must not become the cluster in trouble.

In: the plans of a pass together, or one of them (`admit`), what was written (`applied`), and signs that Consul was
rebuilt (`rebuilt`). Out: a `Verdict` of what is held at which target, and the targets whose hold may be over (`due`).
Read `Guard` first, which keeps a ledger per scope, then `_Ledger._judge` and `_assess` (the decision), then `_note`,
`_age` and `_reset_if_empty` (what is remembered, and for how long).

Everything is added up per scope (`model.Scope`): what rules mirror from a datacenter, and the annotated Services of
each namespace. What happens in one scope never changes what the guard says in another.

| what would happen in a scope | what the guard does |
| --- | --- |
| within a minute, more than half of the ready endpoints (and at least ten) are no longer listed | holds the removals |
| within a minute, more than 80 % of the ready endpoints (and at least ten) stop being ready, listed or not | holds what only turns not ready |
| the tags or meta of instances take them out of what a rule selects, while Consul lists them | lets it pass, and \
charges it to nothing; but more than half of the ready endpoints of one target (and at least ten) at once count as \
no longer listed, and all do after a rebuild |
| Consul was rebuilt or restored | holds every removal of that datacenter for ten minutes, in every scope |
| another datacenter carries a Service's traffic from now on (`failover`) | lets it pass, and charges it to nothing |
| a user sends away or changes what their Service is filled with | lets it pass, and charges it to nothing |
| a command that runs once, while a running bridge of the same owner id writes | holds everything that would go or \
stop being ready: only that bridge knows what it has seen go within the minute, and what it holds |
| a mistake in a rule may be the reason (`rule_matches`), or the target that the rule names instead does not serve yet \
| holds it, and charges it to nothing |
| anything else | lets it pass |

What a rule's `min_ready` keeps ready (`instances`) does not stop being ready, so nothing of it is counted here: that is
a service's own minimum, at any time and without a hold.

What comes back (or is replaced) at a target within the minute counts against what went there, so a service that is
restarted instance by instance is never suspicious.

A held target goes on receiving additions and updates. A hold ends, and what is left of it is judged again,

| when | how soon |
| --- | --- |
| Consul lists its endpoints again | at once |
| at least half of all that was held in its scope has come back | at once |
| its user sends it away, or changes what they ask for | at once, and the scope's other holds if nothing else speaks for them |
| a forced pass takes it away (`release`) | the same, when all is taken away; after `FORCED_SECONDS` we do the rest |
| the sums of its scope are below the thresholds, and what is held in it has been so for a minute | then; `due` is the timer |
| the restore hold is over (then the first two rows above decide) | then |
| the rule in doubt matches something, or has gone from the settings; the other target serves | within `DOUBT_SECONDS` |
| it has lasted for `hold_release_seconds` | then |

What is let go on purpose, by force or after its time, is not charged to anything else. Nothing of this is stored:
after a restart Kubernetes still holds what was held, and the same sums are made again. Only a release by force is
known from the objects, for a few minutes.

Time is passed in; not thread-safe (the planner holds a lock).

Longer than other modules: what is counted, when it is forgotten, and what is held for it cannot be understood apart.
"""  # noqa: E501

from __future__ import annotations

import heapq
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bridge.core.model import Held, Plan, Scope, Target
from bridge.core.normalize import truncate
from bridge.core.reasons import Code

LOOK_SECONDS = 5.0
"""How soon a target is named by `due` again, when it was not planned meanwhile (Consul does not answer)."""

DOUBT_SECONDS = 30.0
"""How soon a target that is held because of a rule is planned again without news about it."""

FORCED_SECONDS = 2.0
"""How long a forced pass is left alone at a target before what it has let go is taken away by ourselves: it may have
ended between two writes."""

RUNNING = (
    "a running bridge of this owner id ({running}) takes away what has to go, and only that one knows what it holds"
)

Ready = Callable[[Scope], int]
"""Gives the ready endpoints of all our objects in a scope as they are now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """Thresholds in percent of all ready endpoints of a scope, durations in seconds. A percentage of 0: rule is off.

    `command` is `bridge sync` with this installation's settings: the message of a hold has it.
    """

    removal_percent: int
    removal_minimum: int
    panic_percent: int
    window_seconds: float
    restore_hold_seconds: float
    hold_release_seconds: float | None
    command: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may not happen now, by target."""

    held: Mapping[Target, Held]


@dataclass(frozen=True, slots=True)
class _LossSample:
    """What is taken away from one target at a time, and what comes to it."""

    at: float
    removed: int
    became_unready: int
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
    why_removed: _Reason | None
    why_flips: _Reason | None
    since: float
    removed: int
    became_unready: int
    datacenters: frozenset[str]

    @property
    def rebuilt(self) -> bool:
        return self.why_removed is not None and self.why_removed.cause is Code.HELD_REBUILT


@dataclass(frozen=True, slots=True)
class _Sum:
    """Ready endpoints that would go, and those that they are a part of."""

    part: int
    whole: int

    @property
    def percent(self) -> int:
        return round(self.part * 100 / self.whole) if self.whole else 100


class _Window:
    """What went at each target lately, with the sums over all: one change must not cost more the more there were."""

    def __init__(self) -> None:
        self.removed = 0
        self.became_unready = 0
        self._samples: dict[Target, list[_LossSample]] = {}
        self._due: list[tuple[float, Target]] = []

    def __bool__(self) -> bool:
        return bool(self._samples)

    def of(self, target: Target) -> Sequence[_LossSample]:
        """What went at a target."""
        return self._samples.get(target, ())

    def pop(self, target: Target) -> Sequence[_LossSample]:
        """The same, taken out."""
        samples = self._samples.pop(target, [])
        self.removed -= _removed(samples)
        self.became_unready -= _became_unready(samples)
        return samples

    def put(self, target: Target, samples: list[_LossSample]) -> None:
        """Set what went at a target of which nothing is known (any more)."""
        if not samples:
            return
        self._samples[target] = samples
        self.removed += _removed(samples)
        self.became_unready += _became_unready(samples)
        heapq.heappush(self._due, (min(t.at for t in samples), target))

    def forget(self, horizon: float) -> None:
        """Leave out what went at `horizon` or before."""
        while self._due and self._due[0][0] <= horizon:
            _, target = heapq.heappop(self._due)
            fresh = [t for t in self.of(target) if t.at > horizon]
            if len(fresh) < len(self.of(target)):  # else the entry was of samples that are not there any more
                self.pop(target)
                self.put(target, fresh)


class _Doubt:
    """Whether Consul is still doubted in one respect, although the sums are below the threshold again.

    While agents register again one by one, the rest must not be taken away the moment that it is less than half: what
    is held has to be below the threshold for a whole window first.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._below_since: float | None = None

    def see(self, *, exceeds: bool, over: bool, now: float) -> None:
        """`exceeds`: what is held is above the threshold by itself. `over`: if not, there is nothing to wait for."""
        if exceeds:
            self._below_since = None
        elif over:
            self._below_since = float("-inf")
        elif self._below_since is None:
            self._below_since = now

    def lasts(self, now: float) -> bool:
        return self._below_since is None or now - self._below_since < self._window_seconds


class _Rebuilds:
    """Which datacenters' Consul was rebuilt or restored, and until when nothing is removed for that."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Scope | None], tuple[float, str]] = {}

    def note(self, datacenter: str, scope: Scope | None, until: float, sign: str) -> None:
        self._found[datacenter, scope] = until, sign

    def last(self, datacenters: Iterable[str], scope: Scope, now: float) -> bool:
        """Whether the grace of one of the datacenters is not over yet."""
        return any(self._of(dc, scope, now) for dc in datacenters)

    def until(self, datacenter: str, scope: Scope, now: float) -> float:
        """When the grace of a datacenter ends, 0 when it has none."""
        return max((until for until, _ in self._of(datacenter, scope, now)), default=0.0)

    def reason(self, datacenters: Iterable[str], scope: Scope, now: float) -> _Reason | None:
        """Why nothing is removed that comes from one of the datacenters; None when it may be."""
        found = {dc: max(signs) for dc in datacenters if (signs := self._of(dc, scope, now))}
        if not found:
            return None
        end, sign = max(found.values())
        text = (
            f"Consul in {', '.join(map(truncate, sorted(found)))} was rebuilt or restored ({sign}), and for another "
            f"{end - now:.0f} s nothing is removed, so that agents can register again"
        )
        return _Reason(Code.HELD_REBUILT, text)

    def _of(self, datacenter: str, scope: Scope, now: float) -> list[tuple[float, str]]:
        found = (self._found.get((datacenter, of)) for of in (None, scope))
        return [sign for sign in found if sign is not None and sign[0] > now]


class _Releases:
    """What forced passes let go, as our objects say: since when that is seen, and whether it is over."""

    def __init__(self) -> None:
        self._seen: dict[Target, tuple[str, float]] = {}
        self._over: dict[Target, str] = {}

    def see(self, plan: Plan, now: float) -> None:
        """Take what the objects at a target say."""
        if self._seen.get(plan.target, ("",))[0] != plan.released:
            self._seen[plan.target] = plan.released, now
        if not plan.released:
            self.forget(plan.target)

    def counts(self, target: Target) -> bool:
        """Whether what is lost at a target was let go."""
        return target in self._seen and self._over.get(target) != self._seen[target][0]

    def is_due(self, target: Target, now: float) -> bool:
        """Whether the forced pass had its time: what it has left is ours to do."""
        return self.counts(target) and now - self._seen[target][1] >= FORCED_SECONDS

    def end(self, target: Target) -> bool:
        """Nothing is lost at a target (any more); whether that is the end of a release, which counts once."""
        if not self.counts(target):
            return False
        self._over[target] = self._seen[target][0]
        return True

    def forget(self, target: Target) -> None:
        self._seen.pop(target, None)
        self._over.pop(target, None)


class Guard:
    """Keeps a ledger for each scope."""

    def __init__(self, settings: GuardSettings, running: str = "") -> None:
        """`running`: a bridge that runs and writes what is judged here, which takes away by itself what has to go."""
        self._settings = settings
        self._running = _Reason(Code.HELD_RUNNING, RUNNING.format(running=truncate(running))) if running else None
        self._rebuilds = _Rebuilds()
        self._releases = _Releases()
        self._ledgers: dict[Scope, _Ledger] = {}
        self._scopes: dict[Target, Scope] = {}

    def admit(self, plans: Sequence[Plan], ready: Ready, now: float, *, force: bool = False) -> Verdict:
        """Judge plans together, each among those of its scope."""
        by_scope: dict[Scope, list[Plan]] = {}
        for plan in plans:
            before = self._scopes.get(plan.target)
            if before is not None and before != plan.scope:
                self._ledger(before).forget(plan.target)
            self._scopes[plan.target] = plan.scope
            self._releases.see(plan, now)
            by_scope.setdefault(plan.scope, []).append(plan)
        held: dict[Target, Held] = {}
        for scope, together in by_scope.items():
            held.update(self._ledger(scope).admit(together, ready(scope), now, force=force))
        return Verdict(held)

    def applied(self, target: Target) -> None:
        """What was admitted for `target` has been written."""
        scope = self._scopes.get(target)
        if scope is not None:
            self._ledger(scope).applied(target)

    def rebuilt(
        self, datacenter: str, now: float, sign: str = "its index went backwards", scope: Scope | None = None
    ) -> None:
        """Consul in `datacenter` is not the one it was, as the `sign` says: for one scope, or (None) for all."""
        self._rebuilds.note(datacenter, scope, now + self._settings.restore_hold_seconds, sign)

    def due(self, now: float, ready: Ready) -> frozenset[Target]:
        """Targets whose hold may have ended without news from Consul about them; they are to be planned again.

        This is the timer: ask it a few times a second.
        """
        found: set[Target] = set()
        for scope, ledger in list(self._ledgers.items()):
            found |= ledger.due(ready(scope), now)
            if not ledger:
                del self._ledgers[scope]
        return frozenset(found)

    def doubted_until(self, datacenter: str, scope: Scope, now: float) -> float:
        """Until when it is doubted what Consul in a datacenter shows, because it was rebuilt or restored; else 0."""
        return self._rebuilds.until(datacenter, scope, now)

    def active(self) -> tuple[Held, ...]:
        """Everything that is held now, in order of the targets."""
        holds = {t: h.held for of in self._ledgers.values() for t, h in (*of.holds.items(), *of.doubted.items())}
        return tuple(holds[target] for target in sorted(holds))

    def forget(self, target: Target) -> None:
        """Nothing of ours is left at `target`. What went there stays in the sums of the window."""
        self._releases.forget(target)
        scope = self._scopes.pop(target, None)
        if scope is not None:
            self._ledger(scope).forget(target)

    def _ledger(self, scope: Scope) -> _Ledger:
        ledger = self._ledgers.get(scope)
        if ledger is None:
            ledger = self._ledgers[scope] = _Ledger(
                scope, self._settings, self._rebuilds, self._releases, self._running
            )
        return ledger


class _Ledger:
    """The sums of the sliding window and the holds of one scope."""

    def __init__(
        self, scope: Scope, settings: GuardSettings, rebuilds: _Rebuilds, releases: _Releases, running: _Reason | None
    ) -> None:
        self._scope = scope
        self._settings = settings
        self._rebuilds = rebuilds
        self._releases = releases
        self._running = running
        self._pending = _Window()
        self._history = _Window()
        self._removal = _Doubt(settings.window_seconds)
        self._panic = _Doubt(settings.window_seconds)
        self._peak_held = 0
        self._exempt: set[Target] = set()
        self._given_up = False
        self._named: dict[Target, float] = {}
        self.holds: dict[Target, _Hold] = {}
        self.doubted: dict[Target, _Hold] = {}

    def __bool__(self) -> bool:
        return bool(self.holds or self.doubted or self._pending or self._history or self._exempt)

    def admit(self, plans: Sequence[Plan], ready: int, now: float, *, force: bool) -> Mapping[Target, Held]:
        self._age(now)
        doubted = {} if force else self._doubted(plans, now)
        plans = [self._counted(plan, now) for plan in plans if plan.target not in doubted]
        losing = []
        for plan in plans:
            self._pending.pop(plan.target)
            self._named.pop(plan.target, None)
            self.doubted.pop(plan.target, None)
            if plan.unsubscribed:
                self._exempt.discard(plan.target)
                self._end(plan.target)
            elif plan.removed or plan.became_unready:
                losing.append(plan)
            elif self._releases.end(plan.target):
                self._exempt.discard(plan.target)
                self._end(plan.target)
            else:
                self._recovered(plan.target)
        held = {} if force else self._judge(losing, ready, now)
        for plan in losing:
            if plan.target not in held:
                self._end(plan.target)
        for plan in plans:
            if not plan.unsubscribed:
                on_purpose = force or plan.target in self._exempt or self._releases.counts(plan.target)
                self._note(plan, held.get(plan.target), now, counted=not on_purpose)
        return {**held, **doubted}

    def applied(self, target: Target) -> None:
        for sample in self._pending.pop(target):
            history = _without(self._history.pop(target), sample.gained)
            if sample.removed or sample.became_unready:
                history.append(replace(sample, gained=0))
            self._history.put(target, history)

    def due(self, ready: int, now: float) -> set[Target]:
        self._age(now)
        found = {t for t in self.doubted if now >= self._named.get(t, now) or self._is_let_go(t, now)}
        self._named.update(dict.fromkeys(found, now + LOOK_SECONDS))
        if not self.holds:
            return found
        removal, panic = self._assess((), ready, now)
        for target, hold in self.holds.items():
            lost_stays = hold.why_removed is None or (
                self._rebuilds.last(hold.datacenters, self._scope, now)
                if hold.rebuilt
                else removal is not None or self._removal.lasts(now)
            )
            flips_stay = hold.why_flips is None or panic is not None or self._panic.lasts(now)
            over = not lost_stays or not flips_stay or self._is_let_go(target, now)
            if over and now >= self._named.get(target, now):
                self._named[target] = now + LOOK_SECONDS
                found.add(target)
        return found

    def forget(self, target: Target) -> None:
        self._pending.pop(target)
        self._exempt.discard(target)
        self.doubted.pop(target, None)
        self._end(target)

    # ------------------------------------------------------------------ the rules

    def _doubted(self, plans: Sequence[Plan], now: float) -> dict[Target, Held]:
        """What is held because of a rule: it says nothing about Consul, so it is in none of the sums."""
        held: dict[Target, Held] = {}
        for plan in plans:
            target, counted = plan.target, plan.removed + plan.became_unready + plan.deselected
            if plan.doubt is None or plan.unsubscribed:
                continue
            if target in self._exempt or self._is_let_go(target, now):
                self._exempt.add(target)
                continue
            self._pending.pop(target)
            self._end(target)
            cause = Code.HELD_MOVED if plan.doubt.code is Code.MOVE_HOLDS else Code.HELD_UNMATCHED
            why, command = _Reason(cause, plan.doubt), force_command(self._settings.command, plan)
            held[target] = Held(
                target,
                why.cause,
                counted,
                self._sentence(counted, why, command),
                flips=True,
                deselected=plan.deselected > 0,
                releasing=self._releases.counts(target),
                why=self._together(why),
                command=command,
            )
            since = self.doubted[target].since if target in self.doubted else now
            self.doubted[target] = _Hold(held[target], why, None, since, 0, 0, _datacenters(plan))
            self._named[target] = now + DOUBT_SECONDS
        return held

    def _judge(self, plans: Sequence[Plan], ready: int, now: float) -> dict[Target, Held]:
        self._exempt |= {p.target for p in plans if self._is_let_go(p.target, now)}
        plans = [p for p in plans if p.target not in self._exempt]
        removal, panic = self._assess(plans, ready, now)
        held: dict[Target, Held] = {}
        for plan in plans:
            hold = self.holds.get(plan.target)
            datacenters = _datacenters(plan)
            why_removed, why_flips = removal, panic
            if hold is not None:
                if why_removed is None and not hold.rebuilt and self._removal.lasts(now):
                    why_removed = hold.why_removed
                if why_flips is None and self._panic.lasts(now):
                    why_flips = hold.why_flips
            why_removed = self._running or self._rebuilds.reason(datacenters, self._scope, now) or why_removed
            why_flips = self._running or why_flips
            why_removed = why_removed if plan.removed else None
            why_flips = why_flips if plan.became_unready else None
            why = why_removed or why_flips
            if why is None:
                continue
            removed = plan.removed if why_removed is not None else 0
            became_unready = plan.became_unready if why_flips is not None else 0
            command = force_command(self._settings.command, plan)
            sentence = self._sentence(removed + became_unready, why, command)
            kept = Held(
                plan.target,
                why.cause,
                removed + became_unready,
                sentence,
                removed=removed > 0,
                flips=became_unready > 0,
                deselected=removed > 0 and plan.deselected > 0,
                releasing=self._releases.counts(plan.target),
                why=self._together(why),
                command=command,
            )
            since = now if hold is None else hold.since
            self.holds[plan.target] = _Hold(kept, why_removed, why_flips, since, removed, became_unready, datacenters)
            held[plan.target] = kept
        self._peak_held = max(self._peak_held, self._held_endpoints())
        return held

    def _assess(self, plans: Sequence[Plan], ready: int, now: float) -> tuple[_Reason | None, _Reason | None]:
        """What speaks for holding losses, and flips, now; and what of the doubt in Consul is left when nothing does.

        What was let go on purpose is in none of the sums: it says nothing about the rest.
        """
        settings, written, pending = self._settings, self._history, self._pending
        mine = {p.target for p in plans} | self._exempt
        holds = [h for target, h in self.holds.items() if target not in mine]
        exempt = [t for target in mine for t in pending.of(target)]
        kept_removed = _removed(holds) + sum(p.removed for p in plans)
        kept = kept_removed + _became_unready(holds) + sum(p.became_unready for p in plans)
        went_removed = written.removed + pending.removed - _removed(exempt)
        went = went_removed + written.became_unready + pending.became_unready - _became_unready(exempt)
        whole = ready + written.removed + written.became_unready
        removed, taken = _Sum(kept_removed + went_removed, whole), _Sum(kept + went, whole)
        removes, panics = self._exceeds(removed, settings.removal_percent), self._exceeds(taken, settings.panic_percent)
        believed = self._came_back(plans)
        self._removal.see(
            exceeds=self._exceeds(_Sum(kept_removed, ready), settings.removal_percent),
            over=believed or (self._given_up and not removes),
            now=now,
        )
        self._panic.see(
            exceeds=self._exceeds(_Sum(kept, ready), settings.panic_percent),
            over=believed or (self._given_up and not panics),
            now=now,
        )
        self._given_up = False
        return (
            _Reason(Code.HELD_REMOVAL, self._removal_reason(removed)) if removes else None,
            _Reason(Code.HELD_PANIC, self._panic_reason(taken)) if panics else None,
        )

    def _came_back(self, plans: Sequence[Plan]) -> bool:
        """Whether at least half of what was held has come back: then Consul is believed about the rest."""
        planned = {p.target: p.removed + p.became_unready for p in plans}
        still = sum(planned.get(target, h.held.endpoints) for target, h in self.holds.items())
        return still * 2 <= self._peak_held

    def _removal_reason(self, removed: _Sum) -> str:
        settings = self._settings
        return (
            f"{removed.part} of {removed.whole} ready endpoints {self._whose()} ({removed.percent} %, the limit is "
            f"{settings.removal_percent} %) would vanish within {settings.window_seconds:.0f} s because Consul no "
            "longer lists them or no rule selects them"
        )

    def _panic_reason(self, taken: _Sum) -> str:
        settings = self._settings
        return (
            f"{taken.part} of {taken.whole} ready endpoints {self._whose()} ({taken.percent} %, the limit is "
            f"{settings.panic_percent} %) would stop being ready within {settings.window_seconds:.0f} s, so Consul is "
            "more likely to be wrong"
        )

    def _whose(self) -> str:
        if self._scope.namespace:
            return f"of annotated Services in namespace {self._scope.namespace}"
        return f"mirrored from {', '.join(map(truncate, self._scope.datacenters))}"

    def _sentence(self, count: int, why: _Reason, command: str) -> str:
        first, *later = self._ways(why)
        ways = [first, f"by `{command}`", *later]
        kept = (
            "the Service is" if not count else "1 ready endpoint is" if count == 1 else f"{count} ready endpoints are"
        )
        return f"{kept} kept: {why.text}; released {', '.join(ways[:-1])} or {ways[-1]}"

    def _together(self, why: _Reason) -> str:
        """The same without numbers and command: what all that is held for this reason shares."""
        return f"{why.text}; released {' or '.join(self._ways(why))}, or by a command"

    def _ways(self, why: _Reason) -> list[str]:
        """How a hold ends by itself."""
        if why.cause is Code.HELD_RUNNING:
            return ["by that bridge as soon as its own guard allows it"]
        after = self._settings.hold_release_seconds
        ways = [_END.get(why.cause, "when Consul recovers")]
        return ways if after is None else [*ways, f"{after:.0f} s after the hold began"]

    def _exceeds(self, found: _Sum, percent: int) -> bool:
        return percent > 0 and found.part >= self._settings.removal_minimum and found.part * 100 > found.whole * percent

    def _counted(self, plan: Plan, now: float) -> Plan:
        """The plan with what is not selected any more as a part of what is lost, or as no part of it.

        A tag that moves is its owner's word (Patroni's primary is found by one, and it would be wrong to keep the old).
        When most instances of one service lose it together, a broken deployment is more likely; and a Consul that was
        restored has tags of the past.
        """
        if not plan.deselected:
            return plan
        hold = self.holds.get(plan.target)
        goes_on = hold is not None and hold.held.deselected
        most = self._exceeds(_Sum(plan.deselected, plan.ready_before), self._settings.removal_percent)
        if goes_on or most or self._rebuilds.last(_datacenters(plan), self._scope, now):
            return replace(plan, removed=plan.removed + plan.deselected)
        return replace(plan, deselected=0)

    def _is_let_go(self, target: Target, now: float) -> bool:
        """Whether what is lost at a target is let go: by force, or because its hold has lasted for long enough."""
        hold, after = self.holds.get(target) or self.doubted.get(target), self._settings.hold_release_seconds
        lasted = hold is not None and after is not None and now - hold.since >= after
        return lasted or self._releases.is_due(target, now)

    # ------------------------------------------------------------------ the books

    def _age(self, now: float) -> None:
        for window in (self._pending, self._history):
            window.forget(now - self._settings.window_seconds)

    def _note(self, plan: Plan, held: Held | None, now: float, *, counted: bool) -> None:
        removed = 0 if not counted or (held is not None and held.removed) else plan.removed
        became_unready = 0 if not counted or (held is not None and held.flips) else plan.became_unready
        gained = max(0, plan.ready - (plan.ready_before - plan.removed - plan.became_unready))
        if removed or became_unready or gained:
            self._pending.put(plan.target, [_LossSample(now, removed, became_unready, gained)])

    def _recovered(self, target: Target) -> None:
        """Consul shows everything again at `target`."""
        self._exempt.discard(target)
        if self.holds.pop(target, None) is not None:
            self._reset_if_empty()

    def _end(self, target: Target) -> None:
        """A hold ends without Consul having come back; its losses are not counted any more."""
        hold = self.holds.pop(target, None)
        if hold is not None:
            self._peak_held = max(0, self._peak_held - hold.held.endpoints)
            self._given_up = True
            self._reset_if_empty()

    def _reset_if_empty(self) -> None:
        """When nothing is held any more the next hold begins from nothing."""
        if not self.holds:
            self._peak_held = 0
            self._given_up = False
            self._removal = _Doubt(self._settings.window_seconds)
            self._panic = _Doubt(self._settings.window_seconds)
            self._named.clear()

    def _held_endpoints(self) -> int:
        return sum(h.held.endpoints for h in self.holds.values())


_END = {
    Code.HELD_REBUILT: "when they are registered again",
    Code.HELD_UNMATCHED: "when the rule is corrected or removed",
    Code.HELD_MOVED: "when that serves it",
}


def force_command(command: str, plan: Plan) -> str:
    """The command that releases what is held at a target and nothing else, to be pasted into a shell.

    Names in Consul may be anything: they are quoted, and what no shell line can carry is left out.
    """
    services = sorted({q.service for q in plan.queries if q.service})
    flags = [f"--service {shlex.quote(_literal(name))}" for name in services if name.isprintable()]
    if len(flags) < len(services):
        flags = []
    return " ".join((command, *flags, "--namespace", shlex.quote(plan.target.namespace), "--force"))


def _datacenters(plan: Plan) -> frozenset[str]:
    """Where what a target has comes from, and what it is to have."""
    return frozenset(query.datacenter for query in plan.queries).union(plan.scope.datacenters)


def _literal(name: str) -> str:
    """A glob that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _without(history: Iterable[_LossSample], gained: int) -> list[_LossSample]:
    """What is left of what went when `gained` endpoints came back, the oldest first."""
    left = []
    for sample in history:
        became_unready = max(0, sample.became_unready - gained)
        gained -= sample.became_unready - became_unready
        removed = max(0, sample.removed - gained)
        gained -= sample.removed - removed
        if removed or became_unready:
            left.append(_LossSample(sample.at, removed, became_unready))
    return left


def _removed(samples: Iterable[_LossSample | _Hold]) -> int:
    return sum(s.removed for s in samples)


def _became_unready(samples: Iterable[_LossSample | _Hold]) -> int:
    return sum(s.became_unready for s in samples)
