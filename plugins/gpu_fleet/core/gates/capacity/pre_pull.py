"""Gate ``images_pulled``: every node of a list has every image of a list.

Arguments: ``pool``, ``nodes``, ``images``, ``pull_patience_s`` (how long a failing pull is waited for). A node that is
gone is not waited for: whoever counts nodes will say so.
"""

from __future__ import annotations

from gpu_fleet.core.capacity.pre_pull import image_of, is_pulled, measured, pre_pull_selector, waiting_of
from gpu_fleet.core.gates.capacity.node import clock_of
from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.kinds import EVENT, NODE, POD
from gpu_fleet.core.kubernetes.names import LABEL_HOSTNAME, LABEL_NODE_POOL, SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import Object, epoch, name_of
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready

PULLED, PULLING, PULL_FAILED = "ImagesPulled", "ImagesPulling", "PrePullFailed"
#: Seconds after which a pull that fails is given up: a registry that is busy answers again within a minute or two.
PATIENCE_S = 180.0
_FAILING = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


def queries(args: Args) -> tuple[Query, ...]:
    pool = str(args["pool"])
    return (
        KubeQuery("pods", POD, SYSTEM_NAMESPACE, label_selector=pre_pull_selector(pool)),
        KubeQuery("nodes", NODE, label_selector=f"{LABEL_NODE_POOL}={pool}"),
        KubeQuery("events", EVENT, SYSTEM_NAMESPACE, field_selector="reason=Pulled", watch=False),
    )


def judge(snapshot: Snapshot, args: Args) -> Verdict:
    pool, images = str(args["pool"]), [str(image) for image in args.get("images") or ()]
    here = {name_of(node) for node in snapshot.get("nodes", [])}
    nodes = [str(node) for node in args.get("nodes") or () if str(node) in here]
    pods = {(_node(pod), image_of(pod)): pod for pod in snapshot.get("pods", [])}
    wanted = [(node, image) for node in nodes for image in images]
    if not wanted:
        return progressing(PULLING, f"pool {pool} has none of the nodes that are to pull images")
    missing = [key for key in wanted if key not in pods or not is_pulled(pods[key])]
    if not missing:
        found = measured(list(pods.values()), snapshot.get("events", []))
        return ready(PULLED, f"{len(nodes)} node(s) of pool {pool} have {len(images)} image(s)", pulls=found)
    now, started = clock_of(args)
    for node, image in missing:
        pod = pods.get((node, image))
        reason, message = waiting_of(pod) if pod is not None else ("", "")
        if reason in _FAILING:
            text = f"node {node} cannot pull {image}: {reason}: {message}"
            since = epoch((pod or {}).get("metadata", {}).get("creationTimestamp")) or started
            if now - max(since, started) >= float(args.get("pull_patience_s") or PATIENCE_S):
                return failed(PULL_FAILED, text, node=node)
            return progressing(PULLING, text)
    done = len(wanted) - len(missing)
    node, image = missing[0]
    return progressing(PULLING, f"{done} of {len(wanted)} pulls are done; node {node} pulls {image}")


def _node(pod: Object) -> str:
    return str((pod["spec"].get("nodeSelector") or {}).get(LABEL_HOSTNAME, ""))


IMAGES_PULLED = Gate("images_pulled", queries, judge)
