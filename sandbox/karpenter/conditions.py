"""Status conditions: dependents make the root ``Ready`` (awslabs/operatorpkg ``status/condition_set.go``)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from sandbox.kube.times import now

Object = dict[str, Any]
AWAITING = ("AwaitingReconciliation", "object is awaiting reconciliation")


class Conditions:
    """The conditions of one object, to be changed and then written back.

    :param dependents: the types that Ready is computed from, in order.
    """

    def __init__(self, obj: Object, dependents: Sequence[str]) -> None:
        self._items: dict[str, Object] = {
            item["type"]: copy.deepcopy(item) for item in (obj.get("status") or {}).get("conditions") or []
        }
        self._before = copy.deepcopy(self._items)
        self._generation: int = obj["metadata"].get("generation", 1)
        self._dependents = tuple(dependents)
        for name in self._dependents:
            if name not in self._items:
                self._put(name, "Unknown", *AWAITING)
        self._recompute()

    def get(self, name: str) -> Object | None:
        return self._items.get(name)

    def is_true(self, name: str) -> bool:
        return bool((self._items.get(name) or {}).get("status") == "True")

    def is_unknown(self, name: str) -> bool:
        return bool((self._items.get(name) or {"status": "Unknown"})["status"] == "Unknown")

    def set_true(self, name: str, reason: str | None = None, message: str = "") -> None:
        self._set(name, "True", reason or name, message)

    def set_false(self, name: str, reason: str, message: str) -> None:
        self._set(name, "False", reason, message)

    def set_unknown(self, name: str, reason: str = AWAITING[0], message: str = AWAITING[1]) -> None:
        self._set(name, "Unknown", reason, message)

    def clear(self, name: str) -> None:
        self._items.pop(name, None)

    @property
    def changed(self) -> bool:
        return self._items != self._before

    def shown(self) -> list[Object]:
        return sorted(self._items.values(), key=lambda item: (item["type"] == "Ready", item["type"]))

    def _set(self, name: str, status: str, reason: str, message: str) -> None:
        self._put(name, status, reason, message)
        if name in self._dependents:
            self._recompute()

    def _put(self, name: str, status: str, reason: str, message: str) -> None:
        old = self._items.get(name) or {}
        changed = now() if old.get("status") != status else old["lastTransitionTime"]
        self._items[name] = {
            "type": name,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": changed,
            "observedGeneration": self._generation,
        }

    def _recompute(self) -> None:
        """Ready: False when a dependent is, else Unknown when one is, else True."""
        if not self._dependents:
            return
        unhealthy = [name for name in self._dependents if not self.is_true(name)]
        if not unhealthy:
            self._put("Ready", "True", "Ready", "")
            return
        message = ", ".join(f"{name}={self._items[name]['status']}" for name in unhealthy)
        if any(self._items[name]["status"] == "False" for name in unhealthy):
            self._put("Ready", "False", "UnhealthyDependents", message)
        else:
            self._put("Ready", "Unknown", "ReconcilingDependents", message)


def condition(obj: Object, name: str) -> Object:
    """One condition of an object, or an empty one."""
    found = (obj.get("status") or {}).get("conditions") or []
    return next((item for item in found if item["type"] == name), {})


def is_true(obj: Object, name: str) -> bool:
    return condition(obj, name).get("status") == "True"
