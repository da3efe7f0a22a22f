"""Compute: the closed formula against PyTorch's own counter on the real modules, and against known backbones."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tsflora.analysis.costs.compute import (
    Compute,
    backbone_forward_macs,
    block_macs,
    compute,
    compute_per_image,
    embedding_macs,
)
from tsflora.analysis.costs.deployment import Deployment, Workload, plan_of
from tsflora.analysis.costs.shape import VitShape
from tsflora.compression import TokenReducer, Tokens, token_reducers
from tsflora.errors import ConfigError
from tsflora.experiment import MethodConfig
from tsflora.federation import Plan
from tsflora.models import Back, Front, LoraConfig, WholeModel, add_lora, split

# Nine patches, five classes, and an MLP that is not four times as wide.
VIT = VitShape(
    backbone="tiny",
    image_size=12,
    patch_size=4,
    n_blocks=4,
    dim=24,
    n_heads=3,
    mlp_dim=36,
    n_patches=9,
    n_classes=5,
)
TARGETS = ("qkv", "proj", "fc1", "fc2")
REDUCERS = [
    {"name": "all"},
    {"name": "top_k_merge", "n_tokens": 10},
    {"name": "top_k_merge", "n_tokens": 6},
    {"name": "top_k_merge", "n_tokens": 2},
    {"name": "feature_norm", "n_tokens": 5, "merge": "none"},
]

# PyTorch's table of formulas lacks the CPU's fused attention, which would count as nothing; the formulas are its own.
_aten = torch.ops.aten
FUSED_ON_CPU: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, k, v
    ),
}


def parts(cut: int, lora: LoraConfig) -> tuple[Front, Back]:
    model = VisionTransformer(
        img_size=VIT.image_size,
        patch_size=VIT.patch_size,
        num_classes=VIT.n_classes,
        embed_dim=VIT.dim,
        depth=VIT.n_blocks,
        num_heads=VIT.n_heads,
        mlp_ratio=VIT.mlp_dim / VIT.dim,
    )
    add_lora(model, lora, seed=0)
    return split(model, cut)


def counted(work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` returns, and its matrix products in MACs."""
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as counter:
        result = work()
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return result, flops // 2


def counted_split(front: Front, back: Back, tokens: TokenReducer, batch: int, frozen: bool = False) -> Compute:
    """One mini-batch as `Device` and `SplitServer` train on it."""

    def forward() -> torch.Tensor:
        with torch.set_grad_enabled(not frozen):
            seen = front(torch.zeros(batch, 3, VIT.image_size, VIT.image_size))
        return tokens.reduce(seen, torch.Generator()).tokens.values

    sent, device_forward = counted(forward)
    received = sent.detach().requires_grad_(not frozen)
    logits, server_forward = counted(lambda: back(Tokens(received)))
    loss = cross_entropy(logits, torch.zeros(batch, dtype=torch.int64))
    _, server_backward = counted(loss.backward)
    device_backward = 0 if frozen else counted(lambda: sent.backward(received.grad))[1]
    return Compute(device_forward, device_backward, server_forward, server_backward)


def counted_whole(model: WholeModel, batch: int) -> tuple[int, int]:
    """Forward and backward of one mini-batch as a `Device` with the whole model trains on it."""
    logits, forward = counted(lambda: model(torch.zeros(batch, 3, VIT.image_size, VIT.image_size)))
    loss = cross_entropy(logits, torch.zeros(batch, dtype=torch.int64))
    _, backward = counted(loss.backward)
    return forward, backward


def one_batch(n_samples: int) -> Workload:
    return Workload(n_samples=n_samples, batch_size=n_samples)


def plan(options: object = "all", frozen: bool = False) -> Plan:
    return MethodConfig.parse({"algorithm": {"name": "sflora", "frozen": frozen}, "tokens": options}).plan


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("options", REDUCERS, ids=str)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_split_is_what_pytorch_counts(cut: int, options: dict, frozen: bool) -> None:
    lora, tokens = LoraConfig(rank=3), token_reducers.build(options)
    found = compute(Deployment(VIT, plan(options, frozen), cut, lora, one_batch(2)))
    assert found == counted_split(*parts(cut, lora), tokens, batch=2, frozen=frozen)
    assert (found.device_backward_macs == 0) == frozen


SETS_OF_TARGETS = [targets for n in range(1, 5) for targets in itertools.combinations(TARGETS, n)]


@pytest.mark.parametrize("targets", SETS_OF_TARGETS, ids="-".join)
def test_every_set_of_lora_targets_is_what_pytorch_counts(targets: tuple[str, ...]) -> None:
    """Where the first LoRA branch sits decides how far back block 1 goes."""
    lora, four = LoraConfig(rank=2, targets=targets), {"name": "top_k_merge", "n_tokens": 4}
    for frozen in (False, True):
        found = compute(Deployment(VIT, plan(four, frozen), 1, lora, one_batch(1)))
        assert found == counted_split(*parts(1, lora), token_reducers.build(four), batch=1, frozen=frozen)
    whole = compute(Deployment(VIT, plan_of("fed_lora"), cut=1, lora=lora, workload=one_batch(1)))
    assert (whole.device_forward_macs, whole.device_backward_macs) == counted_whole(WholeModel(*parts(1, lora)), 1)


