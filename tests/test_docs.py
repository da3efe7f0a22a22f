"""What the pages under docs/ show is what is there: their files run and conform, their links lead somewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import small_config
from pydantic.fields import FieldInfo

from tsflora import plugins
from tsflora.analysis.costs import Deployment, VitShape, Workload, plan_of, traffic
from tsflora.analysis.tour.anatomy import frame_fields
from tsflora.compression import (
    Kind,
    TensorCodec,
    adapter_codecs,
    codecs,
    encode_labels,
    gradient_codecs,
    measure,
    mergers,
    quantizers,
    token_reducers,
)
from tsflora.config import Component, Registry
from tsflora.conformance import N_PATCHES, cases
from tsflora.conformance.ends import draw, seen
from tsflora.data import data_sources, partitions, tasks
from tsflora.errors import DataError, FrameError
from tsflora.experiment import assemble, run
from tsflora.federation import (
    DeviceRound,
    InProcessFleet,
    OptimizerConfig,
    TrainingConfig,
    algorithms,
    schedulers,
)
from tsflora.models import LoraConfig
from tsflora.records import KINDS, Basis, Geometry, Provenance, Round, RunRecord
from tsflora.settings import Settings
from tsflora.study import StudyConfig
from tsflora.wire import MAX_CODED_ENTRIES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
EXTENDING = (DOCS / "extending.md").read_text()
EXAMPLES = {
    name: (code, yaml.safe_load(study) if study else None)
    for code, name, study in re.findall(
        r"```python\n(# (\w+\.py)\n.*?)```(?:\n\n```yaml\n(.*?)```)?", EXTENDING, re.DOTALL
    )
}
"""The files of the page by name, and the piece of a params.yaml that uses each."""
DIM = 6
"""Width of the tokens that the conformance suite makes."""
SORTS: dict[str, Registry[Any]] = {
    "sign.py": quantizers,
    "evenly.py": token_reducers,
    "centred.py": codecs,
    "strongest.py": gradient_codecs,
    "joined.py": adapter_codecs,
    "warm_up.py": schedulers,
    "largest_first.py": algorithms,
    "power_law.py": partitions,
    "arrays.py": data_sources,
    "smoothed.py": tasks,
}


@pytest.fixture
def written(tmp_path):
    """Write an example where its reader would, load it, and say where it lies."""

    def write(name: str) -> Path:
        (tmp_path / name).write_text(EXAMPLES[name][0])
        plugins.load_plugins([name], tmp_path)
        return tmp_path / name

    return write


def test_every_block_of_python_is_a_file_that_is_tested():
    assert EXAMPLES.keys() == SORTS.keys()
    assert EXTENDING.count("```python") == len(EXAMPLES)
    for registry in SORTS.values():
        assert f"`{registry.group}`" in EXTENDING


@pytest.mark.parametrize("name", SORTS)
def test_an_example_conforms(written, name):
    key, registry = written(name).stem, SORTS[name]
    assert key in registry.classes()
    found = cases(registry, of=[registry.classes()[key]])
    assert found
    for case in found:
        case.check()


@pytest.mark.parametrize("name", [name for name, (_, study) in EXAMPLES.items() if study])
def test_a_study_runs_with_an_example(written, settings, tmp_path, name):
    path, added = written(name), EXAMPLES[name][1]
    assert added is not None
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (400, 28, 28, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(400) % 10)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["training"]["rounds"] = 2 if name == "centred.py" else 1
    values = {**values, "sweeps": {}, "seeds": [0], "partitions": {"iid": "iid"}, "plugins": [path.name], **added}
    values["datasets"] = added.get("datasets", {"digits": {"name": "digits", "train_size": 200, "test_size": 50}})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    study = StudyConfig.read(tmp_path / "params.yaml")
    method = next(iter(added["methods"])) if "methods" in added else "tsflora_8bit_30"
    (cell,) = study.cells(methods=method)
    record = run(cell, settings.model_copy(update={"data_dir": tmp_path}))
    assert path.stem in cell.model_dump_json()
    assert record.final.accuracy is not None
    if name == "centred.py":
        assert record.final.downlink_bytes["control"] > 0
    if name == "power_law.py":
        assert record.shard_sizes[0] > 5 * record.shard_sizes[-1]
    if name != "smoothed.py":
        assert record.basis is not None
        assert any(path.stem in key for key in record.basis.sources) or name in ("power_law.py", "arrays.py")


def test_the_sign_takes_any_precision_and_refuses_a_foreign_scale(written):
    written("sign.py")
    sign = quantizers.build("sign")
    codec = TensorCodec(sign, Kind.ACTIVATIONS)
    x = torch.randn(4, 30, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    frame = codec.encode(x, torch.Generator())
    assert torch.equal(codec.decode(frame).sign(), x.sign())
    assert len(frame) < 4 * 30 * 64 / 8 + 64
    half = sign.dequantize(sign.quantize(x.to(torch.bfloat16), torch.Generator()))
    assert half.dtype == torch.float32, "also from a model in half precision"
    codes, scale = sign.quantize(x, torch.Generator())
    scale.values[0] = float("nan")
    with pytest.raises(FrameError, match="finite"):
        sign.dequantize([codes, scale])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_sign_takes_tensors_of_a_gpu(written):
    written("sign.py")
    sign, x = quantizers.build("sign"), torch.randn(3, 5)
    there = sign.forward(x.cuda(), torch.Generator("cuda"))
    assert there.is_cuda
    assert torch.equal(there.cpu(), sign.forward(x, torch.Generator()))


def test_fewer_bits_cost_less_once_the_mean_is_taken_off(written):
    """What the codec with memory is for: at equal bits, less error after the server told the mean."""
    written("centred.py")
    codec = codecs.build({"name": "centred", "quantizer": {"name": "uniform", "bits": 4}})
    sender, receiver = codec.sender(), codec.receiver(N_PATCHES)
    offset = 10 * torch.randn(N_PATCHES + 1, DIM, generator=torch.Generator().manual_seed(1))
    errors = []
    for step in range(2):
        x = seen(f"offset {step}")
        x.tokens.values.data += offset
        _, frame = sender.send(x, np.arange(4), draw(step))
        errors.append(float((receiver.receive(frame, 0).values - x.tokens.values).detach().norm()))
        sender.absorb(receiver.news())
    assert errors[1] < 0.5 * errors[0]


def test_a_file_that_is_no_array_is_one_line(written, tmp_path):
    written("arrays.py")
    source = data_sources.build({"name": "arrays", "file": "mine.npz"})
    for content in (None, b"PK\x03\x04 cut", b"nothing"):
        if content is not None:
            (tmp_path / "mine.npz").write_bytes(content)
        with pytest.raises(DataError, match="needs the arrays images and labels") as error:
            source.load(tmp_path)
        assert "\n" not in str(error.value)


def test_a_run_takes_the_task(written, settings):
    written("smoothed.py")
    plain, smoothed = (run(small_config(task=name), settings) for name in ("image_classification", "smoothed"))
    assert smoothed.final.train_loss != plain.final.train_loss


@pytest.mark.timeout(900)  # two test sessions of their own, which a busy machine starts slowly
def test_the_conformance_suite_takes_the_file_as_the_page_says(tmp_path):
    (command,) = re.findall(r"^tsflora (test-plugin) sign\.py$", EXTENDING, re.MULTILINE)
    path = tmp_path / "sign.py"

    def outcome(text: str):
        path.write_text(text)
        command_line = [sys.executable, "-m", "tsflora", command, str(path)]
        return subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)

    code = EXAMPLES["sign.py"][0]
    assert outcome(code).returncode == 0
    careless = outcome(code.replace("if not scale.isfinite()", "if False"))
    assert careless.returncode == 1
    assert "sign" in careless.stdout + careless.stderr
    assert outcome("1 / 0").stderr.strip() == f"error: plugins: ZeroDivisionError: division by zero ({path}:1)"


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    DOCS / "plugin_template" / "README.md",
]


def anchors(page: Path) -> set[str]:
    """What `page.md#...` may point to: headings as a renderer of Markdown names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}"


