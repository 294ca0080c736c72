"""What a Job makes of failed pods (kubernetes v1.36 pkg/controller/job/pod_failure_policy.go and its test)."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.controllers.objects import condition, holds, is_deleting, is_finished, meta, phase
from sandbox.controllers.workloads.failurepolicy import counts, fails_job
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World

Object = dict[str, Any]
TOLD_TO_END = {"operator": "In", "values": [143]}
DISRUPTED = [{"type": "DisruptionTarget", "status": "True"}]


def failed(code: int, *conditions: str, name: str = "main") -> Object:
    return {
        "metadata": {"name": "p", "namespace": "default"},
        "status": {
            "phase": "Failed",
            "containerStatuses": [{"name": name, "state": {"terminated": {"exitCode": code}}}],
            "conditions": [{"type": each, "status": "True"} for each in conditions],
        },
    }


def job(*rules: Object) -> Object:
    return {"spec": {"podFailurePolicy": {"rules": list(rules)}} if rules else {}}


#: Situation -> rules, pod, whether it counts.
COUNTED: dict[str, tuple[list[Object], Object, bool]] = {
    "no policy": ([], failed(143), True),
    "the exit code": ([{"action": "Ignore", "onExitCodes": TOLD_TO_END}], failed(143), False),
    "another exit code": ([{"action": "Ignore", "onExitCodes": TOLD_TO_END}], failed(1), True),
    "not in": ([{"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [1]}}], failed(2), False),
    "success of a container is never matched": (
        [{"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [1]}}],
        failed(0),
        True,
    ),
    "of another container": (
        [{"action": "Ignore", "onExitCodes": {**TOLD_TO_END, "containerName": "side"}}],
        failed(143),
        True,
    ),
    "the condition": ([{"action": "Ignore", "onPodConditions": DISRUPTED}], failed(1, "DisruptionTarget"), False),
    "no such condition": ([{"action": "Ignore", "onPodConditions": DISRUPTED}], failed(1, "Ready"), True),
    "the first match decides": (
        [{"action": "Count", "onExitCodes": TOLD_TO_END}, {"action": "Ignore", "onPodConditions": DISRUPTED}],
        failed(143, "DisruptionTarget"),
        True,
    ),
}


@pytest.mark.parametrize("situation", COUNTED)
def test_a_failed_pod_counts_unless_a_rule_ignores_it(situation: str) -> None:
    rules, pod, expected = COUNTED[situation]
    assert counts(job(*rules), pod) is expected
    assert fails_job(job(*rules), pod) is None


def test_a_rule_may_end_the_job() -> None:
    found = fails_job(job({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}), failed(42))
    assert found == "Container main for pod default/p failed with exit code 42 matching FailJob rule at index 0"
    found = fails_job(job({"action": "FailJob", "onPodConditions": DISRUPTED}), failed(1, "DisruptionTarget"))
    assert found == "Pod default/p has condition DisruptionTarget matching FailJob rule at index 0"


async def _end(cluster: World, code: int) -> Object:
    (pod,) = await cluster.pods(1, lambda each: phase(each) == "Running")
    status = failed(code)["status"] | {"startTime": pod["status"]["startTime"]}
    await cluster.kube.patch_status("Pod", meta(pod)["name"], status, "default")
    return pod


async def test_ignored_failures_do_not_reach_the_backoff_limit(cluster: World) -> None:
    rule = {"action": "Ignore", "onExitCodes": TOLD_TO_END}
    await cluster.create(
        builders.node(), builders.job(backoffLimit=0, image="pause", podFailurePolicy={"rules": [rule]})
    )
    first = await _end(cluster, 143)
    second = await cluster.pods(1, lambda pod: phase(pod) == "Running" and meta(pod)["uid"] != meta(first)["uid"])
    assert "failed" not in (await cluster.kube.get("Job", "j", "default"))["status"]
    status = failed(1)["status"] | {"startTime": second[0]["status"]["startTime"]}
    await cluster.kube.patch_status("Pod", meta(second[0])["name"], status, "default")
    found = await cluster.object("Job", "j", "default", lambda each: holds(each, "Failed"))
    assert (condition(found, "Failed") or {})["reason"] == "BackoffLimitExceeded"
    assert found["status"]["failed"] == 1


async def test_a_pod_may_end_the_job(cluster: World) -> None:
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}
    await cluster.create(builders.node(), builders.job(image="pause", podFailurePolicy={"rules": [rule]}))
    await _end(cluster, 42)
    found = await cluster.object("Job", "j", "default", lambda each: holds(each, "Failed"))
    assert (condition(found, "Failed") or {})["reason"] == "PodFailurePolicy"


async def test_with_a_policy_a_terminating_pod_is_replaced_when_it_has_ended(cluster: World) -> None:
    cluster.stopping = 0.5
    rule = {"action": "Ignore", "onExitCodes": TOLD_TO_END}
    await cluster.create(builders.node(), builders.job(image="pause", podFailurePolicy={"rules": [rule]}))
    assert (await cluster.kube.get("Job", "j", "default"))["spec"]["podReplacementPolicy"] == "Failed"
    (old,) = await cluster.pods(1, lambda each: phase(each) == "Running")
    at_once: list[int] = []

    def note(_change: str, _pod: Object, _old: Object | None) -> None:
        found = cluster.informers("Pod").items("default")
        at_once.append(sum(not is_finished(each) or is_deleting(each) for each in found))

    cluster.informers("Pod").add_handler(note)
    await cluster.kube.delete("Pod", meta(old)["name"], "default")
    await cluster.pods(1, lambda pod: phase(pod) == "Running" and meta(pod)["uid"] != meta(old)["uid"])
    assert max(at_once) == 1
