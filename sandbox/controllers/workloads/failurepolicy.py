"""What a Job makes of a failed pod: ``spec.podFailurePolicy``.

Source: kubernetes v1.36 ``pkg/controller/job/pod_failure_policy.go``. Rules are tried in their order, and the first
that matches decides; a pod that none matches counts.
"""

from __future__ import annotations

from sandbox.controllers.objects import Object, meta, phase


def counts(job: Object, pod: Object) -> bool:
    """Whether a finished pod counts towards ``backoffLimit``, or as a success."""
    return phase(pod) != "Failed" or _matching(job, pod)[0] != "Ignore"


def fails_job(job: Object, pod: Object) -> str | None:
    """Why the Job ends with this pod; ``None`` if it does not."""
    if phase(pod) != "Failed":
        return None
    action, why = _matching(job, pod)
    return why if action == "FailJob" else None


def _matching(job: Object, pod: Object) -> tuple[str, str]:
    """The action of the first matching rule, and the message of the Job if that is FailJob."""
    where = f"{meta(pod)['namespace']}/{meta(pod)['name']}"
    for index, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules") or []):
        action, status = rule["action"], pod.get("status") or {}
        end = f"matching {action} rule at index {index}"
        if codes := rule.get("onExitCodes"):
            if (container := _with_exit_code(status, codes)) is not None:
                code = container["state"]["terminated"]["exitCode"]
                return action, f"Container {container['name']} for pod {where} failed with exit code {code} {end}"
        elif (kind := _condition(status, rule.get("onPodConditions") or [])) is not None:
            return action, f"Pod {where} has condition {kind} {end}"
    return "Count", ""


def _with_exit_code(status: Object, codes: Object) -> Object | None:
    for container in [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]:
        ended = (container.get("state") or {}).get("terminated")
        if ended is None or ended["exitCode"] == 0 or codes.get("containerName") not in (None, container["name"]):
            continue
        if (ended["exitCode"] in codes["values"]) == (codes["operator"] == "In"):
            return dict(container)
    return None


def _condition(status: Object, patterns: list[Object]) -> str | None:
    wanted = {(each["type"], each.get("status", "True")) for each in patterns}
    found = [each["type"] for each in status.get("conditions") or [] if (each["type"], each["status"]) in wanted]
    return found[0] if found else None
