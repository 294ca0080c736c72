"""Which placeholders are created, and what they look like."""

from __future__ import annotations

import pytest

from gpu_fleet.core.capacity.placeholders import (
    hold_name,
    hold_pod,
    placeholder_gpus,
    placeholder_lifetime_s,
    placeholder_pod,
    plan_placeholders,
)
from gpu_fleet.core.manifests.build import pool_labels
from sandbox.karpenter.scheduling.validation import refusal
from tests.unit.core.cluster_objects import POOL, claim, node, placeholder
from tests.unit.core.specs import demo_spec

N1, N2, N3 = (f"ip-10-0-0-{i}.us-west-2.compute.internal" for i in (1, 2, 3))


def test_an_empty_cluster_needs_one_placeholder_per_wanted_node() -> None:
    plan = plan_placeholders(POOL, 2, [], [], [])
    assert plan.create == (0, 1)
    assert plan.mark == ()
    assert plan.remove == ()


def test_all_wanted_nodes_stand_so_a_second_run_changes_nothing() -> None:
    plan = plan_placeholders(POOL, 2, [claim("a", node_name=N1), claim("b", node_name=N2)], [node(N1), node(N2)], [])
    assert plan.create == ()
    assert plan.existing == 2


def test_only_the_missing_node_is_asked_for_and_the_one_that_stands_is_marked() -> None:
    plan = plan_placeholders(POOL, 2, [claim("a", node_name=N1)], [node(N1), node(N2, pool="whole-a100")], [])
    assert plan.create == (0,)
    assert plan.mark == (N1,)


def test_marks_of_a_dead_run_stay_and_the_others_are_added() -> None:
    nodes = [node(N1, standing=True), node(N2, cordoned=True)]
    plan = plan_placeholders(POOL, 3, [], nodes, [])
    assert plan.create == (0, 1)
    assert plan.mark == (N2,)


def test_marks_of_a_dead_run_neither_count_nor_hide_a_node() -> None:
    plan = plan_placeholders(POOL, 1, [claim("a", node_name=N1)], [node(N1, standing=True)], [])
    assert (plan.existing, plan.create, plan.mark) == (1, (), ())


def test_the_node_that_a_placeholder_waits_for_is_not_marked_when_more_are_asked_for() -> None:
    # Marked, it would be lost to the placeholder, which would then buy another.
    nodes = [node(N1, standing=True), node(N2, initialized=False, gpus=None)]
    plan = plan_placeholders(POOL, 4, [], nodes, [placeholder(0)])
    assert plan.create == (1,)
    assert plan.mark == ()


def test_a_node_on_which_a_placeholder_has_settled_is_marked_when_another_is_asked_for() -> None:
    plan = plan_placeholders(POOL, 2, [], [node(N2)], [placeholder(0, node_name=N2, phase="Running")])
    assert (plan.create, plan.mark) == ((1,), (N2,))


def test_a_node_full_of_users_pods_counts_and_buys_no_other() -> None:
    # Whether users hold its GPUs is not even looked at: the node is there.
    assert plan_placeholders(POOL, 1, [claim("a", node_name=N1)], [node(N1)], []).create == ()


@pytest.mark.parametrize(
    "gone",
    [
        node(N1, deleting=True),
        node(N1, taints=("karpenter.sh/disrupted",)),
        node(N1, cordoned=True),
        node(N1, annotations={"gpu-fleet.io/quarantined": "{}"}),
        node(N1, pool="whole-a100"),
    ],
    ids=["being deleted", "disrupted", "cordoned", "quarantined", "of another pool"],
)
def test_a_node_that_takes_no_job_is_replaced(gone: dict) -> None:  # type: ignore[type-arg]
    assert plan_placeholders(POOL, 1, [], [gone], []).create == (0,)


def test_killed_while_creating_the_second_of_three() -> None:
    plan = plan_placeholders(POOL, 3, [], [], [placeholder(0)])
    assert plan.create == (1, 2)
    assert plan.asked == 1


def test_a_claim_on_its_way_serves_the_pending_placeholder_and_is_not_counted_twice() -> None:
    launching = claim("a", node_name="", waiting=("Registered", "NodeNotFound", "Node not registered with cluster"))
    plan = plan_placeholders(POOL, 2, [launching], [], [placeholder(0)])
    assert plan.create == (1,)


def test_a_claim_that_a_users_pod_asked_for_counts_as_well() -> None:
    launching = claim("a", node_name="", waiting=("Launched", "AwaitingReconciliation", ""))
    assert plan_placeholders(POOL, 1, [launching], [], []).create == ()


def test_a_claim_that_is_being_deleted_does_not_count() -> None:
    leaving = claim("a", node_name="", waiting=("Launched", "LaunchFailed", ""), deleting=True)
    assert plan_placeholders(POOL, 1, [leaving], [], []).create == (0,)


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_an_ended_placeholder_is_removed_and_its_index_used_again(phase: str) -> None:
    plan = plan_placeholders(POOL, 1, [], [], [placeholder(0, node_name=N1, phase=phase)])
    assert plan.remove == (f"placeholder-{POOL}-0",)
    assert plan.create == (0,)


