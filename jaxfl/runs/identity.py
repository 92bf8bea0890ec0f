"""What a run, a sweep or a comparison is, as JSON: what a folder compares before it goes on.

Records by their fields, arrays by all of their bytes, functions by code, constants, defaults,
closures and the globals that they name. Nothing depends on addresses, hash seeds, line numbers or
where a file lies. Of libraries (the standard one, jaxfl, what is installed) functions and classes
count by name, and their versions are recorded.
"""

import dataclasses
import dis
import enum
import functools
import hashlib
import importlib.util
import inspect
import json
import platform
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.engine.clients import Clients

Tree = dict[str, Any]
_SHOWN, _LISTED, _WORDS = 8, 64, 60  # of an array, of a list, of a text: beyond, a checksum
_BLOCK = 1 << 24  # bytes of an array that are read at once
_PLACEMENT = ("block", "over", "host", "population")  # of clients: changes results by rounding only
_LINEN = ("parent", "name", "scope", "_state", "_parent_ref", "_id", "_compact_name_scope_methods")
_NNX = ("_object__", "_pytree__")  # how NNX keeps its books
_CODE = "its code"  # bytecode and constants, which only one version of Python writes
_FLAGS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR
_FLAGS |= inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_CHECKERS = ("jaxtyping", "beartype")  # whose wrappers change no result
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "networkx", "scikit-learn")


def identity(**things: Any) -> Tree:
    """What things are, by name: equal trees for things that compute the same, in every process.

    The same are: a function defined again, moved, with other comments, docstring or names of
    variables (of arguments not); arrays and integers on the host or a device, floats as JAX will
    hold them; clients in other blocks or places. Another are: one bit of an array, a constant, a
    default, a captured value, a global that a function names, the same of functions and classes of
    one's own that it uses. The values of attributes of modules count where code names them.

    Args:
        things: algorithms, clients, networks, arrays, functions, records, numbers, texts.

    Returns:
        Nested dicts and lists of strings, with `surroundings` (x64, backend, precision, how random
        numbers are made, Python), `versions`, and `code` of the functions and classes in use.

    Example:
        >>> from jaxfl.runs.identity import identity
        >>> one, other = identity(lr=0.1, steps=5), identity(lr=0.2, steps=5)
        >>> one["lr"], one["steps"], one == other
        ('0.1', '5', False)
    """
    reader = _Reader()
    here = {"surroundings": surroundings()}
    found = here | {name: reader.of(thing) for name, thing in things.items()}
    if code := reader.code():
        found["code"] = code
    if reader.unread:
        warnings.warn(
            f"of objects of the types {', '.join(sorted(reader.unread))} nothing can be read: two "
            "of a type count as the same; keep them out of what a folder compares",
            stacklevel=2,
        )
    return found | {"versions": versions(reader.packages)}


class Summed(NamedTuple):
    """A thing of which a checksum is enough: where there are many."""

    of: Any


class Exact(NamedTuple):
    """Numbers as Python has them, not as JAX will hold them: settings."""

    of: Any


