"""Every DAG of the package: present, loadable, documented, and with the relations that its promises rest on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.dags.conftest import ROOT, Parse

DEMO_DAGS = {
    "gpu_drain.demo",
    "gpu_lifecycle.demo",
    "gpu_restore.demo",
    "gpu_revalidate.demo",
    "gpu_spot_drain.demo",
    "gpu_teardown.demo",
}
POOLS = ("shared-a10g", "whole-a100")
PROBE = {"shared-a10g": "sharing", "whole-a100": "exclusive"}


@pytest.fixture(scope="module")
def lifecycle(fleet: dict[str, Any]) -> dict[str, Any]:
    tasks: dict[str, Any] = fleet["dags"]["gpu_lifecycle.demo"]["tasks"]
    return tasks


@pytest.fixture(scope="module")
def teardown(fleet: dict[str, Any]) -> dict[str, Any]:
    tasks: dict[str, Any] = fleet["dags"]["gpu_teardown.demo"]["tasks"]
    return tasks


def ancestors(tasks: dict[str, Any], task_id: str) -> set[str]:
    found: set[str] = set()
    todo = list(tasks[task_id]["upstream"])
    while todo:
        current = todo.pop()
        if current not in found:
            found.add(current)
            todo += tasks[current]["upstream"]
    return found


# --- presence --------------------------------------------------------------------------------------------------------
def test_shipped_fleet_gives_exactly_its_dags(fleet: dict[str, Any]) -> None:
    assert fleet["errors"] == {}
    assert set(fleet["dags"]) == DEMO_DAGS


def test_every_dag_file_is_accounted_for() -> None:
    # The demo has no headroom: tests/dags/test_headroom.py.
    # Nor has it a gated pool, and so no gpu_admit.
    families = {dag.split(".")[0] for dag in DEMO_DAGS} | {"gpu_admit", "gpu_headroom"}
    assert {path.stem for path in (ROOT / "dags").glob("*.py")} == families


def test_exact_task_counts(lifecycle: dict[str, Any], teardown: dict[str, Any]) -> None:
    per_pool = 4 + 2 + 6 + 2  # provision, capacity, validation, drain and publish
    shared_teardown = 18
    assert len(teardown) == 1 + 1 + shared_teardown + 2 * len(POOLS) + 2
    assert len(lifecycle) == 1 + 7 + 6 + 3 + 1 + 2 + 2 + shared_teardown + 2 + len(POOLS) * per_pool


@pytest.mark.parametrize("dag_id", sorted(DEMO_DAGS))
def test_dag_is_documented_tagged_owned_and_bounded(fleet: dict[str, Any], dag_id: str) -> None:
    dag = fleet["dags"][dag_id]
    assert "shared-a10g" in dag["doc"]
    assert len(dag["doc"]) > 300
    assert {"gpu-fleet", "cluster:demo"} <= set(dag["tags"])
    # Interrupted nodes cannot wait for another run; all other runs would wait for the cluster lock.
    assert dag["max_active_runs"] == (16 if dag_id == "gpu_spot_drain.demo" else 1)
    assert dag["timeout"] > 3600
    assert {task["owner"] for task in dag["tasks"].values()} == {"platform-gpu"}


def test_params_are_a_described_form(fleet: dict[str, Any]) -> None:
    params = fleet["dags"]["gpu_lifecycle.demo"]["params"]
    assert set(params) == {"until", "pools", "evictBarePods", "replaceDrifted", "proveBurst"}
    assert set(fleet["dags"]["gpu_teardown.demo"]["params"]) == {"evictBarePods"}
    assert params["replaceDrifted"]["enum"] == ["none", "idle"]
    assert params["until"]["enum"] == ["validated", "torn_down"]
    assert params["pools"]["items"]["enum"] == list(POOLS)
    assert all(param["description"] and param["title"] for param in params.values())


def test_an_interruption_is_drained_before_anything_else(fleet: dict[str, Any]) -> None:
    """Each hop between tasks takes a second of the two minutes; the lock may be held for an hour."""
    tasks = fleet["dags"]["gpu_spot_drain.demo"]["tasks"]
    assert tasks["drain"]["upstream"] == []
    assert not {task["operator"] for task in tasks.values()} & {"AcquireLockOperator", "FreezeSpecOperator"}
    assert ancestors(tasks, "restore_pools") == {"drain", "publish_lost"}
    assert ancestors(tasks, "pods_placed") == {"drain"}


def test_planned_drains_are_started_beside_everything_else(fleet: dict[str, Any]) -> None:
    tasks = fleet["dags"]["gpu_spot_drain.demo"]["tasks"]
    for task_id in ("drain_planned", "drain_in_window"):
        assert (tasks[task_id]["operator"], ancestors(tasks, task_id)) == ("StartDrainOperator", {"drain"})


# --- drains by hand --------------------------------------------------------------------------------------------------
DRAIN_GATED = [
    ("plan", {"preflight.cluster_active"}),
    ("approve", {"plan"}),
    # Not before the approval: nobody is to wait for a person's answer.
    ("acquire_turn", {"approve"}),
    ("plan_again", {"acquire_turn"}),
    ("cordon", {"plan_again"}),
    *[(f"replacement.pool_{pool}.request_capacity", {"cordon"}) for pool in POOLS],
    ("drain", {"cordon", *(f"replacement.pool_{pool}.{PROBE[pool]}" for pool in POOLS)}),
    ("remove", {"drain"}),
    ("undo_cordons", {"remove"}),
    ("publish_lost", {"remove"}),
    ("pods_placed", {"drain"}),
    ("nothing_lost", {"drain"}),
    # The new nodes stay protected until the drain is over.
    *[(f"replacement.pool_{pool}.clean_up", {"drain", f"replacement.pool_{pool}.{PROBE[pool]}"}) for pool in POOLS],
]


@pytest.mark.parametrize(("task_id", "upstream"), DRAIN_GATED, ids=[task_id for task_id, _ in DRAIN_GATED])
def test_relation_of_a_drain(fleet: dict[str, Any], task_id: str, upstream: set[str]) -> None:
    assert set(fleet["dags"]["gpu_drain.demo"]["tasks"][task_id]["upstream"]) == upstream


def test_a_drain_by_hand_changes_nothing_before_the_approval_and_the_lock(fleet: dict[str, Any]) -> None:
    tasks = fleet["dags"]["gpu_drain.demo"]["tasks"]
    for task_id, task in tasks.items():
        if task["changes_cluster"]:
            assert {"approve", "acquire_turn"} <= ancestors(tasks, task_id), task_id


def test_pools_that_are_not_replaced_do_not_skip_the_drain(fleet: dict[str, Any]) -> None:
    tasks = fleet["dags"]["gpu_drain.demo"]["tasks"]
    assert tasks["drain"]["trigger_rule"] == "none_failed_min_one_success"
    replacing = {task_id for task_id in tasks if task_id.startswith("replacement.")}
    assert {task_id for task_id in replacing if not tasks[task_id]["skips_unselected_pools"]} == set()


def test_the_lock_is_not_held_while_evicted_pods_look_for_a_place(fleet: dict[str, Any]) -> None:
    tasks = fleet["dags"]["gpu_drain.demo"]["tasks"]
    before = ancestors(tasks, "release_turn")
    assert "pods_placed" not in before
    assert {"drain", "remove", "undo_cordons", "publish_lost"} <= before
    direct = set(tasks["release_turn"]["upstream"])
    for task_id in before:
        if len(tasks[task_id]["upstream"]) > 1:
            assert set(tasks[task_id]["upstream"]) <= direct, task_id


def test_the_params_of_a_drain_are_a_described_form(fleet: dict[str, Any]) -> None:
    params = fleet["dags"]["gpu_drain.demo"]["params"]
    assert set(params) == {
        *(
            "nodes",
            "pools",
            "zone",
            "reservation",
            "until",
            "deadline",
            "replaceFirst",
            "remove",
            "dryRun",
            "evictBarePods",
            "askFirst",
            "reason",
        )
    }
    assert params["pools"]["items"]["enum"] == list(POOLS)
    assert (params["deadline"]["type"], params["deadline"]["minimum"]) == (["null", "integer"], 1)
    assert all(param["description"] and param["title"] for param in params.values())


def test_a_restoration_requests_and_proves_without_installing(fleet: dict[str, Any]) -> None:
    tasks = fleet["dags"]["gpu_restore.demo"]["tasks"]
    assert {task_id.partition(".")[0] for task_id in tasks} == {
        *("freeze_spec", "preflight", "capacity", "validation", "release_turn", "reached_end", "run_verdict")
    }
    for pool in POOLS:
        before = ancestors(tasks, f"validation.pool_{pool}.protect_nodes")
        assert {f"capacity.pool_{pool}.await_capacity", "preflight.acquire_turn", "freeze_spec"} <= before
        # A pool that gets no node delays no other.
        others = {f"capacity.pool_{other}.await_capacity" for other in POOLS if other != pool}
        assert not before & others


APPROVALS = {"DrainApprovalOperator", "TeardownApprovalOperator"}


# --- retries and deadlines -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dag_id", sorted(DEMO_DAGS))
def test_every_task_is_retryable_and_bounded(fleet: dict[str, Any], dag_id: str) -> None:
    for task_id, task in fleet["dags"][dag_id]["tasks"].items():
        assert task["retries"] >= 1, task_id
        assert task["retry_policy"], task_id
        # A person's answer is bounded by response_timeout instead.
        assert task["execution_timeout"] or task["operator"] in APPROVALS, task_id


def test_run_verdict_is_the_only_leaf_and_watches_everything(fleet: dict[str, Any]) -> None:
    for dag_id in DEMO_DAGS:
        tasks = fleet["dags"][dag_id]["tasks"]
        assert [task_id for task_id, task in tasks.items() if not task["downstream"]] == ["run_verdict"]
        assert ancestors(tasks, "run_verdict") == set(tasks) - {"run_verdict"}
        assert set(tasks["run_verdict"]["watched"]) == set(tasks) - {"run_verdict"}


# --- the relations that the lessons rest on --------------------------------------------------------------------------
GATED = [
    ("rollout.install_device_plugin", {"rollout.runtime_class_exists"}),
    ("rollout.runtime_class_exists", {"rollout.apply_runtime_class"}),
    ("provision.crds_established", {"provision.install_karpenter_crd"}),
    ("provision.install_karpenter", {"provision.crds_established"}),
    ("provision.karpenter_available", {"provision.install_karpenter"}),
    ("provision.prove_karpenter", {"provision.karpenter_available"}),
    ("provision.prove_karpenter_crd", {"provision.crds_established"}),
    *[
        entry
        for pool in POOLS
        for entry in (
            (
                # It applies the NodePool as well, if there is one.
                f"provision.pool_{pool}.apply_node_class",
                {"provision.crds_established", "rollout.install_device_plugin"},
            ),
            (
                f"provision.pool_{pool}.node_class_ready",
                {f"provision.pool_{pool}.apply_node_class", "provision.karpenter_available"},
            ),
            (
                # Before a node can carry a config entry, the plugin has it.
                f"provision.pool_{pool}.apply_node_pool",
                {f"provision.pool_{pool}.node_class_ready", "rollout.install_device_plugin"},
            ),
            (f"provision.pool_{pool}.node_pool_ready", {f"provision.pool_{pool}.apply_node_pool"}),
            (
                f"capacity.pool_{pool}.request_capacity",
                {"provisioned"},
            ),
            (f"capacity.pool_{pool}.await_capacity", {f"capacity.pool_{pool}.request_capacity"}),
            (
                f"validation.pool_{pool}.protect_nodes",
                {f"capacity.pool_{pool}.await_capacity", "prove.prove_device_plugin"},
            ),
            (f"validation.pool_{pool}.release_placeholders", {f"validation.pool_{pool}.protect_nodes"}),
            (f"validation.pool_{pool}.{PROBE[pool]}", {f"validation.pool_{pool}.release_placeholders"}),
            (f"validation.pool_{pool}.replace_drifted", {f"validation.pool_{pool}.{PROBE[pool]}"}),
            (f"validation.pool_{pool}.clean_up", {f"validation.pool_{pool}.{PROBE[pool]}"}),
            (f"validation.pool_{pool}.publish", {f"validation.pool_{pool}.{PROBE[pool]}"}),
        )
    ],
    (
        "provisioned",
        {
            "provision.prove_karpenter",
            "provision.prove_karpenter_crd",
            "rollout.install_device_plugin",
            *(f"provision.pool_{pool}.node_pool_ready" for pool in POOLS),
        },
    ),
    ("prove.prove_device_plugin", {f"capacity.pool_{pool}.await_capacity" for pool in POOLS}),
    (
        "prove.remediate_device_plugin",
        {"prove.prove_device_plugin", *(f"capacity.pool_{pool}.await_capacity" for pool in POOLS)},
    ),
    ("preflight.plan_changes", {"preflight.cluster_active"}),
    ("preflight.check_neighbours", {"preflight.cluster_active"}),
    (
        "preflight.acquire_turn",
        {
            f"preflight.{task}"
            for task in ("check_tools", "check_aws", "check_prerequisites", "check_neighbours", "plan_changes")
        },
    ),
]

TEARDOWN_GATED = [
    ("teardown.approve", {"teardown.plan"}),
    ("teardown.acquire_turn", {"teardown.approve"}),
    ("teardown.plan_again", {"teardown.acquire_turn"}),
    ("teardown.freeze_pools", {"teardown.plan_again"}),
    *[(f"teardown.drain_{pool}", {"teardown.freeze_pools"}) for pool in POOLS],
    ("teardown.drain_removed_pools", {"teardown.freeze_pools"}),
    ("teardown.delete_node_pools", {"teardown.drain_removed_pools", *(f"teardown.drain_{pool}" for pool in POOLS)}),
    ("teardown.node_claims_gone", {"teardown.delete_node_pools"}),
    ("teardown.instances_gone", {"teardown.node_claims_gone"}),
    *[(f"teardown.publish_{pool}", {"teardown.instances_gone"}) for pool in POOLS],
    ("teardown.delete_node_classes", {"teardown.instances_gone"}),
    ("teardown.node_classes_gone", {"teardown.delete_node_classes"}),
    ("teardown.uninstall_device_plugin", {"teardown.instances_gone"}),
    ("teardown.delete_runtime_class", {"teardown.uninstall_device_plugin"}),
    ("teardown.uninstall_karpenter", {"teardown.node_classes_gone"}),
    ("teardown.uninstall_karpenter_crd", {"teardown.uninstall_karpenter"}),
    (
        "teardown.leak_check",
        {
            "teardown.drain_removed_pools",
            *(f"teardown.drain_{pool}" for pool in POOLS),
            *(f"teardown.publish_{pool}" for pool in POOLS),
            "teardown.undo_freeze",
            "teardown.delete_runtime_class",
            "teardown.uninstall_karpenter_crd",
        },
    ),
    (
        "teardown.undo_freeze",
        {"teardown.drain_removed_pools", *(f"teardown.drain_{pool}" for pool in POOLS)},
    ),
]


@pytest.mark.parametrize(("task_id", "upstream"), GATED, ids=[task_id for task_id, _ in GATED])
def test_lifecycle_relation(lifecycle: dict[str, Any], task_id: str, upstream: set[str]) -> None:
    assert set(lifecycle[task_id]["upstream"]) == upstream


@pytest.mark.parametrize(("task_id", "upstream"), TEARDOWN_GATED, ids=[task_id for task_id, _ in TEARDOWN_GATED])
def test_teardown_relation(
    lifecycle: dict[str, Any], teardown: dict[str, Any], task_id: str, upstream: set[str]
) -> None:
    assert set(teardown[task_id]["upstream"]) == upstream
    assert set(lifecycle[task_id]["upstream"]) == upstream


def test_nobody_is_asked_to_approve_what_a_missing_helm_would_stop_half_way(teardown: dict[str, Any]) -> None:
    assert "preflight.check_tools" in ancestors(teardown, "teardown.plan")
    assert "teardown.plan" in ancestors(teardown, "teardown.approve")


def test_every_gate_of_the_graphs_is_covered_above(fleet: dict[str, Any]) -> None:
    listed = {task_id for task_id, _ in [*GATED, *TEARDOWN_GATED]} | {"preflight.cluster_active"}
    gates = {
        task_id for dag in fleet["dags"].values() for task_id, task in dag["tasks"].items() if task["gate"] is not None
    }
    assert gates <= listed


def test_clean_up_and_turn_are_given_back_whatever_happened(lifecycle: dict[str, Any]) -> None:
    for pool in POOLS:
        assert lifecycle[f"validation.pool_{pool}.publish"]["trigger_rule"] == "all_done"
    for task_id in ("teardown_requested", "reached_end"):
        assert lifecycle[task_id]["trigger_rule"] == "all_done"
    assert lifecycle["teardown.leak_check"]["trigger_rule"] == "none_skipped"


#: What a person who marks a run failed must not keep from running.
GIVES_BACK = {
    "gpu_drain.demo": {"release_turn"},
    "gpu_lifecycle.demo": {"release_turn", "teardown.release_turn"},
    "gpu_restore.demo": {"release_turn"},
    "gpu_revalidate.demo": {"release_turn"},
    "gpu_spot_drain.demo": set(),
    "gpu_teardown.demo": {"teardown.release_turn"},
}


@pytest.mark.parametrize("dag_id", sorted(DEMO_DAGS))
def test_what_gives_back_is_a_teardown_without_a_setup(fleet: dict[str, Any], dag_id: str) -> None:
    """Marking a run failed skips everything else; and a failed setup would keep its teardown from running."""
    tasks = fleet["dags"][dag_id]["tasks"]
    cleaning = {task_id for task_id, task in tasks.items() if task["operator"] == "CleanUpValidationOperator"}
    assert len(cleaning) == (0 if dag_id in ("gpu_spot_drain.demo", "gpu_teardown.demo") else len(POOLS))
    teardowns = {task_id for task_id, task in tasks.items() if task["is_teardown"]}
    undoing = {"teardown.undo_freeze", "undo_cordons"} & set(tasks)
    assert bool(undoing) == (dag_id in ("gpu_drain.demo", "gpu_lifecycle.demo", "gpu_teardown.demo"))
    assert teardowns == {*cleaning, *undoing, *GIVES_BACK[dag_id], "run_verdict"}
    assert not any(task["is_setup"] for task in tasks.values())


@pytest.mark.parametrize("dag_id", sorted(DEMO_DAGS))
def test_the_verdict_counts_although_it_is_a_teardown(fleet: dict[str, Any], dag_id: str) -> None:
    dag = fleet["dags"][dag_id]
    verdict = dag["tasks"]["run_verdict"]
    assert verdict["fails_run"]
    assert "run_verdict" in dag["counted"]
    # What else Airflow counts, the verdict watches: they cannot contradict each other.
    assert set(dag["counted"]) - {"run_verdict"} <= set(verdict["watched"])
    # It waits for what still runs in a run that is ended by hand, when everything else has been skipped.
    assert GIVES_BACK[dag_id] <= set(verdict["upstream"])
    assert verdict["end"] == "reached_end"


def test_teardown_and_its_leak_check_do_not_depend_on_the_selected_pools(lifecycle: dict[str, Any]) -> None:
    """A teardown removes every pool; and one skipped task before the leak check would skip that, too."""
    selective = {task_id for task_id, task in lifecycle.items() if task["skips_unselected_pools"]}
    assert {task_id for task_id in selective if task_id.startswith("teardown.")} == set()
    for pool in POOLS:
        assert f"validation.pool_{pool}.publish" in selective


def test_one_pool_is_enough_to_prove_and_all_are_heard_before_a_roll_back(lifecycle: dict[str, Any]) -> None:
    """Airflow's own rules would skip the proof with a pool that the run leaves out, and roll back too early."""
    for task_id, run_if in (("prove_device_plugin", "any_succeeded"), ("remediate_device_plugin", "any_failed")):
        task = lifecycle[f"prove.{task_id}"]
        assert (task["trigger_rule"], task["run_if"]) == ("all_done", run_if)


