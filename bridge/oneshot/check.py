"""`bridge check`: can the bridge do its work? One probe after the other, each with how to fix what it found.

A probe that fails does not stop later ones, unless they need what it could not reach. Nothing is written, not even
for a moment: existing Endpoints show whether the control plane mirrors them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain

from bridge.consul.client import ConsulConfig
from bridge.consul.faults import TOKENS
from bridge.core.model import Kind, Rule
from bridge.core.ownership import MANAGED_BY, MANAGER, OWNER
from bridge.errors import BridgeError, CancelledError
from bridge.kube.client import KubeConfig
from bridge.oneshot.check_consul import ConsulProbes
from bridge.oneshot.check_kubernetes import KubernetesProbes
from bridge.oneshot.connections import connections
from bridge.oneshot.inputs import Loaded, SyncOptions
from bridge.oneshot.probe import OK, WARNING, Probe, some
from bridge.pipeline.scope import never_used
from bridge.retry import RetryPolicy


def check(
    consul: ConsulConfig,
    kube: KubeConfig,
    rules: Callable[[], Sequence[Rule]],
    fallback: Sequence[Rule] = (),
    done: Callable[[Probe], None] | None = None,
    *,
    options: SyncOptions,
    stop: threading.Event | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Probe]:
    """Run every probe, in order; `done` gets each as it comes. Never raises a BridgeError but CancelledError.

    `rules` may fail, because the target namespace may be the kubeconfig context's; then the `fallback` rules are
    checked against Consul, and the failure is one of the probes.
    """
    with closing(Loaded(consul, kube, (), options, stop or threading.Event(), progress)) as loaded:
        return _collect(_all(loaded, rules, fallback), done)


def check_rules(
    rules: Sequence[Rule],
    done: Callable[[Probe], None] | None = None,
    *,
    selects: bool = True,
    files: Mapping[str, str] | None = None,
) -> list[Probe]:
    """The probes that need no server; that the settings are valid is known already.

    `selects`: the settings say which services are meant (`SyncOptions`). `files`: the paths that settings name.
    """
    return _collect(chain(_rules(rules, selects), _files(files or {})), done)


def _files(files: Mapping[str, str]) -> Iterator[Probe]:
    """What settings name and cannot be read here: it may be there where the bridge runs."""
    for setting, path in files.items():
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            detail = f"{path} cannot be read here: {error.strerror}"
            others = f" ({TOKENS})" if setting == "consul.token_file" else ""
            remedy = f"make it, or name another{others}; ignore this if the bridge runs elsewhere"
            yield Probe(setting, WARNING, detail, remedy)


def _collect(found: Iterator[Probe], done: Callable[[Probe], None] | None) -> list[Probe]:
    probes: list[Probe] = []
    for probe in found:
        probes.append(probe)
        if done is not None:
            done(probe)
    return probes


def _rules(rules: Sequence[Rule], selects: bool) -> Iterator[Probe]:
    if not selects:
        detail = "none are given; bridge run refuses to start, and bridge sync asks on a terminal and refuses elsewhere"
        yield Probe(
            "rules", WARNING, detail, "--service 'GLOB', if every service is meant --service '*', or rules in --config"
        )
    else:
        yield Probe("settings", OK, f"{len(rules)} rule{'s' if len(rules) != 1 else ''}")
    for later, earlier in never_used(rules):
        detail = f"never used: {earlier} comes first and matches every name that it matches"
        yield Probe(later, WARNING, detail, "put the narrower rule first, or join the two")


# --------------------------------------------------------------------------- both sides


def _all(loaded: Loaded, make_rules: Callable[[], Sequence[Rule]], fallback: Sequence[Rule]) -> Iterator[Probe]:
    try:
        rules = make_rules()
        yield from _rules(rules, loaded.options.selects)
    except BridgeError:  # told by the Kubernetes probes
        rules = fallback
    yield from connections(loaded.consul, loaded.kube)
    _read_services(loaded, rules)
    yield from _tenancy(loaded)
    yield from _unlabelled(loaded)
    consul = ConsulProbes(loaded)
    yield from consul.all(rules)
    yield from KubernetesProbes(loaded, consul).all(rules)


def _read_services(loaded: Loaded, rules: Sequence[Rule]) -> None:
    """All Services that can be read: some ask to be filled. What cannot be, the Kubernetes probes tell."""
    loaded.rules = tuple(rules)
    try:
        loaded.read_kubernetes(kinds=(Kind.SERVICE,), retry=RetryPolicy(attempts=1))
    except CancelledError:
        raise
    except BridgeError:
        return


def _tenancy(loaded: Loaded) -> Iterator[Probe]:
    """What should be bounded where more than one namespace is served, and is not."""
    if not loaded.serves_several:
        return
    if not loaded.annotated.bounds.allow_cidrs:
        yield Probe(
            "networks",
            WARNING,
            "several namespaces are served, and an instance may have any address that is not denied",
            "guard.allow_cidrs: the networks that your VMs are in",
        )
    if loaded.options.annotated.grants is None:
        yield Probe(
            "grants",
            OK,
            "several namespaces are watched and `annotated` grants nothing: no further Service is filled",
        )


def _unlabelled(loaded: Loaded) -> Iterator[Probe]:
    """Objects that lost our labels: no bridge updates them, because they look like another client's."""
    lost = [f"{meta.namespace}/{meta.name}" for meta in loaded.store.unlabelled_services()]
    if lost:
        detail = f"written by a bridge, as the field manager shows, but without its labels: {some(lost)}"
        mend = f"kubectl label service NAME {MANAGED_BY}={MANAGER} {OWNER}={loaded.options.owner}, or delete them"
        yield Probe("labels of ownership", WARNING, detail, mend)
