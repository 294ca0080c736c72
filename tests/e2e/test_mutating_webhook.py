"""A whole life beside admission webhooks: images are rewritten to ECR, variables, labels and a sidecar are added to all
pods of all namespaces, and the templates of all workloads are rewritten as well, as Kyverno, meshes and agents do."""

from __future__ import annotations

import pytest

from tests.e2e import revalidation
from tests.e2e.fleet import PLUGIN_NAMESPACE, POOLS, STANDING, Fleet, changes
from tests.e2e.revalidation import left_behind

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(420)]

REGISTRY = "123456789012.dkr.ecr.us-west-2.amazonaws.com"
MUTATION = {
    "registry": REGISTRY,
    "env": {"DD_AGENT_HOST": "10.0.0.1"},
    "labels": {"security.istio.io/tlsMode": "istio"},
    "annotations": {"kyverno.io/patched": "yes"},
    "sidecar": "registry.k8s.io/pause:3.9",
    "kinds": ["Pod", "Deployment", "DaemonSet", "StatefulSet", "Job"],
}


def test_the_lifecycle_is_proven_and_validated_and_a_second_run_changes_nothing(empty: Fleet) -> None:
    fleet = empty
    with fleet.fault("mutate-pods", MUTATION):
        fleet.lifecycle().succeeded()
        for name, release in fleet.releases().items():
            assert (release["status"], release["proven_revision"]) == ("deployed", release["revision"]), name
        assert {pool: sorted(counts) for pool, counts in fleet.allocatable().items()} == STANDING
        pods = [
            pod
            for pod in fleet.kubectl.get("pods", "-n", PLUGIN_NAMESPACE)
            if any("k8s-device-plugin" in container["image"] for container in pod["spec"]["containers"])
        ]
        assert len(pods) == 3
        for pod in pods:
            images = {container["name"]: container["image"] for container in pod["spec"]["containers"]}
            assert images.pop("agent")
            assert all(image.startswith(f"{REGISTRY}/") for image in images.values()), images

        before = fleet.snapshot()
        fleet.lifecycle().succeeded()
        assert changes(before, fleet.snapshot()) == {}

        run = revalidation.revalidate(fleet, *POOLS).succeeded()
        assert [revalidation.blamed(run, pool) for pool in POOLS] == [{}, {}]
        assert left_behind(fleet) == []
        fleet.teardown().succeeded()
    assert fleet.leftovers() == []