def test_a_placeholder_whose_lifetime_is_over_on_a_node_that_stands_is_removed_and_not_needed() -> None:
    over = placeholder(0, node_name=N1, phase="Failed")
    plan = plan_placeholders(POOL, 2, [], [node(N1)], [over])
    assert plan.remove == (f"placeholder-{POOL}-0",)
    assert (plan.existing, plan.create) == (1, (0,))


def test_a_placeholder_on_a_vanished_node_is_removed() -> None:
    plan = plan_placeholders(POOL, 1, [], [], [placeholder(0, node_name=N1, phase="Running")])
    assert plan.remove == (f"placeholder-{POOL}-0",)
    assert plan.create == (0,)


def test_a_terminating_placeholder_keeps_its_name_until_it_is_gone() -> None:
    plan = plan_placeholders(POOL, 1, [], [], [placeholder(0, deleting=True)])
    assert plan.create == (1,)


def test_another_pools_placeholders_are_not_ours() -> None:
    assert plan_placeholders(POOL, 1, [], [], [placeholder(0, pool="whole-a100")]).create == (0,)


def test_nothing_is_wanted() -> None:
    assert plan_placeholders(POOL, 0, [], [node(N1)], []).create == ()


@pytest.mark.parametrize(
    ("sharing", "physical", "expected", "why"),
    [
        ({"mode": "exclusive"}, 8, 8, "the whole node"),
        ({"mode": "timeSlicing", "replicas": 4}, 1, 1, "one GPU"),
        ({"mode": "timeSlicing", "replicas": 4}, 8, 1, "the device plugin refuses a request for 8 shared GPUs"),
        ({"mode": "timeSlicing", "replicas": 4, "failRequestsGreaterThanOne": False}, 8, 8, "it does not"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_a_placeholder_asks_for(sharing: dict, physical: int, expected: int, why: str) -> None:  # type: ignore[type-arg]
    pool = demo_spec(nodePools__0__sharing=sharing).pool(POOL)
    assert placeholder_gpus(pool, physical) == expected, why


def test_the_placeholder_pod() -> None:
    spec = demo_spec()
    pod = placeholder_pod(
        spec.name,
        spec.pool(POOL),
        1,
        gpus=1,
        lifetime_s=placeholder_lifetime_s(spec.deadlines),
        image="registry.k8s.io/pause:3.10",
        run="d/r",
        run_label="x",
    )
    body = pod["spec"]
    # 20 min capacity, 5 min prove, 15 min validation, 30 min slack.
    assert body["activeDeadlineSeconds"] == 70 * 60
    assert pod["metadata"]["name"] == "placeholder-shared-a10g-1"
    assert pod["metadata"]["labels"]["gpu-fleet.io/component"] == "placeholder"
    assert body["priorityClassName"] == "gpu-fleet-placeholder"
    # Of today's template only: one that Karpenter launches from yesterday's is not what is asked for.
    assert body["nodeSelector"] == {"karpenter.sh/nodepool": POOL, **pool_labels(spec.pool(POOL))}
    assert body["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        # Of a node that is not proven yet: it holds what is being proven.
        {"key": "gpu-fleet.io/unproven", "operator": "Exists", "effect": "NoSchedule"},
    ]
    (apart,) = body["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert apart["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    terms = body["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [{"key": "gpu-fleet.io/standing", "operator": "DoesNotExist"}]}]
    (container,) = body["containers"]
    assert container["resources"]["requests"]["nvidia.com/gpu"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert body["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_karpenter_does_not_ignore_a_placeholder_and_ignores_what_is_pinned() -> None:
    """By the sandbox's account of Karpenter's validation of pods."""
    spec = demo_spec()
    asks = placeholder_pod(spec.name, spec.pool(POOL), 0, gpus=1, lifetime_s=60, image="p", run="d/r", run_label="x")
    pinned = hold_pod(spec.name, spec.pool(POOL), N1, gpus=1, minutes=30, image="p", run="d/r", run_label="x")
    assert refusal(asks) is None
    assert "kubernetes.io/hostname is not allowed" in str(refusal(pinned))


def test_holds_of_a_pool_with_a_long_name_have_names_of_their_own() -> None:
    names = {hold_name("p" * 50, node) for node in (N1, N2, N3)}
    assert len(names) == 3
    assert max(map(len, names)) <= 63


def test_a_hold_is_pinned_and_ends_by_itself() -> None:
    spec = demo_spec()
    pod = hold_pod(spec.name, spec.pool(POOL), N1, gpus=1, minutes=30, image="p", run="d/r", run_label="x")
    assert pod["spec"]["nodeSelector"] == {"kubernetes.io/hostname": N1}
    assert pod["spec"]["activeDeadlineSeconds"] == 1800
    assert pod["metadata"]["name"] == "hold-shared-a10g-ip-10-0-0-1"
