"""Runs to records: side by side, failures kept and never taken for results, what is complete never lost."""

import pytest
from safetensors.torch import save_file
from test_study import method, study_values, training

from tsflora import experiment, records
from tsflora.errors import StorageError, TsfloraError
from tsflora.models import BackboneConfig, load_backbone
from tsflora.records import RunRecord
from tsflora.runs import record_path, run_cells
from tsflora.study import StudyConfig


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"cut": 6}, "cut: 6 is outside the model; it has 6 blocks, allowed: 1 to 5"),
        (method(tokens={"name": "top_k_merge", "n_tokens": 51}), r"n_tokens is 2 to 50 .*given: 51"),
        (training(n_devices=500), r"500.*160"),
        ({"lora": {"targets": ["fc9"]}}, "no block has a layer 'fc9'"),
        ({"backbone": {"weights": "nowhere.safetensors"}}, "nowhere.safetensors"),
        ({"datasets": {"cifar10": {"name": "cifar10", "download": False}}}, "cifar10_train.parquet"),
    ],
    ids=str,
)
def test_what_model_or_data_cannot_have_is_one_line_and_leaves_a_failed_record(tmp_path, settings, changes, line):
    study = StudyConfig.parse(study_values(**changes))
    cell = study.cells()[0]
    with pytest.raises(TsfloraError, match=line) as caught:
        run_cells([cell], settings, tmp_path / "records")
    assert "\n" not in str(caught.value)
    (path,) = (tmp_path / "records").rglob("*.json")
    assert path.name.endswith(".failed.json")
    assert RunRecord.read(path).status == "failed"


def test_side_by_side_gives_the_records_of_one_after_another(tmp_path, settings):
    cells = StudyConfig.parse(study_values()).cells(seeds=[0])
    serial = run_cells(cells, settings)
    parallel = run_cells(cells, settings.model_copy(update={"workers": 2}), tmp_path)
    assert [r.comparable() for r in parallel] == [r.comparable() for r in serial]
    assert sorted(p.name for p in tmp_path.rglob("*.json")) == ["iid-seed0.json"] * 2 + ["skewed-seed0.json"] * 2


def test_a_failed_run_does_not_stop_the_others_and_is_run_again(tmp_path, settings):
    values = study_values(partitions={"iid": study_values()["partitions"]["iid"]}, seeds=[0])
    values["methods"]["broken"] = {"algorithm": "sflora", "tokens": {"name": "top_k_merge", "n_tokens": 51}}
    study = StudyConfig.parse(values)
    with pytest.raises(TsfloraError, match="1 of 3 runs failed; broken on digits, iid, seed 0: "):
        run_cells(study.cells(), settings, tmp_path)
    paths = {path.name for path in tmp_path.rglob("*.json")}
    assert paths == {"iid-seed0.json", "iid-seed0.failed.json"}
    values["methods"]["broken"]["tokens"]["n_tokens"] = 50
    run_cells(StudyConfig.parse(values).cells(), settings, tmp_path)
    assert not list(tmp_path.rglob("*.failed.json"))


def test_a_record_is_reused_only_for_the_same_config_and_code(tmp_path, settings, monkeypatch):
    settings = settings.model_copy(update={"checkpoint_dir": None})  # a finished run's would spare the training
    (cell,) = StudyConfig.parse(study_values(seeds=[0])).cells(methods=["fed_lora"], partitions=["iid"])
    (first,) = run_cells([cell], settings, tmp_path)
    path = record_path(tmp_path, cell)
    trained = []
    original = experiment._one_round
    monkeypatch.setattr(experiment, "_one_round", lambda *arguments: (trained.append(1), original(*arguments))[1])
    (again,) = run_cells([cell], settings, tmp_path)
    assert not trained
    assert again == first
    changes = [
        lambda: run_cells([cell.model_copy(update={"cut": 3})], settings, tmp_path),
        lambda: run_cells([cell], settings, tmp_path),
        lambda: run_cells([cell], settings.model_copy(update={"threads": 2}), tmp_path),
    ]
    for count, change in enumerate(changes, start=1):
        change()
        assert len(trained) == count
    monkeypatch.setattr(records, "CODE_SHA256", "0" * 64)
    run_cells([cell], settings, tmp_path)
    assert len(trained) == 4
    path.write_text(path.read_text()[:-40])
    run_cells([cell], settings, tmp_path)
    assert len(trained) == 5


def test_a_record_is_not_reused_for_other_weights_or_images_under_the_same_name(tmp_path, settings):
    study = StudyConfig.parse(study_values(seeds=[0], backbone={"weights": str(tmp_path / "w.safetensors")}))
    (cell,) = study.cells(methods=["fed_lora"], partitions=["iid"])
    losses = []
    for origin in ("random", "bundled"):
        model = load_backbone(BackboneConfig(weights=origin), 10, seed=0).model
        save_file(
            {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("head.")},
            tmp_path / "w.safetensors",
        )
        (record,) = run_cells([cell], settings, tmp_path / "records")
        losses.append(record.final.train_loss)
    assert losses[0] != losses[1]


def test_an_unwritable_records_folder_stops_with_one_line(tmp_path, settings):
    (tmp_path / "records").write_text("in the way")
    cells = StudyConfig.parse(study_values(seeds=[0])).cells(methods=["fed_lora"], partitions=["iid"])
    with pytest.raises(StorageError, match="cannot write") as caught:
        run_cells(cells, settings, tmp_path / "records")
    assert "\n" not in str(caught.value)
