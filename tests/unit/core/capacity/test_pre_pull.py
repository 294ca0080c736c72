"""Images that nodes pull while they are being proven: the pods, the gate that waits for them, what is measured."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.capacity.pre_pull import go_seconds, measured, pre_pull_name, pre_pull_pod
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.spec import SpecErrors
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core.cluster_objects import NOW, POOL, node, stamp
from tests.unit.core.specs import demo_spec

IMAGE, OTHER = "nvcr.io/nvidia/pytorch:26.06-py3", "busybox:1.36"
N1, N2 = (f"ip-10-0-0-{i}.us-west-2.compute.internal" for i in (1, 2))


def pod(
    where: str = N1,
    image: str = IMAGE,
    *,
    pulled: bool = False,
    waiting: tuple[str, str] | None = None,
    age: float = 60,
) -> dict[str, Any]:
    found = pre_pull_pod(
        "demo", demo_spec().node_pools[0], where, image, lifetime_s=900, run="gpu_lifecycle.demo/m", run_label="r"
    )
    found["metadata"]["creationTimestamp"] = stamp(NOW - age)
    status: dict[str, Any] = {"name": "pull", "imageID": ""}
    if pulled:
        status |= {"imageID": f"{image}@sha256:1", "state": {"terminated": {"exitCode": 128, "reason": "StartError"}}}
    elif waiting is not None:
        status |= {"state": {"waiting": {"reason": waiting[0], "message": waiting[1]}}}
    else:
        status |= {"state": {"waiting": {"reason": "ContainerCreating"}}}
    found["status"] = {"containerStatuses": [status]}
    return found


def event(of: dict[str, Any], message: str, reason: str = "Pulled") -> dict[str, Any]:
    return {"involvedObject": {"name": of["metadata"]["name"]}, "reason": reason, "message": message}


def judge(
    *pods: dict[str, Any], nodes: tuple[str, ...] = (N1,), images: tuple[str, ...] = (IMAGE,), **more: Any
) -> Verdict:
    gate = gate_named("images_pulled")
    args = {"pool": POOL, "nodes": list(nodes), "images": list(images), "now": NOW, "started": NOW - 500}
    there = more.pop("there", nodes)
    snapshot = {query.key: [] for query in gate.queries(args)} | {"pods": list(pods), "nodes": [node(n) for n in there]}
    return gate.judge(snapshot | more, args)


def test_a_pod_runs_nothing_of_the_image_and_holds_nothing() -> None:
    found = pod()
    spec, (container,) = found["spec"], found["spec"]["containers"]
    assert container["command"] == ["/gpu-fleet/pull-only"]
    assert "nvidia.com/gpu" not in str(container["resources"])
    assert spec["nodeSelector"] == {"kubernetes.io/hostname": N1}
    assert (spec["restartPolicy"], spec["activeDeadlineSeconds"]) == ("Never", 900)
    assert spec["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "gpu-fleet.io/unproven", "operator": "Exists", "effect": "NoSchedule"},
    ]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]


def test_names_are_the_same_for_every_try_and_valid() -> None:
    assert pre_pull_name(POOL, N1, IMAGE) == pre_pull_name(POOL, N1, IMAGE)
    assert len({pre_pull_name(POOL, n, i) for n in (N1, N2) for i in (IMAGE, OTHER)}) == 4
    assert len(pre_pull_name("a" * 63, N1, IMAGE)) <= 63


def test_every_node_has_every_image() -> None:
    pods = [pod(n, i, pulled=True) for n in (N1, N2) for i in (IMAGE, OTHER)]
    events = [
        event(
            pods[0], f'Successfully pulled image "{IMAGE}" in 3m49.2s (4m1s including waiting). Image size: 1 bytes.'
        ),
        event(pods[1], f'Container image "{OTHER}" already present on machine'),
    ]
    verdict = judge(*pods, nodes=(N1, N2), images=(IMAGE, OTHER), events=events)
    assert verdict.ready
    assert verdict.data is not None
    assert verdict.data["pulls"] == {N1: {IMAGE: 229.2, OTHER: 0.0}, N2: {IMAGE: None, OTHER: None}}


@pytest.mark.parametrize(
    ("pods", "phase", "reason", "words"),
    [
        ((), Phase.PROGRESSING, "ImagesPulling", f"0 of 1 pulls are done; node {N1} pulls"),
        ((pod(),), Phase.PROGRESSING, "ImagesPulling", "0 of 1"),
        ((pod(waiting=("ErrImagePull", "no such host"), age=60),), Phase.PROGRESSING, "ImagesPulling", "no such host"),
        ((pod(waiting=("ImagePullBackOff", "not found"), age=400),), Phase.FAILED, "PrePullFailed", "not found"),
        ((pod(waiting=("RunContainerError", "no such file")),), Phase.PROGRESSING, "ImagesPulling", "0 of 1"),
        ((pod(pulled=True),), Phase.READY, "ImagesPulled", "1 node(s)"),
    ],
)
def test_what_is_waited_for_and_why(pods: Any, phase: Phase, reason: str, words: str) -> None:
    verdict = judge(*pods)
    assert (verdict.phase, verdict.reason) == (phase, reason)
    assert words in verdict.message


def test_a_node_that_is_gone_is_not_waited_for() -> None:
    assert judge(pod(pulled=True), nodes=(N1, N2), there=(N1,)).ready
    assert judge(nodes=(N1,), there=()).phase is Phase.PROGRESSING


def test_another_image_on_the_node_does_not_count() -> None:
    assert not judge(pod(image=OTHER, pulled=True)).ready


@pytest.mark.parametrize(
    ("text", "seconds"), [("38.1s", 38.1), ("3m49.5s", 229.5), ("1h0m1s", 3601.0), ("250ms", 0.25), ("", 0.0)]
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert go_seconds(text) == pytest.approx(seconds)


def test_what_is_not_pulled_is_not_measured() -> None:
    assert measured([pod()], []) == {}


# --- the field -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images", [[IMAGE], [f"busybox@sha256:{'0' * 64}"], ["registry.local:5000/team/image:v1", OTHER]]
)
def test_images_need_a_tag_or_a_digest(images: list[str]) -> None:
    assert demo_spec(nodePools__0__capacity__prePull=images).node_pools[0].capacity.pre_pull == tuple(images)


@pytest.mark.parametrize(
    ("images", "words"),
    [(["busybox"], "with its tag or digest"), ([""], "is not an image"), (["a b:1"], "is not an image"),
     ([OTHER, OTHER], "twice"), ([f"busybox:{i}" for i in range(11)], "11 entries")],
)  # fmt: skip
def test_what_is_no_image_is_refused(images: list[str], words: str) -> None:
    with pytest.raises(SpecErrors, match=words) as caught:
        demo_spec(nodePools__0__capacity__prePull=images)
    assert caught.value.field.startswith("nodePools[0].capacity.prePull")
