"""A teardown beside others, from its plan to the drains' first evictions: what is known before, what is taken back.

On the sandbox's AWS and API server; nothing plays controllers, kubelet or Karpenter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.errors import DeadlinePassed, Forbidden, PermanentError
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_POOL, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY, ANNOTATION_EVICTED_FOR, ANNOTATION_FROZEN_BY
from gpu_fleet.core.manifests.build import build
from gpu_fleet.hooks.aws import AwsSession, aws_session
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.teardown.delete import DeleteRuntimeClassOperator
from tests.unit.core.specs import demo_spec
from tests.unit.operators.teardown_world import (
    AIRFLOW,
    OTHER,
    POOL,
    RUN,
    Teardown,
    budget,
    cordoned,
    frozen_pools,
    furnished,
    running,
    teardown_world,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeClient]:
    with teardown_world(tmp_path_factory.mktemp("cloud")) as client:
        yield client


@pytest.fixture
def kube(world: KubeClient) -> Iterator[KubeClient]:
    with furnished(world) as client:
        yield client


def untouched(kube: KubeClient) -> dict[str, str]:
    """The versions of everything that a refused teardown must not write to."""
    items = [*kube.list(NODE_POOL), *kube.list(NODE), *kube.list(POD)]
    return {f"{item['kind']} {item['metadata']['name']}": item["metadata"]["resourceVersion"] for item in items}


# --- known before the approval ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("approved", [None, "plan"])
def test_a_bare_pod_of_an_airflow_task_refuses_the_teardown_before_anything_is_done(
    kube: KubeClient, approved: str | None
) -> None:
    running(kube, "train-abc", on=f"node-{POOL}", labels=AIRFLOW)
    before = untouched(kube)
    with pytest.raises(PermanentError) as refused:
        Teardown().plan(approved_task_id=approved)
    assert refused.value.reason == "DrainRefused"
    for part in (
        "default/train-abc on node-shared-a10g",
        "task train of Airflow's DAG train_on_request in run manual__7",
        "nothing was frozen, cordoned or evicted",
        "let the task end",
        "evictBarePods",
        "drain.force: true",
        "clear plan",
    ):
        assert part in refused.value.message
    assert untouched(kube) == before


def test_the_param_lets_bare_pods_go_and_the_approval_says_so(kube: KubeClient) -> None:
    running(kube, "train-abc", on=f"node-{POOL}", labels=AIRFLOW)
    result = Teardown(evictBarePods=True).plan()
    assert "task train of Airflow's DAG train_on_request" in result["markdown"].replace("\\", "")
    assert "only a retry of task train" in result["markdown"]
    assert result["plan"]["refused"] == []
    assert [victim["pod"] for victim in result["plan"]["victims"]] == ["default/train-abc"]


def test_another_try_of_the_same_airflow_task_is_no_growth(kube: KubeClient) -> None:
    teardown = Teardown(evictBarePods=True)
    running(kube, "train-1", on=f"node-{POOL}", labels=AIRFLOW)
    teardown.ti.xcoms["return_value"] = teardown.plan()
    kube.delete(ObjectRef(POD, "train-1", "default"), grace_seconds=0)
    running(kube, "train-2", on=f"node-{POOL}", labels=AIRFLOW)
    assert teardown.plan(approved_task_id="plan")["plan"]["pods"]
    running(kube, "other", on=f"node-{POOL}", labels={**AIRFLOW, "run_id": "manual__8"})
    with pytest.raises(PermanentError, match="pod default/other") as grown:
        teardown.plan(approved_task_id="plan")
    assert grown.value.reason == "PlanGrew"


def test_the_approval_names_budgets_that_allow_nothing_and_pods_that_ask_to_stay(kube: KubeClient) -> None:
    stay = {"karpenter.sh/do-not-disrupt": "72h"}
    running(kube, "web-1", on=f"node-{POOL}", owner="ReplicaSet", labels={"app": "web"}, annotations=stay)
    running(kube, "db-1", on=f"node-{OTHER}", owner="StatefulSet", labels={"app": "db"})
    budget(kube)
    budget(kube, 1, "one", "db")
    budget(kube, 1, "two", "db")
    result = Teardown().plan()
    text = result["markdown"]
    order = [text.index(part) for part in ("**Removes:**", "**Interrupts:** 2 running pods", "ask not to be disrupted",
                                           "**Blocks the drain:**", "| removed")]  # fmt: skip
    assert order == sorted(order)
    assert "`default/web-1` (`72h`)" in text
    assert (
        "PodDisruptionBudget web allows no disruption (it needs 1 healthy pods and has 1), in namespace default" in text
    )
    assert "PodDisruptionBudgets one and two select the same pod" in text
    assert "after 10m the drain fails" in text
    assert {"default/web-1", "default/db-1"} == {pod for pods in result["plan"]["forbidden"].values() for pod in pods}
    json.dumps(result)


def instance_with_a_volume(aws: AwsSession) -> tuple[str, str]:
    tags = {"kubernetes.io/cluster/demo-gpu": "owned", "karpenter.sh/nodepool": POOL, "karpenter.sh/nodeclaim": "c"}
    image = aws.paginate("ec2", "describe_images", "Images")[0]["ImageId"]
    mapping = {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 100, "VolumeType": "gp3", "DeleteOnTermination": True}}
    answer = aws.call(
        "ec2", "run_instances", ImageId=image, InstanceType="g5.xlarge", MinCount=1, MaxCount=1,
        BlockDeviceMappings=[mapping],
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}],
    )  # fmt: skip
    instance = answer["Instances"][0]
    zone = instance["Placement"]["AvailabilityZone"]
    made = aws.call("ec2", "create_volume", AvailabilityZone=zone, Size=1000, VolumeType="gp3")
    aws.call("ec2", "attach_volume", VolumeId=made["VolumeId"], InstanceId=instance["InstanceId"], Device="/dev/xvdb")
    return str(instance["InstanceId"]), str(made["VolumeId"])


def test_the_sum_has_the_volumes_that_go_and_the_text_those_that_stay(kube: KubeClient) -> None:
    aws = aws_session("aws_demo", "us-west-2")
    instance, kept = instance_with_a_volume(aws)
    volume = {
        "capacity": {"storage": "1000Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "csi": {"driver": "ebs.csi.aws.com", "volumeHandle": kept},
        "claimRef": {"namespace": "team", "name": "data"},
    }
    kube.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv-1"}, "spec": volume})
    try:
        result = Teardown().plan()
    finally:
        aws.call("ec2", "detach_volume", VolumeId=kept, InstanceId=instance)
        aws.call("ec2", "terminate_instances", InstanceIds=[instance])
        aws.call("ec2", "delete_volume", VolumeId=kept)
    # 1.006 USD of the instance, and 100 GiB of gp3 at 0.08 USD a month of 730 hours.
    assert result["plan"]["usdPerHour"] == pytest.approx(1.006 + 100 * 0.08 / 730)
    assert "1 volume of 100 GiB" in result["markdown"]
    stays = f"volume `{kept}`, 1000 GiB gp3, 80.00 USD a month: PersistentVolume pv-1 of team/data, Retain"
    assert stays in result["markdown"].split("**Keeps:**")[1]


# --- what stays -------------------------------------------------------------------------------------------------------


def test_the_approval_says_for_whom_the_runtime_class_stays_and_the_task_keeps_to_it(kube: KubeClient) -> None:
    """A NodePool of others that may launch GPU nodes is gone when the task runs: what was approved to stay stays."""
    manifest = build("node_pool", demo_spec(), pool=POOL)[0]
    manifest["metadata"] = {"name": "vision"}
    kube.apply(manifest, field_manager="somebody")
    spec = demo_spec(teardown__uninstallKarpenter=False)
    kube.apply(build("runtime_class", spec)[0])
    teardown = Teardown(spec)
    result = teardown.plan()
    assert result["plan"]["keeps"]["runtimeClass"] == ["NodePool vision may launch nodes with GPUs"]
    assert "the RuntimeClass: NodePool vision may launch nodes with GPUs" in result["markdown"].split("**Keeps:**")[1]
    kube.delete(ObjectRef(NODE_POOL, "vision"))
    teardown.ti.xcoms["return_value"] = result
    again = teardown.plan(approved_task_id="plan")
    assert again["plan"]["keeps"]["runtimeClass"] == [
        "NodePool vision may launch nodes with GPUs (when the teardown was approved)"
    ]
    teardown.ti.xcoms["return_value"] = again
    # Our pools are not gone in this test; the task is asked what it would do once they are.
    for name in (POOL, OTHER):
        kube.delete(ObjectRef(NODE_POOL, name))
    kept = teardown.run("class", DeleteRuntimeClassOperator(task_id="class", plan_task_id="plan"))
    assert kept["kept"] == ["RuntimeClass nvidia"]


def test_without_the_permission_to_see_node_groups_the_runtime_class_stays(
    kube: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    paginate = AwsSession.paginate

    def refuse(self: AwsSession, service: str, operation: str, path: str, **params: Any) -> list[Any]:
        if operation == "list_nodegroups":
            raise Forbidden("AWS eks list_nodegroups: not authorized")
        return paginate(self, service, operation, path, **params)

    monkeypatch.setattr(AwsSession, "paginate", refuse)
    result = Teardown().plan()
    assert "grant eks:ListNodegroups and eks:DescribeNodegroup" in result["plan"]["keeps"]["runtimeClass"][0]
    assert result["plan"]["keeps"]["devicePlugin"] == []


def test_beside_node_groups_without_gpus_both_go(kube: KubeClient) -> None:
    assert Teardown().plan()["plan"]["keeps"] == {"devicePlugin": [], "runtimeClass": []}


# --- taken back -------------------------------------------------------------------------------------------------------


def test_a_drain_that_evicts_nobody_takes_its_cordons_back_and_then_the_freeze_is_undone(kube: KubeClient) -> None:
    before = {pool["metadata"]["name"]: pool["spec"] for pool in kube.list(NODE_POOL)}
    running(kube, "web-1", on=f"node-{POOL}", owner="ReplicaSet", labels={"app": "web"})
    budget(kube)
    teardown = Teardown()
    teardown.freeze()
    assert frozen_pools(kube) == [POOL, OTHER]
    teardown.drain(OTHER)
    assert teardown.drain(POOL) is None
    assert cordoned(kube) == [f"node-{POOL}", f"node-{OTHER}"]
    with pytest.raises(DeadlinePassed, match=r"(?s)nothing was evicted; uncordoned node-shared-a10g.*web-1"):
        teardown.time_is_up(POOL)
    assert cordoned(kube) == [f"node-{OTHER}"]
    undone = teardown.undo()
    assert (undone["undone"], undone["thawed"], undone["uncordoned"]) == (True, [POOL, OTHER], [f"node-{OTHER}"])
    assert {pool["metadata"]["name"]: pool["spec"] for pool in kube.list(NODE_POOL)} == before
    for pool in kube.list(NODE_POOL):
        assert not pool["metadata"].get("annotations")
    assert cordoned(kube) == []
    assert "deletionTimestamp" not in (kube.get(ObjectRef(POD, "web-1", "default")) or {})["metadata"]
    # Nothing is left to take back, and a drain that is cleared alone would evict into open pools.
    assert teardown.undo()["thawed"] == []
    teardown.contexts.clear()
    with pytest.raises(PermanentError, match=r"clear teardown\.plan_again") as refused:
        teardown.drain(POOL)
    assert refused.value.reason == "NotFrozen"
    assert cordoned(kube) == []


def test_once_a_pod_was_evicted_the_freeze_stays(kube: KubeClient) -> None:
    running(kube, "web-1", on=f"node-{POOL}", owner="ReplicaSet", labels={"app": "web"})
    running(kube, "db-1", on=f"node-{OTHER}", owner="ReplicaSet", labels={"app": "db"})
    budget(kube)
    teardown = Teardown()
    teardown.freeze()
    teardown.drain(POOL)
    teardown.drain(OTHER)  # evicts
    with pytest.raises(DeadlinePassed, match="uncordoned node-shared-a10g"):
        teardown.time_is_up(POOL)
    with pytest.raises(DeadlinePassed, match=r"(?s)as pods have been evicted.*db-1"):
        teardown.time_is_up(OTHER)
    undone = teardown.undo()
    assert (undone["undone"], undone["why"]) == (False, f"pods have been evicted from {OTHER}")
    assert frozen_pools(kube) == [POOL, OTHER]
    marks = (kube.get(ObjectRef(NODE_POOL, OTHER)) or {})["metadata"]["annotations"]
    assert (marks[ANNOTATION_FROZEN_BY], marks[ANNOTATION_EVICTED_FOR]) == (RUN, RUN)


def test_a_drain_killed_after_its_cordon_is_taken_back_all_the_same(kube: KubeClient) -> None:
    """Its last try was killed, so it has said and taken back nothing itself."""
    running(kube, "web-1", on=f"node-{POOL}", owner="ReplicaSet", labels={"app": "web"})
    budget(kube)
    teardown = Teardown()
    teardown.freeze()
    teardown.drain(POOL)
    teardown.states |= {f"drain_{POOL}": "failed", f"drain_{OTHER}": "failed"}
    kube.patch(ObjectRef(NODE, f"node-{OTHER}"), {"spec": {"unschedulable": True}})  # a person's
    assert teardown.undo()["uncordoned"] == [f"node-{POOL}"]
    assert (frozen_pools(kube), cordoned(kube)) == ([], [f"node-{OTHER}"])


def test_a_drain_killed_between_mark_and_eviction_counts_as_one_that_evicted(
    kube: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be known is not taken back."""
    running(kube, "web-1", on=f"node-{POOL}", owner="ReplicaSet", labels={"app": "web"})
    teardown = Teardown()
    teardown.freeze()
    evict = KubeClient.evict

    def killed(self: KubeClient, *args: Any, **options: Any) -> None:
        if not options.get("dry_run"):
            raise SystemExit
        evict(self, *args, **options)

    monkeypatch.setattr(KubeClient, "evict", killed)
    with pytest.raises(SystemExit):
        teardown.drain(POOL)
    teardown.states |= {f"drain_{POOL}": "failed", f"drain_{OTHER}": "success"}
    assert teardown.undo()["undone"] is False
    assert frozen_pools(kube) == [POOL, OTHER]


