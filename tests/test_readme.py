"""What the README and the results page show is what is there: tables are those of the results, links lead somewhere."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()


def test_the_landing_page_stays_one():
    assert len(README.splitlines()) <= 120


def test_what_is_tested_is_what_the_package_says():
    """One Python and one platform, on the landing page, in the classifiers and where the tests run."""
    (python,) = re.findall(r"^\* \*\*Tested\*\*: Python (3\.\d+) on Linux x86-64", README, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {entry for entry in project["classifiers"] if entry.startswith(("Programming", "Operating"))}
    assert listed == {f"Programming Language :: Python :: {python}", "Operating System :: POSIX :: Linux"}
    assert project["requires-python"] == f">={python}"
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert f'python-version: "{python}"' in workflow
    assert "runs-on: ubuntu" in workflow


def test_the_lock_is_within_the_ranges():
    """Every direct dependency is pinned, at a version that its range allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = "\n".join((ROOT / name).read_text() for name in ("requirements.lock", "requirements-docs.lock"))
    pins = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", lines, re.MULTILINE)}
    for text in (
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ):
        requirement = Requirement(text)
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{text}: {pinned} is pinned"


@pytest.mark.parametrize(("study", "page"), [("digits", README), ("cifar", RESULTS)])
def test_tables_are_those_of_the_committed_results(study, page):
    table = (ROOT / f"results/{study}/report/figures/table_3/accuracy.md").read_text().strip()
    assert f"<!-- {study} accuracy -->\n\n{table}\n\n" in page


@pytest.mark.parametrize("study", ["digits", "cifar", "rounds", "codecs"])
def test_the_results_page_says_how_many_runs_there_are_and_of_which_days(study):
    lines = (ROOT / f"results/{study}/records.jsonl").read_text().splitlines()
    days = {json.loads(line)["started_at"][:10] for line in lines}
    (stated,) = re.findall(rf"^\| `{study}` \| ([0-9-]+) \| (\d+) of \d+ \|", RESULTS, re.MULTILINE)
    assert stated == (min(days), str(len(lines)))
    assert len(days) == 1


def test_intervals_on_the_results_page_are_those_of_the_tables():
    tables = [path.read_text() for path in (ROOT / "results").glob("*/report/figures/*/*differences*.md")]
    known = {interval.replace("+", "") for table in tables for interval in re.findall(r"\[[^\]]*\d\]", table)}
    shown = [interval for interval in re.findall(r"\[[−\d., ]+\]", RESULTS) if "," in interval]
    assert len(shown) >= 8
    assert set(shown) <= known
