"""What makes a Job invalid, and the status that a controller writes of it.

Source: kubernetes pkg/apis/batch/validation/validation.go (``ValidateJobSpec``, ``validateJobStatus``,
``ValidateJobStatusUpdate``) and pkg/registry/batch/job/strategy.go (``getStatusValidationOptions``), v1.36. Most rules
of a status hold for what a write changes: a status that was stored before they came may stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sandbox.apiserver.errors import OMITTED, Cause, invalid_value, not_supported, required
from sandbox.apiserver.jsontools import Obj, dig, equal, parse_time

_COUNTS = ("active", "succeeded", "failed", "ready", "terminating")
_SPEC_COUNTS = ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished")
_IMMUTABLE = (
    "selector",
    "completionMode",
    "podFailurePolicy",
    "backoffLimitPerIndex",
    "managedBy",
    "successPolicy",
)
_FIXED = "field is immutable"
_CONDITIONS = "status.conditions"


def not_negative(value: object, where: str) -> Iterator[Cause]:
    """``ValidateNonnegativeField``; absent values are fine."""
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        yield invalid_value(where, value, "must be greater than or equal to 0")


def spec(new: Obj) -> Iterator[Cause]:
    """The spec without its pod template, except for what only a Job asks of the template."""
    found = new.get("spec") or {}
    for key in _SPEC_COUNTS:
        yield from not_negative(found.get(key), f"spec.{key}")
    mode = found.get("completionMode")
    if mode not in (None, "NonIndexed", "Indexed"):
        yield not_supported("spec.completionMode", mode, ["NonIndexed", "Indexed"])
    if mode == "Indexed" and found.get("completions") is None:
        yield required("spec.completions", "when completion mode is Indexed")
    if mode != "Indexed":
        for key in ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"):
            if found.get(key) is not None:
                yield invalid_value(f"spec.{key}", found[key], "requires indexed completion mode")
    restart, where = dig(found, "template", "spec", "restartPolicy"), "spec.template.spec.restartPolicy"
    if restart in (None, "", "Always"):
        yield required(where, 'valid values: "OnFailure", "Never"')
    elif restart not in ("OnFailure", "Never"):
        yield not_supported(where, restart, ["OnFailure", "Never"])


def spec_update(new: Obj, old: Obj) -> Iterator[Cause]:
    found, before = new.get("spec") or {}, old.get("spec") or {}
    if not equal(found.get("completions"), before.get("completions")):
        tandem = found.get("completionMode") == "Indexed" and found.get("completions") == found.get("parallelism")
        if not tandem:
            yield invalid_value("spec.completions", found.get("completions"), _FIXED)
    suspended = before.get("suspend") and not dig(old, "status", "startTime")
    template, kept = found.get("template"), before.get("template")
    if not equal(template, kept) and not (suspended and equal(_unscheduled(template), _unscheduled(kept))):
        yield invalid_value("spec.template", template, _FIXED)
    for key in _IMMUTABLE:
        if not equal(found.get(key), before.get(key)):
            yield invalid_value(f"spec.{key}", found.get(key), _FIXED)


def _unscheduled(template: Obj | None) -> Obj:
    """A template without what may still change while a Job that never started is suspended."""
    kept = dict(template or {})
    kept["metadata"] = {
        key: value for key, value in (kept.get("metadata") or {}).items() if key not in ("labels", "annotations")
    }
    free = ("nodeSelector", "tolerations", "schedulingGates", "affinity")
    kept["spec"] = {key: value for key, value in (kept.get("spec") or {}).items() if key not in free}
    return kept


class _Status:
    """A status with its conditions looked up."""

    def __init__(self, job: Obj) -> None:
        self.fields: Obj = job.get("status") or {}
        self._true = {item.get("type") for item in self.fields.get("conditions") or [] if item.get("status") == "True"}

    def get(self, key: str) -> object:
        return self.fields.get(key)

    def count(self, key: str) -> int:
        return int(self.fields.get(key) or 0)

    def is_true(self, *kinds: str) -> bool:
        return any(kind in self._true for kind in kinds)


def status_update(new: Obj, old: Obj) -> Iterator[Cause]:
    """A write of the status."""
    now, before = _Status(new), _Status(old)

    def turned(*kinds: str) -> bool:
        return any(now.is_true(kind) != before.is_true(kind) for kind in kinds)

    def changed(*keys: str) -> bool:
        return any(not equal(now.get(key), before.get(key)) for key in keys)

    for key in _COUNTS:
        yield from not_negative(now.get(key), f"status.{key}")
    yield from _conditions(now, turned)
    yield from _times(now, turned, changed)
    finished = now.is_true("Complete", "Failed")
    ended = finished != before.is_true("Complete", "Failed")
    if finished:
        for key in ("active", "terminating"):
            if now.count(key) > 0 and (ended or changed(key)):
                yield invalid_value(f"status.{key}", now.count(key), f"{key}>0 is invalid for finished job")
        if now.get("startTime") is None and (ended or changed("startTime")):
            yield required("status.startTime", "startTime is required for finished job")
        uncounted = now.fields.get("uncountedTerminatedPods") or {}
        if any(uncounted.values()) and (ended or changed("uncountedTerminatedPods")):
            text = "uncountedTerminatedPods needs to be empty for finished job"
            yield invalid_value("status.uncountedTerminatedPods", uncounted, text)
    if now.count("ready") > now.count("active") and changed("ready", "active"):
        yield invalid_value("status.ready", now.count("ready"), "cannot set more ready pods than active")
    yield from _backwards(new, now, before)


def _conditions(now: _Status, turned: Callable[..., bool]) -> Iterator[Cause]:
    rules = (
        (("Complete", "Failed"), now.is_true("Complete") and now.is_true("Failed"),
         "cannot set Complete=True and Failed=true conditions"),
        (("Complete", "FailureTarget"), now.is_true("Complete") and now.is_true("FailureTarget"),
         "cannot set Complete=True and FailureTarget=true conditions"),
        (("Failed", "FailureTarget"), now.is_true("Failed") and not now.is_true("FailureTarget"),
         "cannot set Failed=True condition without the FailureTarget=true condition"),
        (("Complete", "SuccessCriteriaMet"), now.is_true("Complete") and not now.is_true("SuccessCriteriaMet"),
         "cannot set Complete=True condition without the SuccessCriteriaMet=true condition"),
    )  # fmt: skip
    for kinds, broken, text in rules:
        if broken and turned(*kinds):
            yield invalid_value(_CONDITIONS, OMITTED, text)
    for other in ("Failed", "FailureTarget"):
        if now.is_true("SuccessCriteriaMet") and now.is_true(other):
            yield invalid_value(_CONDITIONS, OMITTED, f"cannot set SuccessCriteriaMet=True and {other}=true conditions")


def _times(now: _Status, turned: Callable[..., bool], changed: Callable[..., bool]) -> Iterator[Cause]:
    complete, ended, started = now.is_true("Complete"), now.get("completionTime"), now.get("startTime")
    where = "status.completionTime"
    if turned("Complete") or changed("completionTime"):
        if ended is not None and not complete:
            yield invalid_value(where, ended, "cannot set completionTime when there is no Complete=True condition")
        if ended is None and complete:
            yield required(where, "completionTime is required for Complete jobs")
    both = started is not None and ended is not None
    if both and changed("startTime", "completionTime") and parse_time(str(ended)) < parse_time(str(started)):
        yield invalid_value(where, ended, "completionTime cannot be set before startTime")


def _backwards(new: Obj, now: _Status, before: _Status) -> Iterator[Cause]:
    """What has been said of a Job is not taken back."""
    for kind in ("Failed", "Complete", "FailureTarget"):
        if before.is_true(kind) and not now.is_true(kind):
            yield invalid_value(_CONDITIONS, OMITTED, f"cannot disable the terminal {kind}=True condition")
    if now.count("failed") < before.count("failed"):
        yield invalid_value("status.failed", now.count("failed"), "cannot decrease the failed counter")
    found = new.get("spec") or {}
    elastic = found.get("completionMode") == "Indexed" and found.get("completions") == found.get("parallelism")
    if now.count("succeeded") < before.count("succeeded") and not elastic:
        yield invalid_value("status.succeeded", now.count("succeeded"), "cannot decrease the succeeded counter")
    ended, was = now.get("completionTime"), before.get("completionTime")
    if ended is not None and was is not None and ended != was:
        yield invalid_value("status.completionTime", ended, "completionTime cannot be mutated")
    started, began = now.get("startTime"), before.get("startTime")
    if began is not None and began != started and not found.get("suspend"):
        yield required("status.startTime", "startTime cannot be removed for unsuspended job")
    if before.is_true("SuccessCriteriaMet") and not now.is_true("SuccessCriteriaMet"):
        yield invalid_value(_CONDITIONS, OMITTED, "cannot disable the SuccessCriteriaMet=True condition")
    if before.is_true("Complete") and not before.is_true("SuccessCriteriaMet") and now.is_true("SuccessCriteriaMet"):
        text = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions"
        yield invalid_value(_CONDITIONS, OMITTED, text)