def test_turn_is_not_given_back_while_a_chain_still_runs(lifecycle: dict[str, Any]) -> None:
    """A join is upstream_failed as soon as one chain fails; so the release must wait for each chain's own end."""
    direct = set(lifecycle["release_turn"]["upstream"])
    before = ancestors(lifecycle, "release_turn")
    for task_id in before:
        upstream = lifecycle[task_id]["upstream"]
        if len(upstream) > 1:
            assert set(upstream) <= direct, f"{task_id} joins chains that release_turn does not wait for"


def test_teardown_waits_for_the_lifecycle_even_if_it_failed(lifecycle: dict[str, Any]) -> None:
    assert lifecycle["teardown_requested"]["upstream"] == ["release_turn"]
    assert lifecycle["teardown.plan"]["upstream"] == ["teardown_requested"]


# --- parsing ---------------------------------------------------------------------------------------------------------
def test_serialised_dags_do_not_depend_on_the_hash_seed(parse: Parse, fleet: dict[str, Any]) -> None:
    again = parse(PYTHONHASHSEED="4711")
    for dag_id in DEMO_DAGS:
        assert again["dags"][dag_id]["serialized"] == fleet["dags"][dag_id]["serialized"]


def test_parsing_context_builds_one_dag_only(parse: Parse, tmp_path: Path) -> None:
    for name in ("alpha", "beta"):
        write_cluster(tmp_path, name)
    found = parse(tmp_path, _AIRFLOW_PARSING_CONTEXT_DAG_ID="gpu_lifecycle.beta", _AIRFLOW_PARSING_CONTEXT_TASK_ID="x")
    assert set(found["dags"]) == {"gpu_lifecycle.beta"}


