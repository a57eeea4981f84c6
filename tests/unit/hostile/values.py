"""What a user may put where something else was meant: values for hypothesis, nasty ones often."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

HUGE = "x" * 100_000
"""Longer than anything that is meant."""

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from([
        "", " ", "consul", HUGE, "\x00", "\x1b[31mred\x1b[0m", "a\nb\r\n\tc", "<script>alert(1)</script>", "\ud800",
        "\u202eevil", "サービス", "é" * 300, "../../kube-system", "a/b?c#d", "%2e%2e", "{service}{0}", "${jndi:x}",
        "'; drop", "*", "[", "-", "--force", "consul-bridge/owner", "app.kubernetes.io/managed-by", "kubernetes",
    ]),
)  # fmt: skip
"""Names, tags, keys and values of meta."""

ADDRESSES = st.one_of(
    TEXTS,
    st.sampled_from([
        "10.0.0.1", "010.0.0.1", "10.1", "0x0a000001", "127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1",
        "255.255.255.255", "::", "::1", "::ffff:10.0.0.1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "10.0.0.1/8",
        "10.0.0.1:80", "[::1]", "db.example", "a" * 64 + ".example", "\uff11\uff10.0.0.1", "10.0.0.1\n", " 10.0.0.1",
    ]),
    st.ip_addresses().map(str),
)  # fmt: skip
"""Addresses, those that look like one, and anything else."""

NUMBERS = st.one_of(
    st.sampled_from([-1, 0, 1, 80, 65535, 65536, 2**31, 2**63, 10**40, "80", "-1", 80.0, 1e400, float("nan"), True]),
    st.integers(),
)
"""Ports and indexes."""

JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
"""Anything that JSON can say."""


def mostly(meant: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is meant, now and then anything else."""
    return st.one_of(meant, meant, meant, JUNK)


def one_of_each(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A JSON object with some of the fields, now and then something that is none."""
    return mostly(st.fixed_dictionaries({}, optional={name: mostly(value) for name, value in fields.items()}))
