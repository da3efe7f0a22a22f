"""Settings from the environment: paths as a shell would read them, names that exist, sizes that the machine has."""

import os
import subprocess
import sys
from pathlib import Path

import joblib
import pytest

from tsflora import machine
from tsflora.errors import ConfigError, reason
from tsflora.files import expanded
from tsflora.machine import usable_cores, usable_memory_bytes
from tsflora.settings import Settings

FOLDERS = ["DATA_DIR", "WEIGHTS_DIR", "PREPARED_DIR", "CHECKPOINT_DIR"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.upper().startswith("TSFLORA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def refused(*parts: object, **overrides: object) -> None:
    with pytest.raises(ConfigError) as error:
        Settings.from_environment(**overrides)
    assert "\n" not in str(error.value)
    for part in parts:
        assert str(part) in str(error.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_home_and_variables_are_expanded(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    for given, expected in {
        "~/images": tmp_path / "home" / "images",
        "~": tmp_path / "home",
        "$PLACE/images": tmp_path / "place" / "images",
        "${PLACE}": tmp_path / "place",
        "relative/images": Path("relative/images"),
        "a~b": Path("a~b"),
    }.items():
        monkeypatch.setenv(f"TSFLORA_{name}", given)
        assert getattr(Settings.from_environment(), name.lower()) == expected
        monkeypatch.delenv(f"TSFLORA_{name}")
        assert getattr(Settings.from_environment(**{name.lower(): Path(given)}), name.lower()) == expected


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_one_is_refused(name, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for given, parts in {
        "~nobody-of-that-name/images": ["~nobody-of-that-name"],
        "$NOWHERE_AT_ALL/images": ["$NOWHERE_AT_ALL", "not set"],
        str(tmp_path / "file"): [tmp_path / "file", "is a file"],
    }.items():
        monkeypatch.setenv(f"TSFLORA_{name}", given)
        refused(name.lower(), given, *parts)


@pytest.mark.parametrize("name", [*FOLDERS, "DEVICE", "WORKERS", "THREADS"])
def test_empty_means_unset(name, monkeypatch):
    unset = Settings.from_environment()
    monkeypatch.setenv(f"TSFLORA_{name}", "")
    assert Settings.from_environment() == unset
    assert Settings(data_dir="").data_dir is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [("TSFLORA_WORKER", "TSFLORA_WORKERS"), ("TSFLORA_DATADIR", "TSFLORA_DATA_DIR"), ("tsflora_thread", "THREADS")],
)
def test_an_unknown_variable_is_refused_with_a_hint(name, meant, monkeypatch):
    monkeypatch.setenv(name, "3")
    refused(name, f"did you mean '{meant if '_' in meant else 'TSFLORA_' + meant}'", "allowed: TSFLORA_CHECKPOINT_DIR")


def test_a_known_variable_in_small_letters_still_counts(monkeypatch):
    monkeypatch.setenv("tsflora_workers", "1")
    assert Settings.from_environment().workers == 1


@pytest.mark.parametrize("name", ["workers", "threads"])
def test_more_than_the_machine_has_is_refused(name, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    assert getattr(Settings.from_environment(**{name: 12}), name) == 12
    for given in (13, 5000, 10**30):
        refused(f"{name}: {given} is too many for 3 usable cores; allowed: 1 to 12", **{name: given})
    for text in ("0", "-1", "1.5", "many", "1e3"):
        monkeypatch.setenv(f"TSFLORA_{name.upper()}", text)
        refused(name, text)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_that_this_process_may_use():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from tsflora.machine import usable_cores as n; print(n())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_a_containers_memory_limit_counts(tmp_path, monkeypatch):
    whole = usable_memory_bytes()
    assert whole > 2**27
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (tmp_path / "absent", limit))
    for text, expected in {"max\n": None, f"{2**26}\n": 2**26, f"{2**62}\n": None}.items():
        limit.write_text(text)
        assert usable_memory_bytes() == (expected or machine.psutil.virtual_memory().total)


def test_expansion_names_what_was_given(tmp_path):
    assert expanded("~/x") == tmp_path / "home" / "x"
    with pytest.raises(ConfigError, match=r"\$\{UNSET_NAME\}/x: the environment variable \$\{UNSET_NAME\} is not set"):
        expanded("${UNSET_NAME}/x")


def test_a_reason_is_one_short_line_without_addresses():
    assert reason(OSError(f"cannot identify {object()!r}")) == "cannot identify"
    assert reason(ValueError("\n\n first\nsecond")) == "first"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("x" * 10_000))) < 250
