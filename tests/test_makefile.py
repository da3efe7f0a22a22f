"""make in folders of any name: it works on its own environment, and touches nothing beside the checkout."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")

PYTHON = """#!/bin/sh
# Stands in for every python: notes who was called with what, and makes a virtual environment of itself.
echo "$0 $*" >> "$LOG"
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


@pytest.fixture
def checkout(tmp_path, request):
    folder = tmp_path / request.param
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "python3"
    stub.write_text(PYTHON)
    stub.chmod(0o755)
    return folder


def make(*arguments, cwd, log):
    environment = {"PATH": f"{log.parent / 'bin'}:/usr/bin:/bin", "LOG": str(log)}
    return subprocess.run(
        ["make", *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


NAMES = ["plain", "my clone", "a$b", "a#b", "it's", 'a"b', "a(b)", "a;touch b", "a%b", "a=b", "-r", "ünï", "*"]


@pytest.mark.parametrize("checkout", NAMES, indirect=True)
def test_make_works_in_a_folder_of_any_name(checkout, tmp_path):
    log = tmp_path / "log"
    for target in ("test", "repro", "lab", "lint"):
        outcome = make(target, cwd=checkout, log=log)
        assert outcome.returncode == 0, outcome.stderr
    calls = log.read_text().splitlines()
    assert calls[0].endswith("python3 -m venv .venv")
    assert [call.split()[0] for call in calls[1:]] == [".venv/bin/python"] * 8, "never another's pip"
    assert sum("pip install" in call for call in calls) == 2, "once"
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "log", checkout.name}


@pytest.mark.parametrize("checkout", ["my clone"], indirect=True)
def test_make_clean_spares_the_neighbours(checkout, tmp_path):
    for folder in (tmp_path / "my", checkout / "results", checkout / ".venv", checkout / "build"):
        folder.mkdir()
        (folder / "file").touch()
    assert make("clean", cwd=checkout, log=tmp_path / "log").returncode == 0
    assert (tmp_path / "my" / "file").exists()
    assert (checkout / "results" / "file").exists()
    assert not (checkout / ".venv").exists()
    assert not (checkout / "build").exists()


@pytest.mark.parametrize("checkout", ["a:b"], indirect=True)
def test_a_colon_is_refused_before_anything_is_done(checkout, tmp_path):
    before = set(tmp_path.rglob("*"))
    for target in ("test", "clean"):
        outcome = make(target, cwd=checkout, log=tmp_path / "log")
        assert outcome.returncode == 2
        (line,) = outcome.stderr.splitlines()
        assert "a:b: no program is found in a folder with a colon in its name" in line
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("checkout", ["plain"], indirect=True)
def test_make_in_another_folder_touches_nothing(checkout, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "build").mkdir(parents=True)
    outcome = make("-f", checkout / "Makefile", "clean", cwd=elsewhere, log=tmp_path / "log")
    assert outcome.returncode == 2
    assert "is not the checkout; use make -C" in outcome.stderr
    assert (elsewhere / "build").exists()
