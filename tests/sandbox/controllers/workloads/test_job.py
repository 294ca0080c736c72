from __future__ import annotations

from typing import Any

from sandbox.controllers.objects import condition, holds, meta, phase
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World


def _is(kind: str) -> Any:
    return lambda job: holds(job, kind)


async def test_completions_are_counted_and_reported(cluster: World) -> None:
    await cluster.create(builders.node(), builders.job(completions=3, parallelism=2))
    job = await cluster.object("Job", "j", "default", _is("Complete"))
    assert job["status"]["succeeded"] == 3
    assert "active" not in job["status"]
    assert {"startTime", "completionTime"} <= set(job["status"])
    for kind in ("SuccessCriteriaMet", "Complete"):
        assert (condition(job, kind) or {})["reason"] == "CompletionsReached"
        assert (condition(job, kind) or {})["message"] == "Reached expected number of succeeded pods"
    pods = await cluster.pods(3, lambda pod: phase(pod) == "Succeeded" and not meta(pod).get("finalizers"))
    assert all(meta(pod)["labels"]["job-name"] == "j" for pod in pods)
    await cluster.event("Completed")


async def test_backoff_limit(cluster: World) -> None:
    await cluster.create(builders.node(), builders.job(backoffLimit=1, image="fail"))
    job = await cluster.object("Job", "j", "default", _is("Failed"))
    assert job["status"]["failed"] == 2
    assert (condition(job, "Failed") or {})["reason"] == "BackoffLimitExceeded"
    assert (condition(job, "FailureTarget") or {})["message"] == "Job has reached the specified backoff limit"
    event = await cluster.event("BackoffLimitExceeded")
    assert event["type"] == "Warning"


async def test_active_deadline_stops_the_pods(cluster: World) -> None:
    await cluster.create(builders.node(), builders.job(activeDeadlineSeconds=10, image="pause"))
    job = await cluster.object("Job", "j", "default", _is("Failed"))
    assert (condition(job, "Failed") or {})["reason"] == "DeadlineExceeded"
    await cluster.pods(0, bool)


async def test_a_finished_job_goes_after_its_time_to_live(cluster: World) -> None:
    await cluster.create(builders.node(), builders.job(ttlSecondsAfterFinished=5))
    await cluster.object("Job", "j", "default", _is("Complete"))
    await cluster.gone("Job", "j", "default")
    await cluster.pods(0, bool)


async def test_a_suspended_job_starts_when_resumed(cluster: World) -> None:
    await cluster.create(builders.node(), builders.job(suspend=True))
    await cluster.object("Job", "j", "default", _is("Suspended"))
    await cluster.patch("Job", "j", {"spec": {"suspend": False}}, "default")
    await cluster.object("Job", "j", "default", _is("Complete"))


async def test_pods_of_a_deleted_job_are_let_go(cluster: World) -> None:
    await cluster.create(builders.node(), builders.job(image="pause"))
    await cluster.pods(1, lambda pod: phase(pod) == "Running")
    await cluster.kube.delete("Job", "j", "default", propagation="Background")
    await cluster.pods(0, bool)


async def test_deleting_a_job_in_the_foreground_waits_for_its_pods(cluster: World) -> None:
    await cluster.create(builders.node(), builders.job(image="pause"))
    await cluster.pods(1, lambda pod: phase(pod) == "Running")
    await cluster.kube.delete("Job", "j", "default", propagation="Foreground")
    await cluster.gone("Job", "j", "default")
    assert await cluster.kube.list("Pod", "default") == []
