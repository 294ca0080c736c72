"""docs/reference/operators.md: operators, sensors and the hook that users' DAGs may use, from their docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.reference.markup import ROOT, Docstring, docstring, page, table

PACKAGE = ROOT / "plugins" / "gpu_fleet"
#: What users' own DAGs may use: these import paths and arguments are kept.
PUBLIC = (
    "HelmReleaseOperator",
    "HelmRollbackOperator",
    "HelmUninstallOperator",
    "HelmTestOperator",
    "HelmReleaseSensor",
    "GateSensor",
    "HelmHook",
)
#: Their common arguments, each in a section of its own.
BASES = ("HelmOperator",)

_INTRODUCTION = """\
The first part lists what DAGs of your own may use: any chart, any cluster, no cluster file needed (except for
`GateSensor`, which belongs into the package's DAGs). [Helm releases that cannot get
stuck](../guides/helm-releases.md) shows them at work. The second part names the operators that the package's own
DAGs are made of; they need the frozen spec of such a run."""


@dataclass(frozen=True)
class Found:
    """A class and where it is defined."""

    module: str
    node: ast.ClassDef
    about: Docstring


def document() -> str:
    found = dict(classes())
    missing = [name for name in (*PUBLIC, *BASES) if name not in found]
    if missing:
        raise ValueError(f"no class {', '.join(missing)} in operators, sensors or hooks: correct {Path(__file__).name}")
    own = sorted(
        (each.module, name, each)
        for name, each in found.items()
        if name.endswith("Operator") and name not in (*PUBLIC, *BASES) and not name.startswith("_")
    )
    rows = [(f"`{name}`", f"`{module}`", _sentence(each)) for module, name, each in own]
    return page(
        "Operators and sensors",
        "the classes' docstrings",
        _INTRODUCTION,
        *(_section(name, found[name]) for name in (*PUBLIC, *BASES)),
        "## Operators of the package's own DAGs",
        table(("operator", "module", "what it does"), rows),
    )


def classes() -> Iterator[tuple[str, Found]]:
    """Every class of operators, sensors and the Helm hook, by name."""
    for folder in ("operators", "sensors", "hooks/helm"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    yield node.name, Found(module, node, docstring(node))


def _section(name: str, each: Found) -> str:
    parts = [f"## {name}", f"`{_public_module(name) or each.module}.{name}`", each.about.text]
    parts += _tables(each)
    parts.append(each.about.headings.get("", ""))
    parts += [f"**Returns** {' '.join(text.split())}" for _, text in each.about.of("returns")]
    raises = [f"- `{error}`: {' '.join(text.split())}" for error, text in each.about.of("raises")]
    if raises:
        parts.append("**Raises**\n\n" + "\n".join(raises))
    methods = [node for node in each.node.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    if name.endswith("Hook"):
        about = [(f"`{node.name}({_signature(node)})`", docstring(node).text) for node in methods]
        parts.append(table(("method", "what it does"), [row for row in about if row[1]]))
    return "\n\n".join(part for part in parts if part)


def _tables(each: Found) -> Iterator[str]:
    """The arguments, a table for each group of them."""
    head = ("argument", "type", "default", "meaning")
    rows: list[tuple[str, str, str, str]] = []
    for found in _arguments(each):
        heading = each.about.headings.get(found[0].strip("`"))
        if heading and rows:
            yield table(head, rows)
            yield heading
            rows = []
        rows.append(found)
    if rows:
        yield table(head, rows)


@cache
def _offered() -> dict[str, str]:
    """What modules of the package's top level offer for import in their ``__all__``, and from where."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
                found.update(dict.fromkeys(ast.literal_eval(node.value), f"{PACKAGE.name}.{path.stem}"))
    return found


def _public_module(name: str) -> str:
    """The module from which users are to import a class; empty if it is the one that defines it."""
    return _offered().get(name, "")


def _signature(node: ast.FunctionDef) -> str:
    names = [argument.arg for argument in node.args.args if argument.arg != "self"]
    return ", ".join(names + [f"{argument.arg}=…" for argument in node.args.kwonlyargs])


def _arguments(each: Found) -> Iterator[tuple[str, str, str, str]]:
    """The arguments of ``__init__``, with what the docstring says of them.

    :raises ValueError: for an argument without a description.
    """
    init = next(
        (node for node in each.node.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None
    )
    if init is None:
        return
    said = dict(each.about.of("param"))
    positional = [argument for argument in init.args.args if argument.arg != "self"]
    missing = len(positional) - len(init.args.defaults)
    pairs = [(argument, None) for argument in positional[:missing]]
    pairs += list(zip(positional[missing:], init.args.defaults, strict=True))  # type: ignore[arg-type]
    pairs += list(zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True))  # type: ignore[arg-type]
    for argument, default in pairs:
        if argument.arg not in said:
            raise ValueError(f"the docstring of {each.node.name} says nothing of :param {argument.arg}:")
        kind = ast.unparse(argument.annotation).replace("'", '"') if argument.annotation else ""
        shown = "**required**" if default is None else f"`{ast.unparse(default)}`"
        yield f"`{argument.arg}`", f"`{kind}`", shown, said[argument.arg]


def _sentence(each: Found) -> str:
    """The first sentence of a docstring."""
    text = " ".join(each.about.text.split())
    return text.split(". ")[0].rstrip(".") + "." if text else ""
