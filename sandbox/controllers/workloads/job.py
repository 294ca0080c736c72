"""The Job controller: pods until enough of them succeeded, or too many failed.

Source: kubernetes/kubernetes ``pkg/controller/job/job_controller.go`` and ``pkg/controller/ttlafterfinished``.
Pods carry the finalizer ``batch.kubernetes.io/job-tracking`` until they are counted, so that none is lost or counted
twice. Not simulated: indexed completion, success policies.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sandbox.controllers.objects import (
    Object,
    age,
    controller_of,
    holds,
    is_deleting,
    is_finished,
    is_ready,
    meta,
    phase,
    pod_from,
    seconds,
    with_condition,
)
from sandbox.controllers.workloads.failurepolicy import counts, fails_job
from sandbox.controllers.workloads.podcontrol import PodOwner
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now

TRACKING = "batch.kubernetes.io/job-tracking"
#: Simulated seconds before the first replacement of a failed pod; doubled for each further one.
BACKOFF = (10.0, 600.0)


class JobController(PodOwner):
    """Keys are Jobs."""

    name = "job-controller"
    kind = "Job"

    def _pod_changed(self, change: Change, new: Object, old: Object | None) -> None:
        super()._pod_changed(change, new, old)
        owner = controller_of(new)
        if owner is None and change != "DELETED" and TRACKING in (meta(new).get("finalizers") or []):
            self.queue.add(("orphan", meta(new)["namespace"], meta(new)["name"]))

    async def reconcile(self, key: tuple[str, ...]) -> None:
        if key[0] == "orphan" and len(key) == 3:
            await self._release_orphans(key[1])
            return
        job = self.owners.get(key[1], key[0])
        if job is None:
            await self._release_orphans(key[0])
            return
        if is_deleting(job):
            for pod in self.pods_of(job):
                await self._release(pod)
            return
        job = await self._count(job)
        if _is_over(job):
            await self._finish_up(job)
            return
        ending = self._ending(job)
        if ending is not None:
            await self._end(job, *ending)
        elif job["spec"].get("suspend"):
            await self._suspend(job)
        else:
            await self._manage(job)

    # --- counting ----------------------------------------------------------------------------------------------

    async def _count(self, job: Object) -> Object:
        """Move finished pods into the counters: note their uids with the counts, free the pods, forget the uids."""
        status = job.get("status") or {}
        uncounted = status.get("uncountedTerminatedPods") or {}
        fresh = self._not_counted(job)
        new = dict(status)
        for pod in fresh:
            which = "succeeded" if phase(pod) == "Succeeded" else "failed"
            new[which] = new.get(which, 0) + 1
        if fresh:
            by_phase = {
                which: sorted(meta(pod)["uid"] for pod in fresh if phase(pod) == which.capitalize())
                for which in ("succeeded", "failed")
            }
            kept = {which: sorted({*(uncounted.get(which) or []), *uids}) for which, uids in by_phase.items()}
            new["uncountedTerminatedPods"] = {which: uids for which, uids in kept.items() if uids}
            job = await self._write(job, new)
        waiting = {meta(pod)["uid"] for pod in self._not_counted(job)}  # finished meanwhile; the next round counts them
        for pod in self.pods_of(job):
            # A pod that was deleted before it ran, or whose kubelet gave it up, never finishes: its finalizer goes now.
            given_up = meta(pod).get("deletionGracePeriodSeconds") == 0 or not pod["spec"].get("nodeName")
            if (is_finished(pod) or (is_deleting(pod) and given_up)) and meta(pod)["uid"] not in waiting:
                await self._release(pod)
        return job

    def _not_counted(self, job: Object) -> list[Object]:
        uncounted = (job.get("status") or {}).get("uncountedTerminatedPods") or {}
        noted = {*(uncounted.get("succeeded") or []), *(uncounted.get("failed") or [])}
        return [
            pod
            for pod in self.pods_of(job)
            if is_finished(pod)
            and TRACKING in (meta(pod).get("finalizers") or [])
            and meta(pod)["uid"] not in noted
            and counts(job, pod)
        ]

    async def _release(self, pod: Object) -> None:
        finalizers = meta(pod).get("finalizers") or []
        if TRACKING not in finalizers:
            return
        rest = [each for each in finalizers if each != TRACKING]
        body = {"metadata": {"uid": meta(pod)["uid"], "finalizers": rest or None}}
        try:
            answer = await self.kube.patch("Pod", meta(pod)["name"], body, meta(pod)["namespace"])
        except ApiError as error:
            if error.code not in (404, 409):
                raise
        else:
            await self.pods.caught_up(answer)

    async def _release_orphans(self, namespace: str) -> None:
        """Remove the finalizer of pods whose Job was deleted; otherwise the garbage collector could not remove them."""
        for pod in self.pods.items(namespace):
            if TRACKING not in (meta(pod).get("finalizers") or []):
                continue
            owner = controller_of(pod)
            job = self.owners.get(owner["name"], namespace) if owner else None
            if job is None or meta(job)["uid"] != (owner or {}).get("uid"):
                await self._release(pod)

    async def _write(self, job: Object, status: Object) -> Object:
        await self.write_status(job, status)
        return self.owners.get(meta(job)["name"], meta(job)["namespace"]) or job

    # --- running -----------------------------------------------------------------------------------------------

    def _active(self, job: Object) -> list[Object]:
        return [pod for pod in self.pods_of(job) if not is_finished(pod) and not is_deleting(pod)]

    def _ending(self, job: Object) -> tuple[str, str, str] | None:
        """``(condition, reason, message)`` if the Job is to end now."""
        spec, status = job["spec"], job.get("status") or {}
        if message := next((why for pod in self.pods_of(job) if (why := fails_job(job, pod))), None):
            return "Failed", "PodFailurePolicy", message
        limit = spec.get("backoffLimit", 6)
        failed = status.get("failed", 0)
        if spec["template"]["spec"].get("restartPolicy") == "OnFailure":
            failed += sum(
                container.get("restartCount", 0)
                for pod in self._active(job)
                for container in (pod.get("status") or {}).get("containerStatuses") or []
            )
        if failed > limit:
            return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        deadline = spec.get("activeDeadlineSeconds")
        if deadline is not None and status.get("startTime") and not spec.get("suspend"):
            left = self.clock.real(deadline) - age(status["startTime"])
            if left <= 0:
                return "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
            self.queue.add_after((meta(job)["namespace"], meta(job)["name"]), left + 0.1)
        succeeded = status.get("succeeded", 0)
        wanted = spec.get("completions")
        if succeeded and ((wanted is None and not self._active(job)) or (wanted is not None and succeeded >= wanted)):
            return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
        if wanted == 0:
            return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
        return None

    async def _manage(self, job: Object) -> None:
        spec, status = job["spec"], dict(job.get("status") or {})
        if any(each["type"] == "Suspended" and each["status"] == "True" for each in status.get("conditions") or []):
            new = {"type": "Suspended", "status": "False", "reason": "JobResumed", "message": "Job resumed"}
            status["conditions"] = with_condition(status["conditions"], new | {"lastProbeTime": now()})
            status.pop("startTime", None)
        status.setdefault("startTime", now())
        if self._not_counted(job):
            return  # finished while we were writing: counted first, in the round that its change has queued
        parallelism = spec.get("parallelism", 1)
        succeeded = status.get("succeeded", 0)
        active = self._active(job)
        if spec.get("completions") is not None:
            wanted = min(parallelism, spec["completions"] - succeeded)
        else:
            wanted = len(active) if succeeded else parallelism
        if spec.get("podReplacementPolicy") == "Failed":
            wanted_new = (
                wanted - len(active) - sum(is_deleting(pod) and not is_finished(pod) for pod in self.pods_of(job))
            )
        else:
            wanted_new = wanted - len(active)
        failure: ApiError | None = None
        if len(active) > wanted:
            await self.delete_pods(job, sorted(active, key=is_ready)[: len(active) - wanted])
        elif wanted_new > 0:
            wait = self._backoff(job)
            if wait > 0:
                self.queue.add_after((meta(job)["namespace"], meta(job)["name"]), wait)
            else:
                failure = await self.create_pods(job, [_job_pod(job) for _ in range(wanted_new)])
        await self._write_counts(job, status)
        if failure is not None:
            raise failure

    async def _write_counts(self, job: Object, status: Object) -> Object:
        pods = self.pods_of(job)
        active = self._active(job)
        counts = {
            "active": len(active),
            "ready": sum(is_ready(pod) for pod in active),
            "terminating": sum(is_deleting(pod) and not is_finished(pod) for pod in pods),
        }
        status = {name: value for name, value in status.items() if name not in counts} | counts
        if not counts["active"]:
            del status["active"]
        tracked = {meta(pod)["uid"] for pod in pods if TRACKING in (meta(pod).get("finalizers") or [])}
        uncounted = status.get("uncountedTerminatedPods") or {}
        left = {which: [uid for uid in uids if uid in tracked] for which, uids in uncounted.items()}
        status["uncountedTerminatedPods"] = {which: uids for which, uids in left.items() if uids}
        return await self._write(job, status)

    def _backoff(self, job: Object) -> float:
        """Real seconds until a failed pod may be replaced."""
        failures = [pod for pod in self.pods_of(job) if phase(pod) == "Failed"]
        if not failures:
            return 0.0
        count = (job.get("status") or {}).get("failed", 0)
        delay = min(BACKOFF[0] * 2 ** max(0, count - 1), BACKOFF[1])
        last = max(seconds(_finished_at(pod)) for pod in failures)
        return last + self.clock.real(delay) - datetime.now(UTC).timestamp()

    async def _suspend(self, job: Object) -> None:
        await self.delete_pods(job, self._active(job))
        status = dict(job.get("status") or {})
        if not any(each["type"] == "Suspended" and each["status"] == "True" for each in status.get("conditions") or []):
            new = {"type": "Suspended", "status": "True", "reason": "JobSuspended", "message": "Job suspended"}
            status["conditions"] = with_condition(status.get("conditions"), new | {"lastProbeTime": now()})
            self.event(job, "Suspended", "Job suspended")
        status.pop("startTime", None)
        await self._write_counts(job, status)

    # --- ending ------------------------------------------------------------------------------------------------

    async def _end(self, job: Object, kind: str, reason: str, message: str) -> None:
        """First the interim condition, then, when no pod is left running, the final one."""
        interim = "SuccessCriteriaMet" if kind == "Complete" else "FailureTarget"
        status = dict(job.get("status") or {})
        verdict = {"status": "True", "reason": reason, "message": message}
        if not holds(job, interim):
            new = {"type": interim, "lastProbeTime": now()} | verdict
            status["conditions"] = with_condition(status.get("conditions"), new)
            job = await self._write(job, status)
        active = self._active(job)
        if active:
            await self.delete_pods(job, active)
        for pod in self.pods_of(job):
            await self._release(pod)
        if any(not is_finished(pod) for pod in self.pods_of(job)):
            await self._write_counts(job, dict(job.get("status") or {}))
            return  # the end of the last pod queues the Job again
        status = dict(job.get("status") or {})
        new = {"type": kind, "lastProbeTime": now()} | verdict
        status["conditions"] = with_condition(status.get("conditions"), new)
        status.setdefault("startTime", now())
        if kind == "Complete":
            status["completionTime"] = now()
            self.event(job, "Completed", "Job completed")
        else:
            self.event(job, reason, message, "Warning")
        await self._write_counts(job, status)

    async def _finish_up(self, job: Object) -> None:
        """Free what is left of the pods and, after ``ttlSecondsAfterFinished``, delete the Job."""
        for pod in self.pods_of(job):
            await self._release(pod)
        uncounted = (job.get("status") or {}).get("uncountedTerminatedPods")
        if uncounted:
            await self._write_counts(job, dict(job["status"]))
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None:
            return
        ended = max(
            seconds(each.get("lastTransitionTime"))
            for each in job["status"]["conditions"]
            if each["type"] in ("Complete", "Failed")
        )
        left = ended + self.clock.real(ttl) - datetime.now(UTC).timestamp()
        if left > 0:
            self.queue.add_after((meta(job)["namespace"], meta(job)["name"]), left + 0.05)
        else:
            await self.kube.delete(
                "Job", meta(job)["name"], meta(job)["namespace"], uid=meta(job)["uid"], propagation="Foreground"
            )


def _is_over(job: Object) -> bool:
    return holds(job, "Complete") or holds(job, "Failed")


def _finished_at(pod: Object) -> str:
    ends = [
        ((container.get("state") or {}).get("terminated") or {}).get("finishedAt")
        for container in (pod.get("status") or {}).get("containerStatuses") or []
    ]
    return str(max((end for end in ends if end), default=meta(pod)["creationTimestamp"]))


def _job_pod(job: Object) -> Object:
    names: dict[str, Any] = {"job-name": meta(job)["name"], "controller-uid": meta(job)["uid"]}
    labels = {**names, **{f"batch.kubernetes.io/{name}": value for name, value in names.items()}}
    pod = pod_from(job["spec"]["template"], job, labels=labels)
    pod["metadata"]["finalizers"] = [*(pod["metadata"].get("finalizers") or []), TRACKING]
    return pod
