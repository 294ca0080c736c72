"""The real kubectl."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.sandbox.apiserver.builders import (
    BUDGETS,
    DEPLOYMENTS,
    MAPS,
    PODS,
    binding,
    budget,
    config_map,
    deployment,
    pod,
)
from tests.sandbox.apiserver.client import Api
from tests.sandbox.apiserver.conftest import Cli


async def test_apply_diff_and_prune_of_fields(kubectl: Cli, api: Api) -> None:
    await kubectl("apply", "-f", "-", stdin=json.dumps(config_map("a", x="1", y="1")))
    changed = json.dumps(config_map("a", x="2"))
    assert '+  x: "2"' in (await kubectl("diff", "-f", "-", stdin=changed, fails=True)).out
    await kubectl("apply", "-f", "-", stdin=changed)
    assert (await api.get(f"{MAPS}/a")).body["data"] == {"x": "2"}
    await kubectl("diff", "-f", "-", stdin=changed)


async def test_apply_of_an_unknown_field(kubectl: Cli) -> None:
    body = deployment("d")
    body["spec"]["foo"] = 1
    result = await kubectl("apply", "-f", "-", stdin=json.dumps(body), fails=True)
    assert 'strict decoding error: unknown field "spec.foo"' in result.err


async def test_server_side_apply_conflict(kubectl: Cli) -> None:
    await kubectl("apply", "--server-side", "--field-manager=one", "-f", "-", stdin=json.dumps(config_map("a", x="1")))
    conflict = json.dumps(config_map("a", x="2"))
    arguments = ("apply", "--server-side", "--field-manager=two", "-f", "-")
    result = await kubectl(*arguments, stdin=conflict, fails=True)
    assert 'Apply failed with 1 conflict: conflict with "one": .data.x' in result.err
    await kubectl(*arguments, "--force-conflicts", stdin=conflict)


async def test_create_with_protobuf_bodies(kubectl: Cli, api: Api) -> None:
    for arguments in (
        ("namespace", "team"),
        ("configmap", "a", "--from-literal=x=1"),
        ("secret", "generic", "s", "--from-literal=p=q"),
        ("serviceaccount", "robot"),
        ("quota", "q", "--hard=pods=5"),
        ("deployment", "d", "--image=nginx:1.27", "--replicas=0"),
        ("job", "j", "--image=busybox:1.36", "--", "true"),
        ("poddisruptionbudget", "b", "--selector=app=d", "--min-available=1"),
        ("role", "r", "--verb=get", "--resource=pods"),
        ("rolebinding", "rb", "--role=r", "--serviceaccount=default:robot"),
        ("priorityclass", "low", "--value=-10"),
    ):
        await kubectl("create", *arguments)
    token = (await kubectl("create", "token", "robot")).out
    assert token.count(".") == 2
    assert (await api.get(f"{DEPLOYMENTS}/d")).body["spec"]["replicas"] == 0
    assert (await api.get(f"{BUDGETS}/b")).body["spec"]["minAvailable"] == 1


async def test_get_prints_tables(kubectl: Cli, api: Api) -> None:
    await api.post(PODS, pod("p"))
    lines = (await kubectl("get", "pods")).out.splitlines()
    assert lines[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert lines[1].split()[:4] == ["p", "0/1", "Pending", "0"]
    assert "p" in (await kubectl("describe", "pod", "p")).out
    assert (await kubectl("get", "pods", "-o", "name")).out.strip() == "pod/p"


async def test_label_taint_patch_scale(kubectl: Cli, api: Api) -> None:
    await api.post("/api/v1/nodes", {"metadata": {"name": "n1"}})
    await api.post(DEPLOYMENTS, deployment("d"))
    await kubectl("label", "node", "n1", "team=a")
    await kubectl("taint", "node", "n1", "nvidia.com/gpu=true:NoSchedule")
    await kubectl("scale", "deployment", "d", "--replicas=3")
    await kubectl("set", "image", "deployment/d", "main=nginx:2")
    await kubectl(
        "patch", "deployment", "d", "--type=json", "-p", '[{"op":"remove","path":"/spec/revisionHistoryLimit"}]'
    )
    node, spec = (await api.get("/api/v1/nodes/n1")).body, (await api.get(f"{DEPLOYMENTS}/d")).body["spec"]
    assert node["metadata"]["labels"] == {"team": "a"}
    assert {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"} in node["spec"]["taints"]
    assert (spec["replicas"], spec["template"]["spec"]["containers"][0]["image"]) == (3, "nginx:2")


async def test_wait_for_a_condition_and_for_deletion(kubectl: Cli, api: Api) -> None:
    await api.post(PODS, pod("p"))
    waiting = asyncio.create_task(kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=20s"))
    await asyncio.sleep(0.3)
    await api.patch(f"{PODS}/p/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert "condition met" in (await waiting).out
    going = asyncio.create_task(kubectl("delete", "pod", "p", "--timeout=20s"))
    await kubectl("wait", "--for=delete", "pod/p", "--timeout=20s")
    assert "deleted" in (await going).out


async def test_drain_respects_the_budget(kubectl: Cli, api: Api) -> None:
    await api.post("/api/v1/nodes", {"metadata": {"name": "n1"}})
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "u", "controller": True}
    replica_set = {**deployment("rs"), "kind": "ReplicaSet"}
    await api.post("/apis/apps/v1/namespaces/default/replicasets", replica_set)
    body = pod("p", labels={"app": "rs"})
    body["metadata"]["ownerReferences"] = [owner]
    await api.post(PODS, body)
    await api.post(f"{PODS}/p/binding", binding("p", "n1"))
    ready = [{"type": "Ready", "status": "True"}]
    await api.patch(f"{PODS}/p/status", {"status": {"phase": "Running", "conditions": ready}})
    assert "node/n1 drained (server dry run)" in (await kubectl("drain", "n1", "--dry-run=server")).out
    assert "deletionTimestamp" not in (await api.get(f"{PODS}/p")).body["metadata"]
    await api.post(BUDGETS, budget("b", app="rs"))
    status = {"observedGeneration": 1, "disruptionsAllowed": 0, "desiredHealthy": 1, "currentHealthy": 1}
    await api.patch(f"{BUDGETS}/b/status", {"status": status})
    blocked = await kubectl("drain", "n1", "--timeout=1s", fails=True)
    assert "Cannot evict pod as it would violate the pod's disruption budget." in blocked.err
    await api.patch(f"{BUDGETS}/b/status", {"status": {"disruptionsAllowed": 1}})
    draining = asyncio.create_task(kubectl("drain", "n1", "--timeout=20s"))
    async with api.watch(f"{PODS}?watch=1") as watch:
        while "deletionTimestamp" not in (await watch.next())[1]["metadata"]:
            pass
    await api.delete(f"{PODS}/p", {"gracePeriodSeconds": 0})
    assert "node/n1 drained" in (await draining).out
    assert (await api.get("/api/v1/nodes/n1")).body["spec"]["unschedulable"] is True


@pytest.mark.parametrize(("user", "answer"), [((), "yes"), (("--as=low",), "no")])
async def test_can_i(kubectl: Cli, user: tuple[str, ...], answer: str) -> None:
    result = await kubectl("auth", "can-i", "create", "pods", *user, fails=answer == "no")
    assert result.out.strip() == answer


async def test_rollout_and_logs(kubectl: Cli, api: Api) -> None:
    await api.post(DEPLOYMENTS, deployment("d"))
    status = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
    await api.patch(f"{DEPLOYMENTS}/d/status", {"status": status})
    assert "successfully rolled out" in (await kubectl("rollout", "status", "deployment/d", "--timeout=20s")).out
    await api.post(PODS, pod("p"))
    await api.post(f"{PODS}/p/binding", binding("p", "n1"))
    await api.call("PUT", f"{PODS}/p/log", b"hello\n")
    assert (await kubectl("logs", "p")).out == "hello\n"
