"""Which ports endpoints have, what they are called, and which ports the Service in front of them shows.

A port's name joins a Service with its endpoints: kube-proxy takes the number from the endpoint, and a name that stands
on one side only is a port that silently refuses connections. So names are made equal here, once, for all. What
is dropped or replaced thereby is reported (`remarks`).

| instance | rule | its ports |
| --- | --- | --- |
| one port | - | that, without a name (or with the name of the Service's only port, which stays while it lives) |
| one port | `port_name` | that, under this name |
| no port | `port` | that |
| no port | `type: Headless` | none: its address is there for DNS alone |
| several named ports | - | all of them, under their own names (of two that become one name, the first) |
| several named ports | `port_name` | the one of this name, else the default one, under this name |
| several named ports | a tagged address with a port of its own | that port alone |
| any | `protocol_from` | the same, in each protocol that its tags and meta say |
| any | a user-managed Service | as that Service's ports say (`match`) |

Kubernetes wants each name once on a Service, whatever the protocol. So where instances have one name in several
protocols, one of them keeps the name and each further one adds its protocol: `dns` and `dns-udp`; without a name `tcp`
and `udp`.

Longer than other modules: the same names have to come out for instances, endpoints and the Service.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from bridge.core.model import CurrentService, Destination, Group, Instance, NamedPort, Port, Rule
from bridge.core.normalize import truncate
from bridge.core.reasons import Code, Reason
from bridge.core.select import LABEL_LIMIT, dns_label

PROTOCOLS = ("TCP", "UDP", "SCTP")
PROTOCOL_META = "protocol"
"""Service meta that names the protocol where the rule does not; what is no protocol of Kubernetes is ignored."""
EXTERNAL_NAME = "ExternalName"
CLUSTER_IP = "ClusterIP"
"""The type of a Service that was given none."""


def legal(number: int) -> bool:
    return 0 < number < 65536


def of_instance(
    instance: Instance, rule: Rule, service: CurrentService | None, own_port: int
) -> tuple[Port, ...] | Reason:
    """The ports of an instance's endpoints, or the reason why it has none. `own_port` is the chosen address's."""
    if rule.to.annotated:
        return _by_service(instance, service, own_port)
    to = rule.to
    protocols = _protocols(instance, to)
    if instance.ports and not (to.port_name or own_port):
        return _all_named(instance.ports, protocols, to.app_protocol) or Reason(Code.PORTS_INVALID)
    number = own_port or _called(instance, to.port_name) or instance.port
    number = number if legal(number) else to.port or number
    if not number and to.headless:
        return ()
    if not legal(number):
        return Reason(Code.PORT_INVALID, number=number) if number else Reason(Code.NO_PORT)
    return _one(to.port_name, number, protocols, to.app_protocol)


@lru_cache(maxsize=4096)
def _one(name: str, number: int, protocols: tuple[str, ...], app_protocol: str) -> tuple[Port, ...]:
    return tuple(Port(name, number, protocol, app_protocol) for protocol in protocols)


@lru_cache(maxsize=4096)
def _all_named(ports: tuple[NamedPort, ...], protocols: tuple[str, ...], app_protocol: str) -> tuple[Port, ...]:
    """All of them; where two names become one in Kubernetes' form, the first in order has it."""
    found: dict[str, int] = {}
    for port in in_order(ports):
        found.setdefault(port_name(port), port.number)
    return tuple(sorted(p for name, number in found.items() for p in _one(name, number, protocols, app_protocol)))


