"""What is wrong with a workload's spec, and with the status that a controller writes: words of a 1.36 server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.apiserver.builders import DEPLOYMENTS, PODS, deployment, pod
from tests.sandbox.apiserver.client import Api, Reply

pytestmark = pytest.mark.real_api

JOBS = "/apis/batch/v1/namespaces/default/jobs"
SETS = "/apis/apps/v1/namespaces/default/daemonsets"
STARTED, LATER, EARLIER = "2026-01-02T03:04:05Z", "2026-01-02T03:05:05Z", "2026-01-02T03:03:05Z"
BETWEEN = "must be between 1 and 2147483647, inclusive"


def daemon_set(name: str, **rolling: Any) -> dict[str, Any]:
    body = deployment(name)
    body["kind"] = "DaemonSet"
    body["spec"]["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
    return body


def job(name: str, **spec: Any) -> dict[str, Any]:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox:1.36"}]}}
    body = {"suspend": True, "template": template, **spec}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": body}


def condition(kind: str, status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status}


ENDED = {"startTime": STARTED, "completionTime": LATER}
COMPLETE = {**ENDED, "succeeded": 1, "conditions": [condition("SuccessCriteriaMet"), condition("Complete")]}
FAILED = {"startTime": STARTED, "failed": 1, "conditions": [condition("FailureTarget"), condition("Failed")]}


@pytest.mark.parametrize(
    ("rolling", "problem"),
    [
        ({"maxUnavailable": 0}, "maxUnavailable: Required value: cannot be 0 when maxSurge is 0"),
        ({"maxUnavailable": "0%", "maxSurge": 0}, "maxUnavailable: Required value: cannot be 0 when maxSurge is 0"),
        (
            {"maxUnavailable": 1, "maxSurge": 1},
            "maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
        ),
        ({"maxUnavailable": "150%"}, 'maxUnavailable: Invalid value: "150%": must not be greater than 100%'),
        ({"maxUnavailable": -1}, "maxUnavailable: Invalid value: -1: must be greater than or equal to 0"),
        ({"maxUnavailable": "one"}, 'maxUnavailable: Invalid value: "one": a valid percent string must be'),
    ],
)
async def test_the_pace_of_a_daemon_sets_update(api: Api, rolling: dict[str, Any], problem: str) -> None:
    reply = await api.post(SETS, daemon_set("d", **rolling))
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert f"spec.updateStrategy.rollingUpdate.{problem}" in reply.message


async def test_a_daemon_set_that_surges(api: Api) -> None:
    assert (await api.post(SETS, daemon_set("d", maxUnavailable=0, maxSurge="10%"))).code == 201


async def test_a_deployment_whose_update_cannot_move(api: Api) -> None:
    body = deployment("d")
    body["spec"]["strategy"] = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}
    reply = await api.post(DEPLOYMENTS, body)
    assert reply.code == 422
    assert reply.message == (
        'Deployment.apps "d" is invalid: spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: '
        "may not be 0 when `maxSurge` is 0"
    )


@pytest.mark.parametrize("seconds", [0, -1, 2_147_483_648])
async def test_a_pod_with_an_impossible_deadline(api: Api, seconds: int) -> None:
    reply = await api.post(PODS, pod("p", activeDeadlineSeconds=seconds))
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert reply.message == f'Pod "p" is invalid: spec.activeDeadlineSeconds: Invalid value: {seconds}: {BETWEEN}'


@pytest.mark.parametrize("seconds", [1, 2_147_483_647])
async def test_a_pod_with_a_deadline(api: Api, seconds: int) -> None:
    assert (await api.post(PODS, pod("p", activeDeadlineSeconds=seconds))).code == 201


async def test_a_pods_deadline_only_gets_shorter(api: Api) -> None:
    await api.post(PODS, pod("p", activeDeadlineSeconds=60))
    assert (await api.patch(f"{PODS}/p", {"spec": {"activeDeadlineSeconds": 30}})).code == 200
    longer = await api.patch(f"{PODS}/p", {"spec": {"activeDeadlineSeconds": 40}})
    assert longer.message == (
        'Pod "p" is invalid: spec.activeDeadlineSeconds: Invalid value: 40: '
        "must be less than or equal to previous value"
    )
    gone = await api.patch(f"{PODS}/p", {"spec": {"activeDeadlineSeconds": None}})
    assert gone.message == (
        'Pod "p" is invalid: spec.activeDeadlineSeconds: Invalid value: null: '
        "must not update from a positive integer to nil value"
    )


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (
            {"activeDeadlineSeconds": -1},
            "spec.activeDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0",
        ),
        ({"backoffLimit": -1}, "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0"),
        (
            {"ttlSecondsAfterFinished": -1},
            "spec.ttlSecondsAfterFinished: Invalid value: -1: must be greater than or equal to 0",
        ),
        ({"completionMode": "Indexed"}, "spec.completions: Required value: when completion mode is Indexed"),
    ],
)
async def test_a_jobs_numbers(api: Api, spec: dict[str, Any], problem: str) -> None:
    body = job("j", **({"parallelism": 1} | spec))
    reply = await api.post(JOBS, body)
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert problem in reply.message


async def test_a_job_whose_pods_would_be_restarted_always(api: Api) -> None:
    body = job("j")
    del body["spec"]["template"]["spec"]["restartPolicy"]
    reply = await api.post(JOBS, body)
    assert reply.message == (
        'Job.batch "j" is invalid: spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"'
    )


# ---- a Job's status


async def write_status(api: Api, *statuses: dict[str, Any]) -> Reply:
    """The reply to the last of the statuses, written one after the other."""
    await api.post(JOBS, job("j"))
    for status in statuses:
        found = (await api.get(f"{JOBS}/j")).body
        reply = await api.put(f"{JOBS}/j/status", {**found, "status": status})
    return reply


@pytest.mark.parametrize("status", [COMPLETE, FAILED])
async def test_a_job_that_ended_as_jobs_end(api: Api, status: dict[str, Any]) -> None:
    assert (await write_status(api, status)).code == 200


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (
            {**ENDED, "conditions": [condition("Complete")]},
            "conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true "
            "condition",
        ),
        (
            {"startTime": STARTED, "conditions": [condition("Failed")]},
            "conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            {key: value for key, value in COMPLETE.items() if key != "completionTime"},
            "completionTime: Required value: completionTime is required for Complete jobs",
        ),
        (
            {key: value for key, value in FAILED.items() if key != "startTime"},
            "startTime: Required value: startTime is required for finished job",
        ),
        ({**FAILED, "active": 1}, "active: Invalid value: 1: active>0 is invalid for finished job"),
        ({**FAILED, "terminating": 1}, "terminating: Invalid value: 1: terminating>0 is invalid for finished job"),
        (ENDED, 'completionTime: Invalid value: "2026-01-02T03:05:05Z": cannot set completionTime when there is no'),
        (
            {**COMPLETE, "completionTime": EARLIER},
            'completionTime: Invalid value: "2026-01-02T03:03:05Z": completionTime cannot be set before startTime',
        ),
        ({"active": 1, "ready": 2}, "ready: Invalid value: 2: cannot set more ready pods than active"),
        ({"active": -1}, "active: Invalid value: -1: must be greater than or equal to 0"),
        (
            {**FAILED, "uncountedTerminatedPods": {"failed": ["u"]}},
            'uncountedTerminatedPods: Invalid value: {"failed":["u"]}: '
            "uncountedTerminatedPods needs to be empty for finished job",
        ),
    ],
)
async def test_a_jobs_status_that_cannot_be(api: Api, status: dict[str, Any], problem: str) -> None:
    reply = await write_status(api, status)
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert f"status.{problem}" in reply.message


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ({**FAILED, "failed": 0}, "failed: Invalid value: 0: cannot decrease the failed counter"),
        (
            {"startTime": STARTED, "failed": 1, "conditions": [condition("FailureTarget")]},
            "conditions: Invalid value: cannot disable the terminal Failed=True condition",
        ),
    ],
)
async def test_a_jobs_end_is_final(api: Api, status: dict[str, Any], problem: str) -> None:
    reply = await write_status(api, FAILED, status)
    assert reply.code == 422
    assert f"status.{problem}" in reply.message
