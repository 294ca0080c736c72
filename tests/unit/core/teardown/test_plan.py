from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.kubernetes.names import ANNOTATION_FROZEN_LIMITS, FIELD_MANAGER
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.nodes.freeze import frozen, is_frozen
from gpu_fleet.core.teardown.karpenter import Karpenter, Way, choose_way, karpenter_state
from gpu_fleet.core.teardown.markdown import to_markdown
from gpu_fleet.core.teardown.plan import TeardownPlan, growth, make_plan, releases, releases_that_go
from gpu_fleet.core.teardown.pods import user_pods
from gpu_fleet.core.teardown.scope import Observed, doomed_claims, doomed_pools, needs_karpenter
from tests.unit.core.specs import demo_spec

RUN = "gpu_teardown.demo/manual__1"
PRICES = PriceList("us-west-2", "2025-06-05", "a page", {"g5.xlarge": 1.0, "p4d.24xlarge": 20.0})


def pool(name: str, *, deleting: bool = False, ours: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": {"gpu-fleet.io/cluster": "demo"} if ours else {}}
    if deleting:
        metadata["deletionTimestamp"] = "t"
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": metadata,
        "spec": {"limits": {"nodes": "4"}},
    }


def claim(name: str, pool_name: str | None) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"karpenter.sh/nodepool": pool_name} if pool_name else {}}}


def instance(name: str, pool_name: str, kind: str = "g5.xlarge", state: str = "running", **more: Any) -> dict[str, Any]:
    return {
        "InstanceId": name,
        "InstanceType": kind,
        "State": {"Name": state},
        "Tags": [{"Key": "karpenter.sh/nodepool", "Value": pool_name}],
        **more,
    }


