"""What goes wrong with Consul and on the way to it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from tests.chaos.faults import CONSUL_DOWN, CONSUL_UP_0, NOT_READY, READY, Fault, Log, Metric, Reason, Sign, log
from tests.chaos.stage import Stage


class ConsulKill(Fault):
    """A crash."""

    name = "consul-kill"
    what = "kill -9 of Consul, then a restart with its data"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("broke"))
    readiness = NOT_READY

    def inject(self, stage: Stage, rng: random.Random) -> None:
        stage.consul.kill()

    def heal(self, stage: Stage) -> None:
        stage.consul.start()


class ConsulEmpty(Fault):
    """A server that was set up anew."""

    name = "consul-empty"
    what = "kill -9 of Consul, then a restart with an empty data directory; the agents register again"
    shows = (log("removal held", "was rebuilt or restored"), Metric('consul_bridge_holds{cause="rebuilt"', ">0"))
    readiness = READY
    settle_seconds = 18.0
    why_slow = "`guard.rebuild_grace`, here 6 s, is over first"

    def inject(self, stage: Stage, rng: random.Random) -> None:
        stage.consul.restart(empty=True)
        stage.give_consul_token(stage.token_file.read_text())

    def heal(self, stage: Stage) -> None:
        stage.fleet.register_again()


class ConsulPause(Fault):
    """A stalled disk, a frozen VM."""

    name = "consul-pause"
    what = "SIGSTOP of Consul for a while: connections are accepted, nothing is answered"
    shows = (CONSUL_DOWN, CONSUL_UP_0, Reason("in time"))
    readiness = NOT_READY

    def inject(self, stage: Stage, rng: random.Random) -> None:
        stage.consul.pause()

    def heal(self, stage: Stage) -> None:
        stage.consul.resume()


FAULTS: Sequence[type[Fault]] = (ConsulKill, ConsulEmpty, ConsulPause)
