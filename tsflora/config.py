"""Validated, frozen configuration: the base class of every part, and the registry that turns names into components."""

import contextlib
import difflib
import functools
import inspect
import logging
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, ClassVar, Generic, TypeVar, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    model_serializer,
)
from pydantic_core import CoreSchema

from tsflora.errors import ConfigError
from tsflora.foreign import blame, origin, source_digest

_log = logging.getLogger(__name__)


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """The tail of an error line: the nearest allowed name if there is one, then all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(names)}"


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """One line for the first thing wrong in a configuration: where, what was given, what is allowed."""
    first = error.errors(include_url=False)[0]
    loc = first["loc"]
    if loc and loc[-1] == "[key]":
        loc = loc[:-2]  # the message says which key
    place = ".".join([where, *map(str, loc)])
    if first["type"] == "extra_forbidden" and model is not None:
        owner: Any = model
        for part in loc[:-1]:
            field = getattr(owner, "model_fields", {}).get(part)
            owner = getattr(field, "annotation", None)
            # `X | None` has the keys of X
            owner = next((option for option in get_args(owner) if hasattr(option, "model_fields")), owner)
        known = getattr(owner, "model_fields", None)
        if known is not None:
            return f"{place}: unknown key; {did_you_mean(loc[-1], known)}"
    if first["type"] == "missing":
        return f"{place}: is required and was not given"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return f"{place}: {message}"
    # Our own validators already name what was given; pydantic's texts name only what is allowed.
    return f"{place}: {message}" if first["type"] == "value_error" else f"{place}: {message}; given: {first['input']!r}"


_KEY = re.compile(r"[A-Za-z0-9_-]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?")


def _checked_key(given: Any) -> str:
    if not isinstance(given, str) or not _KEY.fullmatch(given):
        raise ValueError(
            "a key becomes a part of paths: letters (a-z, A-Z), digits, _ and -, dots inside, 1 to 64 of them; "
            f"given: {given!r}"
        )
    return given


Key = Annotated[str, BeforeValidator(_checked_key)]
"""A name that a user gives and that files are called by."""


def _strict_numbers(schema: Any) -> None:
    """Make pydantic take numbers for numbers alone: by itself it takes `true` and `"3"` for integers, too."""
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema["strict"] = True
        for part, inner in schema.items():
            if part != "keys_schema":  # in JSON every key is text
                _strict_numbers(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            _strict_numbers(inner)


ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of every configuration class: frozen, an unknown key is an error, and so is a number that is none.

    Integers are no booleans or text, floats are finite, and booleans are no numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _strict_numbers(schema)
        return schema

    @classmethod
    def parse(cls: type[ConfigT], values: Mapping[str, Any], where: str = "") -> ConfigT:
        """Validate `values`; `where` names them in the error line.

        Raises:
            ConfigError: one line with the first thing that is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(explain(error, where or cls.__name__, cls)) from None


