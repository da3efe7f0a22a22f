"""Tokens merged inside the device's blocks: ToMe's rule by hand, each sample as alone, and bytes of what is left."""

import math

import pytest
import torch
from conftest import small_config
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from tsflora.analysis.costs import (
    Deployment,
    MeasuredError,
    VitShape,
    compute,
    device_memory,
    paper_uplink_mib,
    plan_of,
    server_memory,
    traffic,
)
from tsflora.analysis.runs.points import settings_frame
from tsflora.analysis.sizing import size_study
from tsflora.analysis.theory.measure import measure
from tsflora.compression import Kind, TokenCodec, Tokens, merge, mergers, read_frame
from tsflora.errors import ConfigError
from tsflora.experiment import assemble, run
from tsflora.federation import InProcessFleet, Message, Plan
from tsflora.federation.evaluation import evaluate
from tsflora.models import Front, own_copy, split
from tsflora.planned import MethodConfig
from tsflora.seeding import torch_generator
from tsflora.study import StudyConfig

N_PATCHES, DIM, CUT = 49, 64, 2
RULES = ({"name": "threshold"}, {"name": "fixed", "r": 8}, {"name": "random", "r": 8})
BUNDLED = {"weights": "bundled"}


def method(merging, **options):
    return {"algorithm": "sflora", "merging": merging, **options}


def ends(settings, merging):
    return assemble(small_config(method(merging), backbone=BUNDLED), settings)


def images(n, settings):
    side = assemble(small_config(backbone=BUNDLED), settings)[1]
    return side.terms.task.inputs(side.test.images[:n], side.terms.spec, side.terms.where)


def draws(*names):
    return lambda purpose: torch_generator(purpose, *names)


def by_hand(values, metric, sizes, chosen):
    """One step on one sequence in loops: ToMe's rule, tokens in the order of their places."""
    n = len(values)
    unit = [metric[i] / metric[i].norm() for i in range(n)]
    proposals = []
    for i in range(2, n, 2):
        similarities = [(float(unit[i] @ unit[j]), j) for j in range(1, n, 2)]
        similarity, j = max(similarities)
        proposals.append((similarity, i, j))
    into: dict[int, list[int]] = {}
    for _, i, j in chosen(proposals):
        into.setdefault(j, []).append(i)
    gone = {i for sources in into.values() for i in sources}
    rows, new_sizes = [], []
    for place in range(n):
        if place in gone:
            continue
        members = [place, *into.get(place, [])]
        size = sum(sizes[k] for k in members)
        total = torch.zeros(values.shape[1])
        for k in members:
            total = total + sizes[k] * values[k]
        rows.append(total / size)
        new_sizes.append(size)
    return torch.stack(rows), new_sizes


def best(r):
    return lambda proposals: sorted(proposals, reverse=True)[:r]


def above(threshold):
    return lambda proposals: [edge for edge in proposals if edge[0] > threshold]