def write_cluster(folder: Path, name: str, replace: tuple[str, str] = ("", "")) -> None:
    text = (ROOT / "include" / "clusters" / "demo.yaml").read_text()
    text = text.replace("name: demo\n", f"name: {name}\n").replace("demo-gpu", f"{name}-gpu")
    if replace[0]:
        assert replace[0] in text
        text = text.replace(*replace)
    (folder / f"{name}.yaml").write_text(text)


def write_cluster_as(folder: Path, stem: str, name: str) -> None:
    write_cluster(folder, name)
    (folder / f"{name}.yaml").rename(folder / f"{stem}.yaml")


#: 12 ** 30 words in a kilobyte.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 12)}]\n" for n in range(1, 30))

#: What is wrong with the file of the cluster of that name -> how to write it, and what the message must name.
BROKEN = {
    "wrong-value": (lambda folder: write_cluster(folder, "wrong-value", ("replicas: 4", "replicas: 1")), "replicas"),
    "unknown-key": (
        lambda folder: write_cluster(folder, "unknown-key", ("wantedNodes: 2", "wantedNode: 2")),
        "wantedNode",
    ),
    "bad-cron": (
        lambda folder: write_cluster(folder, "bad-cron", ("schedule: null", 'schedule: "0 24 * * *"')),
        "schedule",
    ),
    "empty": (lambda folder: (folder / "empty.yaml").write_text(""), "empty"),
    "no-yaml": (lambda folder: (folder / "no-yaml.yaml").write_text("a: [1\nb: }"), "YAML"),
    "no-utf8": (lambda folder: (folder / "no-utf8.yaml").write_bytes(b"\xff\xfe\x00"), "UTF-8"),
    "bomb": (lambda folder: (folder / "bomb.yaml").write_text(BOMB), "when its aliases are expanded"),
    "deep": (lambda folder: (folder / "deep.yaml").write_text("a: " + "[" * 100_000), "nested deeper than"),
    "itself": (lambda folder: (folder / "itself.yaml").write_text("a: &a [*a]"), "contains itself"),
    "odd_name_-ddabd191": (lambda folder: write_cluster_as(folder, "odd name!", "odd"), "name"),
    "wrong-name": (lambda folder: write_cluster_as(folder, "wrong-name", "other"), "name"),
    "duplicate": (
        lambda folder: [
            (folder / f"duplicate{suffix}").write_text((folder / "good.yaml").read_text())
            for suffix in (".yaml", ".yml")
        ],
        "duplicate.yml",
    ),
}


