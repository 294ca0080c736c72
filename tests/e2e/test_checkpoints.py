"""The example's training job outlives the nodes that are taken from it; ``bench/checkpointed.py`` does so longer."""

from __future__ import annotations

import os
import random

import pytest

from bench.checkpointed import Training, interrupted, lost_steps
from demo.spot import DRAIN
from tests.e2e.conftest import SPEED
from tests.e2e.fleet import Fleet
from tests.e2e.interruptions import Interrupted

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(600)]


def test_no_finished_step_is_computed_again(fleet: Fleet) -> None:
    spot = Interrupted(fleet, {"handler": "gpu-fleet", "proveSuccessor": False}, karpenter={"interruptionQueue": None})
    speed = float(os.environ.get("E2E_SPEED", SPEED))
    training = Training(spot.kubectl, fleet.environment["KUBECONFIG"], fleet.home, "training", speed)
    try:
        interrupted(training, 3, random.Random(3), lambda node: spot.interrupt(spot.instance(node)))
        assert [attempt.began is not None for attempt in training.attempts] == [True] * 4
        assert training.attempts[-1].began, "the last pod resumed, and did not begin anew"
        assert lost_steps(training.attempts) == 0
        assert spot.lost() == []
        assert training.undisturbed()
    finally:
        training.end()
        fleet.repair()
        fleet.api.call("PATCH", f"/dags/{DRAIN}", json={"is_paused": True})
        fleet.write_cluster()
