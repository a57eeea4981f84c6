"""Which ports endpoints have, what they are called, and which ports the Service in front of them shows.

A port's name joins a Service with its endpoints: kube-proxy takes the number from the endpoint, and a name that stands
on one side only is a port that refuses connections without a word. So names are made equal here, once, for all. What
is dropped or replaced thereby is said (`remarks`).

| instance | rule | its ports |
| --- | --- | --- |
| one port | - | that, without a name (or with the name of the Service's only port, which stays while it lives) |
| one port | `port_name` | that, under this name |
| no port | `port` | that |
| several named ports | - | all of them, under their own names (of two that become one name, the first) |
| several named ports | `port_name` | the one of this name, else the default one, under this name |
| several named ports | a tagged address with a port of its own | that port alone |
| any | a person's Service | as that Service's ports say: by name, else by order; a targetPort of its own wins |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from bridge.core.canonical import shorten
from bridge.core.model import CurrentService, Destination, Group, Instance, NamedPort, Port, Rule
from bridge.core.reasons import Code, Reason
from bridge.core.select import dns_label

PROTOCOLS = ("TCP", "UDP", "SCTP")
PROTOCOL_META = "protocol"
"""Service meta that names the protocol where the rule does not; what is no protocol of Kubernetes is ignored."""
EXTERNAL_NAME = "ExternalName"
CLUSTER_IP = "ClusterIP"
"""The type of a Service that nobody gave one."""


def legal(number: int) -> bool:
    """Whether it is a port that can be connected to."""
    return 0 < number < 65536


def of_instance(
    instance: Instance, rule: Rule, service: CurrentService | None, own_port: int
) -> tuple[Port, ...] | Reason:
    """The ports of an instance's endpoints, or the reason why it has none. `own_port` is the chosen address's."""
    if rule.to.annotated:
        return _by_service(instance, service, own_port)
    to = rule.to
    protocol = _protocol(instance, to)
    if instance.ports and not (to.port_name or own_port):
        return _all_named(instance.ports, protocol, to.app_protocol) or Reason(Code.PORTS_INVALID)
    number = own_port or _called(instance, to.port_name) or instance.port or to.port
    if not legal(number):
        return Reason(Code.PORT_INVALID, number=number) if number else Reason(Code.NO_PORT)
    return _one(to.port_name, number, protocol, to.app_protocol)


@lru_cache(maxsize=4096)
def _one(name: str, number: int, protocol: str, app_protocol: str) -> tuple[Port, ...]:
    return (Port(name, number, protocol, app_protocol),)


@lru_cache(maxsize=4096)
def _all_named(ports: tuple[NamedPort, ...], protocol: str, app_protocol: str) -> tuple[Port, ...]:
    """All of them; where two names become one in Kubernetes' form, the first in order has it."""
    found: dict[str, Port] = {}
    for port in in_order(ports):
        found.setdefault(port_name(port), Port(port_name(port), port.number, protocol, app_protocol))
    return tuple(sorted(found.values()))


@lru_cache(maxsize=4096)
def _remarks(ports: tuple[NamedPort, ...], wanted: str, own_port: int, address: str) -> tuple[Reason, ...]:
    found: list[Reason] = []
    usable = in_order(ports)
    if len(usable) < len(ports):
        odd = ", ".join(shorten(p.name) for p in ports if p not in usable)
        found.append(Reason(Code.PORTS_UNUSABLE, names=odd))
    if own_port:
        hidden = [p for p in usable if p.number != own_port]
        if hidden and not wanted:
            names = ", ".join(shorten(p.name) for p in hidden)
            found.append(Reason(Code.PORTS_BESIDE_ADDRESS, address=shorten(address), names=names))
        return tuple(found)
    if wanted and usable and all(port_name(p) != wanted for p in usable):
        names = ", ".join(port_name(p) for p in usable)
        found.append(Reason(Code.PORT_NAME_ABSENT, wanted=wanted, names=names))
    if not wanted:
        holders: dict[str, NamedPort] = {}
        for port in usable:
            holder = holders.setdefault(port_name(port), port)
            if holder is not port:
                clash = {"holder": shorten(holder.name), "other": shorten(port.name), "name": port_name(port)}
                found.append(Reason(Code.PORT_NAME_CLASH, **clash))
    return tuple(found)


def remarks(instance: Instance, rule: Rule, own_port: int) -> tuple[Reason, ...]:
    """What becomes of the named ports of an instance otherwise than one would think. `own_port` as above."""
    wanted = "" if rule.to.annotated else rule.to.port_name
    return _remarks(instance.ports, wanted, own_port, rule.instances.address)


def in_order(ports: Iterable[NamedPort]) -> list[NamedPort]:
    """The ports that can be used: the default one first, then by number."""
    return sorted((p for p in ports if legal(p.number)), key=lambda p: (not p.default, p.number, p.name))


@lru_cache(maxsize=4096)
def port_name(port: NamedPort) -> str:
    """A port's name in Kubernetes' form."""
    return dns_label(port.name) or f"port-{port.number}"


def _called(instance: Instance, name: str) -> int:
    if not name or not instance.ports:
        return 0
    return next((p.number for p in in_order(instance.ports) if port_name(p) == name), 0)


