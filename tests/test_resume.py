"""Same config, same record; killed and resumed, same record; damage is seen and survived."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import small_config
from methods import CENTRAL, EVERY_ALGORITHM, TSFLORA

from tsflora.errors import StorageError
from tsflora.experiment import run


class KilledError(Exception):
    pass


def killed_in_round(round_):
    def progress(text, finished):
        if text.startswith(f"round {round_}/") and not finished:
            raise KilledError

    return progress


def config_of(method, **training):
    return small_config(method, training={**small_config().dump()["training"], "rounds": 3, **training})


@pytest.mark.parametrize("method", [EVERY_ALGORITHM["tsflora"], EVERY_ALGORITHM["fed_lora"]], ids=str)
def test_same_config_same_record(settings, tmp_path, method):
    first, second = (run(config_of(method, rounds=2), settings, record_path=tmp_path / "r.json") for _ in range(2))
    assert first.comparable() == second.comparable()
    other = run(small_config(method, seed=2), settings, record_path=tmp_path / "r.json")
    assert other.comparable()["history"] != first.comparable()["history"]


@pytest.mark.parametrize("method", [*EVERY_ALGORITHM.values(), *CENTRAL.values()], ids=[*EVERY_ALGORITHM, *CENTRAL])
def test_killed_and_resumed_is_the_identical_record(settings, tmp_path, method):
    config = config_of(method)
    whole = run(config, settings.model_copy(update={"checkpoint_dir": None}), record_path=tmp_path / "whole.json")
    with pytest.raises(KilledError):
        run(config, settings, killed_in_round(3))
    seen = []
    resumed = run(config, settings, lambda text, _: seen.append(text), tmp_path / "resumed.json")
    assert seen[0] == "resumed after round 2"
    assert resumed.comparable() == whole.comparable()
    assert len(list(settings.checkpoint_dir.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("method", [TSFLORA, EVERY_ALGORITHM["local_lora"], CENTRAL["central_raw"]], ids=str)
def test_more_rounds_go_on_from_a_finished_run_to_the_identical_record(settings, tmp_path, method):
    # Round 3 is the short run's last, so it is evaluated there; in the long run it is not due.
    longer = config_of(method, rounds=5, evaluate_every=2)
    whole = run(longer, settings.model_copy(update={"checkpoint_dir": None}))
    assert [entry.accuracy is None for entry in whole.history] == [True, False, True, False, False]
    run(config_of(method, rounds=3, evaluate_every=2), settings, record_path=tmp_path / "r.json")
    seen = []
    extended = run(longer, settings, lambda text, _: seen.append(text), tmp_path / "r.json")
    assert seen[0] == "resumed after round 3"
    assert extended.comparable() == whole.comparable()


def test_fewer_rounds_never_take_a_later_checkpoint(settings, tmp_path):
    config = config_of(TSFLORA)
    run(config_of(TSFLORA, rounds=5), settings, record_path=tmp_path / "long.json")
    short = run(config, settings, record_path=tmp_path / "short.json")
    assert len(short.history) == 3
    assert short.comparable() == run(config, settings.model_copy(update={"checkpoint_dir": None})).comparable()


def test_resume_with_adamw_restores_the_optimiser(settings):
    config = config_of({"algorithm": "sflora"}, optimizer={"name": "adamw", "lr": 0.01})
    whole = run(config, settings.model_copy(update={"checkpoint_dir": None}))
    with pytest.raises(KilledError):
        run(config, settings, killed_in_round(3))
    assert run(config, settings).comparable() == whole.comparable()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(settings, caplog, damage):
    config = config_of({"algorithm": "sflora"})
    with pytest.raises(KilledError):
        run(config, settings, killed_in_round(3))
    first, newest = sorted(settings.checkpoint_dir.rglob("*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes({"flip": bytes(content), "truncate": bytes(content[:-9]), "empty": b""}[damage])
    seen = []
    with caplog.at_level(logging.WARNING):
        resumed = run(config, settings, lambda text, _: seen.append(text))
    assert seen[0] == "resumed after round 1"
    assert newest.name in caplog.text
    assert "checkpoint before it" in caplog.text
    assert first.name not in caplog.text
    settings.checkpoint_dir.rename(settings.checkpoint_dir.with_name("other"))
    assert run(config, settings).comparable() == resumed.comparable()


def test_a_changed_config_never_takes_the_checkpoint_of_another(settings):
    with pytest.raises(KilledError):
        run(config_of({"algorithm": "sflora"}), settings, killed_in_round(3))
    seen = []
    run(config_of({"algorithm": "sflora"}, batch_size=12), settings, lambda text, _: seen.append(text))
    assert seen[0].startswith("round 1/3")


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_resume import config_of
from methods import TSFLORA
from tsflora.experiment import run
from tsflora.settings import Settings
run(config_of(TSFLORA, rounds=6), Settings(device="cpu", checkpoint_dir=Path({folder!r}) / "c"),
    record_path=Path({folder!r}) / "record.json")
"""


def test_sigkill_at_any_moment_resumes_to_the_identical_record(settings, tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", script])
        before = set((tmp_path / "c").rglob("round-*"))
        deadline = time.monotonic() + 120
        while set((tmp_path / "c").rglob("round-*")) == before and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "record.json").exists()
    subprocess.run([sys.executable, "-c", script], check=True)
    from methods import TSFLORA

    from tsflora.records import RunRecord

    whole = run(config_of(TSFLORA, rounds=6), settings)
    assert RunRecord.read(tmp_path / "record.json").comparable() == whole.comparable()


def test_unwritable_results_folder_is_one_line_and_loses_nothing(settings, tmp_path):
    config = config_of({"algorithm": "fed_lora"}, rounds=1)
    (tmp_path / "results").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"cannot write .*results") as caught:
        run(config, settings, record_path=tmp_path / "results" / "record.json")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "results").read_text() == "a file where a folder should be"
    seen = []
    run(config, settings, lambda text, _: seen.append(text), tmp_path / "elsewhere.json")
    assert seen == ["resumed after round 1"]


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    from tsflora.files import write_atomically

    path = tmp_path / "record.json"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device; free space or choose another folder"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
