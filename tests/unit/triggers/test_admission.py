"""The trigger that announces unproven nodes: when, how often, and what it does when it cannot see the cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from gpu_fleet.core.errors import Forbidden, GpuFleetError
from gpu_fleet.core.kubernetes.names import TAINT_UNPROVEN
from gpu_fleet.core.lock import Holder, record
from gpu_fleet.core.queries import KubeQuery
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubernetesHook
from gpu_fleet.triggers import admission
from gpu_fleet.triggers.admission import UnprovenTrigger, unproven_asset
from tests.unit.core.cluster_objects import NOW, POOL, node
from tests.unit.core.specs import demo_spec

GATED = {"nodePools__0__admission": "gated"}
LOCKED = [record(Holder("d", "gpu_lifecycle.demo", "r"))]


def unproven(name: str = "n1", **changes: Any) -> dict[str, Any]:
    found = node(name, **{"initialized": False, "taints": (TAINT_UNPROVEN,), "ready_for": 30.0, **changes})
    found["metadata"]["uid"] = f"uid-{name}"
    return found


def trigger() -> UnprovenTrigger:
    return UnprovenTrigger("demo", ClusterAccess("kubeconfig", None, None, None, path="/k").to_json(), [POOL], 1200.0)


def test_only_clusters_with_gated_pools_are_watched() -> None:
    assert unproven_asset(demo_spec()) is None
    assert unproven_asset(demo_spec(state="absent", **GATED)) is None
    asset = unproven_asset(demo_spec(**GATED))
    assert asset is not None
    assert asset.uri == "gpu-fleet://demo/unproven"
    (watcher,) = asset.watchers
    assert watcher.trigger.serialize()[1]["pools"] == [POOL]


def test_its_arguments_are_the_same_text_at_each_parse() -> None:
    """Airflow tells triggers apart by it."""
    texts = set()
    for _ in range(2):
        asset = unproven_asset(demo_spec(**GATED))
        assert asset is not None
        path, arguments = asset.watchers[0].trigger.serialize()
        texts.add(json.dumps(arguments))
        assert UnprovenTrigger(**arguments).serialize() == (path, arguments)
    assert len(texts) == 1


def test_one_event_names_all_nodes_that_are_due() -> None:
    nodes = [unproven("n2"), unproven("n1"), node("open"), unproven("young", gpus=None)]
    assert trigger().due(nodes, [], NOW) == ["n1", "n2"]


@pytest.mark.parametrize(("nodes", "lock"), [(None, []), ([unproven()], None)])
def test_who_cannot_see_announces_nothing(nodes: Any, lock: Any) -> None:
    assert trigger().due(nodes, lock, NOW) == []


def test_while_a_run_holds_the_lock_nothing_is_started_before_half_of_the_time_box() -> None:
    assert trigger().due([unproven()], LOCKED, NOW) == []
    assert trigger().due([unproven()], LOCKED, NOW + 600) == ["n1"]
    assert trigger().due([unproven()], [record(None)], NOW) == ["n1"]


def test_a_node_without_a_verdict_is_announced_again_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: clock[0])
    watching, nodes, announced = trigger(), [unproven()], []
    for _ in range(4000):
        if names := watching.due(nodes, [], NOW):
            watching._note(nodes, names)
            announced.append(clock[0])
        clock[0] += 1
    pauses = [later - earlier for earlier, later in pairwise(announced)]
    assert pauses == [120.0, 240.0, 480.0, 900.0, 900.0, 900.0]


def test_a_new_node_of_the_same_name_is_announced() -> None:
    watching, before = trigger(), unproven()
    watching._note([before], watching.due([before], [], NOW))
    after = unproven()
    after["metadata"]["uid"] = "another"
    assert watching.due([before], [], NOW) == []
    assert watching.due([after], [], NOW) == ["n1"]


class Api:
    """A cluster with unproven nodes; its watches live until the test ends."""

    def __init__(self, nodes: list[dict[str, Any]] | GpuFleetError) -> None:
        self.nodes, self.closed = nodes, False

    def now(self) -> float:
        return NOW

    async def list(self, query: KubeQuery) -> tuple[list[dict[str, Any]], str]:
        if isinstance(self.nodes, GpuFleetError):
            raise self.nodes
        return (self.nodes if query.key == "nodes" else []), "7"

    async def watch(self, query: KubeQuery, version: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        await asyncio.Event().wait()
        yield "BOOKMARK", {}

    async def close(self) -> None:
        self.closed = True


def watched(api: Api, monkeypatch: pytest.MonkeyPatch) -> UnprovenTrigger:
    monkeypatch.setattr(KubernetesHook, "async_client", lambda self: api)
    monkeypatch.setattr(admission, "COALESCE_S", 0.01)
    monkeypatch.setattr(admission, "LOOK_S", 0.01)
    monkeypatch.setattr(admission, "REFUSED_S", 0.01)
    return trigger()


async def test_it_announces_what_it_sees_once_and_keeps_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api([unproven("n1"), unproven("n2")])
    watching = watched(api, monkeypatch)
    events = watching.run()
    assert (await anext(events)).payload == {"cluster": "demo", "nodes": ["n1", "n2"]}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(events), 0.3)
    await events.aclose()
    await watching.cleanup()
    await watching.cleanup()
    assert api.closed


async def test_without_permission_it_ends_after_a_pause_so_that_airflow_starts_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watching = watched(Api(Forbidden("cannot list resource nodes")), monkeypatch)
    assert [event async for event in watching.run()] == []
