"""Any task may be killed at any instant: what comes out is what a clean run gives.

The instants are drawn anew each time; ``E2E_KILL_SEED`` repeats those of an earlier run (a failure prints it).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass

import pytest

from demo import facts
from demo.processes import alive, session_pids
from demo.run import BROKEN_TAG
from tests.e2e.fleet import LIFECYCLE, TEARDOWN, Fleet, Run, until
from tests.e2e.killer import (
    EndState,
    Killer,
    differences,
    end_state,
    ended_at,
    launched,
    process_of,
    triggerer,
    usual_seconds,
)

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]

SEED = int(os.environ.get("E2E_KILL_SEED") or random.randrange(10**6))
#: How often a task that was over before its kill came is tried again, in another run.
ROUNDS = 6
NODES = 3
REMEDIATE = "prove.remediate_device_plugin"


@dataclass
class Clean:
    """What an undisturbed lifecycle with its teardown leaves behind.

    :ivar standing: the cluster before the teardown.
    :ivar torn_down: after it.
    """

    run: Run
    standing: EndState
    torn_down: EndState
    usual: dict[str, float]


@pytest.fixture(scope="module")
def clean(the_fleet: Fleet) -> Clean:
    the_fleet.reset()
    standing: list[EndState] = []
    run = the_fleet.run(
        LIFECYCLE, {"until": "torn_down"}, before_answer=lambda: standing.append(settled(the_fleet))
    ).succeeded()
    assert not standing[0].open, standing[0].open
    assert not the_fleet.leftovers()
    return Clean(run, standing[0], end_state(the_fleet), usual_seconds(run))


def settled(fleet: Fleet) -> EndState:
    """The state, as soon as nothing is on its way out any more: deletions are not waited for by the run itself."""

    def look() -> EndState | None:
        state = end_state(fleet)
        return None if any("is being deleted" in told for told in state.open) else state

    state: EndState = until("the end of all deletions", look, 30)
    return state


def kills(
    fleet: Fleet,
    dag_id: str,
    until_param: str,
    usual: dict[str, float],
    number: int,
    spare: Collection[str] = (),
    standing: EndState | None = None,
) -> tuple[Run, set[str]]:
    """One run whose tasks are killed; the run, and who was hit.

    :param standing: what the cluster must look like when the run asks for the teardown's approval.
    """
    found: list[str] = []

    def compare() -> None:
        if standing is not None:
            found.extend(differences(standing, settled(fleet)))

    run_id = fleet.start(dag_id, {"until": until_param} if dag_id == LIFECYCLE else None)
    killer = Killer(fleet, dag_id, run_id, seed=SEED + number, usual=usual, spare=spare, hurry=0.8 * 0.6**number)
    with killer:
        run = fleet.follow(dag_id, run_id, before_answer=compare, timeout=600)
    hits = killer.hits(run)
    print(f"seed {SEED} round {number}: {dag_id} {run.seconds:.0f} s, {len(hits)} killed of {len(killer.kills)}")
    for kill in killer.kills:
        print(f"  {kill.after:5.2f} s {'resumed ' if kill.resumed else ''}{kill.task_id}")
    run.succeeded()
    assert not found, f"before the teardown: {found}"
    return run, hits


#: The scheduler itself gives it its state.
NO_PROCESS = {"reached_end", "provisioned"}


def test_every_task_of_the_lifecycle_is_killed_once(fleet: Fleet, clean: Clean) -> None:
    """The roll-back, which has nothing to do in a healthy lifecycle, is killed at its work by a test of its own."""
    every, hit = set(clean.run.tasks) - NO_PROCESS, set[str]()
    for number in range(ROUNDS):
        before = launched(fleet)
        _, now = kills(fleet, LIFECYCLE, "torn_down", clean.usual, number, spare=hit, standing=clean.standing)
        hit |= now
        assert len(launched(fleet) - before) == NODES, "an instance more (or less) than wanted was launched"
        assert not fleet.leftovers()
        assert not differences(clean.torn_down, end_state(fleet))
        if hit == every:
            break
    assert hit == every, f"never killed in time: {sorted(every - hit)}"


def test_every_task_of_the_teardown_is_killed_once(fleet: Fleet, clean: Clean) -> None:
    every, hit = set[str](), set[str]()
    for number in range(ROUNDS):
        fleet.lifecycle().succeeded()
        run, now = kills(fleet, TEARDOWN, "", clean.usual, number, spare=hit)
        every, hit = set(run.tasks) - NO_PROCESS, hit | now
        assert not fleet.leftovers()
        assert not differences(clean.torn_down, end_state(fleet))
        if hit == every:
            break
    assert hit == every, f"never killed in time: {sorted(every - hit)}"


def test_the_rollback_of_a_broken_release_is_killed(fleet: Fleet) -> None:
    fleet.stand()
    before = list(fleet.releases().values())
    # Nodes stand: the plugin's pods are replaced, and fail at once.
    broken = {"devicePlugin": {"values": {"image": {"tag": BROKEN_TAG}}}}
    hit = False
    for number in range(ROUNDS):
        fleet.write_cluster(changes=broken)
        run_id = fleet.start(LIFECYCLE, {"until": "validated"})
        killer = Killer(fleet, LIFECYCLE, run_id, seed=SEED + number, usual={REMEDIATE: 3.0}, only={REMEDIATE})
        with killer:
            run = fleet.follow(LIFECYCLE, run_id, timeout=600)
        print(f"seed {SEED} round {number}: {killer.kills}")
        assert "prove.prove_device_plugin" in run.failed
        assert run.states()[REMEDIATE] == "success", run.log(REMEDIATE)
        health = facts.wait_for_health(fleet.kubectl, before, timeout=60)
        assert health["healthy"], health["message"]
        assert not [
            name for name, status in fleet.revisions().items() if status not in ("deployed", "superseded", "failed")
        ]
        hit = bool(killer.hits(run))
        if hit:
            break
    assert hit, "never killed in time"
    fleet.write_cluster()
    fleet.lifecycle().succeeded()


def test_a_triggerer_that_dies_does_not_move_the_deadline(
    fleet: Fleet, replacements: list[subprocess.Popen[bytes]]
) -> None:
    fleet.write_cluster(changes={"deadlines": {"clusterActive": "70s"}})
    task_id = "preflight.cluster_active"
    with fleet.fault("eks-status", {"status": "UPDATING"}):
        run_id = fleet.start(LIFECYCLE, {"until": "validated"})
        fleet.wait_for_task(LIFECYCLE, run_id, task_id, "deferred")
        waiting = fleet.api.xcom(LIFECYCLE, run_id, task_id, "waiting_for")
        before = until("the trigger's triggerer", lambda: holder(fleet, run_id, task_id), 20)
        pid = triggerer(fleet)
        command, environment = process_of(pid)
        died = [pid, *(child for child in session_pids(pid) if child != pid)]
        for each in died:
            os.kill(each, signal.SIGKILL)
        until("the triggerer's end", lambda: not alive(died), 20)
        with (fleet.stack.build_dir / "triggerer.log").open("wb") as log:
            fresh_one = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        replacements.append(fresh_one)
        # Airflow hands the trigger over when the dead one's heartbeat is half a minute old.
        until("the hand-over", lambda: holder(fleet, run_id, task_id) not in (None, before), 60)
        handed_over = time.time()
        run = fleet.follow(LIFECYCLE, run_id, timeout=240)
    assert fresh_one.poll() is None
    assert run.failed == [task_id]
    assert "still waiting for cluster_active at its deadline" in run.log(task_id)
    ended = ended_at(run, task_id)
    assert waiting["deadline"] <= ended < handed_over + 70, "the wait began anew with the new triggerer"


def holder(fleet: Fleet, run_id: str, task_id: str) -> int | None:
    """Airflow's number of the triggerer that runs a task's trigger."""
    rows = fleet.query(
        "SELECT triggerer_id FROM trigger JOIN task_instance ON trigger.id = task_instance.trigger_id "
        "WHERE dag_id = ? AND run_id = ? AND task_id = ?",
        LIFECYCLE,
        run_id,
        task_id,
    )
    return rows[0]["triggerer_id"] if rows else None