@pytest.mark.parametrize(
    ("options", "rule"),
    [({"name": "fixed", "r": r}, best(r)) for r in (1, 3, 5)]
    + [({"name": "threshold", "thresholds": [t]}, above(t)) for t in (0.0, 0.3, 0.6, 1.0)],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_two_steps_are_the_published_rule_written_in_loops(options, rule):
    merger, batch, n, channels = mergers.build(options), 3, 18, 6
    values = torch.randn(batch, n, 5, generator=torch_generator("values"), requires_grad=True)
    first = torch.randn(batch, n, channels, generator=torch_generator("first"))
    second = torch.randn(batch, n, channels, generator=torch_generator("second"))
    once = merge(Tokens(values), first, merger, 0, torch_generator())
    assert once.lengths is not None
    twice = merge(once, second[:, : once.values.shape[1]], merger, 0, torch_generator())
    assert twice.lengths is not None
    assert twice.sizes is not None
    probe = torch.randn(batch, n, 5, generator=torch_generator("probe"))
    (twice.values * probe[:, : twice.values.shape[1]]).sum().backward()
    found = values.grad
    assert found is not None
    for image in range(batch):
        alone = values.detach()[image].clone().requires_grad_()
        rows, sizes = by_hand(alone, first[image], [1] * n, rule)
        assert once.lengths[image] == len(rows)
        rows, sizes = by_hand(rows, second[image], sizes, rule)
        assert twice.lengths[image] == len(rows)
        torch.testing.assert_close(twice.values[image, : len(rows)], rows)
        assert twice.sizes[image, : len(rows)].tolist() == sizes
        assert not twice.values[image, len(rows) :].any()
        (rows * probe[image, : len(rows)]).sum().backward()
        torch.testing.assert_close(found[image], alone.grad)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 12), min_size=1, max_size=4),
    st.floats(0, 1),
    st.sampled_from(["threshold", "fixed", "random"]),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_whatever_is_merged(lengths, threshold, name, r, seed):
    options = {"thresholds": [threshold]} if name == "threshold" else {"r": r}
    merger, longest = mergers.build({"name": name, **options}), max(lengths)
    before = Tokens(
        torch.randn(len(lengths), longest, 3, generator=torch_generator("v", seed)),
        torch.tensor(lengths),
        torch.randint(1, 5, (len(lengths), longest), generator=torch_generator("s", seed)).float(),
    )
    metric = torch.randn(len(lengths), longest, 4, generator=torch_generator("m", seed))
    after = merge(before, metric, merger, 0, torch_generator("d", seed))
    assert after.lengths is not None
    assert after.present is not None
    assert after.sizes is not None
    assert before.present is not None
    assert before.sizes is not None
    assert after.values.shape[1] == after.lengths.max()
    for length, left in zip(lengths, after.lengths.tolist(), strict=True):
        edges = (length - 1) // 2
        assert length - edges <= left <= length
        if name != "threshold":
            assert left == length - min(r, edges)
    assert after.sizes.sum(dim=1).tolist() == (before.sizes * before.present).sum(dim=1).tolist()
    assert (after.sizes[after.present] >= 1).all()
    assert not after.values[~after.present].any()
    assert not after.sizes[~after.present].any()
    assert torch.equal(after.values[:, 0], before.values[:, 0]), "CLS comes through to the bit"
    assert torch.equal(after.sizes[:, 0], before.sizes[:, 0])
    # A mean of all that is there, weighted by sizes, is what it was.
    sums = [
        (values * sizes.unsqueeze(2)).sum(dim=1)
        for values, sizes in ((before.values, before.sizes * before.present), (after.values, after.sizes))
    ]
    torch.testing.assert_close(*sums, atol=1e-4, rtol=1e-4)


def test_a_token_like_its_neighbour_is_merged_below_one_and_not_at_one():
    metric = torch.ones(1, 5, 7) / 3
    for threshold, left in ((0.999, 3), (1.0, 5)):
        merger = mergers.build({"name": "threshold", "thresholds": [threshold]})
        assert merge(Tokens(torch.randn(1, 5, 2)), metric, merger, 0, torch_generator()).values.shape[1] == left


def test_each_block_has_its_own_threshold():
    metric = normalize(torch.randn(1, 20, 3, generator=torch_generator("m")), dim=2)
    merger = mergers.build({"name": "threshold", "thresholds": [1.0, 0.0]})
    left = [merge(Tokens(torch.randn(1, 20, 2)), metric, merger, block, torch_generator()) for block in (0, 1)]
    assert left[0].values.shape[1] == 20
    assert left[1].values.shape[1] < 20


