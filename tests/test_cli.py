"""The `tsflora` command as a user meets it: what each command prints and writes, and one line for every mistake."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from factories import make_record
from test_study import study_values
from typer.core import TyperGroup
from typer.testing import CliRunner

from tsflora import runs
from tsflora.analysis.costs import MeasuredError
from tsflora.analysis.runs import load_records, read_jsonl, write_jsonl
from tsflora.analysis.sizing.hours import dataset_shape
from tsflora.analysis.sizing.traffic import round_traffic
from tsflora.analysis.tables import write_table
from tsflora.cli import app
from tsflora.config import Registry
from tsflora.errors import NumericsError
from tsflora.experiment import run_of
from tsflora.records import RunRecord
from tsflora.study import StudyConfig

ROOT = Path(__file__).parent.parent
GROUP = typer.main.get_command(app)
assert isinstance(GROUP, TyperGroup)
COMMANDS = GROUP.commands

SIGN = '''
import torch
from tsflora.compression import Layout, Quantizer, Section, quantizers
from tsflora.config import Registry
from tsflora.errors import NumericsError
from tsflora.wire import Format


@quantizers.register
class Sign(Quantizer):
    """One bit per entry and one scale per tensor."""

    name = "sign"

    def layouts(self, shape):
        return Layout(shape, Format.PACKED, 1), Layout((1,), Format.FLOAT32, 32, side=True)

    def quantize(self, x, generator):
        if not x.isfinite().all():
            raise NumericsError("not finite")
        scale = x.detach().float().abs().mean().reshape(1)
        return [Section.codes((x < 0).to(torch.uint8).numpy(), 1), Section.float32(scale.numpy(), side=True)]

    def restore(self, sections):
        return (1 - 2 * torch.from_numpy(sections[0].values).float()) * float(sections[1].values[0])
'''


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A folder of its own, on a machine where nothing is set."""
    for name in [name for name in os.environ if name.startswith("TSFLORA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TSFLORA_DEVICE", "cpu")
    monkeypatch.setenv("TSFLORA_WORKERS", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def params(tmp_path):
    """A study of seconds, in which nothing diverges."""
    training = {**study_values()["training"], "rounds": 2, "optimizer": {"lr": 0.02}}
    return write_params(tmp_path, backbone={"weights": "bundled"}, training=training)


def write_params(folder, **changes):
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(study_values(**changes)))
    return path


def plugin(folder, code=SIGN):
    (folder / "my_codec.py").write_text(code)
    return folder / "my_codec.py"


def tsflora(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments):
    outcome = tsflora(*arguments)
    assert outcome.exit_code == 0, outcome.stderr
    return outcome.stdout


def fails_in_one_line(*arguments):
    outcome = tsflora(*arguments)
    assert outcome.exit_code == 1, outcome.output
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in outcome.output
    return line


# --- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_what_it_takes(name):
    shown = " ".join(succeeds(name, "--help").split())
    command = COMMANDS[name]
    assert len(command.get_short_help_str(60)) > 20
    assert not command.get_short_help_str(60).endswith("..."), "its first sentence is its line in the list of commands"
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text, parameter.name
        assert " ".join(text.split())[:40] in shown, parameter.name


def test_help_waits_for_no_numerical_library():
    code = "import sys; from tsflora.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in outcome.stdout for name in COMMANDS)
    assert not {"torch", "numpy", "pandas", "pydantic", "matplotlib"} & set(outcome.stdout.split())


def test_the_command_is_a_module_too():
    outcome = subprocess.run([sys.executable, "-m", "tsflora", "ls", "x"], capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: unknown sort of component 'x'")


# --- check


def test_check_counts_what_is_done(tmp_path, params):
    cells = StudyConfig.read(params).cells()
    shown = succeeds("check")
    assert f"{params.name}: test, 8 runs; 2 methods, seeds 0, 1" in shown
    assert shown.count(" 0/2 ") == 4
    assert "0 of 8 planned runs are in." in shown
    done = [cell for cell in cells if (cell.method_key, cell.partition_name) == ("fed_lora", "skewed")]
    done += [cell for cell in cells if (cell.method_key, cell.partition_name, cell.seed) == ("sflora_8bit", "iid", 1)]
    records = [
        make_record(cell.method_key, partition=cell.partition_name, seed=cell.seed, config=cell.dump()) for cell in done
    ]
    write_jsonl(records, tmp_path / "results" / "test" / "records.jsonl")
    for record in records:
        record.write(tmp_path / "folder" / f"{record.method}-{record.seed}.json")
    for given in ([], ["--records", tmp_path / "folder"], ["--records", tmp_path / "results/test/records.jsonl"]):
        lines = succeeds("check", params, *given).splitlines()
        rows = {line.split()[0]: line.split()[1:3] for line in lines if "/" in line}
        assert rows["fed_lora"] == ["0/2", "2/2"]
        assert rows["sflora_8bit"] == ["1/2", "0/2"]


def test_check_predicts_bytes_or_says_that_they_are_measured(tmp_path):
    methods = {
        "local": {"algorithm": "local_lora"},
        "mass": {"algorithm": "sflora", "tokens": {"name": "attention_mass", "mass": 0.5}},
        "late": {
            "algorithm": "sflora",
            "tokens": {"name": "top_k_merge", "n_tokens": 30},
            "scheduler": "deadline",
        },
        "periodic": {"algorithm": {"name": "split_lora", "mode": "periodic"}},
        "central": {"algorithm": "central"},
        "sflora": {"algorithm": "sflora"},
    }
    sweep = {"bits": {"base": "sflora", "vary": {"quantizer": ["float16", "float32"]}, "partitions": ["iid"]}}
    shown = succeeds("check", write_params(tmp_path, methods=methods, sweeps=sweep)).splitlines()
    rows = {line.split("  ")[0]: line.split() for line in shown}
    assert rows["local"][-2:] == ["0", "0"]
    for name in ("mass", "late", "periodic"):
        assert rows[name][-2:] == ["measured", "measured"]
    assert rows["central"][-2] == "once"
    assert rows["sweep bits"][2] == "0/2", "of one partition, and float32 is the method itself"
    low, high = map(float, rows["sflora"][-2].split("–"))  # 24 images on each device, or 40 in the mean
    assert 0.5 < float(rows["sweep bits"][-2]) / low < 0.6
    assert 1.5 < high / low < 1.7


def test_check_predicts_hours(params):
    shown = succeeds("check", "--hours", 1)
    assert shown.count(" s\n") + shown.count(" min\n") == 2
    assert "All of it takes about " in shown


def test_predicted_bytes_are_those_of_the_committed_records():
    study = StudyConfig.read(ROOT / "params.yaml")
    shape = dataset_shape(study.datasets["digits"])
    records = [run for run in read_jsonl(ROOT / "results/digits/records.jsonl").complete if run.seed == 0]
    assert len(records) > 20
    measured = set()
    for record in records:
        cell = run_of(record)
        try:
            found = round_traffic(cell, shape)
        except MeasuredError:
            measured.add(record.method)
            continue
        once = cell.method.plan.uploads == "samples"
        device_rounds = len(record.shard_sizes) if once else sum(len(entry.participants) for entry in record.history)
        for predicted, name in ((found.uplink_bytes, "uplink_bytes"), (found.downlink_bytes, "downlink_bytes")):
            sent = sum(sum(getattr(entry, name).values()) for entry in record.history)
            assert device_rounds * predicted == sent, (record.method, name)
    assert measured == {"central_jpeg"}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"sedes": [1]}, "params.yaml.sedes: unknown key; did you mean 'seeds'?"),
        ({"cut": 9}, "cut: given 9; allowed with the 6 blocks of vit_micro_patch4_28: 1 to 5"),
        ({"methods": {"m": {"algorithm": "sflora", "tokens": {"name": "random", "n_tokens": 99}}}}, "n_tokens"),
        ({"backbone": {"name": "vit_none", "weights": "random"}}, "timm has no model 'vit_none'"),
        ({"datasets": {"d": {"name": "image_folder", "path": "/nowhere"}}}, "there is no folder /nowhere"),
    ],
)
def test_check_finds_what_a_study_cannot_have(tmp_path, changes, part):
    assert part in fails_in_one_line("check", write_params(tmp_path, **changes))


