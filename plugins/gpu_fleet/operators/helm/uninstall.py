"""Uninstall a release of any chart."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gpu_fleet.operators.helm.base import HelmOperator


class HelmUninstallOperator(HelmOperator):
    """Uninstalls a release, resumes an interrupted uninstall, and waits until its objects are gone.

    Refused while objects exist whose CustomResourceDefinitions are among the chart's templates and would be deleted. A
    release that does not exist is success. Arguments not listed here: see :class:`HelmOperator`.

    :param keep_crds: leave the CustomResourceDefinitions of the chart's templates in the cluster.
    :param gone_within: how long to wait for the last objects to disappear; a retry of the task waits again.
    :returns: release, namespace, actions, leftovers (what is kept on purpose).
    :raises GateFailed: objects are still there; the message names them and their finalizers.
    """

    def __init__(
        self, *, keep_crds: bool = False, gone_within: timedelta = timedelta(minutes=1), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.keep_crds = keep_crds
        self.gone_within = gone_within

    def execute(self, context: Any) -> dict[str, Any]:
        engine = self._open(context)
        return self._finished(self._uninstall(engine, keep_crds=self.keep_crds, within=self.gone_within))
