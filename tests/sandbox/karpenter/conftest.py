from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.sandbox.nodes.cluster import Cluster, node_class, simulated, slicing


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Everything, a hundred times as fast as real, with Karpenter and the device plugin installed."""
    async with simulated(tmp_path_factory.mktemp("karpenter"), speed=100.0) as made:
        await made.install_karpenter()
        await made.install_plugin({"exclusive": "version: v1\n", "four": slicing(4)})
        await made.apply(node_class())
        yield made
