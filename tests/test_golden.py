"""A golden training log: the loop may get faster or simpler, but not different, without somebody saying so.

`golden.json` holds losses, accuracies and bytes of a short run of every algorithm and of every example of every
component. Where numbers are meant to change, raise the component's `revision` (or the loop's `TRAJECTORY`), then
`pytest tests/test_golden.py --golden` writes those entries anew, and none whose revisions stayed.
"""

import json
from pathlib import Path

import pytest
from conftest import small_config
from methods import CENTRAL, EVERY_ALGORITHM, TSFLORA

from tsflora.compression import adapter_codecs, codecs, gradient_codecs, mergers, quantizers, token_reducers
from tsflora.data import partitions
from tsflora.experiment import ExperimentConfig, run
from tsflora.federation import TRAJECTORY, schedulers
from tsflora.revisions import revisions_of

PATH = Path(__file__).parent / "golden.json"
DATA_DEPENDENT = ("entropy_coded", "attention_mass", "name=threshold")
"""Sizes that hang on last bits of activations, which differ from processor to processor; all others are exact."""
ALPHA = {"dirichlet": {"alpha": 0.3}}


def _examples(registry):
    return [(name, {"name": name, **options}) for name, cls in registry.classes().items() for options in cls.examples]


def _named(options):
    return " ".join(f"{key}={value}" for key, value in options.items())


def cases() -> dict[str, dict]:
    """Changes to the small configuration, by the golden entry's name."""
    methods = {**EVERY_ALGORITHM, **CENTRAL, "frozen": {**TSFLORA, "algorithm": {"name": "sflora", "frozen": True}}}
    named = {f"algorithm {name}": {"method": method} for name, method in methods.items()}
    for _, options in _examples(token_reducers):
        named[f"tokens {_named(options)}"] = {"method": {"algorithm": "sflora", "tokens": options}}
    for _, options in _examples(mergers):
        named[f"merging {_named(options)}"] = {"method": {"algorithm": "sflora", "merging": options}}
    for _, options in _examples(quantizers):
        for setting in ("quantizer", "gradient_quantizer", "adapter_quantizer"):
            named[f"{setting} {_named(options)}"] = {"method": {"algorithm": "sflora", setting: options}}
    for setting, registry in (("codec", codecs), ("gradient", gradient_codecs), ("adapter", adapter_codecs)):
        for _, options in _examples(registry):
            named[f"{setting} {_named(options)}"] = {"method": {"algorithm": "sflora", setting: options}}
    for _, options in _examples(schedulers):
        named[f"scheduler {_named(options)}"] = {"method": {**TSFLORA, "scheduler": options}}
    for algorithm in ("fed_lora", "split_lora"):
        coarse = {"algorithm": algorithm, "adapter_quantizer": {"name": "uniform", "bits": 6}}
        named[f"adapter_quantizer in {algorithm}"] = {"method": coarse}
    for name in partitions.classes():
        sizes = {} if name == "dirichlet" else {"min_samples": 24, "max_samples": 24}
        named[f"partition {name}"] = {"partition": {"name": name, **ALPHA.get(name, {}), **sizes}}
    small = small_config().dump()["training"]
    changes: dict[str, dict[str, object]] = {
        "adamw": {"optimizer": {"name": "adamw", "lr": 0.01}},
        "bf16": {"precision": "bf16"},
        "clipped": {"clip_norm": 0.5},
    }
    for name, change in changes.items():
        named[f"training {name}"] = {"training": {**small, "rounds": 1, **change}}
    named["augmentation"] = {"augment": {}}
    return named


def _config(name):
    # What a codec remembers, and what a change loses, shows in the second round.
    rounds = 2 if name.split(" ")[0] in ("algorithm", "codec", "gradient", "adapter") else 1
    training = {**small_config().dump()["training"], "rounds": rounds}
    return small_config(**{"backbone": {"weights": "bundled"}, "training": training, **cases()[name]})


def _log(settings, name):
    config = _config(name)
    record = run(config, settings.model_copy(update={"checkpoint_dir": None}))
    return {
        "trajectory": TRAJECTORY,
        "raised": {name: number for name, number in revisions_of(config, config.method.plan).items() if number > 1},
        "losses": [entry.train_loss and round(entry.train_loss, 7) for entry in record.history],
        "accuracies": [entry.accuracy for entry in record.history],
        "uplink_bytes": [entry.uplink_bytes for entry in record.history],
        "downlink_bytes": [entry.downlink_bytes for entry in record.history],
    }


@pytest.mark.parametrize("name", cases(), ids=str)
def test_training_is_what_it_was(settings, name, request):
    found = _log(settings, name)
    log = json.loads(PATH.read_text())
    expected = log.get(name, {})
    raised = any(found[key] != expected.get(key) for key in ("trajectory", "raised"))
    if request.config.getoption("--golden") and raised:
        PATH.write_text(json.dumps({**log, name: found}, indent=1, sort_keys=True) + "\n")
        return
    assert not raised, "a revision was raised, or the entry is new: write it with --golden"
    losses, wanted = ([loss or 0.0 for loss in log["losses"]] for log in (found, expected))
    assert losses == pytest.approx(wanted, rel=1e-4)
    # One of the 40 test images may fall to the other side on another processor.
    assert found["accuracies"] == pytest.approx(expected["accuracies"], abs=0.026)
    for direction in ("uplink_bytes", "downlink_bytes"):
        if any(part in name for part in DATA_DEPENDENT):
            assert found[direction] == [pytest.approx(entry, rel=0.02) for entry in expected[direction]]
        else:
            assert found[direction] == expected[direction]


def test_nothing_is_left_in_the_log_that_is_no_longer_run():
    assert json.loads(PATH.read_text()).keys() == cases().keys()


@pytest.mark.parametrize("name", cases(), ids=str)
def test_a_records_configuration_is_the_run_again(name):
    assert ExperimentConfig.parse(_config(name).dump()) == _config(name)
