"""Why a command did not do what was asked, as a typed error with its cause."""

from __future__ import annotations

from gpu_fleet.core.errors import ClusterBusy, DeadlinePassed, GpuFleetError, Invalid, ReleaseError, TransientError
from gpu_fleet.core.releases.helm.output import error_of
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import UNFINISHED
from gpu_fleet.hooks.helm.actions.base import ActionContext
from gpu_fleet.hooks.helm.binary.process import Finished
from gpu_fleet.hooks.helm.causes import cause_of
from gpu_fleet.hooks.helm.hook_logs import log_hook_pods
from gpu_fleet.hooks.helm.preparation import unknown_kinds


def failure_of(here: ActionContext, what: str, done: Finished, after: Observation, rendered: str = "") -> GpuFleetError:
    """The error of a command: our own reasons for ending it come first, then helm's words, then storage.

    :param what: the command, for messages.
    :param after: what storage shows after it.
    :param rendered: the manifest that was to be installed, where it is known: names a kind that the cluster lacks.
    """
    newest = after.newest
    shown = f"storage shows revision {newest.revision} as {newest.status}" if newest else "storage shows no release"
    if done.ended_by == "deadline":
        return DeadlinePassed(f"{what}: helm ran for {done.seconds:.0f} s, past its deadline; {shown}")
    if here.lease.lost:
        return ClusterBusy(f"{what}: {here.lease.lost}; run again", reason="LeaseLost")
    if done.ended_by:
        return TransientError(f"{what}: {done.ended_by}; {shown}", reason="Interrupted")
    if done.code < 0:
        return TransientError(f"{what}: helm was ended by signal {-done.code}; {shown}", reason="HelmKilled")
    if done.code != 0:
        return _with_missing_kinds(here, error_of(what, done.stderr), rendered)
    if newest is not None and newest.status in UNFINISHED:
        return TransientError(f"{what}: helm reports success, but {shown}", reason="StorageDisagrees")
    return ReleaseError(
        f"{what}: helm reports success, but {shown}, with {len(after.deployed)} deployed revisions; check that "
        "HELM_BIN is an unmodified helm and that nothing else changes this release",
        reason="StorageDisagrees",
    )


def _with_missing_kinds(here: ActionContext, error: GpuFleetError, rendered: str) -> GpuFleetError:
    if error.reason != "CrdMissing" or not rendered:
        return error
    kinds = ", ".join(unknown_kinds(here.client, rendered))
    return Invalid(f"{error.message}{f'; the cluster has no kind {kinds}' if kinds else ''}", reason=error.reason)


def with_cause(here: ActionContext, error: GpuFleetError, after: Observation) -> GpuFleetError:
    """Of a helm that timed out while it waited for workloads: the same error with what keeps them from being ready."""
    if not here.request.policy.wait or after.newest is None or not isinstance(error, DeadlinePassed):
        return error
    manifest = here.storage.manifest(after.newest)
    cause = cause_of(here.client, manifest, here.request.name, here.request.namespace)
    return DeadlinePassed(f"{error.message}; {cause}", reason=error.reason) if cause else error


def explain_hooks(here: ActionContext, error: GpuFleetError) -> None:
    """If a hook or Job failed, put the log of its pods into the task's log; helm may delete them soon."""
    if error.reason in {"HookFailed", "JobFailed"}:
        log_hook_pods(here.client, here.request.namespace, error.message)