def test_finished_pods_and_our_own_are_nobodys_loss(kube: KubeClient) -> None:
    running(kube, "done", on=f"node-{POOL}")
    kube.patch(ObjectRef(POD, "done", "default"), {"status": {"phase": "Succeeded"}}, subresource="status")
    running(kube, "ask", on=f"node-{POOL}", labels={"gpu-fleet.io/component": "placeholder"})
    running(kube, "web-1", on=f"node-{POOL}", owner="ReplicaSet", labels={"app": "web"})
    budget(kube)
    teardown = Teardown()
    teardown.freeze()
    teardown.drain(POOL)
    assert (kube.get(ObjectRef(POD, "ask", "default")) or {})["metadata"]["deletionTimestamp"]
    kube.delete(ObjectRef(POD, "ask", "default"), grace_seconds=0)
    kube.delete(ObjectRef(POD, "done", "default"), grace_seconds=0)
    teardown.states |= {f"drain_{POOL}": "failed", f"drain_{OTHER}": "success"}
    assert teardown.undo()["undone"] is True


@pytest.mark.parametrize(
    ("states", "why"),
    [
        ({"freeze": "success", f"drain_{POOL}": "success", f"drain_{OTHER}": "success"}, "every drain succeeded"),
        ({"freeze": "skipped", f"drain_{POOL}": "skipped", f"drain_{OTHER}": "skipped"}, "nothing was frozen"),
        ({"freeze": "upstream_failed", f"drain_{POOL}": "upstream_failed"}, "nothing was frozen"),
        ({}, "nothing was frozen"),
    ],
)
def test_in_most_runs_there_is_nothing_to_take_back(kube: KubeClient, states: dict[str, str], why: str) -> None:
    teardown = Teardown()
    teardown.freeze()
    teardown.states.clear()
    teardown.states |= states
    assert teardown.undo() == {"undone": False, "why": why, "thawed": [], "uncordoned": []}
    assert frozen_pools(kube) == [POOL, OTHER]


