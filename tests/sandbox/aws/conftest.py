"""One moto with its account for the tests of a module: ``cloud_account``.

Parts that need AWS in their own tests do the same through :func:`sandbox.aws.testing.running_account`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from sandbox.aws.testing import RunningAccount, running_account
from sandbox.settings import Settings


@pytest_asyncio.fixture
async def direct(tmp_path: Path) -> AsyncIterator[RunningAccount]:
    """Moto and the account; calls go to moto itself."""
    async with running_account(Settings(state_dir=tmp_path, speed=50.0)) as running:
        yield running
