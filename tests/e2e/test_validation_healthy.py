"""A healthy pool raises no alarm, however often it is validated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.fleet import SHARED, WHOLE, Fleet, cluster_spec
from tests.e2e.revalidation import left_behind

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(1200)]

#: Validations of each of two pools. They run without the scheduler, whose part is tested elsewhere, and hold GPUs for
#: less time than the other tests do; the operators, the pods, the probe programs and the verdicts are the same. A round
#: takes some 24 s on two cores, so ``make test-full`` has time for eight; ``E2E_HEALTHY_ROUNDS=25`` (or more) is for
#: a release: fifty validations without a false alarm.
ROUNDS = int(os.environ.get("E2E_HEALTHY_ROUNDS", "8"))
#: Simulated; 3 s and 2 s at speed 15.
SHORT = {"validation": {"overlap": "45s", "throughput": {"duration": "30s"}, "minimumDriver": "570"}}


@pytest.fixture
def rounds(fleet: Fleet) -> Fleet:
    """Capacity that stands."""
    fleet.stand()
    return fleet


def test_healthy_pools_raise_no_alarm(rounds: Fleet) -> None:
    """Both pools at the same time, as in a run of the DAG."""
    fleet = rounds
    claims = set(fleet.node_claims())
    spec = cluster_spec(changes=SHORT)
    workers = {pool: start(fleet, {"spec": spec, "pool": pool, "rounds": ROUNDS}) for pool in (SHARED, WHOLE)}
    try:
        told = {pool: worker.communicate(timeout=1100)[0] for pool, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
    for pool, out in told.items():
        results = [json.loads(line) for line in out.splitlines() if line.startswith('{"round"')]
        assert workers[pool].returncode == 0, out[-3000:]
        assert [alarm for result in results for alarm in result["alarms"]] == []
        assert len(results) == ROUNDS
        print(f"{pool}: {sum(result['seconds'] for result in results) / ROUNDS:.1f} s a round")
        for result in results:
            assert set(result["outcomes"].values()) == {"Passed"}, (pool, result)
    assert left_behind(fleet, claims) == []


def start(fleet: Fleet, asked: dict[str, object]) -> subprocess.Popen[str]:
    """A worker in the environment of Airflow's tasks."""
    script = str(Path(__file__).with_name("validation_worker.py"))
    env = {**os.environ, **fleet.environment, **ENVIRONMENT, "AIRFLOW_HOME": str(fleet.stack.airflow_home)}
    for name in ("KUBECONFIG", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        env.pop(name, None)
    command = [sys.executable, script, json.dumps(asked)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