def test_a_study_that_is_not_there_is_one_line(tmp_path):
    for command in (["check"], ["run"], ["compare", "--quantizer", "float16"], ["report", ".", "--output", "x.html"]):
        line = fails_in_one_line(*command)
        assert f"there is no params.yaml in {tmp_path}; name a study's params.yaml, or go to its folder" in line
    assert "nowhere.jsonl: cannot be read" in fails_in_one_line(
        "check", write_params(tmp_path), "--records", "nowhere.jsonl"
    )


def test_a_wrong_environment_is_one_line(params, monkeypatch):
    monkeypatch.setenv("TSFLORA_WORKER", "2")
    for command in (["check"], ["run"], ["compare", "--quantizer", "float16", "--against", "fed_lora"]):
        assert "did you mean 'TSFLORA_WORKERS'?" in fails_in_one_line(*command)


# --- ls


def test_ls_lists_every_sort_with_its_options(tmp_path):
    shown = succeeds("ls")
    for title in ("algorithms", "quantizers", "token-reducers", "data-sources", "image-codecs", "tasks"):
        assert f"\n{title}\n" in f"\n{shown}"
    assert '      variant: signed | magnitude, default "signed"\n' in shown
    one = succeeds("ls", "quantizer", "--plugin", plugin(tmp_path))
    assert one.startswith("quantizers\n  float32: ")
    assert "      bits: int, from 1 to 16, required\n" in one
    assert "  sign: One bit per entry and one scale per tensor.\n" in one
    assert "algorithms" not in one
    assert succeeds("ls", "token reducers") == succeeds("ls", "token_reducer")


