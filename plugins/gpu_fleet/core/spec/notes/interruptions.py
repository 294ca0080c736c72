"""Notes on what happens to interrupted nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpu_fleet.core.spec.problems import Note

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec

_FIELD = "interruptions.maintenance"


def karpenter_keeps_no_window(spec: ClusterSpec) -> Iterator[Note]:
    """aws/karpenter-provider-aws v1.14.1 ``pkg/controllers/interruption``: ``controller.go`` (the message),
    ``instancestatus_controller.go`` (a look at EC2 once a minute, since v1.12.0, with a queue or without)."""
    if spec.interruptions.maintenance is None or not spec.node_pools:
        return
    if spec.interruption_handler == "karpenter":
        yield Note(
            _FIELD,
            "Karpenter drains a node with a scheduled change as soon as it reads the message; the window is kept for "
            "nodes of interruptions.nodeGroups, and for those that Karpenter does not begin to drain",
        )
    elif spec.karpenter.may_poll_ec2:
        which = "Karpenter" if spec.karpenter.manage else "Karpenter, if it is 1.12.0 or later,"
        yield Note(
            _FIELD,
            f"{which} asks EC2 for scheduled changes once a minute and drains their nodes at once, also without a "
            "queue. The window is kept only if Karpenter's role may not call ec2:DescribeInstanceStatus: nothing else "
            "in Karpenter needs it, but it then does not replace instances with failed status checks either. Write "
            "null to let Karpenter act",
        )
