"""Parts of a network's own `forward` that torch.fx cannot follow, taken as operators of its program.

Inside a submodule, what stops torch.fx makes that module one operator. The network itself cannot be one. So
the call or the statement that stopped it is found in the source, and is an operator in the next attempt.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator
from itertools import islice
from types import CodeType, FunctionType, TracebackType
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

UNTRACED = "untraced"  # the key of a node's `meta` that says why an operator was not followed
Place = tuple[str, int, int, int, int]  # kind of a piece of syntax, and where it begins and ends
_OPERATOR = "__operator"  # by which a rewritten method calls `operator_call`


class Operator:
    """A function that programs call without following it."""

    __module__ = __name__

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = getattr(function, "__name__", "operator").strip("<>")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


def operator_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function or, while a network is followed, make the call an operator of its program."""
    proxies = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, fx.Proxy)]
    if not proxies or isinstance(getattr(function, "__self__", None), nn.Module):
        return function(*args, **kwargs)
    operator = Operator(function)
    proxy = proxies[0].tracer.create_proxy("call_function", operator, args, kwargs)
    proxy.node.meta[UNTRACED] = f"{operator.__name__} is not followed"
    return proxy


class OpaqueParts:
    """The parts of a network's own methods that have to be operators; in force until `undo`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._taken: dict[CodeType, list[Place]] = {}  # by the method as written
        self._written: dict[CodeType, CodeType] = {}  # methods as written, by those in force
        self._replaced: list[tuple[type, str, Any]] = []

    def take(self, error: BaseException) -> bool:
        """Make the part at which following the network ended an operator; return whether there is one."""
        frame = _own_frame(self._model, error)
        if frame is None:
            return False
        code = self._written.get(frame.tb_frame.f_code, frame.tb_frame.f_code)
        found = _method_of(type(self._model), frame.tb_frame.f_code)
        if found is None:
            return False
        owner, name, method = found
        try:
            tree = _syntax_of(code)
        except (OSError, SyntaxError, TypeError):  # there is no source, as in an interactive session
            return False
        taken = self._taken.setdefault(code, [])
        place = next((place for place in _places(tree, frame, method) if place not in taken), None)
        if place is None:
            return False
        taken.append(place)
        rewritten = _rewritten(method, tree, taken)
        self._written[rewritten.__code__] = code
        self._replaced.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, rewritten)
        return True

    def undo(self) -> None:
        """Set the methods back to what was written."""
        for owner, name, method in reversed(self._replaced):
            setattr(owner, name, method)
        self._replaced.clear()


def stopping_line(error: BaseException) -> str | None:
    """Return file, line number and text of the user's line at which following a network ended."""
    for frame in reversed(list(_frames(error))):
        file, line = frame.tb_frame.f_code.co_filename, frame.tb_lineno
        if not _is_machinery(file):
            return f"{file}:{line}: {linecache.getline(file, line).strip()}"
    return None


def _is_machinery(file: str) -> bool:
    own = __file__.rpartition("graph")[0]
    return file.startswith(("<", own)) or any(f"/{name}/" in file for name in ("torch", "einops", "prunegym"))


def _own_frame(model: nn.Module, error: BaseException) -> TracebackType | None:
    """Return the innermost frame of a method of the network itself."""
    for frame in reversed(list(_frames(error))):
        code = frame.tb_frame.f_code
        if code.co_argcount and frame.tb_frame.f_locals.get(code.co_varnames[0]) is model:
            return frame
    return None


