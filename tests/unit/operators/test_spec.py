from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk import DAG, BaseOperator

from gpu_fleet.core.errors import SpecError, TransientError
from gpu_fleet.hooks.files.clusters import load_cluster
from gpu_fleet.hooks.files.runs import LINGERS_S, note_begin, note_end, pinned, run_of
from gpu_fleet.hooks.files.templates import include_dir
from gpu_fleet.operators.base import frozen_spec
from gpu_fleet.operators.spec import FreezeSpecOperator, selected_pools
from gpu_fleet.operators.verdict import RunFailed, RunVerdictOperator
from tests.unit.airflow_context import context
from tests.unit.core.specs import demo_spec

POOLS = ("shared-a10g", "whole-a100")


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "demo.yaml").write_text((include_dir() / "clusters" / "demo.yaml").read_text())
    monkeypatch.setenv("GPU_FLEET_CLUSTERS_DIR", str(tmp_path))
    return tmp_path


def freeze(task_context: dict[str, Any], cluster: str = "demo") -> dict[str, Any]:
    return FreezeSpecOperator(task_id="freeze_spec", cluster=cluster).execute(task_context)


@pytest.mark.parametrize(
    ("param", "selected"),
    [
        (None, list(POOLS)),
        ([], list(POOLS)),
        (["whole-a100"], ["whole-a100"]),
        (["whole-a100", "shared-a10g"], list(POOLS)),
        ("whole-a100", ["whole-a100"]),
    ],
)
def test_selection_of_pools(param: Any, selected: list[str]) -> None:
    assert selected_pools(param, POOLS) == selected


def test_what_a_spec_lets_happen_to_running_jobs_is_logged(clusters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    operator = FreezeSpecOperator(task_id="freeze_spec", cluster="demo")
    monkeypatch.setattr(operator.log, "warning", lambda text, *args: said.append(text % args))
    text = (clusters / "demo.yaml").read_text()
    (clusters / "demo.yaml").write_text(text.replace("capacity: {hold: 0}", "terminationGracePeriod: 48h"))
    operator.execute(context())
    assert [line for line in said if line.startswith("note: nodePools[0].terminationGracePeriod: 48h after a node")]


def test_an_unknown_pool_in_a_param_names_the_known_ones(clusters: Path) -> None:
    with pytest.raises(SpecError, match=r"params\.pools: there is no pool 'nope' .*shared-a10g, whole-a100"):
        freeze(context(pools=["nope"]))


def test_the_frozen_spec_reads_back(clusters: Path) -> None:
    frozen = freeze(context())
    spec = load_cluster("demo")
    assert (frozen["digest"], frozen["file"], frozen["pools"]) == (spec.digest, "demo.yaml", list(POOLS))

    class Pulled:
        def xcom_pull(self, task_ids: str) -> dict[str, Any]:
            return frozen

    assert frozen_spec({"ti": Pulled()}) == spec


def test_a_cleared_task_stays_pinned_when_the_file_has_changed(clusters: Path) -> None:
    task_context = context()
    first = freeze(task_context)
    path = clusters / "demo.yaml"
    path.write_text(path.read_text().replace("wantedNodes: 2", "wantedNodes: 1"))
    assert freeze(task_context) == first
    assert freeze(context())["digest"] != first["digest"]
    path.unlink()
    assert freeze(task_context) == first


def test_a_broken_file_pins_nothing(clusters: Path) -> None:
    task_context = context()
    (clusters / "demo.yaml").write_text("name: demo\nnope: 1\n")
    with pytest.raises(SpecError):
        freeze(task_context)
    assert task_context["task_state_store"] == {}


def test_an_absent_file_is_named(clusters: Path) -> None:
    with pytest.raises(SpecError, match=r"other\.yaml"):
        freeze(context(), "other")


def test_an_absent_cluster_gets_no_capacity(clusters: Path) -> None:
    path = clusters / "demo.yaml"
    path.write_text(path.read_text().replace("state: present", "state: absent"))
    with pytest.raises(SpecError, match=r"state: cluster demo is to be absent.*gpu_teardown\.demo"):
        FreezeSpecOperator(task_id="freeze_spec", cluster="demo", provisions=True).execute(context())
    assert freeze(context())["spec"]["state"] == "absent"


def conf_context(conf: dict[str, Any]) -> dict[str, Any]:
    """As Airflow makes it: "params" are the DAG's, with the whole conf laid over them (sdk definitions/param.py)."""
    from airflow.sdk import DAG, Param

    class Run:
        def __init__(self) -> None:
            self.conf = conf

    dag = DAG("gpu_lifecycle.demo", params={"until": Param("validated"), "pools": Param([], type="array")})
    return {**context(**{"until": "validated", "pools": [], **conf}), "dag_run": Run(), "dag": dag}


def test_a_misspelt_conf_key_is_refused(clusters: Path) -> None:
    with pytest.raises(SpecError, match=r"conf: this DAG has no Param 'untill' \(one of: until, pools\)"):
        freeze(conf_context({"untill": "torn_down"}))


def test_a_conf_of_known_params_is_taken(clusters: Path) -> None:
    assert freeze(conf_context({"until": "torn_down", "pools": ["whole-a100"]}))["pools"] == ["whole-a100"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("connection: aws_demo", "connection: payroll"), "aws.connection"),
        (("access: {mode: eks}", "access: {mode: kubeconfig, path: /root/.kube/config}"), "cluster.access.path"),
    ],
)
def test_a_run_does_not_begin_with_what_the_deployment_does_not_allow(
    clusters: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], field: str
) -> None:
    path = clusters / "demo.yaml"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(SpecError, match="this deployment does not let cluster files use") as caught:
        freeze(context())
    assert caught.value.reason == "NotAllowedHere"
    assert caught.value.field.startswith(field)
    monkeypatch.setenv("GPU_FLEET_ALLOWED_CONNECTIONS", "aws_*,payroll")
    monkeypatch.setenv("GPU_FLEET_ALLOWED_KUBECONFIGS", "/root/.kube")
    assert freeze(context())["digest"]


