"""params.yaml to runs: errors in one line, the axes and sweeps; prepared copies and settings."""

import pytest
import yaml
from conftest import small_config

from tsflora.data import data_sources
from tsflora.errors import ConfigError, DataError
from tsflora.models import BackboneConfig, load_backbone
from tsflora.prepared import prepare_backbone, prepare_images, prepared_backbone, prepared_images
from tsflora.settings import Settings
from tsflora.study import StudyConfig


def study_values(**changes):
    config = small_config().dump()
    values = {
        "name": "test",
        "datasets": {"digits": config["dataset"]},
        "partitions": {"iid": config["partition"], "skewed": {"name": "dirichlet", "alpha": 0.3}},
        "seeds": [0, 1],
        "backbone": config["backbone"],
        "lora": config["lora"],
        "training": {**config["training"], "rounds": 1},
        "methods": {
            "fed_lora": {"label": "FedLoRA", "algorithm": "fed_lora"},
            "sflora_8bit": {"algorithm": "sflora", "quantizer": {"name": "uniform", "bits": 8}},
        },
    }
    return {**values, **changes}


def method(**options):
    return {"methods": {"mine": {"algorithm": "sflora", **options}}}


def training(**options):
    return {"training": {**study_values()["training"], **options}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sedes": [1]}, r"sedes: unknown key; did you mean 'seeds'\?"),
        (training(ronds=3), r"training\.ronds: unknown key; did you mean 'rounds'\?"),
        (training(rounds=0), r"training\.rounds: .*greater than or equal to 1; given: 0"),
        (training(participants=9), "participants: 9 is more than n_devices: 4; allowed: 1 to 4"),
        (training(optimizer={"name": "adam"}), r"optimizer\.name: .*'sgd' or 'adamw'; given: 'adam'"),
        ({"datasets": {"digits": "digitz"}}, r"unknown data source 'digitz'; did you mean 'digits'\?"),
        ({"partitions": {"a": {"name": "dirichlet", "alpha": -1}}}, r"alpha: .*greater than 0; given: -1"),
        ({"lora": {"rank": "four"}}, r"lora\.rank: .*valid integer.*; given: 'four'"),
        ({"methods": {"mine": {"algorithm": "sflorra"}}}, r"unknown algorithm 'sflorra'; did you mean 'sflora'\?"),
        (method(quantizer={"name": "uniform", "bits": 17}), r"bits: .*less than or equal to 16; given: 17"),
        (method(quantizer={"name": "uniform", "bits": 0}), r"bits: .*greater than or equal to 1; given: 0"),
        (method(quantizer={"name": "uniform", "bits": 4, "bitz": 4}), r"bitz: unknown key; did you mean 'bits'\?"),
        (
            method(tokens={"name": "topkmerge", "n_tokens": 30}),
            r"unknown token reducer 'topkmerge'; did you mean 'top_k_merge'\?",
        ),
        (
            {"methods": {"mine": {"algorithm": "fed_lora", "quantizer": "float16"}}},
            "algorithm 'fed_lora' sends no activations; remove quantizer",
        ),
        ({"seeds": [-1]}, r"seeds\.0: .*greater than or equal to 0; given: -1"),
        ({"seeds": [1, 1]}, r"seeds: each one once; given: \[1, 1\]"),
        ({"datasets": {"digits": None}}, r"datasets\.digits: a data source is a name, or a mapping"),
        ({"augment": {"flipp": True}}, r"flipp: unknown key; did you mean 'flip'\?"),
        ({"methods": {}}, r"methods: .*at least 1"),
        ({"backbone": {"name": "vit_tiny_patch16_224"}}, "needs one origin of its weights"),
    ],
    ids=str,
)
def test_a_wrong_params_file_is_one_line_that_says_what_is_allowed(tmp_path, changes, line):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(study_values(**changes)))
    with pytest.raises(ConfigError, match=line) as caught:
        StudyConfig.read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_required_key_is_named(tmp_path):
    values = study_values()
    del values["seeds"]
    with pytest.raises(ConfigError, match="seeds: is required"):
        StudyConfig.parse(values, "params.yaml")


