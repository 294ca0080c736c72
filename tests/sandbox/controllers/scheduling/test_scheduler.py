from __future__ import annotations

from sandbox.controllers.objects import condition, meta, phase
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World


def _verdict(message: str):  # type: ignore[no-untyped-def]
    return lambda pod: (condition(pod, "PodScheduled") or {}).get("message") == message


async def test_pod_is_bound_and_told_so(cluster: World) -> None:
    await cluster.create(builders.node(), builders.pod())
    pod = await cluster.object("Pod", "p", "default", lambda pod: phase(pod) == "Running")
    assert pod["spec"]["nodeName"] == "n1"
    assert (condition(pod, "PodScheduled") or {})["status"] == "True"
    event = await cluster.event("Scheduled")
    assert event["message"] == "Successfully assigned default/p to n1"
    assert event["source"]["component"] == "default-scheduler"


async def test_no_nodes(cluster: World) -> None:
    await cluster.create(builders.pod())
    await cluster.object("Pod", "p", "default", _verdict("no nodes available to schedule pods"))


async def test_missing_gpus_are_named_and_their_arrival_binds_the_pod(cluster: World) -> None:
    await cluster.create(builders.node("n1"), builders.node("n2"), builders.pod(gpus=1))
    text = (
        "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. "
        "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    )
    pod = await cluster.object("Pod", "p", "default", _verdict(text))
    assert (condition(pod, "PodScheduled") or {})["reason"] == "Unschedulable"
    event = await cluster.event("FailedScheduling")
    assert (event["type"], event["message"]) == ("Warning", text)
    await cluster.kube.patch_status("Node", "n2", {"allocatable": {"nvidia.com/gpu": "1"}})
    pod = await cluster.object("Pod", "p", "default", lambda pod: phase(pod) == "Running")
    assert pod["spec"]["nodeName"] == "n2"


async def test_several_reasons_are_counted(cluster: World) -> None:
    taint = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}
    await cluster.create(
        builders.node("n1", taints=[taint]), builders.node("n2"), builders.pod(gpus=1, nodeSelector={"a": "b"})
    )
    await cluster.object(
        "Pod",
        "p",
        "default",
        _verdict(
            "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, "
            "1 node(s) had untolerated taint {nvidia.com/gpu: true}. "
            "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
        ),
    )


async def test_the_pod_too_many_stays_pending_until_one_leaves(cluster: World) -> None:
    await cluster.create(builders.node(gpus=4), *(builders.pod(f"p{index}", gpus=1) for index in range(5)))
    await cluster.pods(4, lambda pod: phase(pod) == "Running")
    (left,) = await cluster.pods(1, lambda pod: condition(pod, "PodScheduled") and not pod["spec"].get("nodeName"))
    message = (condition(left, "PodScheduled") or {})["message"]
    assert message == (
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. "
        "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    )
    running = next(pod for pod in await cluster.kube.list("Pod", "default") if phase(pod) == "Running")
    await cluster.kube.delete("Pod", meta(running)["name"], "default")
    await cluster.object("Pod", meta(left)["name"], "default", lambda pod: phase(pod) == "Running")


async def test_a_more_important_pod_displaces_a_placeholder(cluster: World) -> None:
    low = builders.plain("PriorityClass", "placeholder", None, "scheduling.k8s.io/v1", value=-10)
    await cluster.create(low, builders.node(gpus=1), builders.pod("hold", gpus=1, priorityClassName="placeholder"))
    await cluster.object("Pod", "hold", "default", lambda pod: phase(pod) == "Running")
    await cluster.create(builders.pod("probe", gpus=1))
    probe = await cluster.object("Pod", "probe", "default", lambda pod: phase(pod) == "Running")
    assert probe["spec"]["nodeName"] == "n1"
    await cluster.gone("Pod", "hold", "default")
    event = await cluster.event("Preempted")
    assert event["message"] == f"Preempted by pod {meta(probe)['uid']} on node n1"
    assert event["involvedObject"]["name"] == "hold"


async def test_each_of_several_pods_displaces_its_own_placeholder(cluster: World) -> None:
    low = builders.plain("PriorityClass", "placeholder", None, "scheduling.k8s.io/v1", value=-10)
    cluster.stopping = 0.05
    nodes = [builders.node(f"n{index}", gpus=1) for index in range(3)]
    holders = [builders.pod(f"hold{index}", gpus=1, priorityClassName="placeholder") for index in range(3)]
    await cluster.create(low, *nodes, *holders)
    await cluster.pods(3, lambda pod: phase(pod) == "Running")
    await cluster.create(*(builders.pod(f"probe{index}", gpus=1) for index in range(2)))
    await cluster.pods(2, lambda pod: phase(pod) == "Running" and meta(pod)["name"].startswith("probe"))
    await cluster.pods(1, lambda pod: meta(pod)["name"].startswith("hold"))


async def test_a_cordoned_node_takes_pods_again_after_uncordon(cluster: World) -> None:
    await cluster.create(builders.node(unschedulable=True))
    await cluster.object("Node", "n1", None, lambda node: node["spec"].get("taints"))
    await cluster.create(builders.pod())
    text = "0/1 nodes are available: 1 node(s) were unschedulable."
    await cluster.object(
        "Pod",
        "p",
        "default",
        lambda pod: (condition(pod, "PodScheduled") or {}).get("message", "").startswith(text),
    )
    await cluster.patch("Node", "n1", {"spec": {"unschedulable": None}})
    await cluster.object("Pod", "p", "default", lambda pod: phase(pod) == "Running")
    node = await cluster.object("Node", "n1", None, lambda node: not node["spec"].get("taints"))
    assert not node["spec"].get("unschedulable")
