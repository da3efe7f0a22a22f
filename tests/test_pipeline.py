"""The stage scripts and what dvc.yaml says about them, as a user meets them."""

import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import psutil
import pytest
import yaml
from factories import make_record
from test_study import study_values

from tsflora import runs
from tsflora.analysis.runs import read_jsonl
from tsflora.errors import NumericsError
from tsflora.planned import ExperimentConfig
from tsflora.study import StudyConfig

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
PIPELINES = ROOT / "pipelines"
STAGES_TEXT = (ROOT / "dvc.yaml").read_text()
PIPELINE_FILES = [ROOT / "dvc.yaml", PIPELINES / "dvc.yaml"]
STUDIES = [ROOT / "params.yaml", *(path for path in sorted(PIPELINES.glob("*.yaml")) if path.stem != "dvc")]


def script(name, *arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / name), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TSFLORA_WORKERS": "1", **environment},
        check=False,
    )


def assert_one_line_error(outcome, *parts):
    assert outcome.returncode == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(study_values(seeds=[0])))
    return path


def test_prepare_leaves_a_checked_copy(tmp_path, params):
    outcome = script("prepare.py", "inputs", "--output", tmp_path / "out", "--params", params)
    assert outcome.returncode == 0, outcome.stderr
    assert "160 training and 40 test images, 10 classes" in outcome.stdout
    images, backbone = ({path.name for path in (tmp_path / "out" / name).iterdir()} for name in ("digits", "backbone"))
    assert images == {"train.safetensors", "test.safetensors", "source.json"}
    assert "backbone.json" in backbone


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sedes": [1]}, ["sedes", "did you mean 'seeds'"]),
        ({"datasets": {"digits": {"name": "image_folder", "path": "nowhere"}}}, ["nowhere"]),
    ],
)
def test_prepare_answers_mistakes_with_one_line(tmp_path, changes, parts):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(study_values(**changes)))
    outcome = script("prepare.py", "inputs", "--output", tmp_path / "out", "--params", path)
    assert_one_line_error(outcome, *parts)
    assert not (tmp_path / "out").exists()


