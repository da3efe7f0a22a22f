"""An exported model is the one that was judged, and timm and peft load it without this package."""

import json
import os
import re
from pathlib import Path

import numpy as np
import peft
import pytest
import timm
import torch
from conftest import small_config
from factories import make_record
from methods import CENTRAL, EVERY_ALGORITHM, TSFLORA
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import interpolate
from typer.testing import CliRunner

from tsflora.cli import app
from tsflora.errors import CheckpointError, ConfigError, DataError, StorageError
from tsflora.experiment import checkpoints_of, run
from tsflora.export import Form, export
from tsflora.federation import evaluation
from tsflora.records import RunRecord

METHODS = {
    **{name: EVERY_ALGORITHM[name] for name in ("fed_lora", "split_lora", "sflora_v1", "tsflora")},
    "frozen": {"algorithm": {"name": "sflora", "frozen": True}},
    **CENTRAL,
}
TINY = "vit_tiny_patch16_224"


def config_of(method=TSFLORA, **changes):
    """A round of training that changes every adapter, under a scale that is not 1."""
    training = {**small_config().dump()["training"], "rounds": 1, "optimizer": {"lr": 0.02}}
    values = {"backbone": {"weights": "bundled"}, "lora": {"rank": 4, "alpha": 12}, "training": training}
    return small_config(method, **{**values, **changes})


@pytest.fixture
def judged(monkeypatch):
    """What each model that a run judges puts out with compression off: its test logits, in the order of judging."""
    means = []
    init, add = evaluation.Mean.__init__, evaluation.Mean.add

    def begin(self, terms):
        init(self, terms)
        self.seen = []
        means.append(self)

    def keep(self, outputs, targets):
        self.seen.append(outputs.clone())
        add(self, outputs, targets)

    monkeypatch.setattr(evaluation.Mean, "__init__", begin)
    monkeypatch.setattr(evaluation.Mean, "add", keep)
    return lambda: [torch.cat(off.seen) for off in means[1::2]]


@pytest.fixture
def trained(settings, tmp_path):
    """Run and say where the record lies."""

    def train(config):
        path = tmp_path / "record.json"
        run(config, settings, record_path=path)
        return path

    return train


def header(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["tsflora"])


