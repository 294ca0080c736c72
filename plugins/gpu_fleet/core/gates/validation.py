"""Gate ``probes_finished``: there is nothing left to wait for in a round of probe pods.

Arguments: ``namespace``, ``selector`` (of the round's pods), ``pool``, ``rounds`` (one ``NodeRound`` as JSON per node);
``yields``: be ready with :data:`DISPLACED` as soon as a user's pod has taken a probe's place, naming its node: the
other probes there have to end at once, because the user shares their GPU.

The gate does not judge GPUs. A node whose image cannot be pulled, or that vanishes, is as much 'settled' as one whose
probes ran: otherwise one bad node would keep the verdicts of all others from being given. It fails only if the whole
round is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.containers import STUCK_WAITING
from gpu_fleet.core.kubernetes.kinds import EVENT, NODE, POD
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import Object, PoolNode, condition, epoch, event_time, finished, name_of, node_of
from gpu_fleet.core.probes.plan import NodeRound, is_greedy, is_holder, pinned_to
from gpu_fleet.core.probes.status import has_ended, waiting_reason
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready

#: The kubelet's events about an image that cannot be pulled and a container that cannot be made or started (kubernetes
#: pkg/kubelet/events/event.go).
FAILED = "Failed"
#: The scheduler's event about a pod that gave its place to a more important one.
PREEMPTED = "Preempted"
#: Seconds a container may wait for a cause that does not pass by itself, from its first such event; a registry's
#: short failures are shorter.
STUCK_PATIENCE_S = 45.0
#: Seconds after which a pod that finds no room, although nothing runs there any more, is given up; the second is for
#: nodes where no pod of the round was ever placed: placeholders may still be terminating.
ROOM_PATIENCE_S = 20.0
FIRST_ROOM_PATIENCE_S = 60.0
#: Seconds after which the pods of a round without any pod count as deleted by another client.
GONE_PATIENCE_S = 10.0

#: Reason of the verdict that names nodes on which a user's pod has taken the place of a probe (data: ``nodes``).
DISPLACED = "ProbesDisplaced"

#: Waiting reasons that end a probe's wait after the patience above; a probe is never restarted, so it cannot crash in a
#: loop.
STUCK = (STUCK_WAITING - {"CrashLoopBackOff"}) | {"ErrImagePull"}
#: What a pull that failed just now shows, before its event is seen; ``ImagePullBackOff`` follows.
_FIRST_ERROR = "ErrImagePull"


def queries(args: Args) -> tuple[Query, ...]:
    preemptions = KubeQuery(
        "preemptions", EVENT, str(args["namespace"]), field_selector=f"reason={PREEMPTED}", watch=False
    )
    return (
        *((preemptions,) if args.get("yields") else ()),
        KubeQuery("pods", POD, str(args["namespace"]), label_selector=str(args["selector"])),
        KubeQuery("nodes", NODE, label_selector=f"{LABEL_NODE_POOL}={args['pool']}"),
        # Only those of pods that cannot start: when their trouble began.
        KubeQuery("failures", EVENT, str(args["namespace"]), field_selector=f"reason={FAILED}", watch=False),
    )


def judge(snapshot: Snapshot, args: Args) -> Verdict:
    rounds = [NodeRound.from_json(value) for value in args["rounds"]]
    active = [round_ for round_ in rounds if not round_.busy]
    pods = snapshot.get("pods", [])
    now = float(args.get("now") or 0.0)
    if not active:
        return progressing("NothingToWaitFor", "no probe was planned on any node")
    if not pods:
        if now - float(args.get("started") or now) >= GONE_PATIENCE_S:
            return failed(
                "ProbesVanished",
                f"all probe pods in {args['namespace']} are gone, deleted by another client; the next try creates "
                "them again",
                permanent=False,
            )
        return progressing("ProbesAbsent", f"there is no probe pod in {args['namespace']} yet")
    nodes = {name_of(node): PoolNode.of(node) for node in snapshot.get("nodes", [])}
    by_node: dict[str, list[Object]] = {}
    for pod in pods:
        if is_holder(pod):
            continue  # it runs until it is deleted
        by_node.setdefault(pinned_to(pod), []).append(pod)
    since = _failing_since(snapshot.get("failures", []))
    if args.get("yields"):
        taken = snapshot.get("preemptions", [])
        displaced = [
            round_.node for round_ in active if _displaced(round_, by_node.get(round_.node, []), taken, since, now)
        ]
        if displaced:
            message = f"users' pods took the place of probes on {', '.join(displaced)}: the others there must end"
            return ready(DISPLACED, message, nodes=displaced)
    waiting = [
        why
        for round_ in active
        if (why := _waits_for(round_, by_node.get(round_.node, []), nodes.get(round_.node), since, now))
    ]
    if not waiting:
        return ready("ProbesSettled", f"the probes of {len(active)} node(s) are over", nodes=len(active))
    more = f" (and {len(waiting) - 1} more node(s))" if len(waiting) > 1 else ""
    return progressing(waiting[0][0], waiting[0][1] + more)


def _failing_since(events: Iterable[Object]) -> dict[str, float]:
    """uid of a pod -> epoch seconds of the first event that it cannot start."""
    since: dict[str, float] = {}
    for event in events:
        uid = str((event.get("involvedObject") or {}).get("uid", ""))
        at = epoch(event.get("firstTimestamp")) or event_time(event)
        if event.get("reason") == FAILED and at:
            since[uid] = min(at, since.get(uid, at))
    return since


def _waits_for(
    round_: NodeRound, mine: Sequence[Object], node: PoolNode | None, since: Mapping[str, float], now: float
) -> tuple[str, str] | None:
    """What the round still waits for on its node, as (reason, message); ``None`` if it is settled.

    :param mine: the pods that are pinned to the node.
    :param since: see :func:`_failing_since`.
    """
    if node is None or node.leaving:
        return None
    users = [pod for pod in mine if not is_greedy(pod)]
    greedy = [pod for pod in mine if is_greedy(pod)]
    # A pod that is not there any more will not report either.
    over = [pod for pod in users if is_over(pod, since, now)]
    gone = max(0, round_.users - len(users))
    settled = round_.fill - _first_open(users, round_.fill - gone, since, now)
    open_users = settled < round_.fill
    open_greedy = round_.greedy and any(_unscheduled(pod) for pod in greedy)
    if not open_users and not open_greedy:
        return None
    running = [pod for pod in mine if node_of(pod) and not is_over(pod, since, now)]
    patience = ROOM_PATIENCE_S if over else FIRST_ROOM_PATIENCE_S
    if not running and mine and _no_room_for(mine, now) >= patience:
        return None
    if not open_users:
        return ("ProbesPending", f"node {round_.node}: the request for two GPUs has not been decided yet")
    pulling = sum(1 for pod in running if (pod.get("status") or {}).get("phase") == "Pending")
    reason = "ProbesStarting" if pulling and pulling == len(running) else "ProbesRunning"
    if not running:
        reason = "ProbesPending"
    return reason, f"node {round_.node}: {settled} of {round_.fill} probe(s) are over"


def is_over(pod: Object, failing_since: Mapping[str, float], now: float) -> bool:
    """Whether a pod's probe has ended, or waits for something that never comes.

    The patience begins with the first failure: an image may be pulled for long before the registry stumbles once.
    """
    if has_ended(pod):
        return True
    stuck = waiting_reason(pod)
    if stuck is None or stuck[0] not in STUCK:
        return False
    since = failing_since.get(str((pod.get("metadata") or {}).get("uid", "")))
    if since is None and stuck[0] != _FIRST_ERROR:
        since = _scheduled_at(pod)  # its events are lost, or too old
    return stuck[0] == "InvalidImageName" or (since is not None and now - since >= STUCK_PATIENCE_S)


def _unscheduled(pod: Object) -> bool:
    return not node_of(pod) and not finished(pod)


def _scheduled_at(pod: Object) -> float | None:
    scheduled = condition(pod, "PodScheduled") or {}
    return epoch(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None


def _displaced(
    round_: NodeRound, mine: Sequence[Object], events: Iterable[Object], since: Mapping[str, float], now: float
) -> bool:
    """Whether the scheduler has taken a probe's place for a user's pod while others of the round still run.

    A victim is gone within a second or two, so its event counts as well (kubernetes pkg/scheduler/framework/preemption:
    'Preempted by pod <uid> on node <name>'), if it is about a pod that is missing and no older than the round.
    """
    if not any(node_of(pod) and not _preempted(pod) and not is_over(pod, since, now) for pod in mine):
        return False
    if any(_preempted(pod) for pod in mine):
        return True
    born = min(epoch((pod.get("metadata") or {}).get("creationTimestamp")) or now for pod in mine)
    users = [pod for pod in mine if not is_greedy(pod)]
    return len(users) < round_.users and any(
        str(event.get("message", "")).endswith(f" on node {round_.node}") and event_time(event) >= born
        for event in events
        if event.get("reason") == PREEMPTED
    )


def _preempted(pod: Object) -> bool:
    found = condition(pod, "DisruptionTarget") or {}
    return found.get("status") == "True" and found.get("reason") == "PreemptionByScheduler"


def _first_open(users: Sequence[Object], count: int, since: Mapping[str, float], now: float) -> int:
    """How many of the first ``count`` pods to get a place are not over.

    The verdict is on those. Of probes that end at once the pod too many may have come and gone before the last of them.
    Times are whole seconds, so a pod that got its place in the same second as the last of them counts as well.
    """
    placed = sorted(users, key=lambda pod: (_scheduled_at(pod) is None, _scheduled_at(pod) or 0.0))
    first = placed[: max(0, count)]
    last = _scheduled_at(first[-1]) if first else None
    first += [pod for pod in placed[len(first) :] if last is not None and _scheduled_at(pod) == last]
    return min(max(0, count), sum(not is_over(pod, since, now) for pod in first))


def _no_room_for(pods: Sequence[Object], now: float) -> float:
    """Seconds since anything last happened on a node where nothing runs and pods wait."""
    times: list[float] = []
    for pod in pods:
        created: Any = (pod.get("metadata") or {}).get("creationTimestamp")
        ends = [
            ((container.get("state") or {}).get("terminated") or {}).get("finishedAt")
            for container in (pod.get("status") or {}).get("containerStatuses") or []
        ]
        times += [seconds for value in (created, *ends) if (seconds := epoch(value)) is not None]
    return now - max(times) if times else 0.0


PROBES_FINISHED = Gate("probes_finished", queries, judge)
