"""Names and spec strings → index objects.

    LIST := SPEC [, SPEC]*
    SPEC := NAME [(SPEC)] [:key=value]* [@transform]

as `hnsw@lift`, `ivf:nlist=1024:nprobe=64`, `my_index.py::MyIndex:leaf=32`, `softmaxlift(hnsw@lift)` or
`tail(ra:ef=300):cluster_tokens=64`. A key is a build setting (a dataclass field) or an effort setting (a
keyword-only argument of `search`), which then replaces the sweep's. Only a wrapper takes a spec in
parentheses; without one it wraps its default. Its keys follow the parentheses; a transform is that of the
inner index, and stands inside. Commas, colons and @ in parentheses belong to the inner spec.

A name is a file or folder of indexes/, or an entry point in the group `ra_bench.indexes`; two of one name
are an error. Nothing is imported to list the names.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import json
import math
import os
import pkgutil
import re
import sys
import typing
import zlib
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points, requires
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from ra_bench.errors import UsageError, unknown
from ra_bench.index import Index
from ra_bench.transform import TRANSFORMS, Transformed
from ra_bench.wrapper import Wrapper

ENTRY_POINT_GROUP = "ra_bench.indexes"
# Set to any value to ignore indexes of other packages, as the tests do.
NO_PLUGINS_VARIABLE = "RA_BENCH_NO_PLUGINS"
MOST_WRAPPERS = 8  # around one index; each is parsed and made by its own call


@dataclass(frozen=True)
class Spec:
    """A parsed spec. `name` is a registry name or `FILE.py::Class`; `inner` is what a wrapper wraps."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    effort: dict[str, Any] = field(default_factory=dict)
    transform: str = "none"
    inner: Spec | None = None

    def __str__(self) -> str:
        pairs = (self.settings | self.effort).items()
        keys = "".join(f":{key}={'none' if value is None else value}" for key, value in pairs)
        inner = "" if self.inner is None else f"({self.inner})"
        return f"{self.name}{inner}{keys}" + (f"@{self.transform}" if self.transform != "none" else "")

    def without_effort(self) -> Spec:
        """What its build depends on: the effort of an inner index is fixed in it."""
        return dataclasses.replace(self, effort={})

    def with_transform(self, transform: str) -> Spec:
        """The same method and settings in another geometry."""
        return dataclasses.replace(self, transform=transform)

    @property
    def names(self) -> list[str]:
        """The names of the method and of all that it wraps, outermost first."""
        return [self.name, *(self.inner.names if self.inner is not None else [])]


@dataclass(frozen=True)
class Info:
    """What `ra-bench list` tells of one registry name."""

    name: str
    kind: str
    paper: str
    idea: str
    where: str
    query_aware: bool
    insert: bool
    available: bool
    reason: str
    extra: str = ""


def create(spec: str | Spec, threads: int = 1, seed: int = 0) -> Index:
    """A new, unbuilt index from a spec string. Raises UsageError naming what is wrong with it."""
    if isinstance(spec, str):
        spec = parse(spec)
    cls = index_class(spec.name)
    reason = missing(cls)
    if reason:
        raise UsageError(f"index '{spec.name}' is unavailable: {reason}")
    try:
        index: Index = cls(**spec.settings)
    except ValueError as error:
        raise UsageError(f"index '{spec}': {error}") from error
    if isinstance(index, Wrapper):
        inner = spec.inner or parse(index.default_inner)
        wrapped = create(inner, threads, seed)
        if not wrapped.has_search:
            raise UsageError(f"index '{spec}' must wrap one that searches, got '{inner}'")
        index.wrap(wrapped, inner.effort)
    if spec.transform != "none":
        index = Transformed(index, TRANSFORMS[spec.transform]())
    index.threads, index.seed, index.spec = threads, seed, str(spec)
    index.fix_effort(**spec.effort)
    return index