@lru_cache(maxsize=4096)
def _remarks(ports: tuple[NamedPort, ...], wanted: str, own_port: int, address: str) -> tuple[Reason, ...]:
    found: list[Reason] = []
    usable = in_order(ports)
    if len(usable) < len(ports):
        odd = ", ".join(truncate(p.name) for p in ports if p not in usable)
        found.append(Reason(Code.PORTS_UNUSABLE, names=odd))
    if own_port:
        hidden = [p for p in usable if p.number != own_port]
        if hidden and not wanted:
            names = ", ".join(truncate(p.name) for p in hidden)
            found.append(Reason(Code.PORTS_BESIDE_ADDRESS, address=truncate(address), names=names))
        return tuple(found)
    if wanted and usable and all(port_name(p) != wanted for p in usable):
        names = ", ".join(port_name(p) for p in usable)
        found.append(Reason(Code.PORT_NAME_ABSENT, wanted=wanted, names=names))
    if not wanted:
        holders: dict[str, NamedPort] = {}
        for port in usable:
            holder = holders.setdefault(port_name(port), port)
            if holder is not port:
                clash = {"holder": truncate(holder.name), "other": truncate(port.name), "name": port_name(port)}
                found.append(Reason(Code.PORT_NAME_CLASH, **clash))
    return tuple(found)


def remarks(instance: Instance, rule: Rule, own_port: int) -> tuple[Reason, ...]:
    """What happens to the named ports of an instance otherwise than one would think. `own_port` as above."""
    wanted = "" if rule.to.annotated else rule.to.port_name
    return _remarks(instance.ports, wanted, own_port, rule.instances.address)


def in_order(ports: Iterable[NamedPort]) -> list[NamedPort]:
    """The ports that can be used: the default one first, then by number."""
    return sorted((p for p in ports if legal(p.number)), key=lambda p: (not p.default, p.number, p.name))


@lru_cache(maxsize=4096)
def port_name(port: NamedPort) -> str:
    return dns_label(port.name) or f"port-{port.number}"


def _called(instance: Instance, name: str) -> int:
    if not name or not instance.ports:
        return 0
    return next((p.number for p in in_order(instance.ports) if port_name(p) == name), 0)


def _protocols(instance: Instance, to: Destination) -> tuple[str, ...]:
    """The protocols of an instance, sorted: by `protocol_from` of the rule, else its meta, else the rule's own."""
    if to.protocol_from:
        said = {protocol for source, protocol in to.protocol_from if _carries(instance, source)}
        if said:
            return tuple(sorted(said))
    if to.protocol == "TCP":
        for key, value in instance.meta:
            if key == PROTOCOL_META and value.upper() in PROTOCOLS:
                return (value.upper(),)
    return (to.protocol,)


def _carries(instance: Instance, source: str) -> bool:
    kind, _, wanted = source.partition(":")
    return wanted in instance.tags if kind == "tag" else tuple(wanted.split("=", 1)) in instance.meta


# --------------------------------------------------------------------------- a user-managed Service


@dataclass(frozen=True, slots=True)
class Match:
    """Which of an instance's ports each port of a Service is: (port, number) pairs, and what was guessed."""

    ports: tuple[tuple[Port, int], ...]
    guesses: tuple[Reason, ...] = ()


@lru_cache(maxsize=4096)
def match(
    ports: tuple[Port, ...], targets: tuple[int | str, ...], offered: tuple[tuple[str, int], ...], default: int
) -> Match:
    """Match a Service's ports with those that an instance offers, as (name, number); `default` is its default one.

    | the Service's port has | it is |
    | --- | --- |
    | a targetPort with a number that is not its own | that number |
    | a targetPort that is the name of a port of the instance | that port |
    | the name of a port of the instance | that port |
    | the number of a port of the instance | that port; several may be one, in several protocols |
    | none of these, and the instance has one port left | that port, if it is the first that is left |
    | none of these, it is the only one left, and the default port is left | the default port |
    | else | nothing: which one is meant cannot be determined |
    | ... and the instance has no port at all | its own number |
    """
    names = dict(offered)
    found: dict[Port, int] = {}
    for port, target in zip(ports, targets or [p.number for p in ports], strict=False):
        if isinstance(target, int) and legal(target) and target != port.number:
            found[port] = target
        elif isinstance(target, str) and target in names:
            found[port] = names[target]
        elif port.name in names:
            found[port] = names[port.name]
        elif not offered or port.number in names.values():
            found[port] = port.number
    rest = [number for _, number in offered if number not in found.values()]
    left = [p for p in ports if p not in found]
    guesses: list[Reason] = []
    if left and rest and (len(rest) == 1 or (default in rest and len({p.number for p in left}) == 1)):
        number = rest[0] if len(rest) == 1 else default
        taken = [p for p in left if p.number == left[0].number]
        found.update((p, number) for p in taken)
        if len(taken) < len(ports) or len(offered) > 1:
            guesses += [Reason(Code.PORT_GUESSED, port=_said(p), number=number) for p in taken]
    return Match(tuple(sorted(found.items())), tuple(guesses))


