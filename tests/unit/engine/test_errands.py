"""Why targets are to be worked on: what is kept, and until when."""

from __future__ import annotations

from bridge.core.model import Target
from bridge.engine.errands import Errand, Errands

WEB = Target("default", "web")


def test_the_first_of_several_changes_counts_and_who_takes_them_has_them_all() -> None:
    """The lag is that of the change which has waited longest."""
    errands = Errands()
    for at in (3.0, 1.0, 2.0):
        errands.seen(WEB, at)
    errands.touched(WEB)
    assert (errands.take(WEB), errands.take(WEB)) == (Errand(seen=1.0, touched=True), Errand())


def test_what_failed_is_owed_since_it_was_seen_and_joined_with_what_comes_meanwhile() -> None:
    """A retry is no repair, and its change is as old as it is."""
    errands = Errands()
    errands.seen(WEB, 1.0)
    taken = errands.take(WEB)
    errands.seen(WEB, 5.0)
    errands.keep(WEB, taken.failed(touched=False))
    found = errands.take(WEB)
    assert (found, found.since) == (Errand(seen=5.0, owed=1.0), 1.0)
    assert found.failed(touched=True) == Errand(owed=1.0, touched=True)


def test_nothing_is_kept_of_no_errand() -> None:
    """A resync has no reason of its own, and names that come and go must not pile up."""
    errands = Errands()
    errands.keep(WEB, Errand())
    assert (errands._errands, Errand().since) == ({}, None)
