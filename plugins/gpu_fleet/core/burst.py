"""A burst on an empty shared pool: twice the shares of a node asked for at once buy exactly two nodes.

It proves what a NodeOverlay is for, on request (Param ``proveBurst``). Two nodes, and a pool that may have a third:
with fewer allowed, a Karpenter that counts physical GPUs could not buy too many, and the burst would prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.capacity import pause_pod
from gpu_fleet.core.names import LABEL_COMPONENT, LABEL_NODE_POOL, LABEL_POOL

if TYPE_CHECKING:
    from gpu_fleet.core.spec import NodePool

COMPONENT_BURST = "burst"
#: Nodes that the burst may buy.
NODES = 2
#: More pods at once than this say no more about Karpenter, and load the API server for everybody.
MOST_PODS = 256


def burst_size(pool: NodePool, physical: int) -> int:
    """How many pods: the shares of two nodes."""
    return NODES * physical * pool.replicas


def why_not(pool: NodePool, physical: int, present: Sequence[str]) -> str | None:
    """Why the burst would prove nothing, or do harm; ``None`` if it can be made.

    :param present: names of the pool's Nodes and NodeClaims.
    """
    if not pool.shared:
        return f"pool {pool.name} shares no GPU"
    if not pool.manage:
        return f"pool {pool.name} is not managed here"
    if present:
        return (
            f"pool {pool.name} is not empty ({', '.join(present[:3])}): shares that are free there would be taken first"
        )
    if pool.node_limit <= NODES:
        return (
            f"limits.nodes of pool {pool.name} is {pool.node_limit}: without room for a node too many, {NODES} nodes "
            f"prove nothing; it needs {NODES + 1}"
        )
    if burst_size(pool, physical) > MOST_PODS:
        return f"pool {pool.name} would need {burst_size(pool, physical)} pods at once, more than {MOST_PODS}"
    return None


def burst_pod(
    cluster: str, pool: NodePool, index: int, *, lifetime_s: int, image: str, run: str, run_label: str
) -> dict[str, Any]:
    """A pod that asks for one share of any node of the pool. It gives way to everything and ends by itself."""
    pod = pause_pod(
        f"burst-{pool.name}-{index}", COMPONENT_BURST, cluster, pool, 1, image, run, run_label, cpu="1m", memory="8Mi"
    )
    pod["spec"]["nodeSelector"] = {LABEL_NODE_POOL: pool.name}
    pod["spec"]["activeDeadlineSeconds"] = lifetime_s
    return pod


def burst_selector(pool: str) -> str:
    return f"{LABEL_COMPONENT}={COMPONENT_BURST},{LABEL_POOL}={pool}"
