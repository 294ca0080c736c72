"""Roll a release of any chart back."""

from __future__ import annotations

from typing import Any

from gpu_fleet.core.errors import SpecError
from gpu_fleet.operators.helm.base import HelmOperator


class HelmRollbackOperator(HelmOperator):
    """Rolls a release back: to a named revision, or to the one that the ledger says is proven.

    Never "the previous revision", which may be one that never worked. Nothing is written if that content is deployed
    already. Arguments not listed here: see :class:`HelmOperator`.

    :param revision: number of the revision; ``None`` (or an empty string) for the ledger's proven one.
    :returns: as :class:`gpu_fleet.helm.HelmReleaseOperator`.
    :raises ReleaseError: no revision was ever proven, or the named one is no longer stored or never worked.
    """

    template_fields: tuple[str, ...] = (*HelmOperator.template_fields, "revision", "manifest")

    def __init__(self, *, revision: int | str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.revision = revision
        self.manifest = ""

    def execute(self, context: Any) -> dict[str, Any]:
        wanted = self._wanted()
        engine = self._open(context)
        return self._finished(engine.remediate() if wanted is None else engine.roll_back(wanted))

    def _wanted(self) -> int | None:
        if self.revision in (None, "", "None"):
            return None
        try:
            number = int(str(self.revision))
        except ValueError:
            number = 0
        if number < 1:
            raise SpecError(f"{self.revision!r} is not a revision", field="revision", remedy="a number, or nothing")
        return number