def _said(port: Port) -> str:
    return f"{port.name!r} ({port.number}/{port.protocol})" if port.name else f"{port.number}/{port.protocol}"


def _match(instance: Instance, service: CurrentService, own_port: int) -> Match:
    usable = () if own_port else in_order(instance.ports)
    offered: dict[str, int] = {}
    for offer in usable:
        offered.setdefault(port_name(offer), offer.number)
    if not offered and (own_port or instance.port):
        offered[""] = own_port or instance.port
    default = next((p.number for p in usable if p.default), 0)
    return match(service.ports, service.target_ports, tuple(offered.items()), default)


def _by_service(instance: Instance, service: CurrentService | None, own_port: int) -> tuple[Port, ...] | Reason:
    if service is None or not service.ports:
        return () if service is not None and service.headless else Reason(Code.SERVICE_WITHOUT_PORTS)
    single = own_port or instance.port
    if single and not legal(single) and (own_port or not in_order(instance.ports)):
        return Reason(Code.PORT_INVALID, number=single)
    found = _match(instance, service, own_port).ports
    if not found:
        several = ", ".join(f"{port_name(p)} {p.number}" for p in in_order(instance.ports))
        return Reason(Code.PORTS_AMBIGUOUS, ports=truncate(several))
    return tuple(sorted(Port(p.name, number, p.protocol, p.app_protocol) for p, number in found))


def guesses(instance: Instance, service: CurrentService | None, own_port: int) -> tuple[Reason, ...]:
    """What had to be guessed about the ports of an instance behind a user-managed Service."""
    return _match(instance, service, own_port).guesses if service is not None and service.ports else ()


def unserved(ports: Iterable[Port], groups: Iterable[Group]) -> Iterator[Reason]:
    """The warnings about ports of a Service that none of its endpoints has."""
    served = {p.name for g in groups for p in g.ports}
    for port in ports:
        if served and port.name not in served:
            yield Reason(Code.PORT_UNSERVED, port=_said(port))


# --------------------------------------------------------------------------- names that are made equal


def main_name(
    instances: Iterable[Instance], service: CurrentService | None, *, alone: bool, protocols: Collection[str] = ()
) -> str:
    """The name for ports that have none: that of the instances' default ports, else of the Service's only port.

    Beside other ports (not `alone`) there must be one. `protocols` are those of the unnamed ports: of a Service that
    had one port for each of several, the one that is left keeps its name, and so do all of them where they share one.
    """
    fallback = "" if alone else "default"
    votes = Counter(port_name(ports[0]) for i in instances if i.ports and (ports := in_order(i.ports)))
    if votes:
        return min(votes, key=lambda name: (-votes[name], name))
    if service is None or not lives(service):
        return fallback
    if len(service.ports) == 1:
        return service.ports[0].name or fallback
    shared = {p.name for p in service.ports if p.name and _is_shared(p, service.ports)}
    if alone and shared:
        return shared.pop()
    left = {p.name for p in service.ports if p.protocol in protocols and p.name == p.protocol.lower()}
    return left.pop() if alone and len(protocols) == 1 and left else fallback


def _is_shared(port: Port, ports: Iterable[Port]) -> bool:
    """Whether all other ports of a Service have a port's name with their protocol added (`names_by_protocol`)."""
    return all(p == port or p.name == f"{port.name[: LABEL_LIMIT - 5]}-{p.protocol.lower()}" for p in ports)


Names = Mapping[tuple[str, str], str]
"""What ports are called, by the name that they would have and their protocol, where it is another one."""