def load(folder: Path, mmap: bool = True) -> Index:
    """The index that `Index.save` wrote into `folder`, of whatever class. Raises ValueError if it is torn."""
    try:
        spec = json.loads((folder / "index.json").read_text())["spec"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is not a saved index: {error}") from error
    index = create(spec)
    index.restore(folder, mmap)
    return index


def split(text: str) -> list[str]:
    """The specs of a comma-separated list, without repeats; `all` stands for every name that can run here."""
    specs = [part.strip() for part in _outside(text, ",") if part.strip()]
    if not specs:
        raise UsageError("--indexes must name at least one index, got an empty list")
    if "all" in specs:
        specs = [name for name in names() if info(name).available] + specs
    return [spec for spec in dict.fromkeys(specs) if spec != "all"]


def left_out(text: str) -> list[str]:
    """A line for each name that `all` in a list of specs does not stand for, with the reason."""
    if "all" not in (part.strip() for part in _outside(text, ",")):
        return []
    infos = [info(name) for name in names()]
    return [f"{one.name}: {one.reason}" for one in infos if not one.available]


def parse(text: str) -> Spec:
    """Reads one spec string; values become the types of the fields and arguments they name."""
    head, inner_text, tail = _parts(text)
    body, _, transform = (head if inner_text is None else tail).partition("@")
    transform = transform or "none"
    if transform != "none" and transform not in TRANSFORMS:
        raise unknown("transform", transform, ["none", *TRANSFORMS])
    name, pairs = _split_name(body if inner_text is None else head + body)
    cls = index_class(name)
    wraps = issubclass(cls, Wrapper)
    if inner_text is not None and not wraps:
        raise UsageError(f"index '{text}': '{name}' takes no index in parentheses, got '{inner_text}'")
    if wraps and transform != "none":
        raise UsageError(f"index '{text}': a wrapper takes no transform; write {name}(SPEC@{transform})")
    if not cls.has_search and transform != "none":
        raise UsageError(
            f"index '{text}': '{name}' has no search, and takes no transform, got '@{transform}'"
        )
    inner = parse(inner_text) if inner_text is not None else None
    fields, efforts = settings_of(cls), effort_of(cls)
    settings: dict[str, Any] = {}
    effort: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"index '{text}': a setting must be key=value, got '{pair}'")
        if key in settings or key in effort:
            raise UsageError(f"index '{text}': {key} must be given once, got '{pair}' too")
        if key in fields:
            settings[key] = _convert(text, key, value, fields[key])
        elif key in efforts:
            effort[key] = _convert(text, key, value, efforts[key])
            if isinstance(effort[key], (int, float)) and effort[key] < 0:
                raise UsageError(f"index '{text}': {key} must not be negative, got '{value}'")
        else:
            raise unknown(f"'{name}' setting", key, [*fields, *efforts])
    return Spec(name, settings, effort, transform, inner)


def settings_of(cls: type[Index]) -> dict[str, Any]:
    """Build settings of a method: name → type."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]


def effort_of(cls: type[Index]) -> dict[str, Any]:
    """Effort settings: the keyword-only arguments of `search`, or `attend` where there is no search → type.

    A method that chooses keys names them in `choose` too.
    """
    method = cls.search if cls.has_search else cls.attend
    choose = getattr(cls, "choose", None)
    return _keywords(method) | ({} if choose is None else _keywords(choose))


def _keywords(method: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(method)
    parameters = inspect.signature(method).parameters.values()
    return {p.name: hints.get(p.name, str) for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


@cache
def names() -> dict[str, str | EntryPoint]:
    """Registry names → module names of indexes/ or entry points; nothing is imported."""
    try:
        package = importlib.import_module("ra_bench.indexes")
    except ModuleNotFoundError as error:
        raise UsageError("ra_bench is not installed: run 'pip install -e .' in its folder") from error
    found: dict[str, str | EntryPoint] = {
        module.name: f"ra_bench.indexes.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    }
    if NO_PLUGINS_VARIABLE not in os.environ:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            if point.name in found:
                raise UsageError(
                    f"two indexes are named '{point.name}': {found[point.name]} and {point.value}"
                )
            found[point.name] = point
    return dict(sorted(found.items()))


@cache
def index_class(name: str) -> type[Index]:
    """The class behind a registry name or `FILE.py::Class`. Raises UsageError if there is none."""
    if "::" in name:
        return _class_from_file(*name.split("::", 1))
    known = names()
    if name not in known:
        raise unknown("index", name, known)
    source = known[name]
    if isinstance(source, EntryPoint):
        try:
            cls = source.load()
        except Exception as error:  # a foreign package's code: anything can be raised
            raise UsageError(f"index '{name}' of {source.value} cannot be imported: {error!r}") from error
        return _checked_class(cls, source.value)
    return _only_class(source)


def info(name: str) -> Info:
    """What is known of one registry name; a method that cannot be imported is listed with its reason."""
    try:
        cls = index_class(name)
    except UsageError as error:
        return Info(name, "", "", "", "", False, False, False, str(error))
    reason = missing(cls)
    idea = (inspect.getdoc(sys.modules[cls.__module__]) or "").partition("\n")[0]
    flags = (cls.query_aware, cls.can_insert, not reason)
    return Info(name, cls.kind, cls.paper, idea, cls.where, *flags, reason, extra_of(cls))


def extra_of(cls: type[Index]) -> str:
    """What a method needs beside this package: the extra that brings it, else the module; mostly nothing."""
    offered: dict[str, str] = {}  # library → the extra that brings it; "" of what always comes
    for line in requires("ra-bench") or []:
        library, _, marker = line.partition(";")
        match = re.search(r"extra == ['\"](\w+)['\"]", marker)
        name = re.split(r"[^\w-]", library.strip())[0].replace("-", "_")
        offered.setdefault(name, match[1] if match else "")
    needed = set()
    for module in cls.requires:
        if not module.startswith("ra_bench."):
            # A library may be called like its module and a little more, as faiss_cpu.
            extras = [extra for name, extra in offered.items() if name.split("_")[0] == module.split("_")[0]]
            needed.add(extras[0] if extras else module)
    return ", ".join(sorted(needed - {""}))


def missing(cls: type[Index]) -> str:
    """Why a method cannot run here: the modules it needs that are not installed, or an empty string."""
    absent = [module for module in cls.requires if not _installed(module)]
    if not absent:
        return ""
    native = [module for module in absent if module.startswith("ra_bench.")]
    return f"not compiled: {', '.join(native)}" if native else f"not installed: {', '.join(absent)}"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _outside(text: str, separator: str) -> list[str]:
    """`text` split at each separator that stands outside all parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _parts(text: str) -> tuple[str, str | None, str]:
    """`NAME(SPEC)REST` → NAME, SPEC, REST; a spec without parentheses is (text, None, "")."""
    if "(" not in text and ")" not in text:
        return text, None, ""
    if (wrappers := text.count("(")) > MOST_WRAPPERS:
        raise UsageError(
            f"an index may have at most {MOST_WRAPPERS} wrappers, got {wrappers}: '{text[:60]}…'"
        )
    head, _, rest = text.partition("(")
    depth = 1
    for end, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            after = rest[end + 1 :]
            if not rest[:end].strip() or ")" in head or ":" in head.replace("::", ""):
                break
            if after and after[0] not in ":@":
                break
            return head, rest[:end].strip(), after
    raise UsageError(f"index '{text}': parentheses must hold one spec, as in NAME(SPEC):key=value")


