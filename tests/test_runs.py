"""Runs to records: side by side, failures kept and never taken for results, what is complete never lost."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_study import method, study_values, training

from tsflora import experiment, records, runs
from tsflora.data import Partition
from tsflora.errors import ConfigError, NumericsError, StorageError, TsfloraError
from tsflora.federation import CheckpointStore
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

    def spy(*arguments):
        trained.append(1)
        return original(*arguments)

    monkeypatch.setattr(experiment, "_one_round", spy)
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
    monkeypatch.setattr(experiment, "TRAJECTORY", 2)
    run_cells([cell], settings, tmp_path)
    assert len(trained) == 4
    monkeypatch.setattr(records, "CODE_SHA256", "0" * 64)
    run_cells([cell], settings, tmp_path)
    assert len(trained) == 4, "code alone trains nothing again"
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


def three_seeds(**changes):
    return StudyConfig.parse(study_values(seeds=[0, 1, 2], **changes)).cells(methods=["fed_lora"], partitions=["iid"])


def diverging(*seeds):
    def run(cell, *arguments):
        if cell.seed in seeds:
            raise NumericsError("round 1, device 2: the loss is nan")
        return experiment.run(cell, *arguments)

    return run


def test_a_run_that_diverged_is_a_finding(tmp_path, settings, monkeypatch, caplog):
    monkeypatch.setattr(runs, "run", diverging(1))
    found = run_cells(three_seeds(), settings, tmp_path)
    assert [record.status for record in found] == ["complete", "failed", "complete"]
    line = "1 of 3 runs failed; fed_lora on digits, iid, seed 1: round 1, device 2: the loss is nan"
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [line]
    failed = RunRecord.read(record_path(tmp_path, three_seeds()[1]).with_suffix(".failed.json"))
    assert (failed, failed.traceback) == (found[1], None)
    monkeypatch.setattr(runs, "run", diverging(0, 1, 2))
    with pytest.raises(TsfloraError, match="3 of 3 runs failed; fed_lora on digits, iid, seed 0: round 1"):
        run_cells(three_seeds(), settings)


def test_any_other_failure_is_named_before_what_diverged(settings, monkeypatch):
    monkeypatch.setattr(runs, "run", diverging(0))
    broken = three_seeds(training={**study_values()["training"], "n_devices": 500})[2]
    with pytest.raises(TsfloraError, match=r"2 of 3 runs failed; fed_lora on digits, iid, seed 2: .*500"):
        run_cells([*three_seeds()[:2], broken], settings)


def test_what_is_complete_outlives_a_failing_rerun(tmp_path, settings):
    cells = three_seeds()
    complete = run_cells(cells, settings, tmp_path / "records")
    before = {path: path.read_bytes() for path in (tmp_path / "records").rglob("*.json")}
    wrong = settings.model_copy(update={"prepared_dir": tmp_path / "typo"})
    with pytest.raises(TsfloraError, match=r"3 of 3 runs failed; .*typo"):
        run_cells(cells, wrong, tmp_path / "records")
    after = {path: path.read_bytes() for path in (tmp_path / "records").rglob("*.json")}
    assert before.items() <= after.items()
    assert len(after) == 6
    assert run_cells(cells, settings, tmp_path / "records") == complete
    assert {path: path.read_bytes() for path in (tmp_path / "records").rglob("*") if path.is_file()} == before


def test_a_run_that_is_asked_for_twice_is_run_once(tmp_path, settings):
    cells = StudyConfig.parse(study_values(seeds=[0])).cells(methods=["fed_lora"], partitions=["iid"])
    assert len(run_cells([*cells, *cells], settings, tmp_path)) == 1
    with pytest.raises(ConfigError, match=r"2 runs of different configuration would write .*iid-seed0\.json"):
        run_cells([cells[0], cells[0].model_copy(update={"cut": 3})], settings, tmp_path)


class Odd(Partition):
    """A component with a bug, in a file that is not ours."""

    name = "odd"
    how: str = "bug"

    def assign(self, labels, *_):
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return helper(labels)


def helper(labels):
    return labels.sort("no such axis")  # HERE


HERE = 1 + next(n for n, line in enumerate(Path(__file__).read_text().splitlines()) if line.endswith("# HERE"))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_author_of_a_component_is_told_where_it_failed(tmp_path, settings, caplog, workers):
    cells = three_seeds()[:2]
    cells[1] = cells[1].model_copy(update={"partition": Odd(), "partition_key": "odd"})
    with pytest.raises(TsfloraError, match=r"1 of 2 runs failed; .*: TypeError: .*") as caught:
        run_cells(cells, settings.model_copy(update={"workers": workers}), tmp_path)
    assert str(caught.value).endswith(f"({__file__}:{HERE})")
    (path,) = tmp_path.rglob("*.failed.json")
    failed = RunRecord.read(path)
    assert failed.error is not None
    assert failed.traceback is not None
    assert failed.error in str(caught.value)
    assert failed.traceback.startswith("Traceback (most recent call last)")
    assert 'labels.sort("no such axis")' in failed.traceback
    assert failed.traceback in caplog.text
    assert "traceback" not in failed.comparable()


def test_a_bug_of_ours_names_our_file(settings, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr(experiment, "assemble", broken)
    with pytest.raises(TsfloraError, match=r"ZeroDivisionError: division by zero \(.*tsflora/experiment\.py:\d+\)$"):
        run_cells(three_seeds()[:1], settings)


def test_a_killed_worker_is_one_failed_run(tmp_path, settings):
    cells = three_seeds()
    cells[0] = cells[0].model_copy(update={"partition": Odd(how="kill"), "partition_key": "odd"})
    line = "1 of 3 runs failed; fed_lora on digits, odd, seed 0: its process ended by SIGKILL; too little memory"
    with pytest.raises(TsfloraError, match=line):
        run_cells(cells, settings.model_copy(update={"workers": 2}), tmp_path)
    names = sorted(path.name for path in tmp_path.rglob("*.json"))
    assert names == ["iid-seed1.json", "iid-seed2.json", "odd-seed0.failed.json"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_as_many_workers_as_cores_that_may_be_used(settings):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert runs.workers_of(settings.model_copy(update={"workers": None})) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert runs.workers_of(settings.model_copy(update={"workers": 3})) == 3


TWO = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_runs import three_seeds
from tsflora.runs import run_cells
from tsflora.settings import Settings
folder = Path({folder!r})
settings = Settings(device="cpu", workers=1, checkpoint_dir=folder / "checkpoints")
for record in run_cells(three_seeds()[:1], settings, folder / "records"):
    print(record.model_dump_json())
"""