def names_by_protocol(port_sets: Iterable[tuple[Port, ...]], service: CurrentService | None, protocol: str) -> Names:
    """Names for ports that have one name in several protocols, so that each name is on the Service once.

    The name stays with the protocol that it has on the Service, else with the rule's own (`protocol`), else with the
    first.
    """
    protocols: dict[str, set[str]] = {}
    for ports in port_sets:
        for port in ports:
            protocols.setdefault(port.name, set()).add(port.protocol)
    standing = {p.name: p.protocol for p in service.ports} if service is not None and lives(service) else {}
    names: dict[tuple[str, str], str] = {}
    for name, found in protocols.items():
        if len(found) == 1:
            continue
        first = next(p for p in (standing.get(name), protocol, *sorted(found)) if p in found)
        plain = not name or name in {p.lower() for p in found}
        for other in found if not name else found - {first}:
            derived = other.lower() if plain else f"{name[: LABEL_LIMIT - 5]}-{other.lower()}"
            names[name, other] = (
                derived if derived not in protocols else f"{derived[: LABEL_LIMIT - 5]}-{other.lower()}"
            )
    return names


@lru_cache(maxsize=4096)
def new_names(old: Sequence[Port], wanted: Sequence[Port]) -> dict[str, str]:
    """New names for ports that a Service calls differently from now on."""
    if len(old) == len(wanted) == 1 and old[0].protocol == wanted[0].protocol:
        return {old[0].name: wanted[0].name}
    new = {(p.number, p.protocol): p.name for p in wanted}
    taken = {p.name for p in wanted}
    return {p.name: new[p.number, p.protocol] for p in old if p.name not in taken and (p.number, p.protocol) in new}


def renamed(ports: tuple[Port, ...], name: str) -> tuple[Port, ...]:
    """The same ports, the unnamed one under `name`."""
    return tuple(sorted(p if p.name else Port(name, p.number, p.protocol, p.app_protocol) for p in ports))


def apart(ports: tuple[Port, ...], names: Names) -> tuple[Port, ...]:
    """The same ports under the names that their protocols give them."""
    return tuple(sorted(replace(p, name=names.get((p.name, p.protocol), p.name)) for p in ports))


def lives(service: CurrentService) -> bool:
    """Whether a Service has ports that clients may know: one that is an alias for a DNS name has none."""
    return service.type != EXTERNAL_NAME and not service.has_selector


# --------------------------------------------------------------------------- the Service's ports


def of_service(
    rules: Sequence[Rule], main: str, groups: Sequence[Group], service: CurrentService | None, names: Names
) -> tuple[tuple[Port, ...], tuple[Reason, ...]]:
    """The ports of the Service, sorted, and warnings about those that cannot be had.

    A number comes from the rule, else it is the one that the Service has (clients have it in their settings), else the
    commonest of the instances, of equals the lowest. Two ports cannot share a number: what the rule says goes first,
    then what is there, then what most endpoints have.

    What is decided becomes what is there, which may decide otherwise (a number that was given to another port is free
    no more): that is followed to its end here, so that clients see one change and not one in every pass.
    """
    votes = _votes(groups)
    ports = service.ports if service is not None and lives(service) else ()
    if groups and not votes:
        ports = ()  # all of its endpoints are there for DNS alone: an existing port is unused
    warnings: tuple[Reason, ...] = ()
    seen: set[tuple[Port, ...]] = set()
    while ports not in seen:
        seen.add(ports)
        ports, warnings = _decide(rules, main, votes, {p.name: p for p in ports}, names)
    return ports, warnings