def karpenter_pod(ready: bool = True, deleting: bool = False) -> dict[str, Any]:
    metadata = {"name": "k", "deletionTimestamp": "t"} if deleting else {"name": "k"}
    return {
        "metadata": metadata,
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def secret(name: str, version: int, status: str, namespace: str = "kube-system") -> dict[str, Any]:
    labels = {"owner": "helm", "name": name, "version": str(version), "status": status}
    return {"metadata": {"namespace": namespace, "labels": labels}}


# --- what goes ------------------------------------------------------------------------------------------------------


def test_pools_of_the_spec_and_labelled_leftovers_go_and_foreign_ones_stay() -> None:
    pools = [pool("shared-a10g"), pool("renamed", ours=True), pool("cpu")]
    assert doomed_pools(demo_spec(), pools) == ["renamed", "shared-a10g"]


def test_a_pool_that_is_not_managed_stays_even_with_our_label() -> None:
    spec = demo_spec(nodePools__0__manage=False, teardown__uninstallKarpenter=False)
    assert doomed_pools(spec, [pool("shared-a10g", ours=True), pool("whole-a100")]) == ["whole-a100"]


CLAIMS = [claim("a", "shared-a10g"), claim("b", "cpu"), claim("c", None), claim("d", "vanished")]


def test_orphaned_claims_go_with_karpenter() -> None:
    assert doomed_claims(demo_spec(), CLAIMS, ["shared-a10g"], ["shared-a10g", "cpu"]) == ["a", "c", "d"]


def test_orphaned_claims_stay_when_karpenter_stays() -> None:
    spec = demo_spec(teardown__uninstallKarpenter=False)
    assert doomed_claims(spec, CLAIMS, ["shared-a10g"], ["shared-a10g", "cpu"]) == ["a"]


def test_claims_of_our_pool_go_even_if_an_earlier_try_removed_the_pool() -> None:
    spec = demo_spec(teardown__uninstallKarpenter=False)
    assert doomed_claims(spec, CLAIMS, [], ["cpu"]) == ["a"]


# --- freezing -------------------------------------------------------------------------------------------------------


def applied(item: dict[str, Any], manager: str = FIELD_MANAGER) -> dict[str, Any]:
    """The object as it lives after that field manager has applied it whole."""

    def fields(value: Any) -> dict[str, Any]:
        return {f"f:{key}": fields(inner) for key, inner in value.items()} if isinstance(value, dict) else {}

    parts = {"f:metadata": {"f:labels": fields(item["metadata"].get("labels", {}))}, "f:spec": fields(item["spec"])}
    entry = {"manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": parts}
    return {**item, "metadata": {**item["metadata"], "managedFields": [entry], "resourceVersion": "7"}}


def test_a_freeze_changes_the_limit_only_and_remembers_it() -> None:
    live = applied(build("node_pool", demo_spec(), pool="shared-a10g")[0])
    manifest = frozen(live, RUN)
    assert manifest["spec"]["limits"] == {"nodes": "0", "cpu": "16"}
    assert {**manifest["spec"], "limits": None} == {**live["spec"], "limits": None}
    assert json.loads(manifest["metadata"]["annotations"][ANNOTATION_FROZEN_LIMITS]) == {"nodes": "4", "cpu": "16"}
    assert manifest["metadata"]["labels"] == live["metadata"]["labels"]
    assert set(manifest["metadata"]) == {"name", "labels", "annotations"}
    assert not is_frozen(live)
    assert is_frozen(manifest)


def test_a_freeze_names_no_field_that_somebody_else_has() -> None:
    live = applied(build("node_pool", demo_spec(), pool="whole-a100")[0])
    live["spec"] = {**live["spec"], "weight": 10, "limits": {"nodes": "4", "cpu": "16", "memory": "1Ti"}}
    manifest = frozen(live, RUN)
    assert "weight" not in manifest["spec"]
    assert manifest["spec"]["limits"] == {"nodes": "0", "cpu": "16"}
    foreign = frozen(applied(live, manager="flux"), RUN)
    assert foreign["spec"] == {"limits": {"nodes": "0"}}
    assert set(foreign["metadata"]) == {"name", "annotations"}


def test_a_second_freeze_keeps_the_first_ones_memory() -> None:
    live = build("node_pool", demo_spec(), pool="shared-a10g")[0]
    again = frozen(applied(frozen(applied(live), RUN)), RUN)
    assert json.loads(again["metadata"]["annotations"][ANNOTATION_FROZEN_LIMITS]) == {"nodes": "4", "cpu": "16"}


def test_other_limits_of_a_pool_survive_its_freeze() -> None:
    live = pool("x")
    live["spec"]["limits"] = {"cpu": "100"}
    assert frozen(applied(live), RUN)["spec"]["limits"] == {"cpu": "100", "nodes": "0"}


def test_a_pool_reopened_by_hand_is_not_frozen_any_more() -> None:
    manifest = frozen(pool("x"), RUN)
    manifest["spec"]["limits"]["nodes"] = "4"
    assert not is_frozen(manifest)


# --- which way ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("karpenter", list(Karpenter))
@pytest.mark.parametrize("policy", ["fail", "emergency"])
@pytest.mark.parametrize("something_left", [True, False])
def test_the_way_is_decided_for_every_state(karpenter: Karpenter, policy: str, something_left: bool) -> None:
    way = choose_way(karpenter=karpenter, something_left=something_left, policy=policy)
    if not something_left:
        assert way is Way.NOTHING_LEFT
    elif karpenter is Karpenter.ALIVE:
        assert way is Way.BY_KARPENTER
    else:
        assert way is {"fail": Way.REFUSED, "emergency": Way.EMERGENCY}[policy]


def test_an_unknown_policy_is_no_guess() -> None:
    with pytest.raises(ValueError, match="shrug"):
        choose_way(karpenter=Karpenter.DEAD, something_left=True, policy="shrug")


@pytest.mark.parametrize(
    ("pods", "state"),
    [
        ([], Karpenter.DEAD),
        ([karpenter_pod(ready=False)], Karpenter.DEAD),
        ([karpenter_pod(deleting=True)], Karpenter.DEAD),
        ([{"metadata": {"name": "k"}}], Karpenter.DEAD),
        ([karpenter_pod()], Karpenter.ALIVE),
        ([karpenter_pod(ready=False), karpenter_pod()], Karpenter.ALIVE),
    ],
)
def test_karpenter_lives_if_one_pod_is_ready_and_stays(pods: list[dict[str, Any]], state: Karpenter) -> None:
    assert karpenter_state(pods) is state


def labelled_node(name: str, pool_name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"karpenter.sh/nodepool": pool_name}}}


# --- the plan -------------------------------------------------------------------------------------------------------


def plan(**observed: Any) -> TeardownPlan:
    return make_plan(demo_spec(), Observed(**observed), PRICES)


