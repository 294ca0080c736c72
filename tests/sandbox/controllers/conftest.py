from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.sandbox.controllers.world import World, world


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[World]:
    """API server, controllers, a kubelet; no nodes yet."""
    async with world(tmp_path) as place:
        yield place


@pytest.fixture
async def fast_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Like ``cluster``, with time-outs a hundred times shorter than real."""
    monkeypatch.setattr("sandbox.controllers.nodelifecycle.LEAST_GRACE", 0.5)
    async with world(tmp_path, speed=100.0) as place:
        yield place
