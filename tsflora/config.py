"""Validated, frozen configuration: the base class of every part, and the registry that turns names into components."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    model_serializer,
)

from tsflora.errors import ConfigError


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """The tail of an error line: the nearest allowed name if there is one, then all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(names)}"


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """One line for the first thing wrong in a configuration: where, what was given, what is allowed."""
    first = error.errors(include_url=False)[0]
    place = ".".join([where, *(str(part) for part in first["loc"])])
    if first["type"] == "extra_forbidden" and model is not None:
        owner: Any = model
        for part in first["loc"][:-1]:
            field = getattr(owner, "model_fields", {}).get(part)
            owner = getattr(field, "annotation", None)
            # `X | None` has the keys of X
            owner = next((option for option in get_args(owner) if hasattr(option, "model_fields")), owner)
        known = getattr(owner, "model_fields", None)
        if known is not None:
            return f"{place}: unknown key; {did_you_mean(first['loc'][-1], known)}"
    if first["type"] == "missing":
        return f"{place}: is required and was not given"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return f"{place}: {message}"
    # Our own validators already name what was given; pydantic's texts name only what is allowed.
    return f"{place}: {message}" if first["type"] == "value_error" else f"{place}: {message}; given: {first['input']!r}"


ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of every configuration class: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

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

    A third-party package adds one by listing its class under the entry-point group of its registry.
    """

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    """Raised by hand when a change alters the numbers that this component produces; a run's record depends on it."""

    @model_serializer(mode="wrap")
    def _with_name(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {"name": self.name, **dump(self)}


ComponentT = TypeVar("ComponentT", bound=Component)


class Registry(Generic[ComponentT]):
    """Components of one sort by name, the built-in ones and those of installed packages.

    Use `registry.build` as a pydantic `BeforeValidator`, so that configuration holds the component itself.
    """

    def __init__(self, sort: str, group: str) -> None:
        self.sort = sort
        self.group = group
        self._classes: dict[str, type[ComponentT]] = {}
        self._installed_loaded = False

    def register(self, cls: type[ComponentT]) -> type[ComponentT]:
        """Class decorator: list `cls` under its `name`."""
        if cls.name in self._classes:
            raise ConfigError(f"{self.sort} {cls.name!r} is registered twice")
        self._classes[cls.name] = cls
        return cls

    def classes(self) -> dict[str, type[ComponentT]]:
        """Every component class by name."""
        if not self._installed_loaded:
            self._installed_loaded = True
            for entry in entry_points(group=self.group):
                if entry.name not in self._classes:
                    self.register(entry.load())
        return dict(self._classes)

    def build(self, values: Any) -> Any:
        """A component from `{"name": ..., **options}`, from a bare name, or passed through as it is.

        Raises:
            ValueError: an unknown name or a wrong option (pydantic turns it into its own error).
        """
        if isinstance(values, Component):
            return values
        if not isinstance(values, str | Mapping):
            raise ValueError(f"a {self.sort} is a name, or a mapping with a name and options; given: {values!r}")
        options = {"name": values} if isinstance(values, str) else dict(values)
        name = options.pop("name", None)
        classes = self.classes()
        if name not in classes:
            raise ValueError(f"unknown {self.sort} {name!r}; {did_you_mean(name, classes)}")
        try:
            return classes[name].model_validate(options)
        except ValidationError as error:
            raise ValueError(explain(error, str(name), classes[name])) from None
