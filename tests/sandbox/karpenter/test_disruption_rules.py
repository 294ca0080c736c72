"""What counts for consolidateAfter, for a pool's budgets and for a drain.

Source: kubernetes-sigs/karpenter v1.14.1.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from sandbox.karpenter.controllers.blocking import movable
from sandbox.karpenter.controllers.budgets import counted
from sandbox.karpenter.controllers.candidates import Candidate, eviction_cost
from sandbox.karpenter.controllers.disruption import DRIFTED, Disruption
from sandbox.karpenter.controllers.podevents import PodEvents
from sandbox.karpenter.controllers.termination import NodeTermination
from sandbox.karpenter.durations import timestamp
from sandbox.settings import Clock

Object = dict[str, Any]

POOL: Object = {"metadata": {"name": "gpu"}, "spec": {"disruption": {"consolidateAfter": "60s"}}}
DAEMON = [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}]


def claim(name: str = "c", *conditions: str, **more: Any) -> Object:
    return {
        "metadata": {"name": name, "uid": name, "labels": {"karpenter.sh/nodepool": "gpu"}},
        "spec": {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"}},
        "status": {"conditions": [{"type": each, "status": "True"} for each in ("Initialized", *conditions)], **more},
    }


def node(name: str = "n", ready: str = "True", initialized: str = "true") -> Object:
    return {
        "metadata": {"name": name, "labels": {"karpenter.sh/initialized": initialized}},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


def pod(name: str = "p", where: str | None = "n", phase: str = "Running", **meta: Any) -> Object:
    return {
        "metadata": {"name": name, "namespace": "default", "uid": name, **meta},
        "spec": {"terminationGracePeriodSeconds": 30} | ({"nodeName": where} if where else {}),
        "status": {"phase": phase},
    }


# --- events of pods ---


class Events:
    """The controller of pod events, in front of one claim."""

    def __init__(self, found: Object, initialized_for: float = 1000.0) -> None:
        self.claim = found
        self.patch = AsyncMock()
        context: Any = SimpleNamespace(
            nodes={"n": node()},
            state=SimpleNamespace(claim_of=lambda _: found),
            clock=Clock(1.0),
            condition_queue=SimpleNamespace(add=lambda _: None),
            kube=SimpleNamespace(patch_status=self.patch),
            age=lambda *_: initialized_for,
        )
        self.events = PodEvents(context)

    async def change(self, change: Any, new: Object, old: Object | None = None) -> int:
        """How often the status has been written after this change."""
        self.events.changed(change, new, old)
        await asyncio.sleep(0)
        return self.patch.await_count

    @property
    def left(self) -> float:
        return self.events.left(POOL, self.claim)


@pytest.mark.parametrize(
    ("change", "new", "old", "counts"),
    [
        pytest.param("MODIFIED", pod(), pod(where=None), True, id="bound"),
        pytest.param("MODIFIED", pod(phase="Succeeded"), pod(), True, id="succeeded"),
        pytest.param("MODIFIED", pod(deletionTimestamp="2026-01-01T00:00:00Z"), pod(), True, id="marked for deletion"),
        pytest.param("ADDED", pod(), None, True, id="there when Karpenter starts"),
        pytest.param("MODIFIED", pod(), pod(), False, id="another change"),
        pytest.param("DELETED", pod(), None, False, id="gone, and so not found any more"),
        pytest.param("MODIFIED", pod(where=None), pod(where=None), False, id="not bound"),
        pytest.param("MODIFIED", pod(ownerReferences=DAEMON), pod(where=None), False, id="of a DaemonSet"),
        pytest.param("MODIFIED", pod(where="other"), pod(where=None), False, id="on an unknown node"),
    ],
)
async def test_which_events_count(change: Any, new: Object, old: Object | None, counts: bool) -> None:
    assert await Events(claim()).change(change, new, old) == counts


async def test_a_claim_that_is_going_still_gets_the_time() -> None:
    going = claim()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert await Events(going).change("ADDED", pod()) == 1


async def test_events_within_ten_seconds_of_a_recorded_one_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 5000.0
    monkeypatch.setattr(time, "monotonic", lambda: moment)
    events = Events(claim())
    assert await events.change("ADDED", pod()) == 1
    moment += 6
    assert await events.change("ADDED", pod()) == 1
    assert events.left == 54  # counted from the recorded event, not from the latest
    moment += 6
    assert await events.change("ADDED", pod()) == 2
    assert events.left == 60


async def test_after_a_restart_the_recorded_time_of_the_status_counts() -> None:
    events = Events(claim(lastPodEventTime=timestamp(time.time() - 5)))
    assert await events.change("ADDED", pod()) == 0
    assert 53 < events.left < 57


def test_an_event_before_the_initialization_counts_and_not_the_initialization() -> None:
    events = Events(claim(lastPodEventTime=timestamp(time.time() - 100)), initialized_for=1.0)
    assert events.left == 0


def test_without_an_event_the_initialization_counts() -> None:
    assert Events(claim(), initialized_for=20.0).left == 40


# --- budgets ---


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        pytest.param((claim(), node()), (1, 0), id="ready"),
        pytest.param((claim(), node(ready="Unknown")), (1, 1), id="not ready"),
        pytest.param((claim("busy"), node()), (1, 1), id="being disrupted"),
        pytest.param((claim(), None), (0, 0), id="without a node"),
        pytest.param((claim(), node(initialized="")), (0, 0), id="not initialized"),
        pytest.param((claim("c", "InstanceTerminating"), node()), (0, 0), id="its instance is being terminated"),
    ],
)
def test_which_nodes_count_for_budgets(found: tuple[Object, Object | None], counts: tuple[int, int]) -> None:
    assert counted([found], {"busy"}) == counts


class Drift(Disruption):
    """Two drifted nodes, a budget of one, and no other place for the pods of the first."""

    def __init__(self, nodes: str, busy: tuple[str, ...] = ()) -> None:
        pool = {"metadata": {"name": "gpu"}, "spec": {"disruption": {"budgets": [{"nodes": nodes}]}}}
        self.two = [claim("a", "Drifted"), claim("b", "Drifted")]
        self.said: list[str] = []
        context: Any = SimpleNamespace(
            pools=SimpleNamespace(items=lambda: [pool]),
            claims=SimpleNamespace(items=lambda: self.two),
            state=SimpleNamespace(node_of=lambda each: node(each["metadata"]["name"])),
            events=SimpleNamespace(
                blocked=lambda _, text: self.said.append(text), budget_blocks=lambda _, reason: self.said.append(reason)
            ),
        )
        super().__init__(context, None, None)  # type: ignore[arg-type]
        self._busy = set(busy)
        self.found = [Candidate(node(), each, pool, [pod(each["metadata"]["name"])]) for each in self.two]

    def _candidates(self, *, eventual: bool = False) -> list[Candidate]:
        return self.found

    async def _without(self, candidates: list[Candidate], *_: Any) -> Any:
        full = {"a": "no room"} if candidates[0].claim["metadata"]["name"] == "a" else {}
        return SimpleNamespace(errors=full, new=[])


async def test_a_drifted_node_that_cannot_go_does_not_use_up_the_budget_of_the_next() -> None:
    drift = Drift("1")
    command = await drift._drift()
    assert command is not None
    assert (command.reason, command.candidates) == (DRIFTED, drift.found[1:])
    assert drift.said == ["not all pods would schedule, default/a => no room "]


async def test_a_budget_that_is_only_used_up_is_not_reported_as_blocking() -> None:
    drift = Drift("1", busy=("a",))
    assert await drift._drift() is None
    assert drift.said == []
    drift = Drift("0")
    assert await drift._drift() is None
    assert drift.said == [DRIFTED]


# --- consolidation ---


class Consolidation(Disruption):
    """Two nodes with a pod each; what was tried, and what was said of them."""

    def __init__(self, policy: str = "WhenEmptyOrUnderutilized", settled: tuple[str, ...] = ("a", "b")) -> None:
        disruption = {"consolidateAfter": "60s", "consolidationPolicy": policy, "budgets": []}
        pool = {"metadata": {"name": "gpu"}, "spec": {"disruption": disruption}}
        two = [claim("a", "Consolidatable"), claim("b", "Consolidatable")]
        self.said: list[str] = []
        self.tried: list[str] = []
        self.settling: list[Any] = []
        context: Any = SimpleNamespace(
            clock=Clock(1000.0),
            pools=SimpleNamespace(items=lambda: [pool], get=lambda _: pool),
            claims=SimpleNamespace(items=lambda: two),
            state=SimpleNamespace(node_of=lambda each: node(each["metadata"]["name"])),
            events=SimpleNamespace(unconsolidatable=lambda _, text: self.said.append(text)),
        )
        events: Any = SimpleNamespace(left=lambda _, each: 0.0 if each["metadata"]["name"] in settled else 5.0)
        super().__init__(context, None, events)  # type: ignore[arg-type]
        self.found = [Candidate(node(), each, pool, [pod()]) for each in two]

    def _candidates(self, *, eventual: bool = False) -> list[Candidate]:
        return self.found

    async def _without(self, candidates: list[Candidate], settling: Any = frozenset()) -> Any:
        self.tried.append(candidates[0].claim["metadata"]["name"])
        self.settling.append(settling)
        return SimpleNamespace(errors={} if len(self.tried) == 1 else {"p": "no room"}, new=[])


async def test_consolidation_moves_no_pods_to_nodes_for_which_the_time_has_not_passed() -> None:
    consolidation = Consolidation(settled=("a",))
    await consolidation._consolidate()
    assert consolidation.settling[0] == {"b"}


async def test_an_option_that_is_not_valid_any_more_ends_the_search() -> None:
    consolidation = Consolidation()
    assert await consolidation._consolidate() is None
    assert consolidation.tried == ["a", "a"]


async def test_a_node_that_is_not_empty_stays_where_only_empty_ones_go() -> None:
    consolidation = Consolidation("WhenEmpty")
    assert await consolidation._consolidate() is None
    assert consolidation.tried == []
    assert set(consolidation.said) == {'NodePool "gpu" has consolidation policy WhenEmpty, but node is not empty'}


# --- pods that move ---


@pytest.mark.parametrize(
    ("priority", "deletion_cost", "cost"),
    [(0, None, 1.0), (-10, None, pytest.approx(1.0, abs=1e-6)), (-(2**25), None, 0.0), (0, str(2**27), 2.0),
     (2**31, None, 10.0), (0, "much", 1.0)],
)  # fmt: skip
def test_what_moving_a_pod_costs(priority: int, deletion_cost: str | None, cost: Any) -> None:
    annotations = {"controller.kubernetes.io/pod-deletion-cost": deletion_cost} if deletion_cost else {}
    found = pod(annotations=annotations)
    found["spec"]["priority"] = priority
    assert eviction_cost(found) == cost


def test_a_node_with_pods_of_very_low_priority_alone_counts_as_empty() -> None:
    low = pod()
    low["spec"]["priority"] = -(2**26)
    assert Candidate(node(), claim(), POOL, [low]).empty
    assert not Candidate(node(), claim(), POOL, [low, pod()]).empty


@pytest.mark.parametrize(
    ("meta", "budget", "moves"),
    [
        ({}, None, True),
        ({"annotations": {"karpenter.sh/do-not-disrupt": "true"}}, None, False),
        ({"ownerReferences": DAEMON}, None, False),
        ({}, {"maxUnavailable": 0}, False),
        ({}, {"minAvailable": "100%"}, False),
        ({}, {"minAvailable": 1}, True),  # allows none now, and may later
    ],
)
def test_for_which_pods_of_a_going_node_room_is_sought(meta: Object, budget: Object | None, moves: bool) -> None:
    spec = (budget or {}) | {"selector": {"matchLabels": {"app": "a"}}}
    budgets = [{"metadata": {"name": "b", "namespace": "default"}, "spec": spec}] if budget else []
    context: Any = SimpleNamespace(clock=Clock(1.0), pdbs=SimpleNamespace(items=lambda _: budgets))
    assert movable(context, pod(labels={"app": "a"}, **meta)) is moves


# --- drains ---


class Drain(NodeTermination):
    """A node with these pods; what was deleted with which grace, and what was handed to the eviction queue."""

    def __init__(self, *pods: Object) -> None:
        self.deleted: dict[str, int] = {}
        self.queue: list[str] = []

        async def delete(_kind: str, name: str, *_: Any, grace_seconds: int, **__: Any) -> bool:
            self.deleted[name] = grace_seconds
            return True

        self.kube = SimpleNamespace(delete=delete, evict=AsyncMock())
        context: Any = SimpleNamespace(
            clock=Clock(1.0),
            state=SimpleNamespace(pods_on=lambda _: list(pods), claim_of=lambda _: None),
            nodes={},
            pods={},
            kube=self.kube,
            eviction_queue=SimpleNamespace(add=lambda key: self.queue.append(key[1])),
            events=SimpleNamespace(
                deleted_past_protection=lambda *_: None, failed_draining=lambda *_: None, evicted=lambda *_: None
            ),
        )
        super().__init__(context)

    async def once(self, deadline_in: float | None = None) -> bool:
        return await self._drain(node(), None if deadline_in is None else time.time() + deadline_in)


def going(granted: int, since: float = 1.0, **more: Any) -> Object:
    stamp = timestamp(time.time() - since + granted)
    return pod("going", deletionTimestamp=stamp, deletionGracePeriodSeconds=granted, **more)


async def test_an_overdue_pod_is_deleted_and_holds_up_the_next_group() -> None:
    drain = Drain(pod("own"), pod("daemon", ownerReferences=DAEMON))
    assert not await drain.once(deadline_in=10.5)
    assert drain.deleted == {"own": 10, "daemon": 10}
    drain = Drain(going(9), pod("daemon", ownerReferences=DAEMON))
    assert not await drain.once(deadline_in=100)
    assert (drain.deleted, drain.queue) == ({}, [])


@pytest.mark.parametrize(
    ("granted", "deadline_in", "deleted"),
    [
        pytest.param(30, 20.0, {"going": 19}, id="ends after the deadline"),
        pytest.param(10, 20.0, {}, id="ends before it"),
        pytest.param(300, 100.0, {}, id="ends after it, and it is not time yet"),
    ],
)
async def test_a_pod_that_was_deleted_before_is_deleted_again_only_if_it_ends_too_late(
    granted: int, deadline_in: float, deleted: dict[str, int]
) -> None:
    drain = Drain(going(granted))
    await drain.once(deadline_in)
    assert drain.deleted == deleted


async def test_pods_that_may_not_be_evicted_are_waited_for_and_not_enqueued() -> None:
    kept = pod("kept", annotations={"karpenter.sh/do-not-disrupt": "true"})
    drain = Drain(kept, pod("free"))
    assert not await drain.once()
    assert drain.queue == ["free"]


async def test_an_enqueued_pod_is_evicted_though_it_was_annotated_since() -> None:
    drain = Drain()
    drain._context.pods = {}  # type: ignore[assignment]
    kept = pod("kept", annotations={"karpenter.sh/do-not-disrupt": "true"})
    drain._context.pods = SimpleNamespace(get=lambda *_: kept)  # type: ignore[assignment]
    await drain.evict(("default", "kept", "kept"))
    drain.kube.evict.assert_awaited_once_with("default", "kept", uid="kept")
