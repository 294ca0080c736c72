"""Facts for the report: read from the cluster with kubectl, and from the run's XComs."""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from demo.kubectl import Kubectl

GPU = "nvidia.com/gpu"
POOL = "karpenter.sh/nodepool"
LEDGER = "gpu-fleet.io/component=ledger"
PLUGIN_NAMESPACE = "nvidia-device-plugin"
PLUGIN = "nvidia-device-plugin"

Json = dict[str, Any]


def nodes(kubectl: Kubectl, physical: Mapping[str, int]) -> list[Json]:
    """The present GPU nodes.

    :param physical: instance type to physical GPUs, according to EC2.
    """
    rows = []
    for node in kubectl.get("nodes", "-l", POOL):
        labels = node["metadata"]["labels"]
        kind = labels["node.kubernetes.io/instance-type"]
        allocatable = int(node["status"].get("allocatable", {}).get(GPU, "0"))
        count = physical.get(kind, 0)
        rows.append(
            {
                "name": node["metadata"]["name"],
                "pool": labels[POOL],
                "instance_type": kind,
                "capacity_type": labels.get("karpenter.sh/capacity-type", ""),
                "physical": count,
                "allocatable": allocatable,
                "replicas": allocatable // count if count else 0,
            }
        )
    return sorted(rows, key=lambda row: (row["pool"], row["name"]))


def releases(kubectl: Kubectl) -> list[Json]:
    """Every Helm release of the cluster: its newest revision in storage, and its entry in the ledger."""
    newest: dict[tuple[str, str], Json] = {}
    for secret in kubectl.get("secrets", "-A", "-l", "owner=helm"):
        labels, namespace = secret["metadata"]["labels"], secret["metadata"]["namespace"]
        key = (namespace, labels["name"])
        revision = int(labels["version"])
        if key not in newest or revision > newest[key]["revision"]:
            newest[key] = {
                "namespace": namespace,
                "name": labels["name"],
                "chart": chart_of(secret),
                "revision": revision,
                "status": labels["status"],
            }
    for ledger in kubectl.get("configmaps", "-A", "-l", LEDGER):
        name = ledger["metadata"]["name"].removeprefix("gpu-fleet-release-")
        row = newest.get((ledger["metadata"]["namespace"], name))
        proven = json.loads(ledger.get("data", {}).get("proven") or "null")
        if row is not None and proven:
            row |= {
                "proven_revision": proven["revision"],
                "proven_digest": proven["digest"],
                "proven_by": proven["run"],
            }
    return [newest[key] for key in sorted(newest)]


def stored(secret: Json) -> Json:
    """What Helm stores of a revision: base64(gzip(JSON)), which the API server encodes once more."""
    packed = base64.b64decode(base64.b64decode(secret["data"]["release"]))
    value: Json = json.loads(gzip.decompress(packed))
    return value


def chart_of(secret: Json) -> str:
    """Name and version of a revision's chart."""
    metadata = stored(secret)["chart"]["metadata"]
    return f"{metadata['name']}-{metadata['version']}"


#: How Helm describes a revision that a rollback created (helm ``pkg/action/rollback.go``).
ROLLBACK = re.compile(r"^Rollback to (\d+)$")


def rollback(kubectl: Kubectl, release: str = PLUGIN) -> Json | None:
    """The newest rollback of a release: the revision that it replaced, the one whose content it restored, and its new
    number; ``None`` if no rollback created the newest revision.
    """
    secrets = kubectl.get("secrets", "-A", "-l", f"owner=helm,name={release}")
    revisions = sorted(((int(s["metadata"]["labels"]["version"]), s) for s in secrets), key=itemgetter(0))
    if len(revisions) < 2:
        return None
    found = ROLLBACK.match(str(stored(revisions[-1][1]).get("info", {}).get("description", "")))
    if found is None:
        return None
    return {"release": release, "from": revisions[-2][0], "to": int(found.group(1)), "as": revisions[-1][0]}


def rollback_text(found: Json | None) -> str:
    """One clause on a rollback."""
    if found is None:
        return "NO rollback took place"
    return (
        f"release {found['release']} was rolled back from revision {found['from']} to the content of revision "
        f"{found['to']}, now revision {found['as']}"
    )


