"""The weather of EC2's capacity: what has none where, and for how long. It comes and goes by itself.

* ``weather:ANY`` with ``{"instanceType", "zone", "capacityType", "from": 0, "until": 300, "code"}``: no capacity of
  that kind from so many simulated seconds after the fault was set until so many (for ever without ``until``); a key
  that is left out matches any value; ``code`` is ``InsufficientInstanceCapacity`` unless it is given;
* ``weather:ANY`` with ``{"spells": [...]}``: several such spells, a script.

What EC2 does with it is its own business: instances that run stay. That Karpenter leaves a refused offering alone for
three minutes is Karpenter's (:mod:`sandbox.karpenter.cloudprovider.cloud`), so it notices better weather late.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from sandbox.faults import FaultBoard

WEATHER = "weather"
NO_CAPACITY = "InsufficientInstanceCapacity"
_KINDS = ("instanceType", "zone", "capacityType")
Spell = dict[str, Any]


def refusal(faults: FaultBoard, offering: Mapping[str, str], speed: float) -> str | None:
    """EC2's error code for an instance of this kind now; ``None`` if it has one.

    :param offering: ``instanceType``, ``zone`` and ``capacityType``.
    """
    for spell in spells(faults, speed):
        if spell["now"] and all(spell.get(key, offering[key]) == offering[key] for key in _KINDS):
            return str(spell["code"])
    return None


def spells(faults: FaultBoard, speed: float) -> Iterator[Spell]:
    """Every spell, with ``code`` and whether it lasts ``now``."""
    for params, since in faults.each_since(WEATHER):
        age = (time.monotonic() - since) * speed
        for spell in params.get("spells", [params]):
            until = spell.get("until")
            lasts = float(spell.get("from", 0)) <= age and (until is None or age < float(until))
            yield {**spell, "code": spell.get("code", NO_CAPACITY), "age": round(age, 1), "now": lasts}
