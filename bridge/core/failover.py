"""Which of a rule's datacenters carries the traffic of one Service (`combine: failover`).

| the active one | other datacenters | result |
| --- | --- | --- |
| has enough ready | none before it has | it goes on |
| has enough ready, or is in doubt | one before it has | that one, once it has had enough for `failback_seconds` |
| has too few, or had when it last answered | one has enough | that one at once |
| cannot be reached, and `when_unreachable` | one behind it has enough | that one, when it could not be reached for \
`unreachable_seconds` |
| cannot be asked, or is in doubt otherwise, and had enough when it last answered | none before it has | it goes on: \
unknown is not empty |
| has too few, or is gone | none has | it goes on; where it is gone, the first that has any instance |
| none yet | | the first in the rule's order that has enough; nothing while one before it is in doubt |

Only what is known of now can take over: a datacenter that cannot be asked, was never read, or whose Consul was rebuilt
a moment ago (it may show the past) does not.

The objects are the memory: `consul-bridge/active-datacenter` on all of them names the datacenter, and on the Service
`consul-bridge/pending-datacenter` says which one is to take over, and since when it could. So another replica, a
restarted bridge and one-shot passes go on where the last one was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bridge.core.model import ActiveDatacenter, Current, Failover, Pairs
from bridge.core.normalize import truncate
from bridge.core.ownership import ACTIVE, DATACENTER, PENDING
from bridge.core.reasons import Code, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a datacenter has for the Service, as far as is known.

    `doubt`: why there may be more than is known ("" when there is not). `stale`: why this is not of now.
    `unreachable`: the datacenter does not answer at all.
    """

    datacenter: str
    ready: int
    registered: int
    doubt: str = ""
    stale: str = ""
    unreachable: bool = False

    def has_enough(self, settings: Failover) -> bool:
        """Whether so many are ready as it takes to carry the traffic."""
        if settings.percent:
            return self.ready > 0 and self.ready * 100 >= settings.below * self.registered
        return self.ready >= settings.below

    @property
    def has(self) -> str:
        return f"{self.ready} of {self.registered} ready" if self.registered else "no instance"


@dataclass(frozen=True, slots=True)
class Memory:
    """What the objects say: which datacenter carries the traffic ("": none yet), which is to, and since when it could
    (seconds since 1970).
    """

    active: str = ""
    pending: str = ""
    since: float = 0.0


def remembered(current: Current, owner: str) -> Memory:
    """The memory of our objects at a target; those of a rule that combined nothing came from the one datacenter."""
    service = current.service
    if service is None or service.meta.owner != owner:
        return Memory()
    said = dict(service.meta.ownership)
    active = said.get(ACTIVE, "")
    if not active:
        before = said.get(DATACENTER, "")
        return Memory("" if "," in before else before)
    pending, _, stamp = said.get(PENDING, "").rpartition(" ")
    try:
        since = datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return Memory(active)
    return Memory(active, pending, since)


def is_switching(current: Current, owner: str, active: str) -> bool:
    """Whether one of our objects still says that another datacenter carries the traffic."""
    objects = (current.service, current.endpoints, *current.slices)
    said = (dict(o.meta.ownership).get(ACTIVE, active) for o in objects if o is not None and o.meta.owner == owner)
    return any(datacenter != active for datacenter in said)


def marks(memory: Memory) -> tuple[Pairs, Pairs]:
    """The annotations of every object, and those of the Service alone."""
    pending = ((PENDING, f"{memory.pending} {_stamp(memory.since)}"),) if memory.pending else ()
    return ((ACTIVE, memory.active),), pending