def test_the_python_of_the_deployment_page_prints_what_it_shows(monkeypatch, capsys, settings):
    monkeypatch.chdir(ROOT)
    page = (DOCS / "deployment.md").read_text()
    costs, model = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```\n(up .*?)```", page, re.DOTALL)
    exec(compile(costs, "deployment.md", "exec"), {})
    assert capsys.readouterr().out == shown
    exec(compile(model, "deployment.md", "exec"), {})
    on, predicted = capsys.readouterr().out.splitlines()
    records = map(json.loads, (ROOT / "results/digits/records.jsonl").read_text().splitlines())
    names = ("tsflora_8bit_30", "iid", 0)
    (record,) = (r for r in records if (r["method"], r["partition"], r["seed"]) == names)
    # On one kind of machine the numbers are the record's to the bit; 200 test images leave room for another's.
    assert abs(float(on.split()[0]) - record["history"][-1]["accuracy"]) < 0.02
    found, labels = (json.loads(part + "]") for part in predicted.split("]")[:2])
    assert sum(a == b for a, b in zip(found, labels, strict=True)) >= 6


def test_one_step_trains_and_sends_what_the_cost_model_says():
    command = [sys.executable, "-W", "error", str(DOCS / "one_step.py")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    (shown,) = re.findall(r"It prints:\n\n```\n(.*?)```", (DOCS / "one_step.md").read_text(), re.DOTALL)
    # The last digits of a loss may differ by machine; bytes may not.
    assert re.sub(r"loss [0-9.]+", "", output) == re.sub(r"loss [0-9.]+", "", shown)
    steps = re.findall(r"^step +(\d+)  loss ([0-9.]+)  up (\d+)  down (\d+) bytes$", output, re.MULTILINE)
    losses = [float(loss) for _, loss, *_ in steps]
    assert losses[-1] < 0.5 * losses[0]
    eight_bits = {"name": "uniform", "bits": 8}
    plan = plan_of(
        "sflora",
        tokens={"name": "top_k_merge", "n_tokens": 30},
        quantizer=eight_bits,
        gradient_quantizer=eight_bits,
    )
    expected = traffic(
        Deployment(
            VitShape.of("vit_micro_patch4_28", n_classes=10),
            plan.model_copy(update={"adapter": None}),
            cut=2,
            workload=Workload(n_samples=16, batch_size=16),
        )
    )
    assert {(int(up), int(down)) for *_, up, down in steps} == {(expected.uplink_bytes, expected.downlink_bytes)}
    n_steps = int(steps[-1][0]) + 1
    total = (
        f"{n_steps} steps: {n_steps * expected.uplink_bytes} bytes up, {n_steps * expected.downlink_bytes} bytes down"
    )
    assert output.splitlines()[-1] == total


STUDIES = (DOCS / "studies.md").read_text()


def test_the_methods_of_the_studies_page_are_methods():
    (methods,) = re.findall(r"```yaml\n(methods:.*?)```", STUDIES, re.DOTALL)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    added = yaml.safe_load(methods)["methods"]
    study = StudyConfig.parse({**values, "methods": added, "sweeps": {}}, "studies.md")
    assert {cell.method_key for cell in study.cells()} == added.keys()


def test_the_python_of_the_studies_page_runs(monkeypatch, capsys, settings):
    monkeypatch.chdir(ROOT)
    # What loads an exported model is run beside what exports one, in test_export.
    page = re.sub(r"## Use a model elsewhere\n.*?(?=\n## )", "", STUDIES, flags=re.DOTALL)
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "studies.md", "exec"), {})
    one, *records = capsys.readouterr().out.splitlines()
    assert float(one) > 0.8
    assert len(records) == 3


