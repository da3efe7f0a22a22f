"""Memory, part by part: what is measured without data equals what real tensors keep, and grows as it should."""

import weakref
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tsflora.analysis.costs.activations import Attention, Precision, front_bytes, kept_bytes, step_bytes
from tsflora.analysis.costs.deployment import Deployment, Workload
from tsflora.analysis.costs.memory import Memory, MemoryConfig, device_memory, server_memory
from tsflora.analysis.costs.shape import VitShape
from tsflora.compression import TokenCodec, Tokens, token_reducers
from tsflora.errors import ConfigError
from tsflora.experiment import MethodConfig
from tsflora.federation.training import OptimizerConfig
from tsflora.models import LoraConfig, WholeModel, add_lora, split
from tsflora.models.micro import MICRO_NAME

MICRO = VitShape.of(MICRO_NAME, n_classes=10)
TINY = VitShape.of("vit_tiny_patch16_224", n_classes=7, image_size=64)
REDUCERS = [
    {"name": name, **options}
    for name, cls in token_reducers.classes().items()
    for options in cls.examples
    if token_reducers.build({"name": name, **options}).n_transmitted(49) is not None
]
FROZEN = {"name": "sflora", "frozen": True}


def deployment(
    vit: VitShape = MICRO,
    algorithm: object = "sflora",
    tokens: object = "all",
    cut: int = 2,
    batch: int = 8,
    rank: int = 4,
) -> Deployment:
    work = Workload(n_samples=3 * batch, batch_size=batch)
    plan = MethodConfig.parse({"algorithm": algorithm, "tokens": tokens}).plan
    return Deployment(vit, plan, cut, LoraConfig(rank=rank), work)


def top_k(n_tokens: int) -> dict[str, object]:
    return {"name": "top_k_merge", "n_tokens": n_tokens}


def real_parts(what: Deployment):
    """The parts with real weights on the CPU."""
    import timm  # only after tsflora.models, which makes it importable beside a CPU-only torch

    with torch.random.fork_rng(devices=[]):
        vit = timm.create_model(what.vit.backbone, num_classes=what.vit.n_classes, img_size=what.vit.image_size)
    add_lora(vit, what.lora, seed=0)
    return split(vit, what.cut)


def real_kept_bytes(what: Deployment, part: str, precision: Precision, attention: Attention) -> int:
    front, back = real_parts(what)
    module = {"front": front, "back": back, "whole": WholeModel(front, back)}[part]
    vit, batch, gradient = what.vit, what.workload.batch_size, what.plan.gradient is not None
    images = torch.rand(batch, 3, vit.image_size, vit.image_size)
    tokens = torch.rand(batch, what.n_tokens, vit.dim, requires_grad=gradient)
    labels = torch.arange(batch) % vit.n_classes
    exclude = [*module.parameters(), *module.buffers(), images, tokens, labels]
    if part == "front":
        assert isinstance(what.plan.codec, TokenCodec)
        return front_bytes(module, exclude, images, what.plan.codec.tokens, gradient, precision, attention)
    return step_bytes(module, exclude, Tokens(tokens) if part == "back" else images, labels, precision, attention)


