"""Run the tests of any chart."""

from __future__ import annotations

from typing import Any

from gpu_fleet.operators.helm.base import HelmOperator


class HelmTestOperator(HelmOperator):
    """Runs the chart's tests (``helm test``) on the deployed revision; a failing test's log is in the task's log.

    What counts is the result that Helm's storage shows, not helm's exit code. Holds a worker slot while they run.
    Arguments not listed here: see :class:`HelmOperator`.

    :param mark_proven: the tests prove the revision: write it into the ledger as good.
    :returns: as :class:`gpu_fleet.helm.HelmReleaseOperator`.
    :raises GateFailed: a test failed, or was not run.
    :raises Invalid: the chart has no tests.
    """

    template_fields: tuple[str, ...] = (*HelmOperator.template_fields, "manifest")

    def __init__(self, *, mark_proven: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mark_proven = mark_proven
        self.manifest = ""

    def execute(self, context: Any) -> dict[str, Any]:
        engine = self._open(context)
        outcome = engine.test()
        self._raise_if_killed()
        if self.mark_proven and outcome.revision is not None:
            outcome = engine.mark_proven(outcome.revision, outcome.secret_uid)
        return self._finished(outcome)
