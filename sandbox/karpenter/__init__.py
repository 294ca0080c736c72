"""Karpenter, after measurements of its core and the source of its AWS provider: NodePools become instances.

Runs against any API server; launches instances with plain EC2 calls. It acts only while a pod of the Karpenter
Deployment is Ready; scaling the Deployment to 0 stops it.
"""

from __future__ import annotations

from sandbox.aws.client import Aws
from sandbox.karpenter.leader import Leader
from sandbox.kube.client import Kube
from sandbox.settings import Clock, Settings


async def run(settings: Settings, clock: Clock, kube: Kube, aws: Aws) -> None:
    """Serve until cancelled."""
    await Leader(settings, clock, kube, aws).run()
