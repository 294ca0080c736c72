"""A round of the scheduler is short however many pods wait: fifty nodes, five pinned pods each, without a server."""

from __future__ import annotations

from typing import Any

from sandbox.controllers.scheduling.scheduler import Scheduler

NODES, SLOTS = 50, 4
GPU = "nvidia.com/gpu"


def _node(number: int) -> dict[str, Any]:
    return {
        "metadata": {"name": f"n{number}", "uid": f"n{number}", "labels": {"kubernetes.io/hostname": f"n{number}"}},
        "spec": {"taints": [{"key": GPU, "effect": "NoSchedule"}]},
        "status": {"allocatable": {"cpu": "4", "memory": "16Gi", "pods": "58", GPU: str(SLOTS)}},
    }


def _pod(node: int, number: int) -> dict[str, Any]:
    requests = {"cpu": "50m", GPU: "1"}
    return {
        "metadata": {"name": f"p{node}-{number}", "namespace": "v", "uid": f"p{node}-{number}", "labels": {}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": f"n{node}"},
            "tolerations": [{"key": GPU, "operator": "Exists"}],
            "containers": [{"name": "main", "resources": {"requests": requests}}],
        },
        "status": {},
    }


class _Objects:
    """An informer's list."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self._items = items

    def items(self) -> list[dict[str, Any]]:
        return self._items


class _Server:
    """Takes everything, and can let a pod end while it is at it."""

    def __init__(self) -> None:
        self.bound: dict[str, str] = {}
        self.refused: list[str] = []

    async def bind(self, _namespace: str, name: str, node: str, *, uid: str) -> None:
        self.bound[name] = node

    async def patch(self, _kind: str, name: str, body: dict[str, Any], _namespace: str, **_: Any) -> dict[str, Any]:
        self.refused.append(name)
        node, _, number = name.removeprefix("p").partition("-")
        return _pod(int(node), int(number)) | {"status": body["status"]}


def _scheduler(pending: list[dict[str, Any]], placed: list[dict[str, Any]]) -> tuple[Scheduler, _Server]:
    scheduler, server = Scheduler.__new__(Scheduler), _Server()
    scheduler.kube = server  # type: ignore[assignment]
    scheduler.event = lambda *_, **__: None  # type: ignore[method-assign,misc,assignment]
    scheduler.nodes = _Objects([_node(number) for number in range(NODES)])  # type: ignore[assignment]
    scheduler.pods, scheduler.budgets = _Objects(placed), _Objects([])  # type: ignore[assignment]
    scheduler._pending = {pod["metadata"]["uid"]: pod for pod in pending}
    scheduler._assumed, scheduler._left = {}, False
    return scheduler, server


async def test_hundreds_of_pinned_pods_are_decided_in_a_short_round() -> None:
    scheduler, server = _scheduler([_pod(node, number) for node in range(NODES) for number in range(SLOTS + 1)], [])
    looks: list[str] = []
    nominated = scheduler._nominated

    def counted(pod: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        looks.append(pod["metadata"]["name"])
        return nominated(pod)

    scheduler._nominated = counted  # type: ignore[method-assign]
    await scheduler.reconcile("round")
    assert len(server.bound) == NODES * SLOTS
    assert len(server.refused) == NODES
    # All pending pods are looked through once for each that is decided, and once more for a preemption: not per node,
    # which made a round thirty times as long.
    assert max(looks.count(name) for name in looks) <= 2


async def test_room_that_appears_during_a_round_is_seen_in_it() -> None:
    placed = [_pod(1, number) | {"spec": {**_pod(1, number)["spec"], "nodeName": "n1"}} for number in range(SLOTS)]
    scheduler, server = _scheduler([_pod(0, 9), _pod(1, 9)], placed)

    async def ends(*arguments: Any, **more: Any) -> None:
        """While the first pod is bound, one on the second's node ends."""
        old = placed.pop()
        scheduler._pod_changed("DELETED", old, old)
        await _Server.bind(server, *arguments, **more)

    server.bind = ends  # type: ignore[method-assign]
    scheduler.queue = type("Queue", (), {"add": lambda *_: None})()  # type: ignore[assignment]
    await scheduler.reconcile("round")
    assert server.bound == {"p0-9": "n0", "p1-9": "n1"}
