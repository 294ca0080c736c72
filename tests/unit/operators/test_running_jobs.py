"""A changed template on a simulated cluster with Karpenter: announced, survived by running jobs, replaced on request.

The operators run one after another as a lifecycle run has them; the probes are replaced by what they would report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk import DAG

from gpu_fleet.core.capacity_objects import PoolNode, pool_nodes
from gpu_fleet.core.errors import TransientError
from gpu_fleet.core.kinds import NODE, NODE_CLAIM, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.names import DEVICE_PLUGIN_NAMESPACE, DEVICE_PLUGIN_RELEASE, SYSTEM_NAMESPACE
from gpu_fleet.core.pool_template import PoolTemplate
from gpu_fleet.core.validation_report import Check, NodeReport, Outcome, PoolReport
from gpu_fleet.hooks.kubernetes import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.changes import MARKDOWN, PLAN, PlanChangesOperator
from gpu_fleet.operators.pods import delete_pods, placeholders
from gpu_fleet.operators.pools import ApplyNodeClassOperator, ApplyNodePoolOperator
from gpu_fleet.operators.replacement import REPLACEMENT, ReplaceDriftedOperator
from gpu_fleet.operators.request_capacity import RequestCapacityOperator
from gpu_fleet.operators.validation import RunProbesOperator
from gpu_fleet.operators.validation_cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation_nodes import ProtectNodesOperator
from gpu_fleet.triggers.looking import look
from tests.sandbox.nodes.cluster import karpenter_deployment, plugin_objects, slicing
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import define_karpenter, sandbox_cloud

pytestmark = pytest.mark.full

POOL, CAP = "shared-a10g", 4
OLD, NEW = "al2023@v20260601", "al2023@v20260714"


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeClient]:
    """A whole cluster, with the device plugin and Karpenter installed."""
    parts = ("controllers", "nodes", "karpenter")
    folder = tmp_path_factory.mktemp("cloud")
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(folder, *parts, speed=60.0) as found:
        environment.setenv("AIRFLOW_CONN_AWS_DEMO", found.connection)
        kube = KubernetesHook(ClusterAccess.from_spec(demo_spec())).client()
        define_karpenter(kube)
        runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}}
        kube.apply(runtime | {"handler": "nvidia"})
        configs = {"exclusive": "version: v1\n", "time-slicing-4": slicing(4)}
        for name in (SYSTEM_NAMESPACE, DEVICE_PLUGIN_NAMESPACE, "ml"):
            kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        kube.apply(account | {"metadata": {"name": "karpenter", "namespace": "kube-system"}})
        kube.apply(karpenter_deployment("demo-gpu"))
        for manifest in plugin_objects(configs, "exclusive"):
            # As Helm marks what a release has made: it is ours.
            marks = {"release-name": DEVICE_PLUGIN_RELEASE, "release-namespace": DEVICE_PLUGIN_NAMESPACE}
            manifest["metadata"] |= {
                "namespace": DEVICE_PLUGIN_NAMESPACE,
                "annotations": {f"meta.helm.sh/{key}": value for key, value in marks.items()},
            }
            kube.apply(manifest)
        yield kube


class Run:
    """The tasks of one run for the pool, called in their order."""

    def __init__(self, kube: KubeClient, spec: Any, run_id: str, replace: str = "none") -> None:
        self.kube, self.spec, self.pool = kube, spec, spec.pool(POOL)
        self.ti = TaskInstance(spec=spec, run_id=run_id)
        self.context = context(self.ti, replaceDrifted=replace)
        with DAG("gpu_lifecycle.demo", schedule=None) as self.dag:
            self.request = RequestCapacityOperator(task_id="request", node_pool=POOL)
            protect = ProtectNodesOperator(task_id="protect", node_pool=POOL)
            probes = RunProbesOperator(task_id="sharing", node_pool=POOL, probe="sharing")
            self.replace = ReplaceDriftedOperator(task_id="replace", node_pool=POOL)
            self.clean = CleanUpValidationOperator(task_id="clean", node_pool=POOL)
            self.request >> protect >> probes >> self.replace
        self.most = 0

    def act(self, operator: Any) -> Any:
        operator.prepare(self.context)
        return operator.act(self.context)

    def plan(self) -> dict[str, Any]:
        self.act(PlanChangesOperator(task_id="plan"))
        return {each["pool"]: each for each in self.ti.xcoms[PLAN]["changes"]}

    def apply(self) -> None:
        self.act(ApplyNodeClassOperator(task_id="class", node_pool=POOL))
        self.act(ApplyNodePoolOperator(task_id="pool", node_pool=POOL))

    def capacity(self) -> list[str]:
        """Ask, wait, and give the placeholders' places free; the names of the nodes."""
        self.act(self.request)
        surge = self.ti.xcoms[REPLACEMENT]["surge"]
        template = PoolTemplate.of(self.pool)
        assert template is not None
        args = {"pool": POOL, "wanted": self.pool.wanted_nodes + surge, "physical": 1, "replicas": 4}
        args |= {"template": template.to_json(), "plugin_daemon_set": DEVICE_PLUGIN_RELEASE}

        def ready() -> bool:
            self.most = max(self.most, len(self.kube.list(NODE_CLAIM)))
            verdict = look("pool_capacity", args, self.request.access())
            assert not verdict.failed, verdict.message
            return verdict.ready

        until("capacity", ready)
        delete_pods(self.kube, placeholders(self.kube, POOL))
        return names(self.kube)

    def proven(self, *busy: str) -> None:
        """What the probes would report: all nodes pass but the busy ones."""
        outcomes = {name: Outcome.BUSY if name in busy else Outcome.PASSED for name in names(self.kube)}
        nodes = tuple(NodeReport(n, {}, (Check("any", o, "Any", ""),)) for n, o in outcomes.items())
        report = PoolReport("demo", POOL, "sharing", self.ti.run_id, 1, 4, 0.0, 1.0, nodes)
        self.ti.xcoms |= {"report": report.to_json(), "return_value": {"nodes": list(outcomes), "untested": []}}


