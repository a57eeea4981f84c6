"""Which proxy a request goes through: Go's rules, since kubectl beside us follows them."""

from __future__ import annotations

import pytest

from bridge.errors import ConfigurationError
from bridge.proxies import checked, proxy_for

HTTPS = {"HTTPS_PROXY": "http://proxy:3128"}


@pytest.mark.parametrize(
    ("address", "environment", "name"),
    [
        ("https://kube:6443", HTTPS, "HTTPS_PROXY"),
        ("https://kube:6443", {"https_proxy": "proxy:3128"}, "https_proxy"),
        ("http://kube:8080", {"HTTP_PROXY": "http://proxy:3128", **HTTPS}, "HTTP_PROXY"),
        ("http://kube:8080", HTTPS, ""),
        ("https://kube:6443", {"ALL_PROXY": "http://proxy:3128"}, ""),
        ("https://kube:6443", {}, ""),
        ("https://kube:6443", {"HTTPS_PROXY": ""}, ""),
        ("https://localhost:6443", HTTPS, ""),
        ("https://127.0.0.2:6443", HTTPS, ""),
        ("https://[::1]:6443", HTTPS, ""),
    ],
)
def test_the_scheme_chooses_the_variable_and_loopback_none(
    address: str, environment: dict[str, str], name: str
) -> None:
    """Upper case goes first; ALL_PROXY is nothing to Go; loopback is never proxied."""
    found = proxy_for(address, environment)
    assert (found.source if found is not None else "") == name


@pytest.mark.parametrize(
    ("exceptions", "address", "direct"),
    [
        ("*", "https://kube:6443", True),
        ("kube", "https://kube:6443", True),
        ("example.org", "https://kube.example.org", True),
        (".example.org", "https://kube.example.org", True),
        (".example.org", "https://example.org", False),
        ("*.example.org", "https://kube.example.org", True),
        ("example.org", "https://notexample.org", False),
        ("other, KUBE ", "https://kube", True),
        ("kube:6443", "https://kube:6443", True),
        ("kube:6443", "https://kube", False),
        ("kube:443", "https://kube", True),
        ("10.0.0.0/8", "https://10.1.2.3:6443", True),
        ("10.0.0.0/8", "https://11.1.2.3:6443", False),
        ("10.0.0.0/8", "https://kube", False),
        ("10.1.2.3", "https://10.1.2.3:6443", True),
        ("10.1.2.3:443", "https://10.1.2.3:6443", False),
        ("2.3", "https://10.1.2.3", False),
        ("[fd00::1]:6443", "https://[fd00::1]:6443", True),
        ("fd00::1", "https://[fd00::1]:6443", True),
        ("fd00::/16/9,", "https://kube", False),
    ],
)
def test_no_proxy_names_hosts_domains_and_networks(exceptions: str, address: str, direct: bool) -> None:
    """Each entry may have a port; a leading dot leaves the domain itself out."""
    assert (proxy_for(address, {**HTTPS, "NO_PROXY": exceptions}) is None) is direct


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("socks5://proxy:1080", "socks5:// proxies are not supported"),
        ("http://", "no address of a proxy"),
        ("http://[::1", "no address of a proxy"),
        ("http://proxy:port", "no address of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_by_its_variable(url: str, words: str) -> None:
    """And what it was is not printed: it may hold a password."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        proxy_for("https://kube", {"HTTPS_PROXY": url})
    assert str(caught.value).startswith("HTTPS_PROXY: ")


def test_user_and_password_of_a_proxy_are_sent_and_never_shown() -> None:
    """Percent-encoded in the URL, Basic in the header."""
    proxy = checked("http://us%20er:p%40ss@proxy:3128", "HTTPS_PROXY")
    assert proxy.authorization == "Basic dXMgZXI6cEBzcw=="
    assert str(proxy) == "the proxy http://proxy:3128 (HTTPS_PROXY)"
    assert "p%40ss" not in repr(proxy)
    assert checked("proxy:3128", "x").authorization == ""
