"""One stack (sandbox and real Airflow) for all end-to-end tests of a session; each test finds an empty cluster or says
what it builds on."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.stack import Stack
from tests.e2e.fleet import Fleet, cluster_spec, find_tools, write_spec

#: The simulated world's speed: fast, but slow enough for two busy cores to keep its order of events.
SPEED = 15.0


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the link ``helm``, which a test can replace; kubectl is found through the environment."""
    found = find_tools()
    folder = tmp_path_factory.mktemp("tools")
    (folder / "helm").symlink_to(found["HELM_BIN"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECTL_BIN", found["KUBECTL_BIN"])
        yield folder


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Iterator[Stack]:
    """A running sandbox and Airflow; both are stopped at the end of the session, whatever happened."""
    build = tmp_path_factory.mktemp("stack")
    clusters = build / "clusters"
    clusters.mkdir()
    stack = Stack(
        build_dir=build,
        speed=float(os.environ.get("E2E_SPEED", SPEED)),
        clusters_dir=clusters,
        extra_env={"HELM_BIN": str(tools / "helm"), "GPU_FLEET_POLL_INTERVAL": "1", "GPU_FLEET_TURN_RECHECK": "5"},
    )
    write_spec(clusters, cluster_spec())
    try:
        stack.start(say=lambda *_: None)
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def the_fleet(stack: Stack, tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    assert stack.clusters_dir is not None
    fleet = Fleet(stack, stack.clusters_dir, tools, tmp_path_factory.mktemp("home"))
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture
def fleet(the_fleet: Fleet) -> Fleet:
    """The stack's doors, with no fault set; the cluster is as the test before left it (see ``empty``)."""
    the_fleet.repair()
    the_fleet.runs.clear()
    return the_fleet


@pytest.fixture
def empty(fleet: Fleet) -> Fleet:
    """The same, with an empty cluster."""
    fleet.reset()
    fleet.runs.clear()
    return fleet


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, Any]:
    """On a failure, show the end of the logs of the failed tasks."""
    report = yield
    fleet = getattr(item, "funcargs", {}).get("fleet")
    if report.failed and isinstance(fleet, Fleet) and fleet.runs:
        report.sections.append(("failed tasks of the Dag runs", fleet.post_mortem(fleet.runs)))
    return report