def until(what: str, holds: Callable[[], Any], patience: float = 90.0) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if holds():
                return
        except TransientError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not reached: {what}")


def names(kube: KubeClient) -> list[str]:
    return [node.name for node in pool_nodes(kube.list(NODE), POOL)]


def user_pod(kube: KubeClient, name: str) -> tuple[str, str]:
    """A bare, annotated pod with a GPU of the pool, running; its UID and node.

    Not pinned to a node by its host name: Karpenter does not take the node of a pod that fits nowhere else.
    """
    container = {
        "name": "main",
        "image": "registry.k8s.io/pause:3.10",
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "ml", "annotations": {"karpenter.sh/do-not-disrupt": "true"}},
        "spec": {
            "nodeSelector": {"karpenter.sh/nodepool": POOL},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "restartPolicy": "Never",
            "containers": [container],
        },
    }
    until("a ServiceAccount", lambda: kube.apply(pod, dry_run=True))
    kube.create(pod)
    ref = ObjectRef(POD, name, "ml")
    until("the job", lambda: (kube.get(ref) or {}).get("status", {}).get("phase") == "Running")
    found = kube.get(ref)
    assert found is not None
    return str(found["metadata"]["uid"]), str(found["spec"]["nodeName"])


def lives(kube: KubeClient, name: str, uid: str) -> bool:
    metadata = (kube.get(ObjectRef(POD, name, "ml")) or {}).get("metadata", {})
    return metadata.get("uid") == uid and not metadata.get("deletionTimestamp")


def test_a_job_outlives_a_changed_template_and_only_idle_nodes_are_replaced(kube: KubeClient) -> None:
    # Karpenter must not remove the idle nodes meanwhile, which it would do by the pool's consolidateAfter.
    fixed: dict[str, Any] = {
        "nodePools__0__disruption__consolidateAfter": "24h",
        "nodePools__0__capacityTypes": ["on-demand"],
    }
    before = demo_spec(**fixed, nodeClass__amiAlias=OLD)
    first = Run(kube, before, "first")
    assert first.plan() == {}
    first.apply()
    nodes = first.capacity()
    assert len(nodes) == 2
    first.act(first.clean)
    uid, busy = user_pod(kube, "train")
    (idle,) = set(nodes) - {busy}
    idle_uid = (kube.get(ObjectRef(NODE, idle)) or {})["metadata"]["uid"]

    changed = Run(
        kube, demo_spec(**fixed, nodeClass__amiAlias=NEW, nodePools__0__labels={"team": "ml"}), "second", "idle"
    )
    plan = changed.plan()[POOL]
    assert {each["field"] for each in plan["changes"]} == {"amiAlias", "labels.team"}
    assert {each["node"]: each["pods"] for each in plan["drifting"]} == {busy: ["ml/train"], idle: []}
    assert "2 nodes will drift, 1 of them holds pods with GPUs (ml/train)" in changed.ti.xcoms[MARKDOWN]
    changed.apply()

    def marked() -> bool:
        conditions = [c for claim in kube.list(NODE_CLAIM) for c in claim["status"]["conditions"]]
        return sum(c["type"] == "Drifted" and c["status"] == "True" for c in conditions) == 2

    until("Karpenter's marks", marked)
    changed.capacity()
    assert changed.ti.xcoms[REPLACEMENT]["chosen"] == [idle]
    assert [each["reason"] for each in changed.ti.xcoms[REPLACEMENT]["left"]] == ["InUse"]
    changed.proven(busy)
    outcome = changed.act(changed.replace)
    assert outcome["replaced"] == [idle]
    changed.act(changed.clean)
    until("the end of the old node", lambda: idle_uid not in {n["metadata"]["uid"] for n in kube.list(NODE)})
    assert lives(kube, "train", uid)
    assert busy in names(kube)
    assert len(names(kube)) >= 2
    assert changed.most <= CAP
    assert not any(PoolNode.of(node).cordoned for node in kube.list(NODE))


def test_a_period_and_a_budget_let_karpenter_end_a_protected_job(kube: KubeClient) -> None:
    """The sandbox can: what the defaults avoid is real."""
    budgets = [{"nodes": "1", "reasons": ["Drifted"]}]
    fixed: dict[str, Any] = {
        "nodePools__0__terminationGracePeriod": "2m",
        "nodePools__0__wantedNodes": 1,
        "nodePools__0__disruption": {"consolidateAfter": "24h", "budgets": budgets},
        "nodePools__0__capacityTypes": ["on-demand"],
    }
    for pod in kube.list(POD, "ml"):
        kube.delete(ObjectRef(POD, pod["metadata"]["name"], "ml"), grace_seconds=0)
    kube.delete(ObjectRef(NODE_POOL, POOL))
    until("an empty pool", lambda: not kube.list(NODE_CLAIM))
    first = Run(kube, demo_spec(**fixed), "third")
    first.apply()
    first.capacity()
    first.act(first.clean)
    uid, _ = user_pod(kube, "doomed")
    changed = Run(kube, demo_spec(**fixed, nodePools__0__labels={"team": "ml"}), "fourth")
    plan = changed.plan()[POOL]
    assert plan["endsPods"] == ["ml/doomed"]
    assert "deleted 2m after their node is taken" in plan["consequence"]
    changed.apply()
    until("the end of the job", lambda: not lives(kube, "doomed", uid))
