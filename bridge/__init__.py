"""Keeps Kubernetes EndpointSlices and Endpoints equal to what Consul knows about services on VMs.

A change of one service takes this way through the code:

1. `consul.datacenter` waits in blocking queries and passes each new view to its listener.
2. The listener, `controller.consul_side`, stores the view in `core.state` and puts the targets that depend on it (a
   target is a namespace and a name in Kubernetes) into `controller.workqueue`.
3. `controller.workers` takes a target, has `core.reconcile` make a plan (its docstring is the recipe), and lets
   `kube.writer` write the difference.

`controller.parts` connects these. `oneshot.inputs` reads both sides once: `bridge sync` (`oneshot.sync`) does the same
for all targets; `bridge status` and `bridge explain` (`oneshot.inspection`) and `bridge check` (`oneshot.check`) stop
before the writing. The tests' scenarios run the recipe on values.
`cli` has one module for each command. docs/architecture.md says more, and where to add an output, a setting or a
reason.
"""

__version__ = "0.1.0"
