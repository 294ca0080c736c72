"""Run the chart's tests and believe only what storage says about them."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_fleet.core.errors import DeadlinePassed, GateFailed, Invalid, TransientError
from gpu_fleet.core.releases.guards import candidate_of
from gpu_fleet.core.releases.helm.output import complaint
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import chart_tests
from gpu_fleet.hooks.helm.actions.base import ActionContext
from gpu_fleet.hooks.helm.binary.command import test_arguments
from gpu_fleet.hooks.helm.hook_logs import log_pod


@dataclass(frozen=True)
class RunTests:
    """``helm test`` of the ledger's candidate."""

    def run(self, here: ActionContext, seen: Observation) -> None:
        """
        :raises Invalid: the chart has no tests.
        :raises GateFailed: a test failed, or was not run; the log of its pod is in the task's log.
        :raises ReleaseError: the candidate is not what is deployed.
        """
        stored = candidate_of(seen)
        before = chart_tests(here.storage.payload(stored) or {})
        if not before:
            raise Invalid(f"{here.request}: the chart has no tests (no hook 'test')", reason="NoTests")
        done = here.run_helm(test_arguments(here.request))
        after = chart_tests(here.storage.payload(stored) or {})
        failed = sorted(name for name, last in after.items() if last.phase != "Succeeded" or last == before.get(name))
        for name in failed:
            log_pod(here.client, here.request.namespace, name)
        what = f"tests of {here.request}"
        if done.ended_by == "deadline":
            raise DeadlinePassed(f"{what}: helm ran for {done.seconds:.0f} s, past its deadline")
        if done.ended_by or done.code < 0:
            raise TransientError(f"{what}: {done.ended_by or 'helm was killed'}", reason="Interrupted")
        if failed:
            raise GateFailed(
                f"{what}: {', '.join(failed)} did not succeed: {complaint(done.stderr) or 'helm gives no reason'}",
                reason="TestFailed",
            )
        here.done.append(f"test {stored.revision}")
