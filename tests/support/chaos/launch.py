"""`bridge run` with something broken in it: `python -m tests.support.chaos.launch --resolver-delay 1 -- run …`.

For faults that no signal and no server can make, and for taking a protection away so that one sees what it was for.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import threading
import time
from typing import Any


def slow_resolver(seconds: float) -> None:
    """Every name (and address) takes so long to resolve."""
    real = socket.getaddrinfo

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments, **options)

    socket.getaddrinfo = slow


def jumping_clock(seconds: float) -> None:
    """The machine's clock jumps forward and back by so much, several times a second."""
    real = time.time
    began = time.monotonic()
    time.time = lambda: real() + (seconds if int((time.monotonic() - began) * 4) % 2 else -seconds)


def bug(after_seconds: float) -> None:
    """A thread that writes meets a bug some time after the start."""
    from bridge.pipeline.planner import Planner

    real = Planner.plan
    began = time.monotonic()

    def broken(self: Planner, *arguments: Any) -> Any:
        if (
            threading.current_thread().name.startswith(("writer-", "consul-direct-"))
            and time.monotonic() - began > after_seconds
        ):
            raise ZeroDivisionError("injected")
        return real(self, *arguments)

    setattr(Planner, "plan", broken)  # noqa: B010 - mypy knows that this must not be done


def treat_errors_as_empty() -> None:
    """Unknown is empty: what a failed or filtered read leaves is taken for no instances."""
    from bridge.core.model import Known, Unknown
    from bridge.core.state import ConsulState

    real = ConsulState.on_view

    def gullible(self: ConsulState, query: Any, state: Any, *now: float) -> Any:
        return real(self, query, Known(()) if isinstance(state, Unknown) else state, *now)

    setattr(ConsulState, "on_view", gullible)  # noqa: B010 - as above


def always_write() -> None:
    """Writes again and again what is right already."""
    from dataclasses import replace

    from bridge.controller.supervisor import Supervisor
    from bridge.controller.workers import ChangeWriter
    from bridge.core.model import Action
    from bridge.errors import BridgeError

    real_init, real_turn = ChangeWriter.__init__, Supervisor._turn
    made: list[ChangeWriter] = []

    def init(self: ChangeWriter, **parts: Any) -> None:
        real_init(self, **parts)
        made.append(self)

    def turn(self: Supervisor) -> None:
        real_turn(self)
        for target in sorted(self.planner.consul_state.targets())[:2]:
            plan = self.planner.plan(target)
            for change in plan.changes if plan is not None else ():
                if change.action is Action.UNCHANGED and change.kind.value == "Endpoints":
                    with contextlib.suppress(BridgeError):  # a worker, or another writer, was there in between
                        meta = made[-1].writer.apply(replace(change, action=Action.UPDATE))
                        made[-1].informer.confirm(change, meta)

    setattr(ChangeWriter, "__init__", init)  # noqa: B010 - as above
    setattr(Supervisor, "_turn", turn)  # noqa: B010 - as above


def leak_resources() -> None:
    """Every plan leaves a thread and a socket behind."""
    from bridge.pipeline.planner import Planner

    real = Planner.plan
    kept: list[object] = []

    def leaky(self: Planner, *arguments: Any) -> Any:
        kept.append(socket.socket())
        kept.append(bytearray(1 << 18))
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return real(self, *arguments)

    setattr(Planner, "plan", leaky)  # noqa: B010 - as above


def drop_events() -> None:
    """What Consul says after the first pass is ignored."""
    from bridge.controller.consul_side import ConsulSide

    real = ConsulSide.on_view

    def on_view(self: ConsulSide, *arguments: Any) -> None:
        if not self.scheduler.first_pass_done:
            real(self, *arguments)

    setattr(ConsulSide, "on_view", on_view)  # noqa: B010 - as above


def always_ready() -> None:
    """Readiness always says yes, and troubles are not told."""
    from bridge.controller.consul_side import ConsulSide
    from bridge.controller.controller import Controller

    setattr(Controller, "ready", lambda _self: (True, {}))  # noqa: B010 - as above
    setattr(ConsulSide, "on_trouble", lambda *_arguments: None)  # noqa: B010 - as above


def ignore_ownership() -> None:
    """Every object is taken for ours."""
    from bridge.core.plan import _PlanBuilder

    setattr(_PlanBuilder, "may_write", lambda *_arguments: True)  # noqa: B010 - as above


def sharing() -> None:
    """The guard adds up what goes over all tenants, and charges to Consul what users change."""
    from bridge.core import plan, reconcile
    from bridge.core.annotated import Changed
    from bridge.core.model import Scope
    from bridge.kube import store

    for module in (plan, store):
        setattr(module, "scope_of", lambda *_arguments: Scope())  # noqa: B010 - as above
    setattr(reconcile, "changed", lambda *_arguments: Changed.NOTHING)  # noqa: B010 - as above


def pairing() -> None:
    """A VM has one instance of a service: a second one at the same address is not seen."""
    from dataclasses import replace

    from bridge.core.model import Known
    from bridge.core.state import ConsulState

    real = ConsulState.on_view

    def on_view(self: ConsulState, query: Any, state: Any, *now: float) -> Any:
        if isinstance(state, Known):
            first = {instance.address: instance for instance in reversed(state.instances)}
            state = replace(state, instances=tuple(i for i in state.instances if first[i.address] is i))
        return real(self, query, state, *now)

    setattr(ConsulState, "on_view", on_view)  # noqa: B010 - as above


def comparing() -> None:
    """What Consul's streaming backend shows is believed, and never compared with its catalog."""
    from bridge.consul import streamed
    from bridge.consul.comparison import StreamComparison

    setattr(streamed, "doubt", lambda *_arguments, **_options: None)  # noqa: B010 - as above
    for name in ("_compare_soon", "_check_indexes"):
        assert hasattr(StreamComparison, name)
        setattr(StreamComparison, name, lambda *_arguments: None)


SWITCHES = {
    f.__name__: f
    for f in (
        treat_errors_as_empty,
        always_write,
        leak_resources,
        drop_events,
        always_ready,
        ignore_ownership,
        sharing,
        pairing,
        comparing,
    )
}


def main() -> None:
    """Break it, then run it."""
    mine, theirs = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolver-delay", type=float, default=0.0)
    parser.add_argument("--clock-jump", type=float, default=0.0)
    parser.add_argument("--bug-after", type=float, default=0.0)
    parser.add_argument("--without", choices=sorted(SWITCHES), default=None)
    asked = parser.parse_args(mine)
    if asked.resolver_delay:
        slow_resolver(asked.resolver_delay)
    if asked.clock_jump:
        jumping_clock(asked.clock_jump)
    if asked.bug_after:
        bug(asked.bug_after)
    if asked.without:
        SWITCHES[asked.without]()
    from bridge.cli import main as bridge

    sys.argv = ["bridge", *theirs]
    bridge()


if __name__ == "__main__":
    main()