def test_a_notifier_that_the_deployment_does_not_allow_keeps_no_teardown_from_ending_what_costs_money(
    clusters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clusters / "demo.yaml"
    value = yaml.safe_load(path.read_text())
    pager = {"notifier": "my_company.Pager", "arguments": {"pager_conn_id": "payroll"}}
    value["validation"] = {**(value.get("validation") or {}), "notify": [pager]}
    path.write_text(yaml.safe_dump(value))
    said: list[str] = []
    teardown = FreezeSpecOperator(task_id="freeze_spec", cluster="demo")
    monkeypatch.setattr(teardown.log, "warning", lambda text, *args: said.append(text % args))
    assert teardown.execute(context())["digest"]
    told = [line for line in said if line.startswith("validation.notify[0]")]
    assert len(told) == 2, said
    assert all("this deployment does not let cluster files" in line for line in told)

    with pytest.raises(SpecError) as caught:
        FreezeSpecOperator(task_id="freeze_spec", cluster="demo", provisions=True).execute(context())
    assert caught.value.reason == "NotAllowedHere"

    value["aws"]["connection"] = "payroll"
    path.write_text(yaml.safe_dump(value))
    with pytest.raises(SpecError) as caught:
        teardown.execute(context())
    assert (caught.value.reason, caught.value.field) == ("NotAllowedHere", "aws.connection")


# --- the DAG of a run under way --------------------------------------------------------------------------------------
@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that DAG processor and workers share; nobody has written to it yet."""
    folder = tmp_path / "state"
    monkeypatch.setenv("GPU_FLEET_STATE_DIR", str(folder))
    return folder


def test_a_run_keeps_its_dag_until_its_verdict(clusters: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DAG("gpu_lifecycle.demo", schedule=None):
        operator = FreezeSpecOperator(task_id="freeze_spec", cluster="demo")
        verdict = RunVerdictOperator(task_id="run_verdict", watched=[])
    task_context = context()
    operator.execute(task_context)
    spec = load_cluster("demo")
    (clusters / "demo.yaml").write_text("nope: [")
    assert pinned("gpu_lifecycle.demo") == spec
    (state / "gpu_lifecycle.demo.json").unlink()
    operator.execute(task_context)
    assert pinned("gpu_lifecycle.demo") == spec, "cleared or retried, it keeps the DAG as before"
    moment = time.time()
    monkeypatch.setattr("time.time", lambda: moment + LINGERS_S + 1)
    assert pinned("gpu_lifecycle.demo") == spec
    monkeypatch.setattr("time.time", lambda: moment)
    verdict.execute(task_context)
    monkeypatch.setattr("time.time", lambda: moment + LINGERS_S + 1)
    assert pinned("gpu_lifecycle.demo") is None


@pytest.mark.parametrize("then", ["failed", "success"])
def test_a_run_whose_verdict_could_not_be_read_keeps_its_dag_for_the_next_try(
    clusters: Path, state: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Built from a file that is broken by now, the DAG would not have the task that is tried again."""
    with DAG("gpu_lifecycle.demo", schedule=None):
        operator = FreezeSpecOperator(task_id="freeze_spec", cluster="demo")
        verdict = RunVerdictOperator(task_id="run_verdict", watched=["work"])
    task_context = context()
    operator.execute(task_context)

    def away(**_: Any) -> dict[str, Any]:
        raise ConnectionError("Airflow's API server does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(task_context["ti"], "get_task_states", away)
        with pytest.raises(ConnectionError):
            verdict.execute(task_context)
    assert run_of("gpu_lifecycle.demo") == "manual__1"

    task_context["ti"].task_states = {"freeze_spec": "success", "work": then}
    with contextlib.suppress(RunFailed):
        verdict.execute(task_context)
    assert run_of("gpu_lifecycle.demo") == ""


def test_a_run_waits_until_airflow_has_given_it_the_tasks_of_its_spec(
    clusters: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was edited just before: the DAG in the database is still the older one."""
    with DAG("gpu_lifecycle.demo", schedule=None):
        operator = FreezeSpecOperator(task_id="freeze_spec", cluster="demo")
        BaseOperator(task_id="new")
    task_context = context()
    ti = task_context["ti"]
    ti.task_states = {"freeze_spec": "running", "old": None}
    pauses: list[float] = []

    def parsed_meanwhile(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            ti.task_states = {"freeze_spec": "running", "old": "removed", "new": None}

    monkeypatch.setattr("time.sleep", parsed_meanwhile)
    assert operator.execute(task_context)["digest"]
    assert len(pauses) == 3

    ti.task_states = {"freeze_spec": "running", "old": None}
    moments = iter(range(0, 10_000, 50))
    monkeypatch.setattr("time.monotonic", lambda: float(next(moments)))
    with pytest.raises(TransientError, match=r"it lacks new and it has old.*start another run") as caught:
        operator.execute(task_context)
    assert caught.value.reason == "DagOutdated"


def test_a_run_is_not_begun_with_the_dag_of_a_run_that_left_no_word_of_its_end(
    clusters: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted, or its workers were lost: worker and DAG processor both build its DAG, so these do not differ."""
    with DAG("gpu_lifecycle.demo", schedule=None):
        operator = FreezeSpecOperator(task_id="freeze_spec", cluster="demo")
    task_context = context()
    task_context["ti"].task_states = {"freeze_spec": "running"}
    note_begin("gpu_lifecycle.demo", "deleted", demo_spec(state="absent").to_json(), 500)
    with pytest.raises(TransientError, match=r"the spec of run deleted.*the task is retried") as caught:
        operator.execute(task_context)
    assert caught.value.reason == "DagOutdated"
    assert (run_of("gpu_lifecycle.demo"), pinned("gpu_lifecycle.demo")) == ("manual__1", load_cluster("demo"))
    assert operator.execute(task_context)["digest"], "the next try is built from this run's record"
    assert operator.execute(task_context)["digest"], "cleared while the run is under way"

    note_begin("gpu_lifecycle.demo", "deleted", demo_spec(state="absent").to_json(), 500)
    with pytest.raises(TransientError, match="the spec of run deleted"):
        operator.execute(task_context)
    assert operator.execute(task_context)["digest"]


def test_a_run_of_the_same_id_as_one_that_was_deleted_is_another_run(
    clusters: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DAG("gpu_lifecycle.demo", schedule=None):
        operator = FreezeSpecOperator(task_id="freeze_spec", cluster="demo")
    task_context = context()
    task_context["ti"].task_states = {"freeze_spec": "running"}
    note_begin("gpu_lifecycle.demo", "manual__1", demo_spec(state="absent").to_json(), 500)
    with pytest.raises(TransientError) as caught:
        operator.execute(task_context)
    assert caught.value.reason == "DagOutdated"
    assert operator.execute(task_context)["digest"]


@pytest.mark.parametrize("before", ["nothing", "a run that is over", "a folder that cannot be written"])
def test_a_run_whose_dag_is_that_of_its_file_begins_at_once(
    clusters: Path, state: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    if before == "a run that is over":
        note_begin("gpu_lifecycle.demo", "before", demo_spec(state="absent").to_json(), 500)
        note_end("gpu_lifecycle.demo", "before")
    if before == "a folder that cannot be written":
        state.touch()
    with DAG("gpu_lifecycle.demo", schedule=None):
        operator = FreezeSpecOperator(task_id="freeze_spec", cluster="demo")
    task_context = context()
    task_context["ti"].task_states = {"freeze_spec": "running"}
    assert operator.execute(task_context) == operator.execute(task_context)


def test_of_two_files_about_one_cluster_a_run_is_refused_at_its_start(clusters: Path) -> None:
    text = (clusters / "demo.yaml").read_text()
    (clusters / "twin.yaml").write_text(text.replace("name: demo\n", "name: twin\n"))
    with pytest.raises(SpecError, match="also described by twin"):
        freeze(context())
