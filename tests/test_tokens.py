"""Which tokens travel: the edges first, then selection, merging and the gradient through both."""

import pytest
import torch

from tsflora.compression import Seen, Tokens
from tsflora.compression.tokens import Reduced, token_reducers
from tsflora.errors import ConfigError
from tsflora.seeding import torch_generator

M, D, HEADS = 9, 4, 3


def batch(n: int = 3, patches: int = M) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch_generator("tokens")
    tokens = torch.randn(n, patches + 1, D, generator=generator)
    attention = torch.randn(n, HEADS, patches + 1, generator=generator).softmax(dim=2)
    return tokens, attention


def reduce(tokens: torch.Tensor, attention: torch.Tensor, **options: object) -> Reduced:
    return token_reducers.build(options).reduce(Seen(Tokens(tokens), attention), torch_generator("reduce"))


SELECTING = ["top_k_merge", "random", "feature_norm"]


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("options", [{"n_tokens": M + 1}, {"K": M - 1}, {"n_tokens": M + 1, "merge": "none"}])
def test_as_many_tokens_as_the_model_has_is_the_identity(name: str, options: dict) -> None:
    tokens, attention = batch()
    reduced = reduce(tokens, attention, name=name, **options)
    assert torch.equal(reduced.tokens.values, tokens)
    assert torch.equal(reduced.kept, torch.arange(M).expand(3, M))
    assert not reduced.merge_weights.any()


def test_all_is_the_identity() -> None:
    tokens, attention = batch()
    assert torch.equal(reduce(tokens, attention, name="all").tokens.values, tokens)
    assert token_reducers.build("all").n_transmitted(M) == M + 1


def test_no_kept_patch_sends_cls_and_the_mean_of_all() -> None:
    tokens, attention = batch()
    reduced = reduce(tokens, attention, name="top_k_merge", K=0, merge="uniform")
    assert reduced.kept.shape == (3, 0)
    torch.testing.assert_close(reduced.tokens.values, torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))


def test_cls_alone() -> None:
    tokens, attention = batch()
    reduced = reduce(tokens, attention, name="top_k_merge", n_tokens=1, merge="none")
    assert torch.equal(reduced.tokens.values, tokens[:, :1])
    assert not reduced.merge_weights.any()


def test_two_patches_and_one_image() -> None:
    tokens, attention = batch(n=1, patches=2)
    assert torch.equal(reduce(tokens, attention, name="top_k_merge", n_tokens=3).tokens.values, tokens)
    merged = reduce(tokens, attention, name="top_k_merge", n_tokens=2)
    weights = attention[0].mean(dim=0)[1:]
    torch.testing.assert_close(merged.tokens.values[0, 1], weights @ tokens[0, 1:] / weights.sum())


def test_selection_and_merge_by_hand() -> None:
    tokens = torch.tensor([[[9.0], [1.0], [2.0], [4.0], [8.0], [16.0]]])
    head = torch.tensor([[0.10, 0.20, 0.05, 0.30, 0.15, 0.20]])
    reduced = reduce(tokens, head.unsqueeze(1), name="top_k_merge", n_tokens=4)
    # 0.30 (patch 2) first, then the tie 0.20 between patches 0 and 4: the lower index.
    assert reduced.kept.tolist() == [[0, 2]]
    torch.testing.assert_close(reduced.merge_weights, torch.tensor([[0, 0.125, 0, 0.375, 0.5]]))
    torch.testing.assert_close(reduced.tokens.values, torch.tensor([[[9.0], [1.0], [4.0], [0.25 + 3 + 8]]]))


@pytest.mark.parametrize("n_patches", [5, 49, 196])
def test_equal_scores_keep_the_lowest_indices(n_patches: int) -> None:
    tokens = torch.ones(2, n_patches + 1, D)
    attention = torch.full((2, HEADS, n_patches + 1), 1 / (n_patches + 1))
    for name in ("top_k_merge", "feature_norm"):
        reduced = reduce(tokens, attention, name=name, K=3)
        assert reduced.kept.tolist() == [[0, 1, 2]] * 2


def test_no_attention_on_the_discarded_patches_falls_back_to_equal_weights() -> None:
    tokens, _ = batch(n=1)
    attention = torch.zeros(1, HEADS, M + 1)
    attention[:, :, [0, 3, 5]] = 1 / 3
    reduced = reduce(tokens, attention, name="top_k_merge", K=2)
    assert reduced.kept.tolist() == [[2, 4]]
    expected = torch.full((M,), 1 / 7)
    expected[[2, 4]] = 0
    torch.testing.assert_close(reduced.merge_weights[0], expected)


def test_fallback_is_decided_for_each_image() -> None:
    tokens, attention = batch(n=2)
    attention[0, :, 1:] = 0
    both = reduce(tokens, attention, name="top_k_merge", K=2)
    alone = reduce(tokens[1:], attention[1:], name="top_k_merge", K=2)
    torch.testing.assert_close(both.tokens.values[1:], alone.tokens.values)