def test_what_ls_cannot_list_is_one_line(tmp_path):
    assert "unknown sort of component 'quantisers'; did you mean 'quantizers'?" in fails_in_one_line("ls", "quantisers")
    assert "(" in fails_in_one_line("ls", "--plugin", plugin(tmp_path, "1 / 0"))


# --- run


def test_run_trains_once_and_says_what_came_out(params, tmp_path):
    command = ["run", params, "--method", "sflora_8bit", "--partition", "iid", "--seed", 1, "--dataset", "digits"]
    command += ["--records-dir", tmp_path / "records", "--checkpoint-dir", tmp_path / "checkpoints"]
    shown = succeeds(*command)
    (path,) = (tmp_path / "records").rglob("*.json")
    record = RunRecord.read(path)
    assert shown.startswith(f"sflora_8bit on digits, iid, seed 1: accuracy {record.final.accuracy:.4f} (")
    assert " MiB up and " in shown
    written = path.read_bytes()
    assert list((tmp_path / "checkpoints").iterdir())
    assert succeeds(*command) == shown
    assert path.read_bytes() == written


def test_run_fails_where_a_run_failed(params, monkeypatch):
    def diverging(cell, settings, progress, record_path):
        if cell.seed == 1:
            raise NumericsError("round 1, device 0: the loss is nan")
        return make_record(cell.method_key, config=cell.dump(), seed=cell.seed)

    monkeypatch.setattr(runs, "run", diverging)
    outcome = tsflora("run", params, "--method", "fed_lora", "--partition", "iid")
    assert outcome.exit_code == 1
    assert "fed_lora on digits, iid, seed 0: accuracy 0.5" in outcome.stdout
    assert "fed_lora on digits, iid, seed 1: failed, round 1, device 0: the loss is nan" in outcome.stdout
    line = fails_in_one_line("run", params, "--method", "fed_lora", "--partition", "iid", "--seed", 1)
    assert "1 of 1 runs failed" in line


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["--method", "fed_lor"], "unknown method 'fed_lor'; did you mean 'fed_lora'?"),
        (["--partition", "iidd"], "unknown partition 'iidd'; did you mean 'iid'?"),
        (["--dataset", "digit"], "unknown dataset 'digit'; did you mean 'digits'?"),
        (["--seed", "-1"], "seeds: whole numbers from 0; given: -1"),
        (["--seed", "1", "--seed", "1"], "each one once; given: [1, 1]"),
        (["--records-dir", "params.yaml"], "params.yaml"),
    ],
)
def test_what_run_cannot_run_is_one_line(params, given, part):
    assert part in fails_in_one_line("run", *given)


