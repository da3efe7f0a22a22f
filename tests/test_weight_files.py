"""Weights from files: what is wrong with which file, in one line that is the same every time."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from tsflora.errors import ConfigError, WeightsError
from tsflora.models import BackboneConfig, load_backbone

MICRO = BackboneConfig(weights="random")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return load_backbone(MICRO, 10, seed=0).model.state_dict()


def refused(path, *parts: str) -> None:
    lines = set()
    for _ in range(2):
        with pytest.raises(WeightsError) as caught:
            load_backbone(BackboneConfig(weights=str(path)), 10, seed=0)
        lines.add(str(caught.value))
    (line,) = lines
    for part in (str(path), *parts):
        assert part in line
    for unwanted in ("\n", " at 0x", "download", "learning rate", "weights_only"):
        assert unwanted not in line
    assert len(line) < 500


class Foreign:
    """Something that a pickle can hold and that is no tensor."""


def test_damaged_and_foreign_files_are_one_line(tmp_path, state):
    safe, torch_file, text = tmp_path / "w.safetensors", tmp_path / "w.pt", tmp_path / "w.txt"
    save_file(state, safe)
    content = safe.read_bytes()
    for damaged in (content[:-5], content[:30], b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{", b"<html>moved</html>"):
        safe.write_bytes(damaged)
        refused(safe, "cannot be read as weights", "needed: an intact .safetensors file")
    torch.save(state, torch_file)
    content = torch_file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"<html>moved</html>"):
        torch_file.write_bytes(damaged)
        refused(torch_file, "cannot be read as weights")
    torch.save([1, 2], torch_file)
    refused(torch_file, "holds no tensors by name")
    torch.save({"model": Foreign()}, torch_file)
    refused(torch_file, "it is no PyTorch file, or holds more than tensors")
    torch_file.write_bytes(pickle.dumps({"model": Foreign()}, protocol=2))
    refused(torch_file, "it is no PyTorch file, or holds more than tensors")
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("notes.txt", "no weights")
    refused(text, "cannot be read as weights")


def test_weights_of_another_model_are_refused(tmp_path, state):
    path = tmp_path / "other.safetensors"
    save_file({name: tensor for name, tensor in state.items() if "blocks.5" not in name}, path)
    refused(path, "does not fit the model 'vit_micro_patch4_28': 12 tensors missing", "timm's key names")
    save_file({**state, "norm.weight": state["norm.weight"][:1].clone()}, path)
    refused(path, "does not fit the model", "norm.weight")
    save_file({**state, "patch_embed.proj.weight": torch.zeros(7)}, path)
    refused(path, "does not fit the model")
    torch.save({**state, "norm.weight": "text"}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "does not fit the model", "norm.weight")


@pytest.mark.parametrize(("n_rows", "side", "others"), [(51, 7, 2), (54, 7, 5), (49, 7, 0), (198, 14, 2), (196, 14, 0)])
def test_another_number_of_prefix_tokens_is_named(tmp_path, state, n_rows, side, others):
    path = tmp_path / "prefix.safetensors"
    save_file({**state, "pos_embed": torch.zeros(1, n_rows, 64)}, path)
    refused(
        path,
        f"has {n_rows} rows, {side} x {side} patches and {others} other tokens; allowed: 1 other",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, state, value, kind):
    path = tmp_path / f"nan.{kind}"
    damaged = {name: tensor.clone() for name, tensor in state.items()}
    damaged["blocks.3.mlp.fc1.weight"][5, 5] = value
    (save_file if kind == "safetensors" else torch.save)(damaged, path)
    refused(path, "tensor 'blocks.3.mlp.fc1.weight' holds NaN or infinity")
    damaged = {**state, "head.weight": torch.full((10, 64), value)}
    (save_file if kind == "safetensors" else torch.save)(damaged, path)
    load_backbone(BackboneConfig(weights=str(path)), 10, seed=0)  # the file's head is not used


def test_home_and_variables_are_expanded(tmp_path, state, monkeypatch):
    save_file(state, tmp_path / "w.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    plain = load_backbone(BackboneConfig(weights=str(tmp_path / "w.safetensors")), 10, seed=0)
    for weights in ("~/w.safetensors", "$PLACE/w.safetensors"):
        assert load_backbone(BackboneConfig(weights=weights), 10, seed=0).weights_sha256 == plain.weights_sha256
    with pytest.raises(ConfigError, match=r"\$NO_SUCH_NAME is not set"):
        load_backbone(BackboneConfig(weights="$NO_SUCH_NAME/w.safetensors"), 10, seed=0)