# In bf16 the last bits of keys depend on the batch, so there thresholds are not crossed by the same edges.
@pytest.mark.parametrize(("rule", "precision"), [(RULES[0], "fp32"), (RULES[1], "fp32"), (RULES[1], "bf16")], ids=str)
def test_a_sample_of_a_batch_gets_what_it_gets_alone(settings, rule, precision):
    _, side = ends(settings, rule)
    front, back, inputs = own_copy(side.front), own_copy(side.back), images(4, settings)
    with torch.no_grad():
        # LoRA's B is zero at the start, and A would get no gradient.
        for name, parameter in front.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch_generator(name)))
    trained = [parameter for parameter in front.parameters() if parameter.requires_grad]

    def through(batch):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            tokens = front(batch).tokens
            logits = back(tokens).float()
        return tokens, logits, torch.autograd.grad(logits.square().sum(), trained)

    together, logits, gradients = through(inputs)
    parts = [through(inputs[image : image + 1]) for image in range(4)]
    assert together.lengths is not None
    assert not together.values[~together.present].any()
    if rule["name"] == "threshold":
        assert len(set(together.lengths.tolist())) > 1
    assert together.lengths.tolist() == [int(tokens.lengths) for tokens, _, _ in parts]
    atol, rtol = (1e-5, 1e-4) if precision == "fp32" else (0.1, 0.1)
    for image, (tokens, alone, _) in enumerate(parts):
        length = tokens.values.shape[1]
        torch.testing.assert_close(together.values[image, :length], tokens.values[0], atol=atol, rtol=rtol)
        assert together.sizes[image, :length].tolist() == tokens.sizes[0].tolist()
        torch.testing.assert_close(logits[image], alone[0], atol=atol, rtol=rtol)
    if precision == "fp32":
        for index, gradient in enumerate(gradients):
            torch.testing.assert_close(gradient, sum(part[2][index] for part in parts), atol=1e-4, rtol=1e-3)


def test_nothing_is_merged_at_one_and_every_edge_at_zero(settings):
    inputs = images(4, settings)
    with torch.no_grad():
        plain = ends(settings, None)[1].front(inputs)
        none, every = (
            ends(settings, {"name": "threshold", "thresholds": [threshold]})[1].front(inputs).tokens
            for threshold in (1.0, 0.0)
        )
    torch.testing.assert_close(none.values, plain.tokens.values, atol=1e-5, rtol=1e-5)
    assert none.lengths.tolist() == [50] * 4
    assert torch.equal(none.sizes, torch.ones(4, 50))
    assert every.lengths.tolist() == [14] * 4, "50, 26, 14 with CLS protected"
    assert every.sizes.sum(dim=1).tolist() == [50] * 4
    assert (every.sizes[:, 0] == 1).all()


def test_attention_after_a_step_weighs_tokens_by_their_sizes(settings):
    """Where equal tokens are merged, the next block's CLS is that of the tokens one by one."""
    front = own_copy(ends(settings, None)[1].front)
    vit, inputs = front.vit, torch.zeros(1, 3, 28, 28)
    vit.pos_embed.data[:, 1:] = vit.pos_embed.data[:, 1:2]  # all patches are alike
    with torch.no_grad():
        plain = front(inputs).tokens.values
        front.merge_by(mergers.build({"name": "threshold", "thresholds": [0.5]}))
        merged = front(inputs).tokens
    assert merged.values.shape[1] < 30
    torch.testing.assert_close(merged.values[:, 0], plain[:, 0], atol=1e-4, rtol=1e-4)


def test_without_merging_the_front_is_what_it_was(settings):
    side, inputs = ends(settings, None)[1], images(3, settings)
    with torch.no_grad():
        seen = side.front(inputs, draws("x"))
        values = side.front.vit.forward_features(inputs)  # its norm is none
    assert torch.equal(seen.tokens.values, values)
    assert seen.tokens.lengths is None
    assert seen.cls_attention is not None


