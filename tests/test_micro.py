"""ViT-Micro: the model that timm builds, the weights that the package bundles, and the script that made them."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn import functional
from typer.testing import CliRunner

from tsflora.models.micro import BUNDLED_WEIGHTS, MICRO_NAME
from tsflora.seeding import torch_generator

import timm  # isort: skip  (after tsflora.models, which lets it import torchvision)

SCRIPT = Path(__file__).parents[1] / "pipelines" / "pretrain_micro.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_micro", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The model


@pytest.mark.parametrize("num_classes", [0, 1, 10, 1000])
def test_timm_builds_it_with_any_number_of_classes(num_classes: int) -> None:
    model = timm.create_model(MICRO_NAME, num_classes=num_classes)
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, num_classes or 64)


def test_without_num_classes_it_has_no_classifier() -> None:
    assert not [name for name in timm.create_model(MICRO_NAME).state_dict() if name.startswith("head")]


def test_architecture() -> None:
    model = timm.create_model(MICRO_NAME, num_classes=10)
    assert model.forward_features(torch.zeros(2, 3, 28, 28)).shape == (2, 50, 64)  # CLS + 7 × 7 patches
    assert len(model.blocks) == 6
    assert model.blocks[0].attn.num_heads == 4
    assert model.blocks[0].attn.qkv.bias.shape == (192,)
    assert model.blocks[0].mlp.fc1.out_features == 256
    assert model.global_pool == "token"


def test_configuration_says_how_images_are_normalised() -> None:
    configuration = timm.create_model(MICRO_NAME, num_classes=10).pretrained_cfg
    assert configuration["mean"] == configuration["std"] == (0.5, 0.5, 0.5)
    assert configuration["input_size"] == (3, 28, 28)


def test_another_image_size() -> None:
    model = timm.create_model(MICRO_NAME, img_size=56, num_classes=10)
    assert model.forward_features(torch.zeros(1, 3, 56, 56)).shape == (1, 197, 64)


# The bundled weights


def test_bundled_file_is_small_and_is_the_one_that_the_card_describes() -> None:
    content = BUNDLED_WEIGHTS.read_bytes()
    card = json.loads(BUNDLED_WEIGHTS.with_suffix(".json").read_text())
    assert len(content) < 2_000_000
    assert hashlib.sha256(content).hexdigest() == card["sha256"]
    assert card["model"] == MICRO_NAME


def test_card_claims_letters_only_learned_well() -> None:
    card = json.loads(BUNDLED_WEIGHTS.with_suffix(".json").read_text())
    assert len(card["classes"]) == len(set(card["classes"])) == 37
    assert "".join(card["classes"]).isalpha()
    assert not set(card["fonts"]) & set(card["held_out_fonts"])
    assert card["held_out_samples"] >= 1000
    assert 0.9 < card["held_out_accuracy"] <= 1


def test_bundled_weights_fit_but_for_the_classifier() -> None:
    state = safetensors.torch.load_file(BUNDLED_WEIGHTS)
    timm.create_model(MICRO_NAME).load_state_dict(state, strict=True)
    missing, unexpected = timm.create_model(MICRO_NAME, num_classes=10).load_state_dict(state, strict=False)
    assert sorted(missing) == ["head.bias", "head.weight"]
    assert not unexpected
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("num_classes", [0, 10])
def test_pretrained_loads_the_bundled_weights(num_classes: int) -> None:
    state = safetensors.torch.load_file(BUNDLED_WEIGHTS)
    model = timm.create_model(MICRO_NAME, pretrained=True, num_classes=num_classes)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_pretrained_at_another_image_size_resamples_only_the_position_embedding() -> None:
    state = safetensors.torch.load_file(BUNDLED_WEIGHTS)
    changed = timm.create_model(MICRO_NAME, pretrained=True, img_size=56).state_dict()
    assert changed["pos_embed"].shape == (1, 197, 64)
    assert [name for name in state if not torch.equal(changed[name], state[name])] == ["pos_embed"]


def probe_accuracy(model: torch.nn.Module) -> float:
    """Test accuracy of a linear classifier of digits on the final CLS feature, from 600 training images."""
    digits = load_digits()
    images = functional.interpolate(torch.tensor(digits.images[:1200, None] / 8 - 1).float(), size=28, mode="bilinear")
    with torch.inference_mode():
        features = model.eval()(images.expand(-1, 3, -1, -1)).numpy()
    features = (features - features[:600].mean(axis=0)) / features[:600].std(axis=0)
    probe = LogisticRegression(C=0.1, max_iter=500).fit(features[:600], digits.target[:600])
    return float(probe.score(features[600:], digits.target[600:1200]))


def test_letters_prepare_for_digits() -> None:
    torch.manual_seed(0)
    assert (
        probe_accuracy(timm.create_model(MICRO_NAME, pretrained=True))
        > probe_accuracy(timm.create_model(MICRO_NAME)) + 0.1
    )


# The script


def test_every_font_has_every_letter(script: ModuleType) -> None:
    glyphs = script.render_glyphs(script.FONTS + script.HELD_OUT_FONTS)
    assert glyphs.amax(dim=(2, 3)).min() == 255
    for font in glyphs:
        assert len(font.flatten(1).unique(dim=0)) == len(script.LETTERS)


def test_no_digit_is_rendered(script: ModuleType) -> None:
    assert script.LETTERS.isalpha()
    assert script.LETTERS.isascii()


def test_letter_stream_gives_model_input(script: ModuleType) -> None:
    images, classes = script.LetterStream(script.render_glyphs(("cmr10",)), torch_generator("letters")).draw(256)
    assert images.shape == (256, 3, 28, 28)
    assert classes.shape == (256,)
    assert images.min() == -1  # dark background
    assert images.max() <= 1
    peaks = images.amax(dim=(1, 2, 3))
    assert peaks.min() >= 0.4 - 1e-5  # strokes of intensity 0.7 to 1
    assert peaks.std() > 0.1
    # What is drawn is the letter of that class: fresh letters are near the mean of their class.
    means = torch.stack([images[classes == c, 0].mean(dim=0) for c in range(len(script.LETTERS))]).flatten(1)
    nearest = torch.cdist(images[:, 0].flatten(1), means).argmin(dim=1)
    assert (nearest == classes).float().mean() > 0.8


def run(script: ModuleType, output: Path, *more: str, seed: int = 0) -> tuple[bytes, bytes]:
    options = ["--output", str(output), "--steps", "3", "--batch", "4", "--held-out-samples", "300"]
    outcome = CliRunner().invoke(script.app, [*options, "--seed", str(seed), *more])
    assert outcome.exit_code == 0, outcome.output
    return output.read_bytes(), output.with_suffix(".json").read_bytes()


def test_script_writes_the_same_bytes_for_a_seed(script: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights, card = run(script, tmp_path / "first" / "micro.safetensors")
    torch.manual_seed(2)  # global random state has no part in it, and is left as it was
    state = torch.get_rng_state()
    assert run(script, tmp_path / "second" / "micro.safetensors") == (weights, card)
    assert torch.equal(torch.get_rng_state(), state)
    assert run(script, tmp_path / "third" / "micro.safetensors", seed=1)[0] != weights
    described = json.loads(card)
    assert described["sha256"] == hashlib.sha256(weights).hexdigest()
    assert (described["steps"], described["seed"], described["held_out_samples"]) == (3, 0, 300)
    timm.create_model(MICRO_NAME).load_state_dict(safetensors.torch.load(weights), strict=True)


def test_script_keeps_an_existing_file_unless_forced(script: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "micro.safetensors"
    output.write_bytes(b"precious")
    outcome = CliRunner().invoke(script.app, ["--output", str(output), "--steps", "1"])
    assert outcome.exit_code == 2
    assert "--force" in outcome.output
    assert output.read_bytes() == b"precious"
    assert run(script, output, "--force")[0] != b"precious"


def test_script_refuses_another_suffix(script: ModuleType, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(script.app, ["--output", str(tmp_path / "micro.json"), "--steps", "1"])
    assert outcome.exit_code == 2
    assert ".safetensors" in outcome.output
    assert not list(tmp_path.iterdir())
