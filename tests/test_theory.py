"""The theory: identities to the last digits, bounds on whatever comes, and what the floor does not do."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_config
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tsflora.analysis.theory import (
    ConvergenceConfig,
    PerturbationModel,
    Problem,
    candidates,
    convergence_bound,
    fit_perturbation,
    gradient,
    lipschitz_estimate,
    measure,
    perturbation_bound,
    retained_attention,
    rounding_bound,
    rounding_distortion,
    scatter,
    selection_distortion,
    solve,
    total_distortion,
    unit_bound,
    uplink_bits,
)
from tsflora.compression import Quantizer, Reduced, Seen, TokenCodec, Tokens, quantizers, token_reducers
from tsflora.errors import ConfigError
from tsflora.experiment import assemble
from tsflora.federation import ServerSide
from tsflora.models.adapters import trainable
from tsflora.seeding import numpy_generator, torch_generator
from tsflora.settings import Settings

FALSE_ALARM = 1e-6
"""Chance that correct code would fail one of the statistical tests, were its seed not fixed."""

ROUNDED = 1 + 1e-6
"""Merge weights are float32, so they sum to 1 within that."""


def batch(n: int, patches: int, dim: int, seed: object = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch_generator("theory", seed)
    tokens = torch.randn(n, patches + 1, dim, generator=generator, dtype=torch.float64) + 1
    return tokens, torch.randn(n, 2, patches + 1, generator=generator).softmax(dim=2)


def reduce(tokens: torch.Tensor, attention: torch.Tensor, **options: object) -> Reduced:
    reducer = token_reducers.build({"name": "top_k_merge", **options})
    return reducer.reduce(Seen(Tokens(tokens), attention), torch_generator("reduce"))


def uniform(bits: int, **options: object) -> Quantizer:
    return quantizers.build({"name": "uniform", "bits": bits, **options})


def draws(quantizer: Quantizer, z: torch.Tensor, count: int) -> list[torch.Tensor]:
    generator = torch_generator("draws")
    return [quantizer.forward(z, generator) for _ in range(count)]


@st.composite
def reductions(draw: st.DrawFn) -> tuple[torch.Tensor, Reduced]:
    patches = draw(st.integers(2, 9))
    tokens, attention = batch(draw(st.integers(1, 3)), patches, draw(st.integers(1, 5)), draw(st.integers(0, 10**6)))
    if draw(st.booleans()):
        tokens[:, patches // 2 :] = tokens[:, -1:]  # patches that coincide
    kept, merge = draw(st.integers(0, patches)), draw(st.sampled_from(["attention", "uniform"]))
    return tokens, reduce(tokens, attention, n_tokens=min(kept + 2, patches + 1), merge=merge)


# Lemma 1


def test_scatter_by_hand() -> None:
    tokens = torch.tensor([[[9.0], [1.0], [2.0], [4.0], [8.0]]])
    attention = torch.tensor([[[0.2, 0.1, 0.3, 0.1, 0.3]]])
    reduced = reduce(tokens, attention, n_tokens=4)
    assert reduced.kept.tolist() == [[1, 3]]
    assert scatter(reduced.tokens.values, reduced).ravel().tolist() == [9.0, 2.5, 2.0, 2.5, 8.0]
    found = selection_distortion(tokens, reduced)
    assert found.measured == found.within == found.identity == pytest.approx(4.5)
    assert found.offset == 0
    assert found.diameter_bound == pytest.approx(2 * 3**2)
    assert found.norm_bound == pytest.approx(4 * 2 * 8**2)


@given(reductions())
@hypothesis_settings(max_examples=80, deadline=None)
def test_selection_distortion_is_the_identity_and_inside_both_bounds(given_: tuple[torch.Tensor, Reduced]) -> None:
    tokens, reduced = given_
    found = selection_distortion(tokens, reduced)
    # Patches that coincide leave only the rounding of the weights.
    rounding = 1e-12 * found.norm_bound
    assert found.measured == pytest.approx(found.identity, rel=1e-9, abs=1e-20)
    assert found.measured <= found.diameter_bound * ROUNDED + rounding
    assert found.diameter_bound <= found.norm_bound * ROUNDED
    assert found.within <= found.measured * ROUNDED


@given(reductions(), st.integers(0, 10**6))
@hypothesis_settings(max_examples=30, deadline=None)
def test_each_merged_token_is_best_for_its_own_distortion(given_: tuple[torch.Tensor, Reduced], seed: int) -> None:
    """Uniform weights minimise the scatter distortion, attention weights the one that the CLS query sees."""
    tokens, reduced = given_
    if reduced.kept.shape[1] == tokens.shape[1] - 1:
        return
    moved = reduced.tokens.values.clone()
    moved[:, -1] += 0.1 * torch.randn(moved[:, -1].shape, generator=torch_generator(seed), dtype=moved.dtype)
    best = selection_distortion(tokens, reduced)
    other = selection_distortion(tokens, Reduced(Tokens(moved), reduced.kept, reduced.merge_weights))
    assert best.attention_weighted < other.attention_weighted
    if bool((reduced.merge_weights.max(dim=1).values * (tokens.shape[1] - 1 - reduced.kept.shape[1]) < ROUNDED).all()):
        assert best.measured < other.measured


def test_the_attention_mean_pays_for_scatter_what_it_saves_for_cls() -> None:
    tokens, attention = batch(4, 9, 5)
    by_attention = selection_distortion(tokens, reduce(tokens, attention, n_tokens=5))
    by_mean = selection_distortion(tokens, reduce(tokens, attention, n_tokens=5, merge="uniform"))
    assert by_mean.measured < by_attention.measured
    assert by_mean.offset < 1e-12 < by_attention.offset
    assert by_attention.within == pytest.approx(by_mean.within)


def test_diameter_bound_is_of_the_right_size() -> None:
    """Half of the patches at 0 and half at 1: the distortion is a quarter of the bound, so the bound is not idle."""
    tokens = torch.zeros(1, 9, 1, dtype=torch.float64)
    tokens[:, 1:5] = 1
    reduced = reduce(tokens, torch.ones(1, 1, 9), n_tokens=2)
    found = selection_distortion(tokens, reduced)
    assert found.measured == pytest.approx(found.diameter_bound / 4)


@pytest.mark.parametrize("options", [{"name": "all"}, {"n_tokens": 10}, {"n_tokens": 10, "merge": "none"}])
def test_no_distortion_when_every_patch_travels(options: dict) -> None:
    tokens, attention = batch(2, 9, 4)
    reduced = reduce(tokens, attention, **options)
    assert torch.equal(scatter(reduced.tokens.values, reduced), tokens)
    found = selection_distortion(tokens, reduced)
    assert found.measured == found.identity == found.diameter_bound == found.norm_bound == 0


def test_samples_that_keep_different_numbers_of_patches_are_refused() -> None:
    tokens, attention = batch(4, 9, 4)
    reduced = reduce(tokens, attention, name="attention_mass", mass=0.5)
    with pytest.raises(ConfigError, match="samples that keep equally many patches; given: numbers that differ"):
        selection_distortion(tokens, reduced)


def test_dropped_patches_have_no_place_in_a_scattered_sequence() -> None:
    tokens, attention = batch(2, 9, 4)
    with pytest.raises(ConfigError, match=r"5 patches that are not kept, so 6 tokens travel; given: 5 \(merge: none"):
        selection_distortion(tokens, reduce(tokens, attention, n_tokens=5, merge="none"))


# Lemma 2

VARIANTS = [
    {},
    {"variant": "magnitude"},
    {"range": "token"},
    {"range": "channel"},
    {"variant": "magnitude", "range": "channel"},
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rounding_error_is_as_expected_and_inside_its_bound(bits: int, options: dict) -> None:
    """Hoeffding: an entry's squared error spans |1 - 2 f| Delta^2 <= Delta^2, so the mean of n draws over all entries
    strays from its expectation by more than sqrt(sum Delta^4 ln(2 / p) / (2 n)) with probability p at most."""
    z, quantizer, count = torch.randn(3, 4, 5, generator=torch_generator("z")), uniform(bits, **options), 200
    found = rounding_distortion(z, quantizer, draws(quantizer, z, count))
    values = z.abs() if "variant" in options else z
    dims = {"tensor": (0, 1, 2), "token": (2,), "channel": (0, 1)}[options.get("range", "tensor")]
    step = (values.amax(dims, keepdim=True) - values.amin(dims, keepdim=True)) / (2**bits - 1)
    step = step.double().expand_as(z)
    assert found.bound == pytest.approx(float(step.square().sum()) / 4, rel=1e-6)
    assert found.signal == pytest.approx(float(z.square().sum()))
    assert found.relative_bound == pytest.approx(found.bound / found.signal)
    allowed = math.sqrt(float(step.pow(4).sum()) * math.log(2 / FALSE_ALARM) / (2 * count))
    assert abs(found.measured - found.expected) <= allowed
    assert 0 < found.expected <= found.bound


def test_bound_in_numbers() -> None:
    z, quantizer = torch.randn(2, 3, 4, generator=torch_generator("z")), uniform(3)
    found = rounding_distortion(z, quantizer, draws(quantizer, z, 1))
    assert found.bound == pytest.approx(rounding_bound(24, float(z.min()), float(z.max()), 3), rel=1e-6)
    assert rounding_bound(8, -1.0, 2.0, 2) == 2.0
    assert math.isnan(found.standard_error)


@pytest.mark.parametrize("bits", [1, 3])
def test_bound_is_attained(bits: int) -> None:
    """All but the two ends of the range lie half way between two levels: no draw can be nearer than the bound."""
    levels = 2**bits - 1
    z = torch.cat([torch.tensor([0.0, float(levels)]), torch.full((30,), 0.5)])
    found = rounding_distortion(z, uniform(bits), draws(uniform(bits), z, 3))
    assert found.measured == found.expected == 30 / 4
    assert found.standard_error == 0
    assert found.bound == 32 / 4


def test_a_constant_has_no_rounding_error() -> None:
    z = torch.zeros(2, 3)
    found = rounding_distortion(z, uniform(2), draws(uniform(2), z, 2))
    assert found.measured == found.expected == found.bound == 0
    assert math.isnan(found.relative_bound)


@pytest.mark.parametrize("quantizer", [{"name": "float16"}, {"name": "uniform", "bits": 4, "rounding": "nearest"}])
def test_other_quantizers_are_biased_and_refused(quantizer: dict) -> None:
    with pytest.raises(ConfigError, match=f"stochastic rounding; given: name={quantizer['name']}"):
        rounding_distortion(torch.ones(2), quantizers.build(quantizer), [torch.ones(2)])


@pytest.mark.parametrize("options", VARIANTS)
def test_both_errors_add_up_and_the_merged_one_counts_for_every_patch_it_stands_for(options: dict) -> None:
    """One draw's error is, by Cauchy-Schwarz, at most (sqrt(eps_sel) + sqrt(sum Delta^2))^2; Hoeffding as above."""
    tokens, attention = batch(2, 9, 5)
    reduced, quantizer, count = reduce(tokens, attention, n_tokens=4), uniform(2, **options), 300
    found = total_distortion(tokens, reduced, quantizer, draws(quantizer, reduced.tokens.values, count))
    selection = selection_distortion(tokens, reduced).measured
    rounding = found.bound - selection
    largest = (math.sqrt(selection) + math.sqrt(4 * rounding)) ** 2
    assert abs(found.measured - found.expected) <= largest * math.sqrt(math.log(2 / FALSE_ALARM) / (2 * count))
    assert abs(found.measured - found.expected) <= 6 * found.standard_error  # far sharper, but only asymptotic
    assert selection < found.expected <= found.bound
    if not options:
        low, high = float(reduced.tokens.values.min()), float(reduced.tokens.values.max())
        assert rounding == pytest.approx(rounding_bound(2 * 10 * 5, low, high, 2), rel=1e-6)


