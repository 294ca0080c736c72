"""What is kept of the pods on an interrupted node."""

from __future__ import annotations

import json
from typing import Any

from gpu_fleet.core.interruptions.victims import Victim, displaced, gpu_seconds


def pod(uid: str, *, owner: str = "", kind: str = "ReplicaSet", gpus: int = 1) -> dict[str, Any]:
    owners = [{"kind": kind, "name": owner, "uid": f"uid-{owner}", "controller": True}] if owner else []
    return {
        "metadata": {"namespace": "ml", "name": f"p-{uid}", "uid": uid, "ownerReferences": owners},
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}],
        },
        "status": {"startTime": "1970-01-01T00:16:40Z"},
    }


def test_a_victim_survives_its_json() -> None:
    victim = Victim.of(pod("a", owner="serve", gpus=2))
    assert (victim.kind, victim.owner, victim.owner_uid) == ("ReplicaSet", "serve", "uid-serve")
    assert (victim.started, victim.gpus, victim.node) == (1000.0, 2, "n1")
    assert Victim.from_json(json.loads(json.dumps(victim.to_json()))) == victim


def test_a_bare_pod_that_never_started_is_kept_too() -> None:
    bare = pod("a")
    bare["status"] = {}
    victim = Victim.of(bare)
    assert (victim.owner, victim.started) == ("", None)
    assert Victim.from_json(victim.to_json()) == victim


def test_pods_that_ended_are_expected_again_by_controller() -> None:
    victims = [
        Victim.of(pod("a", owner="serve")),
        Victim.of(pod("b", owner="serve")),
        Victim.of(pod("c", owner="train", kind="Job")),
        Victim.of(pod("still-there", owner="serve")),
        Victim.of(pod("bare")),
        Victim.of(pod("agent", owner="agent", kind="DaemonSet")),
        Victim.of(pod("static", owner="n1", kind="Node")),
    ]
    ended = {"a": 1100.0, "b": 1090.0, "c": 1080.0, "bare": 1.0, "agent": 1.0, "static": 1.0}
    assert displaced(victims, ended) == [
        {"namespace": "ml", "kind": "ReplicaSet", "name": "serve", "uid": "uid-serve"}
        | {"evicted": ["a", "b"], "since": 1090.0},
        {"namespace": "ml", "kind": "Job", "name": "train", "uid": "uid-train", "evicted": ["c"], "since": 1080.0},
    ]


def test_what_is_lost_at_most_is_the_gpu_time_of_those_that_ended() -> None:
    victims = [Victim.of(pod("a", gpus=2)), Victim.of(pod("b", gpus=4))]
    assert gpu_seconds(victims, {"a": 1060.0}) == 120.0
    assert gpu_seconds(victims, {"a": 900.0}) == 0.0