@pytest.mark.parametrize(
    ("content", "line"), [("a: [", "is not YAML"), ("- 1", "mapping .* given: list"), (None, "No such")]
)
def test_what_is_not_a_params_file_is_one_line(tmp_path, content, line):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=line) as caught:
        StudyConfig.read(path)
    assert "\n" not in str(caught.value)


def test_cells_are_the_product_of_the_axes_or_a_part_of_it():
    study = StudyConfig.parse(study_values())
    assert len(study.cells()) == 8
    (cell,) = study.cells("digits", ["fed_lora"], ["skewed"], [7], {"weights": "bundled"})
    assert (cell.method_key, cell.label, cell.partition_name, cell.seed) == ("fed_lora", "FedLoRA", "skewed", 7)
    assert cell.backbone.weights == "bundled"
    for wrong in ({"dataset": "digit"}, {"methods": ["fedlora"]}, {"partitions": ["idd"]}):
        with pytest.raises(ConfigError, match="did you mean"):
            study.cells(**wrong)


def test_prepared_copies_are_equal_and_a_stale_one_is_refused(tmp_path, settings):
    source = data_sources.build({"name": "digits", "test_size": 30})
    prepared = settings.model_copy(update={"prepared_dir": tmp_path})
    with pytest.raises(DataError, match="not prepared"):
        prepared_images(source, "digits", prepared)
    prepare_images(source, settings, tmp_path / "digits")
    for copy, original in zip(prepared_images(source, "digits", prepared), source.load(None), strict=True):
        assert (copy.images == original.images).all()
        assert (copy.labels == original.labels).all()
    with pytest.raises(DataError, match="prepared with other options"):
        prepared_images(data_sources.build({"name": "digits", "test_size": 31}), "digits", prepared)

    config = BackboneConfig(weights="bundled")
    described = prepare_backbone(config, settings, tmp_path / "backbone")
    loaded = load_backbone(prepared_backbone(config, prepared), 10, seed=0)
    assert loaded.weights_sha256 == described["weights_sha256"]
    with pytest.raises(DataError, match="prepared with other options"):
        prepared_backbone(BackboneConfig(weights="random"), prepared)


def test_settings_come_from_the_environment_and_are_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("TSFLORA_DATA_DIR", str(tmp_path))
    assert Settings.from_environment().data_dir == tmp_path
    assert Settings.from_environment(data_dir=tmp_path / "x").data_dir == tmp_path / "x"
    monkeypatch.setenv("TSFLORA_WORKERS", "0")
    with pytest.raises(ConfigError, match=r"workers: .*greater than or equal to 1"):
        Settings.from_environment()
    monkeypatch.delenv("TSFLORA_WORKERS")
    with pytest.raises(ConfigError, match="not available here; allowed: auto, cpu"):
        Settings.from_environment(device="mps").torch_device()


def swept_values(gradient_quantizer=None, **changes):
    base = {
        "algorithm": "sflora",
        "tokens": {"name": "top_k_merge", "n_tokens": 30},
        "quantizer": {"name": "uniform", "bits": 8},
    }
    if gradient_quantizer:
        base["gradient_quantizer"] = gradient_quantizer
    sweep = {"base": "mine", "vary": {"tokens.n_tokens": [30, 20], "cut": [2, 3]}, "partitions": ["iid"], "seeds": [1]}
    return study_values(methods={"mine": base}, sweeps={"grid": {**sweep, **changes}})


def swept(**changes):
    return StudyConfig.parse(swept_values(**changes))


