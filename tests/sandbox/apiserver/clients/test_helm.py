"""The real helm: install, upgrade, rollback and uninstall; what is ready is said by the test."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sandbox.apiserver import Running
from tests.sandbox.apiserver.builders import deployment
from tests.sandbox.apiserver.client import Api
from tests.sandbox.apiserver.conftest import Cli

NAMESPACE = "/api/v1/namespaces/apps"
DEPLOYMENT = "/apis/apps/v1/namespaces/apps/deployments/web"
JOBS = "/apis/batch/v1/namespaces/apps/jobs"

HOOK = """
apiVersion: batch/v1
kind: Job
metadata:
  name: before
  annotations: {helm.sh/hook: pre-install, helm.sh/hook-delete-policy: before-hook-creation}
spec:
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: "busybox:1.36"}]}
"""
SETTINGS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: {{ .Values.color | quote }}}
"""


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    folder = tmp_path / "chart"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: chart, version: 1.0.0}")
    (folder / "values.yaml").write_text("color: red")
    (folder / "templates" / "settings.yaml").write_text(SETTINGS)
    (folder / "templates" / "web.yaml").write_text(json.dumps(deployment("web")))
    return folder


def with_hook(chart: Path) -> None:
    (chart / "templates" / "hook.yaml").write_text(HOOK)


async def appears(api: Api, path: str) -> dict[str, Any]:
    for _ in range(200):
        reply = await api.get(path)
        if reply.code == 200:
            return dict(reply.body)
        await asyncio.sleep(0.05)
    raise AssertionError(f"{path} never appeared")


async def become_ready(api: Api) -> None:
    """What the deployment controller would report."""
    generation = (await appears(api, DEPLOYMENT))["metadata"]["generation"]
    conditions = [
        {"type": "Available", "status": "True"},
        {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
    ]
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
    await api.patch(
        f"{DEPLOYMENT}/status", {"status": {"observedGeneration": generation, **counts, "conditions": conditions}}
    )


async def statuses(helm: Cli) -> list[str]:
    history = json.loads((await helm("history", "web", "-n", "apps", "-o", "json")).out)
    return [entry["status"] for entry in history]


async def test_life_of_a_release(helm: Cli, api: Api, chart: Path) -> None:
    where = ("-n", "apps")
    await helm("install", "web", str(chart), *where, "--create-namespace")
    await helm("upgrade", "web", str(chart), *where, "--set", "color=blue")
    settings = f"{NAMESPACE}/configmaps/settings"
    assert (await api.get(settings)).body["data"] == {"color": "blue"}
    await helm("rollback", "web", "1", *where)
    assert (await api.get(settings)).body["data"] == {"color": "red"}
    assert await statuses(helm) == ["superseded", "superseded", "deployed"]
    await helm("uninstall", "web", *where)
    assert (await api.get(settings)).code == 404
    assert (await api.get(f"{NAMESPACE}/secrets")).body["items"] == []


async def test_install_waits_for_hook_and_workload(helm: Cli, api: Api, chart: Path) -> None:
    with_hook(chart)
    installing = asyncio.create_task(
        helm("install", "web", str(chart), "-n", "apps", "--create-namespace", "--wait", "--timeout", "40s")
    )
    await appears(api, f"{JOBS}/before")
    assert (await api.get(DEPLOYMENT)).code == 404
    complete = [{"type": kind, "status": "True"} for kind in ("SuccessCriteriaMet", "Complete")]
    times = dict.fromkeys(("startTime", "completionTime"), "2026-01-02T03:04:05Z")
    await api.patch(f"{JOBS}/before/status", {"status": {"succeeded": 1, "conditions": complete, **times}})
    await become_ready(api)
    assert "STATUS: deployed" in (await installing).out


async def test_a_scaled_deployment_conflicts(helm: Cli, kubectl: Cli, chart: Path) -> None:
    (chart / "templates" / "web.yaml").write_text(json.dumps(deployment("web", replicas=1)))
    await helm("install", "web", str(chart), "-n", "apps", "--create-namespace")
    await kubectl("scale", "-n", "apps", "deployment", "web", "--replicas=2")
    failed = await helm("upgrade", "web", str(chart), "-n", "apps", fails=True)
    assert 'conflict with "kubectl" with subresource "scale" using apps/v1: .spec.replicas' in failed.err
    assert await statuses(helm) == ["deployed", "failed"]
    await helm("upgrade", "web", str(chart), "-n", "apps", "--force-conflicts")
    assert await statuses(helm) == ["superseded", "failed", "deployed"]


async def test_an_immutable_field_fails_the_upgrade(helm: Cli, chart: Path) -> None:
    await helm("install", "web", str(chart), "-n", "apps", "--create-namespace")
    changed = deployment("web")
    changed["spec"]["selector"]["matchLabels"]["v"] = "2"
    changed["spec"]["template"]["metadata"]["labels"]["v"] = "2"
    (chart / "templates" / "web.yaml").write_text(json.dumps(changed))
    failed = await helm("upgrade", "web", str(chart), "-n", "apps", fails=True)
    assert "field is immutable" in failed.err


async def test_the_last_write_of_a_release_fails(helm: Cli, api: Api, chart: Path, cluster: Running) -> None:
    rule = {"verb": "update", "resource": "secrets", "userAgent": "Helm", "status": 403, "message": "no"}
    cluster.settings.faults.set("request-faults", {"rules": [rule]})
    installed = await helm("install", "web", str(chart), "-n", "apps", "--create-namespace")
    assert "STATUS: deployed" in installed.out
    cluster.settings.faults.clear()
    assert await statuses(helm) == ["pending-install"]