def test_the_plan_prices_what_goes_and_leaves_out_what_stays() -> None:
    found = plan(
        node_pools=[pool("shared-a10g"), pool("whole-a100"), pool("cpu")],
        node_claims=[claim("a", "shared-a10g"), claim("b", "cpu")],
        nodes=[
            {"metadata": {"name": "n1", "labels": {"karpenter.sh/nodepool": "shared-a10g"}}},
            {"metadata": {"name": "n2", "labels": {"karpenter.sh/nodepool": "cpu"}}},
        ],
        instances=[
            instance("i-1", "shared-a10g", InstanceLifecycle="spot"),
            instance("i-2", "whole-a100", "p4d.24xlarge"),
            instance("i-3", "cpu"),
            instance("i-4", "shared-a10g", state="terminated"),
        ],
        karpenter_pods=[karpenter_pod()],
        release_secrets=[
            secret("karpenter", 1, "superseded"),
            secret("karpenter", 2, "deployed"),
            secret("web", 1, "x"),
        ],
    )
    assert (found.pools, found.kept_pools, found.node_claims, found.nodes) == (
        ["shared-a10g", "whole-a100"], ["cpu"], ["a"], ["n1"],
    )  # fmt: skip
    assert [(row["id"], row["price"]) for row in found.instances] == [
        ("i-1", "at most 1.00 USD/h"), ("i-2", "20.00 USD/h"),
    ]  # fmt: skip
    assert (found.cost.usd, found.cost.at_most) == (21.0, True)
    assert found.releases == [{"namespace": "kube-system", "name": "karpenter", "revision": 2, "status": "deployed"}]
    assert found.way is Way.BY_KARPENTER
    json.dumps(found.to_json())


@pytest.mark.parametrize("uninstall", [True, False], ids=["another team's", "manage: false"])
def test_while_karpenter_lives_what_others_are_deleting_is_no_part_of_the_plan(uninstall: bool) -> None:
    """Another team deletes its NodePool between the approval and the deletion of ours, after everybody was evicted."""
    kept = {"nodePools__1__manage": False, "teardown__uninstallKarpenter": False}
    spec, theirs = (demo_spec(), "cpu") if uninstall else (demo_spec(**kept), "whole-a100")

    def now(*, deleting: bool) -> TeardownPlan:
        pods = [
            {
                "metadata": {"name": name, "namespace": "team", "uid": name},
                "spec": {"nodeName": node},
                "status": {"phase": "Running"},
            }
            for name, node in (("mine", "n1"), ("theirs", "n2"))
        ]
        observed = Observed(
            node_pools=[pool("shared-a10g", deleting=True), pool(theirs, deleting=deleting)],
            node_claims=[claim("a", "shared-a10g"), claim("b", theirs)],
            nodes=[labelled_node("n1", "shared-a10g"), labelled_node("n2", theirs)],
            pods=pods,
            instances=[instance("i-1", "shared-a10g"), instance("i-2", theirs)],
            karpenter_pods=[karpenter_pod()],
        )
        return make_plan(spec, observed, PRICES)

    approved, later = now(deleting=False), now(deleting=True)
    assert later.way is Way.BY_KARPENTER
    assert ([row["id"] for row in later.instances], later.node_claims, later.nodes) == (["i-1"], ["a"], ["n1"])
    assert [pod.name for pod in later.judged.drain.refuse] == ["mine"]
    assert list(later.pods) == ["team/mine"]
    assert growth(approved.to_json(), later.to_json()) == []


@pytest.mark.parametrize(
    ("changes", "going"),
    [
        ({}, ["karpenter", "nvidia-device-plugin"]),
        ({"teardown__uninstallKarpenter": False}, ["nvidia-device-plugin"]),
        ({"teardown__uninstallDevicePlugin": False}, ["karpenter"]),
        ({"karpenter__manage": False, "devicePlugin__manage": False}, []),
    ],
)
def test_the_plan_names_only_releases_that_go(changes: dict[str, bool], going: list[str]) -> None:
    spec = demo_spec(**changes)
    secrets = [
        secret("karpenter", 1, "deployed"),
        secret("nvidia-device-plugin", 1, "deployed", spec.device_plugin.namespace),
        secret("nvidia-device-plugin", 1, "deployed", "a-namesake-elsewhere"),
    ]
    found = make_plan(spec, Observed(release_secrets=secrets), PRICES)
    assert [release["name"] for release in found.releases] == going
    assert found.empty is not bool(going)