def test_score_norm_changes_what_heads_weigh() -> None:
    # Head 0 looks almost only at CLS and prefers patch 0; head 1 looks at the patches and prefers patch 1.
    attention = torch.tensor([[[0.96, 0.03, 0.00, 0.01], [0.00, 0.30, 0.40, 0.30]]])
    tokens = torch.eye(4).unsqueeze(0)
    assert reduce(tokens, attention, name="top_k_merge", n_tokens=3).kept.tolist() == [[1]]
    patches = reduce(tokens, attention, name="top_k_merge", n_tokens=3, score_norm="patches")
    assert patches.kept.tolist() == [[0]]
    torch.testing.assert_close(patches.merge_weights, torch.tensor([[0, 0.40, 0.55]]) / 0.95)


def test_a_head_that_sees_no_patch_is_no_nan() -> None:
    attention = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]]])
    reduced = reduce(torch.eye(4).unsqueeze(0), attention, name="top_k_merge", n_tokens=3, score_norm="patches")
    assert reduced.kept.tolist() == [[2]]
    assert reduced.tokens.values.isfinite().all()


def test_feature_norm_keeps_the_longest_and_merges_by_attention() -> None:
    tokens = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, -6.0], [0.0, 2.0]]])
    attention = torch.tensor([[[0.2, 0.1, 0.1, 0.3, 0.3]]])
    reduced = reduce(tokens, attention, name="feature_norm", n_tokens=4)
    assert reduced.kept.tolist() == [[0, 2]]
    torch.testing.assert_close(reduced.merge_weights, torch.tensor([[0, 0.25, 0, 0.75]]))


def test_random_follows_its_generator() -> None:
    tokens, attention = batch(n=8, patches=49)
    reducer = token_reducers.build({"name": "random", "n_tokens": 10})
    first = reducer.reduce(Seen(Tokens(tokens), attention), torch_generator("a")).kept
    assert torch.equal(first, reducer.reduce(Seen(Tokens(tokens), attention), torch_generator("a")).kept)
    assert not torch.equal(first, reducer.reduce(Seen(Tokens(tokens), attention), torch_generator("b")).kept)
    assert len({tuple(row) for row in first.tolist()}) == 8  # one draw for each image


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("merge", ["attention", "uniform", "none"])
def test_gradient_reaches_each_patch_by_its_share(name: str, merge: str) -> None:
    """Chain rule: dL/da_j = w_j dL/dm for discarded j; kept patches and CLS get theirs unchanged."""
    tokens, attention = batch()
    tokens.requires_grad_()
    attention.requires_grad_()
    reduced = reduce(tokens, attention, name=name, n_tokens=6, merge=merge)
    upstream = torch.randn(reduced.tokens.values.shape, generator=torch_generator("upstream"))
    (gradient,) = torch.autograd.grad((reduced.tokens.values * upstream).sum(), tokens, retain_graph=True)
    expected = torch.zeros_like(tokens)
    expected[:, 0] = upstream[:, 0]
    for image in range(3):
        if merge != "none":
            expected[image, 1:] = reduced.merge_weights[image].unsqueeze(1) * upstream[image, -1]
        for place, patch in enumerate(reduced.kept[image].tolist()):
            expected[image, 1 + patch] = upstream[image, 1 + place]
    torch.testing.assert_close(gradient, expected)
    # Selection and weights are constants: nothing flows into the scores.
    (scores,) = torch.autograd.grad(reduced.tokens.values.sum(), attention, allow_unused=True)
    assert scores is None


