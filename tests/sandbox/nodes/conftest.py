from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.sandbox.nodes.cluster import Cluster, simulated


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """API server, controllers and nodes, a hundred times as fast as real; no Karpenter. Shared by a module's tests."""
    async with simulated(tmp_path_factory.mktemp("nodes"), "controllers", "nodes", speed=100.0) as cluster:
        await cluster.runtime_class()
        yield cluster