class Component(Config):
    """A part that is chosen by name: its fields are its options, its methods its behaviour.

    A third-party package adds one by listing its class under the entry-point group of its registry, a study by naming
    a file of its own under `plugins`.
    """

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    """Raised by hand when a change alters the numbers that this component produces; a run's record depends on it."""
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options under which the conformance suite (`tsflora.conformance`) tests it, on a model of 9 patches."""

    @model_serializer(mode="wrap")
    def _with_name(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {"name": self.name, **dump(self)}


ComponentT = TypeVar("ComponentT", bound=Component)
GivenT = TypeVar("GivenT")


class Registry(Generic[ComponentT]):
    """Components of one sort by name: the built-in ones, those of installed packages and those of a study's own files.

    Use `registry.build` as a pydantic `BeforeValidator`, so that configuration holds the component itself. An installed
    package is imported when one of its names is asked for, so that a broken one is in nobody else's way.
    """

    _everywhere: ClassVar[weakref.WeakSet["Registry[Any]"]] = weakref.WeakSet()

    def __init__(self, sort: str, group: str, base: type[Component] = Component) -> None:
        """`sort` names the components in messages; all of them derive from `base`."""
        self.sort = sort
        self.group = group
        self.base = base
        self._classes: dict[str, type[ComponentT]] = {}
        self._imported: set[str] = set()
        self._everywhere.add(self)

    def register(self, cls: GivenT) -> GivenT:
        """Class decorator: list `cls` under its `name`.

        Raises:
            ConfigError: not a finished component of this sort, or another one has its name.
        """
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            given = getattr(cls, "__qualname__", cls)
            raise ConfigError(f"{given} is no {self.sort}: it does not derive from {self.base.__name__}")
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not _KEY.fullmatch(name):
            raise ConfigError(f"{self.sort} {cls.__qualname__} needs a name of letters, digits and _; given: {name!r}")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(cls.__abstractmethods__))
            raise ConfigError(f"{self.sort} {name!r} is abstract: it has no {missing}")
        if name in self._classes:
            both = f"in {origin(self._classes[name])} and in {origin(cls)}"
            raise ConfigError(f"{self.sort} {name!r} is registered twice: {both}; rename one")
        with contextlib.suppress(ConfigError):
            source_digest(cls)
        self._classes[name] = cast(type[ComponentT], cls)
        return cls

    @classmethod
    def forget(cls, module: str) -> None:
        """Drop the components of a module from every registry, before it is loaded again."""
        for registry in cls._everywhere:
            registry._classes = {name: one for name, one in registry._classes.items() if one.__module__ != module}

    def classes(self) -> dict[str, type[ComponentT]]:
        """Every component class by name. An installed one that cannot be used is left out, with a warning."""
        for name, (entry, *_) in self._installed.items():
            if name in self._classes and name not in self._imported:
                place = origin(self._classes[name])
                _log.warning("left out: %s %r of %s, for %s has that name", self.sort, name, _package(entry), place)
            try:
                self._class(name)
            except ConfigError as error:
                _log.warning("left out: %s", error)
        return dict(self._classes)

    def build(self, values: Any) -> Any:
        """A component from `{"name": ..., **options}`, from a bare name, or passed through as it is.

        Raises:
            ValueError: an unknown name, a wrong option, or an installed package that cannot be used (pydantic turns it
                into its own error).
        """
        if isinstance(values, Component):
            return values
        if not isinstance(values, str | Mapping):
            raise ValueError(f"a {self.sort} is a name, or a mapping with a name and options; given: {values!r}")
        options = {"name": values} if isinstance(values, str) else dict(values)
        try:
            cls = self._class(options.pop("name", None))
        except ConfigError as error:
            raise ValueError(str(error)) from None
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise ValueError(explain(error, cls.name, cls)) from None

    @functools.cached_property
    def _installed(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            found.setdefault(entry.name, []).append(entry)
        return found

    def _class(self, name: Any) -> type[ComponentT]:
        """The class of this name; its package is imported if it was not before."""
        if isinstance(name, str) and name in self._classes:
            return self._classes[name]
        if not isinstance(name, str) or name not in self._installed:
            allowed = did_you_mean(name, {*self._classes, *self._installed})
            raise ConfigError(f"unknown {self.sort} {name!r}; {allowed}")
        entry, *others = self._installed[name]
        if others:
            packages = " and ".join(map(_package, (entry, *others)))
            raise ConfigError(f"{self.sort} {name!r} is offered by {packages}; uninstall all but one")
        try:
            cls = entry.load()
            if self._classes.get(name) is not cls:  # the package may call `register` by itself
                if getattr(cls, "name", name) != name:
                    raise ConfigError(f"its class is called {cls.name!r}")
                self.register(cls)
        except (Exception, SystemExit) as error:
            line = blame(error, entry.value.partition(":")[0].partition(".")[0])
            raise ConfigError(
                f"{self.sort} {name!r} of {_package(entry)} (entry point {entry.value}) cannot be used: {line}"
            ) from None
        self._imported.add(name)
        return self._classes[name]


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"