# --- compare


def test_compare_sets_a_quantizer_beside_others(params, tmp_path):
    mine = plugin(tmp_path)
    command = ["compare", mine, "--quantizer", "sign", "--against", "fed_lora", "--against", "sflora_8bit"]
    shown = succeeds(*command)
    assert "Method" in shown
    assert "SFLora (sign) minus FedLoRA" in shown
    assert "SFLora (sign) minus sflora_8bit" in shown
    assert "Uplink, activations (MiB)" in shown
    folder = tmp_path / "compare"
    for name in ("accuracy.csv", "accuracy.md", "accuracy.tex", "differences.md", "traffic.csv", "tradeoff.png"):
        assert (folder / name).stat().st_size > 0
    records = {(run.method, run.seed): run for run in load_records(folder / "records").complete}
    assert records.keys() == {(key, seed) for key in ("mine", "fed_lora", "sflora_8bit") for seed in (0, 1)}
    assert records["mine", 0].config["method"]["quantizer"] == {"name": "sign"}
    numbers = pd.read_csv(folder / "differences.csv").set_index("reference")
    for other in ("fed_lora", "sflora_8bit"):
        mine, others = ([records[key, seed].final.accuracy or 0 for seed in (0, 1)] for key in ("mine", other))
        assert numbers.loc[other, "difference"] == pytest.approx((sum(mine) - sum(others)) / 2)

    before = {path.name: path.stat().st_mtime_ns for path in (folder / "records").rglob("*.json")}
    assert succeeds(*command) == shown
    assert before == {path.name: path.stat().st_mtime_ns for path in (folder / "records").rglob("*.json")}
    plugin(tmp_path, SIGN.replace("abs().mean()", "abs().amax()"))
    succeeds(*command)
    again = {(run.method, run.seed): run for run in load_records(folder / "records").complete}
    for key, record in records.items():
        assert (again[key] == record) == (key[0] != "mine"), "what changed is trained again, and nothing else"


def test_compare_takes_a_whole_method_or_one_of_the_study(params, tmp_path):
    whole = "{label: Mine, algorithm: sflora, tokens: {name: random, n_tokens: 9}}"
    here = ["--against", "fed_lora", "--seed", 1, "--output", tmp_path / "out"]
    assert "Mine minus FedLoRA" in succeeds("compare", "--method", whole, *here)
    assert "sflora_8bit minus FedLoRA" in succeeds("compare", "--method", "sflora_8bit", *here)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ([], "what is your method? give --quantizer NAME, or --method with YAML as in params.yaml"),
        (["--quantizer", "sign", "--method", "{}"], "what is your method?"),
        (["--quantizer", "sgn"], "unknown quantizer 'sgn'"),
        (["--quantizer", "{name: uniform, bits: 99}"], "uniform.bits: Input should be less than or equal to 16"),
        (["--quantizer", "[1"], "--quantizer is not YAML"),
        (["--method", "sflora_8bits"], "did you mean 'sflora_8bit'?"),
        (["--method", "7"], "or a key; given: 7"),
        (["--method", "{algorithm: sfloro}"], "unknown algorithm 'sfloro'"),
        (["--method", "sflora_8bit", "--against", "sflora_8bit"], "this is your method itself"),
        (["--quantizer", "float16", "--against", "sflor"], "unknown method 'sflor'"),
        (["--quantizer", "float16", "--against", "fed_lora", "--partition", "nobody"], "unknown partition 'nobody'"),
        (["nowhere.py", "--quantizer", "sign"], "'nowhere.py' cannot be read"),
    ],
)
def test_what_compare_cannot_compare_is_one_line(params, given, part):
    assert part in fails_in_one_line("compare", *given)


# --- report


