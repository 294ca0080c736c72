"""Nodes: kubelet, device plugin and GPU feature labels for every EC2 instance of the cluster.

Runs against any API server; knows the other parts of the sandbox through the Kubernetes and the EC2 API only.
"""

from __future__ import annotations

from sandbox.aws.client import Aws
from sandbox.kube.client import Kube
from sandbox.nodes.fleet import Fleet
from sandbox.settings import Clock, Settings


async def run(settings: Settings, clock: Clock, kube: Kube, aws: Aws) -> None:
    """Serve until cancelled; all processes of probe containers end with it.

    :param kube: an identity that may do everything (the kubelets and the cloud controller in one).
    :param aws: where the instances are.
    """
    await Fleet(settings, clock, kube, aws).run()
