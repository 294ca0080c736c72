"""Why a running helm must end: for as long as the Lease is held its loss counts, afterwards only a cancellation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpu_fleet.hooks.helm.session import ReleaseSession

EXPIRED = "the Lease of release ns/tiny expired"


class Lease:
    """A Lease that is not renewed: also one that was released expires some time later."""

    lost = EXPIRED

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> ReleaseSession:
    client: Any = None
    storage: Any = SimpleNamespace(release="tiny", namespace="ns")
    found = ReleaseSession(client, storage, me="worker@1", run="dag/run")
    monkeypatch.setattr(found, "lease", Lease)
    return found


@pytest.mark.parametrize("ends", ["done", "failed"])
def test_a_lease_is_lost_only_while_it_is_held(session: ReleaseSession, ends: str) -> None:
    assert session.stopped() == ""
    try:
        with session.holding():
            assert session.stopped() == EXPIRED
            if ends == "failed":
                raise RuntimeError
    except RuntimeError:
        pass
    assert session.stopped() == "", "a later call of the same engine must not end its helm"


def test_a_cancellation_ends_helm_with_and_without_the_lease(session: ReleaseSession) -> None:
    session.cancel("the task was killed")
    assert session.stopped() == "the task was killed"
    with session.holding():
        assert session.stopped() == "the task was killed"
