"""Nothing here uses a name with an underscore of another package.

Found are: such names in imports; attributes of what was imported from elsewhere; an attribute of any object, also as a
string for `getattr` or `monkeypatch`, that nothing in this repository defines; and what our classes define over an
underscored name of a base class from elsewhere. A name that is defined both here and in a library, and is reached
through a variable, is not distinguished.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.python_files import trees

OURS = {"vlm_detect", "tests"}
# Documented under these names, which have no other.
DOCUMENTED = {
    "os._exit",
    *("_replace", "_asdict", "_fields"),  # of named tuples
    "torch.utils._python_dispatch.TorchDispatchMode",  # "Extending PyTorch"
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",  # an operator of ATen
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
}
# transformers' guide for models reads it; one file of ours does, for all the others.
ATTENTION = (Path("vlm_detect/models/attention.py"), "config._attn_implementation")
# PyTorch documents fake tensors under the first name, and has no other to leave them for a moment.
FAKE_TENSORS = {"torch._subclasses.fake_tensor.FakeTensorMode", "torch.utils._python_dispatch._disable_current_modes"}
SIMULATION = {
    *(Path("tests", "bench", f"{name}.py") for name in ("memory", "full_size", "generic_models")),
    *(Path("tests", "models", f"{name}.py") for name in ("full_size", "test_probe")),
}
# Imports lmms-eval, which is installed in an environment of its own.
NOT_IMPORTED = Path("vlm_detect/benchmark/lmms_model.py")
# What PreTrainedModel and the Trainer ask their subclasses to say or to do.
HOOKS = {
    *("_init_weights", "_can_set_attn_implementation", "_no_split_modules", "_skip_keys_device_placement"),
    *("_can_compile_fullgraph", "_supports_attention_backend", "_supports_sdpa", "_supports_flash_attn"),
    *("_supports_flex_attn", "_tied_weights_keys", "_get_train_sampler", "_save"),
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Private names that this file gives to functions, classes, variables, attributes and arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def imported(tree: ast.Module) -> dict[str, str]:
    """Names of this file that stand for something of another package, by the dotted name of what they stand for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                (a.asname or a.name).partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return {name: whole for name, whole in found.items() if whole.partition(".")[0] not in OURS}


def uses(tree: ast.Module, ours: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of each private name of another package."""
    theirs = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] not in OURS:
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                if any(map(is_private, name.split("."))):
                    yield node.lineno, name
        elif isinstance(node, ast.Import):
            yield from (
                (node.lineno, alias.name) for alias in node.names if any(map(is_private, alias.name.split(".")))
            )
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            root, _, rest = owner.partition(".")
            if root in theirs:
                yield node.lineno, ".".join(filter(None, (theirs[root], rest, node.attr)))
            elif owner == "super()" or node.attr not in ours:
                yield node.lineno, f"{owner}.{node.attr}"
        elif isinstance(node, ast.Call) and (said := _name_in_string(node)) and said not in ours:
            yield node.lineno, said


def _name_in_string(call: ast.Call) -> str | None:
    """The private attribute that `getattr(x, "_name")` or `monkeypatch.setattr(x, "_name", ...)` reaches."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if called in ("getattr", "setattr", "delattr", "hasattr", "object", "attrgetter"):
        for argument in call.args[:2]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                last = argument.value.rpartition(".")[2]
                if is_private(last):
                    return last
    return None


def forbidden(path: Path, name: str) -> bool:
    if (path, name) == ATTENTION or (path in SIMULATION and name in FAKE_TENSORS):
        return False
    return name not in DOCUMENTED and name.rpartition(".")[2] not in DOCUMENTED


def test_no_private_name_of_another_package_is_used() -> None:
    ours = {name for tree in trees().values() for name in defined_names(tree)}
    found = [
        f"{path}:{line}: {name}"
        for path, tree in trees().items()
        for line, name in uses(tree, ours)
        if forbidden(path, name)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from torch._C import x", "torch._C.x"),
        ("import torch._inductor", "torch._inductor"),
        ("import torch\ntorch._foreach_copy_(a, b)", "torch._foreach_copy_"),
        ("import torch.nn as n\nn.functional._x", "torch.nn.functional._x"),
        ("from peft import LoraConfig as C\nC._y(1)", "peft.LoraConfig._y"),
        ("rows._fingerprint", "rows._fingerprint"),
        ("class A(B):\n def f(self):\n  self._theirs()", "self._theirs"),
        ("class A(B):\n def _f(self):\n  super()._f()", "super()._f"),
        ("getattr(rows, '_fingerprint')", "_fingerprint"),
        ("monkeypatch.setattr('transformers.x._lazy', 1)", "_lazy"),
    ],
)
def test_each_way_of_using_one_is_found(code: str, name: str) -> None:
    tree = ast.parse(code)
    assert [found for _, found in uses(tree, set(defined_names(tree)))] == [name]


def test_own_private_names_are_not_found() -> None:
    tree = ast.parse("def _f(): ...\nclass A:\n def g(self):\n  self._x = 1\n  self._x, other._x, module._f, __name__")
    assert list(uses(tree, set(defined_names(tree)))) == []


def test_only_hooks_are_replaced() -> None:
    found = []
    for path, tree in trees().items():
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
        if path.parts[0] == "vlm_detect" and classes and path != NOT_IMPORTED:
            module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
            found += [f"{path}: {name}" for node in classes for name in replaced(node, getattr(module, node.name))]
    assert found == []


def replaced(node: ast.ClassDef, cls: type) -> Iterator[str]:
    """Private names that the class gives another meaning than a base from another package, hooks apart."""
    bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in OURS | sys.stdlib_module_names]
    written = {name for statement in node.body for name in names_of(statement)}
    for name in filter(is_private, written):
        if name not in HOOKS and any(name in vars(base) for base in bases):
            yield f"{cls.__name__}.{name}"


def names_of(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
