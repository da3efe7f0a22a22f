"""`tsflora ls` and `tsflora test-plugin`: which components there are, and whether a file's keep their contracts."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from tsflora.errors import ConfigError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from tsflora.config import Component, Registry

_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}


def ls(
    kind: Annotated[str | None, typer.Argument(help="One sort, e.g. quantizers. [default: all]")] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A Python file whose components are listed as well; again for each.")
    ] = None,
) -> None:
    """List components by sort, with their options."""
    from tsflora.plugins import load_plugins

    load_plugins([str(path) for path in plugin or ()], Path())
    for registry in _registries(kind):
        typer.echo(_plural(registry.sort))
        for name, cls in registry.classes().items():
            typer.echo(f"  {name}: {_first_line(cls)}")
            for option, field in cls.model_fields.items():
                typer.echo(f"      {option}: {_allowed(field)}")
        typer.echo()


def test_plugin(file: Annotated[Path, typer.Argument(help="A Python file that registers components.")]) -> None:
    """Hold a file's components to their contracts.

    One line for each of a component's `examples`: ok, or the sentence that says what is wrong. Fails if one is wrong.
    """
    from tsflora.conformance import cases
    from tsflora.foreign import origin
    from tsflora.plugins import load_plugins

    before = _all_classes()
    # Those of an installed package are there already, and a name is registered once.
    own = {cls for cls in before if Path(origin(cls)).resolve() == file.resolve()}
    if not own:
        load_plugins([str(file)], Path())
        own = _all_classes() - before
    if not own:
        raise ConfigError(f"{file} registers no component, e.g. by @quantizers.register above a class")
    wrong = 0
    for case in cases(of=own):
        fault = case.fault()
        wrong += fault is not None
        typer.echo(f"{case}: {fault or 'ok'}")
    if wrong:
        raise typer.Exit(1)


def _all_classes() -> "set[type[Component]]":
    from tsflora.revisions import REGISTRIES

    return {cls for registry in REGISTRIES for cls in registry.classes().values()}


def _registries(kind: str | None) -> "list[Registry[Any]]":
    from tsflora.compression.images import image_codecs
    from tsflora.config import did_you_mean
    from tsflora.revisions import REGISTRIES

    known = {_plural(registry.sort): registry for registry in (*REGISTRIES, image_codecs)}
    if kind is None:
        return list(known.values())
    wanted = kind.lower().replace("_", "-").replace(" ", "-").removesuffix("s") + "s"
    if wanted not in known:
        raise ConfigError(f"unknown sort of component {kind!r}; {did_you_mean(wanted, known)}")
    return [known[wanted]]


def _plural(sort: str) -> str:
    return f"{sort.replace(' ', '-')}s"


def _first_line(cls: "type[Component]") -> str:
    return (inspect.getdoc(cls) or "(no docstring)").splitlines()[0]


def _allowed(field: "FieldInfo") -> str:
    """An option's type, bounds and default, as in `int, from 1 to 16, required`."""
    bounds = [
        text.format(getattr(part, bound))
        for part in field.metadata
        for bound, text in _BOUNDS.items()
        if getattr(part, bound, None) is not None
    ]
    default = "required" if field.is_required() else f"default {_value(field.get_default(call_default_factory=True))}"
    return ", ".join(filter(None, [_type(field.annotation), " ".join(bounds), default]))


def _type(annotation: Any) -> str:
    from tsflora.config import Component

    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return f"list of {_type(get_args(annotation)[0])}"
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if arguments := get_args(annotation):
        return " | ".join(map(_type, arguments))
    if isinstance(annotation, type) and issubclass(annotation, Component):
        return f"a {annotation.__name__}"
    return getattr(annotation, "__name__", str(annotation))


def _value(default: Any) -> str:
    import json

    from tsflora.config import Component

    if isinstance(default, Component):
        default = default.model_dump(mode="json")
        default = default["name"] if len(default) == 1 else default
    return json.dumps(default, default=str)
