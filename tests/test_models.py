"""Split equals whole, adapters through peft, weights from everywhere."""

import copy

import pytest
import timm
import torch
from conftest import small_config
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from tsflora.compression import Tokens
from tsflora.errors import ConfigError, WeightsError
from tsflora.models import (
    BackboneConfig,
    LoraConfig,
    WholeModel,
    add_lora,
    average,
    backbones,
    load_backbone,
    own_copy,
    read_adapter,
    set_adapter,
    split,
)
from tsflora.models.adapters import trainable

MICRO = BackboneConfig(weights="random")


def lora_model(n_classes: int = 10, rank: int = 4):
    model = load_backbone(MICRO, n_classes, seed=0).model
    add_lora(model, LoraConfig(rank=rank), seed=0)
    # B starts at zero, which would hide the adapters from every comparison.
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05, generator=generator)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 28, 28, generator=generator), torch.arange(6)


@pytest.mark.parametrize("cut", range(1, 6))
def test_split_equals_whole_forward_and_gradients_at_every_cut(batch, cut):
    images, labels = batch
    whole = lora_model()
    device, server = split(whole, cut)
    cross_entropy(whole(images), labels).backward()

    activations = device(images).tokens.values
    received = activations.detach().requires_grad_()
    logits = server(Tokens(received))
    cross_entropy(logits, labels).backward()
    activations.backward(received.grad)

    torch.testing.assert_close(logits, whole(images), atol=1e-5, rtol=1e-5)
    expected = {name: p.grad for name, p in trainable(whole).items()}
    parts = {**trainable(device), **trainable(server)}
    # Blocks keep their names across the cut, so the parts' adapters together are the whole model's.
    found = {name.removeprefix("vit."): parameter.grad for name, parameter in parts.items()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_whole_model_is_the_two_parts(batch):
    whole = lora_model()
    device, server = split(whole, 3)
    torch.testing.assert_close(WholeModel(device, server)(batch[0]), whole(batch[0]), atol=1e-5, rtol=1e-5)


def test_padding_is_never_seen(batch):
    """Each of a ragged batch gets the logits, and its tokens the gradients, that it gets alone."""
    _, back = split(lora_model(), 2)
    lengths = torch.tensor([50, 7, 1])
    values = torch.randn(3, 50, 64, generator=torch.Generator().manual_seed(0))
    values[torch.arange(50) >= lengths.unsqueeze(1)] = 1e3
    padded = values.clone().requires_grad_()
    logits = back(Tokens(padded, lengths))
    logits.square().sum().backward()
    assert padded.grad is not None
    for sample, length in enumerate(lengths.tolist()):
        alone = values[sample : sample + 1, :length].clone().requires_grad_()
        own = back(Tokens(alone))
        own.square().sum().backward()
        torch.testing.assert_close(logits[sample], own[0], atol=1e-5, rtol=1e-5)
        assert alone.grad is not None
        torch.testing.assert_close(padded.grad[sample, :length], alone.grad[0], atol=1e-5, rtol=1e-4)
        assert not padded.grad[sample, length:].any()


def test_a_token_of_two_patches_counts_for_both():
    """Proportional attention: softmax(QK + log s) over a token of size s is softmax over s copies of it."""
    _, back = split(lora_model(), 5)  # one block: after it the copies would differ from the token by their own output
    tokens = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    twice = torch.cat([tokens, tokens[:, 4:]], dim=1)
    sized = back(Tokens(tokens, sizes=torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0]])))
    torch.testing.assert_close(sized, back(Tokens(twice)), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(sized, back(Tokens(tokens)), atol=1e-3)


def test_device_holds_nothing_of_the_server():
    whole = lora_model()
    device, server = split(whole, 2)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (device, server)]
    assert sum(sizes) == sum(p.numel() for p in whole.parameters())
    assert len(device.vit.blocks) == 2
    assert len(server.vit.blocks) == 4
    assert not any("head" in name for name, _ in device.named_parameters())


@pytest.mark.parametrize("cut", [0, 6, 7])
def test_a_cut_outside_the_model_says_what_is_allowed(cut):
    with pytest.raises(ConfigError, match=f"cut: {cut} is outside the model; it has 6 blocks, allowed: 1 to 5"):
        split(lora_model(), cut)