def test_a_sweep_is_the_grid_without_what_the_study_runs_anyway():
    cells = swept().sweep_cells("grid")
    assert [(cell.method.tokens.n_tokens, cell.cut) for cell in cells] == [(30, 3), (20, 2), (20, 3)]
    assert [cell.method_key for cell in cells] == [
        "grid-n_tokens_30-cut_3",
        "grid-n_tokens_20-cut_2",
        "grid-n_tokens_20-cut_3",
    ]
    assert {(cell.partition_name, cell.seed, cell.sweep, cell.label) for cell in cells[:1]} == {
        ("iid", 1, "grid", "n_tokens 30, cut 3")
    }
    study = swept()
    assert study.all_cells() == [*study.cells(), *cells]
    assert all(cell.sweep is None for cell in study.cells())


def test_a_swept_component_takes_only_the_options_that_were_given():
    cells = swept(vary={"tokens.name": ["random", "feature_norm"]}).sweep_cells("grid")
    assert [cell.method.tokens.name for cell in cells] == ["random", "feature_norm"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"base": "miine"}, r"unknown method 'miine'; did you mean 'mine'\?"),
        (
            {"vary": {"tokenz.n_tokens": [3]}},
            r"sweeps\.grid: vary: unknown setting 'tokenz\.n_tokens'; did you mean 'tok",
        ),
        (
            {"vary": {"quantizer.bits": [99]}},
            r"grid: point \(bits 99\).*bits: .*less than or equal to 16; given: 99",
        ),
        ({"partitions": ["idd"]}, r"unknown partition 'idd'; did you mean 'iid'\?"),
        ({"datasets": ["digit"]}, r"unknown dataset 'digit'; did you mean 'digits'\?"),
        ({"vary": {}}, r"vary: .*at least 1"),
        ({"vary": {"cut": []}}, r"vary\.cut: .*at least 1"),
        ({"vary": {"cut": 3}}, r"vary\.cut: .*valid list; given: 3"),
        ({"vary": {"cut": [3, 3]}}, "vary: cut 3 and cut 3 are one point"),
        ({"vary": {"cut": [2, None]}}, "vary: cut 2 and cut None are one point"),
        ({"vary": {"quantizer": ["float32", {"name": "float32"}]}}, "float32 and quantizer float32 are one point"),
        ({"vary": {"cut": [True]}}, r"point \(cut True\)\.cut: .*valid integer; given: True"),
        ({"vary": {"label": ["a", "b"]}}, "vary: a point is labelled by its values; remove label"),
        (
            {"vary": {"tokens": ["all"], "tokens.n_tokens": [4]}},
            r"tokens\.n_tokens is a part of tokens; vary one",
        ),
        (
            {"vary": {"adapter_quantizer.bits": [4]}},
            "the base sets no adapter_quantizer.bits; vary adapter_quantizer as",
        ),
        ({"vary": {"algorithm": ["fed_lora"]}}, r"point \(algorithm fed_lora\): .*sends no activations; remove"),
        ({"vary": {"algorithm": ["sflorra"]}}, "unknown algorithm 'sflorra'"),
        ({"seeds": []}, r"seeds: .*at least 1"),
        ({"seeds": [0, 0]}, r"seeds: each one once; given: \[0, 0\]"),
        ({"seeds": [-1]}, "greater than or equal to 0; given: -1"),
        ({"partitions": []}, r"partitions: .*at least 1"),
        ({"partitions": ["iid", "iid"]}, r"partitions: each one once; given: \['iid', 'iid'\]"),
        ({"datasets": []}, r"datasets: .*at least 1"),
    ],
    ids=str,
)
def test_a_wrong_sweep_is_one_line_when_the_file_is_read(tmp_path, changes, line):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(swept_values(**changes)))
    with pytest.raises(ConfigError, match=line) as caught:
        StudyConfig.read(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}")
    assert "sweeps.grid" in str(caught.value)


def test_a_methods_own_cut_wins():
    (cell,) = StudyConfig.parse(study_values(seeds=[0], **method(cut=3))).cells(partitions=["iid"])
    assert cell.cut == 3