def _split_name(body: str) -> tuple[str, list[str]]:
    """`NAME:a=1:b=2` → the name and the pairs; the `::` of FILE.py::Class is part of the name."""
    file, double, rest = body.partition("::")
    if double:
        cls, *pairs = rest.split(":")
        return f"{file}::{cls}", pairs
    name, *pairs = body.split(":")
    return name, pairs


def _convert(spec: str, key: str, value: str, kind: Any) -> Any:
    """`value` as the annotated type: bool, int, float, str, a Literal, or one of those or None."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        by_text = {str(option): option for option in options}
        if value not in by_text:
            raise UsageError(f"index '{spec}': {key} must be one of {', '.join(by_text)}, got '{value}'")
        return by_text[value]
    if NoneType in options:
        (kind,) = (option for option in options if option is not NoneType)
        return None if value == "none" else _convert(spec, key, value, kind)
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UsageError(f"index '{spec}': {key} must be true or false, got '{value}'")
        return value.lower() == "true"
    try:
        converted = kind(value)
    except ValueError:
        raise UsageError(f"index '{spec}': {key} must be {kind.__name__}, got '{value}'") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise UsageError(f"index '{spec}': {key} must be finite, got '{value}'")
    return converted


def _class_from_file(file: str, class_name: str) -> type[Index]:
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"index '{file}::{class_name}': no such file '{file}'")
    # Two files of one name in different folders are two modules.
    module_name = f"ra_bench_file_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"index '{file}::{class_name}': '{file}' must be a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's code: anything can be raised
        raise UsageError(f"index '{file}::{class_name}': importing the file failed: {error!r}") from error
    classes = {name: cls for name, cls in vars(module).items() if _is_method(cls)}
    if class_name not in classes:
        raise unknown(f"class in '{file}'", class_name, classes)
    return classes[class_name]


def _only_class(module_name: str) -> type[Index]:
    module = importlib.import_module(module_name)
    own = [cls for cls in vars(module).values() if _is_method(cls) and cls.__module__ == module_name]
    if len(own) != 1:
        raise UsageError(
            f"{module_name} must define exactly one Index class, got {[c.__name__ for c in own]}"
        )
    return own[0]


def _is_method(cls: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, Index) and not inspect.isabstract(cls)


def _checked_class(cls: Any, origin: str) -> type[Index]:
    if not _is_method(cls):
        raise UsageError(f"{origin} must be a concrete ra_bench.index.Index class, got {cls!r}")
    return cls