def test_report_joins_what_is_there(params, tmp_path):
    write_table(pd.DataFrame({"Method": ["mine"], "digits": ["93.1"]}), tmp_path / "study" / "accuracy")
    shown = succeeds("report", "study", "--output", "page.html", "--title", "My page")
    assert shown.startswith("1 tables and figures, ")
    assert "My page" in (tmp_path / "page.html").read_text()
    assert "93.1" in (tmp_path / "page.html").read_text()
    assert "nowhere is no folder" in fails_in_one_line("report", "nowhere", "--output", "page.html")


# --- test-plugin

PARTITION = '''
from tsflora.data import Partition, partitions


@partitions.register
class Everything(Partition):
    """Everybody holds everything."""

    name = "everything"

    def assign(self, labels, n_devices, generator):
        return [generator.permutation(len(labels)) for _ in range(n_devices)]
'''
SCHEDULER = '''
from tsflora.federation import Scheduler, schedulers


@schedulers.register
class First(Scheduler):
    """Forgets all but the first."""

    name = "first"

    def plan(self, terms, round_, devices, before):
        return {devices[0]: terms.plan}
'''
CODEC = '''
from tsflora.compression import TokenCodec, codecs
from tsflora.compression.codec import TokenSender


class Sender(TokenSender):
    def judge(self, seen, draw):
        tokens = super().judge(seen, draw)
        return tokens.like(tokens.rows() + 1)


@codecs.register
class Optimist(TokenCodec):
    """Judges what never arrives."""

    name = "optimist"
    examples = ({},)

    def sender(self):
        return Sender(self)
'''


def test_a_plug_in_that_conforms_is_ok(tmp_path):
    assert succeeds("test-plugin", plugin(tmp_path)) == "quantizer sign {}: ok\n"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (SIGN.replace("if not x", "if False and not x"), "quantize of nan has to raise NumericsError, and does not"),
        (SIGN.replace("1 - 2 *", "1 - 3 *"), None),
        (SIGN.replace("x.detach()", "x.fill_(1)"), "quantize writes into the tensor that it is given"),
        (SIGN.replace("* float(sections[1].values[0])", "+ 1"), "zero is not exact"),
        (SIGN.replace('    """One bit per entry and one scale per tensor."""\n', ""), "it has no docstring"),
        (SIGN.replace("x < 0", "y < 0"), "raises NameError: name 'y' is not defined ("),
        (PARTITION, "an image is on two devices"),
        (SCHEDULER, "devices (0, 2, 3) were drawn, and [0] are planned for"),
        (CODEC, "from equal states, what arrives is what is judged, and here it is not"),
    ],
)
def test_what_does_not_conform_is_a_sentence(tmp_path, code, sentence):
    outcome = tsflora("test-plugin", plugin(tmp_path, code))
    if sentence is None:  # a worse quantizer is one all the same
        assert outcome.exit_code == 0, outcome.output
        return
    assert outcome.exit_code == 1
    (line,) = outcome.stdout.splitlines()
    assert sentence in line


def test_a_file_that_is_no_plug_in_is_one_line(tmp_path):
    assert "registers no component" in fails_in_one_line("test-plugin", plugin(tmp_path, "x = 1"))
    assert "my_codec.py:1)" in fails_in_one_line("test-plugin", plugin(tmp_path, "1 / 0"))
    assert "'nowhere.py' cannot be read" in fails_in_one_line("test-plugin", "nowhere.py")


def test_the_suite_holds_where_python_skips_asserts(tmp_path):
    path = plugin(tmp_path, SIGN.replace("if not x", "if False and not x"))
    command = [sys.executable, "-O", "-m", "tsflora", "test-plugin", str(path)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert "quantize of nan has to raise NumericsError, and does not" in outcome.stdout


def test_the_file_of_an_installed_package_is_tested_as_it_is(tmp_path, monkeypatch):
    """Its components are there before the file is named; loading it again would give their names twice."""
    path = plugin(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(path.stem)
    try:
        assert succeeds("test-plugin", path) == "quantizer sign {}: ok\n"
    finally:
        Registry.forget(path.stem)
        del sys.modules[path.stem]
