"""Records that are pytrees: `struct.dataclass` and `struct.field`, as flax has them.

Each class is a kind of node of its own. Records of `jax.tree_util.register_dataclass`, which flax's
are, have equal structures where two classes have as many traced fields and equal static ones (JAX
0.10); only their hashes differ, and now and then `jit` runs the program of one class for the other.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

from jax.tree_util import GetAttrKey, register_pytree_with_keys

T = TypeVar("T")


def field(
    pytree_node: bool = True, *, metadata: dict[str, Any] | None = None, **options: Any
) -> Any:
    """A field; with `pytree_node=False` a static one, which is compared and hashed.

    Args:
        pytree_node: whether it is traced.
        metadata: further metadata.
        options: of `dataclasses.field`.
    """
    return dataclasses.field(metadata={**(metadata or {}), "pytree_node": pytree_node}, **options)


def is_record(cls: type) -> bool:
    """Whether a class is a record, of this module or of flax: its fields are traced or static."""
    return hasattr(cls, "_is_record") or hasattr(cls, "_flax_dataclass")


@dataclass_transform(field_specifiers=(field, dataclasses.field), frozen_default=True)
def dataclass(cls: type[T]) -> type[T]:
    """A frozen dataclass that is a pytree of its traced fields, with a method `replace`.

    `__post_init__` checks what people write; what JAX puts together again is not checked.

    Example:
        >>> from jaxfl import struct
        >>> @struct.dataclass
        ... class Line:
        ...     slope: float
        ...     name: str = struct.field(pytree_node=False, default="line")
        >>> jax.tree.map(lambda a: 2 * a, Line(1.5))
        Line(slope=3.0, name='line')
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(made)
    traced = [f.name for f in fields if f.metadata.get("pytree_node", True)]
    static = [f.name for f in fields if f.name not in traced]
    keys = [GetAttrKey(name) for name in traced]

    def flatten(record):
        return [getattr(record, k) for k in traced], tuple(getattr(record, k) for k in static)

    def flatten_with_keys(record):
        children, aux = flatten(record)
        return list(zip(keys, children, strict=True)), aux

    def unflatten(aux, children):
        record = object.__new__(made)
        record.__dict__.update(zip(static, aux, strict=True))
        record.__dict__.update(zip(traced, children, strict=True))
        return record

    register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    made._is_record = True
    made.replace = lambda record, **changes: dataclasses.replace(record, **changes)
    return made
