"""Why targets are to be worked on: what is kept, and until when."""

from __future__ import annotations

from bridge.controller.pending_changes import PendingChange, PendingChanges
from bridge.core.model import Target

WEB = Target("default", "web")


def test_the_first_of_several_changes_counts_and_a_worker_takes_all_of_them() -> None:
    """The lag is that of the change which has waited longest."""
    pending = PendingChanges()
    for at in (3.0, 1.0, 2.0):
        pending.seen(WEB, at)
    pending.touched(WEB)
    assert (pending.take(WEB), pending.take(WEB)) == (
        PendingChange(first_seen_at=1.0, externally_modified=True),
        PendingChange(),
    )


def test_what_failed_is_owed_since_it_was_seen_and_joined_with_what_comes_meanwhile() -> None:
    """A retry is no repair, and its change is as old as it is."""
    pending = PendingChanges()
    pending.seen(WEB, 1.0)
    taken = pending.take(WEB)
    pending.seen(WEB, 5.0)
    pending.keep(WEB, taken.failed(touched=False))
    found = pending.take(WEB)
    assert (found, found.since) == (PendingChange(first_seen_at=5.0, first_failed_at=1.0), 1.0)
    assert found.failed(touched=True) == PendingChange(first_failed_at=1.0, externally_modified=True)


def test_nothing_is_kept_where_nothing_is_pending() -> None:
    """A resync has no reason of its own, and names that come and go must not pile up."""
    pending = PendingChanges()
    pending.keep(WEB, PendingChange())
    assert (pending._changes, PendingChange().since) == ({}, None)
