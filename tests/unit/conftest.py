from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu_fleet.hooks.cluster.prices import LIVE_VARIABLE


@pytest.fixture(autouse=True)
def prices_of_files() -> Iterator[None]:
    """No unit test asks AWS for prices, unless it says so.

    Not by the fixture ``monkeypatch``: set up for every test first, it would undo what a test patches only after the
    test's other fixtures have ended.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(LIVE_VARIABLE, "off")
        yield
