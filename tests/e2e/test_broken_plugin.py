"""An upgrade of the device plugin that can never become ready: named, rolled back to what was proven, all healthy."""

from __future__ import annotations

import pytest

from demo import facts
from demo.run import BROKEN_TAG
from tests.e2e.fleet import CLUSTER, LIFECYCLE, PLUGIN_NAMESPACE, STANDING, Fleet, Json, Run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

PLUGIN = "nvidia-device-plugin"


class Upgrade:
    """The run with the broken image tag, and what stood before it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.before = facts.releases(fleet.kubectl)
        self.proven: Json = fleet.releases()[PLUGIN]
        self.history_before = fleet.history(PLUGIN, PLUGIN_NAMESPACE)
        self.claims = set(fleet.node_claims())
        fleet.write_cluster(CLUSTER, {"devicePlugin": {"values": {"image": {"tag": BROKEN_TAG}}}})
        self.run: Run = fleet.run(LIFECYCLE, {"until": "validated"})
        fleet.write_cluster()
        self.health = facts.wait_for_health(fleet.kubectl, self.before, timeout=60)
        self.history = fleet.history(PLUGIN, PLUGIN_NAMESPACE)


@pytest.fixture(scope="module")
def upgrade(the_fleet: Fleet) -> Upgrade:
    the_fleet.repair()
    the_fleet.stand()
    return Upgrade(the_fleet)


@pytest.mark.real_api
def test_run_fails_and_names_the_image_that_cannot_be_pulled(upgrade: Upgrade, fleet: Fleet) -> None:
    fleet.runs.append((upgrade.run.dag_id, upgrade.run.run_id))
    assert upgrade.run.state == "failed"
    named = {task_id: upgrade.run.log(task_id) for task_id in upgrade.run.failed}
    assert named
    causes = [task_id for task_id, log in named.items() if BROKEN_TAG in log and "ImagePull" in log]
    assert causes, f"none of {sorted(named)} names the tag and ImagePull"
    assert upgrade.run.states()["prove.remediate_device_plugin"] == "success"


@pytest.mark.real_api
def test_plugin_is_rolled_back_to_the_proven_revision_by_its_number(upgrade: Upgrade) -> None:
    proven = upgrade.proven["proven_revision"]
    new = [row for row in upgrade.history if row["revision"] > upgrade.history_before[-1]["revision"]]
    assert [row["description"] for row in new[1:]] == [f"Rollback to {proven}"]
    assert (new[0]["revision"], new[-1]["status"]) == (proven + 1, "deployed")


@pytest.mark.real_api
def test_end_state_is_healthy(upgrade: Upgrade) -> None:
    assert upgrade.health["healthy"], upgrade.health["message"]
    assert {pool: sorted(counts) for pool, counts in upgrade.fleet.allocatable().items()} == STANDING
    assert set(upgrade.fleet.node_claims()) == upgrade.claims
    images = {
        container["image"].rsplit(":", 1)[1]
        for pod in upgrade.fleet.kubectl.get("pods", "-n", PLUGIN_NAMESPACE)
        for container in pod["spec"]["containers"]
    }
    assert BROKEN_TAG not in images


@pytest.mark.full
def test_next_run_with_the_file_put_right_changes_no_release(upgrade: Upgrade, fleet: Fleet) -> None:
    before = fleet.revisions()
    fleet.lifecycle().succeeded()
    assert fleet.revisions() == before