def test_two_processes_with_one_folder_run_each_run_once(tmp_path):
    script = TWO.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    pair = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    (first, errors), (second, _) = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    assert first.count("\n") == 1
    assert first == second, "two trainings would have two clocks"
    assert {path.suffix for path in (tmp_path / "records").rglob("*") if path.is_file()} == {".json"}


def test_a_lock_that_a_killed_process_left_holds_nobody(tmp_path, settings):
    (cell,) = three_seeds()[:1]
    left = record_path(tmp_path, cell).with_suffix(".lock")
    left.parent.mkdir(parents=True)
    left.touch()
    run_cells([cell], settings, tmp_path)
    assert not left.exists()


@pytest.mark.parametrize(
    "step",
    [
        lambda store: store.save(3, {"x": torch.tensor([3])}, []),
        lambda store: store.keep_newest(),
        lambda store: store.latest(at_most=1),
    ],
    ids=["save", "keep_newest", "latest"],
)
def test_a_checkpoint_that_another_process_removed_is_no_error(tmp_path, monkeypatch, caplog, step):
    store = CheckpointStore(tmp_path / "run")
    assert store.latest(at_most=9) is None
    for round_ in (1, 2):
        store.save(round_, {"x": torch.tensor([round_])}, [])
    listed = CheckpointStore._paths

    def outrun(self):
        paths = listed(self)
        for path in paths[1:]:
            path.unlink()
        return paths

    monkeypatch.setattr(CheckpointStore, "_paths", outrun)
    assert step(store) is None
    assert len(listed(store)) == 1
    assert not caplog.records