@pytest.mark.parametrize("attention", ["fused", "unfused"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("vit", [MICRO, TINY], ids=["micro", "tiny"])
def test_without_data_as_with_real_tensors(vit: VitShape, precision: Precision, attention: Attention) -> None:
    config = MemoryConfig(precision=precision, attention=attention)
    reduced = deployment(vit, tokens=top_k(9), batch=3)
    frozen = deployment(vit, FROZEN, tokens=top_k(9), batch=3)
    whole = deployment(vit, "local_lora", batch=3)
    measured = [
        (reduced, "front", device_memory),
        (reduced, "back", server_memory),
        (frozen, "front", device_memory),
        (frozen, "back", server_memory),
        (whole, "whole", device_memory),
    ]
    real = [real_kept_bytes(what, part, precision, attention) for what, part, _ in measured]
    fake = [count(what, config) for what, _, count in measured]
    assert [memory.activations_bytes for memory in fake] == real


@pytest.mark.parametrize("options", REDUCERS, ids=str)
def test_every_reducer_is_measured_without_data(options: dict) -> None:
    what = deployment(tokens=options, batch=3)
    assert device_memory(what).activations_bytes == real_kept_bytes(what, "front", "fp32", "fused")


def test_a_storage_counts_once_and_a_view_as_all_it_keeps_alive() -> None:
    weight = nn.Parameter(torch.ones(4, 5))
    inputs = torch.ones(3, 5, requires_grad=True)

    def forward() -> tuple[torch.Tensor]:
        hidden = inputs @ weight.t()  # keeps inputs and weight, both excluded; hidden has 3 x 4 entries
        return ((hidden[:1] * hidden[1:2]).sum(),)  # keeps two views of hidden; the sum is returned

    assert kept_bytes(forward, [weight, inputs]) == 4 * (12 + 1)
    assert kept_bytes(forward, [weight]) == 4 * (12 + 1 + 15)
    assert kept_bytes(forward) == 4 * (12 + 1 + 15 + 20)
    with torch.no_grad():
        assert kept_bytes(forward, [weight, inputs]) == 4 * (12 + 1)  # measuring does not depend on the caller


class LiveStorages(TorchDispatchMode):
    """Bytes of all storages that operators have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.note(tensor for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor))
        return result

    def note(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, n_bytes = storage._cdata, storage.nbytes()
            if key not in self._alive:
                self._alive.add(key)
                self.n_bytes += n_bytes
                weakref.finalize(storage, self._gone, key, n_bytes)

    def _gone(self, key: int, n_bytes: int) -> None:
        self._alive.remove(key)
        self.n_bytes -= n_bytes


@pytest.mark.parametrize("algorithm", ["sflora", FROZEN, "local_lora"], ids=str)
def test_the_parts_add_up_to_what_lives_after_the_second_forward_pass(algorithm: object) -> None:
    what = deployment(algorithm=algorithm)
    behind_a_cut = what.plan.uploads == "tokens"
    front, back = real_parts(what)
    module = back if behind_a_cut else WholeModel(front, back)
    with LiveStorages() as live, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        live.note([*module.parameters(), *module.buffers()])
        optimizer = OptimizerConfig().build(p for p in module.parameters() if p.requires_grad)
        for _ in range(2):
            inputs: Tensor | Tokens = torch.rand(8, 3, 28, 28)
            if behind_a_cut:
                inputs = Tokens(torch.rand(8, 50, 64).requires_grad_(what.plan.gradient is not None))
            labels = torch.zeros(8, dtype=torch.int64)
            logits = module(inputs)
            loss = cross_entropy(logits, labels)
            found = live.n_bytes
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del logits, loss, inputs, labels
    memory = server_memory(what) if behind_a_cut else device_memory(what)
    collected = 4 * what.adapter_entries * 11 if behind_a_cut else 0
    assert found == memory.total_bytes - collected


def test_a_frozen_device_holds_its_weights_and_what_it_puts_out() -> None:
    """After a forward pass without gradients: images and labels, tokens and attention, and what is sent of them."""
    what = deployment(algorithm=FROZEN, tokens=top_k(20))
    front, _ = real_parts(what)
    with LiveStorages() as live, sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.no_grad():
        live.note([*front.parameters(), *front.buffers()])
        images, labels = torch.rand(8, 3, 28, 28), torch.zeros(8, dtype=torch.int64)
        seen = front(images)
        assert isinstance(what.plan.codec, TokenCodec)
        reduced = what.plan.codec.tokens.reduce(seen, torch.Generator())
        found = live.n_bytes
    memory = device_memory(what)
    assert found == memory.total_bytes
    assert (memory.adapters_bytes, memory.gradients_bytes, memory.optimizer_bytes) == (0, 0, 0)
    assert memory.inputs_bytes == images.nbytes + labels.nbytes
    assert memory.activations_bytes < device_memory(deployment(tokens=top_k(20))).activations_bytes / 10
    assert reduced.tokens.values.shape == (8, 20, 64)


def test_the_server_of_frozen_devices_keeps_less_of_its_first_block_and_no_adapters() -> None:
    trained, frozen = (server_memory(deployment(algorithm=name)) for name in ("sflora", FROZEN))
    assert frozen.activations_bytes < trained.activations_bytes
    assert trained.adapters_bytes - frozen.adapters_bytes == 11 * 4 * deployment().adapter_entries
    assert (frozen.weights_bytes, frozen.optimizer_bytes) == (trained.weights_bytes, trained.optimizer_bytes)


@pytest.mark.parametrize("algorithm", ["sflora", FROZEN, "local_lora", "fed_lora"], ids=str)
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_adapters_gradients_and_optimizer_are_those_of_the_deployment(algorithm: object, cut: int) -> None:
    what = deployment(algorithm=algorithm, cut=cut)
    adapter_bytes = 4 * what.adapter_entries
    at_cut_bytes = 4 * 8 * what.n_tokens * what.vit.dim if what.plan.gradient is not None else 0
    for buffers in (0, 1, 2):
        memory = device_memory(what, MemoryConfig(optimizer_buffers=buffers))
        assert memory.adapters_bytes == adapter_bytes
        assert memory.gradients_bytes == adapter_bytes + at_cut_bytes
        assert memory.optimizer_bytes == buffers * adapter_bytes


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_the_parts_hold_the_weights_of_the_whole(cut: int) -> None:
    both = deployment(cut=cut)
    whole = device_memory(deployment(algorithm="local_lora", cut=cut))
    device, server = device_memory(both), server_memory(both, MemoryConfig(participants=1))
    assert device.weights_bytes + server.weights_bytes == whole.weights_bytes
    exchanged = 2 * device.adapters_bytes
    assert device.adapters_bytes + server.adapters_bytes - exchanged == whole.adapters_bytes


def test_weights_are_counted_from_the_real_model() -> None:
    device, server = real_parts(deployment())
    for part, memory in ((device, device_memory(deployment())), (server, server_memory(deployment()))):
        assert memory.weights_bytes == 4 * sum(p.numel() for p in part.parameters() if not p.requires_grad)


def test_more_images_or_blocks_need_more_on_the_device() -> None:
    by_batch = [device_memory(deployment(batch=batch)) for batch in (2, 4, 8)]
    assert by_batch[0].total_bytes < by_batch[1].total_bytes < by_batch[2].total_bytes
    first, second, third = (memory.activations_bytes for memory in by_batch)
    assert 2 * (second - first) == third - second  # linear in the batch
    by_cut = [(device_memory(deployment(cut=cut)), server_memory(deployment(cut=cut))) for cut in range(1, 6)]
    device, server = zip(*((d.total_bytes, s.activations_bytes) for d, s in by_cut), strict=True)
    assert list(device) == sorted(set(device))
    assert list(server) == sorted(set(server), reverse=True)


def test_fewer_tokens_relieve_the_server_and_leave_the_device_its_blocks() -> None:
    full, reduced = deployment(), deployment(tokens=top_k(20))
    server_full, server_reduced = server_memory(full), server_memory(reduced)
    assert server_reduced.activations_bytes == pytest.approx(server_full.activations_bytes * 20 / 50, rel=0.01)
    assert server_reduced.inputs_bytes < server_full.inputs_bytes
    assert server_reduced.weights_bytes == server_full.weights_bytes
    # The device's blocks see every token; the reduced sequence is a tensor of its own, the returned gradient smaller.
    device_full, device_reduced = device_memory(full), device_memory(reduced)
    sequence_bytes, row_bytes = 4 * 8 * 20 * 64, 8 * 8 * 49  # fp32 tokens; int64 or fp32 for each patch
    extra = device_reduced.activations_bytes - device_full.activations_bytes
    assert sequence_bytes < extra < sequence_bytes + 2 * row_bytes
    assert device_full.gradients_bytes - device_reduced.gradients_bytes == 4 * 8 * 30 * 64


def test_who_holds_what() -> None:
    images_bytes = 8 * (4 * 3 * 28 * 28 + 8)
    assert device_memory(deployment(algorithm="central")) == Memory(inputs_bytes=images_bytes)
    assert server_memory(deployment(algorithm="central")) == device_memory(deployment(algorithm="local_lora"))
    assert device_memory(deployment(algorithm="fed_lora")) == device_memory(deployment(algorithm="local_lora"))
    assert server_memory(deployment(algorithm="local_lora")) == Memory()
    federated = deployment(algorithm="fed_lora")
    exchanged = Memory(adapters_bytes=(1 + 3) * 4 * federated.adapter_entries)
    assert server_memory(federated, MemoryConfig(participants=3)) == exchanged
    assert device_memory(deployment()).inputs_bytes == images_bytes
    assert server_memory(deployment(tokens=top_k(20))).inputs_bytes == 8 * (4 * 20 * 64 + 8)


def test_a_total_is_the_sum_of_its_parts() -> None:
    memory = Memory(1, 2, 3, 4, 5, 6)
    assert memory.total_bytes == 21
    assert Memory(weights_bytes=3 * 2**19).total_mib == 1.5


def test_a_shard_smaller_than_a_batch_is_the_batch() -> None:
    small = Deployment(MICRO, lora=LoraConfig(rank=4), workload=Workload(n_samples=5, batch_size=64))
    assert device_memory(small) == device_memory(deployment(batch=5))


def test_the_environment_does_not_choose_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.layers import set_fused_attn

    from tsflora.analysis.costs import activations

    def measured() -> list[Memory]:
        activations.parts.cache_clear()
        activations.part_bytes.cache_clear()
        return [device_memory(deployment(), MemoryConfig(attention=kind)) for kind in ("fused", "unfused")]

    expected = measured()
    try:
        set_fused_attn(enable=False)
        assert measured() == expected
    finally:
        set_fused_attn(enable=True)
    assert expected[0] != expected[1]


def test_vit_base_near_its_rule_of_thumb() -> None:
    # 17 B N D floats a block, attention fused. Ours keeps 3 for q, k, v, 1 each for the attention's input and output,
    # the MLP's input and both LayerNorms', 4 + 4 inside the MLP: 16, less what the first block needs no gradient for.
    for patch, tokens in ((32, 50), (16, 197)):
        vit = VitShape.of(f"vit_base_patch{patch}_224", n_classes=100)
        activations = device_memory(Deployment(vit)).activations_bytes
        assert 0.85 < activations / (2 * 17 * 64 * tokens * 768 * 4) < 1


def test_bf16_keeps_less_and_its_weight_copies() -> None:
    fp32, bf16 = (device_memory(deployment(batch=64), MemoryConfig(precision=kind)) for kind in ("fp32", "bf16"))
    assert 0.5 * fp32.activations_bytes < bf16.activations_bytes < 0.8 * fp32.activations_bytes
    assert bf16.weights_bytes == fp32.weights_bytes


@pytest.mark.parametrize(
    "values", [{"precision": "fp8"}, {"attention": "flash"}, {"optimizer_buffers": -1}, {"participants": 0}]
)
def test_wrong_values_are_one_line(values: dict) -> None:
    with pytest.raises(ConfigError, match=f"memory.{next(iter(values))}") as caught:
        MemoryConfig.parse(values, "memory")
    assert "\n" not in str(caught.value)
    assert str(next(iter(values.values()))) in str(caught.value)


def test_a_target_that_the_model_lacks() -> None:
    what = Deployment(MICRO, lora=LoraConfig(targets=("qvk",)))
    with pytest.raises(ConfigError, match="qvk"):
        device_memory(what)
