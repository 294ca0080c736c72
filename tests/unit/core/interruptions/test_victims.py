"""Who has to start pods again that an interruption ended, and what they had computed."""

from __future__ import annotations

from gpu_fleet.core.drain.records import PodRecord
from gpu_fleet.core.interruptions.victims import displaced, gpu_seconds, seeds, seen_pods


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
    assert displaced(records, ended, {}) == [
        {"namespace": "ml", "kind": "Job", "name": "train", "uid": "uid-Job/train", "evicted": ["c"], "since": 1080.0},
        {"namespace": "ml", "kind": "ReplicaSet", "name": "serve", "uid": "uid-ReplicaSet/serve"}
        | {"evicted": ["a", "b"], "since": 1090.0},
    ]


def test_successors_count_from_the_announcement_on() -> None:
    """Karpenter evicts, and a controller creates the successor, before a run of ours has begun."""
    (found,) = displaced([record("a", "Job/x")], {"a": 1002.5}, {"n1": 1000.0, "n2": 5.0})
    assert found["since"] == 1000.0
    (found,) = displaced([record("a", "Job/x")], {"a": 999.0}, {"n1": 1000.0})
    assert found["since"] == 999.0


def test_what_is_lost_at_most_is_the_gpu_time_of_those_that_ended() -> None:
    records = [record("a", gpus=2), record("b", gpus=4), record("c", started=None)]
    assert gpu_seconds(records, {"a": 1060.0, "c": 1060.0}) == 120.0
    assert gpu_seconds(records, {"a": 900.0}) == 0.0


def pod(name: str, kind: str = "ReplicaSet", **metadata: object) -> dict[str, object]:
    owners = [{"kind": kind, "name": "web", "uid": "u-web", "controller": True}] if kind else []
    return {
        "metadata": {"namespace": "ml", "name": name, "uid": f"uid-{name}", "ownerReferences": owners, **metadata},
        "spec": {
            "terminationGracePeriodSeconds": 40,
            "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "2"}}}],
        },
        "status": {"phase": "Running", "startTime": "1970-01-01T00:16:40Z"},
    }


def test_what_an_event_keeps_of_pods_becomes_the_drains_records() -> None:
    ours = pod("probe", labels={"gpu-fleet.io/component": "probe"})
    done = {**pod("done"), "status": {"phase": "Succeeded"}}
    seen = seen_pods([pod("a"), pod("bare", ""), pod("agent", "DaemonSet"), pod("static", "Node"), ours, done])
    assert [each["name"] for each in seen] == ["a", "bare"]
    found = {uid: PodRecord.from_json(row) for uid, row in seeds(seen, "n1", 1120.0).items()}
    a, bare = found["uid-a"], found["uid-bare"]
    assert (a.node, a.deadline, a.gpus, a.grace, a.started_at) == ("n1", 1120.0, 2, 40.0, 1000.0)
    assert (a.workload, a.owner_uid, a.rule) == ("ReplicaSet/web", "u-web", "Evictable")
    assert (bare.workload, bare.rule) == ("", "Unreplicated")