@pytest.mark.parametrize("sizes", [True, False])
def test_frames_carry_the_tokens_that_are_left_and_their_sizes(settings, sizes):
    devices, side = ends(settings, {"name": "threshold", "sizes": sizes})
    device = InProcessFleet(devices).device(0)
    device.begin(Message("begin", facts={"round": 1}))
    frame = device.forward().frames["tokens"]
    rows, lengths, *others = read_frame(frame, Kind.ACTIVATIONS)
    n_tokens = int(lengths.values.sum())
    assert rows.layout.shape == (n_tokens, DIM)
    assert (lengths.layout.shape, lengths.layout.bits) == ((10,), 6)
    assert [section.layout.shape for section in others] == ([(n_tokens,)] if sizes else [])
    header = 12 + 12 + 8 * (1 + len(others)) + sum(math.ceil(6 * n / 8) for n in (10, *[n_tokens] * len(others)))
    assert len(frame) == 4 * DIM * n_tokens + header
    received = TokenCodec().receiver(side.terms.n_patches).receive(frame, 0)
    assert received.lengths is not None
    assert 10 * 14 <= n_tokens < 10 * 50
    if sizes:
        assert received.sizes is not None
        assert received.sizes.sum(dim=1).tolist() == [50] * 10
    else:
        assert received.sizes is None


def test_random_edges_come_from_the_stream_that_is_handed_in(settings):
    front, inputs = ends(settings, {"name": "random", "r": 8})[1].front, images(2, settings)
    with torch.no_grad():
        one, same, other = (front(inputs, draws(name)).tokens.values for name in ("a", "a", "b"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_run_trains_and_resumes_to_the_identical_record(settings, rule):
    longer = small_config(method(rule), backbone=BUNDLED)
    training = longer.training.model_copy(update={"rounds": 1})
    (short,) = run(longer.model_copy(update={"training": training}), settings).history
    record = run(longer, settings)
    assert short.train_loss == record.history[0].train_loss
    whole = run(longer, settings.model_copy(update={"checkpoint_dir": None}))
    assert record.comparable() == whole.comparable()
    assert record.basis is not None
    assert record.basis.revisions[f"Merger.{rule['name']}"] == 1
    for entry in record.history:
        sent, returned = entry.uplink_bytes["activations"], entry.downlink_bytes["gradients"]
        assert sent == returned
        n_tokens, rest = divmod(sent, 4 * DIM)
        assert rest == 0
        per_image = n_tokens / entry.n_samples
        assert per_image == 34 if "r" in rule else 14 < per_image < 45
    losses = [entry.train_loss or 0.0 for entry in record.history]
    assert losses[1] < losses[0]


def test_judging_without_compression_is_judging_without_merging(settings):
    _, side = ends(settings, {"name": "threshold", "thresholds": [0.0]})
    judged: list[Tokens] = []
    back = own_copy(side.back)
    back.register_forward_pre_hook(lambda _module, inputs: judged.append(inputs[0]))
    evaluate(side, side.front, back, TokenCodec().sender())
    assert len(judged) == 2 * 4
    for plain, merged in zip(judged[::2], judged[1::2], strict=True):
        assert plain.values.shape == (10, 50, DIM)
        assert plain.lengths is None
        assert merged.lengths is not None
        assert merged.lengths.tolist() == [14] * 10


def test_a_configuration_without_merging_says_nothing_of_it(settings):
    assert "merging" not in small_config().dump()["method"]
    config = small_config(method("threshold"))
    assert type(config).parse(config.dump()) == config
    assert config.digest != small_config().digest
    record = run(small_config(training={**small_config().dump()["training"], "rounds": 1}), settings)
    assert record.basis is not None
    assert not [name for name in record.basis.revisions if name.startswith("Merger.")]


def test_a_scheduled_plan_may_merge_by_another_rule(settings):
    devices, side = ends(settings, {"name": "threshold", "thresholds": [1.0]})
    base = side.terms.plan
    plan = base.model_copy(update={"merging": mergers.build({"name": "fixed", "r": 16})})
    assert Plan.decode(plan.encode(base), base) == plan
    device = InProcessFleet(devices).device(0)
    for number, frames, left in ((1, {"plan": plan.encode(base)}, 18), (2, {}, 50)):
        device.begin(Message("begin", frames, {"round": number}))
        _, lengths, _ = read_frame(device.forward().frames["tokens"], Kind.ACTIVATIONS)
        assert set(lengths.values.tolist()) == {left}
        device.end()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (method("treshold"), "did you mean 'threshold'?"),
        (method({"name": "threshold", "thresholds": [1.5]}), "less than or equal to 1; given: 1.5"),
        (method({"name": "threshold", "thresholds": [-0.1]}), "greater than or equal to 0; given: -0.1"),
        (method({"name": "threshold", "thresholds": []}), "at least 1 item"),
        (method({"name": "fixed", "r": 0}), "greater than or equal to 1; given: 0"),
        (method({"name": "fixed"}), "r: is required and was not given"),
        (
            method("threshold", algorithm="fed_lora"),
            "merging: needs a device that uploads 'tokens'; given: uploads",
        ),
        (method("threshold", algorithm="local_lora"), "given: uploads 'nothing'"),
        (method("threshold", algorithm="central"), "given: uploads 'samples'"),
        (
            method("threshold", tokens={"name": "top_k_merge", "n_tokens": 9}),
            "need codec 'tokens' with the token reducer 'all'; given: 'top_k_merge'",
        ),
        (method("threshold", tokens={"name": "attention_mass", "mass": 0.5}), "given: 'attention_mass'"),
    ],
    ids=str,
)
def test_what_cannot_be_merged_is_one_line(options, line):
    with pytest.raises(ConfigError) as error:
        MethodConfig.parse(options, "method")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("merging", "line"),
    [
        (
            {"name": "threshold", "thresholds": [0.9, 0.8, 0.7]},
            "merging.thresholds: given 3; allowed: one for each of the 2 blocks before the cut, or one for all",
        ),
        (
            {"name": "fixed", "r": 17},
            "merging.r: given 17; allowed with 49 patches and 2 blocks before the cut: 1 to 16",
        ),
    ],
    ids=str,
)
def test_what_a_model_cannot_merge_is_one_line(settings, merging, line):
    with pytest.raises(ConfigError, match=f"^{line}$"):
        assemble(small_config(method(merging)), settings)
    with pytest.raises(ConfigError, match=f"^{line}$"):
        Deployment(VitShape.of("vit_micro_patch4_28", n_classes=10), plan_of(**method(merging)))


