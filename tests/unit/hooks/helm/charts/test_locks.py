"""The lock file of this repository, and what it means with the sandbox's chart repository."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.releases.charts.locks import LockFile, charts_of, unlocked_charts
from gpu_fleet.core.releases.components import chart_of
from gpu_fleet.hooks.files.clusters import CLUSTERS_DIR_VARIABLE, load_cluster
from gpu_fleet.hooks.files.templates import include_dir
from gpu_fleet.hooks.helm.charts.archives import fetch_chart
from gpu_fleet.hooks.helm.charts.locks import LOCK_FILE, apply_locks, lock_path, read_locks
from sandbox.chartrepo import ChartRepository
from tests.e2e.helm_world import helm_binary

#: Charts of the default spec whose publisher names no digest of their archive outside the registry.
BY_VERSION = ["karpenter-crd", "karpenter"]
#: Where a digest was published: host and path, the version of it, and its date.
SOURCE = re.compile(r"(?:[\w-]+\.)+\w+/\S+, .*\bat [0-9a-f]{7,40}, .*\b\d{4}-\d{2}-\d{2}\b.*")


def committed() -> LockFile:
    found = read_locks(lock_path(include_dir() / "clusters"))
    assert found is not None
    return found


def test_every_committed_digest_names_its_source() -> None:
    assert committed().charts
    for item in committed().charts:
        assert SOURCE.fullmatch(item.source), f"{item.name}: {item.source!r} does not say where and when"
    assert not SOURCE.fullmatch("from the web")
    assert not SOURCE.fullmatch("github.com/a/b, branch gh-pages at bf584288, index.yaml")


def test_the_charts_of_the_default_spec_are_locked_or_known_exceptions() -> None:
    spec = load_cluster("demo", include_dir() / "clusters")
    assert [chart.name for chart in unlocked_charts(spec, committed())] == BY_VERSION
    assert {item.name for item in committed().charts} == {item.name for item in charts_of(spec)} - set(BY_VERSION)
    assert committed().others, "or every run of the default spec would be refused"


def test_a_run_says_which_charts_are_pinned_by_version_alone(caplog: pytest.LogCaptureFixture) -> None:
    folder = include_dir() / "clusters"
    with caplog.at_level(logging.INFO):
        spec = apply_locks(load_cluster("demo", folder), folder)
    (digest,) = {item.digest for item in committed().charts}
    assert spec.device_plugin.chart.digest == digest
    assert (spec.karpenter.chart.digest, spec.karpenter.chart.crd_digest) == (None, None)
    assert [line.split(" ")[0].rpartition("/")[2] for line in caplog.messages] == BY_VERSION


def test_a_process_that_has_run_no_task_yet_applies_the_lock_file() -> None:
    """`freeze_spec` may be a worker's first task, and the command line runs none: nothing has prepared the process."""
    code = (
        "from gpu_fleet.hooks.files.clusters import load_cluster\n"
        "from gpu_fleet.hooks.helm.charts.locks import apply_locks\n"
        "print(apply_locks(load_cluster('demo')).device_plugin.chart.digest)"
    )
    environment = {name: value for name, value in os.environ.items() if name != CLUSTERS_DIR_VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == committed().charts[0].digest


@pytest_asyncio.fixture
async def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ChartRepository]:
    """The sandbox's, as the mirror of the real ones: its charts are stand-ins with other digests."""
    served = ChartRepository()
    await served.start()
    monkeypatch.setenv("HELM_BIN", helm_binary())
    monkeypatch.setenv("GPU_FLEET_CHART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GPU_FLEET_CHART_MIRRORS", json.dumps(served.mirrors()))
    yield served
    await served.close()


async def test_another_archive_than_the_locked_one_is_refused(repository: ChartRepository) -> None:
    folder = include_dir() / "clusters"
    spec = apply_locks(load_cluster("demo", folder), folder)
    chart = chart_of(spec, "device-plugin")
    (stand_in,) = (item for item in repository.archives if (item.name, item.version) == (chart.name, chart.version))
    with pytest.raises(SpecError) as caught:
        await asyncio.to_thread(fetch_chart, chart)
    assert caught.value.reason == "ChartDigestMismatch"
    assert chart.sha256 in caught.value.message
    assert stand_in.digest in caught.value.message
    assert "python -m gpu_fleet lock" in caught.value.remedy
    crds = chart_of(spec, "karpenter-crd")
    assert (await asyncio.to_thread(fetch_chart, crds)).is_file(), "it is pinned by its version"


async def test_the_sandbox_s_charts_are_taken_where_the_cluster_files_have_no_lock_file(
    repository: ChartRepository, tmp_path: Path
) -> None:
    """Demo and tests copy the cluster files into a folder of their own (demo/run.py, tests/e2e/conftest.py)."""
    folder = tmp_path / "build" / "clusters"
    shutil.copytree(include_dir() / "clusters", folder)
    assert not (folder.parent / LOCK_FILE).exists()
    spec = apply_locks(load_cluster("demo", folder), folder)
    assert spec == load_cluster("demo", folder)
    for component in ("karpenter-crd", "karpenter", "device-plugin"):
        chart = chart_of(spec, component)  # type: ignore[arg-type]
        found = await asyncio.to_thread(fetch_chart, chart)
        (stand_in,) = (item for item in repository.archives if (item.name, item.version) == (chart.name, chart.version))
        assert found.read_bytes() == stand_in.data