def test_bfloat16_activations_stay_bfloat16() -> None:
    tokens, attention = batch()
    reduced = reduce(tokens.bfloat16(), attention.bfloat16(), name="top_k_merge", n_tokens=6)
    assert reduced.tokens.values.dtype == torch.bfloat16
    torch.testing.assert_close(reduced.merge_weights.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("options", "n_tokens"),
    [({"n_tokens": 40}, 40), ({"K": 38}, 40), ({"K": 0}, 2), ({"K": 38, "merge": "none"}, 39)],
)
def test_k_is_another_way_to_say_n_tokens(options: dict, n_tokens: int) -> None:
    reducer = token_reducers.build({"name": "top_k_merge", **options})
    assert reducer.n_transmitted(49) == n_tokens
    assert reducer.model_dump()["n_tokens"] == n_tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_tokens": 1}, "at least 2 with merge='attention'; given: 1"),
        ({"n_tokens": 0, "merge": "none"}, "at least 1 with merge='none'; given: 0"),
        ({"n_tokens": 5, "K": 3}, r"not both \(given: n_tokens=5, K=3\)"),
        ({"K": -1}, "at least 0; given: -1"),
        ({"K": 2.5}, "an integer of at least 0; given: 2.5"),
        ({}, "n_tokens: is required"),
        ({"n_tokens": 5, "merge": "mean"}, "'attention', 'uniform' or 'none'"),
        ({"n_token": 5}, "n_token"),
    ],
)
def test_wrong_options_say_what_is_allowed(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        token_reducers.build({"name": "random", **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SELECTING)
def test_more_tokens_than_the_model_has_is_refused(name: str) -> None:
    reducer = token_reducers.build({"name": name, "n_tokens": M + 2})
    with pytest.raises(ConfigError, match=rf"{name}: the model has 9 patches, so n_tokens is 2 to 10 .* given: 11"):
        reducer.n_transmitted(M)
    tokens, attention = batch()
    with pytest.raises(ConfigError):
        reducer.reduce(Seen(Tokens(tokens), attention), torch_generator("x"))


# --- numbers that differ by sample


def peaked(*n_peaks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples whose attention lies on their first patches in equal parts, nine tenths of it."""
    tokens, _ = batch(len(n_peaks))
    attention = torch.zeros(len(n_peaks), HEADS, M + 1)
    for sample, n in enumerate(n_peaks):
        attention[sample, :, 1 : 1 + n] = 0.9 / n
        attention[sample, :, 1 + n :] = 0.1 / (M - n)
    return tokens, attention


def test_a_simple_image_keeps_few_and_a_busy_one_many() -> None:
    tokens, attention = peaked(1, 4, 2)
    reduced = reduce(tokens, attention, name="attention_mass", mass=0.9)
    assert reduced.kept.tolist() == [[0, -1, -1, -1], [0, 1, 2, 3], [0, 1, -1, -1]]
    assert reduced.tokens.lengths is not None
    assert reduced.tokens.lengths.tolist() == [3, 6, 4]
    assert reduced.tokens.values.shape == (3, 6, D)
    assert reduced.tokens.sizes is None
    for sample, n in enumerate((1, 4, 2)):
        sequence = reduced.tokens.values[sample]
        assert torch.equal(sequence[: 1 + n], tokens[sample, : 1 + n])
        torch.testing.assert_close(sequence[1 + n], tokens[sample, 1 + n :].mean(dim=0))
        assert not sequence[2 + n :].any()


@pytest.mark.parametrize(("mass", "kept"), [(0.01, 1), (0.45, 1), (0.46, 2), (0.9, 2), (0.91, 3), (1.0, 9)])
def test_the_fewest_patches_that_hold_the_share(mass: float, kept: int) -> None:
    reduced = reduce(*peaked(2), name="attention_mass", mass=mass)
    assert reduced.kept.shape == (1, kept)
    assert reduced.tokens.lengths is not None
    assert reduced.tokens.lengths.tolist() == [1 + kept + (kept < M)]


def test_without_a_merged_token_the_others_are_left_out() -> None:
    reduced = reduce(*peaked(1, 4), name="attention_mass", mass=0.9, merge="none")
    assert reduced.tokens.lengths is not None
    assert reduced.tokens.lengths.tolist() == [2, 5]
    assert not reduced.merge_weights.any()


def test_sizes_say_how_many_patches_a_token_stands_for() -> None:
    reduced = reduce(*peaked(1, 4), name="attention_mass", mass=0.9, proportional=True)
    sizes, bias = reduced.tokens.sizes, reduced.tokens.bias()
    assert sizes is not None
    assert bias is not None
    assert sizes.tolist() == [[1, 1, M - 1, 0, 0, 0], [1, 1, 1, 1, 1, M - 4]]
    bias = bias[:, 0, 0]
    expected = torch.tensor([[0, 0, M - 1, 0, 0, 0], [0, 0, 0, 0, 0, M - 4]], dtype=torch.float32).clamp_min(1).log()
    expected[0, 3:] = -torch.inf
    torch.testing.assert_close(bias, expected)


def test_sizes_without_a_merged_token_say_nothing() -> None:
    with pytest.raises(ValueError, match="proportional needs a merged token"):
        token_reducers.build({"name": "attention_mass", "mass": 0.5, "proportional": True, "merge": "none"})


@pytest.mark.parametrize("mass", [0, -1, 1.1, float("nan")])
def test_a_share_is_a_share(mass: float) -> None:
    with pytest.raises(ValueError, match="attention_mass"):
        token_reducers.build({"name": "attention_mass", "mass": mass})


def test_what_was_reduced_once_is_not_reduced_again() -> None:
    once = reduce(*peaked(1, 4), name="attention_mass", mass=0.9)
    again = Seen(once.tokens, torch.ones(2, HEADS, once.tokens.values.shape[1]))
    with pytest.raises(ConfigError, match="needs the CLS token's attention over sequences of one length"):
        token_reducers.build({"name": "top_k_merge", "n_tokens": 3}).reduce(again, torch_generator("x"))
    with pytest.raises(ConfigError, match="needs the CLS token's attention"):
        token_reducers.build({"name": "attention_mass", "mass": 0.5}).reduce(
            Seen(Tokens(torch.ones(1, 3, D))), torch_generator("x")
        )


def test_rows_travel_and_come_back_to_their_places() -> None:
    tokens = reduce(*peaked(1, 4, 2), name="attention_mass", mass=0.9).tokens
    rows = tokens.rows()
    assert rows.shape == (3 + 6 + 4, D)
    back = tokens.like(2 * rows)
    assert torch.equal(back.values, 2 * tokens.values)
    assert back.lengths is not None
    assert tokens.lengths is not None
    assert torch.equal(back.lengths, tokens.lengths)