def test_a_method_notebook_runs_as_a_stage(tmp_path, params):
    outcome = script(
        "notebook.py", ROOT / "notebooks" / "fed_lora.ipynb", tmp_path / "executed.ipynb", "--params", params,
        "-p", "methods=[fed_lora]", "-p", "partitions=[iid]", "-p", "seeds=null",
        "-p", f"records_dir={tmp_path / 'records'}",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    (record,) = (tmp_path / "records").rglob("*.json")
    assert json.loads(record.read_text())["status"] == "complete"
    executed = nbformat.read(tmp_path / "executed.ipynb", 4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    (bar,) = [output.text for output in outputs if output.get("name") == "stderr"]
    assert re.fullmatch(r"100%\|.* fed_lora/iid/0 round \d/\d acc .*\n", bar), "of all refreshes, the last one"


def test_the_tour_runs_from_top_to_bottom(tmp_path):
    arguments = ["--params", ROOT / "params.yaml", "-p", "rounds=1", "-p", "n_images=2"]
    outcome = script("notebook.py", ROOT / "notebooks" / "tour.ipynb", tmp_path / "tour.ipynb", *arguments)
    assert outcome.returncode == 0, outcome.stderr
    outputs = [o for cell in nbformat.read(tmp_path / "tour.ipynb", 4).cells for o in cell.get("outputs", [])]
    (bar,) = [output.text for output in outputs if output.get("name") == "stderr"]
    assert re.fullmatch(r"\d+batch .* loss .*\n", bar), "how far it came, not a widget that no file shows"


def test_a_mistake_in_a_notebook_stage_is_one_line_and_a_failed_exit(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(study_values(cut=9)))
    notebook = ROOT / "notebooks" / "local_lora.ipynb"
    arguments = ["--params", path, "-p", "methods=[sflora_8bit]", "-p", "partitions=[iid]"]
    outcome = script("notebook.py", notebook, tmp_path / "out.ipynb", *arguments)
    assert_one_line_error(outcome, "cut: 9 is outside the model; it has 6 blocks, allowed: 1 to 5")


def test_notebook_script_names_unknown_parameters_and_files(tmp_path, params):
    notebook = ROOT / "notebooks" / "sflora.ipynb"
    outcome = script("notebook.py", notebook, tmp_path / "o.ipynb", "--params", params, "-p", "method=x")
    assert_one_line_error(outcome, "has no parameter 'method'", "methods")
    outcome = script("notebook.py", notebook, tmp_path / "o.ipynb", "--params", params, "-p", "seeds=[0")
    assert_one_line_error(outcome, "seeds=[0", "name=value is expected")
    outcome = script("notebook.py", notebook, tmp_path / "o.ipynb", "--params", params, "-p", "backbone={a: 1, a: 2}")
    assert_one_line_error(outcome, "backbone={a: 1, a: 2}", "line 1: key 'a' is there twice")
    outcome = script("notebook.py", notebook, tmp_path / "o.ipynb", "--params", params, "-p", "seeds=010")
    assert_one_line_error(outcome, "seeds=010", "010 is read in different ways")
    outcome = script("notebook.py", notebook, tmp_path / "o.ipynb", "--params", params, "-p", "cut=0", "-p", "cut=1")
    assert_one_line_error(outcome, "'cut=1': 'cut' is given twice")
    (tmp_path / "cut.ipynb").write_text(notebook.read_text()[:500])
    outcome = script("notebook.py", tmp_path / "cut.ipynb", tmp_path / "o.ipynb", "--params", params)
    assert_one_line_error(outcome, "cut.ipynb is not a notebook")
    outcome = script("notebook.py", tmp_path / "no.ipynb", tmp_path / "o.ipynb", "--params", params)
    assert_one_line_error(outcome, "no.ipynb does not exist")


def notebook_of(path, *sources):
    """A notebook with a parameters cell, and a cell for each source."""
    parameters = nbformat.v4.new_code_cell(
        "params = None\nrecords_dir = None\nx = None", metadata={"tags": ["parameters"]}
    )
    cells = [parameters, *map(nbformat.v4.new_code_cell, sources)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.mark.parametrize("value", ["2024-01-01", "[2024-01-01]", "[.inf]", "{1: 2}", "!!set {a}"])
def test_a_value_that_no_notebook_can_take_is_refused(tmp_path, value):
    notebook = notebook_of(tmp_path / "n.ipynb")
    outcome = script("notebook.py", notebook, tmp_path / "o.ipynb", "-p", f"x={value}")
    assert_one_line_error(outcome, value, "name=value is expected")


def test_a_path_with_braces_is_a_path(tmp_path):
    notebook = notebook_of(tmp_path / "{x}.ipynb", "assert x == '2024-01-01', x")
    outcome = script("notebook.py", notebook, tmp_path / "{y}{}.ipynb", "-p", "x='2024-01-01'")
    assert outcome.returncode == 0, outcome.stderr
    assert (tmp_path / "{y}{}.ipynb").exists()


def test_the_wrong_place_is_the_one_that_is_named(tmp_path):
    notebook = notebook_of(tmp_path / "n.ipynb")
    before = notebook.read_bytes()
    outcome = script("notebook.py", notebook, tmp_path / "o.ipynb", IPYTHONDIR="/proc/nowhere")
    assert_one_line_error(outcome, "cannot use /proc/nowhere: No such file or directory")
    (tmp_path / "file").touch()
    assert_one_line_error(script("notebook.py", notebook, tmp_path / "file" / "o.ipynb"), "cannot write", "file")
    assert_one_line_error(script("notebook.py", notebook, notebook), "needs a name of its own", "n.ipynb")
    assert notebook.read_bytes() == before
    assert_one_line_error(script("notebook.py", tmp_path, tmp_path / "o.ipynb"), "cannot be read: Is a directory")


def test_a_kernel_that_dies_is_one_line(tmp_path):
    notebook = notebook_of(tmp_path / "n.ipynb", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    outcome = script("notebook.py", notebook, tmp_path / "o.ipynb")
    assert_one_line_error(outcome, "n.ipynb: its kernel was killed", "the same command goes on from there")
    assert len(outcome.stderr.splitlines()) == 1


def test_a_fault_in_a_notebook_names_its_sort(tmp_path):
    notebook = notebook_of(tmp_path / "n.ipynb", "{}['key']")
    assert_one_line_error(script("notebook.py", notebook, tmp_path / "o.ipynb"), "n.ipynb: KeyError: 'key'")


def test_a_stage_never_runs_another_checkouts_library(tmp_path):
    shutil.copytree(PIPELINES, tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    outcome = subprocess.run(
        [sys.executable, tmp_path / "pipelines" / "notebook.py", "in.ipynb", "out.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert_one_line_error(outcome, f"tsflora is imported from {ROOT}, not from this checkout {tmp_path}")
    for stage_script in set(re.findall(r"python pipelines/(\S+)", STAGES_TEXT)):
        assert "one_line_errors()" in (PIPELINES / stage_script).read_text(), stage_script


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_stage_that_is_stopped_leaves_nobody_behind(tmp_path, how):
    study = study_values(seeds=[0, 1], training={**study_values()["training"], "rounds": 10_000})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(study))
    arguments = {"partitions": "[iid]", "seeds": "null"}
    arguments |= {name: tmp_path / name for name in ("records_dir", "checkpoint_dir")}
    given = [part for name, value in arguments.items() for part in ("-p", f"{name}={value}")]
    notebook = [PIPELINES / "notebook.py", ROOT / "notebooks" / "fed_lora.ipynb", tmp_path / "o.ipynb"]
    process = subprocess.Popen(
        [sys.executable, *notebook, "--params", tmp_path / "params.yaml", *given],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TSFLORA_WORKERS": "2"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("checkpoint_dir/*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 3, "a kernel and two workers"
        number = getattr(signal, how)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=120)
        assert not psutil.wait_procs(below, timeout=60)[1]
    finally:
        process.kill()
    line = f"stopped by {how}; what is finished is kept, and the same command goes on from there"
    said = [text for text in errors.splitlines() if "round/s" not in text]  # on a slow machine, a minute's progress
    assert said == ([] if how == "SIGKILL" else [line])
    assert process.returncode == (-number if how == "SIGKILL" else 128 + number)


@pytest.fixture
def diverging(monkeypatch):
    """Runs without training, of which the first one diverges."""

    def run(cell, settings, progress, record_path):
        if not started:
            started.append(cell)
            raise NumericsError("round 1, device 0: the loss is nan")
        names = {"dataset": cell.dataset_name, "partition": cell.partition_name, "seed": cell.seed, "label": cell.label}
        return make_record(cell.method_key, config=cell.dump(), **names)

    started: list[ExperimentConfig] = []
    monkeypatch.setattr(runs, "run", run)
    monkeypatch.setenv("TSFLORA_WORKERS", "1")
    return started


RUN_NOTEBOOKS = [path for path in NOTEBOOKS if "run_cells(" in path.read_text()]


@pytest.mark.parametrize("path", RUN_NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_its_runs_and_which_failed(diverging, monkeypatch, capsys, path):
    monkeypatch.chdir(path.parent)
    namespace: dict[str, Any] = {}
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            exec(cell.source, namespace)
        if "parameters" in cell.metadata.get("tags", []):
            namespace["seeds"] = [0, 1]
            namespace["methods"] = namespace.get("methods", [])[-1:]  # in the sweep there are none
    plt.close("all")
    assert len(namespace["records"]) == len(namespace["cells"]) - 1
    assert "1 failed: " in capsys.readouterr().out


def test_a_stage_says_at_the_end_which_runs_failed(tmp_path):
    failed = make_record().model_copy(update={"status": "failed", "error": "the loss is nan", "history": ()})
    failed.write(tmp_path / "records" / "sflora" / "digits" / "iid-seed0.failed.json")
    notebook = notebook_of(tmp_path / "n.ipynb")
    outcome = script("notebook.py", notebook, tmp_path / "o.ipynb", "-p", f"records_dir={tmp_path / 'records'}")
    assert outcome.returncode == 0
    one, last = outcome.stderr.splitlines()
    assert one.endswith("sflora/digits/iid-seed0.failed.json: the loss is nan")
    assert last == "WARNING 1 runs failed; tables and figures go without them and say so"


def test_a_log_has_a_line_a_minute_of_what_a_bar_says(monkeypatch):
    monkeypatch.syspath_prepend(PIPELINES)
    notebook = importlib.import_module("notebook")
    now = 0.0
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now)
    log = io.StringIO()
    bar = notebook.EveryMinute(log)
    for now in (1.0, 59.0, 60.0, 61.0, 119.0, 121.0):
        bar.write(f"\r  old\r {now:g} s: 3 of 9 ")
        bar.write("\r")
    assert log.getvalue() == "60 s: 3 of 9\n121 s: 3 of 9\n"


def test_committed_records_are_read_and_not_run_again(tmp_path):
    path = tmp_path / "params.yaml"
    study = study_values(seeds=[0], partitions={"iid": {"name": "iid"}})
    path.write_text(yaml.safe_dump(study))
    notebook = [ROOT / "notebooks" / "fed_lora.ipynb", tmp_path / "executed.ipynb", "--params", path]
    stage = ["-p", "methods=[fed_lora]", "-p", "partitions=null", "-p", "seeds=null"]
    outcome = script("notebook.py", *notebook, *stage, "-p", f"records_dir={tmp_path / 'first'}")
    assert outcome.returncode == 0, outcome.stderr
    joined = tmp_path / "records.jsonl"
    assert script("collect.py", tmp_path / "first", joined, "--params", path).returncode == 0
    outcome = script("prepare.py", "records", joined, tmp_path / "second", "--params", path)
    assert "1 of 2 planned records" in outcome.stdout, outcome.stderr
    (before,) = (tmp_path / "first").rglob("*.json")
    after = tmp_path / "second" / "methods" / before.relative_to(tmp_path / "first")
    laid = after.read_bytes()
    assert json.loads(laid) == json.loads(before.read_bytes())
    script("notebook.py", *notebook, *stage, "-p", f"records_dir={tmp_path / 'second' / 'methods'}")
    assert after.read_bytes() == laid, "a second training would have other clocks"


def test_collect_keeps_the_newer_of_two_records_of_one_run(tmp_path):
    record = read_jsonl(ROOT / "results" / "digits" / "records.jsonl").complete[0]
    for folder, started_at in [("a", "2026-01-02"), ("b", "2026-01-03"), ("c", "2026-01-01")]:
        record.model_copy(update={"started_at": started_at}).write(tmp_path / "in" / folder / "record.json")
    outcome = script("collect.py", tmp_path / "in", tmp_path / "out.jsonl", "--params", ROOT / "params.yaml")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr.count("there is a better record of the same run") == 2
    (kept,) = read_jsonl(tmp_path / "out.jsonl").complete
    assert kept.started_at == "2026-01-03"


def test_a_record_changes_with_its_result_and_not_with_the_clock(tmp_path):
    record = read_jsonl(ROOT / "results" / "digits" / "records.jsonl").complete[0]

    def collected(**changes):
        record.model_copy(update=changes).write(tmp_path / "in" / "record.json")
        outcome = script("collect.py", tmp_path / "in", tmp_path / "out.jsonl", "--params", ROOT / "params.yaml")
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout, (tmp_path / "out.jsonl").read_bytes()

    said, first = collected()
    assert "0 repeat" in said
    elsewhere = record.provenance.model_copy(update={"host": {"cores": "96"}})
    said, again = collected(started_at="2031-01-01", seconds=1e6, peak_memory_mib=1.0, provenance=elsewhere)
    assert "1 repeat to the bit what was there" in said
    assert again == first
    assert collected(started_at="2031-01-01", history=record.history[:-1])[1] != first
    (tmp_path / "out.jsonl").write_text("{")
    assert collected()[1] == first


def test_collect_keeps_what_failed_unless_it_was_run_again(tmp_path):
    first, second = read_jsonl(ROOT / "results" / "digits" / "records.jsonl").complete[:2]
    for name, record in [("a", first), ("b", second)]:
        failed = record.model_copy(update={"status": "failed", "error": "no memory", "history": ()})
        failed.write(tmp_path / "in" / f"{name}.failed.json")
    second.write(tmp_path / "in" / "b.json")
    outcome = script("collect.py", tmp_path / "in", tmp_path / "out.jsonl", "--params", ROOT / "params.yaml")
    assert " planned records, 1 failed" in outcome.stdout, outcome.stderr
    kept = read_jsonl(tmp_path / "out.jsonl")
    assert [record.seed for record in kept.complete] == [second.seed]
    assert [(record.seed, record.error) for record in kept.failed] == [(first.seed, "no memory")]


def test_collect_without_records_is_one_line(tmp_path):
    assert_one_line_error(script("collect.py", tmp_path, tmp_path / "records.jsonl"), "no run records")


@pytest.mark.parametrize("path", sorted(path for path in PIPELINES.glob("*.py") if path.stem != "command"), ids=str)
def test_every_script_has_help(path):
    outcome = script(path.name, "--help")
    assert outcome.returncode == 0
    assert "Usage" in outcome.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs_and_take_parameters(path):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert notebook.cells[0].source.startswith("# ")


@pytest.mark.parametrize("dvc_yaml", PIPELINE_FILES, ids=lambda path: path.parent.name)
def test_what_trains_depends_on_revisions_and_on_no_code(dvc_yaml):
    stages = yaml.safe_load(dvc_yaml.read_text())["stages"]
    assert any(dependency.endswith("/tsflora") or dependency == "tsflora" for dependency in stages["revisions"]["deps"])
    (written,) = stages["revisions"]["outs"]
    for name in {"inputs", "run", "own", "sweep"} & stages.keys():
        dependencies = stages[name].get("do", stages[name])["deps"]
        assert written in dependencies, name
        assert not [path for path in dependencies if "tsflora" in Path(path).parts], name


def test_a_changed_docstring_changes_no_revision_and_a_raised_one_does(tmp_path):
    for part in ("tsflora", "pipelines"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    quantizers = tmp_path / "tsflora" / "compression" / "quantizers.py"

    def revisions():
        command = [sys.executable, "pipelines/prepare.py", "revisions", "--output", "out.json"]
        subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        return (tmp_path / "out.json").read_bytes()

    before = revisions()
    source = quantizers.read_text()
    quantizers.write_text(source.replace("No compression", "Nothing is compressed") + "\n# One more comment.\n")
    assert quantizers.read_text() != source
    assert revisions() == before
    quantizers.write_text(source.replace('name = "float32"', 'name = "float32"\n    revision = 2'))
    assert json.loads(revisions())["components"]["Quantizer.float32"] == 2


def test_every_baseline_has_a_notebook_and_all_others_are_ones_own():
    study = yaml.safe_load((ROOT / "params.yaml").read_text())
    stages = yaml.safe_load(STAGES_TEXT)["stages"]
    baselines = stages["run"]["foreach"]
    assert baselines.keys() == study["methods"].keys()
    assert f"-p without=[{','.join(baselines)}]" in stages["own"]["cmd"]
    for stage in baselines.values():
        assert (ROOT / "notebooks" / f"{stage['notebook']}.ipynb").exists()


@pytest.mark.parametrize("dvc_yaml", PIPELINE_FILES, ids=lambda path: path.parent.name)
def test_what_draws_depends_on_no_code_that_trains(dvc_yaml):
    stages = yaml.safe_load(dvc_yaml.read_text())["stages"]
    for name in ("collect", "figures", "theory", "report"):
        code = [path for path in stages[name].get("do", stages[name])["deps"] if "tsflora" in Path(path).parts]
        assert len(code) == 1, name
        assert "tsflora/analysis" in code[0], name


@pytest.mark.parametrize("params_yaml", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_valid_has_its_name_and_its_stages(params_yaml):
    study = StudyConfig.read(params_yaml)
    assert study.cells()
    if params_yaml.parent == PIPELINES:
        assert study.name == params_yaml.stem
        pipeline = yaml.safe_load((PIPELINES / "dvc.yaml").read_text())
        assert study.name in pipeline["vars"][0]["studies"]
        assert (study.name in pipeline["stages"]["sweep"]["foreach"]) == bool(study.sweeps)


def test_every_figure_of_a_folder_is_drawn_or_those_that_are_named(tmp_path, params, monkeypatch):
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("one", "two"):
        notebook_of(folder / f"{name}.ipynb", "from pathlib import Path", "Path(output_dir).mkdir(parents=True)")
        text = (folder / f"{name}.ipynb").read_text().replace("x = None", "records = None\\noutput_dir = None")
        (folder / f"{name}.ipynb").write_text(text)
    arguments = [folder, tmp_path / "out", "--params", params, "--records", "r.jsonl", "--executed", tmp_path / "ran"]
    outcome = script("figures.py", *arguments, TSFLORA_WORKERS="2")
    assert outcome.returncode == 0, outcome.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one", "two"}
    assert {path.name for path in (tmp_path / "ran").iterdir()} == {"one.ipynb", "two.ipynb"}
    params.write_text(yaml.safe_dump(study_values(figures=["two", "thre"])))
    assert_one_line_error(script("figures.py", *arguments), "there is no", "thre.ipynb", "allowed: one, two")
    assert_one_line_error(script("figures.py", tmp_path / "out", *arguments[1:]), "holds no notebook")
    # The second one fails: its error is the stage's.
    notebook_of(folder / "two.ipynb", "{}['key']")
    assert_one_line_error(script("figures.py", *arguments, "--name", "two"), "two.ipynb has no parameter 'output_dir'")