def test_blocks_of_another_sort_are_refused(settings):
    vit = VitShape.of("vit_micro_patch4_28", n_classes=10).without_weights()
    vit.blocks[0] = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"^merging: given blocks of sort Identity; allowed: timm's Block$"):
        split(vit, 2, mergers.build("threshold"))
    assert isinstance(split(vit, 2)[0], Front)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_no_cost_is_guessed(rule, frozen):
    plan = MethodConfig.parse(method(rule, algorithm={"name": "sflora", "frozen": frozen}), "method").plan
    deployment = Deployment(VitShape.of("vit_micro_patch4_28", n_classes=10), plan)
    for cost in (traffic, compute, device_memory, server_memory, paper_uplink_mib):
        with pytest.raises(MeasuredError, match=f"with merging '{rule['name']}'"):
            cost(deployment)


def test_a_study_with_merging_is_sized_without_it(caplog):
    small = small_config().dump()
    study = StudyConfig.parse(
        {
            "name": "merged",
            "datasets": {"digits": small["dataset"]},
            "partitions": {"iid": small["partition"]},
            "backbone": small["backbone"],
            "training": small["training"],
            "methods": {"plain": {"algorithm": "sflora"}, "merged": method("threshold")},
            "seeds": [0],
        },
        "study",
    )
    assert {size.method for size in size_study(study)} == {"plain"}
    assert "left out: digits, merged, iid" in caplog.text
    frame = settings_frame([], study).set_index("method")
    assert frame.loc["merged", "selection"] == "merging threshold"
    assert frame["n_tokens"].isna().all()


def test_bounds_are_not_measured_on_merged_tokens(settings):
    _, side = ends(settings, "threshold")
    with pytest.raises(ConfigError, match=r"^measuring varies .*; given: merging 'threshold'$"):
        measure(side, [10], [8])
