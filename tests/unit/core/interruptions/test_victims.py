"""Who has to start pods again that an interruption ended, and what they had computed."""

from __future__ import annotations

from gpu_fleet.core.drain.records import PodRecord
from gpu_fleet.core.interruptions.victims import displaced, gpu_seconds


def record(uid: str, workload: str = "", *, gpus: int = 1, started: float | None = 1000.0) -> PodRecord:
    owner = f"uid-{workload}" if workload else ""
    return PodRecord(
        "ml", f"p-{uid}", uid, "n1", "Evictable", gpus=gpus, workload=workload, owner_uid=owner, started_at=started
    )


def test_pods_that_ended_are_expected_again_by_controller() -> None:
    records = [
        record("a", "ReplicaSet/serve"),
        record("b", "ReplicaSet/serve"),
        record("c", "Job/train"),
        record("still-there", "ReplicaSet/serve"),
        record("bare"),
        record("agent", "DaemonSet/agent"),
        record("static", "Node/n1"),
    ]
    ended = {"a": 1100.0, "b": 1090.0, "c": 1080.0, "bare": 1.0, "agent": 1.0, "static": 1.0}
    assert displaced(records, ended) == [
        {"namespace": "ml", "kind": "Job", "name": "train", "uid": "uid-Job/train", "evicted": ["c"], "since": 1080.0},
        {"namespace": "ml", "kind": "ReplicaSet", "name": "serve", "uid": "uid-ReplicaSet/serve"}
        | {"evicted": ["a", "b"], "since": 1090.0},
    ]


def test_what_is_lost_at_most_is_the_gpu_time_of_those_that_ended() -> None:
    records = [record("a", gpus=2), record("b", gpus=4), record("c", started=None)]
    assert gpu_seconds(records, {"a": 1060.0, "c": 1060.0}) == 120.0
    assert gpu_seconds(records, {"a": 900.0}) == 0.0
