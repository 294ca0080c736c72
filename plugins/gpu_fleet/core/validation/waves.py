"""Which nodes a validation tests, and how many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_fleet.core.kubernetes.names import short_hash


def sample(nodes: Iterable[str], count: int | None, seed: str, always: Iterable[str] = ()) -> list[str]:
    """A sample of the nodes, by name: the same for the same seed, and another one for another seed.

    Each node's place in the draw depends on its name and the seed only, so a node that is added or removed between two
    tries does not change the choice of the others.

    :param count: how many; ``None``: all.
    :param always: nodes that are chosen in any case, beyond the count: quarantined ones wait for their release.
    """
    names = sorted(set(nodes))
    kept = set(always)
    if count is None:
        return names
    drawn = sorted((name for name in names if name not in kept), key=lambda name: short_hash(seed, name, length=32))
    chosen = {*drawn[:count], *kept}
    return [name for name in names if name in chosen]


def waves(nodes: Sequence[str], at_once: int) -> list[list[str]]:
    """The nodes in batches (waves) of at most ``at_once``, as equal as possible: a last batch of one node would take as
    long as a full one.

    >>> waves(["a", "b", "c"], 2)
    [['a', 'b'], ['c']]
    """
    if not nodes:
        return []
    count = -(-len(nodes) // max(1, at_once))
    size, larger = divmod(len(nodes), count)
    groups, start = [], 0
    for index in range(count):
        end = start + size + (1 if index < larger else 0)
        groups.append(list(nodes[start:end]))
        start = end
    return groups
