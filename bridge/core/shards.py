"""Who writes what, when several replicas share the work: targets to shards, shards to replicas.

A target is hashed to its shard by rendezvous (highest random weight), so that with one shard more only the targets of
the new one move. It is the target that is hashed and not the Consul service: a Kubernetes Service that two Consul
services feed still has one writer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

from bridge.core.model import Target


def shard_of(target: Target, shards: int) -> int:
    """The shard of a target, 0 to `shards` - 1. The same in every process and every version."""
    if shards == 1:
        return 0
    key = f"{target.namespace}/{target.name}".encode()
    return max(range(shards), key=lambda shard: _weight(key, shard))


def _weight(key: bytes, shard: int) -> bytes:
    return blake2b(key, digest_size=8, salt=shard.to_bytes(4, "big")).digest()


def share(shards: int, members: Sequence[str], holders: Mapping[int, str]) -> dict[int, str]:
    """Which member is to have which shard: evenly, and as many as possible stay where they are.

    No two members differ by more than one shard. `members`: in the order in which they joined; the first
    one gets a free shard first. It has seen a dead holder's Lease for longest, so it may take it first: a
    leader that was killed and started again would have to watch its own old Lease from the start. `holders` says who
    has a shard now (absent: none). Every replica computes this by itself from the same Leases; where two see them
    differently for a moment the Lease decides.
    """
    if not members:
        return {}
    least, spare = divmod(shards, len(members))
    load = dict.fromkeys(members, 0)
    given: dict[int, str] = {}
    for shard in range(shards):
        holder = holders.get(shard, "")
        if holder in load and (load[holder] < least or (load[holder] == least and spare > 0)):
            spare -= load[holder] == least
            given[shard] = holder
            load[holder] += 1
    for shard in range(shards):
        if shard not in given:
            given[shard] = min(load, key=lambda member: load[member])  # of equals the first
            load[given[shard]] += 1
    return given
