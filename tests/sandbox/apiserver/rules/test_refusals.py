"""Golden replies: codes, reasons and messages of a real 1.36 control plane."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.apiserver import Running
from tests.sandbox.apiserver.builders import (
    DEPLOYMENTS,
    MAPS,
    PODS,
    config_map,
    deployment,
    gpu_pod,
    namespace,
    pod,
    quota,
)
from tests.sandbox.apiserver.client import APPLY, MERGE, STRATEGIC, Api

pytestmark = pytest.mark.real_api


async def test_runtime_class_missing(api: Api) -> None:
    reply = await api.post(PODS, pod("rc", runtimeClassName="nvidia"))
    assert (reply.code, reply.reason) == (403, "Forbidden")
    assert reply.message == 'pods "rc" is forbidden: pod rejected: RuntimeClass "nvidia" not found'


async def test_a_pod_still_to_be_named_is_reported_by_its_prefix(api: Api) -> None:
    body = pod("x", runtimeClassName="nvidia")
    body["metadata"] = {"generateName": "dsr-"}
    reply = await api.post(PODS, body)
    assert reply.message == 'pods "dsr-" is forbidden: pod rejected: RuntimeClass "nvidia" not found'


async def test_runtime_class_dropped_by_fault(api: Api, cluster: Running) -> None:
    runtime = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "nvidia"},
        "handler": "nvidia",
    }
    assert (await api.post("/apis/node.k8s.io/v1/runtimeclasses", runtime)).code == 201
    assert (await api.post(PODS, pod("a", runtimeClassName="nvidia"))).code == 201
    cluster.settings.faults.set("runtimeclass-dropped")
    assert (await api.post(PODS, pod("b", runtimeClassName="nvidia"))).code == 403


async def test_priority_class_missing(api: Api) -> None:
    reply = await api.post(PODS, pod("pc", priorityClassName="nope"))
    assert (reply.code, reply.reason) == (403, "Forbidden")
    assert reply.message == 'pods "pc" is forbidden: no PriorityClass with name nope was found'


async def test_quota_exceeded(api: Api) -> None:
    quotas = "/api/v1/namespaces/default/resourcequotas"
    body = quota("q")
    body["spec"]["hard"] = {"requests.nvidia.com/gpu": "1"}
    assert (await api.post(quotas, body)).code == 201
    assert (await api.post(PODS, gpu_pod("g0", "1", "1"))).code == 201, "it is not enforced before its status is filled"
    known = {"hard": body["spec"]["hard"], "used": {"requests.nvidia.com/gpu": "0"}}
    assert (await api.patch(f"{quotas}/q/status", {"status": known})).code == 200
    assert (await api.post(PODS, gpu_pod("g1", "1", "1"))).code == 201
    assert (await api.get(f"{quotas}/q")).body["status"]["used"] == {"requests.nvidia.com/gpu": "1"}
    reply = await api.post(PODS, gpu_pod("g2", "1", "1"))
    assert (reply.code, reply.reason) == (403, "Forbidden")
    assert reply.message == (
        'pods "g2" is forbidden: exceeded quota: q, requested: requests.nvidia.com/gpu=1, '
        "used: requests.nvidia.com/gpu=1, limited: requests.nvidia.com/gpu=1"
    )


async def test_a_quota_whose_usage_is_not_known(api: Api) -> None:
    quotas = "/api/v1/namespaces/default/resourcequotas"
    await api.post(quotas, quota("q", pods="1"))
    await api.patch(f"{quotas}/q/status", {"status": {"hard": {"pods": "1"}}})
    reply = await api.post(PODS, pod("p"))
    assert (reply.code, reply.reason) == (403, "Forbidden")
    assert reply.message == 'pods "p" is forbidden: status unknown for quota: q, resources: pods'


async def test_a_quota_is_not_charged_for_a_dry_run(api: Api) -> None:
    quotas = "/api/v1/namespaces/default/resourcequotas"
    await api.post(quotas, quota("q", pods="1"))
    await api.patch(f"{quotas}/q/status", {"status": {"hard": {"pods": "1"}, "used": {"pods": "0"}}})
    assert (await api.post(f"{PODS}?dryRun=All", pod("p"))).code == 201
    assert (await api.get(f"{quotas}/q")).body["status"]["used"] == {"pods": "0"}


async def test_a_new_node_is_tainted_until_a_controller_saw_it_ready(api: Api) -> None:
    taint = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
    own = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}
    for name, taints in (("n1", None), ("n2", [own]), ("n3", [taint])):
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {"taints": taints},
        }
        reply = await api.post("/api/v1/nodes", body)
        assert reply.body["spec"]["taints"] == [*(item for item in taints or [] if item != taint), taint]


async def test_a_quota_on_the_plain_gpu_name_is_not_enforced(api: Api) -> None:
    body = quota("q")
    body["spec"]["hard"] = {"nvidia.com/gpu": "1"}
    assert (await api.post("/api/v1/namespaces/default/resourcequotas", body)).code == 201
    for name in ("g1", "g2"):
        assert (await api.post(PODS, gpu_pod(name, "1", "1"))).code == 201


async def test_gpu_request_differs_from_limit(api: Api) -> None:
    reply = await api.post(PODS, gpu_pod("g", "2", "1"))
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert reply.message == (
        'Pod "g" is invalid: spec.containers[0].resources.requests: Invalid value: "2": '
        "must be equal to nvidia.com/gpu limit of 1"
    )


async def test_gpu_request_without_limit(api: Api) -> None:
    reply = await api.post(PODS, gpu_pod("g", "1", None))
    assert reply.code == 422
    assert reply.message.endswith(
        "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources"
    )


async def test_gpu_limit_alone_becomes_the_request(api: Api) -> None:
    reply = await api.post(PODS, gpu_pod("g", None, "1"))
    assert reply.body["spec"]["containers"][0]["resources"]["requests"] == {"nvidia.com/gpu": "1"}


async def test_namespace_absent(api: Api) -> None:
    path = "/api/v1/namespaces/nope/configmaps"
    reply = await api.post(path, config_map("a"))
    assert (reply.code, reply.reason, reply.message) == (404, "NotFound", 'namespaces "nope" not found')
    listed = await api.get(path)
    assert (listed.code, listed.body["items"]) == (200, [])


async def test_namespace_terminating(api: Api) -> None:
    await api.post("/api/v1/namespaces", namespace("bt2"))
    path = "/api/v1/namespaces/bt2/configmaps"
    await api.post(path, config_map("old", a="1"))
    assert (await api.delete("/api/v1/namespaces/bt2")).body["status"]["phase"] == "Terminating"
    reply = await api.post(path, config_map("new"))
    assert (reply.code, reply.reason) == (403, "Forbidden")
    assert reply.message == (
        'configmaps "new" is forbidden: unable to create new content in namespace bt2 because it is being terminated'
    )
    assert [cause["reason"] for cause in reply.causes] == ["NamespaceTerminating"]
    assert (await api.patch(f"{path}/old", {"data": {"a": "2"}})).code == 200


async def test_unknown_field_under_strict_validation(api: Api) -> None:
    body = pod("p")
    body["spec"]["foo"] = 1
    reply = await api.post(f"{PODS}?fieldValidation=Strict", body)
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert reply.message == (
        'Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.foo"'
    )


@pytest.mark.parametrize("kind", [MERGE, STRATEGIC])
async def test_unknown_field_in_a_strict_patch(api: Api, kind: str) -> None:
    await api.post(MAPS, config_map("a"))
    reply = await api.patch(f"{MAPS}/a?fieldValidation=Strict", {"dta": {"a": "b"}}, kind)
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert 'strict decoding error: unknown field "dta"' in reply.message


async def test_unknown_field_in_server_side_apply(api: Api) -> None:
    body = deployment("d")
    body["spec"]["foo"] = 1
    reply = await api.apply(f"{DEPLOYMENTS}/d", body)
    assert reply.code == 500
    assert reply.message == (
        "failed to create typed patch object (default/d; apps/v1, Kind=Deployment): "
        ".spec.foo: field not declared in schema"
    )


@pytest.mark.parametrize("query", ["", "?fieldValidation=Warn"])
async def test_unknown_field_is_a_warning_by_default(api: Api, query: str) -> None:
    reply = await api.post(MAPS + query, {**config_map("a"), "dta": {"x": "y"}})
    assert reply.code == 201
    assert reply.headers["Warning"] == '299 - "unknown field \\"dta\\""'
    assert "dta" not in reply.body


async def test_unknown_field_ignored_on_request(api: Api) -> None:
    reply = await api.post(f"{MAPS}?fieldValidation=Ignore", {**config_map("a"), "dta": {"x": "y"}})
    assert reply.code == 201
    assert "Warning" not in reply.headers


async def test_value_of_a_wrong_type(api: Api) -> None:
    body = deployment("d")
    body["spec"]["replicas"] = "two"
    reply = await api.post(DEPLOYMENTS, body)
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert reply.message == (
        'Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct '
        "field DeploymentSpec.spec.replicas of type int32"
    )


async def test_immutable_selector(api: Api) -> None:
    await api.post(DEPLOYMENTS, deployment("d"))
    changed = deployment("d")
    changed["spec"]["selector"]["matchLabels"]["v"] = "2"
    changed["spec"]["template"]["metadata"]["labels"]["v"] = "2"
    reply = await api.put(f"{DEPLOYMENTS}/d", changed)
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert reply.message == (
        'Deployment.apps "d" is invalid: spec.selector: Invalid value: {"matchLabels":{"app":"d","v":"2"}}: '
        "field is immutable"
    )


async def test_immutable_handler_of_a_runtime_class(api: Api) -> None:
    path = "/apis/node.k8s.io/v1/runtimeclasses"
    await api.post(
        path, {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "n"}, "handler": "a"}
    )
    reply = await api.patch(f"{path}/n", {"handler": "b"})
    assert reply.message == 'RuntimeClass.node.k8s.io "n" is invalid: handler: Invalid value: "b": field is immutable'


async def test_immutable_template_of_a_job(api: Api) -> None:
    path = "/apis/batch/v1/namespaces/default/jobs"
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox"}]}}
    body: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j"},
        "spec": {"template": template},
    }
    assert (await api.post(path, body)).code == 201
    change = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "busybox:2"}]}}}}
    reply = await api.patch(f"{path}/j", change, STRATEGIC)
    assert reply.code == 422
    assert reply.message.startswith('Job.batch "j" is invalid: spec.template: Invalid value: ')
    assert reply.message.endswith(": field is immutable")


async def test_a_pods_containers_are_immutable(api: Api) -> None:
    await api.post(PODS, pod("p"))
    reply = await api.patch(f"{PODS}/p", {"spec": {"nodeSelector": {"a": "b"}}})
    assert reply.code == 422
    assert reply.message.startswith(
        'Pod "p" is invalid: spec: Forbidden: pod updates may not change fields other than '
    )


async def test_stale_resource_version(api: Api) -> None:
    created = (await api.post(MAPS, config_map("x", a="1"))).body
    await api.patch(f"{MAPS}/x", {"data": {"a": "2"}})
    reply = await api.put(f"{MAPS}/x", created)
    assert (reply.code, reply.reason) == (409, "Conflict")
    assert reply.message == (
        'Operation cannot be fulfilled on configmaps "x": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )


async def test_exists(api: Api) -> None:
    await api.post(MAPS, config_map("x"))
    reply = await api.post(MAPS, config_map("x"))
    assert (reply.code, reply.reason, reply.message) == (409, "AlreadyExists", 'configmaps "x" already exists')


async def test_absent(api: Api) -> None:
    reply = await api.get(f"{DEPLOYMENTS}/x")
    assert (reply.code, reply.reason, reply.message) == (404, "NotFound", 'deployments.apps "x" not found')
    assert reply.body["details"] == {"name": "x", "group": "apps", "kind": "deployments"}


async def test_another_uid_in_the_preconditions(api: Api) -> None:
    await api.post(MAPS, config_map("x"))
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "other"}}
    uid = (await api.get(f"{MAPS}/x")).body["metadata"]["uid"]
    reply = await api.delete(f"{MAPS}/x", options)
    assert (reply.code, reply.reason) == (409, "Conflict")
    assert reply.message == (
        'Operation cannot be fulfilled on ConfigMap "x": the UID in the precondition (other) does not match the UID '
        f"in record ({uid}). The object might have been deleted and then recreated"
    )


async def test_another_uid_in_a_put(api: Api) -> None:
    found = (await api.post(MAPS, config_map("x"))).body
    uid = found["metadata"]["uid"]
    reply = await api.put(f"{MAPS}/x", {**config_map("x"), "metadata": {"name": "x", "uid": "other"}})
    assert (reply.code, reply.reason) == (409, "Conflict")
    assert reply.message == (
        'Operation cannot be fulfilled on configmaps "x": StorageError: invalid object, Code: 4, Key: '
        "/registry/configmaps/default/x, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in "
        f"precondition: other, UID in object meta: {uid}"
    )


async def test_another_uid_in_a_patch(api: Api) -> None:
    await api.post(MAPS, config_map("x"))
    reply = await api.patch(f"{MAPS}/x", {"metadata": {"uid": "other"}})
    assert reply.message == 'ConfigMap "x" is invalid: metadata.uid: Invalid value: "other": field is immutable'


async def test_a_lease_is_replaced_by_its_version_only(api: Api) -> None:
    leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "x"}, "spec": {}}
    await api.post(leases, body)
    reply = await api.put(f"{leases}/x", {**body, "spec": {"holderIdentity": "me"}})
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert reply.message == (
        'leases.coordination.k8s.io "x" is invalid: metadata.resourceVersion: Invalid value: 0: '
        "must be specified for an update"
    )


@pytest.mark.parametrize(
    ("version", "kind", "problem"),
    [
        ("v1", "Secret", "converting (v1.Secret) to (core.ConfigMap): unknown conversion"),
        ("v1", "Nothing", 'no kind "Nothing" is registered for version "v1" in scheme'),
        ("apps/v1", "ConfigMap", 'no kind "ConfigMap" is registered for version "apps/v1" in scheme'),
    ],
)
async def test_a_body_of_another_type(api: Api, version: str, kind: str, problem: str) -> None:
    reply = await api.post(MAPS, {"apiVersion": version, "kind": kind, "metadata": {"name": "x"}})
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert reply.message.startswith(f'{kind} in version "v1" cannot be handled as a ConfigMap: {problem}')


async def test_finalizers_that_exclude_each_other(api: Api) -> None:
    body = config_map("x")
    body["metadata"]["finalizers"] = ["orphan", "foregroundDeletion"]
    reply = await api.post(MAPS, body)
    assert reply.message.endswith("finalizer orphan and foregroundDeletion cannot be both set")


async def test_malformed_name(api: Api) -> None:
    reply = await api.post(MAPS, config_map("Bad_Name"))
    assert reply.code == 422
    assert reply.message.startswith(
        'ConfigMap "Bad_Name" is invalid: metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123'
    )


async def test_no_containers(api: Api) -> None:
    body = pod("p")
    body["spec"] = {"containers": []}
    reply = await api.post(PODS, body)
    assert reply.message == 'Pod "p" is invalid: spec.containers: Required value'


async def test_service_account_absent(api: Api) -> None:
    reply = await api.post(PODS, pod("p", serviceAccountName="nobody"))
    assert reply.code == 403
    assert reply.message == (
        'pods "p" is forbidden: error looking up service account default/nobody: serviceaccount "nobody" not found'
    )


async def test_secret_above_one_mebibyte(api: Api) -> None:
    path = "/api/v1/namespaces/default/secrets"
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "x" * 1_100_000}}
    reply = await api.post(path, body)
    assert reply.code == 422
    assert reply.message == 'Secret "s" is invalid: data: Too long: may not be more than 1048576 bytes'


async def test_body_above_three_mebibytes(api: Api) -> None:
    reply = await api.post(MAPS, config_map("a", a="x" * 3_200_000))
    assert (reply.code, reply.reason) == (413, "RequestEntityTooLarge")


async def test_system_namespaces_stay(api: Api) -> None:
    reply = await api.delete("/api/v1/namespaces/kube-system")
    assert reply.message == 'namespaces "kube-system" is forbidden: this namespace may not be deleted'


async def test_unknown_group_is_plain_text(api: Api) -> None:
    reply = await api.get("/apis/nope.example.com/v1/things")
    assert (reply.code, reply.text.strip()) == (404, "404 page not found")


async def test_unknown_resource_of_a_known_group(api: Api) -> None:
    reply = await api.get("/apis/apps/v1/things")
    assert (reply.code, reply.message) == (404, "the server could not find the requested resource")


async def test_apply_without_a_manager(api: Api) -> None:
    reply = await api.patch(f"{MAPS}/a", config_map("a"), APPLY)
    assert reply.code == 422
    assert "fieldManager: Required value: is required for apply patch" in reply.message


async def test_unsupported_patch_type(api: Api) -> None:
    await api.post(MAPS, config_map("a"))
    reply = await api.patch(f"{MAPS}/a", {}, "application/json")
    assert (reply.code, reply.reason) == (415, "UnsupportedMediaType")
