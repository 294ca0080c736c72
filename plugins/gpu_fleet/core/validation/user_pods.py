"""What users' pods do on a node while it is probed: it explains what would otherwise be blamed on the node.

User pods are here all pods that this package did not create.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpu_fleet.core.kubernetes.objects import (
    Object,
    event_time,
    finished,
    gpus_requested,
    is_ours,
    node_of,
    of_daemon_set,
)
from gpu_fleet.core.validation.unasked import Unasked, unasked

#: Seconds by which the time stamps of events may lie before the moment that they are compared with: whole seconds.
_ROUNDING_S = 1.0


@dataclass(frozen=True)
class UserPods:
    """Users' pods on one node at one moment.

    :ivar gpus: GPUs that they hold, or that the scheduler has just made room for.
    :ivar pods: how many there are, those of DaemonSets aside.
    :ivar preempted: whether the scheduler took a probe's place for one of them.
    :ivar unasked: those of them that see GPUs without having requested any.
    """

    gpus: int = 0
    pods: int = 0
    preempted: bool = False
    unasked: tuple[Unasked, ...] = ()

    @property
    def strangers(self) -> tuple[Unasked, ...]:
        """Those that were given GPUs by name and are not node agents: they may compute on any GPU."""
        return tuple(each for each in self.unasked if each.certain and not each.expected)


NO_USER_PODS = UserPods()


def user_pods_by_node(pods: Iterable[Object], events: Iterable[Object] = (), since: float = 0.0) -> dict[str, UserPods]:
    """Node -> what users' pods do there.

    :param pods: those on the nodes in question, and those nominated to one of them.
    :param events: of the probes' namespace.
    :param since: epoch seconds; earlier events are about other probes.
    """
    gpus: dict[str, int] = {}
    count: dict[str, int] = {}
    seeing: dict[str, list[Unasked]] = {}
    for pod in pods:
        # A pod that preempts others is nominated to the node before they are gone, and bound to it afterwards.
        node = node_of(pod) or str((pod.get("status") or {}).get("nominatedNodeName") or "")
        if not node or finished(pod) or is_ours(pod):
            continue
        gpus[node] = gpus.get(node, 0) + gpus_requested(pod)
        count[node] = count.get(node, 0) + (not of_daemon_set(pod))
        if found := unasked(pod):
            seeing.setdefault(node, []).append(found)
    # kubernetes pkg/scheduler/framework/preemption: 'Preempted by pod <uid> on node <name>', about the victim, which is
    # gone when its probe is judged.
    displaced = {
        str(event.get("message", "")).rpartition(" on node ")[2].strip()
        for event in events
        if event.get("reason") == "Preempted" and event_time(event) >= since - _ROUNDING_S
    }
    return {
        node: UserPods(
            gpus.get(node, 0),
            count.get(node, 0),
            node in displaced,
            tuple(sorted(seeing.get(node, ()), key=lambda each: each.pod)),
        )
        for node in gpus.keys() | (displaced - {""})
    }
