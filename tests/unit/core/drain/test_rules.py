from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.drain.rules import DrainRules, Fate, judge_pod
from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT

DEFAULT = DrainRules(daemon_sets=frozenset({("kube-system", "cni")}))


def owner(kind: str, name: str = "web") -> list[dict[str, Any]]:
    return [{"kind": kind, "name": name, "controller": True}]


def pod(name: str = "p", namespace: str = "team", phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    spec = {"nodeName": metadata.pop("node", "n1"), "volumes": metadata.pop("volumes", [])}
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", **metadata},
        "spec": spec,
        "status": {"phase": phase},
    }


CNI: dict[str, Any] = {"namespace": "kube-system", "ownerReferences": owner("DaemonSet", "cni")}
GONE: dict[str, Any] = {"namespace": "kube-system", "ownerReferences": owner("DaemonSet", "gone")}
EMPTY_DIR = [{"name": "x", "emptyDir": {}}]

#: situation -> pod, rules, fate, reason
CASES: dict[str, tuple[dict[str, Any], DrainRules, Fate, str]] = {
    "of a ReplicaSet": (pod(ownerReferences=owner("ReplicaSet")), DEFAULT, Fate.EVICT, "Evictable"),
    "of a Job": (pod(ownerReferences=owner("Job")), DEFAULT, Fate.EVICT, "Evictable"),
    "bare": (pod(), DEFAULT, Fate.REFUSE, "Unreplicated"),
    "bare, forced": (pod(), DrainRules(force=True), Fate.EVICT, "Unreplicated"),
    "bare but finished": (pod(phase="Succeeded"), DEFAULT, Fate.EVICT, "Evictable"),
    "bare and failed": (pod(phase="Failed"), DEFAULT, Fate.EVICT, "Evictable"),
    "owned but not controlled": (
        pod(ownerReferences=[{"kind": "ReplicaSet", "name": "x"}]),
        DEFAULT,
        Fate.REFUSE,
        "Unreplicated",
    ),
    "our placeholder": (pod(labels={LABEL_COMPONENT: "placeholder"}), DEFAULT, Fate.EVICT, "Evictable"),
    "of a DaemonSet": (pod(**CNI), DEFAULT, Fate.LEAVE, "DaemonSetManaged"),
    "of a DaemonSet that must not be ignored": (
        pod(**CNI),
        DrainRules(ignore_daemon_sets=False, daemon_sets=DEFAULT.daemon_sets),
        Fate.REFUSE,
        "DaemonSetManaged",
    ),
    "of a DaemonSet of that name elsewhere": (
        pod(ownerReferences=owner("DaemonSet", "cni")),
        DEFAULT,
        Fate.REFUSE,
        "DaemonSetGone",
    ),
    "of a DaemonSet that is gone": (pod(**GONE), DEFAULT, Fate.REFUSE, "DaemonSetGone"),
    "of a DaemonSet that is gone, forced": (pod(**GONE), DrainRules(force=True), Fate.EVICT, "DaemonSetGone"),
    "of a DaemonSet, finished": (pod(phase="Failed", **CNI), DEFAULT, Fate.EVICT, "Evictable"),
    "mirror": (pod(annotations={"kubernetes.io/config.mirror": "x"}), DEFAULT, Fate.LEAVE, "MirrorPod"),
    "with an emptyDir": (
        pod(ownerReferences=owner("ReplicaSet"), volumes=EMPTY_DIR),
        DEFAULT,
        Fate.EVICT,
        "LocalStorage",
    ),
    "with an emptyDir to be kept": (
        pod(ownerReferences=owner("ReplicaSet"), volumes=EMPTY_DIR),
        DrainRules(delete_empty_dir_data=False),
        Fate.REFUSE,
        "LocalStorage",
    ),
    "finished with an emptyDir to be kept": (
        pod(phase="Succeeded", volumes=EMPTY_DIR),
        DrainRules(delete_empty_dir_data=False),
        Fate.EVICT,
        "Evictable",
    ),
    "of a DaemonSet with an emptyDir to be kept": (
        pod(volumes=EMPTY_DIR, **CNI),
        DrainRules(delete_empty_dir_data=False, daemon_sets=DEFAULT.daemon_sets),
        Fate.LEAVE,
        "DaemonSetManaged",
    ),
    "terminating": (pod(deletionTimestamp="2026-01-01T00:00:00Z"), DEFAULT, Fate.WAIT, "Terminating"),
    "of a DaemonSet and terminating": (
        pod(deletionTimestamp="2026-01-01T00:00:00Z", **CNI),
        DEFAULT,
        Fate.WAIT,
        "Terminating",
    ),
}


@pytest.mark.parametrize("situation", CASES)
def test_a_pod_is_judged_as_kubectl_does(situation: str) -> None:
    subject, rules, fate, reason = CASES[situation]
    verdict = judge_pod(subject, rules)
    assert (verdict.fate, verdict.reason) == (fate, reason)
    assert verdict.message


@pytest.mark.parametrize(("subject", "rules", "fate", "reason"), CASES.values(), ids=CASES.keys())
def test_nothing_is_refused_on_a_node_that_ends_anyway(
    subject: dict[str, Any], rules: DrainRules, fate: Fate, reason: str
) -> None:
    verdict = judge_pod(subject, rules.of_a_lost_node())
    assert verdict.fate is not Fate.REFUSE
    if fate is not Fate.REFUSE:
        assert verdict.fate is fate
    if reason in ("DaemonSetManaged", "MirrorPod"):
        assert verdict.fate is Fate.LEAVE
