"""Mutations of the sandbox: each turns the lifecycle red at its own place and for its own reason, and once it is taken
back another run, or a teardown, makes everything right. A suite that stays green under them would prove nothing."""

from __future__ import annotations

import pytest

from tests.e2e import mutations
from tests.e2e.fleet import SHARED, Fleet, Json, changes, until
from tests.e2e.mutations import AWAIT_CAPACITY, Mutant, red

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def mutant(fleet: Fleet) -> Mutant:
    """No fault is set; the cluster is as the test before left it. The next modules' tests reset the cluster file."""
    fleet.write_spec(mutations.spec())
    return Mutant(fleet)


def test_a_dropped_runtime_class_is_named(mutant: Mutant) -> None:
    mutant.without_nodes()
    with mutant.fleet.fault("runtimeclass-dropped"):
        run = mutant.lifecycle()
    red(run, AWAIT_CAPACITY, "FailedCreate", 'RuntimeClass "nvidia" not found')
    mutant.recovers()


@pytest.mark.full
def test_one_gpu_instead_of_four_is_named(mutant: Mutant) -> None:
    mutant.without_nodes()
    with mutant.fleet.fault("advertise-replicas", {"value": 1}):
        run = mutant.lifecycle()
        assert mutant.fleet.allocatable() == {SHARED: [1]}
    red(run, AWAIT_CAPACITY, "SharingNotApplied", "has 1 allocatable nvidia.com/gpu, expected 4 (1 physical × 4)")


def test_an_instance_left_after_the_teardown_is_a_leak(mutant: Mutant) -> None:
    """Also the end of the mutation before: the teardown that follows leaves nothing of it."""
    mutant.stands()
    (instance,) = mutant.fleet.instances()
    mutant.fleet.write_spec(mutations.spec(teardown_deadline="15s"))
    with mutant.fleet.fault("leak-instance"):
        run = mutant.teardown()
    red(run, "teardown.instances_gone", instance)
    leaks = run.xcom("teardown.leak_check", "report")["leaks"]
    assert [leak["name"] for leak in leaks if leak["kind"] == "EC2 instance"] == [instance], leaks
    assert instance in run.log("teardown.leak_check")
    mutant.fleet.terminate_unclaimed()
    mutant.empty()


@pytest.mark.full
def test_a_config_without_its_sharing_block_is_named(mutant: Mutant) -> None:
    mutant.without_nodes()
    with mutant.fleet.fault("no-sharing-block"):
        run = mutant.lifecycle()
        assert mutant.fleet.allocatable() == {SHARED: [1]}
    red(run, AWAIT_CAPACITY, "SharingNotApplied", "has 1 allocatable nvidia.com/gpu, expected 4 (1 physical × 4)")
    mutant.without_nodes()
    mutant.recovers()


@pytest.mark.full
def test_gpus_later_than_the_deadline_are_waited_for_in_vain(mutant: Mutant) -> None:
    mutant.without_nodes()
    with mutant.fleet.fault("gpu-late", {"seconds": 900}):  # simulated: one real minute
        run = mutant.lifecycle()
    (node,) = (n["metadata"]["name"] for n in mutant.fleet.nodes())
    red(run, AWAIT_CAPACITY, "DevicePluginNotRegistering", f"node {node} has no nvidia.com/gpu, although", "runs")
    until("the late GPUs", mutant.healthy, timeout=120)
    mutant.recovers()


@pytest.mark.full
def test_a_gpu_that_never_registers_is_named(mutant: Mutant) -> None:
    mutant.without_nodes()
    with mutant.fleet.fault("gpu-never-registers"):
        run = mutant.lifecycle()
    (node,) = (n["metadata"]["name"] for n in mutant.fleet.nodes())
    red(run, AWAIT_CAPACITY, "DevicePluginNotRegistering", f"node {node} has no nvidia.com/gpu, although", "runs")
    mutant.recovers()


@pytest.mark.full
def test_a_plugin_that_wants_no_pods_is_named(mutant: Mutant) -> None:
    mutant.without_nodes()
    with mutant.fleet.fault("plugin-wants-zero"):
        run = mutant.lifecycle()
    red(run, AWAIT_CAPACITY, "DevicePluginAbsent", "has no device-plugin pod", "DaemonSet does not want one there")
    mutant.recovers()


@pytest.mark.full
def test_a_node_that_never_gets_ready_is_named(mutant: Mutant) -> None:
    mutant.without_nodes()
    with mutant.fleet.fault("node-never-ready"):
        run = mutant.lifecycle()
        (node,) = (n["metadata"]["name"] for n in mutant.fleet.nodes())
    red(run, AWAIT_CAPACITY, "DeadlinePassed", "NodeNotReady", f"node {node} is not Ready")
    mutant.recovers()


@pytest.mark.full
def test_a_pending_probe_that_buys_a_node_is_noticed(mutant: Mutant) -> None:
    mutant.stands()
    before: set[str] = set()

    def once_capacity_stands(tasks: dict[str, Json]) -> None:
        if not before and tasks[AWAIT_CAPACITY]["state"] == "success":
            before.update(mutant.fleet.node_claims())
            mutant.fleet.sandbox.set_fault("extra-node")

    run = mutant.lifecycle(on_tick=once_capacity_stands)
    grown = [claim["metadata"]["name"] for uid, claim in mutant.fleet.node_claims().items() if uid not in before]
    assert len(before) == 1
    assert grown, "the mutation had no effect"
    red(run, f"validation.pool_{SHARED}.sharing", "NodeClaimsBought", "appeared during validation")
    assert run.states()[f"validation.pool_{SHARED}.clean_up"] == "success"
    mutant.fleet.repair()
    mutant.empty()


@pytest.mark.full
def test_a_program_in_helms_place_that_does_nothing_is_no_helm(mutant: Mutant) -> None:
    mutant.empty()
    before = mutant.fleet.snapshot()
    with mutant.fleet.helm_replaced_by("exit 0"):
        run = mutant.lifecycle()
    red(run, "preflight.check_tools", "ToolError", "helm", "version")
    grown = changes(before, mutant.fleet.snapshot())
    assert not [key for key in grown if not key.startswith("ConfigMap gpu-fleet-system/turn")], grown


@pytest.mark.full
def test_a_helm_that_only_claims_success_is_not_believed(mutant: Mutant) -> None:
    mutant.empty()
    with mutant.fleet.helm_replaced_by('if [ "$1" = version ]; then echo v4.2.3; fi; exit 0'):
        run = mutant.lifecycle()
    red(run, "provision.install_karpenter_crd", "helm")
    assert "rollout.install_device_plugin" in run.failed
    assert not mutant.fleet.revisions()
    mutant.recovers()
