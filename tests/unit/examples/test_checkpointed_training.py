"""The tasks of the example: one Job for one training, however often they run."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from kubernetes.client.exceptions import ApiException

from gpu_fleet.core.interruptions.wishes import Wish, wish_of
from gpu_fleet.core.kubernetes.names import ANNOTATION_INTERRUPTION
from gpu_fleet.core.spec.interruptions import SPOT_NOTICE_S
from gpu_fleet.hooks.files.clusters import load_cluster
from tests.unit.sandboxed import SandboxCloud, sandbox_cloud

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "examples" / "dags" / "checkpointed_training.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(FILE))


@pytest.fixture(scope="module")
def wanted(example: dict[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = example["job_object"]("demo-training", example["PROGRAM"].read_text(), 500)
    return job


# --- the object -------------------------------------------------------------------------------------------------------


def test_the_grace_period_ends_before_the_instance_does(wanted: dict[str, Any]) -> None:
    pod = wanted["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] < SPOT_NOTICE_S - load_cluster("demo").interruptions.margin


def test_the_pod_asks_to_be_told_and_reads_the_annotation_as_a_file(wanted: dict[str, Any]) -> None:
    template = wanted["spec"]["template"]
    assert wish_of(template) is Wish.SIGNAL
    (item,) = template["spec"]["volumes"][1]["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{ANNOTATION_INTERRUPTION}']"
    container = template["spec"]["containers"][0]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    env = {each["name"]: each["value"] for each in container["env"]}
    assert env["NOTICE"] == f"{mounts['interruption']}/{item['path']}"
    assert env["CHECKPOINTS"].startswith(mounts["checkpoints"])


def test_trainings_of_different_names_have_different_checkpoints(example: dict[str, Any]) -> None:
    folders = {
        example["job_object"](name, "", 1)["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"]
        for name in ("a", "b")
    }
    assert len(folders) == 2


# --- its life ---------------------------------------------------------------------------------------------------------


def job(uid: str = "1", *, deleted: bool = False, **conditions: str) -> SimpleNamespace:
    found = [SimpleNamespace(type=kind, status="True", reason=why, message="m") for kind, why in conditions.items()]
    return SimpleNamespace(
        metadata=SimpleNamespace(uid=uid, deletion_timestamp=datetime.now(UTC) if deleted else None),
        status=SimpleNamespace(conditions=found or None),
    )


class Jobs:
    """The API as far as the example uses it; ``there`` is the Job of the wanted name."""

    def __init__(self, there: SimpleNamespace | None = None) -> None:
        self.there = there
        self.deleted: list[Any] = []

    def create_namespaced_job(self, namespace: str, body: dict[str, Any]) -> SimpleNamespace:
        assert namespace == body["metadata"]["namespace"]
        if self.there is not None:
            raise ApiException(status=409)
        self.there = job("new")
        return self.there

    def read_namespaced_job(self, name: str, namespace: str) -> SimpleNamespace:
        if self.there is None:
            raise ApiException(status=404)
        return self.there

    def delete_namespaced_job(self, name: str, namespace: str, body: dict[str, Any]) -> None:
        self.deleted.append(body["preconditions"]["uid"])
        self.there = None


def test_a_second_try_follows_the_job_of_the_first(example: dict[str, Any], wanted: dict[str, Any]) -> None:
    api = Jobs()
    assert example["create_or_find"](api, wanted) == "new"
    assert example["create_or_find"](api, wanted) == "new"
    assert api.deleted == []


def test_a_pool_that_becomes_ready_again_repeats_no_training(example: dict[str, Any], wanted: dict[str, Any]) -> None:
    with pytest.raises(AirflowSkipException, match="has completed already"):
        example["create_or_find"](Jobs(job(Complete="CompletionsReached")), wanted)


def test_a_failed_job_is_replaced(example: dict[str, Any], wanted: dict[str, Any]) -> None:
    api = Jobs(job("old", Failed="BackoffLimitExceeded"))
    with pytest.raises(RuntimeError, match="BackoffLimitExceeded"):
        example["create_or_find"](api, wanted)
    assert api.deleted == ["old"]
    assert example["create_or_find"](api, wanted) == "new"


def test_a_job_that_is_being_deleted_is_waited_for(example: dict[str, Any], wanted: dict[str, Any]) -> None:
    api = Jobs(job(deleted=True))
    with pytest.raises(RuntimeError, match="deleted"):
        example["create_or_find"](api, wanted)
    assert api.deleted == []


@pytest.mark.parametrize("status", [401, 403, 500])
def test_an_api_server_that_refuses_fails_the_try(example: dict[str, Any], status: int) -> None:
    def refuse(*_: Any) -> None:
        raise ApiException(status=status)

    api = SimpleNamespace(create_namespaced_job=refuse, read_namespaced_job=refuse)
    with pytest.raises(ApiException):
        example["create_or_find"](api, {"metadata": {"name": "x"}})
    with pytest.raises(ApiException):
        example["judge"](api, "x", "1")


def test_a_running_job_is_waited_for_and_a_complete_one_is_done(example: dict[str, Any]) -> None:
    assert not example["judge"](Jobs(job()), "x", "1").is_done
    done = example["judge"](Jobs(job(SuccessCriteriaMet="x", Complete="CompletionsReached")), "x", "1")
    assert (done.is_done, done.xcom_value) == (True, "CompletionsReached: m")


@pytest.mark.parametrize(
    ("there", "why"),
    [
        (None, "was deleted; clear start_job"),
        (job("2"), "deleted and created anew"),
        (job(Failed="BackoffLimitExceeded"), "BackoffLimitExceeded"),
    ],
    ids=["deleted", "another", "failed"],
)
def test_a_job_that_will_never_complete_fails_at_once(
    example: dict[str, Any], there: SimpleNamespace | None, why: str
) -> None:
    with pytest.raises(AirflowFailException, match=why):
        example["judge"](Jobs(there), "x", "1")


# --- against the sandbox ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCloud]:
    with sandbox_cloud(tmp_path_factory.mktemp("cloud"), "controllers") as found:
        yield found


@pytest.mark.slow
def test_the_job_is_created_by_the_identity_of_the_connection(cloud: SandboxCloud) -> None:
    """As a worker does it: Airflow's connection, EKS, a token of its own, and a Job that the API server accepts."""
    code = f"""
import json, runpy
found = runpy.run_path({str(FILE)!r})
with found["jobs"]() as api:
    wanted = found["job_object"]("demo", found["PROGRAM"].read_text(), 500)
    uid = found["create_or_find"](api, wanted)
    assert found["create_or_find"](api, wanted) == uid
    assert not found["judge"](api, "demo", uid).is_done
    stored = api.api_client.sanitize_for_serialization(api.read_namespaced_job("demo", "default"))
print("@@@" + json.dumps(stored["spec"]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AWS"))}
    environment |= {
        "AIRFLOW_CONN_AWS_DEMO": cloud.connection,
        # The token is made by `python3.11 -m airflow.providers.amazon…` (amazon provider, hooks/eks.py).
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": cloud.endpoint_url,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "@@@" in done.stdout, done.stderr[-3000:]
    spec = json.loads(done.stdout.split("@@@", 1)[1])
    assert spec["podReplacementPolicy"] == "Failed"
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["Ignore", "Ignore"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 60
