"""A cluster with pods on this machine: nodes with containerd, kubelet and kube-proxy beside VMs and their Consul.

    with Cluster(nodes=2, vms=12) as cluster:
        cluster.deploy("manifests/overlays/mine")
        cluster.kubectl("get", "pods", "--all-namespaces")

See README.md of the lab.
"""

from tests.support.lab.pods.cluster import Cluster, prepare, trouble

__all__ = ["Cluster", "prepare", "trouble"]
