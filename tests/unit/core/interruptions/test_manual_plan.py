"""The plan of a drain by hand: each pod with its rule and fate, what holds it, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.drain.rules import DrainRules, Fate
from gpu_fleet.core.interruptions.manual_plan import ManualPlan, growth, make_plan
from gpu_fleet.core.interruptions.manual_text import to_markdown
from gpu_fleet.core.interruptions.nodes import OurNode
from gpu_fleet.core.interruptions.replaced_first import ReplacedFirst
from gpu_fleet.core.interruptions.request import DrainRequest
from gpu_fleet.core.interruptions.ways import Owner
from tests.unit.core.specs import demo_spec

NOW = 1767225600.0 + 3600  # one hour after the pods' start
SPEC = demo_spec()
NODE = OurNode("n1", "u1", "i-1", Owner.KARPENTER, "shared-a10g", gpus=4, instance_type="g5.xlarge", zone="us-west-2a")
PRICES = PriceList("us-west-2", "2026-01-01", "a page", {"g5.xlarge": 1.0})
RULES = DrainRules(daemon_sets=frozenset({("t", "web")}))
BUDGET = {
    "metadata": {"name": "web-pdb", "namespace": "t", "generation": 1},
    "spec": {"selector": {"matchLabels": {"app": "held"}}},
    "status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1},
}


def pod(name: str, *, node: str = "n1", owner: str = "ReplicaSet", gpus: int = 0, **metadata: Any) -> dict[str, Any]:
    if owner:
        metadata["ownerReferences"] = [{"kind": owner, "name": "web", "controller": True}]
    container = {"name": "c", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}}
    return {
        "metadata": {"name": name, "namespace": "t", "uid": name, **metadata},
        "spec": {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 45},
        "status": {
            "phase": "Running",
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


PODS = [
    pod("train", gpus=2, labels={"app": "held"}, annotations={"karpenter.sh/do-not-disrupt": "true"}),
    pod("cpu"),
    pod("agent", owner="DaemonSet", gpus=1),
    pod("ending", deletionTimestamp="2026-01-01T01:00:00Z"),
    pod("elsewhere", node="n2", gpus=4),
]


def plan(*pods: Any, **params: Any) -> ManualPlan:
    request = DrainRequest.of({"nodes": ["n1"], **params})
    rules = replace(RULES, force=request.bare_pods)
    return make_plan(
        SPEC, request, [NODE], pods or PODS, rules=rules, budgets=[BUDGET], prices=PRICES, now=NOW,
    )  # fmt: skip


def test_every_pod_of_the_nodes_has_its_rule_and_fate() -> None:
    found = {each.name: (each.fate, each.rule) for each in plan().pods}
    assert found == {
        "t/train": (Fate.EVICT, "Evictable"),
        "t/cpu": (Fate.EVICT, "Evictable"),
        "t/ending": (Fate.WAIT, "Terminating"),
        "t/agent": (Fate.LEAVE, "DaemonSetManaged"),
    }


def test_what_a_budget_would_refuse_and_what_asks_to_stay_is_said() -> None:
    (train,) = [each for each in plan().pods if each.name == "t/train"]
    assert "web-pdb" in train.budget
    assert (train.asked_to_stay, train.gpus, train.grace) == ("true", 2, 45.0)
    assert all(not each.budget for each in plan().pods if each.name != "t/train")


def test_only_users_pods_that_hold_gpus_need_an_approval() -> None:
    assert plan().to_json()["gpuPods"] == {"t/train": "t/ReplicaSet/web"}
    assert plan(pod("cpu"), pod("agent", owner="DaemonSet", gpus=1)).to_json()["gpuPods"] == {}


def test_the_cost_is_what_the_evicted_pods_have_computed() -> None:
    found = plan()
    assert found.gpu_seconds == 2 * 3600
    assert found.usd == 0.5  # two of four shares of a node of 1 USD/h, for an hour
    unknown = make_plan(
        SPEC, found.request, [replace(NODE, instance_type="p9.large")], PODS, rules=RULES, budgets=[], prices=PRICES,
        now=NOW,
    )  # fmt: skip
    assert (unknown.gpu_seconds, unknown.usd) == (7200, None)


def test_a_bare_pod_refuses_the_drain_unless_the_run_permits_it() -> None:
    assert plan(pod("alone", owner="")).to_json()["refused"] == ["t/alone"]
    assert plan(pod("alone", owner=""), evictBarePods=True).to_json()["refused"] == []


def test_another_pod_of_an_approved_workload_is_no_growth() -> None:
    approved = plan().to_json()
    assert growth(approved, plan(pod("train-2", gpus=2))) == []
    other = pod("other", gpus=1, owner="")
    assert growth(approved, plan(other, evictBarePods=True)) == ["t/other"]
    assert growth(plan(pod("cpu")).to_json(), plan()) == ["t/train"]


def test_the_text_answers_the_readers_questions_and_shows_every_pod() -> None:
    text = to_markdown(plan(reason="bad | fan <b>"), SPEC)
    assert "bad \\| fan &lt;b&gt;" in text
    assert "**Interrupts:** 1 pod(s) of users that hold 2 GPUs" in text
    assert "**Held by budgets now:** if that stays so, the drain fails after" in text
    assert "**Costs at most:** 2.00 GPU hours (0.50 USD)" in text
    for name in ("train", "cpu", "agent", "ending"):
        assert f"| `t/{name}` | `n1` |" in text
    assert "elsewhere" not in text


def test_the_text_says_how_it_ends() -> None:
    text = to_markdown(plan(deadline=30, remove=False), SPEC)
    assert "within 30 minutes" in text
    assert "stay cordoned" in text
    assert "they are deleted when their grace period has to begin" in text


def test_the_text_says_what_comes_first_and_why_it_cannot() -> None:
    first = replace(plan(replaceFirst=True), replaced={"a10g": ReplacedFirst("a10g", ("n1",), 1, "no room")})
    assert "first, 1 new node(s) of pool a10g are requested and validated; **impossible:** no room" in to_markdown(
        first, SPEC
    )
    group = replace(first, replaced={}, nodes=(replace(NODE, owner=Owner.NODE_GROUP),))
    assert "`n1`: of node groups" in to_markdown(group, SPEC)


def test_the_headline_is_the_plan_in_one_sentence() -> None:
    assert plan().headline() == (
        "Plan: 1 node of shared-a10g drained, 2 pods evicted, 1 of them held by PodDisruptionBudgets now; users' pods "
        "with GPUs: 1"
    )
    assert "refused" in plan(pod("alone", owner="")).headline()


def test_a_plan_without_nodes_says_why() -> None:
    empty = replace(plan(), nodes=(), passed_over={"i-9": "no node has this instance (any more)"})
    assert empty.headline() == "Nothing to drain: i-9: no node has this instance (any more)"
    assert "Nothing to drain" in to_markdown(empty, SPEC)
