"""The paper's own setting cannot rot: its files are valid, and its pipeline runs here, stage by stage, on a toy scale.

The stages are read from pipelines/dvc.yaml and run in this process as they stand there: every notebook that it
names, with the parameters that the stage passes, in the order of dependencies. What is toy is in `toy`: the small
study's parameters with random weights, one generated data set and one partition, two rounds of two devices with two
images each, and each sweep's last point. `THINNED` also holds the sizing notebook to one method and one step, and the
theory to one cut and four settings. Of the studies, that of the smallest backbone is run: the others' stages are the
same but for a name.
"""

import graphlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
import timm
import yaml
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from papermill.parameterize import parameterize_notebook
from PIL import Image

from tsflora.analysis.costs import VitShape
from tsflora.errors import ConfigError
from tsflora.study import StudyConfig

ROOT = Path(__file__).parent.parent
PIPELINES = ROOT / "pipelines"
STUDIES = ("paper_small", "paper_base", "paper_large")
PIPELINE = yaml.safe_load((PIPELINES / "dvc.yaml").read_text())
THINNED = {
    "sizing": {"methods": ["tsflora_8bit_30"], "n_steps": 1},
    "theory": {"cuts": [2], "n_tokens": [30, 40], "bits": [4, 8], "batch_size": 2, "draws": 1},
}
"""More parameters of a notebook, by its name: less of the same work."""


def values(name):
    return yaml.safe_load((PIPELINES / f"{name}.yaml").read_text())


def toy(name, images):
    """A study of the same shape that takes seconds: all methods and sweeps, on the same cut, tokens and codecs."""
    study = values(name)
    study["backbone"] = {"name": "vit_small_patch32_224", "weights": "random"}
    key = study["sweeps"]["tokens_by_bits"]["datasets"][0]
    study["datasets"] = {key: {"name": "image_folder", "path": str(images), "image_size": 40}}
    partition = study["sweeps"]["tokens_by_bits"]["partitions"][0]
    study["partitions"] = {partition: {**study["partitions"][partition], "min_samples": 2, "max_samples": 2}}
    study["seeds"] = [0]
    small = {"rounds": 2, "n_devices": 2, "participants": 2, "batch_size": 2, "precision": "fp32", "evaluate_every": 1}
    study["training"] = {**study["training"], **small, "optimizer": {"lr": 0.01}}
    for sweep in study["sweeps"].values():
        sweep.update(datasets=[key], partitions=[partition], vary={k: v[-1:] for k, v in sweep["vary"].items()})
    return study


def stages():
    """Every stage of dvc.yaml by its name, templates filled in."""
    for name, stage in PIPELINE["stages"].items():
        assert set(stage) & {"cmd", "foreach"}, f"stage {name}: this test knows plain stages and foreach"
        if "foreach" not in stage:
            yield name, stage
            continue
        items = stage["foreach"]
        for item in PIPELINE["vars"][0]["studies"] if items == "${studies}" else items:
            yield f"{name}@{item}", filled(stage["do"], {"item": item})


def filled(content, known):
    if isinstance(content, dict):
        return {filled(key, known): filled(value, known) for key, value in content.items()}
    if isinstance(content, list):
        return [filled(value, known) for value in content]
    return re.sub(r"\$\{(.*?)\}", lambda match: str(known[match[1]]), content) if isinstance(content, str) else content


def paths(entries):
    """The paths of deps or outs, which carry options now and then."""
    return [Path(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in entries]


def in_order(chosen):
    """Names of stages, each after those whose outputs it depends on."""
    made_by = {path: name for name, stage in chosen.items() for path in paths(stage.get("outs", []))}
    graph = {
        name: {made_by[path] for path in made_by for dep in paths(stage["deps"]) if path.is_relative_to(dep)}
        | {made_by[path] for path in made_by for dep in paths(stage["deps"]) if dep.is_relative_to(path)}
        for name, stage in chosen.items()
    }
    return list(graphlib.TopologicalSorter(graph).static_order())


def execute(source, output, parameters, **options):
    """papermill.execute_notebook without a kernel: the cells in this process, each in turn, with what they show."""
    notebook = papermill.iorw.load_notebook_node(str(source))
    shell = InteractiveShell()
    assert shell.display_formatter is not None
    shell.display_formatter.formatters["text/html"].enabled = True  # as a table is shown in a browser
    for cell in parameterize_notebook(notebook, {**parameters, **THINNED.get(Path(source).stem, {})}).cells:
        if cell.cell_type == "code":
            outcome = shell.run_cell(cell.source)
            outcome.raise_error()
            if isinstance(outcome.result, Figure):
                outcome.result.canvas.draw()
            for number in plt.get_fignums():
                plt.figure(number).canvas.draw()
            plt.close("all")
    nbformat.write(notebook, output)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A checkout whose paper study is the toy, with generated images; the working directory is the study's."""
    for name in ("notebooks", "tsflora", "requirements.lock"):
        (tmp_path / name).symlink_to(ROOT / name)
    study = tmp_path / "pipelines"
    study.mkdir(parents=True)
    for script in PIPELINES.glob("*.py"):
        (study / script.name).symlink_to(script)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "abcd":
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / "0.png")
    for name in STUDIES:
        (study / f"{name}.yaml").write_text(yaml.safe_dump(toy(name, tmp_path / "images"), sort_keys=False))
    for name, value in {"DEVICE": "cpu", "WORKERS": "1"}.items():
        monkeypatch.setenv(f"TSFLORA_{name}", value)
    for name in ("DATA_DIR", "WEIGHTS_DIR", "PREPARED_DIR", "CHECKPOINT_DIR", "THREADS"):
        monkeypatch.delenv(f"TSFLORA_{name}", raising=False)
    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.syspath_prepend(ROOT / "pipelines")
    monkeypatch.setattr("IPython.core.history.HistoryManager.enabled", False)
    monkeypatch.chdir(study)
    return study