def plugin_health(kubectl: Kubectl, before: list[Json]) -> Json:
    """Whether the device plugin works, with the content that was proven before the fault."""
    wanted = next((row.get("proven_digest") for row in before if row["name"] == PLUGIN), None)
    now = next((row for row in releases(kubectl) if row["name"] == PLUGIN), None)
    if now is None:
        return {"healthy": False, "message": "the device plugin's release is gone"}
    problems = []
    if now["status"] != "deployed":
        problems.append(f"revision {now['revision']} is {now['status']}")
    if wanted is None or now.get("proven_digest") != wanted:
        problems.append("the ledger's proven content is not the one from before the fault")
    if now.get("proven_revision") != now["revision"]:
        problems.append(f"revision {now['revision']} is not the proven one ({now.get('proven_revision')})")
    for daemon_set in kubectl.get("daemonsets", "-n", PLUGIN_NAMESPACE):
        status, name = daemon_set.get("status", {}), daemon_set["metadata"]["name"]
        desired, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
        updated = status.get("updatedNumberScheduled", 0)
        if not desired == ready == updated:
            problems.append(f"DaemonSet {name}: {ready} of {desired} pods ready, {updated} up to date")
    for node in kubectl.get("nodes", "-l", POOL):
        if int(node["status"].get("allocatable", {}).get(GPU, "0")) == 0:
            problems.append(f"node {node['metadata']['name']} offers no GPU")
    message = "; ".join(problems) or f"revision {now['revision']} is deployed and proven, every plugin pod is ready"
    return {"healthy": not problems, "message": message}


def wait_for_health(kubectl: Kubectl, before: list[Json], timeout: float) -> Json:
    """:func:`plugin_health`, after time for the last pods to become ready."""
    deadline = time.monotonic() + timeout
    while True:
        state = plugin_health(kubectl, before)
        if state["healthy"] or time.monotonic() > deadline:
            return state
        time.sleep(2)


def from_xcoms(tasks: Mapping[str, Json], xcom: Callable[..., Any], seconds: float) -> Json:
    """Validation, drain, cost and leaks of a run.

    :param tasks: task id to task instance.
    :param xcom: task id (and key) to its XCom, ``None`` without one.
    :param seconds: how long the run took, in simulated time.
    """
    facts: Json = {"validation": {}, "drain": {}}
    for task_id in sorted(tasks):
        phase, _, name = task_id.rpartition(".")
        if phase.startswith("validation.pool_") and name in ("sharing", "exclusive", "vectoradd"):
            pool = phase.removeprefix("validation.pool_")
            summary = xcom(task_id, "summary")
            if summary is not None or tasks[task_id]["state"] == "failed":
                facts["validation"].setdefault(pool, []).append(_verdict(name, summary))
        if task_id.startswith("teardown.drain_"):
            value = xcom(task_id)
            if value is not None and "skipped" not in value:
                outcomes: dict[str, int] = {}
                for row in value["pods"]:
                    if row["outcome"] != "Left":
                        outcomes[row["outcome"]] = outcomes.get(row["outcome"], 0) + 1
                told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "no user pods"
                facts["drain"][value["pool"]] = f"{len(value['nodes'])} nodes in {value['seconds']} s: {told}"
    plan = xcom("teardown.plan_again")
    if plan is not None:
        facts["cost"] = _cost(plan["plan"], seconds)
    leaks = xcom("teardown.leak_check")
    facts["leaks"] = (
        None
        if leaks is None
        else [
            *(f"{leak['kind']} {leak['name']} ({leak['detail']})" for leak in leaks["leaks"]),
            *(f"not checked: {each['subject']}: {each['why']}" for each in leaks["unchecked"]),
        ]
    )
    return facts


def _verdict(probe: str, summary: Any) -> Json:
    if summary is None:
        return {"probe": probe, "passed": False, "message": "the task failed; see its log"}
    nodes = ", ".join(f"{node}: {outcome}" for node, outcome in sorted(summary["nodes"].items()))
    message = "; ".join(map(str, summary["failures"])) or nodes
    return {"probe": probe, "passed": summary["outcome"] == "Passed", "message": f"{summary['outcome']}: {message}"}


def _cost(plan: Json, seconds: float) -> Json:
    counts: dict[str, Json] = {}
    for row in plan["instances"]:
        item = counts.setdefault(
            row["type"], {"instance_type": row["type"], "count": 0, "usd_per_hour": row["usdPerHour"]}
        )
        item["count"] += 1
        # Spot prices differ by zone: the report says 'at most'.
        item["usd_per_hour"] = max(item["usd_per_hour"] or 0.0, row["usdPerHour"] or 0.0) or None
    for volume in plan.get("volumes", []):
        if volume["goes"]:
            kind = f"{volume['gib']} GiB {volume['type']}"
            item = counts.setdefault(kind, {"instance_type": kind, "count": 0, "usd_per_hour": volume["usdPerHour"]})
            item["count"] += 1
    per_hour = plan["usdPerHour"]
    return {
        "items": [counts[key] for key in sorted(counts)],
        "usd_per_hour": per_hour,
        "usd": None if per_hour is None else per_hour * seconds / 3600,
        "prices": plan["prices"],
    }
