from __future__ import annotations

import pytest

from gpu_fleet.hooks.cluster.prices import LIVE_VARIABLE


@pytest.fixture(autouse=True)
def prices_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """No unit test asks AWS for prices, unless it says so."""
    monkeypatch.setenv(LIVE_VARIABLE, "off")
