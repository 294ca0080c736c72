"""Which reasons the sources of the package can print, read from their syntax trees.

A reason is the ``reason`` of a verdict (``core/verdict.py``), of a check (``core/validation/report.py``), of an error,
or of any other call with an argument of that name; and the name of an error's class, which is its reason if it is
given none. Constants are followed to the module that defines them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from tests.unit.core.specs import REPOSITORY

PACKAGE = REPOSITORY / "plugins" / "gpu_fleet"
CAMEL_CASE = re.compile(r"[A-Z][A-Za-z0-9]+")
#: What is no word of a sentence.
TWO_HUMPS = re.compile(r"[A-Z][a-z0-9]+[A-Z][A-Za-z0-9]*")

#: Enumerations whose values are reasons.
ENUMERATIONS = {
    "gpu_fleet.core.device_plugin.gpu_count": {"Cause"},
    "gpu_fleet.core.nodes.replacement": {"Why"},
    "gpu_fleet.core.pools.remediation": {"Why"},
    "gpu_fleet.core.releases.state": {"Reason"},
}
#: Constants whose values are reasons, or groups of them.
CONSTANTS = {
    "gpu_fleet.core.aws.errors": {"_THROTTLED", "BAD_CREDENTIALS", "EXPIRED", "_DENIED", "_CONFLICT", "_SKEWED_CODES"},
    "gpu_fleet.core.device_plugin.sharing": {"MISSING", "DIFFERS", "UNSHARED"},
    "gpu_fleet.core.kubernetes.containers": {"STUCK_WAITING"},
    "gpu_fleet.core.releases.decide": {"NO_PROVEN", "PRUNED", "LACKS_NEEDED"},
    "gpu_fleet.core.validation.pods": {"TAKEN", "LITTLE_MEMORY"},
    "gpu_fleet.operators.lock": {"NEVER_ASKED"},
}
#: Functions that return a reason, and what is no reason of the words in them.
NOT_REASONS = {"PriorityClass", "RuntimeClass", "UnexpectedAdmissionError"}
RETURNING = {"_admission_reason", "_refusal_reason", "refusal_reason", "excused"}

#: Functions and classes with a reason among their positional arguments, by the module that defines them.
POSITIONAL: dict[str, dict[str, int]] = {
    "gpu_fleet.core.verdict": {"failed": 0, "progressing": 0, "ready": 0, "unseen": 0, "Verdict": 1},
    "gpu_fleet.core.validation.report": {"failed": 1, "passed": 1, "busy": 1, "doubt": 1, "skipped": 1, "Check": 2},
    "gpu_fleet.core.validation.evidence": {"Trouble": 0},
    "gpu_fleet.core.validation.judge": {"refused_node": 1, "busy_node": 2},
    "gpu_fleet.core.pools.assets": {"Finding": 1},
    "gpu_fleet.core.aws.launch_errors": {"LaunchCause": 0},
    "gpu_fleet.core.releases.helm.symptoms": {"_symptom": 2},
    "gpu_fleet.core.drain.rules": {"PodVerdict": 1},
    "gpu_fleet.core.device_plugin.gpu_count": {"Fault": 0},
    "gpu_fleet.core.device_plugin.neighbours": {"Conflict": 0},
}


@cache
def module(name: str) -> ast.Module | None:
    path = PACKAGE.parent / Path(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


@cache
def imports(name: str) -> Mapping[str, tuple[str, str]]:
    """Local name -> (module, name there; empty: the module itself), wherever in the module it is imported."""
    found = {}
    for node in ast.walk(module(name) or ast.Module([], [])):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gpu_fleet"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found[alias.asname or alias.name] = (inner, "") if module(inner) else (node.module, alias.name)
    return found


def values(name: str, node: ast.expr | None, depth: int = 0) -> Iterator[str]:
    """The strings that an expression of a module may have, as far as it says them itself."""
    match node:
        case ast.Constant(value=str() as text) if CAMEL_CASE.fullmatch(text):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from values(name, body, depth)
            yield from values(name, orelse, depth)
        case ast.BoolOp(values=many):
            for each in many:
                yield from values(name, each, depth)
        case ast.JoinedStr(values=parts):
            texts = [next(values(name, part, depth), "") for part in parts]
            if all(texts):
                yield "".join(texts)
        case ast.FormattedValue(value=inner_node):
            yield from values(name, inner_node, depth)
        case ast.Set(elts=many) | ast.Tuple(elts=many):
            for each in many:
                yield from values(name, each, depth)
        case ast.Call(func=ast.Name(id="frozenset"), args=[inner_node]):
            yield from values(name, inner_node, depth)
        case ast.Name(id=local) if depth < 5:
            yield from constant(name, local, depth + 1)
        case ast.Attribute(value=ast.Name(id=local), attr=attribute) if depth < 5 and local in imports(name):
            origin, inner = imports(name)[local]
            yield from constant(origin, f"{inner}.{attribute}" if inner else attribute, depth + 1)
        case ast.Call(func=ast.Name(id="str"), args=[inner_node]):
            yield from values(name, inner_node, depth)


def constant(name: str, wanted: str, depth: int) -> Iterator[str]:
    """The value of a module's constant, or of a member of one of its enumerations (``Class.MEMBER``)."""
    tree, (owner, _, member) = module(name), wanted.rpartition(".")
    for node in tree.body if tree else ():
        if owner and isinstance(node, ast.ClassDef) and node.name == owner:
            for each in node.body:
                for target, value in _assigned(each):
                    if target == member:
                        yield from values(name, value, depth)
        if owner:
            continue
        pairs = _assigned(node)
        for target, value in pairs:
            if target == wanted:
                yield from values(name, value, depth)
    if not owner and wanted in imports(name):
        origin, inner = imports(name)[wanted]
        if inner:
            yield from constant(origin, inner, depth + 1)


