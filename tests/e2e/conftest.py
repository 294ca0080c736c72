"""One stack (sandbox and real Airflow) for all end-to-end tests of a session; each test finds an empty cluster or says
what it builds on. With pytest-xdist each worker is a session of its own, with a stack of its own;
a file goes to one worker whole, so it holds tests of one order (see ``order``)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo.borrowed import Borrowed
from demo.processes import stop_group
from demo.run import borrow, still_running
from demo.stack import Stack
from tests.e2e.caps import CapWatch
from tests.e2e.fleet import BORROWED, CHART_CACHE, Fleet, cluster_spec, find_tools, write_spec
from tests.e2e.scanner import scan_all, secrets_of

#: The simulated world's speed: fast, but slow enough for two busy cores to keep its order of events.
SPEED = 15.0
#: Shorter than in production, because here a look costs nobody anything.
ENVIRONMENT = {"GPU_FLEET_POLL_INTERVAL": "1", "GPU_FLEET_TURN_RECHECK": "5", "GPU_FLEET_RETRY_DELAY": "1"}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running sandbox and Airflow; both are stopped at the end of the session, whatever happened.

    With ``E2E_KEEP=FOLDER`` they are started there, or found running from the session before, and left running, to save
    a minute while writing tests; ``python -m demo --build-dir FOLDER down`` stops them. With ``E2E_KUBECONFIG=FILE``
    the API server is that file's, see docs/guides/sandbox.md.
    """
    keep = os.environ.get("E2E_KEEP")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    build = Path(keep).resolve() / worker if keep else tmp_path_factory.mktemp("stack")
    clusters, tools = build / "clusters", build / "tools"
    for folder in (clusters, tools):
        folder.mkdir(parents=True, exist_ok=True)
    found = find_tools()
    (tools / "helm").unlink(missing_ok=True)
    (tools / "helm").symlink_to(found["HELM_BIN"])
    stack = Stack(
        build_dir=build,
        speed=float(os.environ.get("E2E_SPEED", SPEED)),
        clusters_dir=clusters,
        # A link of our own, so that a test can put something else in helm's place.
        extra_env={
            "HELM_BIN": str(tools / "helm"),
            "GPU_FLEET_CHART_CACHE": str(build / CHART_CACHE),
            **ENVIRONMENT,
        },
        outlives=bool(keep),
    )
    with pytest.MonkeyPatch.context() as patch, ended_like_by_ctrl_c():
        patch.setenv("KUBECTL_BIN", found["KUBECTL_BIN"])
        if keep and still_running(build):
            stack.airflow_url = json.loads((build / "stack.json").read_text())["airflow_url"]
            yield stack
            return
        try:
            with somebody_elses_server(stack):
                write_spec(clusters, cluster_spec())
                stack.start(say=lambda *_: None)
                yield stack
        finally:
            if keep:
                for process in (stack.airflow_process, stack.sandbox_process):
                    if process is not None:
                        process.returncode = 0  # or its Popen would complain that it still runs, which is meant
            else:
                stack.stop()
                assert processes_of(build) == [], "the stack was stopped and left these running"


@contextmanager
def somebody_elses_server(stack: Stack) -> Iterator[None]:
    """Claim the API server of ``E2E_KUBECONFIG`` for the tests, and clean it afterwards; without one do nothing."""
    path = os.environ.get("E2E_KUBECONFIG")
    if not path:
        yield
        return
    borrowed = Borrowed.open(Path(path), stack.build_dir / "home")
    borrowed.claim()
    borrow(stack, borrowed)
    BORROWED["cluster"] = borrowed.cluster()
    try:
        yield
    finally:
        stack.stop()
        cleaned = borrowed.clean()
        print(cleaned.text)
        assert (cleaned.left, cleaned.gone) == ([], []), cleaned.text


def processes_of(build: Path) -> list[str]:
    """The command lines of the processes that have to do with a stack's folder, by their arguments or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:  # it has ended, or is somebody else's
            continue
        if command and str(build).encode() in command + environment:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


@contextmanager
def ended_like_by_ctrl_c() -> Iterator[None]:
    """SIGTERM ends pytest at once, without its fixtures' ends; as an interrupt it leaves nothing running."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def the_fleet(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    assert stack.clusters_dir is not None
    fleet = Fleet(stack, stack.clusters_dir, stack.build_dir / "tools", tmp_path_factory.mktemp("home"))
    try:
        yield fleet
        found = scan_all(fleet, secrets_of(fleet))
        assert found == set(), f"after all runs of this stack there are secrets where Airflow keeps them: {found}"
    finally:
        fleet.close()


@pytest.fixture(scope="session")
def replacements(stack: Stack) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that stand in for killed parts of Airflow for the rest of the session, or of a stack that is kept."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started if not os.environ.get("E2E_KEEP") else ():
        stop_group(process)


@pytest.fixture
def fleet(the_fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The stack's doors, with no fault set; the cluster is as the test before left it (see ``empty``).

    Meanwhile an oracle looks that no pool ever has more instances than its cluster file allows, see ``caps.py``. A test
    whose fault is just that says so with the marker ``buys_past_cap``.
    """
    the_fleet.repair()
    the_fleet.runs.clear()
    watch = CapWatch(the_fleet).start()
    the_fleet.caps = watch
    try:
        yield the_fleet
    finally:
        watch.stop()
    if request.node.get_closest_marker("buys_past_cap") is None:
        shown = {pool: f"{count} instances, {cap} allowed" for pool, (count, cap) in watch.broken.items()}
        assert not shown, f"more instances than the cluster file allows: {shown}"


@pytest.fixture
def empty(fleet: Fleet) -> Fleet:
    """The same, with an empty cluster."""
    fleet.reset()
    fleet.runs.clear()
    return fleet


@pytest.fixture
def standing(fleet: Fleet) -> Fleet:
    """The same, with the demo cluster's capacity standing, proven and validated."""
    fleet.stand()
    fleet.runs.clear()
    return fleet


def order(item: pytest.Item) -> int:
    """What wants the capacity standing comes first and shares one lifecycle run, then the defects that are mended
    again, then the upgrade that breaks it; the scan for secrets is after all runs. That saves minutes; no test depends
    on it."""
    fixtures = getattr(item, "fixturenames", ())
    if item.path.stem == "test_secrets":
        return 4
    if "rounds" in fixtures:
        return 1
    return 0 if {"standing", "spot"} & set(fixtures) else 2 if "upgrade" in fixtures else 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    ordered = iter(sorted(here, key=order))
    items[:] = [next(ordered) if item.path.parent == Path(__file__).parent else item for item in items]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, Any]:
    """On a failure, show the end of the logs of the failed tasks."""
    report = yield
    fleet = getattr(item, "funcargs", {}).get("fleet")
    if report.failed and isinstance(fleet, Fleet) and fleet.runs:
        report.sections.append(("failed tasks of the Dag runs", fleet.post_mortem(fleet.runs)))
    return report
