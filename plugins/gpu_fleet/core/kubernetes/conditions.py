"""What a status says about readiness, without trusting one that is older than the spec."""

from __future__ import annotations

from gpu_fleet.core.kubernetes.objects import Object, conditions, title_of
from gpu_fleet.core.verdict import Verdict, progressing


def outdated(obj: Object, condition: Object | None = None) -> Verdict | None:
    """PROGRESSING if the status, or this condition, was written for an older generation of the spec; else ``None``.

    A server or controller that writes no ``observedGeneration`` at all is believed.
    """
    generation = (obj.get("metadata") or {}).get("generation")
    observed = [(obj.get("status") or {}).get("observedGeneration")]
    if condition is not None:
        observed.append(condition.get("observedGeneration"))
    for value in observed:
        if generation is not None and value is not None and int(value) < int(generation):
            return progressing(
                "StatusOutdated",
                f"{title_of(obj)}: the status is of generation {value}, the object is at generation {generation}",
            )
    return None


def sentence(condition: Object) -> str:
    """``Type=Status (Reason): message`` of a condition."""
    text = f"{condition.get('type')}={condition.get('status')}"
    if condition.get("reason"):
        text += f" ({condition['reason']})"
    if condition.get("message"):
        text += f": {condition['message']}"
    return text


#: Conditions that sum up others (operatorpkg's status conditions: kubernetes-sigs/karpenter v1.14, which write
#: ``UnhealthyDependents`` and the like there); they are named only where no other one explains.
_SUMMARIES = frozenset({"Ready"})
#: How many conditions a message names.
_NAMED = 3


def explaining(obj: Object, summary: Object | None = None) -> Object:
    """The condition that explains why an object is not ready: the first that is False, else the first that is unknown,
    else the summary itself.

    :param summary: the condition that says so; the object's Ready by default.
    """
    return _explaining(obj, summary)[0]


def explained(obj: Object, summary: Object | None = None) -> str:
    """All conditions that explain why an object is not ready, the most telling first, for messages."""
    found = _explaining(obj, summary)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return "; ".join(sentence(condition) for condition in found[:_NAMED]) + more


def _explaining(obj: Object, summary: Object | None) -> list[Object]:
    known = conditions(obj)
    others = [item for kind, item in known.items() if kind not in _SUMMARIES and outdated(obj, item) is None]
    telling = [
        *(item for item in others if item.get("status") == "False"),
        *(item for item in others if item.get("status") not in ("True", "False")),
    ]
    return telling or [summary if summary is not None else known.get("Ready", {})]
