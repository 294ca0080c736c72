"""Running jobs and changed templates: what is announced, who lives on, and who is replaced."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.e2e.fleet import GPU, POOL_LABEL, SHARED, WHOLE, Fleet, Json, cluster_spec, until
from tests.e2e.revalidation import names_of, node_of

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(840)]

OLD, NEW = "al2023@v20260601", "al2023@v20260714"
PERIOD = "2m"
JOBS = "jobs"


def spec(alias: str, **shared: Any) -> Json:
    """The demo's file. The shared pool has the defaults; the other one lets Karpenter replace drifted nodes, and ends
    protected pods after a period."""
    found = cluster_spec(changes={"nodeClass": {"amiAlias": alias}})
    first, second = found["nodePools"]
    first |= shared
    budgets = [{"nodes": "1", "reasons": ["Drifted"]}]
    second |= {"terminationGracePeriod": PERIOD, "disruption": {"consolidateAfter": "24h", "budgets": budgets}}
    return found


def caps() -> dict[str, int]:
    return {pool["name"]: pool["limits"]["nodes"] for pool in spec(NEW)["nodePools"]}


class Watch:
    """The standing oracle: the most instances of each pool that were seen at once."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.most = fleet, Counter[str]()

    def __call__(self, *_: Any) -> None:
        now: Counter[str] = Counter()
        for instance in self.fleet.instances().values():
            if instance["State"]["Name"] in ("pending", "running"):
                tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                now[tags[POOL_LABEL]] += 1
        self.most |= now


def start_job(fleet: Fleet, name: str, pool: str) -> tuple[str, str]:
    """A bare pod of a user that asks not to be disrupted, running in a pool; its UID and node.

    Not pinned to a node by its host name: Karpenter does not take the node of a pod that fits nowhere else.
    """
    container = {
        "name": "main",
        "image": "registry.k8s.io/pause:3.10",
        "resources": {"limits": {GPU: "1"}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": JOBS,
            "annotations": {"karpenter.sh/do-not-disrupt": "true"},
        },
        "spec": {
            "nodeSelector": {POOL_LABEL: pool},
            "tolerations": [{"key": GPU, "operator": "Exists"}],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
        },
    }
    fleet.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": JOBS}}, pod)
    until(f"pod {name}", lambda: job(fleet, name).get("status", {}).get("phase") == "Running", 60)
    found = job(fleet, name)
    return str(found["metadata"]["uid"]), str(found["spec"]["nodeName"])


def job(fleet: Fleet, name: str) -> Json:
    found = fleet.kubectl.get("pods", "-n", JOBS, "--field-selector", f"metadata.name={name}")
    return found[0] if found else {}


def lives(fleet: Fleet, name: str, uid: str) -> bool:
    metadata = job(fleet, name).get("metadata", {})
    return metadata.get("uid") == uid and not metadata.get("deletionTimestamp")


def test_a_running_job_outlives_a_changed_template_and_idle_nodes_are_replaced(empty: Fleet) -> None:
    fleet, watch = empty, Watch(empty)
    fleet.write_spec(spec(OLD))
    try:
        fleet.run(conf={"until": "validated"}, on_tick=watch).succeeded()
        nodes = names_of(fleet, SHARED)
        assert len(nodes) == 2
        kept, busy = start_job(fleet, "kept", SHARED)
        (idle,) = set(nodes) - {busy}
        gone = node_of(fleet, idle)["metadata"]["uid"]
        _, whole = start_job(fleet, "doomed", WHOLE)

        # A changed AMI, label and taint: announced before, and nothing of the shared pool goes by itself.
        taints = [{"key": GPU, "value": "true", "effect": "NoSchedule"}, {"key": "team", "effect": "PreferNoSchedule"}]
        fleet.write_spec(spec(NEW, labels={"team": "ml"}, taints=taints))
        run = fleet.run(conf={"until": "validated", "pools": [SHARED]}, on_tick=watch).succeeded()
        plan = {each["pool"]: each for each in run.xcom("preflight.plan_changes", "plan")["changes"]}
        assert {each["field"] for each in plan[SHARED]["changes"]} == {"amiAlias", "labels.team", "taints"}
        drifting = {each["node"]: each["pods"] for each in plan[SHARED]["drifting"]}
        assert drifting == {busy: [f"{JOBS}/kept"], idle: []}
        assert "Karpenter replaces none of them by itself" in plan[SHARED]["consequence"]
        assert plan[SHARED]["endsPods"] == []
        assert [each["node"] for each in plan[WHOLE]["drifting"]] == [whole]
        assert plan[WHOLE]["endsPods"] == [f"{JOBS}/doomed"]
        assert f"deleted {PERIOD} after their node is taken" in plan[WHOLE]["consequence"]
        started, _ = run.span("preflight.plan_changes")
        assert started < run.span(f"provision.pool_{SHARED}.apply_node_class")[0]

        # With a period Karpenter takes a node although its pod asks not to be disrupted: the sandbox can.
        until("the end of the unprotected job", lambda: not job(fleet, "doomed"), 180)
        assert lives(fleet, "kept", kept)

        # The drifted nodes are named, and replaced on request while they are idle.
        found = {each["node"]: each for each in run.xcom(f"validation.pool_{SHARED}.protect_nodes", "drifted")}
        assert set(found) == {busy, idle}
        assert f"node {busy} of pool {SHARED} has been drifted" in found[busy]["message"]
        assert f"amiAlias changed ({OLD} -> {NEW})" in found[busy]["message"]
        assert f"holds 1 GPU pod ({JOBS}/kept)" in found[busy]["message"]
        conf = {"until": "validated", "pools": [SHARED], "replaceDrifted": "idle"}
        run = fleet.run(conf=conf, on_tick=watch).succeeded()
        outcome = run.xcom(f"validation.pool_{SHARED}.replace_drifted")
        assert outcome["replaced"] == [idle]
        assert [(each["node"], each["reason"]) for each in outcome["left"]] == [(busy, "InUse")]
        until(f"the end of {idle}", lambda: gone not in {n["metadata"]["uid"] for n in fleet.nodes()}, 60)
        names = names_of(fleet, SHARED)
        assert busy in names
        assert len(names) >= 2
        assert lives(fleet, "kept", kept)
        watch()
        assert {pool: watch.most[pool] <= cap for pool, cap in caps().items()} == dict.fromkeys(caps(), True)
    finally:
        fleet.kubectl.run("delete", "namespace", JOBS, "--ignore-not-found", "--wait=true")