def _decide(
    rules: Sequence[Rule],
    main: str,
    votes: Mapping[str, Counter[Port]],
    kept: dict[str, Port],
    names_of: Names,
) -> tuple[tuple[Port, ...], tuple[Reason, ...]]:
    """The ports beside those that are there (`kept`)."""
    forced = {rule.to.port_name or main: rule.to.port for rule in reversed(rules) if rule.to.port}
    origin = {derived: name for (name, _), derived in names_of.items()}
    forced.update({derived: forced[name] for derived, name in origin.items() if name in forced})
    if "" in origin.values():
        forced.pop("", None)
    for (name, protocol), derived in names_of.items():
        if derived not in kept and name in kept and kept[name].protocol == protocol:
            kept[derived] = kept.pop(name)
    names = {*votes, *forced, *(rule.to.port_name for rule in rules if rule.to.port_name)}
    first = rules[0].to.port_name or main
    old = "" if "" in kept else min(kept, default="")
    if first not in kept and old not in names and (old == "" or len(kept) == 1) and old in kept:
        kept[first] = kept.pop(old)  # the Service's port gets another name, not another number
    if not votes:
        names.update(kept)
    if len(names) > 1:
        names.discard("")  # Kubernetes wants all of several ports named; no endpoint asks for this one (`main_name`)
    # a number that a rule now gives to another port is lost to its old one at once, not only in the next pass
    taken = {(number, _best(votes, n).protocol if n in votes else rules[0].to.protocol) for n, number in forced.items()}
    kept = {n: p for n, p in kept.items() if n in forced or n not in votes or (p.number, p.protocol) not in taken}
    ranked: list[tuple[tuple[bool, bool, int, str], Port]] = []
    for name in names:
        voted = votes.get(name)
        best = _best(votes, name) if voted else kept.get(name)
        if best is None and name not in forced:
            continue
        rule = next((r for r in rules if (r.to.port_name or main) == origin.get(name, name)), rules[0])
        number = forced.get(name) or (kept[name].number if name in kept else best.number if best is not None else 0)
        port = Port(
            name,
            number,
            best.protocol if best is not None else rule.to.protocol,
            best.app_protocol if voted and best is not None else rule.to.app_protocol,
        )
        weight = sum(voted.values()) if voted else 0
        ranked.append(((name not in forced, name not in kept, -weight, name), port))
    return _distinct([port for _, port in sorted(ranked)])


def target_ports(
    ports: Sequence[Port], groups: Iterable[Group], service: CurrentService | None
) -> tuple[int | str, ...]:
    """The targetPort of each of the Service's ports: the number that most of its endpoints have.

    kube-proxy takes the number from the endpoint; people, `kubectl describe` and some other proxies read this one. Of
    equals the existing one stays, else it is the lowest; without endpoints nothing changes.
    """
    votes = _votes(groups)
    standing: dict[tuple[int, str], int | str] = {}
    if service is not None and lives(service):
        pairs = zip(service.ports, service.target_ports, strict=False)
        standing = {(port.number, port.protocol): target for port, target in pairs}
    found: list[int | str] = []
    for port in ports:
        numbers: Counter[int] = Counter()
        for voted, count in votes.get(port.name, {}).items():
            numbers[voted.number] += count
        now = standing.get((port.number, port.protocol), port.number)
        if not numbers:
            found.append(now if isinstance(now, int) else port.number)
            continue
        most = max(numbers.values())
        commonest = [number for number, count in numbers.items() if count == most]
        found.append(now if now in commonest else min(commonest))
    return tuple(found)


def app_protocol_field(port: Port) -> str:
    """The name of a port's application protocol among `CurrentService.applied`."""
    return f"appProtocol {port.number}/{port.protocol}"


def _best(votes: Mapping[str, Counter[Port]], name: str) -> Port:
    """The commonest port of a name, of equals the lowest."""
    voted = votes[name]
    return min(voted, key=lambda port: (-voted[port], port))


def _votes(groups: Iterable[Group]) -> dict[str, Counter[Port]]:
    votes: dict[str, Counter[Port]] = {}
    for group in groups:
        for port in group.ports:
            votes.setdefault(port.name, Counter())[port] += len(group.endpoints)
    return votes


def _distinct(ports: Sequence[Port]) -> tuple[tuple[Port, ...], tuple[Reason, ...]]:
    """Kubernetes keys a Service's ports by (number, protocol): of two on one the first stays."""
    found: dict[tuple[int, str], Port] = {}
    warnings: list[Reason] = []
    for port in ports:
        holder = found.setdefault((port.number, port.protocol), port)
        if holder is not port:
            where = {"protocol": port.protocol, "number": port.number, "holder": holder.name}
            warnings.append(Reason(Code.PORT_UNREACHABLE, name=port.name, **where))
    return tuple(sorted(found.values())), tuple(sorted(warnings))