def freeze_half(teardown: Teardown, monkeypatch: pytest.MonkeyPatch) -> None:
    """A freeze that fails after the first pool."""
    apply = KubeClient.apply

    def second_fails(self: KubeClient, manifest: Any, **options: Any) -> Any:
        if manifest["metadata"]["name"] == OTHER:
            raise Forbidden("no")
        return apply(self, manifest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(KubeClient, "apply", second_fails)
        with pytest.raises(Forbidden):
            teardown.freeze()


def test_a_freeze_that_failed_half_way_is_taken_back(kube: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    teardown = Teardown()
    freeze_half(teardown, monkeypatch)
    assert frozen_pools(kube) == [POOL]
    teardown.states |= {f"drain_{POOL}": "upstream_failed", f"drain_{OTHER}": "upstream_failed"}
    assert teardown.undo()["thawed"] == [POOL]


def ended_by_a_person(teardown: Teardown, **states: str) -> None:
    """What Airflow then makes of tasks that wait for a retry, or have not begun: it skips them."""
    teardown.ti.xcoms["return_value"] = {"deployment": "d", "run_id": teardown.ti.run_id}
    skipped = dict.fromkeys(("freeze", f"drain_{POOL}", f"drain_{OTHER}"), "skipped")
    teardown.states |= {"turn": "success", **skipped, **states}


def test_a_freeze_that_waited_for_its_retry_when_a_person_ended_the_run_is_taken_back(
    kube: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    teardown = Teardown()
    freeze_half(teardown, monkeypatch)
    assert frozen_pools(kube) == [POOL]
    ended_by_a_person(teardown)
    assert teardown.undo()["thawed"] == [POOL]
    assert frozen_pools(kube) == []


def test_a_run_that_a_person_ended_before_its_freeze_leaves_what_others_did(kube: KubeClient) -> None:
    earlier = Teardown()
    earlier.ti.run_id = "manual__0"
    earlier.freeze()
    cordon = {"metadata": {"annotations": {ANNOTATION_CORDONED_BY: "gpu_lifecycle.demo/manual__0"}}}
    kube.patch(ObjectRef(NODE, f"node-{POOL}"), {**cordon, "spec": {"unschedulable": True}})
    mine = Teardown()
    ended_by_a_person(mine)
    assert mine.undo() == {"undone": False, "why": "nothing was frozen", "thawed": [], "uncordoned": []}
    assert (frozen_pools(kube), cordoned(kube)) == ([POOL, OTHER], [f"node-{POOL}"])


def test_a_plan_that_is_made_anew_and_rejected_ends_quietly_beside_the_turn_of_the_pass_before(
    kube: KubeClient,
) -> None:
    """Airflow keeps the result of a cleared task until it starts anew, and after Reject it never does."""
    teardown = Teardown()
    teardown.freeze()
    ended_by_a_person(teardown, turn="skipped")
    assert teardown.undo()["why"] == "nothing was frozen"


def test_the_freeze_of_an_earlier_run_is_taken_over_unless_that_one_evicted(kube: KubeClient) -> None:
    earlier = Teardown()
    earlier.ti.run_id = "manual__0"
    earlier.freeze()
    mine = Teardown()
    assert mine.freeze()["frozen"] == [POOL, OTHER]
    assert mine.freeze()["already"] == [POOL, OTHER]
    running(kube, "web-1", on=f"node-{POOL}", owner="ReplicaSet", labels={"app": "web"})
    mine.drain(POOL)
    later = Teardown()
    later.ti.run_id = "manual__2"
    assert later.freeze() == {"frozen": [OTHER], "already": [POOL], "pods": []}
    later.states |= {f"drain_{POOL}": "failed", f"drain_{OTHER}": "failed"}
    assert later.undo()["undone"] is False


def test_a_limit_of_before_comes_back_with_what_others_own(kube: KubeClient) -> None:
    before = (kube.get(ObjectRef(NODE_POOL, POOL)) or {})["spec"]["limits"]
    theirs = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": POOL},
              "spec": {"limits": {"memory": "100Gi"}}}  # fmt: skip
    kube.apply(theirs, field_manager="flux")
    teardown = Teardown()
    teardown.freeze()
    during = (kube.get(ObjectRef(NODE_POOL, POOL)) or {})["spec"]["limits"]
    assert (during["memory"], during["nodes"]) == ("100Gi", "0")
    teardown.states |= {f"drain_{POOL}": "failed", f"drain_{OTHER}": "failed"}
    teardown.undo()
    after = (kube.get(ObjectRef(NODE_POOL, POOL)) or {})["spec"]["limits"]
    assert after == {**before, "memory": "100Gi"}
    kube.apply({**theirs, "spec": {"limits": {"memory": "200Gi"}}}, field_manager="flux")  # no conflict with us


def test_a_bare_pod_that_came_after_the_plan_is_found_before_the_cordon(kube: KubeClient) -> None:
    teardown = Teardown()
    teardown.freeze()
    running(kube, "train-abc", on=f"node-{POOL}", labels=AIRFLOW)
    with pytest.raises(PermanentError, match="nothing was evicted or cordoned") as refused:
        teardown.drain(POOL)
    assert refused.value.reason == "DrainRefused"
    assert cordoned(kube) == []
    marked = (kube.get(ObjectRef(NODE, f"node-{POOL}")) or {})["metadata"].get("annotations") or {}
    assert ANNOTATION_CORDONED_BY not in marked
