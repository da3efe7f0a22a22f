"""What a params.yaml may call things, how a sweep's points are named, and which part of an axis can be asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_study import method, study_values, swept, swept_values

from tsflora.compression.quantizers import Float32, quantizers
from tsflora.errors import ConfigError
from tsflora.study import StudyConfig
from tsflora.sweeps import Sweep


@pytest.mark.parametrize(
    ("methods", "sweeps", "line"),
    [
        (["grid-n_tokens_20-cut_2"], {}, "sweeps.grid: its point 'grid-n_tokens_20-cut_2' has the name of a method"),
        (["Grid-n_tokens_20-cut_2"], {}, "sweeps.grid: its point 'grid-n_tokens_20-cut_2' has the name of a method"),
        ([], {"grid-n_tokens_20": {"base": "mine", "vary": {"cut": [3]}}}, "has the name of sweeps.grid; rename one"),
        (["Mine"], {}, "'mine' and 'Mine' are one folder on some disks; rename one"),
    ],
)
def test_two_runs_never_share_a_folder(methods, sweeps, line):
    values = swept_values()
    values["methods"] |= {key: {"algorithm": "fed_lora"} for key in methods}
    values["sweeps"] |= sweeps
    with pytest.raises(ConfigError, match=line):
        StudyConfig.parse(values, "params.yaml")


@pytest.mark.parametrize("key", ["../../escaped", ".", "", "a/b", "a b", ".hidden", "x" * 65])
@pytest.mark.parametrize("axis", ["datasets", "partitions", "methods", "sweeps", "name"])
def test_what_would_leave_the_records_folder_is_no_key(axis, key):
    values = swept_values()
    values[axis] = key if axis == "name" else {key: next(iter(values[axis].values()))}
    with pytest.raises(ConfigError, match=r"a key becomes a part of paths: .*; given: ") as caught:
        StudyConfig.parse(values, "params.yaml")
    assert str(caught.value).startswith(f"params.yaml.{axis}: ")


@pytest.mark.parametrize(
    ("vary", "keys"),
    [
        ({"quantizer": ["float32", {"name": "uniform", "bits": 4}]}, ["quantizer_float32", "quantizer_uniform_bits_4"]),
        ({"algorithm": [{"name": "split_lora", "mode": "relay"}]}, ["algorithm_split_lora_mode_relay"]),
        ({"quantizer.range": ["tensor", "token"]}, ["range_tensor", "range_token"]),
        (
            {"quantizer.bits": [4, 2], "gradient_quantizer.bits": [8]},
            ["quantizer.bits_4-gradient_quantizer.bits_8", "quantizer.bits_2-gradient_quantizer.bits_8"],
        ),
    ],
)
def test_a_point_is_named_by_its_values_and_safely(vary, keys):
    study = swept(vary=vary, gradient_quantizer={"name": "uniform", "bits": 16})
    found = [cell.method_key for cell in study.sweep_cells("grid")]
    assert found == [f"grid-{key}" for key in keys if key != "range_tensor"], "a method of the study is not run twice"
    assert all(Path(key).name == key and len(key) <= 64 for key in found)


def test_a_long_value_is_a_safe_name_of_its_own():
    base = StudyConfig.parse(swept_values()).methods["mine"]
    options = [{"name": "uniform", "bits": bits, "range": "token", "rounding": "nearest"} for bits in (4, 8)]
    vary = {"quantizer": options, "gradient_quantizer": options}
    keys = [key for key, _ in Sweep(base="mine", vary=vary).points("grid", base)]
    assert len(set(keys)) == 4
    assert {len(key) for key in keys} == {64}
    assert all(key.startswith("grid-quantizer_uniform_bits_") for key in keys)


def test_an_odd_value_is_a_safe_name(monkeypatch):
    monkeypatch.setattr(quantizers, "_classes", dict(quantizers._classes))

    @quantizers.register
    class Booked(Float32):
        """Takes text."""

        name = "booked"
        book: str

    values = swept_values(vary={"quantizer": [{"name": "booked", "book": "../a b/c."}, "booked"]})
    base = StudyConfig.parse(swept_values()).methods["mine"]
    ((key, point),) = Sweep(base="mine", vary={"quantizer": values["sweeps"]["grid"]["vary"]["quantizer"][:1]}).points(
        "grid", base
    )
    assert key == "grid-quantizer_booked_book_.._a_b_c"
    assert point.quantizer is not None
    assert point.quantizer.model_dump()["book"] == "../a b/c."
    values["sweeps"]["grid"]["vary"]["quantizer"][1] = {"name": "booked", "book": "../a-b/c."}
    assert len(StudyConfig.parse(values).sweep_cells("grid")) == 2
    values["sweeps"]["grid"]["vary"]["quantizer"][1] = {"name": "booked", "book": "../a b c."}
    with pytest.raises(ConfigError, match="are one point"):
        StudyConfig.parse(values)


def test_a_part_of_an_axis_is_a_name_a_list_or_everything():
    study = StudyConfig.parse(study_values())
    assert study.cells(methods="fed_lora", partitions="iid", seeds=0) == study.cells(
        "digits", ["fed_lora"], ["iid"], [0]
    )
    assert study.cells(seeds=range(2)) == study.cells()
    assert len(study.cells(methods=("fed_lora",), seeds=7)) == 2


WRONG_PARTS = """
from tsflora.errors import ConfigError
from tsflora.study import StudyConfig

