"""The oracle of 'safe beside others' (tests/e2e/ours.py): it lets pass what is ours and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.ours import RULES, Entry, Ours, foreign, node_keys

Json = dict[str, Any]
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "shared-clusters.md"
OURS = Ours("demo", {"shared-a10g"}, {"ip-10-0-0-5"})
PRINCIPAL = "arn:aws:iam::123456789012:user/airflow"
HELM = {"app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/instance": "nvidia-device-plugin"}
POOL = {"karpenter.sh/nodepool": "shared-a10g"}


def entry(verb: str, path: str, name: str, *, labels: Json | None = None, body: Any = None, **more: Any) -> Entry:
    """``path``: ``namespace/resource[/subresource]``; without a namespace it begins with a slash."""
    namespace, resource, *rest = path.split("/")
    facts = {"labels": labels or {}, **more.pop("facts", {})}
    reference = {"namespace": namespace, "resource": resource, "name": name, "subresource": "".join(rest)}
    raw = {
        "kind": "Event",
        "verb": verb,
        "user": {"username": more.pop("user", PRINCIPAL)},
        "userAgent": more.pop("agent", "gpu-fleet"),
        "objectRef": {key: value for key, value in reference.items() if value},
        "responseStatus": {"code": more.pop("code", 200)},
        "requestReceivedTimestamp": "2026-01-01T00:00:00.000000Z",
        "annotations": {"sandbox/object": json.dumps(facts), **more.pop("annotations", {})},
        "requestObject": body,
    }
    return Entry(raw)


ALLOWED = [
    entry("patch", "/namespaces", "gpu-fleet-system"),
    entry("create", "gpu-fleet-validation/pods", "probe-1"),
    entry("patch", "/runtimeclasses", "nvidia"),
    entry("create", "kube-system/secrets", "sh.helm.release.v1.karpenter.v3"),
    entry("patch", "kube-system/configmaps", "gpu-fleet-release-karpenter-crd"),
    entry("update", "nvidia-device-plugin/leases", "gpu-fleet-release-nvidia-device-plugin"),
    entry("patch", "nvidia-device-plugin/daemonsets", "nvidia-device-plugin", labels=HELM),
    entry("patch", "/customresourcedefinitions", "nodepools.karpenter.sh"),
    entry("patch", "/nodepools", "shared-a10g", labels={"gpu-fleet.io/cluster": "demo"}),
    entry("delete", "/nodeclaims", "shared-a10g-x", labels=POOL),
    entry("patch", "/nodes", "ip-10-0-0-5", labels=POOL, body={"metadata": {"labels": {"gpu-fleet.io/standing": "1"}}}),
    entry("patch", "/nodes", "ip-10-0-0-5", labels=POOL, body={"spec": {"unschedulable": True, "taints": []}}),
    entry("create", "team/pods/eviction", "job", facts={"node": "ip-10-0-0-5"}),
]

FOREIGN = [
    entry("patch", "/namespaces", "team-vision"),
    entry("delete", "/namespaces", "gpu-fleet-system"),
    entry("patch", "team-vision/configmaps", "settings"),
    entry("delete", "team-vision/secrets", "sh.helm.release.v1.web.v1"),
    # Named like a release of ours, in another namespace.
    entry("create", "team-vision/secrets", "sh.helm.release.v1.karpenter.v1"),
    entry("patch", "/runtimeclasses", "gvisor"),
    entry("patch", "/nodepools", "speech-gpu", labels={}),
    # Another cluster file's, so another deployment's.
    entry("delete", "/nodepools", "x", labels={"gpu-fleet.io/cluster": "other"}),
    entry("delete", "/nodeclaims", "speech-gpu-x", labels={"karpenter.sh/nodepool": "speech-gpu"}),
    entry("patch", "/nodes", "theirs", body={"spec": {"unschedulable": True}}),
    entry("patch", "/nodes", "ip-10-0-0-5", labels=POOL, body={"metadata": {"labels": {"example.com/team": "x"}}}),
    entry("patch", "/nodes", "ip-10-0-0-5", labels=POOL, body={"metadata": {"finalizers": None}}),
    entry("delete", "/nodes", "ip-10-0-0-5", labels=POOL),
    entry("create", "team/pods/eviction", "job", facts={"node": "theirs"}),
    entry("deletecollection", "team/pods", ""),
    entry("patch", "kube-system/daemonsets", "vision-device-plugin", labels={"app": "x"}),
    entry("patch", "/customresourcedefinitions", "foos.example.com"),
    entry("delete", "team/poddisruptionbudgets", "inference-front"),
]


@pytest.mark.parametrize("one", ALLOWED, ids=str)
def test_what_is_ours_is_let_pass(one: Entry) -> None:
    assert OURS.allows(one)


@pytest.mark.parametrize("one", FOREIGN, ids=str)
def test_what_is_somebody_elses_is_found(one: Entry) -> None:
    assert foreign([one], OURS) == [one]


def test_every_rule_lets_something_pass_and_is_in_the_guide() -> None:
    used = {OURS.allows(one) for one in ALLOWED}
    assert used == set(RULES)
    text = " ".join(GUIDE.read_text().split())
    assert [name for name in RULES if name not in text] == []


def test_writes_of_others_and_dry_runs_are_no_business_of_ours() -> None:
    path, name = "team-vision/configmaps", "settings"
    by_kubectl = entry("patch", path, name, user="kubernetes-admin", agent="kubectl/v1.35.2")
    by_controller = entry("patch", path, name, user="system:kube-controller-manager", agent="sandbox-controllers")
    dry = entry("patch", path, name, annotations={"sandbox/dry-run": "true"})
    assert foreign([by_kubectl, by_controller, dry], OURS) == []


def test_helm_and_an_unknown_client_with_our_token_are_us() -> None:
    by_helm = entry("patch", "team-vision/configmaps", "settings", agent="Helm/4.2.3", user="kubernetes-admin")
    by_token = entry("patch", "team-vision/configmaps", "settings", agent="python-requests/2")
    assert len(foreign([by_helm, by_token], OURS)) == 2


def test_attempt_that_was_refused_is_a_foreign_write_too() -> None:
    assert len(foreign([entry("delete", "team-vision/secrets", "registry", code=403)], OURS)) == 1


def test_what_a_patch_of_a_node_touches_is_told_by_key() -> None:
    body = {
        "metadata": {"resourceVersion": "7", "labels": {"a": "1"}, "annotations": {"b": None}, "finalizers": []},
        "spec": {"taints": []},
        "status": {},
    }
    assert node_keys(body) == ["label a", "annotation b", "metadata.finalizers", "spec.taints", "status"]