def _frames(error: BaseException) -> Iterator[TracebackType]:
    """Yield the frames that an error passed through, the outermost first."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _method_of(kind: type, code: CodeType) -> tuple[type, str, FunctionType] | None:
    for owner in kind.__mro__:
        for name, value in vars(owner).items():
            if isinstance(value, FunctionType) and value.__code__ is code:
                return owner, name, value
    return None


def _syntax_of(code: CodeType) -> ast.Module:
    """Return the syntax of a method, with the line numbers of its file."""
    lines, first = inspect.getsourcelines(code)
    indent = len(lines[0]) - len(lines[0].lstrip())
    tree = ast.parse(textwrap.dedent("".join(lines)))
    if not isinstance(tree.body[0], ast.FunctionDef):
        raise SyntaxError("a lambda has no statements")
    ast.increment_lineno(tree, first - 1)
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            node.col_offset += indent
            node.end_col_offset = (node.end_col_offset or 0) + indent
    return tree


def _places(tree: ast.Module, traceback: TracebackType, method: FunctionType) -> Iterator[Place]:
    """Yield the places of the parts that were at work, the smallest first: a call, then statements."""
    code, line = traceback.tb_frame.f_code, traceback.tb_lineno
    calls = [_place(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if hasattr(code, "co_positions"):
        start, end, column, end_column = next(islice(code.co_positions(), traceback.tb_lasti // 2, None))
        yield from (place for place in calls if place == ("Call", start, column, end, end_column))
    else:  # before Python 3.11 only the line is known
        yield from reversed([place for place in calls if place[1] == line])
    body = [node for node in ast.walk(tree.body[0]) if isinstance(node, ast.stmt)][1:]
    around = [node for node in body if node.lineno <= line <= (node.end_lineno or 0)]
    yield from (_place(node) for node in reversed(around) if _stands_alone(node, method))


def _place(node: ast.expr | ast.stmt) -> Place:
    kind = type(node).__name__
    return (kind, node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)


def _stands_alone(statement: ast.stmt, method: FunctionType) -> bool:
    """Return whether a statement can be a function: it does not return or break, nor use the module."""
    nodes = list(ast.walk(statement))
    leaves = any(
        isinstance(node, (ast.Return, ast.Break, ast.Continue, ast.Yield, ast.Await)) for node in nodes
    )
    own = method.__code__.co_varnames[0]
    return not leaves and not any(isinstance(node, ast.Name) and node.id in (own, "super") for node in nodes)


class _Operators(ast.NodeTransformer):
    """Writes the parts at some places of a method as operators."""

    def __init__(self, places: list[Place], method: FunctionType) -> None:
        self._places = places
        self._local = {*method.__code__.co_varnames, *method.__code__.co_cellvars}
        self.functions: list[ast.stmt] = []  # that statements became

    def visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, (ast.Call, ast.stmt)) or _place(node) not in self._places:
            return self.generic_visit(node)
        if isinstance(node, ast.Call):
            call = ast.Call(ast.Name(_OPERATOR, ast.Load()), [node.func, *node.args], node.keywords)
            return ast.copy_location(self.generic_visit(call), node)
        return ast.copy_location(self._outlined(node), node)

    def _outlined(self, statement: ast.stmt) -> ast.stmt:
        """Return a statement that gets from a function what `statement` assigns."""
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        names = [name for name in names if name.id in self._local]
        assigned = sorted({name.id for name in names if isinstance(name.ctx, ast.Store)})
        used, results = sorted({name.id for name in names}), "".join(f"{name}, " for name in assigned)
        function = f"part_{len(self.functions)}"
        arguments = ", ".join(f"{name}=None" for name in used)
        definition = ast.parse(f"def {function}({arguments}):\n    return ({results})").body[0]
        assert isinstance(definition, ast.FunctionDef)
        definition.body.insert(0, statement)
        self.functions.append(definition)
        given = f"**{{name: value for name, value in locals().items() if name in {used}}}"
        call = f"{_OPERATOR}({function}, {given})"
        return ast.parse(f"({results}) = {call}" if assigned else call).body[0]


def _rewritten(method: FunctionType, tree: ast.Module, places: list[Place]) -> FunctionType:
    """Return a method in which the parts at some places are operators."""
    operators = _Operators(places, method)
    operators.visit(tree)
    definition: Any = tree.body[0]
    definition.decorator_list = []
    # within a function that has its free variables as arguments, `__class__` of `super()` among them
    free = ", ".join(method.__code__.co_freevars)
    (maker,) = ast.parse(f"def maker({free}):\n    return {definition.name}").body
    assert isinstance(maker, ast.FunctionDef)
    maker.body[:0] = [*operators.functions, definition]
    module = ast.fix_missing_locations(ast.Module([maker], []))
    space: dict[str, Any] = {}
    names = {**method.__globals__, _OPERATOR: operator_call}
    exec(compile(module, method.__code__.co_filename, "exec"), names, space)
    cells = [cell.cell_contents for cell in method.__closure__ or ()]
    rewritten: FunctionType = space["maker"](*cells)
    rewritten.__defaults__, rewritten.__kwdefaults__ = method.__defaults__, method.__kwdefaults__
    return rewritten