def choose(
    candidates: Sequence[Candidate], settings: Failover, before: Memory, now: float
) -> tuple[Memory, ActiveDatacenter] | None:
    """The datacenter that carries the traffic from now on, and why; None while that is unknown.

    `candidates` are in the rule's order, at least one. `now` in seconds since 1970.
    """
    able = next((c for c in candidates if _is_able(c, settings)), None)
    names = [c.datacenter for c in candidates]
    if before.active not in names:
        first = _first(candidates, settings, able)
        return None if first is None else _decided(first, candidates, settings, Memory(first.datacenter), before, now)
    active = candidates[names.index(before.active)]
    if able is None or able is active:
        return _decided(active, candidates, settings, Memory(active.datacenter), before, now)
    if not active.has_enough(settings) and not active.doubt:
        return _decided(able, candidates, settings, Memory(able.datacenter), before, now)
    waits = _waits(names.index(able.datacenter) < names.index(active.datacenter), active, settings)
    if waits is None:
        return _decided(active, candidates, settings, Memory(active.datacenter), before, now)
    goes_on = before.pending == able.datacenter and before.since <= now
    memory = Memory(active.datacenter, able.datacenter, before.since if goes_on else float(int(now)))
    if now - memory.since >= waits:
        return _decided(able, candidates, settings, Memory(able.datacenter), before, now)
    return _decided(active, candidates, settings, memory, before, now, waits)


def _is_able(candidate: Candidate, settings: Failover) -> bool:
    """Whether a datacenter may take over, or go on without a question."""
    return candidate.has_enough(settings) and not candidate.stale


def _first(candidates: Sequence[Candidate], settings: Failover, able: Candidate | None) -> Candidate | None:
    """The first choice when no datacenter is active yet; None while a preferred one is in doubt."""
    for candidate in candidates:
        if candidate is able:
            return able
        in_doubt = candidate.doubt or (candidate.stale and candidate.has_enough(settings))
        if in_doubt and not (candidate.unreachable and settings.when_unreachable):
            return None
    certain = [c for c in candidates if not c.doubt]
    return next((c for c in certain if c.registered), certain[0] if certain else None)


def _waits(back: bool, active: Candidate, settings: Failover) -> float | None:
    """Seconds for which another datacenter must have been able to take over; None: it may not."""
    if back:
        return settings.failback_seconds
    return settings.unreachable_seconds if active.unreachable and settings.when_unreachable else None


def _decided(
    active: Candidate,
    candidates: Sequence[Candidate],
    settings: Failover,
    memory: Memory,
    before: Memory,
    now: float,
    waits: float = 0.0,
) -> tuple[Memory, ActiveDatacenter]:
    preferred, name = candidates[0], truncate(active.datacenter)
    gone = before.active if before.active not in ("", *(c.datacenter for c in candidates)) else ""
    if gone:
        why_not = "the rule does not name it, or it has no such service"
        why = Reason(Code.FAILED_OVER, active=name, preferred=truncate(gone), why=why_not)
    elif active is preferred:
        why = Reason(Code.CARRIES, active=name, has=active.has)
    else:
        first = truncate(preferred.datacenter)
        why = Reason(Code.FAILED_OVER, active=name, preferred=first, why=_why_not(preferred, settings))
    pending: tuple[Reason, ...] = ()
    if memory.pending:
        since = _stamp(memory.since)
        about = {"active": name, "pending": truncate(memory.pending), "since": since, "seconds": f"{waits:g}"}
        back = memory.pending in [c.datacenter for c in candidates[: candidates.index(active)]]
        pending = (Reason(Code.FAILBACK_PENDING if back else Code.FAILOVER_PENDING, **about),)
    chosen = ActiveDatacenter(
        name=active.datacenter,
        before="" if before.active == active.datacenter else before.active,
        why=why,
        preferred=active is preferred and not gone,
        pending=pending,
        recheck_seconds=max(memory.since + waits - now, 0.0) if memory.pending else None,
    )
    return memory, chosen


def _why_not(preferred: Candidate, settings: Failover) -> str:
    """Why the first datacenter does not carry the traffic."""
    if preferred.unreachable and settings.when_unreachable:
        return f"it cannot be reached ({preferred.stale or preferred.doubt})"
    threshold = f"{settings.below} %" if settings.percent else f"{settings.below}"
    too_few = f"{preferred.has}, and failover_below is {threshold}"
    if preferred.stale and not preferred.doubt and not preferred.has_enough(settings):
        return f"when it last answered it had {too_few} ({preferred.stale})"
    if preferred.doubt or preferred.stale:
        return f"what it has is not known for certain ({preferred.doubt or preferred.stale})"
    if preferred.has_enough(settings):
        return "it has enough ready again"
    return f"it has {too_few}"


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