def test_the_instance_of_a_standalone_claim_goes_only_with_karpenter() -> None:
    observed = Observed(node_claims=[claim("by-hand", None)], instances=[instance("i-1", "")])
    stays = make_plan(demo_spec(teardown__uninstallKarpenter=False), observed, PRICES)
    assert (stays.instances, stays.node_claims, stays.kept_pools, stays.way) == ([], [], [], Way.NOTHING_LEFT)
    assert [row["id"] for row in make_plan(demo_spec(), observed, PRICES).instances] == ["i-1"]


def labelled(name: str, cluster: str | None) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"gpu-fleet.io/cluster": cluster} if cluster else {}}}


def test_what_lives_on_and_needs_karpenter_is_known_by_kind() -> None:
    observed = Observed(
        node_pools=[pool("shared-a10g"), pool("cpu"), pool("going", deleting=True)],
        node_classes=[labelled("shared-a10g", "demo"), labelled("b", "other"), labelled("a", None)],
        node_overlays=[labelled("dear", None)],
    )
    needed = {"NodePools": ["cpu"], "EC2NodeClasses": ["a", "b"], "NodeOverlays": ["dear"]}
    assert needs_karpenter(demo_spec(), observed) == needed
    assert needs_karpenter(demo_spec(teardown__uninstallKarpenter=False), observed) == {}
    assert needs_karpenter(demo_spec(karpenter__manage=False), observed) == {}
    ours = Observed(node_pools=[pool("shared-a10g")], node_classes=[labelled("removed", "demo")])
    assert needs_karpenter(demo_spec(), ours) == {}


def test_the_text_shows_cost_pools_and_pods() -> None:
    job = {"kind": "Job", "name": "train", "controller": True}
    text = to_markdown(
        plan(
            node_pools=[pool("shared-a10g")],
            nodes=[{"metadata": {"name": "n1", "labels": {"karpenter.sh/nodepool": "shared-a10g"}}}],
            pods=[
                {
                    "metadata": {"name": "train-1", "namespace": "team", "uid": "u", "ownerReferences": [job]},
                    "spec": {"nodeName": "n1"},
                    "status": {"phase": "Running"},
                }
            ],
            instances=[instance("i-1", "shared-a10g")],
            karpenter_pods=[karpenter_pod()],
        ),
        demo_spec(),
    )
    for part in (
        "1 NodePool, 1 instance: **1.00 USD/h** (about 730 USD a month)",
        "`shared-a10g`",
        "`i-1`",
        "1 running pod will be evicted",
        "team/Job/train; `team/train-1`",
        "2025-06-05",
    ):
        assert part in text


def test_other_peoples_texts_are_no_markup_in_what_is_approved() -> None:
    hostile = "no`|\n\n## Approved\n[by all](https://x.example) <img src=x> **yes**"
    pod = {
        "metadata": {
            "name": "train-1",
            "namespace": "team",
            "uid": "u1",
            "annotations": {"karpenter.sh/do-not-disrupt": hostile},
            "ownerReferences": [{"kind": "Job", "name": "*train*", "controller": True}],
        },
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running"},
    }
    node = {"metadata": {"name": "n1", "labels": {"karpenter.sh/nodepool": "shared-a10g"}}}
    found = plan(node_pools=[pool("shared-a10g")], nodes=[node], pods=[pod])
    text = to_markdown(replace(found, notes=(hostile,), stays=(hostile,), prices=hostile), demo_spec())
    assert "\n## Approved" not in text
    markup = re.sub(r"(?<!\\)`[^`\n]*`", "", text)
    assert "by all" in markup
    for active in ("<img", " [by all", " **yes**"):
        assert active not in markup
    assert "\\*train\\*" in text


def test_an_empty_cluster_is_said_to_be_empty() -> None:
    found = plan()
    assert found.empty
    assert found.way is Way.NOTHING_LEFT
    assert "Nothing to remove" in to_markdown(found, demo_spec())


def test_a_dead_karpenter_and_unknown_prices_are_noted() -> None:
    text = to_markdown(
        plan(node_pools=[pool("shared-a10g")], instances=[instance("i-1", "shared-a10g", "b9.large")]), demo_spec()
    )
    assert "whenKarpenterIsDead: emergency" in text
    assert "1 instances without a known list price" in text
    assert "unknown price" in text


