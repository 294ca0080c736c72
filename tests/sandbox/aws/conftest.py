"""Moto with its account (``direct``), and the same behind the shim (``cloud``); once per module,
because moto takes seconds to start.

Parts that need AWS in their own tests do the same through :mod:`sandbox.aws.testing`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandbox.aws.testing import RunningAccount, RunningCloud, running_account, running_cloud
from sandbox.settings import Settings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def direct(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningAccount]:
    """Moto and the account; calls go to moto itself."""
    async with running_account(Settings(state_dir=tmp_path_factory.mktemp("state"), speed=50.0)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningCloud]:
    """The account as users meet it: through the shim, with its own key."""
    async with running_cloud(Settings(state_dir=tmp_path_factory.mktemp("state"), speed=50.0)) as running:
        yield running