@pytest.mark.parametrize("cls", [RunRecord, Round, Basis, Geometry, Provenance, DeviceRound], ids=lambda c: c.__name__)
def test_every_field_of_a_record_is_explained(cls):
    for name in cls.model_fields:
        assert f"`{name}`" in STUDIES or (cls is DeviceRound and name == "device"), name
    for kind in KINDS:
        assert f"`{kind}`" in STUDIES


def test_every_setting_is_explained():
    named = set(re.findall(r"^\| `TSFLORA_(\w+)` \|", STUDIES, re.MULTILINE))
    assert named == {name.upper() for name in Settings.model_fields}


WIRE = (DOCS / "wire.md").read_text()


def frames_of_the_wire_page() -> list[bytes]:
    """Each example in words, made by the library."""
    one_hot = torch.zeros(1, 4, 16)
    one_hot[0, 0, 0] = 1
    three_bits = {"name": "uniform", "bits": 3, "rounding": "nearest"}
    coded = {"name": "entropy_coded", "quantizer": {"name": "uniform", "bits": 8, "rounding": "nearest"}}
    pairs = ((three_bits, torch.arange(8.0).reshape(1, 2, 4)), (coded, one_hot))
    return [
        encode_labels(torch.tensor([3, 1, 4, 1, 5]), 10),
        *(TensorCodec(quantizers.build(q), Kind.ACTIVATIONS).encode(x, torch.Generator()) for q, x in pairs),
    ]


@pytest.mark.parametrize("index", range(3))
def test_the_bytes_of_the_wire_page_are_those_of_a_frame(index):
    blocks = re.findall(r"```text\n(.*?)```", WIRE, re.DOTALL)
    assert len(blocks) == 3
    lines = blocks[index].splitlines()
    found = (re.match(r"((?:[0-9a-f]{2} ?)+) {2,}\S", line) for line in lines)
    shown = [match for match in found if match]
    assert len(shown) == len(lines), "each line is bytes and their meaning"
    frame = frames_of_the_wire_page()[index]
    assert b"".join(bytes.fromhex(line[1]) for line in shown) == frame
    fields = [field for field in frame_fields(frame) if field.part != "payload"]
    assert len(fields) <= len(shown)
    before = WIRE[: WIRE.index(blocks[index])].rsplit("###", 1)[1]
    assert f"{len(frame)} bytes" in before or f"frame {len(frame)}" in before


