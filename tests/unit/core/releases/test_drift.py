"""What differs between an object and its manifest, and who did it."""

from __future__ import annotations

import copy
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


# --- what is added inside list items ---------------------------------------------------------------------------------


def in_container(fields: dict[str, Any], name: str = "c") -> dict[str, Any]:
    return {"f:spec": {"f:template": {"f:spec": {"f:containers": {f'k:{{"name":"{name}"}}': fields}}}}}


def added(fields: dict[str, Any], *containers: dict[str, Any], document: dict[str, Any] | None = None) -> list[str]:
    """What is seen of a person's addition; the dry run in Helm's name keeps it, as the server does."""
    wanted = applied() if document is None else completed(document, "r", "ns", "ns")
    obj = live(spec={"template": {"spec": {"containers": list(containers)}}}, entries={"kubectl-edit": fields})
    same = {**wanted, "spec": obj["spec"]}
    items = differences("Deployment ns/d", obj, same, wanted)
    assert {item.change for item in items} <= {Change.ADDED}
    assert {item.manager for item in items} <= {"kubectl-edit"}
    return [item.field.removeprefix("spec.template.spec.") for item in items]


C = {"name": "c", "image": "one"}


@pytest.mark.parametrize(
    ("more", "fields", "seen"),
    [
        (
            {"env": [{"name": "A", "value": "x"}]},
            {"f:env": {".": {}, 'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}}}},
            ["containers[0].env[0]"],
        ),
        (
            {"resources": {"limits": {"cpu": "1"}}},
            {"f:resources": {"f:limits": {".": {}, "f:cpu": {}}}},
            ["containers[0].resources.limits.cpu"],
        ),
        (
            {"volumeMounts": [{"name": "v", "mountPath": "/host"}]},
            {"f:volumeMounts": {".": {}, 'k:{"mountPath":"/host"}': {".": {}, "f:mountPath": {}, "f:name": {}}}},
            ["containers[0].volumeMounts[0]"],
        ),
        (
            {"securityContext": {"privileged": True}},
            {"f:securityContext": {"f:privileged": {}}},
            ["containers[0].securityContext.privileged"],
        ),
        ({"command": ["sh"]}, {"f:command": {}}, ["containers[0].command"]),
        ({}, {".": {}, "f:name": {}, "f:image": {}}, []),
    ],
    ids=["env", "resources", "volumeMounts", "privileged", "an atomic list", "the manifest's own fields"],
)
def test_what_is_added_to_a_container_is_seen(more: dict[str, Any], fields: dict[str, Any], seen: list[str]) -> None:
    assert added(in_container(fields), {**C, **more}) == seen


def test_an_added_container_is_one_addition_and_moves_no_other() -> None:
    """It stands before the manifest's own one, so that indices would compare the wrong items."""
    fields = in_container({".": {}, "f:name": {}, "f:image": {}}, name="side")
    assert added(fields, {"name": "side", "image": "x"}, C) == ["containers[0]"]
    privileged = in_container({"f:securityContext": {"f:privileged": {}}})
    both = added(privileged, {"name": "side", "image": "x"}, {**C, "securityContext": {"privileged": True}})
    assert both == ["containers[1].securityContext.privileged"]


def test_a_port_whose_protocol_the_manifest_leaves_to_its_default_is_the_manifests() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["spec"]["template"]["spec"]["containers"] = [{**C, "ports": [{"containerPort": 80}]}]
    tcp, udp = ({"containerPort": 80, "protocol": protocol} for protocol in ("TCP", "UDP"))
    key = 'k:{{"containerPort":80,"protocol":"{}"}}'
    fields = {"f:ports": {key.format("TCP"): {".": {}}, key.format("UDP"): {".": {}}}}
    assert added(in_container(fields), {**C, "ports": [tcp, udp]}, document=document) == ["containers[0].ports[1]"]


def test_a_key_with_a_default_that_is_not_known_is_the_manifests_if_helm_owns_the_item() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["spec"]["rules"] = [{"name": "x"}]
    key = 'k:{"mode":"fast","name":"x"}'
    obj = live(
        spec={"rules": [{"name": "x", "mode": "fast", "limit": 3}]},
        entries={"kubectl-edit": {"f:spec": {"f:rules": {key: {"f:limit": {}, "f:mode": {}}}}}},
    )
    obj["metadata"]["managedFields"][0]["fieldsV1"] = {"f:spec": {"f:rules": {key: {".": {}, "f:name": {}}}}}
    wanted = completed(document, "r", "ns", "ns")
    items = differences("Deployment ns/d", obj, {**wanted, "spec": obj["spec"]}, wanted)
    assert [item.field for item in items] == ["spec.rules[0].limit", "spec.rules[0].mode"]


def test_a_value_added_to_a_set_is_seen() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["spec"]["names"] = ["a"]
    fields = {"f:spec": {"f:names": {'v:"a"': {}, 'v:"b"': {}}}}
    obj = live(spec={"names": ["b", "a"]}, entries={"kubectl-edit": fields})
    wanted = completed(document, "r", "ns", "ns")
    items = differences("Deployment ns/d", obj, {**wanted, "spec": obj["spec"]}, wanted)
    assert [item.field for item in items] == ["spec.names[0]"]


def test_the_ca_that_a_webhooks_server_writes_is_nobodys_change() -> None:
    hook = {"name": "h.example.com", "clientConfig": {"url": "https://x"}}
    document = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "w"},
        "webhooks": [hook],
    }
    wanted = completed(document, "r", "ns", None)
    filled = {**hook, "clientConfig": {"url": "https://x", "caBundle": "Q0E="}}
    fields = {"f:webhooks": {'k:{"name":"h.example.com"}': {"f:clientConfig": {"f:caBundle": {}}}}}
    obj = {**wanted, "webhooks": [filled]}
    obj["metadata"] = {**wanted["metadata"], "managedFields": [{"manager": "cainjector", "fieldsV1": fields}]}
    assert differences("w", obj, {**wanted, "webhooks": [filled]}, wanted) == []