def test_a_long_list_of_pods_is_cut_with_its_count() -> None:
    nodes = [{"metadata": {"name": "n1", "labels": {"karpenter.sh/nodepool": "shared-a10g"}}}]
    pods = [
        {
            "metadata": {
                "name": f"p{i:02}",
                "namespace": "t",
                "uid": f"u{i}",
                "ownerReferences": [{"kind": "Job", "name": f"j{i:02}", "controller": True}],
            },
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running"},
        }
        for i in range(25)
    ]
    text = to_markdown(plan(node_pools=[pool("shared-a10g")], nodes=nodes, pods=pods), demo_spec())
    assert "25 running pods" in text
    assert "and 5 more" in text


# --- helpers --------------------------------------------------------------------------------------------------------


def test_user_pods_are_those_that_somebody_will_miss() -> None:
    def on(node: str, name: str, **metadata: Any) -> dict[str, Any]:
        phase = metadata.pop("phase", "Running")
        return {
            "metadata": {"name": name, "namespace": "t", **metadata},
            "spec": {"nodeName": node},
            "status": {"phase": phase},
        }

    pods = [
        on("n1", "mine"),
        on("n2", "elsewhere"),
        on("n1", "done", phase="Succeeded"),
        on("n1", "agent", ownerReferences=[{"kind": "DaemonSet", "name": "d", "controller": True}]),
        on("n1", "static", annotations={"kubernetes.io/config.mirror": "x"}),
        on("n1", "placeholder", labels={"gpu-fleet.io/component": "placeholder"}),
    ]
    assert user_pods(pods, ["n1"]) == {"t/mine": "t/mine"}


def test_of_each_release_the_newest_revision_counts_by_number() -> None:
    found = releases(
        [
            secret("nvidia-device-plugin", 9, "superseded", "nvidia-device-plugin"),
            secret("nvidia-device-plugin", 10, "failed", "nvidia-device-plugin"),
            secret("karpenter-crd", 1, "deployed"),
            {"metadata": {"namespace": "kube-system", "labels": {"name": "karpenter"}}},
        ],
        releases_that_go(demo_spec()),
    )
    assert [(r["name"], r["revision"], r["status"]) for r in found] == [
        ("karpenter-crd", 1, "deployed"), ("nvidia-device-plugin", 10, "failed"),
    ]  # fmt: skip


# --- after the approval ---------------------------------------------------------------------------------------------

APPROVED = {
    "pools": ["a"],
    "instances": [{"id": "i-1", "type": "g5.xlarge"}],
    "pods": {"default/web": "default/web", "default/api-1": "default/Deployment/api"},
}


@pytest.mark.parametrize(
    ("changes", "grown"),
    [
        ({}, []),
        ({"pools": [], "instances": [], "pods": {}}, []),
        ({"pools": ["a", "b"]}, ["NodePool b"]),
        ({"instances": [{"id": "i-2", "type": "p4d.24xlarge"}]}, ["instance i-2 (p4d.24xlarge)"]),
        ({"pods": {"default/train": "default/train", "default/web": "default/web"}}, ["pod default/train"]),
        ({"pods": {"default/api-2": "default/Deployment/api"}}, []),
        ({"pods": {"default/fit-1": "default/Job/fit"}}, ["pod default/fit-1"]),
    ],
    ids=["the same", "all gone", "a pool", "an instance", "a pod", "another pod of a workload", "another workload"],
)
def test_what_was_not_approved_is_growth(changes: dict[str, Any], grown: list[str]) -> None:
    assert growth(APPROVED, {**APPROVED, **changes}) == grown


def test_without_an_approved_plan_everything_is_growth() -> None:
    assert growth({}, APPROVED) == ["NodePool a", "instance i-1 (g5.xlarge)", "pod default/web", "pod default/api-1"]


def test_a_deployments_pods_are_known_by_the_deployment() -> None:
    def owned(name: str, kind: str, owner: str, **labels: str) -> dict[str, Any]:
        references = [{"kind": kind, "name": owner, "controller": True}]
        meta = {"namespace": "t", "name": name, "labels": labels, "ownerReferences": references}
        return {"metadata": meta, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}

    pods = [
        owned("api-5d-x", "ReplicaSet", "api-5d", **{"pod-template-hash": "5d"}),
        owned("lone-y", "ReplicaSet", "lone"),
        owned("fit-z", "Job", "fit"),
    ]
    assert user_pods(pods, ["n1"]) == {
        "t/api-5d-x": "t/Deployment/api", "t/fit-z": "t/Job/fit", "t/lone-y": "t/ReplicaSet/lone",
    }  # fmt: skip
