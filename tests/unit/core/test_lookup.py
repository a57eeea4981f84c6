"""What a name means that a user types."""

from __future__ import annotations

import pytest

from bridge.core.lookup import Meant, meant
from bridge.core.model import Target

LISTED = ("RadosGW", "web", "web-admin", "postgres")
MIRRORED = {
    Target("storage", "radosgw"): ("RadosGW",),
    Target("db", "primary"): ("postgres",),
    Target("other", "primary"): ("mysql",),
    Target("db", "web"): ("postgres",),
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("web", Meant(("web",))),
        ("mysql", Meant(("mysql",))),
        ("storage/radosgw", Meant(("RadosGW",), ("storage/radosgw in Kubernetes comes from Consul's RadosGW",))),
        ("radosgw", Meant(("RadosGW",), ("storage/radosgw in Kubernetes comes from Consul's RadosGW",))),
        (
            "primary",
            Meant(
                ("mysql", "postgres"),
                (
                    "db/primary in Kubernetes comes from Consul's postgres",
                    "other/primary in Kubernetes comes from Consul's mysql",
                ),
            ),
        ),
        ("POSTGRES", Meant(("postgres",), ("Consul spells it postgres",))),
        ("postgers", Meant(near=("postgres",))),
        ("storage/radosgv", Meant(near=("storage/radosgw",))),
        ("xyz", Meant()),
    ],
)
def test_a_name_is_consuls_then_kubernetes_then_misspelt(given: str, expected: Meant) -> None:
    """Nothing is guessed: what is only near is suggested."""
    assert meant(given, LISTED, MIRRORED) == expected