@pytest.fixture(scope="module")
def mixed_fleet(parse: Parse, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One good cluster file among all the broken ones."""
    folder = tmp_path_factory.mktemp("clusters")
    write_cluster(folder, "good")
    for write, _ in BROKEN.values():
        write(folder)
    return parse(folder)


@pytest.mark.parametrize("family", sorted(dag_id.partition(".")[0] for dag_id in DEMO_DAGS))
@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_cluster_file_breaks_only_its_own_dags(mixed_fleet: dict[str, Any], name: str, family: str) -> None:
    broken = mixed_fleet["dags"][f"{family}.{name}"]
    assert list(broken["tasks"]) == ["invalid_spec"]
    assert BROKEN[name][1] in broken["doc"]
    assert "invalid" in broken["tags"]


def test_good_cluster_among_broken_ones_is_whole(mixed_fleet: dict[str, Any]) -> None:
    assert mixed_fleet["errors"] == {}
    for family in (dag_id.partition(".")[0] for dag_id in DEMO_DAGS):
        assert len(mixed_fleet["dags"][f"{family}.good"]["tasks"]) > 5


FAMILY_OF_TROUBLE = """
from airflow.sdk import DAG
from gpu_fleet.operators.spec import FreezeSpecOperator
from gpu_fleet.phases.family import fleet_dag, fleet_dags

def graph(spec):
    FreezeSpecOperator(task_id="freeze_spec", cluster=spec.name)
    if spec.name == "half-way":
        raise RuntimeError("the graph ends here")

def build(spec):
    schedule = "0 24 * * *" if spec.name == "bad-cron" else None
    return fleet_dag("trouble", spec, doc="# Trouble", graph=graph, schedule=schedule)

globals().update(fleet_dags("trouble", build))
"""


def test_a_dag_that_cannot_be_built_breaks_only_itself(parse: Parse, tmp_path: Path) -> None:
    """Also one that fails half-way, and one that only Airflow's own validation refuses: both are the file's errors."""
    folder, file = tmp_path / "clusters", tmp_path / "trouble.py"
    folder.mkdir()
    file.write_text(FAMILY_OF_TROUBLE)
    for name in ("good", "half-way", "bad-cron"):
        write_cluster(folder, name)
    found = parse(folder, [file])
    assert found["errors"] == {}
    assert {dag_id: list(dag["tasks"]) for dag_id, dag in found["dags"].items()} == {
        "trouble.good": ["freeze_spec"],
        "trouble.half-way": ["invalid_spec"],
        "trouble.bad-cron": ["invalid_spec"],
    }
    assert "RuntimeError: the graph ends here" in found["dags"]["trouble.half-way"]["doc"]
    assert "0 24 * * *" in found["dags"]["trouble.bad-cron"]["doc"]


def test_only_a_cluster_with_a_gated_pool_has_a_dag_that_admits_nodes(parse: Parse, tmp_path: Path) -> None:
    write_cluster(tmp_path, "open")
    write_cluster(tmp_path, "gated", ("wantedNodes: 2", "wantedNodes: 2\n    admission: gated"))
    (tmp_path / "broken.yaml").write_text("a: [1\nb: }")
    found = parse(tmp_path)
    assert found["errors"] == {}
    admits = {dag_id: dag for dag_id, dag in found["dags"].items() if dag_id.startswith("gpu_admit.")}
    assert set(admits) == {"gpu_admit.gated"}, (
        "nobody knows whether the broken file has a gated pool; its others say it"
    )
    (dag,) = admits.values()
    assert dag["max_active_runs"] == 1
    assert dag["schedule"], "the watcher's asset starts it"
    assert dag["tasks"]["preflight.acquire_turn"]["if_taken"] == "skip"
    assert dag["tasks"]["run_verdict"]["fails_run"]
    assert {"gpu_lifecycle.open", "gpu_lifecycle.gated", "gpu_lifecycle.broken"} <= set(found["dags"])


def test_missing_folder_is_one_clear_import_error(parse: Parse, tmp_path: Path) -> None:
    found = parse(tmp_path / "nowhere")
    assert len(found["errors"]) == len(list((ROOT / "dags").glob("*.py")))
    assert all("GPU_FLEET_CLUSTERS_DIR" in text for text in found["errors"].values())


# --- sources ---------------------------------------------------------------------------------------------------------
DEPRECATED = re.compile(
    r"airflow\.(decorators|models\.(baseoperator|dag|dagbag|param)\b|sensors\.base|hooks\.base|"
    r"utils\.(task_group|trigger_rule|timezone|context)|operators\.)"
)


def test_no_deprecated_airflow_imports() -> None:
    for path in [*(ROOT / "dags").glob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if line.lstrip().startswith(("from airflow", "import airflow")):
                assert not DEPRECATED.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
