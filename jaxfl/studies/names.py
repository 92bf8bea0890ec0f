"""Names with options, as in `dsgd(steps=5) @ erdos_renyi(p=0.3)`: data, never code."""

import ast
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxfl.studies.registry import components
from jaxfl.types import nearest, plain, shown

# Names with options ----------------------------------------------------------------------------


class Call(NamedTuple):
    """A name with options, as in `dsgd(steps=5) @ erdos_renyi(p=0.3)`.

    Example:
        >>> call = names.parse("dsgd(steps=5) @ erdos_renyi(p=0.3)")
        >>> call.name, call.options, call.on.name, call.on.options
        ('dsgd', {'steps': 5}, 'erdos_renyi', {'p': 0.3})
    """

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    on: "Call | None" = None
    written: tuple[tuple[str, str], ...] = ()  # the options by name, as they were

    def build(self, registry: Mapping[str, Callable], what: str, *args: Any, **more: Any) -> Any:
        """What the registry makes of it.

        Raises:
            ValueError: an unknown name or option, with the nearest; options that do not fit.
        """
        if self.name not in registry:
            raise ValueError(f"no {what} {shown(self.name)}{nearest(self.name, list(registry))}")
        maker = registry[self.name]
        known = inspect.signature(maker).parameters
        for option in self.options:
            if option not in known:
                raise ValueError(
                    f"{self.name} has no {shown(option)}{nearest(option, list(known))}"
                )
        args, more = (*args, *map(build, self.args)), more | self.built()
        try:
            inspect.signature(maker).bind(*args, **more)
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}; it takes {', '.join(known)}") from error
        return maker(*args, **more)

    def built(self) -> dict[str, Any]:
        """The options, with components made."""
        return {name: build(value) for name, value in self.options.items()}

    def given(self, registry: Mapping[str, Callable], option: str, value: Any) -> "Call | None":
        """The same with another value of an option; None if it has no such option."""
        names = list(inspect.signature(registry[self.name]).parameters)
        if option not in names:
            return None
        options = dict(zip(names, self.args)) | self.options | {option: value}
        return parse(str(Call(self.name, (), options, self.on)))

    def text(self, without: str = "") -> str:
        """The options as they were written, but for one."""
        shown = [words for name, words in self.written if name != without]
        return f"({', '.join(shown)})" if shown else ""

    def __str__(self) -> str:
        """What `parse` reads."""
        options = [*map(_text, self.args), *(f"{k}={_text(v)}" for k, v in self.options.items())]
        on = f" @ {self.on}" if self.on else ""
        return self.name + (f"({', '.join(options)})" if options else "") + on


def parse(text: str) -> Call:
    """A name with options in brackets, and maybe `@ graph`: data, never code.

    Raises:
        ValueError: anything else.

    Example:
        >>> names.parse("choco(compress=topk(0.1)) @ ring").options["compress"].args
        (0.1,)
    """
    try:
        with warnings.catch_warnings():  # of names that are nearly numbers, of backslashes
            warnings.simplefilter("ignore")
            return _call(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"cannot read {shown(text)}; write a name, with options in brackets: "
            "'fedprox(mu=0.1)', 'dsgd @ ring', 'choco(compress=topk(0.1)) @ torus'"
        ) from error


def _call(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        return _call(node.left)._replace(on=_call(node.right))
    if isinstance(node, ast.Name):
        return Call(node.id.lower(), (), {})
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("not a name")
    options = {str(k.arg): _value(k.value) for k in node.keywords}
    written = tuple(
        (str(k.arg), ast.unparse(k.value if isinstance(k.value, ast.Call) else k))
        for k in node.keywords
    )
    return Call(node.func.id.lower(), tuple(map(_value, node.args)), options, None, written)


def _value(node) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Name) and node.id == "inf":
        return float("inf")
    return _call(node)


def _text(value):
    value = plain(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value) if isinstance(value, Call) else repr(value)


def build(value: Any) -> Any:
    """The component that a `Call` names; other values as they are.

    Example:
        >>> names.build(names.parse("topk(0.1)"))
        TopK(fraction=0.1)
    """
    return value.build(components(), "component") if isinstance(value, Call) else value


def component(value: Any) -> Any:
    """A `Call` where a string names a component, such as "topk(0.1)"; other values as they are.

    Example:
        >>> names.component("topk(0.1)").args, names.component("ring")
        ((0.1,), 'ring')
    """
    named = isinstance(value, str) and value.split("(")[0].strip().lower() in components()
    return parse(value) if named else value
