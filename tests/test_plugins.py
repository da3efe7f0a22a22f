"""Components by others, from installed packages and from a study's own files: one line where one is broken."""

import hashlib
import importlib
import logging
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tsflora.compression import AnyQuantizer, Quantizer, quantizers
from tsflora.compression.quantizers import Uniform
from tsflora.config import Component, Registry
from tsflora.errors import ConfigError
from tsflora.foreign import source_digest
from tsflora.plugins import PluginConfig, load_plugins

SIGN = '''
from tsflora.compression import Quantizer, quantizers


class Sign(Quantizer):
    """Nothing that works."""

    name = "sign"
    scale: float = 1.0

    def layouts(self, shape): ...
    def quantize(self, x, generator): ...
    def restore(self, sections): ...
'''
REGISTERED = SIGN.replace("class Sign", "@quantizers.register\nclass Sign")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Lay a package where Python finds it, and return a registry that has not looked yet."""
    monkeypatch.syspath_prepend(tmp_path / "site")

    def lay(package: str, code: str, **names: str) -> Registry:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / f"{package}.py").write_text(code)
        info = tmp_path / "site" / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        entries = [f"{name} = {value}" for name, value in names.items()]
        (info / "entry_points.txt").write_text("\n".join(["[tsflora.quantizers]", *entries]))
        importlib.invalidate_caches()
        return Registry("quantizer", "tsflora.quantizers", Quantizer)

    yield lay
    for name in [name for name in sys.modules if name.startswith("pack_")]:
        del sys.modules[name]


def one_line(call, *arguments) -> str:
    with pytest.raises((ConfigError, ValueError)) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- installed packages


def test_only_the_package_of_a_name_is_imported(install):
    install("pack_other", SIGN.replace('"sign"', '"other"'), other="pack_other:Sign")
    registry = install("pack_sign", SIGN, sign="pack_sign:Sign")
    assert registry.build({"name": "sign", "scale": 2}).scale == 2
    assert "pack_other" not in sys.modules
    assert "did you mean 'other'" in one_line(registry.build, "othre")


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("import nowhere", ["ModuleNotFoundError: No module named 'nowhere' (", "pack_bad.py:1)"]),
        ("\n\nx = 1 / 0", ["ZeroDivisionError: division by zero (", "pack_bad.py:3)"]),
        ("def f(:", ["SyntaxError: invalid syntax (", "pack_bad.py:1)"]),
        ("raise SystemExit(2)", ["SystemExit: 2 ("]),
        ("raise ValueError('two\\nlines')", ["ValueError: two lines ("]),
        ("x = 1", ["AttributeError", "has no attribute 'Sign'"]),
        ("class Sign: name = 'sign'", ["Sign is no quantizer: it does not derive from Quantizer"]),
        ("Sign = 3", ["3 is no quantizer: it does not derive from Quantizer"]),
        (SIGN.replace('"sign"', '"sgn"'), ["its class is called 'sgn'"]),
        (SIGN.replace("def restore", "def store"), ["quantizer 'sign' is abstract: it has no restore"]),
    ],
)
def test_a_broken_package_is_one_line_that_names_it_every_time_and_in_nobodys_way(install, caplog, code, parts):
    install("pack_good", SIGN.replace('"sign"', '"good"'), good="pack_good:Sign")
    registry = install("pack_bad", code, sign="pack_bad:Sign")
    for _ in range(2):
        line = one_line(registry.build, "sign")
        assert line.startswith("quantizer 'sign' of pack_bad 1.2 (entry point pack_bad:Sign) cannot be used: ")
        for part in parts:
            assert part in line
        caplog.clear()
        assert set(registry.classes()) == {"good"}
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "pack_bad 1.2" in record.message
    assert registry.build("good").name == "good"


def test_an_error_below_a_package_is_told_by_the_packages_own_last_line(install):
    registry = install("pack_bad", "import json\n\ndef f():\n    json.loads('{')\n\nf()", sign="pack_bad:Sign")
    assert "JSONDecodeError" in one_line(registry.build, "sign")
    assert "pack_bad.py:4)" in one_line(registry.build, "sign")


def test_two_packages_with_one_name_are_one_line(install):
    install("pack_a", SIGN, sign="pack_a:Sign")
    registry = install("pack_b", SIGN, sign="pack_b:Sign")
    line = one_line(registry.build, "sign")
    assert "pack_a 1.2" in line
    assert "pack_b 1.2" in line


def test_a_package_cannot_take_a_built_in_name(install, caplog):
    registry = install("pack_uniform", SIGN.replace('"sign"', '"uniform"'), uniform="pack_uniform:Sign")
    uniform = registry.register(Uniform)
    assert registry.classes() == {"uniform": uniform}
    assert "'uniform' of pack_uniform 1.2, for tsflora.compression.quantizers has that name" in caplog.text


def test_a_package_may_register_its_class_by_itself(install):
    code = SIGN.replace("from tsflora.compression import Quantizer, quantizers", "import tsflora.compression as c")
    registry = install("pack_self", code.replace("(Quantizer)", "(c.Quantizer)"), sign="pack_self:Sign")
    sys.modules.pop("pack_self", None)
    registry.register(importlib.import_module("pack_self").Sign)
    registry._classes.clear()
    assert registry.build("sign").name == "sign"


@pytest.mark.parametrize("name", [["uniform"], None, 3, {}])
def test_a_name_is_text(name):
    assert "unknown quantizer" in one_line(quantizers.build, {"name": name})


# --- files of a study


def write(folder: Path, code: str, name: str = "my_codec.py") -> Path:
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(code)
    return folder / name


class Toy(PluginConfig):
    """A configuration with one component."""

    quantizer: AnyQuantizer


def test_a_file_beside_params_is_loaded_before_its_components_are_looked_up(tmp_path, monkeypatch):
    path = write(tmp_path, REGISTERED)
    assert load_plugins(["my_codec.py"], tmp_path) == (str(path),)
    monkeypatch.chdir(tmp_path)
    toy = Toy.parse({"plugins": ["my_codec.py"], "quantizer": {"name": "sign", "scale": 3}})
    assert toy.plugins == (str(path),)
    assert toy.quantizer.model_dump()["scale"] == 3
    assert toy.model_dump(mode="json") == {"quantizer": {"name": "sign", "scale": 3.0}}, (
        "another machine's paths differ"
    )
    assert Toy.parse({**toy.model_dump(), "plugins": toy.plugins}) == toy


def test_a_file_is_run_once_however_it_is_named(tmp_path):
    write(tmp_path, REGISTERED)
    load_plugins(["my_codec.py", "./my_codec.py", "../" + tmp_path.name + "/my_codec.py"], tmp_path)
    first = quantizers.classes()["sign"]
    load_plugins(["my_codec.py"], tmp_path)
    assert quantizers.classes()["sign"] is first


def test_an_edited_file_is_run_again_and_the_old_class_keeps_its_digest(tmp_path):
    path = write(tmp_path, REGISTERED)
    load_plugins(["my_codec.py"], tmp_path)
    old, before = quantizers.classes()["sign"], hashlib.sha256(path.read_bytes()).hexdigest()
    write(tmp_path, REGISTERED.replace('"sign"', '"sign2"'))
    assert source_digest(old) == before
    load_plugins(["my_codec.py"], tmp_path)
    assert "sign" not in quantizers.classes()
    new = quantizers.classes()["sign2"]
    assert source_digest(new) == hashlib.sha256(path.read_bytes()).hexdigest() != before
    assert source_digest(old) == before


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("import nowhere", ["ModuleNotFoundError: No module named 'nowhere'", "my_codec.py:1)"]),
        (REGISTERED + "\nbroken(\n", ["SyntaxError: '(' was never closed", "my_codec.py:16)"]),
        (REGISTERED + "\n1 / 0\n", ["ZeroDivisionError: division by zero", "my_codec.py:16)"]),
        ("raise SystemExit", ["SystemExit", "my_codec.py:1)"]),
        ("x = '\0'", ["null bytes"]),
        (
            REGISTERED.replace('"sign"', '"uniform"'),
            ["'uniform' is registered twice", "tsflora.compression.quantizers"],
        ),
        (REGISTERED.replace('"sign"', '"../up"'), ["needs a name of letters, digits and _; given: '../up'"]),
        (REGISTERED.replace('    name = "sign"\n', ""), ["quantizer Sign needs a name", "given: None"]),
        (REGISTERED.replace("(Quantizer)", ""), ["Sign is no quantizer: it does not derive from Quantizer"]),
        (REGISTERED.replace("def restore", "def store"), ["'sign' is abstract: it has no restore", "my_codec.py:5)"]),
    ],
)
def test_an_error_in_a_file_is_one_line_with_its_place_and_leaves_nothing(tmp_path, code, parts):
    before = quantizers.classes()
    write(tmp_path, code)
    for _ in range(2):
        line = one_line(load_plugins, ["my_codec.py"], tmp_path)
        for part in ["plugins: ", *parts]:
            assert part in line
        assert quantizers.classes() == before
        assert not [name for name in sys.modules if name.startswith("tsflora_plugin_my_codec")]
    write(tmp_path, REGISTERED)
    load_plugins(["my_codec.py"], tmp_path)
    assert quantizers.build("sign").name == "sign"


def test_two_files_with_one_name_are_one_line_with_both(tmp_path):
    a, b = write(tmp_path, REGISTERED, "a.py"), write(tmp_path, REGISTERED, "b/a.py")
    line = one_line(load_plugins, ["a.py", "b/a.py"], tmp_path)
    assert f"quantizer 'sign' is registered twice: in {a} and in {b}; rename one" in line


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["nowhere.py"], "nowhere.py' cannot be read (No such file"),
        (["."], "cannot be read (Is a directory)"),
        ("my_codec.py", "a list of Python files is expected; given: 'my_codec.py'"),
        ([1], "a list of Python files is expected; given: [1]"),
        (None, "a list of Python files is expected; given: None"),
        ({"a": 1}, "a list of Python files is expected"),
        (["\0"], "cannot be read ("),
    ],
)
def test_what_is_no_list_of_files_is_one_line(tmp_path, given, part):
    with pytest.raises(ConfigError) as caught:
        Toy.parse({"plugins": given, "quantizer": "float32"}, "params.yaml")
    assert str(caught.value).startswith("params.yaml: plugins: ")
    assert part in str(caught.value)


def scale_elsewhere(values: dict) -> float:
    return Toy.parse(values).quantizer.model_dump()["scale"]


def test_another_process_rebuilds_a_configuration_from_its_dump_and_its_files(tmp_path):
    write(tmp_path, REGISTERED)
    toy = Toy.parse({"plugins": [str(tmp_path / "my_codec.py")], "quantizer": {"name": "sign", "scale": 3}})
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(scale_elsewhere, {**toy.model_dump(mode="json"), "plugins": toy.plugins}).result() == 3


# --- what a run depends on


def test_a_built_in_class_has_a_revision_and_no_digest():
    for cls in quantizers.classes().values():
        assert source_digest(cls) is None
        assert cls.revision == 1


def test_a_digest_covers_the_files_of_the_classes_below(tmp_path, install, monkeypatch):
    base = SIGN + "\n\nclass Helper: ..."
    registry = install("pack_base", base, unused="pack_base:Sign")
    install("pack_sign", "import pack_base\n\nclass Mine(pack_base.Sign):\n    name = 'mine'", mine="pack_sign:Mine")
    registry = Registry("quantizer", "tsflora.quantizers", Quantizer)
    mine: type = type(registry.build("mine"))
    texts = [(tmp_path / "site" / f"{name}.py").read_bytes() for name in ("pack_sign", "pack_base")]
    assert source_digest(mine) == hashlib.sha256(b"".join(texts)).hexdigest()
    assert source_digest(mine.__mro__[1]) == hashlib.sha256(texts[1]).hexdigest()


def test_a_class_without_a_file_is_told_to_get_one(monkeypatch):
    cls = type("Typed", (Component,), {"__module__": "__main__", "name": "typed", "__annotations__": {}})
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    assert "Typed has no source file; write one, and name it under plugins" in one_line(source_digest, cls)
    assert Registry("plug-in", "nobody").register(cls) is cls, "a notebook may try it out"
