"""Objects as JSON and back: what fixes a computation, written down exactly and readably.

Numbers are exact: JSON holds the shortest decimals that give the same double, larger arrays their bytes. Objects are the names
of their types with their fields, the objects that are made by a function (`gdflow.RKC(20)`) the call. Reading makes
objects of types and functions of JAX's ecosystem, gdflow, and of modules that are imported already, so that a file cannot make
Python run something else.
"""

import base64
import dataclasses
import enum
import hashlib
import importlib
import json
import math
import sys
import types
import zlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

#: Arrays of at most so many entries are written as numbers.
_READABLE = 64
#: Packages whose modules are imported when a record names them; others must be imported already.
_PACKAGES = ("gdflow", "diffrax", "optimistix", "lineax", "equinox", "jax", "optax")


def _name(x: Any) -> str:
    return f"{x.__module__}:{x.__qualname__}"


def _array(x: np.ndarray) -> dict[str, Any]:
    record: dict[str, Any] = {"array": str(x.dtype), "shape": list(x.shape)}
    if x.size <= _READABLE and x.dtype.kind in "iub":
        return record | {"values": x.ravel().tolist()}
    if x.size <= _READABLE and x.dtype == np.float64 and np.isfinite(x).all():
        return record | {"values": x.ravel().tolist()}
    return record | {"bytes": base64.b64encode(zlib.compress(np.ascontiguousarray(x).tobytes())).decode("ascii")}


def record(x: Any) -> Any:
    """An object as what JSON can hold.

    **Arguments:** `x`: numbers, strings, arrays, JAX's keys, members of enumerations, tuples, dictionaries, dataclasses
    (Equinox modules are such), functions and classes by name. Of anything else the `repr` is kept, which cannot be read back.
    """
    match x:
        case enum.Enum():
            return {"member": _name(type(x)), "name": x.name}
        case None | bool() | str():
            return x
        case np.bool_():
            return bool(x)
        case int() | np.integer():
            return int(x)
        case float() | np.floating():
            return float(x) if math.isfinite(x) else {"float": str(float(x))}
        case jax.Array() if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return {"key": str(jax.random.key_impl(x)), "data": _array(np.asarray(jax.random.key_data(x)))}
        case np.ndarray() | jax.Array():
            return _array(np.asarray(x)) | {"of": "numpy" if isinstance(x, np.ndarray) else "jax"}
        case tuple() | list():
            return [record(item) for item in x]
        case dict():
            return {"dict": {str(key): record(value) for key, value in x.items()}}
        case type() | types.FunctionType():
            return {"name": _name(x)}
    if type(x).__reduce__ is not object.__reduce__ and dataclasses.is_dataclass(x):
        made: Any = type(x).__reduce__(x)
        function, arguments = made
        return {"call": _name(function), "arguments": record(arguments)}
    if type(x).__module__.startswith("diffrax.") and _is_default(x):
        return {"made": _name(type(x))}  # implicit solvers hold marks that have no names of their own
    if dataclasses.is_dataclass(x):
        fields = [field.name for field in dataclasses.fields(x)]
        return {
            "type": _name(type(x)),
            "fields": {name: record(getattr(x, name)) for name in fields if hasattr(x, name)},
        }
    return {"opaque": repr(x)}


def _is_default(x: Any) -> bool:
    """Whether it is what its type makes without arguments."""
    try:
        return bool(eqx.tree_equal(type(x)(), x))
    except TypeError:
        return False


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names and root != "__main__":
        raise ValueError(f"{name} is not something that a record may name")
    if module not in sys.modules and root not in _PACKAGES:
        raise ValueError(f"{name} is needed: import {module} first")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        raise ValueError(
            f"{name} is needed, but there is no such thing: other versions, or a local definition"
        ) from None
    return found


def restore(x: Any) -> Any:
    """The object that was recorded.

    **Raises:** `ValueError` for records that are damaged, that name what cannot be found, and of objects that could not be
    written down.
    """
    if isinstance(x, list):
        return tuple(map(restore, x))
    if not isinstance(x, dict):
        return x
    match x:
        case {"member": name, "name": member}:
            return _find(name)[member]
        case {"float": text}:
            return float(text)
        case {"key": impl, "data": data}:
            return jax.random.wrap_key_data(restore(data), impl=impl)
        case {"array": dtype, "shape": shape, "values": values}:
            return _as_array(np.array(values, dtype).reshape(shape), x)
        case {"array": dtype, "shape": shape, "bytes": text}:
            data = zlib.decompress(base64.b64decode(text))
            return _as_array(np.frombuffer(data, dtype).reshape(shape), x)
        case {"dict": items}:
            return {key: restore(value) for key, value in items.items()}
        case {"name": name}:
            return _find(name)
        case {"made": name} if name.startswith("diffrax."):
            return _find(name)()
        case {"call": name, "arguments": arguments} if name.startswith("gdflow."):
            return _find(name)(*restore(arguments))
        case {"type": name, "fields": dict(fields)}:
            return _object(_find(name), fields)
        case {"opaque": text}:
            raise ValueError(f"{text} could not be written down, so it cannot be read back")
    raise ValueError(f"a record with the entries {', '.join(map(str, x))} means nothing")


def _as_array(array: np.ndarray, record: dict[str, Any]) -> Any:
    return array if record.get("of", "numpy") == "numpy" else jnp.asarray(array)


def _object(kind: Any, fields: dict[str, Any]) -> Any:
    """An instance with these fields, as they were: nothing is converted or computed again."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"{kind!r} is no type that a record may name")
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, restore(value))
    return made


def is_known(record: Any) -> bool:
    """Whether a record names nothing but parts of the packages above, whose versions fix them, and no opaque objects.

    Functions and classes are recorded by name: those of a notebook or a script may have been changed since.
    """
    if isinstance(record, list):
        return all(map(is_known, record))
    if not isinstance(record, dict):
        return True
    if "opaque" in record and len(record) == 1:
        return False
    named = [record[key] for key in ("member", "name", "call", "type", "made") if isinstance(record.get(key), str)]
    return all(":" not in name or name.split(".")[0].split(":")[0] in _PACKAGES for name in named) and all(
        is_known(value) for value in record.values()
    )


def digest(record: Any) -> str:
    """A fingerprint of a record: SHA-256, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def differences(there: Any, here: Any, where: str = "") -> list[str]:
    """Where two records differ, and how, in words: `limits.max_steps: 100 there, 200 here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        if there.get("type") == here.get("type"):
            found = []
            for name in dict.fromkeys((*there, *here)):
                inner = where if name == "fields" else f"{where}.{name}" if where else name
                found += differences(there.get(name), here.get(name), inner)
            return found
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return [
            line for k, pair in enumerate(zip(there, here, strict=True)) for line in differences(*pair, f"{where}[{k}]")
        ]
    return [] if there == here else [f"{where}: {_brief(there)} there, {_brief(here)} here"]


def _brief(x: Any) -> str:
    """A record in a few characters."""
    if isinstance(x, dict) and "type" in x:
        return str(x["type"]).rpartition(":")[2]
    text = json.dumps(x)
    return text if len(text) <= 40 else text[:37] + "…"
