"""A burst on an empty shared pool: twice the shares of a node, requested at once, buy exactly two nodes.

It proves what a NodeOverlay is for, on request (Param ``proveBurst``). Two nodes, and a pool that may have a third:
with fewer allowed, a Karpenter that counts physical GPUs could not buy too many, and the burst would prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.capacity.placeholders import pause_pod
from gpu_fleet.core.kubernetes.names import COMPONENT_BURST, LABEL_COMPONENT, LABEL_NODE_POOL, LABEL_POOL
from gpu_fleet.core.kubernetes.objects import Object, deleting, name_of
from gpu_fleet.core.nodes.drifted import describe

if TYPE_CHECKING:
    from gpu_fleet.core.spec import NodePool

#: Nodes that the burst may buy.
NODES = 2
#: More pods at once than this prove nothing more about Karpenter, and load the API server.
MOST_PODS = 256


def burst_size(pool: NodePool, physical: int) -> int:
    """The number of pods: the shares of two nodes."""
    return NODES * physical * pool.replicas


def why_not(pool: NodePool, physical: int, present: Sequence[str]) -> str | None:
    """Why the burst would prove nothing, or do harm; ``None`` if it can be run.

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
    """A pod that requests one share of any node of the pool. Every other pod preempts it, and it ends by itself."""
    pod = pause_pod(
        f"burst-{pool.name}-{index}", COMPONENT_BURST, cluster, pool, 1, image, run, run_label, cpu="1m", memory="8Mi"
    )
    pod["spec"]["nodeSelector"] = {LABEL_NODE_POOL: pool.name}
    pod["spec"]["activeDeadlineSeconds"] = lifetime_s
    return pod


def burst_selector(pool: str) -> str:
    return f"{LABEL_COMPONENT}={COMPONENT_BURST},{LABEL_POOL}={pool}"


@dataclass(frozen=True)
class Ending:
    """How a burst ends: noted before anything of it is removed, so that a retry of a killed task continues.

    :ivar keep: how many nodes the pool wants, which the burst may leave to it.
    :ivar claims: name -> UID of the NodeClaims that existed when the burst ended. The pool was empty before, so they
        are the burst's; later ones are not.
    :ivar nodes: the nodes that the burst has bought, if it succeeded.
    :ivar failure: class name, reason and message of the task's error; ``None`` if the burst succeeded.
    """

    keep: int
    claims: Mapping[str, str]
    nodes: Sequence[str] = ()
    failure: tuple[str, str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "keep": self.keep,
            "claims": dict(self.claims),
            "nodes": list(self.nodes),
            "failure": None if self.failure is None else list(self.failure),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ending:
        failure = value.get("failure")
        return cls(
            int(value["keep"]),
            {str(name): str(uid) for name, uid in value["claims"].items()},
            [str(name) for name in value.get("nodes") or ()],
            None if failure is None else (str(failure[0]), str(failure[1]), str(failure[2])),
        )


def surplus(ending: Ending, claims: Iterable[Object], pods: Iterable[Object]) -> list[Object]:
    """The NodeClaims that the burst has bought and no pod needs, by name. Total; the same state gives the same result.

    Nodes in use stay, and count among those that the pool keeps.

    :param claims: the pool's NodeClaims.
    :param pods: pods of any namespace.
    """
    pods = list(pods)
    present = sorted((claim for claim in claims if not deleting(claim)), key=name_of)
    mine = [claim for claim in present if ending.claims.get(name_of(claim)) == claim["metadata"].get("uid")]
    idle = [claim for claim in mine if describe(claim, pods).idle]
    return idle[max(0, ending.keep - (len(mine) - len(idle))) :]
