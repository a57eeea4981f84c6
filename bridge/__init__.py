"""Keeps Kubernetes EndpointSlices and Endpoints equal to what Consul knows about services on VMs.

The way of one service through the code: `consul.datacenter` sees a change and hands over a view;
`controller.consul_side` puts it into `core.state`, what is known of Consul, and its target into the queue;
`controller.workers` takes it out, has `core.reconcile` make a plan of what is known of both sides (its docstring is the
recipe), and `kube.writer` write the difference. `controller.parts` puts these together. `bridge sync` (`oneshot.sync`)
is the same for everything at once, `bridge status` and `bridge explain` (`oneshot.inspection`) stop before the writing,
and the scenarios of the tests run it on values. `cli` builds it all.
"""

__version__ = "0.1.0"
