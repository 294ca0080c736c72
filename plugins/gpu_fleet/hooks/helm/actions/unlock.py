"""Take Helm's lock off a release whose operation died."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_fleet.core.releases.state import Observation
from gpu_fleet.hooks.helm.actions.base import ActionContext


@dataclass(frozen=True)
class Unlock:
    """Rewrite the status of a pending revision to failed.

    :ivar revision: its number.
    """

    revision: int

    def run(self, here: ActionContext, seen: Observation) -> None:  # noqa: ARG002
        here.storage.unlock(self.revision)
        here.done.append(f"unlock {self.revision}")