study = StudyConfig.read("params.yaml")
for part in ({"methods": []}, {"methods": "s"}, {"methods": 5}, {"methods": [["a"]]}, {"methods": ["mine", "mine"]},
    {"methods": [None]}, {"partitions": {"iid": 1}}, {"partitions": ""}, {"dataset": ["digit"]}, {"dataset": 3},
    {"seeds": []}, {"seeds": "a"}, {"seeds": ["a"]}, {"seeds": [True]}, {"seeds": True}, {"seeds": [0.5]},
    {"seeds": -1}, {"seeds": [1, 1]}, {"backbone": "vit"}, {"sweep": ["grid"]}, {"sweep": "gird"}, {"sweep": None},
    {"sweep": "grid", "seeds": [-1]}, {"sweep": "grid", "seeds": "a"}):
    try:
        print(part, (study.sweep_cells if "sweep" in part else study.cells)(**part))
    except ConfigError as error:
        print(error)
"""


def test_a_wrong_part_of_an_axis_is_one_line(tmp_path):
    """In a process of its own, where nothing else checks types: as in a notebook."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(swept_values()))
    outcome = subprocess.run(
        [sys.executable, "-c", WRONG_PARTS], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = [
        "methods: one or more of mine, or null for all; given: []",
        "unknown method 's'; allowed: mine",
        "methods: one or more of mine, or null for all; given: 5",
        "unknown method ['a']; allowed: mine",
        "methods: one or more of mine, each one once; given: ['mine', 'mine']",
        "unknown method None; allowed: mine",
        "partitions: one or more of iid, skewed, or null for all; given: {'iid': 1}",
        "unknown partition ''; allowed: iid, skewed",
        "unknown dataset 'digit'; did you mean 'digits'? allowed: digits",
        "datasets: one or more of digits, or null for all; given: 3",
        "seeds: whole numbers from 0, or null for all; given: []",
        "seeds: whole numbers from 0, or null for all; given: 'a'",
        "seeds: whole numbers from 0; given: 'a'",
        "seeds: whole numbers from 0; given: True",
        "seeds: whole numbers from 0; given: True",
        "seeds: whole numbers from 0; given: 0.5",
        "seeds: whole numbers from 0; given: -1",
        "seeds: whole numbers from 0, each one once; given: [1, 1]",
        "backbone: Input should be a valid dictionary or instance of BackboneConfig; given: 'vit'",
        "unknown sweep ['grid']; did you mean 'grid'? allowed: grid",
        "unknown sweep 'gird'; did you mean 'grid'? allowed: grid",
        "unknown sweep None; allowed: grid",
        "seeds: whole numbers from 0; given: -1",
        "seeds: whole numbers from 0, or null for all; given: 'a'",
    ]
    assert outcome.stdout.splitlines() == expected


def test_a_study_knows_the_components_of_a_file_beside_it(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "my_codec.py").write_text(
        "from tsflora.compression.quantizers import Float32, quantizers\n\n"
        "@quantizers.register\nclass Mine(Float32):\n    name = 'mine'\n    strength: float = 1.0\n"
    )
    values = study_values(plugins=["my_codec.py"], **method(quantizer={"name": "mine", "strength": 2}))
    path = tmp_path / "study" / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    study = StudyConfig.read("study/params.yaml")
    assert study.plugins == (str(tmp_path / "study" / "my_codec.py"),)
    assert {cell.dump()["method"]["quantizer"]["strength"] for cell in study.cells()} == {2.0}
    path.write_text(yaml.safe_dump({**values, "plugins": ["your_codec.py"]}))
    with pytest.raises(ConfigError, match=r"^study/params\.yaml: plugins: .*your_codec\.py' cannot be read") as caught:
        StudyConfig.read("study/params.yaml")
    assert "\n" not in str(caught.value)
    mistakes: tuple[object, ...] = ("my_codec.py", [3], {})
    for given in mistakes:
        path.write_text(yaml.safe_dump({**values, "plugins": given}))
        with pytest.raises(ConfigError, match=r"^study/params\.yaml: plugins: a list of Python files is expected"):
            StudyConfig.read("study/params.yaml")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("rounds: 1", "rounds: 010", r"params\.yaml, line \d+: 010 is read in different ways"),
        ("rounds: 1", "rounds: yes", r"params\.yaml, line \d+: yes is read in different ways"),
        ("rounds: 1", "rounds: true", r"training\.rounds: .*valid integer; given: True"),
        ("rounds: 1", "rounds: '1'", r"training\.rounds: .*valid integer; given: '1'"),
        ("lr: 0.05", "lr: .inf", r"training\.optimizer\.lr: .*finite number; given: inf"),
        ("lr: 0.05", "lr: 0.05\n    lr: 0.06", r"params\.yaml, line \d+: key 'lr' is there twice"),
        ("lr: 0.05", "lr: 1:30", r"params\.yaml, line \d+: 1:30 is read in different ways"),
    ],
)
def test_numbers_of_a_params_file_are_numbers(tmp_path, old, new, line):
    path = tmp_path / "params.yaml"
    text = yaml.safe_dump(study_values())
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=line) as caught:
        StudyConfig.read(path)
    assert "\n" not in str(caught.value)
    path.write_text(text.replace("lr: 0.05", "lr: 5e-2"))
    assert StudyConfig.read(path).training.optimizer.lr == 0.05
