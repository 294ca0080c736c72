"""Other teams' GPU nodes and NVIDIA's own static device plugin on the cluster: refused before anything is changed where
it would fight with ours, and left alone where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.e2e.fleet import GPU, LIFECYCLE, STANDING, Fleet, Json, changes, until
from tests.sandbox.nodes.static_plugin import NAME, NAMESPACE, static_plugin

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(420)]

CHECK, GROUP = "preflight.check_neighbours", "team-b"


@pytest.fixture
def neighbour(empty: Fleet) -> Iterator[str]:
    """A GPU node of another team, served by NVIDIA's static DaemonSet as eksctl installs it; the node's name."""
    # Tainted, as GPU nodes are: our placeholders, probes and plugin tolerate that, and are kept off by labels alone.
    wanted = {"instanceType": "g5.xlarge", "group": GROUP, "taints": [f"{GPU}=present:NoSchedule"]}
    empty.sandbox.call("POST", "/nodes", json=wanted)
    empty.kubectl.apply(static_plugin())
    try:
        node = until("the neighbour's node and its GPU", lambda: _served(empty))
        yield str(node["metadata"]["name"])
    finally:
        empty.kubectl.run("-n", NAMESPACE, "delete", "daemonset", NAME, "--ignore-not-found")
        empty.end_node_groups()


def _nodes(fleet: Fleet) -> list[Json]:
    return fleet.kubectl.get("nodes", "-l", f"eks.amazonaws.com/nodegroup={GROUP}")


def _served(fleet: Fleet) -> Json | None:
    ready = [node for node in _nodes(fleet) if {taint["key"] for taint in node["spec"].get("taints", [])} == {GPU}]
    return next((node for node in ready if node["status"].get("allocatable", {}).get(GPU) == "1"), None)


def _on(fleet: Fleet, node: str) -> set[str]:
    pods = fleet.objects("pods", "--field-selector", f"spec.nodeName={node}")
    return {f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in pods}


def test_neighbours_plugin_is_refused_and_narrowed_as_told_both_live_side_by_side(empty: Fleet, neighbour: str) -> None:
    fleet = empty
    # nodeadm has labelled it, so a plugin that selected by this label would take it over.
    (node,) = _nodes(fleet)
    assert node["metadata"]["labels"]["nvidia.com/gpu.present"] == "true"

    before = fleet.snapshot()
    refused = fleet.lifecycle()
    assert (refused.state, refused.failed) == ("failed", [CHECK])
    assert "preflight.cluster_active" in refused.in_state("success")
    # Nothing ran beyond preflight but what only looks, gives back what there is none of, or ends the run.
    assert "preflight.acquire_turn" not in refused.in_state("success")
    beyond = {task_id for task_id in refused.in_state("success") if not task_id.startswith("preflight.")}
    assert beyond <= {"freeze_spec", "release_turn", "teardown.release_turn", "teardown.undo_freeze", "reached_end"}
    assert changes(before, fleet.snapshot()) == {}
    assert fleet.instances() == {}
    log = refused.log(CHECK)
    for words in ("ForeignDevicePlugin", f"DaemonSet {NAMESPACE}/{NAME}", *STANDING, "devicePlugin.manage: false"):
        assert words in log

    # The remedy as the message has it.
    patch = re.search(r"patch daemonset \S+ --type merge -p '(\{.*?\})'", log)
    assert patch is not None, log
    told = patch[1].replace('\\"', '"')
    fleet.kubectl.run("-n", NAMESPACE, "patch", "daemonset", NAME, "--type", "merge", "-p", told)
    theirs = _on(fleet, neighbour)
    seen: set[str] = set()
    run = fleet.run(LIFECYCLE, {"until": "validated"}, on_tick=lambda _: seen.update(_on(fleet, neighbour))).succeeded()

    assert f"{NAME}" in run.log(CHECK)
    assert {pool: sorted(counts) for pool, counts in fleet.allocatable().items()} == STANDING
    # Nothing of ours was ever on their node, and nothing of theirs on ours.
    assert {pod for pod in seen - theirs if not pod.startswith(f"{NAMESPACE}/{NAME}-")} == set()
    assert (_served(fleet) or {})["metadata"]["uid"] == node["metadata"]["uid"]
    ours = {node["metadata"]["name"] for node in fleet.nodes()}
    plugins = fleet.kubectl.get("pods", "-n", NAMESPACE, "-l", "name=nvidia-device-plugin-ds")
    assert plugins
    assert ours.isdisjoint({pod["spec"].get("nodeName") for pod in plugins})
    now = {name: value for name, value in fleet.snapshot().items() if neighbour in name and name.startswith("Node ")}
    assert list(now) == [f"Node /{neighbour}"]
    assert _nodes(fleet)[0]["metadata"]["labels"] == node["metadata"]["labels"]
    assert _nodes(fleet)[0]["spec"] == node["spec"]