def test_the_wire_page_names_every_kind_format_and_verb(settings):
    for kind in Kind:
        assert f"{kind.value} {kind.name.lower()}" in WIRE
        assert f"\n| {kind.name.lower()} |" in WIRE
    devices, _ = assemble(small_config(), settings)
    verbs = set(re.findall(r"^\| `(\w+)` \| [a-z]", WIRE.split("## A message")[1], re.MULTILINE))
    assert verbs == set(InProcessFleet(devices).device(0)._verbs)
    for name in ("float32", "float16", "uniform", "rotated", "entropy_coded"):
        assert f"`{name}`" in WIRE
    assert f"2^{MAX_CODED_ENTRIES.bit_length() - 1} entries" in WIRE


METHODS = (DOCS / "methods.md").read_text()
ROWS = {
    (name, option): default.strip(" `")
    for name, option, default in re.findall(r"^\| `([^`]+)` \| `?([^`|]+?)`? \|([^|]*)\|", METHODS, re.MULTILINE)
}
"""Default by component and option, as the tables of the page have it."""
SHARED = {"min_samples", "max_samples", "train_size", "test_size", "held_back"}
"""Options of all partitions and all data sources, in the sentences below their tables."""


def as_shown(field: FieldInfo) -> set[str]:
    """How a table may show a default."""
    if field.is_required():
        return {"required"}
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Component):
        return {default.name}
    if isinstance(default, tuple):
        return {"Table II"} if default == schedulers.build("deadline").fractions else {"`, `".join(map(str, default))}
    return {"null", "all"} if default is None else {json.dumps(default).strip('"')}


@pytest.mark.parametrize(
    ("registry", "prefix"),
    [
        *(
            (registry, "")
            for registry in (algorithms, token_reducers, quantizers, schedulers, partitions, data_sources)
        ),
        *((registry, f"{word}: ") for registry, word in ((codecs, "codec"), (gradient_codecs, "gradient"))),
        (adapter_codecs, "adapter: "),
        (mergers, "merging: "),
    ],
    ids=lambda value: getattr(value, "sort", ""),
)
def test_the_methods_page_has_every_component_with_its_options_and_defaults(registry, prefix):
    for name, cls in registry.classes().items():
        if not cls.__module__.startswith("tsflora."):
            continue
        fields = {key: field for key, field in cls.model_fields.items() if key not in SHARED}
        rows = {option: default for (shown, option), default in ROWS.items() if shown == f"{prefix}{name}"}
        assert rows.keys() == (fields.keys() or {"–"}), name
        for key, field in fields.items():
            assert rows[key] in as_shown(field), f"{name}.{key}"
    assert not SHARED - set(re.findall(r"`(\w+)`", METHODS))


def test_the_methods_page_has_every_setting_of_training():
    section = METHODS.split("## Training\n")[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| `([a-z_.]+)` \| `(.+?)` \| [^|]+ \|$", section, re.MULTILINE))
    fields = {f"training.{name}": field for name, field in TrainingConfig.model_fields.items() if name != "optimizer"}
    fields |= {f"training.optimizer.{name}": field for name, field in OptimizerConfig.model_fields.items()}
    fields |= {f"lora.{name}": field for name, field in LoraConfig.model_fields.items()}
    fields["cut"] = StudyConfig.model_fields["cut"]
    assert shown.keys() == fields.keys()
    for name, field in fields.items():
        assert shown[name] in as_shown(field), name


def test_the_uplink_formula_of_the_methods_page_is_the_payload():
    codec = codecs.build(
        {
            "name": "tokens",
            "tokens": {"name": "top_k_merge", "n_tokens": 5},
            "quantizer": {"name": "uniform", "bits": 6},
        }
    )
    _, frame = codec.sender().send(seen("x"), np.arange(4), draw("y"))
    assert measure(frame).payload_bytes == 4 * 5 * DIM * 6 / 8
    assert "6.67 for 30 of 50 tokens at 8 bits" in METHODS
    assert round(50 * 32 / (30 * 8), 2) == 6.67


def test_the_strongest_gradients_arrive_and_the_others_are_zero(written):
    written("strongest.py")
    codec = gradient_codecs.build({"name": "strongest", "share": 0.5})
    gradient = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    gradient[[0, 2]] *= 10
    frame = codec.sender().send(gradient, 0, torch.Generator().manual_seed(0))
    arrived = codec.receiver().receive(frame, (4, 3, 5))
    step = (gradient.max() - gradient.min()) / 255
    assert (arrived[[0, 2]] - gradient[[0, 2]]).abs().max() <= step
    assert not arrived[[1, 3]].any()
