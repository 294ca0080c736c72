"""A container that a webhook adds to the device plugin's pods and that never gets ready: named, nobody else's fault."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.device_plugin.causes import no_gpus, plugin_blamed
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.kubernetes.injected import INJECTED, injected_trouble
from gpu_fleet.core.reasons.catalogue import NODE_CAUSES
from gpu_fleet.core.reports.remedies import UNKNOWN, remedy
from gpu_fleet.core.validation.facts import Looked, Promise, node_facts
from gpu_fleet.core.validation.node import look_at_node
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core.cluster_objects import NOW, POOL, claim, node, plugin_pod, stamp
from tests.unit.core.probe_objects import NODE
from tests.unit.core.specs import demo_spec
from tests.unit.core.validation.test_node import LABELS

Object = dict[str, Any]
MAIN, CONFIG, INIT = "nvidia-device-plugin-ctr", "nvidia-device-plugin-sidecar", "nvidia-device-plugin-init"
RUNNING = {"state": {"running": {"startedAt": stamp(NOW - 500)}}, "ready": True}
UNREADY = {"state": {"running": {"startedAt": stamp(NOW - 500)}}, "ready": False}
ENDED = {"state": {"terminated": {"exitCode": 0}}, "ready": True}
NOT_BEGUN = {"state": {"waiting": {"reason": "PodInitializing"}}, "ready": False}


def waits(reason: str, message: str = "the kubelet's words") -> Object:
    return {"state": {"waiting": {"reason": reason, "message": message}}, "ready": False}


def pod(containers: dict[str, Object], inits: dict[str, Object] | None = None, *, age: float = 550.0) -> Object:
    """A pod of the plugin's DaemonSet, not Ready; init containers in their order, statuses by name as the kubelet's."""
    found = plugin_pod(NODE, ready=False, age=age)
    inits = {INIT: ENDED} if inits is None else inits
    found["spec"] |= {
        "containers": [{"name": name} for name in containers],
        "initContainers": [{"name": name} for name in inits],
    }
    found["status"] |= {
        "containerStatuses": [{"name": name, "restartCount": 0, **containers[name]} for name in sorted(containers)],
        "initContainerStatuses": [{"name": name, "restartCount": 0, **inits[name]} for name in sorted(inits)],
    }
    return found


SERVES = {CONFIG: RUNNING, MAIN: RUNNING}
BEGINS = {CONFIG: NOT_BEGUN, MAIN: NOT_BEGUN, "agent": NOT_BEGUN}
CANNOT_PULL = pod({**SERVES, "agent": waits("ImagePullBackOff")})
CANNOT_BEGIN = pod(BEGINS, {"agent-init": waits("CrashLoopBackOff"), INIT: NOT_BEGUN})


@pytest.mark.parametrize(
    ("found", "container", "words", "blocks"),
    [
        (CANNOT_PULL, "agent", "ImagePullBackOff: the kubelet's words", False),
        (pod({**SERVES, "agent": UNREADY}), "agent", "it runs and is not ready", False),
        (pod({**SERVES, "agent": {"state": {"terminated": {"exitCode": 3}}}}), "agent", "exit code 3", False),
        (pod({**SERVES, "agent": {"state": {"terminated": {"exitCode": 0}}}}), "agent", "exit code 0", False),
        (CANNOT_BEGIN, "agent-init", "CrashLoopBackOff", True),
        (pod(BEGINS, {"zz": waits("ImagePullBackOff"), "agent-init": NOT_BEGUN, INIT: NOT_BEGUN}), "zz", "Pull", True),
        # A sidecar of Kubernetes' own kind: it runs on, beside the plugin.
        (pod(SERVES, {"mesh": UNREADY, INIT: ENDED}), "mesh", "is not ready", False),
    ],
)  # fmt: skip
def test_what_was_added_is_named(found: Object, container: str, words: str, blocks: bool) -> None:
    trouble = injected_trouble(found)
    assert trouble is not None
    assert (trouble.container, trouble.blocks) == (container, blocks)
    assert words in trouble.why
    assert f"container {container} of pod nvidia-device-plugin/nvidia-device-plugin-x7k2p" in str(trouble)


@pytest.mark.parametrize(
    "found",
    [
        pod({CONFIG: RUNNING, MAIN: waits("CrashLoopBackOff"), "agent": waits("ImagePullBackOff")}),
        pod({CONFIG: waits("CrashLoopBackOff"), MAIN: RUNNING, "agent": UNREADY}),
        pod({CONFIG: RUNNING, MAIN: {"state": {"terminated": {"exitCode": 0}}}, "agent": UNREADY}),
        pod(BEGINS, {"agent-init": ENDED, INIT: waits("CrashLoopBackOff")}),
        pod(BEGINS, {INIT: {"state": {"running": {}}, "ready": False}, "agent-init": NOT_BEGUN}),
        pod({MAIN: waits("ContainerCreating"), "agent": waits("ContainerCreating")}, {}),
        pod({"somebody-elses": RUNNING, "agent": waits("ImagePullBackOff")}, {}),
    ],
    ids=["plugin crashes", "manager crashes", "plugin ended", "init crashes", "init runs", "starts", "no chart's"],
)  # fmt: skip
def test_a_trouble_of_the_plugins_own_is_never_put_on_what_was_added(found: Object) -> None:
    assert injected_trouble(found) is None


def test_a_ready_pod_has_no_trouble() -> None:
    found = pod({**SERVES, "agent": RUNNING})
    found["status"]["conditions"][0]["status"] = "True"
    assert injected_trouble(found) is None


def checked(gpus: int | None, *pods: Object, **changes: Any) -> Any:
    spec = demo_spec(**changes)
    there = node(NODE, gpus=gpus)
    there["metadata"]["labels"] |= LABELS
    there["status"]["capacity"] = {} if gpus is None else {"nvidia.com/gpu": str(gpus)}
    facts = node_facts(NODE, there, pods=pods, runtime_class=True, claims=[claim(node_name=NODE, since=600.0)])
    checks = look_at_node(Looked(facts, Promise.of(spec, spec.node_pools[0]), 1, 4))
    return next(check for check in checks if not check.holds)


@pytest.mark.parametrize(("gpus", "found"), [(4, CANNOT_PULL), (None, CANNOT_BEGIN)], ids=["serves", "cannot begin"])
def test_validation_blames_neither_the_plugin_nor_the_node(gpus: int | None, found: Object) -> None:
    check = checked(gpus, found)
    assert (check.name, check.reason) == ("plugin", INJECTED)
    assert "agent" in check.message
    assert INJECTED not in NODE_CAUSES
    assert remedy(INJECTED) != UNKNOWN


def test_a_plugin_that_runs_and_offers_nothing_is_blamed_whatever_was_added() -> None:
    assert checked(None, CANNOT_PULL).reason == "DevicePluginNotRegistered"


def test_validation_does_not_blame_the_mps_daemon_either() -> None:
    daemon = pod({"mps-control-daemon-ctr": RUNNING, "agent": waits("ImagePullBackOff")}, {})
    daemon["metadata"]["ownerReferences"][0]["name"] = "nvidia-device-plugin-mps-control-daemon"
    spec = demo_spec(nodePools__0__sharing={"mode": "mps", "replicas": 4})
    there = node(NODE, gpus=4)
    there["metadata"]["labels"] |= Promise.of(spec, spec.node_pools[0]).labels
    facts = node_facts(NODE, there, pods=[plugin_pod(NODE), daemon], runtime_class=True)
    checks = look_at_node(Looked(facts, Promise.of(spec, spec.node_pools[0]), 1, 4))
    assert [(check.name, check.reason) for check in checks if check.reason == INJECTED] == [("mpsDaemon", INJECTED)]


def capacity(found: Object, *, ready_for: float = 600.0) -> Verdict:
    gate = gate_named("pool_capacity")
    args = {"pool": POOL, "wanted": 1, "physical": 1, "replicas": 4, "now": NOW, "started": NOW - 100}
    snapshot: dict[str, list[Any]] = {query.key: [] for query in gate.queries(args)}
    there = node(NODE, gpus=None, ready_for=ready_for, initialized=False)
    return gate.judge(snapshot | {"nodes": [there], "plugin_pods": [found]}, args)


def test_capacity_names_what_keeps_the_plugin_from_beginning_and_blames_no_release() -> None:
    verdict = capacity(CANNOT_BEGIN)
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, INJECTED)
    assert "agent-init" in verdict.message
    assert not plugin_blamed(verdict.reason)


def test_capacity_has_patience_with_what_was_just_added() -> None:
    young = pod(BEGINS, {"agent-init": waits("CrashLoopBackOff"), INIT: NOT_BEGUN}, age=5.0)
    verdict = capacity(young, ready_for=5.0)
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, INJECTED)


@pytest.mark.parametrize(
    ("runs_for", "policy", "phase"),
    [(1.0, "Always", Phase.PROGRESSING), (400.0, "Always", Phase.FAILED), (400.0, "", Phase.PROGRESSING)],
    ids=["a sidecar that has just started", "a sidecar that never gets ready", "an init container that works"],
)
def test_capacity_has_patience_with_what_runs(runs_for: float, policy: str, phase: Phase) -> None:
    """However old the pod is: its image may have taken long to pull."""
    runs = {"state": {"running": {"startedAt": stamp(NOW - runs_for)}}, "ready": False}
    found = pod(BEGINS, {"agent-init": runs, INIT: NOT_BEGUN})
    found["spec"]["initContainers"][0]["restartPolicy"] = policy
    verdict = capacity(found)
    assert (verdict.phase, verdict.reason) == (phase, INJECTED)


def test_a_plugin_that_runs_and_registers_nothing_fails_capacity_whatever_was_added() -> None:
    verdict = no_gpus(
        *(capacity_node(), [CANNOT_PULL], []), now=NOW, started=NOW - 900, patience_s=300.0, daemon_set=""
    )
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "DevicePluginNotRegistering")


def capacity_node() -> Any:
    from gpu_fleet.core.kubernetes.objects import PoolNode

    return PoolNode.of(node(NODE, gpus=None))


def proof(*pods: Object, **args: Any) -> Verdict:
    gate = gate_named("device_plugin_proven")
    namespace, name = "nvidia-device-plugin", "nvidia-device-plugin"
    owned = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": "uid-plugin", "controller": True}
    meta = {"name": name, "namespace": namespace, "uid": "uid-plugin", "generation": 1}
    status = {"observedGeneration": 1, "desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 0}
    daemon_set = {"kind": "DaemonSet", "metadata": meta, "spec": {}, "status": status}
    history = {
        "kind": "ControllerRevision",
        "revision": 1,
        "metadata": {
            "name": "r",
            "namespace": namespace,
            "labels": {"controller-revision-hash": "new"},
            "ownerReferences": [owned],
        },
    }
    for each in pods:
        each["metadata"] |= {"labels": {"controller-revision-hash": "new"}, "ownerReferences": [owned]}
    named = {
        "release": name,
        "namespace": namespace,
        "workloads": [f"DaemonSet/{namespace}/{name}"],
        "pools": {POOL: {"physical": 1, "replicas": 4}},
        "now": NOW,
        "started": NOW - 100,
        **args,
    }
    snapshot: dict[str, list[Any]] = {query.key: [] for query in gate.queries(named)}
    snapshot |= {f"daemonsets/{namespace}": [daemon_set], f"controllerrevisions/{namespace}": [history]}
    snapshot |= {f"pods/{namespace}": list(pods), "nodes": [node(NODE)]}
    return gate.judge(snapshot, named)


def test_the_proof_fails_for_what_was_added_and_a_roll_back_is_not_considered() -> None:
    found = pod({**SERVES, "agent": waits("ImagePullBackOff")})
    verdict = proof(found)
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, INJECTED)
    assert "container agent of pod" in verdict.message
    # What remediation asks: whether the unproven revision is what failed.
    considered = proof(found, allow_unproven=True)
    assert (considered.phase, considered.reason) == (Phase.READY, INJECTED)
    # And what it asks after a rollback for another cause: old content is no better there.
    assert proof(found, allow_unproven=True, every_node=True).ready


def test_the_proof_waits_for_what_was_added_while_it_may_get_ready() -> None:
    verdict = proof(pod({**SERVES, "agent": waits("ContainerCreating")}))
    assert (verdict.phase, verdict.reason) == (Phase.PROGRESSING, "PluginStarting")


def test_the_proof_still_fails_for_the_plugin_itself() -> None:
    verdict = proof(pod({CONFIG: RUNNING, MAIN: waits("CrashLoopBackOff"), "agent": waits("ImagePullBackOff")}))
    assert verdict.phase is Phase.FAILED
    assert verdict.reason != INJECTED
