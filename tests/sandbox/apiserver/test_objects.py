"""What happens to objects over their life: defaults, versions, generations, deletion."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from tests.sandbox.apiserver.builders import DEPLOYMENTS, MAPS, PODS, binding, config_map, deployment, namespace, pod
from tests.sandbox.apiserver.client import JSON_PATCH, STRATEGIC, Api

pytestmark = pytest.mark.real_api


async def test_a_deployments_defaults(api: Api) -> None:
    spec = (await api.post(DEPLOYMENTS, deployment("d"))).body["spec"]
    template = spec["template"]["spec"]
    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}
    assert (template["restartPolicy"], template["terminationGracePeriodSeconds"]) == ("Always", 30)
    assert template["containers"][0] == {
        "name": "main",
        "image": "nginx:1.27",
        "imagePullPolicy": "IfNotPresent",
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    }


async def test_a_daemon_set_gets_its_rolling_update_and_status_integers(api: Api) -> None:
    body = {**deployment("d"), "kind": "DaemonSet"}
    reply = (await api.post("/apis/apps/v1/namespaces/default/daemonsets", body)).body
    assert reply["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    integers = ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady")
    assert reply["status"] == dict.fromkeys(integers, 0)


async def test_a_service_gets_an_address_and_protocols(api: Api) -> None:
    body = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}
    spec = (await api.post("/api/v1/namespaces/default/services", body)).body["spec"]
    assert spec["clusterIP"] == spec["clusterIPs"][0]
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("busybox", "Always"),
        ("busybox:latest", "Always"),
        ("busybox:1.36", "IfNotPresent"),
        ("registry.local:5000/busybox", "Always"),
        ("busybox@sha256:" + "0" * 64, "IfNotPresent"),
    ],
)
async def test_image_pull_policy(api: Api, image: str, policy: str) -> None:
    reply = await api.post(PODS, pod("p", containers=[{"name": "c", "image": image}]))
    assert reply.body["spec"]["containers"][0]["imagePullPolicy"] == policy


async def test_a_pod_is_completed_by_admission(api: Api) -> None:
    runtime: dict[str, Any] = {
        "metadata": {"name": "nvidia"},
        "handler": "nvidia",
        "overhead": {"podFixed": {"memory": "64Mi"}},
        "scheduling": {
            "nodeSelector": {"gpu": "yes"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
    }
    await api.post("/apis/node.k8s.io/v1/runtimeclasses", runtime)
    body = pod("p", runtimeClassName="nvidia", priorityClassName="system-node-critical")
    spec = (await api.post(PODS, body)).body["spec"]
    assert (spec["priority"], spec["preemptionPolicy"]) == (2000001000, "PreemptLowerPriority")
    assert (spec["overhead"], spec["nodeSelector"]) == ({"memory": "64Mi"}, {"gpu": "yes"})
    assert (spec["serviceAccountName"], spec["schedulerName"]) == ("default", "default-scheduler")
    assert [(item["key"], item.get("tolerationSeconds")) for item in spec["tolerations"]] == [
        ("nvidia.com/gpu", None),
        ("node.kubernetes.io/not-ready", 300),
        ("node.kubernetes.io/unreachable", 300),
    ]


async def test_quantities_come_back_in_canonical_form(api: Api) -> None:
    resources = {"limits": {"cpu": 0.5, "memory": "1024Mi", "nvidia.com/gpu": 1}}
    reply = await api.post(PODS, pod("p", containers=[{"name": "c", "image": "i:1", "resources": resources}]))
    limits = reply.body["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1"}


async def test_generate_name_adds_five_characters(api: Api) -> None:
    body = config_map("x")
    body["metadata"] = {"generateName": "run-"}
    name = (await api.post(MAPS, body)).body["metadata"]["name"]
    assert name.startswith("run-")
    assert len(name) == len("run-") + 5


async def test_a_patch_that_changes_nothing_keeps_the_resource_version(api: Api) -> None:
    created = (await api.post(MAPS, config_map("a", x="1"))).body
    assert (await api.patch(f"{MAPS}/a", {"data": {"x": "1"}})).body == created
    assert (await api.put(f"{MAPS}/a", created)).body == created


async def test_generation_counts_changes_of_the_spec_only(api: Api) -> None:
    path = f"{DEPLOYMENTS}/d"
    assert (await api.post(DEPLOYMENTS, deployment("d"))).body["metadata"]["generation"] == 1
    steps: list[tuple[str, dict[str, Any]]] = [
        ("/status", {"status": {"replicas": 1}}),
        ("", {"metadata": {"labels": {"a": "b"}}}),
        ("", {"status": {"replicas": 7}}),
        ("", {"spec": {"replicas": 2}}),
    ]
    generations = [(await api.patch(path + part, change)).body["metadata"]["generation"] for part, change in steps]
    assert generations == [1, 1, 1, 2]
    assert (await api.get(path)).body["status"]["replicas"] == 1


async def test_config_maps_have_no_generation(api: Api) -> None:
    assert "generation" not in (await api.post(MAPS, config_map("a"))).body["metadata"]


async def test_json_patch(api: Api) -> None:
    await api.post(MAPS, config_map("a", x="1"))
    change = [{"op": "test", "path": "/data/x", "value": "1"}, {"op": "add", "path": "/data/a~1b", "value": "2"}]
    assert (await api.patch(f"{MAPS}/a", [change[0]], JSON_PATCH)).code == 200
    reply = await api.patch(f"{MAPS}/a", change, JSON_PATCH)
    assert reply.code == 422  # '/' may not be in a key of a ConfigMap
    failed = await api.patch(f"{MAPS}/a", [{"op": "test", "path": "/data/x", "value": "2"}], JSON_PATCH)
    assert (failed.code, failed.reason) == (422, "Invalid")


async def test_dry_run_stores_nothing(api: Api) -> None:
    assert (await api.post(f"{MAPS}?dryRun=All", config_map("a"))).code == 201
    assert (await api.get(f"{MAPS}/a")).code == 404
    await api.post(MAPS, config_map("a"))
    assert (await api.call("DELETE", f"{MAPS}/a?dryRun=All")).code == 200
    assert (await api.get(f"{MAPS}/a")).code == 200


async def test_typed_lists_leave_out_the_kind_of_their_items(api: Api) -> None:
    await api.post(MAPS, config_map("a"))
    listed = (await api.get(MAPS)).body
    assert (listed["kind"], listed["apiVersion"]) == ("ConfigMapList", "v1")
    assert "kind" not in listed["items"][0]


async def test_metadata_only_lists(api: Api) -> None:
    await api.post(MAPS, config_map("a", big="x" * 1000))
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    listed = (await api.get(MAPS, Accept=accept)).body
    assert (listed["kind"], set(listed["items"][0])) == (
        "PartialObjectMetadataList",
        {"kind", "apiVersion", "metadata"},
    )


async def test_pages(api: Api) -> None:
    for name in "abc":
        await api.post(MAPS, config_map(name))
    first = (await api.get(f"{MAPS}?limit=2")).body
    rest = (await api.get(f"{MAPS}?limit=2&continue={first['metadata']['continue']}")).body
    names = [[item["metadata"]["name"] for item in page["items"]] for page in (first, rest)]
    assert (names, "continue" in rest["metadata"]) == ([["a", "b"], ["c"]], False)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("labelSelector=app=a", ["one"]),
        ("labelSelector=app in (a,b),tier!=x", ["one", "two"]),
        ("labelSelector=!app", ["three"]),
        ("labelSelector=already_checked!=True,app", ["one", "two"]),
        ("fieldSelector=metadata.name=two", ["two"]),
        ("fieldSelector=spec.nodeName=n1", ["one"]),
        ("fieldSelector=status.phase!=Pending", []),
    ],
)
async def test_selectors(api: Api, query: str, names: list[str]) -> None:
    for name, labels in (("one", {"app": "a"}), ("two", {"app": "b"}), ("three", None)):
        await api.post(PODS, pod(name, labels=labels))
    await api.post(f"{PODS}/one/binding", binding("one", "n1"))
    listed = (await api.get(f"{PODS}?{query}")).body
    assert sorted(item["metadata"]["name"] for item in listed["items"]) == sorted(names)


async def test_a_field_that_cannot_be_selected(api: Api) -> None:
    reply = await api.get(f"{PODS}?fieldSelector=spec.foo=x")
    assert (reply.code, reply.message) == (400, "field label not supported: spec.foo")


async def test_a_finalizer_delays_deletion(api: Api) -> None:
    body = config_map("a")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    await api.post(MAPS, body)
    deleted = await api.delete(f"{MAPS}/a")
    assert deleted.code == 200
    assert deleted.body["metadata"]["deletionTimestamp"]
    added = await api.patch(f"{MAPS}/a", {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}})
    assert added.message == (
        'ConfigMap "a" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is '
        'being deleted, found new finalizers []string{"example.com/more"}'
    )
    assert (await api.patch(f"{MAPS}/a", {"metadata": {"finalizers": None}})).code == 200
    assert (await api.get(f"{MAPS}/a")).code == 404


@pytest.mark.parametrize(("policy", "finalizers"), [("Foreground", ["foregroundDeletion"]), ("Orphan", ["orphan"])])
async def test_propagation(api: Api, policy: str, finalizers: list[str]) -> None:
    await api.post(DEPLOYMENTS, deployment("d"))
    reply = await api.delete(f"{DEPLOYMENTS}/d", {"propagationPolicy": policy})
    assert reply.body["metadata"]["finalizers"] == finalizers
    assert reply.body["metadata"]["generation"] == 2


async def test_background_deletion_is_immediate(api: Api) -> None:
    await api.post(DEPLOYMENTS, deployment("d"))
    reply = await api.call("DELETE", f"{DEPLOYMENTS}/d?propagationPolicy=Background")
    assert (reply.body["kind"], reply.body["status"]) == ("Status", "Success")
    assert (await api.get(f"{DEPLOYMENTS}/d")).code == 404


async def test_an_unscheduled_pod_goes_at_once(api: Api) -> None:
    await api.post(PODS, pod("p"))
    assert (await api.delete(f"{PODS}/p")).body["kind"] == "Pod"
    assert (await api.get(f"{PODS}/p")).code == 404


async def test_a_bound_pod_has_its_grace_period(api: Api) -> None:
    await api.post(PODS, pod("p"))
    await api.post(f"{PODS}/p/binding", binding("p", "n1"))
    started = dt.datetime.now(dt.UTC)
    metadata = (await api.delete(f"{PODS}/p")).body["metadata"]
    left = dt.datetime.fromisoformat(metadata["deletionTimestamp"]) - started
    assert metadata["deletionGracePeriodSeconds"] == 30
    assert dt.timedelta(seconds=28) < left <= dt.timedelta(seconds=31)
    shorter = (await api.delete(f"{PODS}/p", {"gracePeriodSeconds": 1})).body["metadata"]
    assert shorter["deletionGracePeriodSeconds"] == 1
    await api.delete(f"{PODS}/p", {"gracePeriodSeconds": 0})
    assert (await api.get(f"{PODS}/p")).code == 404


async def test_a_pod_is_bound_once(api: Api) -> None:
    await api.post(PODS, pod("p"))
    assert (await api.post(f"{PODS}/p/binding", binding("p", "n1"))).code == 201
    again = await api.post(f"{PODS}/p/binding", binding("p", "n2"))
    assert (again.code, again.reason) == (409, "Conflict")


async def test_a_namespace_stays_until_it_is_finalized(api: Api) -> None:
    await api.post("/api/v1/namespaces", namespace("n"))
    await api.delete("/api/v1/namespaces/n")
    body = (await api.get("/api/v1/namespaces/n")).body
    assert body["status"]["phase"] == "Terminating"
    assert (await api.put("/api/v1/namespaces/n/finalize", {**body, "spec": {"finalizers": []}})).code == 200
    assert (await api.get("/api/v1/namespaces/n")).code == 404


async def test_taints_are_replaced_as_a_whole(api: Api) -> None:
    await api.post(
        "/api/v1/nodes", {"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}
    )
    change = {"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}}
    reply = await api.patch("/api/v1/nodes/n", change, STRATEGIC)
    assert [item["key"] for item in reply.body["spec"]["taints"]] == ["b"]


async def test_deleting_a_selection(api: Api) -> None:
    for name in ("a", "b"):
        body = config_map(name)
        body["metadata"]["labels"] = {"pick": name}
        await api.post(MAPS, body)
    assert (await api.call("DELETE", f"{MAPS}?labelSelector=pick=a")).code == 200
    assert [item["metadata"]["name"] for item in (await api.get(MAPS)).body["items"]] == ["b"]