# Lemma 3


@pytest.fixture
def side(settings: Settings) -> ServerSide:
    return assemble(method_config(), settings)[1]


def first_images(side: ServerSide, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    terms, rows = side.terms, slice(0, n)
    images = terms.task.inputs(side.test.images[rows], terms.spec, terms.where)
    return images, terms.task.targets(side.test.labels[rows], terms.where)


def loss_of(side: ServerSide, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(side.back(Tokens(tokens)), labels)


def method_config(**tokens: object):
    method = {
        "algorithm": "sflora",
        "tokens": {"name": "top_k_merge", "n_tokens": 20, **tokens},
        "quantizer": {"name": "uniform", "bits": 8, "range": "token"},
    }
    return small_config(method, backbone={"weights": "bundled"})


def test_gradient_of_the_split_model_is_that_of_the_whole(side: ServerSide) -> None:
    images, labels = first_images(side, 4)
    server, device = (list(trainable(part).values()) for part in (side.back, side.front))
    with torch.no_grad():
        for parameter in device:
            parameter.add_(0.01)  # LoRA's zero factors would hide half of the gradients
    tokens = side.front(images).tokens.values
    found = gradient(lambda x: loss_of(side, x, labels), tokens, tokens, server, device)
    whole = torch.autograd.grad(loss_of(side, tokens, labels), [*server, *device])
    expected = torch.cat([each.ravel().double() for each in whole])
    torch.testing.assert_close(torch.cat([found.server, found.device]), expected, rtol=1e-5, atol=1e-7)
    assert found.device.any()
    assert found.squared_norm == pytest.approx(float(expected.square().sum()), rel=1e-5)


def test_patches_that_coincide_are_no_loss_when_scattered_but_are_one_when_transmitted(side: ServerSide) -> None:
    """The lemma's sequence then equals the original; the server's has fewer copies, to which attention gives less."""
    images, labels = first_images(side, 4)
    server = list(trainable(side.back).values())
    seen = side.front(images)
    tokens, attention = seen.tokens.values.detach(), seen.cls_attention
    kept = reduce(tokens, attention, n_tokens=20).kept
    patches = tokens[:, 1:]
    same = patches.mean(dim=1, keepdim=True).expand_as(patches).clone()
    rows = torch.arange(4).unsqueeze(1)
    same[rows, kept] = patches[rows, kept]
    tokens = torch.cat([tokens[:, :1], same], dim=1)
    reduced = reduce(tokens, attention, n_tokens=20)

    def at(x: torch.Tensor):
        return gradient(lambda y: loss_of(side, y, labels), x, x, server)

    reference = at(tokens)
    assert not reference.device.numel()
    scattered = (at(scatter(reduced.tokens.values, reduced)) - reference).squared_norm
    transmitted = (at(reduced.tokens.values) - reference).squared_norm
    assert scattered < 1e-8 * reference.squared_norm
    assert transmitted > 1e-3 * reference.squared_norm


def test_lipschitz_constant_of_a_linear_gradient() -> None:
    """A gradient that is c times the tokens has L_A = |c|, and Lemma 3 holds with equality."""
    weight = torch.zeros(12, requires_grad=True, dtype=torch.float64)
    tokens, others = batch(1, 3, 3)[0], [batch(1, 3, 3, seed)[0] for seed in range(1, 4)]

    def at(x: torch.Tensor):
        return gradient(lambda y: 3 * (y.ravel() @ weight), x, x, [weight])

    changes = [((at(x) - at(tokens)).squared_norm, float((x - tokens).square().sum())) for x in others]
    found = lipschitz_estimate([*changes, (0.0, 0.0)])
    assert found == pytest.approx(3)
    assert perturbation_bound(found, changes[0][1] / 4, 3 * changes[0][1] / 4) == pytest.approx(changes[0][0])
    assert lipschitz_estimate([(1.0, 1.0), (8.0, 2.0)]) == 2
    with pytest.raises(ConfigError, match="every distortion given is 0"):
        lipschitz_estimate([(0.0, 0.0)])


# Theorem 1


def theorem(**changes: object) -> ConvergenceConfig:
    values = {
        "smoothness": 2.0,
        "learning_rate": 1e-3,
        "local_steps": 4,
        "rounds": 100,
        "initial_gap": 3.0,
        "heterogeneity": 0.5,
        "weights": (0.5, 0.25, 0.25),
        "participation": (1.0, 0.5, 0.5),
        "variances": (0.1, 0.2, 0.3),
        "perturbations": (0.4, 0.5, 0.6),
        "young": 0.5,
    }
    return ConvergenceConfig.parse({**values, **changes}, "theorem")


def test_theorem_by_hand() -> None:
    config = theorem(learning_rate=1e-3)
    assert config.participation_factor == pytest.approx(3 * (0.25 + 0.125 + 0.125))
    assert config.largest_learning_rate == pytest.approx(1 / (32 * 2 * 4 * 1.5))
    bound = convergence_bound(config)
    # V = 1.5, 1.7, 1.9
    assert bound.gap == pytest.approx(4 * 3 / (1e-3 * 4 * 100))
    assert bound.drift == pytest.approx(4 * 16 / 3 * 4 * 1e-6 * 16 * 1.65)
    assert bound.sampling == pytest.approx(4 * 8 / 3 * 2 * 1e-3 * 4 * 3 * (0.25 * 1.5 + 0.125 * 1.7 + 0.125 * 1.9))
    assert bound.compression == pytest.approx(4 * 0.475)
    assert bound.total == pytest.approx(bound.gap + bound.drift + bound.sampling + bound.compression)


def test_only_the_compression_floor_stays_when_the_learning_rate_goes_to_zero() -> None:
    coarse, fine = (convergence_bound(theorem(learning_rate=eta, rounds=int(1 / eta**2))) for eta in (1e-3, 1e-6))
    assert fine.compression == coarse.compression > 0
    assert max(fine.gap, fine.drift, fine.sampling) < 1e-2 * max(coarse.gap, coarse.drift, coarse.sampling)
    assert convergence_bound(theorem(perturbations=(0.0, 0.0, 0.0))).compression == 0


def test_floor_falls_with_more_tokens_and_as_four_to_the_minus_bits() -> None:
    def floor(n_tokens: int, bits: int) -> float:
        tokens, attention = batch(3, 16, 8)
        reduced = reduce(tokens, attention, n_tokens=n_tokens)
        quantizer = uniform(bits)
        total = total_distortion(tokens, reduced, quantizer, draws(quantizer, reduced.tokens.values, 1))
        selection = selection_distortion(tokens, reduced).measured
        gamma2 = perturbation_bound(0.7, selection, total.bound - selection)
        return convergence_bound(theorem(perturbations=(gamma2,) * 3)).compression

    by_tokens = [floor(n, 8) for n in (2, 6, 10, 14, 17)]
    assert all(more < less for less, more in itertools.pairwise(by_tokens))
    by_bits = [floor(17, bits) for bits in (4, 5, 6, 7, 8)]
    assert [less / more for less, more in itertools.pairwise(by_bits)] == pytest.approx([4] * 4, rel=0.15)
    assert by_bits[-2] / by_bits[-1] == pytest.approx(4, rel=0.01)


def test_too_large_a_learning_rate_names_the_largest() -> None:
    largest = theorem().largest_learning_rate
    assert convergence_bound(theorem(learning_rate=largest)).total > 0
    with pytest.raises(ConfigError, match=f"learning_rate: 0.1 is too large .* up to {largest:g}"):
        convergence_bound(theorem(learning_rate=0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (0.5, 0.5)}, "one entry per device; given: weights: 2, participation: 3"),
        ({"weights": (0.5, 0.5, 0.5)}, "weights must sum to 1; given: 1.5"),
        ({"participation": (1.0, 0.0, 1.0)}, "greater than 0"),
        ({"young": 1.0}, "less than 1"),
        ({"perturbations": (math.nan, 0.0, 0.0)}, "finite"),
    ],
)
def test_impossible_constants(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        theorem(**changes)


def test_the_theorem_holds_where_everything_is_known() -> None:
    """Quadratics L / 2 ||x - c_n||^2 with noise, partial participation and a biased gradient: simulated, and bounded.

    The bound on the mean is some ten times the value, so that Monte Carlo noise cannot decide it.
    """
    rng = numpy_generator("theorem")
    L, tau, rounds, runs, dim, sigma, gamma = 2.0, 3, 400, 50, 4, 0.3, 0.5
    a, q = np.array([0.5, 0.25, 0.25]), np.array([1.0, 0.5, 0.5])
    centres = rng.normal(size=(3, dim))
    middle = a @ centres
    start = middle + 1.0
    config = theorem(
        smoothness=L,
        local_steps=tau,
        rounds=rounds,
        learning_rate=1 / (32 * L * tau * 1.5),
        initial_gap=L / 2 * float(np.square(start - middle).sum()),
        heterogeneity=float(np.square(L * (centres - middle)).sum(axis=1).max()),
        variances=(sigma**2,) * 3,
        perturbations=(gamma**2,) * 3,
    )
    x, squares = np.tile(start, (runs, 1)), []
    bias = np.full(dim, gamma / math.sqrt(dim))
    for _ in range(rounds):
        squares.append(np.square(L * (x - middle)).sum(axis=1).mean())
        update = np.zeros_like(x)
        for n in range(3):
            local = x.copy()
            for _ in range(tau):
                noise = rng.normal(size=x.shape) * sigma / math.sqrt(dim)
                local -= config.learning_rate * (L * (local - centres[n]) + noise + bias)
            update += (rng.random((runs, 1)) < q[n]) / q[n] * a[n] * (local - x)
        x = x + update
    bound = convergence_bound(config)
    assert float(np.mean(squares)) < bound.total / 2
    # Where it ends is set by the bias, and the floor is above it.
    assert gamma**2 * 0.8 < float(np.mean(squares[-50:]))
    assert gamma**2 < bound.compression


def test_unit_bound_is_the_theorem_at_its_largest_rate() -> None:
    found = unit_bound(0.25, n_devices=50, participants=10, local_steps=4)
    # A_q = 5, so eta tau = 1 / (32 * 5); the factor is 4 and V = 1 + 2 + 0.25.
    step = 1 / 160
    assert found.gap == pytest.approx(4 / (step * 10_000))
    assert found.drift == pytest.approx(4 * 16 / 3 * step**2 * 3.25)
    assert found.sampling == pytest.approx(4 * 8 / 3 * step * 5 * 3.25)
    assert found.compression == pytest.approx(4 * 0.25)


# Problem (10)-(14)

MEMORY_BYTES = {1: 100, 2: 200, 3: 300}


def problem(**changes: Any) -> Problem:
    values: dict[str, Any] = {
        "batch_size": 2,
        "dim": 8,
        "perturbation": lambda cut, n_tokens, bits: 10 / n_tokens + 4.0**-bits + 1 / cut,
        "uplink_limit_bits": 16 * 10 * 4,
        "device_memory_bytes": MEMORY_BYTES,
        "memory_limit_bytes": {"phone": 250, "laptop": 1000},
    }
    return Problem(**{**values, **changes})


GRID = ([1, 2, 3], [5, 10, 20], [2, 4, 8])


def test_solver_finds_what_a_search_finds() -> None:
    plan = solve(problem(), *GRID)
    allowed = [
        (cut, n, q) for cut, n, q in itertools.product(*GRID) if 2 * n * 8 * q <= 640 and MEMORY_BYTES[cut] <= 250
    ]
    assert [(c.cut, c.n_tokens, c.bits) for c in plan.candidates if c.feasible] == allowed
    expected = min(allowed, key=lambda each: problem().perturbation(*each))
    assert (plan.best.cut, plan.best.n_tokens, plan.best.bits) == expected == (2, 20, 2)
    frame = plan.frame()
    assert len(frame) == 27
    assert frame[["cut", "n_tokens", "bits"]].iloc[0].tolist() == [2, 20, 2]
    assert not frame["feasible"].iloc[len(allowed) :].any()
    broken = frame[["breaks_uplink", "breaks_memory", "breaks_target"]]
    assert (broken.any(axis=1) == ~frame["feasible"]).all()
    assert broken.sum().tolist() == [9, 9, 0]
    assert {str(kind) for kind in frame.drop(columns="perturbation").dtypes} == {"int64", "bool"}


def test_infeasible_ones_say_why() -> None:
    (worst,) = candidates(problem(), [3], [20], [8])
    assert worst.obstacles == {
        "uplink": "2560 uplink bits per mini-batch exceed 640",
        "memory": "300 bytes of memory exceed the 250 of phone",
    }
    assert worst.uplink_bits == uplink_bits(2, 20, 8, 8) == 2560
    (edge,) = candidates(problem(memory_limit_bytes={"phone": 200}), [2], [10], [4])
    assert edge.feasible


def test_a_target_bars_what_is_predicted_to_disturb_more() -> None:
    (each,) = candidates(problem(target=0.5), [2], [10], [4])
    assert each.obstacles == {"target": "a predicted perturbation of 1.5 exceeds the target 0.5"}
    with pytest.raises(ConfigError, match=r"exceeds the target 0\.1"):
        solve(problem(target=0.1), *GRID)


def test_equal_predictions_prefer_less_uplink() -> None:
    best = solve(problem(perturbation=lambda *_: 1), *GRID).best
    assert (best.cut, best.n_tokens, best.bits) == (1, 5, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uplink_limit_bits": 100}, "cut 1, 5 tokens, 2 bits is not: 160 uplink bits per mini-batch exceed 100$"),
        ({"memory_limit_bytes": {"a": 500, "b": 50}}, "is not: 100 bytes of memory exceed the 50 of b$"),
        ({"uplink_limit_bits": 100, "memory_limit_bytes": {"b": 50}}, "160 uplink .*; 100 bytes of memory"),
        ({"device_memory_bytes": {1: 100}}, "no figure for cut 2; given: \\[1\\]"),
        ({"memory_limit_bytes": {}}, "at least one cut, one n_tokens, one bits and one device's memory limit"),
        ({"perturbation": lambda *_: math.nan}, "cut 1, 5 tokens, 2 bits is NaN"),
    ],
)
def test_nothing_to_choose(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        solve(problem(**changes), *GRID)


def test_fit_recovers_the_model_it_was_made_from() -> None:
    true = PerturbationModel({1: (2.0, 5.0), 2: (0.5, 30.0)}, {(c, n): n / (50 + c) for c in (1, 2) for n in (10, 30)})
    rows = pd.DataFrame(
        {"cut": c, "n_tokens": n, "bits": q, "retained_attention": n / (50 + c), "y": true(c, n, q)}
        | {"gradient_squared": 3.0}
        for c, n, q in itertools.product((1, 2), (10, 30), (2, 4, 8))
    )
    found = fit_perturbation(rows, "y")
    assert found.retained_attention == pytest.approx(true.retained_attention)
    for cut in (1, 2):
        assert found.coefficients[cut] == pytest.approx(true.coefficients[cut])
    lost = rows.assign(y=rows["y"].clip(upper=1.5), gradient_squared=1.5)
    assert (lost["y"] == 1.5).any()
    assert fit_perturbation(lost, "y").coefficients[1] == pytest.approx(true.coefficients[1]), "saturated rows bend it"
    with pytest.raises(ConfigError, match="nothing was measured at cut 1 with 20 tokens; measured: cut 1 with 10"):
        found(1, 20, 8)
    falling = rows.assign(y=1 - true.coefficients[1][0] * (1 - rows["retained_attention"]))
    assert min(min(pair) for pair in fit_perturbation(falling, "y").coefficients.values()) >= 0
    with pytest.raises(ConfigError, match="missing: transmitted_perturbation"):
        fit_perturbation(rows)
    with pytest.raises(ConfigError, match="missing: rows"):
        fit_perturbation(rows[:0], "y")
    with pytest.raises(ConfigError, match="NaN or infinity"):
        fit_perturbation(rows.assign(y=math.nan), "y")


# All of it on real activations


def test_measured_beside_bounds_on_real_activations(side: ServerSide) -> None:
    rows = measure(side, [2, 20, 50], [2, 8], draws=2, batch_size=8)
    assert rows[["n_tokens", "bits"]].to_numpy().tolist() == [[2, 2], [2, 8], [20, 2], [20, 8], [50, 2], [50, 8]]
    assert rows["kept"].tolist() == [0, 0, 18, 18, 49, 49]
    assert (rows["cut"] == 2).all()
    assert rows["uplink_bits"].tolist() == [8 * n * 64 * q for n in (2, 20, 50) for q in (2, 8)]
    assert rows["retained_attention"].tolist() == pytest.approx([0, 0, *rows["retained_attention"][2:4], 1, 1])
    assert rows["retained_attention"][2] > 18 / 49  # the patches that CLS attends to most hold more than their share
    np.testing.assert_allclose(rows["selection_measured"], rows["selection_identity"], rtol=1e-9)
    for smaller, larger in [
        ("selection_measured", "selection_diameter_bound"),
        ("selection_diameter_bound", "selection_norm_bound"),
        ("rounding_expected", "rounding_bound"),
        ("rounding_measured", "rounding_bound"),
        ("total_measured", "total_bound"),
        ("selection_measured", "total_bound"),
    ]:
        assert (rows[smaller] <= rows[larger]).all(), (smaller, larger)
    full = rows[rows["n_tokens"] == 50]
    assert not full["selection_measured"].any()
    pd.testing.assert_series_equal(
        full["scattered_perturbation"], full["transmitted_perturbation"], check_names=False, rtol=1e-9
    )
    assert full["scattered_perturbation"].iloc[1] < 1e-2 * full["scattered_perturbation"].iloc[0]
    assert (rows["transmitted_perturbation"] > rows["transmitted_server_perturbation"]).all()
    np.testing.assert_allclose(rows["perturbation_bound"], rows["lipschitz"] ** 2 * rows["total_bound"])
    pd.testing.assert_frame_equal(rows, measure(side, [2, 20, 50], [2, 8], draws=2, batch_size=8))
    fitted = fit_perturbation(rows)
    assert fitted(2, 50, 8) < fitted(2, 2, 8)


def test_transmitted_perturbation_is_that_of_a_training_step(side: ServerSide) -> None:
    """One graph from the images through reducer and quantizer to the loss, as autograd sees it."""
    row = measure(side, [20], [3], draws=1, batch_size=4).iloc[0]
    images, labels = first_images(side, 4)
    adapters = [p for part in (side.back, side.front) for p in trainable(part).values()]
    seen = side.front(images)
    assert isinstance(side.terms.plan.codec, TokenCodec)
    reduced = side.terms.plan.codec.tokens.reduce(seen, torch_generator("unused"))
    received = uniform(3, range="token").forward(reduced.tokens.values, side.terms.generator("theory", 0, 20, 3))
    step, plain = (
        torch.autograd.grad(loss_of(side, x, labels), adapters, retain_graph=True)
        for x in (received, seen.tokens.values)
    )
    expected = sum(float((a - b).double().square().sum()) for a, b in zip(step, plain, strict=True))
    assert row["transmitted_perturbation"] == pytest.approx(expected, rel=1e-4)
    assert row["scattered_perturbation"] != pytest.approx(expected, rel=1e-2)
    z = reduced.tokens.values.detach().double()
    steps = (z.amax(dim=2) - z.amin(dim=2)) / 7
    assert row["rounding_bound"] == pytest.approx(64 * float(steps.square().sum()) / 4, rel=1e-5)


def test_retained_attention_by_hand() -> None:
    attention = torch.tensor([[[0.2, 0.1, 0.3, 0.1, 0.3], [0.6, 0.1, 0.1, 0.1, 0.1]]])
    reduced = reduce(torch.zeros(1, 5, 1), attention, n_tokens=4)
    assert retained_attention(attention, reduced) == pytest.approx((0.2 + 0.2) / (0.1 + 0.2 + 0.1 + 0.2))


def test_lipschitz_constant_comes_from_another_batch_than_what_it_predicts(side: ServerSide) -> None:
    others = dataclasses.replace(side, test=side.test.subset([0, 1, 2, 3, 4, 4, 4, 4]))
    here, there = (measure(each, [20], [8], draws=2, batch_size=4) for each in (side, others))
    changed = [name for name in here.columns if here[name].iloc[0] != there[name].iloc[0]]
    assert changed == ["lipschitz", "perturbation_bound"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 21}, "two batches of test images; given: draws 4, batch size 21, 40 images"),
        ({"draws": 0}, "draws 0"),
        ({"n_tokens": [51]}, "the model has 49 patches"),
        ({"bits": [17]}, "uniform.bits"),
    ],
)
def test_impossible_measurements(side: ServerSide, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(side, **({"n_tokens": [20], "bits": [8], "batch_size": 4} | arguments))


def test_only_a_method_that_selects_and_quantises_can_be_varied(settings: Settings) -> None:
    plain = assemble(small_config(), settings)[1]
    with pytest.raises(ConfigError, match="given: all, float32"):
        measure(plain, [20], [8], batch_size=4)
    whole = assemble(small_config({"algorithm": "fed_lora"}), settings)[1]
    with pytest.raises(ConfigError, match="given: no codec"):
        measure(whole, [20], [8], batch_size=4)
    dropping = assemble(method_config(merge="none"), settings)[1]
    with pytest.raises(ConfigError, match="merge: none"):
        measure(dropping, [20], [8], batch_size=4)
