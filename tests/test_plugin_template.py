"""The package that a user copies, installed as its page says: found by name, and held to its own test."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tsflora import plugins
from tsflora.study import StudyConfig

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "docs" / "plugin_template"
README = (TEMPLATE / "README.md").read_text()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*")  # of who tried it in place
    return shutil.copytree(TEMPLATE, tmp_path / "copied", ignore=ignored)


@pytest.fixture
def shell(tmp_path: Path):
    """Run a command of the page in a folder, where packages go to a place of this test's own."""
    site = tmp_path / "site"
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(command: str, folder: Path) -> str:
        # What is installed for editing is found through a site's own folder alone.
        words = command.replace("--editable .", f"--quiet --target {site} .").split()
        outcome = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
            check=False,
        )
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        return outcome.stdout

    return run


@pytest.mark.timeout(600)  # three programs, two of which import torch
def test_the_commands_of_the_page_install_find_and_test_it(copied, shell, tmp_path):
    (block,) = re.findall(r"```\n(pip .*?)```", README, re.DOTALL)
    install, ls, own_test = block.splitlines()
    shell(install, copied)
    assert "\n  nearest: Score = nearness to a point of the picture" in shell(ls, tmp_path), "found by its entry point"
    assert re.search(r"^3 passed", shell(f"{own_test} -q -p no:cacheprovider", copied), re.MULTILINE)


def test_the_page_names_every_file_and_the_entry_point_its_class(copied):
    linked = set(re.findall(r"\]\((\S+)\)", README))
    assert linked == {path.name for path in copied.iterdir()} - {"README.md"}
    project = tomllib.loads((copied / "pyproject.toml").read_text())
    (module,) = project["tool"]["setuptools"]["py-modules"]
    assert project["project"]["entry-points"] == {"tsflora.token_reducers": {"nearest": f"{module}:Nearest"}}


def test_the_module_is_a_file_that_a_study_can_name(copied):
    (study,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    plugins.load_plugins(["tsflora_nearest.py"], copied)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    cells = StudyConfig.parse({**values, **yaml.safe_load(study), "sweeps": {}}, "README.md").cells()
    assert {cell.method.tokens.n_transmitted(49) for cell in cells} == {30}