def _assigned(node: ast.stmt) -> list[tuple[str, ast.expr]]:
    match node:
        case ast.Assign(targets=[ast.Name(id=target)], value=value):
            return [(target, value)]
        case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
            return [(target, value)]
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=given)):
            return [(t.id, v) for t, v in zip(names, given, strict=True) if isinstance(t, ast.Name)]
    return []


def origin_of(name: str, function: ast.expr) -> tuple[str, str]:
    """(module, name) of a function that is called; empty if it is not one of the package's."""
    match function:
        case ast.Name(id=local):
            return imports(name).get(local, (name, local))
        case ast.Attribute(value=ast.Name(id=local), attr=attribute) if local in imports(name):
            return imports(name)[local][0], attribute
    return "", ""


def reasons_of(name: str) -> Iterator[tuple[str, int]]:
    """(reason, line) of each that a module of the package can print."""
    for node in ast.walk(module(name) or ast.Module([], [])):
        if isinstance(node, ast.Call):
            for reason in reasons_of_call(name, node):
                yield reason, node.lineno
        elif isinstance(node, ast.ClassDef) and node.name in ENUMERATIONS.get(name, ()):
            for each in node.body:
                for reason in (found for _, value in _assigned(each) for found in values(name, value)):
                    yield reason, each.lineno
        elif isinstance(node, ast.Assign):
            for target, value in _assigned(node):
                # A variable that a later call is given, or a constant of another module's making.
                if target in {"reason", "excuse", *CONSTANTS.get(name, ())}:
                    for reason in values(name, value):
                        yield reason, node.lineno
        elif isinstance(node, ast.FunctionDef) and node.name in RETURNING:
            for each in ast.walk(node):
                if not (isinstance(each, ast.Constant) and isinstance(each.value, str)):
                    continue
                if TWO_HUMPS.fullmatch(each.value) and each.value not in NOT_REASONS:
                    yield each.value, each.lineno


def reasons_of_call(name: str, call: ast.Call) -> Iterator[str]:
    origin, function = origin_of(name, call.func)
    place = POSITIONAL.get(origin, {}).get(function)
    given = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
    if place is not None and place < len(call.args):
        given.append(call.args[place])
    for value in given:
        yield from values(name, value)


def modules() -> list[str]:
    files = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if ".core.reasons" not in name]


def printed() -> dict[str, list[str]]:
    """Reason -> the places (``module:line``) that print it."""
    found: dict[str, list[str]] = {}
    for name in modules():
        for reason, line in reasons_of(name):
            found.setdefault(reason, []).append(f"{name.removeprefix('gpu_fleet.')}:{line}")
    return found