def outputs(model, images, facts):
    """Logits of images as whoever downloads the file would get them: by its header alone."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    size, normal = facts["image_size"], [torch.tensor(facts[key]).view(3, 1, 1) for key in ("mean", "std")]
    x = interpolate(x, (size, size), mode=facts["interpolation"], antialias=True).clamp(0, 1)
    with torch.no_grad():
        return model.eval()((x - normal[0]) / normal[1])


def accuracy(logits, labels):
    return (logits.argmax(1).numpy() == labels).mean()


def exported(path, tmp_path, settings, **options):
    """Both forms, each loaded as the printed line says, and the facts in their headers, which agree."""
    file, folder = tmp_path / "model.safetensors", tmp_path / "adapter"
    as_timm = export(path, file, settings=settings, **options)
    as_peft = export(path, folder, "peft", settings=settings, **options)
    assert {part.name for part in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    facts = header(file)
    assert header(folder / "adapter_model.safetensors") == facts
    return [eval(line, {"timm": timm, "peft": peft}) for line in (as_timm, as_peft)], facts


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_both_forms_are_the_model_that_was_judged(settings, tmp_path, trained, judged, method):
    config = config_of(method)
    path = trained(config)
    record, (expected,) = RunRecord.read(path), judged()
    models, facts = exported(path, tmp_path, settings)
    _, test = config.dataset.load(None)
    for model in models:
        logits = outputs(model, test.images, facts)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert accuracy(logits, test.labels) == pytest.approx(record.final.accuracy_uncompressed)


def test_each_device_has_its_model_where_devices_train_alone(settings, tmp_path, trained, judged):
    path = trained(config_of({"algorithm": "local_lora"}))
    record, expected = RunRecord.read(path), judged()
    _, test = config_of().dataset.load(None)
    accuracies = []
    for device, logits in enumerate(expected):
        folder = tmp_path / str(device)
        models, facts = exported(path, folder, settings, device=device)
        assert facts["device"] == device
        assert "accuracy" not in facts, "the record has the mean over devices"
        for model in models:
            found = outputs(model, test.images, facts)
            torch.testing.assert_close(found, logits, atol=1e-5, rtol=0)
        accuracies.append(accuracy(found, test.labels))
    assert len(accuracies) == 4
    assert np.mean(accuracies) == pytest.approx(record.final.accuracy_uncompressed)
    for wrong, given in ((None, "none"), (4, "4"), (-1, "-1")):
        with pytest.raises(ConfigError, match=f"a model for each device; given: {given}; allowed: 0 to 3"):
            export(path, tmp_path / "x.safetensors", device=wrong, settings=settings)


def test_a_stock_model_at_another_size_with_weights_from_a_file(settings, tmp_path, trained, judged):
    weights = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(TINY).state_dict(), weights)
    backbone = {"name": TINY, "image_size": 32, "weights": str(weights)}
    path = trained(config_of({"algorithm": "sflora"}, backbone=backbone))
    (expected,) = judged()
    models, facts = exported(path, tmp_path, settings)
    _, test = config_of().dataset.load(None)
    assert facts["image_size"] == 32, "not that of the data"
    for model in models:
        torch.testing.assert_close(outputs(model, test.images, facts), expected, atol=1e-5, rtol=0)


def test_the_state_dict_is_timms_own(settings, tmp_path, trained):
    path = trained(config_of(backbone={"weights": "random"}))
    file = tmp_path / "model.safetensors"
    export(path, file, settings=settings)
    plain = VisionTransformer(28, 4, num_classes=10, embed_dim=64, depth=6, num_heads=4)
    plain.load_state_dict(load_file(file), strict=True)
    again = tmp_path / "again.safetensors"
    export(path, again, settings=settings)
    assert again.read_bytes() == file.read_bytes()
    with pytest.raises(ConfigError, match="nobody else has the random weights"):
        export(path, tmp_path / "adapter", "peft", settings=settings)


def test_the_header_says_what_a_user_has_to_know(settings, tmp_path, trained):
    path = trained(config_of())
    record, file = RunRecord.read(path), tmp_path / "model.safetensors"
    export(path, file, settings=settings)
    facts = header(file)
    assert facts["backbone"] == "vit_micro_patch4_28"
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert (facts["dataset"], facts["method"], facts["seed"], facts["rounds"]) == ("digits", "under_test", 1, 1)
    assert facts["accuracy"] == record.final.accuracy
    assert record.basis is not None
    assert facts["weights_sha256"] == record.basis.weights_sha256
    assert str(tmp_path) not in json.dumps(facts), "it is for publishing"


def test_a_run_that_went_on_is_exported_after_its_own_last_round(settings, tmp_path, trained):
    path = trained(config_of())
    longer = {**config_of().dump()["training"], "rounds": 2}
    short = path.rename(tmp_path / "short.json")
    trained(config_of(training=longer))
    export(path, tmp_path / "model.safetensors", settings=settings)
    assert header(tmp_path / "model.safetensors")["rounds"] == 2
    with pytest.raises(CheckpointError, match=r"no checkpoint of the run's last round, 1, is in "):
        export(short, tmp_path / "short.safetensors", settings=settings)


def test_a_checkpoint_that_is_gone_or_not_the_runs_is_one_line(settings, tmp_path, trained):
    config = config_of()
    path = trained(config)
    record, file = RunRecord.read(path), tmp_path / "model.safetensors"

    def refused(match, where=path, **changes):
        with pytest.raises(CheckpointError, match=match) as error:
            export(where, file, settings=settings.model_copy(update=changes))
        assert "\n" not in str(error.value)
        assert not file.exists()

    again = "run PARAMS --dataset digits --method under_test --partition iid --seed 1 --records-dir NEW"
    refused(f"last round, 1, is in .*elsewhere.*{again}", checkpoint_dir=tmp_path / "elsewhere")
    refused(f"no folder of checkpoints is given.*{again}", checkpoint_dir=None)
    assert record.final.train_loss is not None
    assert record.basis is not None
    other = record.final.model_copy(update={"train_loss": record.final.train_loss + 1e-9})
    record.model_copy(update={"history": (other,)}).write(tmp_path / "other.json")
    refused("is of this run on another machine", tmp_path / "other.json")
    store = checkpoints_of(config, record.basis, settings.checkpoint_dir)
    checkpoint = store.latest(1)
    assert checkpoint is not None
    (intact,) = store.folder.iterdir()
    intact.unlink()
    store.save(1, {name: t for name, t in checkpoint.state.items() if "head" not in name}, checkpoint.history)
    refused("does not fit this version of the run")
    (damaged,) = store.folder.iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-1])
    refused("no checkpoint of the run's last round")
    record.model_copy(update={"config": {**record.config, "sweep": "bits"}}).write(tmp_path / "sweep.json")
    refused("train the sweep 'bits' again", tmp_path / "sweep.json")


def test_other_weights_or_images_than_the_runs_are_refused(settings, tmp_path, trained):
    weights = tmp_path / "tiny.safetensors"
    config = config_of(backbone={"name": "vit_micro_patch4_28", "weights": str(weights)})
    state = timm.create_model("vit_micro_patch4_28", num_classes=10).state_dict()
    save_file(state, weights)
    path = trained(config)
    save_file({name: tensor + 1 for name, tensor in state.items()}, weights)
    with pytest.raises(DataError, match=r"with other files than .*; weights_sha256: \w+ then, \w+ now"):
        export(path, tmp_path / "model.safetensors", settings=settings)


STUDIES = (Path(__file__).parent.parent / "docs" / "studies.md").read_text()


def test_the_studies_page_exports_and_loads(settings, tmp_path, tsflora, capsys):
    section = STUDIES.split("## Use a model elsewhere\n")[1].split("\n## ")[0]
    commands = re.findall(r"^tsflora export (.*)$", section, re.MULTILINE)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    path = tmp_path / commands[0].split()[0]
    here = settings.model_copy(update={"checkpoint_dir": tmp_path / "build" / "checkpoints"})
    record = run(config_of(), here, record_path=path)
    for command in commands:
        assert tsflora(*command.split()).exit_code == 0
    names: dict[str, object] = {}
    exec(compile(code, "studies.md", "exec"), names)
    assert capsys.readouterr().out.startswith(f"{record.final.accuracy_uncompressed} ['0', '1', ")
    _, test = config_of().dataset.load(None)
    merged, adapted = (outputs(names[name], test.images, names["facts"]) for name in ("model", "same"))
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=0)
    assert accuracy(merged, test.labels) == pytest.approx(record.final.accuracy_uncompressed)


# --- the command


@pytest.fixture
def tsflora(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("TSFLORA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["export", *map(str, arguments)])


def error_of(outcome):
    assert outcome.exit_code == 1, outcome.output
    assert "Traceback" not in outcome.output
    (line,) = outcome.stderr.splitlines()
    return line.removeprefix("error: ")


def test_the_command_writes_and_says_how_to_load(settings, tmp_path, trained, tsflora, monkeypatch):
    path = trained(config_of())
    given = tsflora(path, "a.safetensors", "--checkpoint-dir", settings.checkpoint_dir)
    assert given.exit_code == 0, given.stderr
    load = "timm.create_model('vit_micro_patch4_28', num_classes=10, checkpoint_path='a.safetensors')"
    assert given.stdout == f"written: a.safetensors; load it by {load}\n"
    (tmp_path / "build").mkdir()
    settings.checkpoint_dir.rename(tmp_path / "build" / "checkpoints")
    assert tsflora(path, "b.safetensors").exit_code == 0, "where the stages keep them"
    (tmp_path / "build" / "checkpoints").rename(tmp_path / "kept")
    monkeypatch.setenv("TSFLORA_CHECKPOINT_DIR", "kept")
    outcome = tsflora(path, "models/c", "--format", "peft")
    assert outcome.stdout.startswith("written: models/c; load it by peft.PeftModel.from_pretrained(timm.create_model(")
    assert sorted(part.name for part in (tmp_path / "models").iterdir()) == ["c"]


def test_what_the_command_cannot_export_is_one_line(settings, tmp_path, trained, tsflora):
    path, there = trained(config_of()), ("--checkpoint-dir", settings.checkpoint_dir)
    make_record(status="failed", error="round 1: the loss is nan").write(tmp_path / "failed.json")
    (tmp_path / "foreign.json").write_text('{"a": 1}')
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    (tmp_path / "taken").mkdir()
    for arguments, part in (
        (["none.json", "m.safetensors"], "none.json: cannot be read"),
        (["failed.json", "m.safetensors"], "of a run that failed (round 1: the loss is nan); only a complete one"),
        (["foreign.json", "m.safetensors"], "foreign.json is not a run record"),
        ([path, "m.safetensors"], f"is in {os.path.join('build', 'checkpoints')}"),  # noqa: PTH118
        ([path, "taken.safetensors", *there], "taken.safetensors exists; remove it, or choose another name"),
        ([path, "taken", "--format", "peft", *there], "taken exists; remove it, or choose another name"),
        ([path, "m.pt", *there], "m.pt is no name for a state dict; allowed: a file that ends in .safetensors"),
        ([path, "m.safetensors", "--device", 0, *there], "one model for all devices; given: 0; leave it out"),
        ([path, "taken.safetensors/m.safetensors", *there], "cannot write taken.safetensors/m.safetensors"),
        ([path, "taken.safetensors/m", "--format", "peft", *there], "cannot write taken.safetensors/m"),
        ([path, "m.safetensors", "--plugin", "nowhere.py", *there], "'nowhere.py' cannot be read"),
    ):
        assert part in error_of(tsflora(*arguments))
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"
    assert not list((tmp_path / "taken").iterdir())
    wrong = tsflora(path, "m.safetensors", "--format", "onnx")
    assert wrong.exit_code == 2
    assert "'onnx' is not one of 'timm', 'peft'" in wrong.stderr


def test_a_folder_that_cannot_be_filled_leaves_nothing(settings, tmp_path, trained, monkeypatch):
    path = trained(config_of())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    forms: tuple[tuple[str, Form], ...] = (("m.safetensors", "timm"), ("m", "peft"))
    for output, form in forms:
        before = set(tmp_path.iterdir())
        with pytest.raises(StorageError, match="No space left on device"):
            export(path, tmp_path / output, form, settings=settings)
        assert set(tmp_path.iterdir()) == before