def surroundings() -> dict[str, str]:
    """What changes the numbers of every run here."""
    settings: Any = jax.config
    return {
        "x64": str(settings.jax_enable_x64),
        "backend": jax.default_backend(),
        "precision": str(settings.jax_default_matmul_precision),
        "random": f"{settings.jax_default_prng_impl}"
        + (", partitionable" if settings.jax_threefry_partitionable else ""),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def versions(more: set[str] | frozenset[str] = frozenset()) -> dict[str, str]:
    """Of the libraries that compute, and of others that functions come from."""
    found = {name: _version(name) for name in (*_LIBRARIES, *sorted(more - {*_LIBRARIES}))}
    return {"jaxfl": f"{_version('jaxfl')} {_source()}".strip()} | found


def differences(saved: Any, now: Any) -> list[str]:
    """Where two identities differ, with both values; of another Python, code does not count."""
    a, b = dict(_flat(saved)), dict(_flat(now))
    if a.get("surroundings.python") != b.get("surroundings.python"):
        a, b = ({k: v for k, v in x.items() if not _by_python(k)} for x in (a, b))
    names = [n for n in {**a, **b} if a.get(n) != b.get(n) and not n.startswith("versions.")]
    return [f"{n} was {a.get(n, 'not there')}, is {b.get(n, 'not there')}" for n in names]


def agree(where: Any, what: str, saved: Any, now: Any) -> None:
    """Compares what a folder holds with what is asked for; warns where versions differ.

    Args:
        where: the folder.
        what: it holds then, such as "another sweep".
        saved, now: identities.

    Raises:
        ValueError: they differ, and where.
    """
    if found := differences(saved, now):
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        raise ValueError(
            f"folder {str(where)!r} holds {what}: {'; '.join(found[:4])}{more}; choose "
            "another folder, delete this one, or go back to what it was"
        )
    if not all(isinstance(x, dict) and "versions" in x for x in (saved, now)):
        return
    old, new = saved["versions"], now["versions"]
    other = [f"{n} {old[n]}, now {new[n]}" for n in old if n in new and old[n] != new[n]]
    pythons = [x["surroundings"]["python"] for x in (saved, now)]
    if pythons[0] != pythons[1]:
        other += [f"Python {pythons[0]}, now {pythons[1]} (functions were compared by name only)"]
    if other:
        warnings.warn(
            f"folder {str(where)!r} was begun with {', '.join(other)}; its numbers may differ",
            stacklevel=3,
        )


def digest(a: Any) -> str:
    """A checksum of JSON."""
    return _hash([json.dumps(a, sort_keys=True).encode()])


def checksum(path: Path) -> str:
    """Of a file."""
    with open(path, "rb") as file:
        return _hash(iter(functools.partial(file.read, _BLOCK), b""))


def _flat(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list) and tree:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _flat(value, (*path, str(key)) if key != "" else path)
    else:
        yield ".".join(path), tree


def _by_python(name):
    return name == "surroundings.python" or _CODE in name.split(".")


def _hash(blocks):
    found = hashlib.sha256()
    for block in blocks:
        found.update(block)
    return found.hexdigest()[:16]


class _Reader:
    """Reads things; what it has read once it does not read again.

    Args of its methods: `exact`, whether floats keep their own width. JAX narrows what it traces,
    not what Python computes with.
    """

    def __init__(self):
        self.arrays: dict[tuple[int, bool], tuple[Any, str]] = {}  # by identity, kept alive
        self.above: list[int] = []  # what is being read
        self.names: dict[int, str] = {}  # own functions and classes that code uses
        self.used: dict[str, Any] = {}
        self.packages: set[str] = set()
        self.unread: set[str] = set()

    def code(self) -> Tree:
        """The functions and classes that were used, and those that these use, by name."""
        found = {}
        while len(found) < len(self.used):
            for name in [name for name in self.used if name not in found]:
                thing = self.used[name]
                found[name] = self._class(thing) if isinstance(thing, type) else self.of(thing)
        return found

    def _use(self, thing: Any) -> str:
        """The name under which a function or class is described."""
        if id(thing) not in self.names:
            name, k = thing.__qualname__, 2
            while name in self.used:
                name, k = f"{thing.__qualname__} ({k})", k + 1
            self.names[id(thing)], self.used[name] = name, thing
        return self.names[id(thing)]

    def of(self, a: Any, exact: bool = False) -> Any:
        """Any thing."""
        if a is None or isinstance(a, bool | int) and not isinstance(a, enum.Enum):
            return str(a)
        if isinstance(a, str) and type(a) in (str, np.str_):
            return repr(str(a)) if len(a) <= _WORDS else f"text of {len(a)} {_hash([_utf8(a)])}"
        if isinstance(a, bytes | bytearray):
            return f"bytes of {len(a)} {_hash([a])}"
        if isinstance(a, float | complex) and exact and not isinstance(a, np.generic):
            return str(a)
        if isinstance(a, float | complex | np.generic | np.ndarray | jax.Array):
            return self._array(a, exact)
        if id(a) in self.above:
            return f"itself, {len(self.above) - self.above.index(id(a))} above"
        self.above.append(id(a))
        try:
            return self._thing(a, exact)
        except RecursionError:
            raise ValueError(
                f"{type(a).__name__} is nested too deeply to say what it is; keep such things out "
                "of what is saved"
            ) from None
        finally:
            self.above.pop()

    def _thing(self, a, exact):
        if isinstance(a, comm.Near | comm.Shifts):  # `spread` makes the one of the other
            a = comm.to_near(a)
            return {"": "Near", **{k: self.of(getattr(a, k), exact) for k in ("idx", "w", "back")}}
        if isinstance(a, Exact):
            return self.of(a.of, exact=True)
        if isinstance(a, Summed):
            return f"{type(a.of).__name__} {digest(self.of(a.of, exact))}"
        if isinstance(a, Mapping | list | tuple | set | frozenset):
            found = self._held_in(a, exact)
            if self._library(type(a).__module__) or hasattr(a, "_fields"):
                return found
            return {"": self._label(type(a)), "items": found, "attributes": self.of(_held(a), True)}
        if isinstance(a, enum.Enum):
            return f"{type(a).__name__}.{a.name}"
        if isinstance(a, types.ModuleType):
            return f"module {a.__name__}"
        if isinstance(a, type):
            return self._label(a)
        if isinstance(a, np.dtype):
            return f"dtype {a.name}"
        if isinstance(a, types.CodeType):
            return self._bytecode(a)
        if isinstance(a, functools.partial):  # jax.tree_util.Partial too
            parts = {"func": a.func, "args": a.args, "keywords": a.keywords}
            return {"": "partial", **{k: self.of(v, exact) for k, v in parts.items()}}
        if isinstance(a, types.MethodType):
            return {"": "method", "func": self.of(a.__func__), "self": self.of(a.__self__, exact)}
        if isinstance(a, types.FunctionType):
            return self._function(a)
        if callable(a) and (name := self._public(a)):
            return name
        if isinstance(a, jax.Device):  # where things are does not count
            return f"device {a.platform}"
        if isinstance(a, PurePath):
            return f"path {str(a)!r}"
        if dataclasses.is_dataclass(a):
            return self._record(a, exact)
        if hasattr(a, "__wrapped__"):  # by jax.jit, jax.custom_vjp, functools.cache
            held = {k: v for k, v in _held(a).items() if not k.startswith("_")}
            found = {"": type(a).__name__, "func": self.of(a.__wrapped__)}
            return found | {k: self.of(v, exact=True) for k, v in held.items()}
        return self._object(a, exact)

    def _held_in(self, a, exact):
        """What a container holds."""
        if isinstance(a, Mapping):
            named = {k if isinstance(k, str) else f"[{self._key(k)}]": k for k in a}
            return _short("table", {n: self.of(a[k], exact) for n, k in named.items()})
        if isinstance(a, set | frozenset):
            return {"": "set", **dict(enumerate(sorted(map(self._key, a))))}
        if (fields := getattr(a, "_fields", None)) is not None:
            return {"": self._label(type(a))} | {k: self.of(getattr(a, k), exact) for k in fields}
        if len(a) > _LISTED and {type(v) for v in a} <= {bool, int, float, str}:
            return f"list of {len(a)} {_hash([_utf8(repr([*a]))])}"
        return _short("list", [self.of(v, exact) for v in a])

    def _key(self, a):
        """Any thing as one text."""
        found = self.of(a, exact=True)
        return found if isinstance(found, str) else json.dumps(found, sort_keys=True)

    def _label(self, cls):
        """The name of a class; its code is described apart."""
        if self._library(cls.__module__):
            return cls.__name__
        return f"class {self._use(cls)}"

    def _record(self, a, exact):
        cls, traced = type(a), struct.is_record(type(a))
        skip = _PLACEMENT if isinstance(a, Clients) else ()
        skip = _LINEN if isinstance(a, nn.Module) else skip
        found = {"": self._label(cls)}
        for f in dataclasses.fields(a):
            if f.name not in skip:
                own = exact or not traced or not f.metadata.get("pytree_node", True)
                found[f.name] = self.of(getattr(a, f.name, None), own)
        return found

    def _object(self, a, exact):
        """An object by its attributes, or by what `pickle` would take of it."""
        cls = type(a)
        nnx = sys.modules.get("flax.nnx")
        if nnx is not None and isinstance(a, nnx.Variable):
            about = {k: v for k, v in a.get_metadata().items() if not k.startswith("on_")}
            return {"": cls.__name__, "value": self.of(a.get_value(), exact)} | (
                {"about": self.of(about, exact)} if about else {}
            )
        own = not self._library(cls.__module__)
        if own or callable(a) or (nnx is not None and isinstance(a, nnx.Module)):
            held = {k: v for k, v in _held(a).items() if not k.startswith(_NNX)}
            owner = getattr(a, "__self__", None)
            if isinstance(a, types.BuiltinMethodType) and not isinstance(owner, types.ModuleType):
                return {"": f"builtin {a.__name__}", "self": self.of(owner, exact)}
            if own or held:
                return {"": self._label(cls)} | {k: self.of(v, exact) for k, v in held.items()}
        try:
            made = a.__reduce_ex__(4)
        except Exception:  # a lock, a stream, a device: nothing of it can be read
            self.unread.add(cls.__name__)
            return f"{cls.__name__}, of which nothing can be read"
        if isinstance(made, str):
            return f"{cls.__name__} {made}"
        args = made[1] if made[1][:1] != (cls,) else made[1][1:]
        parts = [args, *made[2:3], *(list(v) for v in made[3:5] if v is not None)]
        return {"": cls.__name__, "made of": [self.of(v, exact=True) for v in parts]}

    def _array(self, a, exact):
        """An array in full; integers of 32 and 64 bits, and floats as JAX holds them, are alike."""
        if (id(a), exact) not in self.arrays:
            self.arrays[id(a), exact] = a, _array(a, exact, self._key)
        return self.arrays[id(a), exact][1]

    def _public(self, a):
        """The name of what a library offers under it: a ufunc, a builtin, a jitted function."""
        module, name = getattr(a, "__module__", None), getattr(a, "__name__", None)
        if isinstance(a, np.ufunc):
            module = module or "numpy"
        if not isinstance(module, str) or not isinstance(name, str) or not self._library(module):
            return ""
        return f"{module}.{name}" if getattr(sys.modules.get(module), name, None) is a else ""

    def _library(self, module):
        """Whether a module is not the user's own; which package is noted."""
        top = str(module or "").partition(".")[0]
        kind = _kind(top)
        if kind == "installed":
            self.packages.add(_package(top))
        return bool(kind)

    def _function(self, f):
        module = str(f.__globals__.get("__name__") or "")
        if module.partition(".")[0] in _CHECKERS and hasattr(f, "__wrapped__"):
            return self.of(f.__wrapped__)
        found: Tree = {"": f.__name__}
        library = self._library(module)
        if library:
            found[""] = f"{module}.{f.__name__}"
            if f.__closure__ is None:
                return found
        code = f.__code__
        if not library:
            found["arguments"] = " ".join(_arguments(code))
            found[_CODE] = self._bytecode(code)
            found |= {"globals": got} if (got := self._globals(f)) else {}
            own = {k: v for k, v in vars(f).items() if not k.startswith("__")}
            found |= {"attributes": self.of(own, exact=True)} if own else {}
        for name, held in (("defaults", f.__defaults__), ("keywords", f.__kwdefaults__)):
            if held:
                found[name] = self.of(held, exact=True)
        if f.__closure__:
            cells = zip(code.co_freevars, f.__closure__, strict=True)
            found["closure"] = {k: self._cell(cell, library) for k, cell in cells}
        return found

    def _cell(self, cell, library):
        try:
            held = cell.cell_contents
        except ValueError:
            return "empty"
        if (
            library and type(held) is int and held == float(held)
        ):  # schedules of optax make them floats when they run
            held = float(held)
        return self.of(held, exact=True)

    def _bytecode(self, code):
        """Instructions without names of variables, places and lines; constants that they load."""
        used = sorted({arg for op, arg in _instructions(code) if op in dis.hasconst})
        rank = {arg: i for i, arg in enumerate(used)}
        steps = [(op, rank[arg] if op in dis.hasconst else arg) for op, arg in _instructions(code)]
        about = steps, code.co_names, code.co_freevars, code.co_cellvars, code.co_exceptiontable
        about = (*about, code.co_flags & _FLAGS, _arguments(code))
        constants = [self.of(code.co_consts[arg], exact=True) for arg in used]
        return {"": _hash([_utf8(repr(about))])} | ({"constants": constants} if constants else {})

    def _globals(self, f):
        """The globals that a function and those inside it name, but not builtins."""
        found = {}
        for name, attributes in sorted(_named(f.__code__).items()):
            if name in f.__globals__:
                found[name] = self._global(f.__globals__[name], attributes)
        for name in sorted(_imported(f.__code__)):
            if place := _own_file(name):
                found[f"import {name}"] = checksum(place)
        return found

    def _global(self, a, attributes):
        """A global: own functions and classes by name, and of own modules what code may ask for."""
        checked = getattr(a, "__wrapped__", None)
        if isinstance(a, types.FunctionType) and checked is not None:
            if str(a.__globals__.get("__name__")).partition(".")[0] in _CHECKERS:
                a = checked
        if isinstance(a, types.FunctionType):
            if not self._library(a.__globals__.get("__name__")):
                return f"function {self._use(a)}"
        if isinstance(a, types.ModuleType) and not self._library(a.__name__):
            if id(a) in self.above:
                return f"module {a.__name__}"
            self.above.append(id(a))
            try:
                own = {k: vars(a)[k] for k in sorted(attributes) if k in vars(a)}
                return {k: self._global(v, attributes) for k, v in own.items()}
            finally:
                self.above.pop()
        return self.of(a, exact=True)

    def _class(self, cls):
        """The methods and plain attributes of a class and of those above it that are own."""
        foreign = [one for one in cls.__mro__ if self._library(one.__module__)]
        found: Tree = {"its bases": [one.__name__ for one in foreign]}
        linen = _LINEN if issubclass(cls, nn.Module) else ()
        for one in [one for one in cls.__mro__ if one not in foreign]:
            for name, held in vars(one).items():
                if isinstance(held, staticmethod | classmethod):
                    held = held.__func__
                if isinstance(held, property | functools.cached_property):
                    parts = ("fget", "fset", "func")
                    held = [f for k in parts if (f := getattr(held, k, None)) is not None]
                made = getattr(inspect.unwrap(held), "__code__", None) if callable(held) else None
                if made is not None and made.co_qualname.startswith("__create_fn__"):
                    continue  # by `dataclass`, from the fields
                hidden = name.startswith(("__", "_abc_", *_NNX))
                hidden = (hidden or name in linen) and not isinstance(held, types.FunctionType)
                if name in found or hidden:
                    continue
                found[name] = self.of(held, exact=True)
        return found


def _short(kind, found):
    """Many things as one checksum."""
    if not found:
        return f"empty {kind}"
    return f"{kind} of {len(found)} {digest(found)}" if len(found) > _LISTED else found


def _utf8(words):
    return str(words).encode("utf-8", "surrogatepass")


def _held(a):
    """The attributes of an object."""
    found = dict(getattr(a, "__dict__", {}))
    for cls in type(a).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(a, name):
                found.setdefault(name, getattr(a, name))
    return found


def _arguments(code):
    """The names of arguments, by which they may be given."""
    count = code.co_argcount + code.co_kwonlyargcount
    stars = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return code.co_varnames[: count + stars]


def _instructions(code):
    """Pairs of operation and argument."""
    raw, found, more = code.co_code, [], 0
    for op, arg in zip(raw[::2], raw[1::2]):
        arg |= more
        more = arg << 8 if op == dis.EXTENDED_ARG else 0
        if op != dis.EXTENDED_ARG:
            found.append((op, arg))
    return found


def _named(code):
    """The globals that code names, and that code inside it names, with all attributes it names."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    loads = dis.opmap["LOAD_GLOBAL"]  # whose lowest bit says something else
    found = {code.co_names[arg >> 1] for op, arg in _instructions(code) if op == loads}
    found |= {code.co_names[a] for op, a in _instructions(code) if op == dis.opmap["LOAD_NAME"]}
    names = {*code.co_names}
    for each in map(_named, inner):
        found |= each.keys()
        names = names.union(*each.values())
    return dict.fromkeys(found, names)


def _imported(code):
    """The modules that code, and code inside it, imports when it runs."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    op = dis.opmap["IMPORT_NAME"]
    found = {code.co_names[arg] for o, arg in _instructions(code) if o == op}
    return found.union(*map(_imported, inner))


def _array(a, exact, key):
    """An array as text: its kind, its shape and its numbers or their checksum."""
    impl = ""
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, impl = jax.random.key_data(a), str(jax.random.key_impl(a))
    if isinstance(a, np.ma.MaskedArray):
        return f"masked {_array(a.data, exact, key)} {_array(np.ma.getmaskarray(a), exact, key)}"
    a = np.asarray(a)
    if a.dtype.names:
        return " ".join(f"{name} {_array(a[name], exact, key)}" for name in a.dtype.names)
    if a.dtype.kind == "O":
        return f"objects {[*a.shape]} {key(a.ravel().tolist())}"
    dtype = a.dtype.newbyteorder("=")
    if not exact and dtype.kind in "iufc":
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        if dtype.kind == "i" and dtype.itemsize >= 4:
            dtype = np.dtype(np.int64)
    name = impl or ("int" if dtype == np.int64 and not exact else dtype.name)
    if a.ndim == 0 and dtype.kind in "biufc" and not impl:
        return str(a.astype(dtype))
    shape = " " + str([*a.shape]) if a.ndim > 1 or a.size > _SHOWN else ""
    if a.size <= _SHOWN and dtype.kind in "biufc":
        return " ".join([name + shape, *map(str, a.astype(dtype).ravel())])
    if a.size <= _SHOWN and dtype.kind in "US":
        return " ".join([name + shape, *map(repr, a.ravel().tolist())])
    return f"{name}{shape} {_hash(_bytes(a, dtype))}"


def _bytes(a, dtype):
    """The numbers of an array in order, in blocks, however they lie in memory or in a file."""
    if a.ndim and a.nbytes > _BLOCK:
        rows = max(1, _BLOCK * len(a) // a.nbytes)
        for k in range(0, len(a), rows):
            yield from _bytes(a[k : k + rows] if rows > 1 or a.ndim == 1 else a[k], dtype)
    else:
        a = np.ascontiguousarray(a.astype(dtype, copy=False))
        if sys.byteorder == "big":
            a = a.byteswap()
        yield a.reshape(-1).view(np.uint8).data if a.nbytes else b""


# Libraries -------------------------------------------------------------------------------------


@functools.cache
def _kind(top: str) -> str:
    """ "installed" and "standard" of libraries, "" of a user's own module."""
    if top == "jaxfl":
        return "standard"
    module = sys.modules.get(top) if top != "__main__" else None
    place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if place is None:
        return "standard" if top in sys.builtin_module_names else ""
    return _shelf(place)


def _shelf(place: str) -> str:
    """The kind of a module by its file."""
    if {"site-packages", "dist-packages"} & {*Path(place).parts}:
        return "installed"
    inside = Path(place).is_relative_to(sysconfig.get_paths()["stdlib"])
    return "standard" if inside else ""


def _own_file(name: str) -> Path | None:
    """The file of a user's own module, whether it was imported or not."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    place = Path(spec.origin) if spec and spec.origin else Path()
    own = place.is_file() and not _shelf(str(place)) and name.partition(".")[0] != "jaxfl"
    return place if own else None


@functools.cache
def _package(top: str) -> str:
    """The distribution of a module."""
    from importlib.metadata import packages_distributions

    return top if top in _LIBRARIES else packages_distributions().get(top, [top])[0]


@functools.cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@functools.cache
def _source() -> str:
    """A checksum of jaxfl itself, which may change under one version."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return _hash(path.read_bytes() for path in files)
