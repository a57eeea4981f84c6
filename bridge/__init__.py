"""Keeps Kubernetes Endpoints equal to what Consul knows about services on VMs.

The way of one service through the house: `consul.catalog` sees a change and hands over a view; `engine.reconcile`
asks `core` what that means (`select`, `translate`, `plan`, `guard`) and has `kube` write the difference.
"""

__version__ = "0.1.0"