def test_cls_attention_is_that_of_the_last_device_block_with_its_lora(batch):
    device, _ = split(lora_model(), 2)
    seen = []
    block = device.vit.blocks[-1]
    block.attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    row = device(batch[0]).cls_attention
    b, n, d = seen[0].shape
    q, k, _ = block.attn.qkv(seen[0]).reshape(b, n, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
    full = (q @ k.transpose(-1, -2) / (d // 4) ** 0.5).softmax(-1)
    torch.testing.assert_close(row, full[:, :, 0].detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(row.sum(-1), torch.ones(b, 4))
    assert not row.requires_grad


def test_only_lora_and_head_are_trained_and_they_start_alike_at_every_cut():
    model = load_backbone(MICRO, 10, seed=0).model
    add_lora(model, LoraConfig(rank=4), seed=7)
    names = list(trainable(model))
    assert all(".lora_" in name or name.startswith("head.") for name in names)
    # rank x (in + out) of qkv, fc1, fc2 in six blocks of dim 64, and the head
    assert sum(p.numel() for p in trainable(model).values()) == 6 * 4 * (64 + 192 + 64 + 256 + 256 + 64) + 650
    again = load_backbone(MICRO, 10, seed=0).model
    add_lora(again, LoraConfig(rank=4), seed=7)
    other = load_backbone(MICRO, 10, seed=0).model
    add_lora(other, LoraConfig(rank=4), seed=8)
    for name, parameter in trainable(model).items():
        assert torch.equal(parameter, trainable(again)[name])
        if ".lora_A." in name:
            assert not torch.equal(parameter, trainable(other)[name])


def test_building_models_leaves_the_global_random_stream_alone():
    before = torch.random.get_rng_state()
    add_lora(load_backbone(MICRO, 10, seed=0).model, LoraConfig(), seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_unknown_lora_target_names_the_layers_there_are():
    with pytest.raises(ConfigError, match="no block has a layer 'fc3'; did you mean 'fc"):
        add_lora(load_backbone(MICRO, 10, seed=0).model, LoraConfig(targets=("fc3",)), seed=0)


def test_average_is_the_hand_computed_weighted_mean():
    first, second = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([5.0, -2.0])}
    assert average([first, second], [1.0, 3.0])["a"].tolist() == [4.0, -1.0]


def test_own_copy_shares_the_frozen_tensors_only():
    device, _ = split(lora_model(), 2)
    mine = own_copy(device)
    for (name, theirs), (_, own) in zip(device.named_parameters(), mine.named_parameters(), strict=True):
        assert (own is theirs) == (not theirs.requires_grad), name
    set_adapter(mine, {name: torch.zeros_like(tensor) for name, tensor in read_adapter(mine).items()})
    assert any(tensor.abs().sum() > 0 for tensor in read_adapter(device).values())


def test_set_adapter_refuses_other_names():
    device, server = split(lora_model(), 2)
    with pytest.raises(ValueError, match="other tensors"):
        set_adapter(device, read_adapter(server))


def test_position_embedding_is_resampled_to_another_image_size(tmp_path):
    small = load_backbone(MICRO, 10, seed=0)
    path = tmp_path / "weights.safetensors"
    save_file({k: v for k, v in small.model.state_dict().items() if not k.startswith("head.")}, path)
    large = load_backbone(BackboneConfig(weights=str(path), image_size=56), 10, seed=0)
    assert large.n_patches == 196
    assert large.model.pos_embed.shape == (1, 197, 64)
    assert torch.equal(large.model.pos_embed[:, 0], small.model.pos_embed[:, 0])
    assert large.model(torch.zeros(1, 3, 56, 56)).shape == (1, 10)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "needs one origin of its weights"),
        ({"weights": "random", "pretrained": True}, "needs one origin"),
        ({"name": "vit_tiny_patch16_224", "weights": "bundled"}, "bundled exists for 'vit_micro_patch4_28' only"),
        ({"weights": "random", "wieghts": 1}, "did you mean 'weights'"),
    ],
)
def test_backbone_config_errors_are_one_line(values, line):
    with pytest.raises(ConfigError, match=line) as caught:
        BackboneConfig.parse(values, "backbone")
    assert "\n" not in str(caught.value)


def test_unknown_backbone_suggests_one():
    with pytest.raises(ConfigError, match="did you mean 'vit_tiny_patch16_224'"):
        load_backbone(BackboneConfig(name="vit_tiny_patch16_2244", weights="random"), 10, seed=0)


@pytest.mark.parametrize(
    ("name", "lack"),
    [
        ("resnet18", "it is no timm VisionTransformer"),
        ("vit_relpos_base_patch16_224", "it is no timm VisionTransformer"),
        ("vit_base_patch16_siglip_224", "it has 0 tokens beside its patches"),
        ("vit_small_patch14_reg4_dinov2", "it has 5 tokens beside its patches"),
        ("deit_tiny_distilled_patch16_224", "it has 2 tokens beside its patches"),
        ("vit_small_patch16_18x2_224", "it is made of ParallelThingsBlock, not Block"),
        ("vit_base_patch16_xp_224", "it is made of ParallelScalingBlock, not Block"),
        # Its patches come from a network with batch norms, whose running statistics move in training.
        ("vit_small_resnet26d_224", "it is made of HybridEmbed, not PatchEmbed"),
    ],
)
@pytest.mark.parametrize("origin", [{"weights": "random"}, {"pretrained": True}])
def test_models_without_what_the_split_needs_are_refused(name, lack, origin):
    with pytest.raises(ConfigError) as caught:
        load_backbone(BackboneConfig(name=name, **origin), 10, seed=0)
    assert str(caught.value) == (
        f"backbone {name!r} cannot be split: {lack}; "
        "needed: timm's plain Vision Transformer with one CLS token that is pooled"
    )


@pytest.mark.parametrize(
    ("options", "lack"),
    [
        ({"attn_layer": "diff"}, "its blocks attend by DiffAttention, not Attention"),
        ({"global_pool": "avg"}, "it pools its tokens by 'avg'"),
        ({"img_size": (28, 56)}, "not square"),
    ],
)
def test_options_of_a_registered_model_are_held_to_what_the_split_needs(options, lack, monkeypatch):
    register = timm.models._registry._model_entrypoints[MICRO.name]
    monkeypatch.setitem(
        timm.models._registry._model_entrypoints, MICRO.name, lambda **kwargs: register(**{**kwargs, **options})
    )
    with pytest.raises(ConfigError, match=lack):
        load_backbone(MICRO, 10, seed=0)


def test_nothing_frozen_moves_in_training(batch):
    images, labels = batch
    whole = WholeModel(*split(lora_model(), 2))
    assert not any(part.training for half in (whole.front, whole.rest) for part in half.modules())
    moving = trainable(whole)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    optimizer = torch.optim.SGD(moving.values(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(whole(images), labels).backward()
        optimizer.step()
    after = whole.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(moving)
    # And nothing that would behave otherwise in training: the same batch gives the same in both modes.
    torch.testing.assert_close(copy.deepcopy(whole).train()(images), whole.eval()(images), atol=0, rtol=0)


def test_impossible_image_size_is_refused():
    with pytest.raises(ConfigError, match="multiple of the patch size 4"):
        load_backbone(BackboneConfig(weights="random", image_size=30), 10, seed=0)


@pytest.mark.parametrize("size", [100_000, 10**12])
@pytest.mark.parametrize("origin", [{"weights": "random"}, {"weights": "bundled"}, {"pretrained": True}])
def test_an_image_size_beyond_the_memory_is_refused_before_anything_is_built(size, origin, monkeypatch):
    monkeypatch.setattr(backbones, "usable_memory_bytes", lambda: 2**33)
    with pytest.raises(ConfigError) as caught:
        load_backbone(BackboneConfig(image_size=size, **origin), 10, seed=0)
    line = str(caught.value)
    assert f"image_size: {size} makes {(size // 4) ** 2 + 1} tokens" in line
    assert "this machine has 8.0 GiB of memory" in line
    assert "\n" not in line


@pytest.mark.parametrize("rank", [257, 10**9, 10**30])
def test_a_rank_above_every_side_of_the_layers_is_refused(rank):
    with pytest.raises(ConfigError, match=f"lora.rank: {rank} is above every side .*; allowed: 1 to 256"):
        add_lora(load_backbone(MICRO, 10, seed=0).model, LoraConfig(rank=rank), seed=0)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"name": "vit_tiny_patch16_224.nope", "weights": "random"}, "Invalid pretrained tag (nope)"),
        ({"name": "vit_base_patch16_gap_224", "weights": "random"}, "cannot be split"),
        ({"name": "vit_base_patch32_plus_256", "pretrained": True}, "there are no pretrained weights of it"),
    ],
)
def test_what_timm_has_not_is_not_blamed_on_the_hub(values, line):
    with pytest.raises(ConfigError) as caught:
        load_backbone(BackboneConfig(**values), 10, seed=0)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_weights_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors.*TSFLORA_WEIGHTS_DIR") as caught:
        load_backbone(BackboneConfig(weights="nowhere.safetensors"), 10, seed=0, weights_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_hub_out_of_reach_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"could not be fetched from the hub.*weights: FILE") as caught:
        load_backbone(BackboneConfig(name="vit_tiny_patch16_224", pretrained=True), 10, seed=0)
    assert "\n" not in str(caught.value)


def test_small_config_is_valid():
    assert copy.deepcopy(small_config()).cut == 2