def run_stage(stage, monkeypatch):
    for dependency in paths(stage["deps"]):
        assert dependency.exists(), f"{dependency} is not there yet"
    python, script, *arguments = shlex.split(stage["cmd"])
    assert python == "python"
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code in (0, None), stage["cmd"]
    for output in paths(stage["outs"]):
        assert output.exists(), f"{output} was not made"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries that notebooks load; theirs to care about
@pytest.mark.timeout(1200)  # two and a half minutes on a quiet machine
def test_every_stage_runs_from_images_to_figures(world, monkeypatch):
    study = StudyConfig.read(world / "paper_small.yaml")
    every = dict(stages())
    others = {"rates", "benchmark"}  # of codecs, and of none
    chosen = {name: stage for name, stage in every.items() if name.partition("@")[2] in ("", "paper_small")}
    for name in others:
        del chosen[name]
    for name in in_order(chosen):
        run_stage(chosen[name], monkeypatch)
    lines = (world / "../results/paper_small/records.jsonl").read_text().splitlines()
    assert len(lines) == len(study.all_cells()) == len(study.methods) + len(study.sweeps)
    executed = {path.stem for path in (world / "../build/paper_small/notebooks/figures").iterdir()}
    assert executed == {path.stem for path in (ROOT / "notebooks" / "figures").iterdir() if path.suffix == ".ipynb"}
    assert {name.partition("@")[0] for name in chosen} == {name.partition("@")[0] for name in every} - others


def test_an_unknown_parameter_is_an_error(world, monkeypatch, capsys):
    command = "python notebook.py ../notebooks/sweep.ipynb ../build/out.ipynb --params paper_small.yaml -p swep=x"
    with pytest.raises(AssertionError, match="swep=x"):
        run_stage({"cmd": command, "deps": [], "outs": []}, monkeypatch)
    assert "sweep.ipynb has no parameter 'swep'" in capsys.readouterr().err


def test_the_three_studies_differ_in_name_and_backbone_alone():
    small, *others = (
        {key: value for key, value in values(name).items() if key not in ("name", "backbone")} for name in STUDIES
    )
    for other in others:
        assert other == small
    texts = [
        (PIPELINES / f"{name}.yaml").read_text().partition("backbone: {")[2].partition("\n")[2] for name in STUDIES
    ]
    assert len(set(texts)) == 1  # comments too


@pytest.mark.parametrize(("size", "dim", "n_blocks"), [("small", 384, 12), ("base", 768, 12), ("large", 1024, 24)])
def test_every_backbone_is_one_that_timm_has_weights_for(size, dim, n_blocks):
    config = StudyConfig.read(PIPELINES / f"paper_{size}.yaml").backbone
    assert config.pretrained
    assert config.name in timm.list_pretrained()
    shape = VitShape.of(config.name, n_classes=100, image_size=config.image_size)
    assert (shape.dim, shape.n_blocks, shape.patch_size, shape.image_size) == (dim, n_blocks, 32, 224)
    assert shape.n_patches == 49
    assert timm.get_pretrained_cfg(config.name).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", STUDIES)
def test_settings_are_the_papers(name):
    study = StudyConfig.read(PIPELINES / f"{name}.yaml")
    training = study.training
    assert (training.rounds, training.n_devices, training.participants) == (50, 50, 10)
    assert (training.batch_size, training.local_epochs, study.cut, study.lora.rank) == (64, 1, 2, 32)
    assert (training.optimizer.name, training.optimizer.lr, training.optimizer.momentum) == ("sgd", 0.1, 0.9)
    assert study.lora.targets == ("qkv", "fc1", "fc2")
    assert [(p.name, p.min_samples, p.max_samples) for p in study.partitions.values()] == [
        ("iid", 400, 400),
        ("dirichlet", 400, 400),
    ]
    assert len(study.cells()) == 3 * 2 * 5 * 10
    for sweep in study.sweeps:
        assert study.sweep_cells(sweep)
    shape = VitShape.of(study.backbone.name, n_classes=10)
    for cell in study.all_cells():
        assert cell.cut < shape.n_blocks
        cell.method.tokens.n_transmitted(shape.n_patches)


def test_toy_runs_nothing_that_the_real_study_does_not_have(tmp_path):
    real, small = StudyConfig.read(PIPELINES / "paper_small.yaml"), StudyConfig.parse(toy("paper_small", tmp_path))
    assert real.methods == small.methods
    assert real.sweeps.keys() == small.sweeps.keys()
    with pytest.raises(ConfigError):
        StudyConfig.parse({**values("paper_small"), "ronds": 1})