@pytest.mark.parametrize("rank", [1, 7, 40])
@pytest.mark.parametrize("algorithm", ["local_lora", "fed_lora", "central"])
def test_whole_models_are_what_pytorch_counts(algorithm: str, rank: int) -> None:
    lora = LoraConfig(rank=rank)
    found = compute(Deployment(VIT, plan_of(algorithm), lora=lora, workload=one_batch(3)))
    expected = counted_whole(WholeModel(*parts(2, lora)), batch=3)
    if algorithm == "central":
        assert found == Compute(0, 0, *expected)
    else:
        assert found == Compute(*expected, 0, 0)


def test_the_counter_sees_attention() -> None:
    """Were attention counted as nothing, the tests above would still say something, but not this."""
    device, server = parts(2, LoraConfig(rank=3))
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as counter:
        device(torch.zeros(1, 3, VIT.image_size, VIT.image_size))
    counts = counter.get_flop_counts()["Global"]
    assert counts[_aten._scaled_dot_product_flash_attention_for_cpu] == 2 * 2 * (2 * 10**2 * VIT.dim)
    # Without the fused kernel the backward pass has its scores at hand, one product less in each block.
    every = token_reducers.build("all")
    fused = counted_split(device, server, every, batch=1)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        plain = counted_split(device, server, every, batch=1)
    product = 2 * 10**2 * VIT.dim
    assert fused.device_forward_macs == plain.device_forward_macs
    assert fused.device_backward_macs - plain.device_backward_macs == product
    assert fused.server_backward_macs - plain.server_backward_macs == product


def test_a_round_is_its_images() -> None:
    per_image = compute_per_image(Deployment(VIT))
    work = Workload(n_samples=23, batch_size=10, local_epochs=3)
    found = compute(Deployment(VIT, workload=work))
    assert found.device_forward_macs == 69 * per_image.device_forward_macs
    assert found.server_backward_macs == 69 * per_image.server_backward_macs


def test_sums_and_flops() -> None:
    found = Compute(1, 20, 300, 4000)
    assert (found.device_macs, found.server_macs, found.total_macs) == (21, 4300, 4321)
    assert (found.device_flops, found.server_flops, found.total_flops) == (42, 8600, 8642)


# GMAC of one image in the frozen blocks, cut 2, as this arithmetic gives it for the backbones of arXiv 2605.23988.
@pytest.mark.parametrize(
    ("backbone", "n_tokens", "device", "server"),
    [
        ("vit_base_patch32_224", 50, 0.83, 3.58),
        ("vit_base_patch32_224", 40, 0.83, 2.86),
        ("vit_base_patch32_224", 30, 0.83, 2.14),
        ("vit_large_patch32_224", 50, 1.42, 13.95),
        ("vit_base_patch16_224", 197, 3.02, 14.54),
        ("vit_base_patch16_224", 30, 3.02, 2.14),
    ],
)
def test_backbones_of_the_paper(backbone: str, n_tokens: int, device: float, server: float) -> None:
    tokens = {"name": "top_k_merge", "n_tokens": n_tokens}
    found = backbone_forward_macs(Deployment(VitShape.of(backbone, n_classes=10), plan(tokens)))
    assert [round(macs / 1e9, 2) for macs in found] == [device, server]


@pytest.mark.parametrize(
    ("backbone", "total"),
    [("vit_base_patch32_224", 4.41), ("vit_large_patch32_224", 15.38), ("vit_base_patch16_224", 17.56)],
)
def test_a_backbone_is_the_same_at_every_cut_whoever_runs_it(backbone: str, total: float) -> None:
    vit = VitShape.of(backbone, n_classes=10)
    found = {
        sum(backbone_forward_macs(Deployment(vit, plan_of(algorithm), cut=cut)))
        for algorithm in ("sflora", "local_lora", "fed_lora", "central")
        for cut in (1, 5, vit.n_blocks - 1)
    }
    assert [round(macs / 1e9, 2) for macs in found] == [total]


def test_the_frozen_terms_are_the_textbook_ones() -> None:
    vit = VitShape.of("vit_base_patch32_224", n_classes=10)
    assert block_macs(vit, 50) == 12 * 50 * 768**2 + 2 * 50**2 * 768
    assert embedding_macs(vit) == 49 * 768 * 3 * 32**2


def test_lora_on_the_papers_targets_costs_14_rank_tokens_dim_a_block() -> None:
    vit = VitShape.of("vit_base_patch32_224", n_classes=10)
    found = compute_per_image(Deployment(vit, lora=LoraConfig(rank=32)))
    backbone, _ = backbone_forward_macs(Deployment(vit))
    assert found.device_forward_macs - backbone == 2 * 14 * 32 * 50 * 768 + 50 * 768


def test_fewer_tokens_spare_the_server_and_not_the_device() -> None:
    def at(n_tokens: int) -> Compute:
        return compute(Deployment(VIT, plan({"name": "top_k_merge", "n_tokens": n_tokens})))

    found = [at(n_tokens) for n_tokens in range(2, 10)]
    assert len({(one.device_forward_macs, one.device_backward_macs) for one in found}) == 1
    assert all(fewer.server_macs < more.server_macs for fewer, more in itertools.pairwise(found))


def test_an_unknown_lora_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets: given 'gate'; allowed: qkv, proj, fc1, fc2"):
        compute(Deployment(VIT, lora=LoraConfig(targets=("gate",))))