def _protocol(instance: Instance, to: Destination) -> str:
    if to.protocol == "TCP":
        for key, value in instance.meta:
            if key == PROTOCOL_META and value.upper() in PROTOCOLS:
                return value.upper()
    return to.protocol


def _by_service(instance: Instance, service: CurrentService | None, own_port: int) -> tuple[Port, ...] | Reason:
    if service is None or not service.ports:
        return Reason(Code.SERVICE_WITHOUT_PORTS)
    single = own_port or instance.port
    offered: dict[str, int] = {}
    for offer in () if own_port else in_order(instance.ports):
        offered.setdefault(port_name(offer), offer.number)
    if not offered and single:
        if not legal(single):
            return Reason(Code.PORT_INVALID, number=single)
        offered[""] = single
    targets = zip(service.ports, service.target_ports, strict=False)
    fixed = {port: target for port, target in targets if isinstance(target, int)}
    numbers: dict[Port, int] = {}
    for port in service.ports:
        if legal(fixed.get(port, 0)) and fixed[port] != port.number:
            numbers[port] = fixed[port]
        elif port.name in offered:
            numbers[port] = offered.pop(port.name)
    left = [p for p in service.ports if p not in numbers]
    numbers.update(zip(left, offered.values(), strict=False))
    if not numbers:
        numbers[service.ports[0]] = service.ports[0].number
    return tuple(sorted(Port(p.name, number, p.protocol, p.app_protocol) for p, number in numbers.items()))


# --------------------------------------------------------------------------- names that are made equal


def main_name(instances: Iterable[Instance], service: CurrentService | None, *, alone: bool) -> str:
    """The name for ports that have none: that of the instances' default ports, else of the Service's only port.

    Beside other ports (not `alone`) there must be one.
    """
    fallback = "" if alone else "default"
    votes = Counter(port_name(ports[0]) for i in instances if i.ports and (ports := in_order(i.ports)))
    if votes:
        return min(votes, key=lambda name: (-votes[name], name))
    if service is not None and lives(service) and len(service.ports) == 1:
        return service.ports[0].name or fallback
    return fallback


@lru_cache(maxsize=4096)
def renamed(ports: tuple[Port, ...], name: str) -> tuple[Port, ...]:
    """The same ports, the unnamed one under `name`."""
    return tuple(sorted(p if p.name else Port(name, p.number, p.protocol, p.app_protocol) for p in ports))


def lives(service: CurrentService) -> bool:
    """Whether a Service has ports that clients may know: one that is an alias for a DNS name has none."""
    return service.type != EXTERNAL_NAME and not service.has_selector


# --------------------------------------------------------------------------- the Service's ports


def of_service(
    rules: Sequence[Rule], main: str, groups: Sequence[Group], service: CurrentService | None
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
    warnings: tuple[Reason, ...] = ()
    seen: set[tuple[Port, ...]] = set()
    while ports not in seen:
        seen.add(ports)
        ports, warnings = _decide(rules, main, votes, {p.name: p for p in ports})
    return ports, warnings


def _decide(
    rules: Sequence[Rule], main: str, votes: Mapping[str, Counter[Port]], kept: dict[str, Port]
) -> tuple[tuple[Port, ...], tuple[Reason, ...]]:
    """The ports beside those that are there (`kept`)."""
    forced = {rule.to.port_name or main: rule.to.port for rule in reversed(rules) if rule.to.port}
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
        rule = next((r for r in rules if (r.to.port_name or main) == name), rules[0])
        number = forced.get(name) or (kept[name].number if name in kept else best.number if best is not None else 0)
        port = Port(
            name,
            number,
            best.protocol if best is not None else rule.to.protocol,
            best.app_protocol if voted and best is not None else rule.to.app_protocol,
        )
        weight = sum(voted.values()) if voted else 0
        ranked.append(((name not in forced, name not in kept, -weight, name), port))
    return _distinct([port for _, port in sorted(ranked)], votes)


def target_ports(
    ports: Sequence[Port], groups: Iterable[Group], service: CurrentService | None
) -> tuple[int | str, ...]:
    """The targetPort of each of the Service's ports: the number that most of its endpoints have.

    kube-proxy takes the number from the endpoint; people, `kubectl describe` and some other proxies read this one. Of
    equals the one that stands there stays, else it is the lowest; without endpoints nothing changes.
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


def _distinct(ports: Sequence[Port], votes: Mapping[str, Counter[Port]]) -> tuple[tuple[Port, ...], tuple[Reason, ...]]:
    """Kubernetes keys a Service's ports by (number, protocol): of two on one the first stays."""
    found: dict[tuple[int, str], Port] = {}
    warnings: list[Reason] = []
    for port in ports:
        holder = found.setdefault((port.number, port.protocol), port)
        if holder is not port:
            taken = {"name": port.name, "protocol": port.protocol, "number": port.number, "holder": holder.name}
            warnings.append(Reason(Code.PORT_UNREACHABLE, **taken))
        odd = sum(n for voted, n in votes.get(port.name, {}).items() if voted.protocol != port.protocol)
        if odd:
            warnings.append(Reason(Code.PROTOCOL_UNREACHABLE, count=odd, name=port.name, protocol=port.protocol))
    return tuple(sorted(found.values())), tuple(sorted(warnings))
