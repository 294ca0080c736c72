"""What differs between an object and its manifest, and who did it."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.releases.drift import Change, Difference, completed, differences

DOCUMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d", "labels": {"a": "b"}},
    "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "one"}]}}},
}
HELMS = {
    "f:metadata": {"f:labels": {"f:a": {}}},
    "f:spec": {
        "f:replicas": {},
        "f:template": {"f:spec": {"f:containers": {'k:{"name":"c"}': {".": {}, "f:name": {}, "f:image": {}}}}},
    },
}


def applied() -> dict[str, Any]:
    return completed(DOCUMENT, "r", "ns", "ns")


def live(
    *, entries: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, **metadata: Any
) -> dict[str, Any]:
    obj = applied()
    obj["metadata"] = {
        **obj["metadata"],
        "uid": "u",
        "resourceVersion": "7",
        "generation": 2,
        **metadata,
        "managedFields": [{"manager": "helm", "fieldsV1": HELMS}]
        + [{"manager": name, "fieldsV1": fields} for name, fields in (entries or {}).items()],
    }
    obj["spec"] = {**obj["spec"], **(spec or {})}
    obj["status"] = {"replicas": 9}
    return obj


def found(obj: dict[str, Any]) -> list[Difference]:
    return differences("Deployment ns/d", obj, applied(), applied())


def test_an_object_as_helm_left_it_does_not_differ() -> None:
    assert found(live()) == []


def test_completing_a_document_adds_what_helm_adds() -> None:
    metadata = applied()["metadata"]
    assert metadata["namespace"] == "ns"
    assert metadata["labels"] == {"a": "b", "app.kubernetes.io/managed-by": "Helm"}
    assert metadata["annotations"] == {"meta.helm.sh/release-name": "r", "meta.helm.sh/release-namespace": "ns"}
    assert "namespace" not in completed(DOCUMENT, "r", "ns", None)["metadata"]


def test_a_field_changed_in_helms_name_is_changed() -> None:
    assert found(live(spec={"replicas": 3})) == [Difference(Change.CHANGED, "Deployment ns/d", "spec.replicas")]


def test_a_field_that_another_manager_owns_now_is_taken() -> None:
    obj = live(spec={"replicas": 3}, entries={"kubectl-edit": {"f:spec": {"f:replicas": {}}}})
    (difference,) = found(obj)
    assert difference == Difference(Change.TAKEN, "Deployment ns/d", "spec.replicas", "kubectl-edit")
    assert str(difference) == "Deployment ns/d: spec.replicas taken by kubectl-edit"


def test_a_field_within_a_keyed_list_is_found_with_its_owner() -> None:
    fields = {"f:spec": {"f:template": {"f:spec": {"f:containers": {'k:{"name":"c"}': {"f:image": {}}}}}}}
    spec = {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}
    (difference,) = found(live(spec=spec, entries={"kubectl-set": fields}))
    assert (difference.change, difference.manager) == (Change.TAKEN, "kubectl-set")
    assert difference.field == "spec.template.spec.containers[0].image"


def test_what_somebody_added_is_reported_with_its_manager() -> None:
    obj = live(labels={**applied()["metadata"]["labels"], "team": "x"}, entries={"kubectl-label": {}})
    obj["metadata"]["managedFields"][1]["fieldsV1"] = {"f:metadata": {"f:labels": {"f:team": {}}}}
    # the dry run keeps what it does not own
    same = applied()
    same["metadata"]["labels"]["team"] = "x"
    assert differences("Deployment ns/d", obj, same, applied()) == [
        Difference(Change.ADDED, "Deployment ns/d", "metadata.labels.team", "kubectl-label")
    ]


@pytest.mark.parametrize(
    ("manager", "fields", "subresource"),
    [
        ("kube-controller-manager", {"f:spec": {"f:paused": {}}}, ""),
        ("anybody", {"f:metadata": {"f:annotations": {"f:deployment.kubernetes.io/revision": {}}}}, ""),
        ("anybody", {"f:metadata": {"f:finalizers": {".": {}}}}, ""),
        ("anybody", {"f:status": {"f:replicas": {}}}, "status"),
        ("anybody", {"f:spec": {"f:gone": {}}}, ""),
        ("anybody", {"f:spec": {"f:replicas": {}}}, ""),
    ],
    ids=["the cluster", "a controller's annotation", "finalizers", "status", "no longer there", "same value as helm"],
)
def test_what_is_nobodys_change_is_not_reported(manager: str, fields: dict[str, Any], subresource: str) -> None:
    obj = live(spec={"paused": True}, finalizers=["x"])
    obj["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    obj["metadata"]["managedFields"].append({"manager": manager, "fieldsV1": fields, "subresource": subresource})
    same = {**applied(), "spec": obj["spec"], "metadata": {**obj["metadata"], "managedFields": []}}
    assert differences("Deployment ns/d", obj, same, applied()) == []


def test_values_are_never_shown() -> None:
    obj = live(spec={"replicas": "hunter2"})
    assert "hunter2" not in str(found(obj)[0])
