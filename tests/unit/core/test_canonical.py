"""Addresses and endpoints in the one form in which they are compared."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core import normalize
from bridge.core.model import Endpoint, Family
from tests.unit.core.builders import down, group, ready


@pytest.mark.parametrize(
    ("text", "canonical_text", "family"),
    [
        ("10.0.0.1", "10.0.0.1", Family.IPV4),
        ("FD00:0::1", "fd00::1", Family.IPV6),
        ("2001:db8::10.0.0.1", "2001:db8::a00:1", Family.IPV6),
        ("8.8.8.8", "8.8.8.8", Family.IPV4),
    ],
)
def test_addresses_are_spelled_as_kubernetes_wants_them(text: str, canonical_text: str, family: Family) -> None:
    """EndpointSlices refuse any other spelling."""
    assert normalize.parse(text) == normalize.Address(canonical_text, family)


@settings(max_examples=500)
@given(ip=st.ip_addresses(v=4))
def test_the_short_way_takes_just_the_addresses_of_hosts(ip: ipaddress.IPv4Address) -> None:
    """Nearly all addresses are usual; whatever the expression lets through, the networks must let through, too."""
    found = normalize.parse(str(ip))
    assert isinstance(found, normalize.Address) == (normalize._no_host(ip) is None)
    assert normalize._order(str(ip)) == (4, int(ip))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("224.0.0.5", "multicast"),
        ("239.1.1.1", "multicast"),
        ("ff02::1", "multicast"),
        ("ff0e::1", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::ffff:10.0.0.1", "IPv4-mapped"),
        ("fe80::1%eth0", "zone"),
        ("0.1.2.3", "this network"),
        ("fec0::1", "site-local"),
        ("::7f00:1", "::7f00:1 leads to an IPv4 address: 127.0.0.1 is a loopback address"),
        ("::5", "this network"),
        ("2002:7f00:1::", "127.0.0.1 is a loopback address"),
        ("64:ff9b::a9fe:a9fe", "169.254.169.254 is a link-local address"),
        ("64:ff9b:1::e000:1", "224.0.0.1 is a multicast address"),
        ("2001:0:1:2:3:4:80ff:fffe", "127.0.0.1 is a loopback address"),
        ("2001:db8::5efe:7f00:1", "127.0.0.1 is a loopback address"),
        ("2001:db8::200:5efe:7f00:1", "127.0.0.1 is a loopback address"),
        ("010.0.0.1", "neither an IP address nor a host name"),
        ("10.0.0.999", "neither"),
        ("10.0.0.1/24", "neither"),
        (" 10.0.0.1", "neither"),
        ("", "neither"),
        ("a" * 300, "neither"),
        ("bad\x00name", "neither"),
    ],
)
def test_what_is_no_hosts_address_is_refused_with_the_reason(text: str, reason: str) -> None:
    """Also what Kubernetes would take: broadcast, 240.0.0.0/4 and all of multicast. Nor is it ever resolved."""
    found = normalize.parse(text)
    assert isinstance(found, normalize.Refused)
    assert reason in found.reason
    assert not found.is_name


def test_a_host_with_more_around_it_is_refused_with_what_was_meant() -> None:
    """Programs register the brackets of an IPv6 address, a URL, or the port once more; none of it is guessed at."""
    texts = ("[2001:db8::1]", "http://db.internal:8080/", " 10.0.0.1:80 ", "[::]:58307", "010.0.0.1:80", "10.0.0.1/24")
    said = [found.reason for text in texts if isinstance(found := normalize.parse(text), normalize.Refused)]
    assert [str(reason).partition("nor a host name")[2] for reason in said] == [
        "; register 2001:db8::1 alone", "; register db.internal alone", "; register 10.0.0.1 alone", "", "", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["db", "db.example.com", "db.example.com.", "vm-1", "1and1.example", "a" * 63 + ".b" * 60]
)
def test_host_names_are_distinguished(text: str) -> None:
    """They may be resolved."""
    found = normalize.parse(text)
    assert isinstance(found, normalize.Refused)
    assert found.is_name
    assert "host name" in found.reason


@pytest.mark.parametrize(
    ("allow", "deny", "reason"),
    [
        ((), (), None),
        (("10.0.0.0/8",), (), None),
        (("10.1.0.0/16", "fd00::/8"), (), "10.0.0.1 is not in allow_cidrs"),
        ((), ("10.0.0.0/24",), "10.0.0.1 is in deny_cidrs (10.0.0.0/24)"),
        (("10.0.0.0/8",), ("10.0.0.1/32",), "10.0.0.1 is in deny_cidrs (10.0.0.1/32)"),
        ((), ("fd00::/8",), None),
    ],
)
def test_cidrs_keep_addresses_out(allow: tuple[str, ...], deny: tuple[str, ...], reason: str | None) -> None:
    """Deny wins over allow; an address of the other family is in neither."""
    assert normalize.excluded("10.0.0.1", allow, deny) == reason
    where = reason and reason.replace("deny_", "guard.deny_").replace("allow_", "guard.allow_")
    assert normalize.excluded("10.0.0.1", allow, deny, "guard.") == where


def test_endpoints_are_sorted_as_numbers() -> None:
    """Not as texts: 10.0.0.9 before 10.0.0.10, IPv4 before IPv6."""
    mixed = ready("fd00::a", "10.0.0.10", "fd00::9", "10.0.0.9")
    assert [e.address for e in normalize.sort_endpoints(mixed)] == ["10.0.0.9", "10.0.0.10", "fd00::9", "fd00::a"]


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (Endpoint("10.0.0.1", True), Endpoint("10.0.0.1", False, False), Endpoint("10.0.0.1", True)),
        (
            Endpoint("10.0.0.1", False, True, True),
            Endpoint("10.0.0.1", False, False),
            Endpoint("10.0.0.1", False, True, True),
        ),
        (
            Endpoint("10.0.0.1", True, zone="b"),
            Endpoint("10.0.0.1", True, zone="a", node_name="n", hostname="h"),
            Endpoint("10.0.0.1", True, zone="a", node_name="n", hostname="h"),
        ),
    ],
)
def test_two_registrations_of_one_address_are_one_endpoint(one: Endpoint, other: Endpoint, together: Endpoint) -> None:
    """Ready if either is, in either order."""
    assert normalize.merge(one, other) == together
    assert normalize.merge(other, one) == together


def test_endpoints_objects_hold_readiness_and_nothing_more() -> None:
    """Zones and draining exist in slices only; what needs no change stays the same object."""
    drained = Endpoint("10.0.0.2", False, True, True, zone="a")
    simple = group(*ready("10.0.0.1"), *down("10.0.0.2"))
    assert normalize.without_conditions([group(*ready("10.0.0.1"), drained)]) == (simple,)
    assert normalize.without_conditions([simple])[0] is simple
    assert normalize.without_conditions([group(Endpoint("10.0.0.1", True, zone="a"), *down("10.0.0.2"))]) == (simple,)
    named = group(Endpoint("10.0.0.1", True, hostname="vm1"))
    assert normalize.without_conditions([group(Endpoint("10.0.0.1", True, zone="a", hostname="vm1"))]) == (named,)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain", "plain"), ("a\nb\x1b[0m", "a�b�[0m"), ("x" * 81, "x" * 79 + "…"), ("\ud800\u202e", "��")],
)
def test_texts_from_outside_are_one_printable_line(text: str, shown: str) -> None:
    """Whatever a user registers, a message stays one line of bounded length."""
    assert normalize.truncate(text) == shown


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("64:ff9b::a00:1", "10.0.0.1"),
        ("64:ff9b:1:2::a00:1", "10.0.0.1"),
        ("2002:a00:1::5", "10.0.0.1"),
        ("2001:db8::5efe:a00:1", "10.0.0.1"),
    ],
)
def test_an_embedded_address_is_denied_like_one_by_itself(text: str, inner: str) -> None:
    """A translator or tunnel on the way would deliver it there."""
    assert isinstance(normalize.parse(text), normalize.Address)
    assert normalize.excluded(text, (), ("10.0.0.0/8",), "guard.") == (
        f"{text} leads to {inner}, which is in guard.deny_cidrs (10.0.0.0/8)"
    )
    assert normalize.excluded(text, ("10.0.0.0/8",), ()) == f"{text} is not in allow_cidrs"
    assert normalize.excluded(text, (), ("10.1.0.0/16",)) is None


def test_most_addresses_embed_nothing() -> None:
    """IPv4 does not, nor does an ordinary IPv6 address."""
    for text in ("10.0.0.1", "2001:db8::a00:1", "fd00::5ef:a00:1"):
        assert normalize.embedded(ipaddress.ip_address(text)) is None
