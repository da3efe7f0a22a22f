"""Sequences of different lengths: each sample gets what it gets alone, both ways, and padding is never seen."""

import pytest
import torch
from conftest import small_config

from tsflora.compression import Kind, Section, Seen, TokenCodec, Tokens, token_reducers, write_frame
from tsflora.compression.codec import TokenReceiver
from tsflora.errors import ConfigError, FrameError
from tsflora.experiment import assemble, run
from tsflora.models import own_copy
from tsflora.seeding import torch_generator
from tsflora.wire import Format, Layout

N_PATCHES, DIM = 49, 64


def ragged(lengths, sizes=False):
    longest = max(lengths)
    values = torch.randn(len(lengths), longest, DIM, generator=torch_generator("ragged"))
    tokens = Tokens(values, torch.tensor(lengths))
    assert tokens.present is not None
    values[~tokens.present] = 0
    weights = torch.randint(1, 9, values.shape[:2], generator=torch_generator("sizes")).float() if sizes else None
    return Tokens(values, torch.tensor(lengths), weights)


@pytest.mark.parametrize("sizes", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_sample_gets_what_it_gets_alone(settings, sizes, precision):
    back = own_copy(assemble(small_config(backbone={"weights": "bundled"}), settings)[1].back)
    batch = ragged([7, 50, 1, 23], sizes)
    rows = batch.rows().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        together = back(batch.like(rows)).float()
    together.square().sum().backward()
    assert rows.grad is not None
    assert batch.lengths is not None
    start = 0
    for index, length in enumerate(batch.lengths.tolist()):
        alone = rows.detach()[start : start + length].clone().requires_grad_()
        weights = None if batch.sizes is None else batch.sizes[index : index + 1, :length]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            outputs = back(Tokens(alone.unsqueeze(0), None, weights)).float()
        outputs.square().sum().backward()
        atol, rtol = (1e-5, 1e-4) if precision == "fp32" else (0.1, 0.1)
        torch.testing.assert_close(together[index], outputs[0], atol=atol, rtol=rtol)
        torch.testing.assert_close(rows.grad[start : start + length], alone.grad, atol=atol, rtol=rtol)
        start += length


def test_padding_is_never_seen(settings):
    back = assemble(small_config(backbone={"weights": "bundled"}), settings)[1].back
    batch = ragged([7, 50, 1, 23])
    spoilt = batch.values.clone()
    assert batch.present is not None
    spoilt[~batch.present] = 1e6
    with torch.no_grad():
        torch.testing.assert_close(back(Tokens(spoilt, batch.lengths)), back(batch), atol=0, rtol=0)


def test_sizes_weigh_attention_as_repeated_tokens_would(settings):
    """A key of size 3 counts as three equal keys: proportional attention, log s added to its logit."""
    block = assemble(small_config(backbone={"weights": "bundled"}), settings)[1].back.vit.blocks[0]
    values = torch.randn(1, 5, DIM, generator=torch_generator("v"))
    sizes = torch.tensor([[1.0, 1.0, 3.0, 1.0, 2.0]])
    bias = Tokens(values, None, sizes).bias()
    assert bias is not None
    bias = bias.expand(-1, -1, 5, -1)
    repeated = values.repeat_interleave(sizes[0].long(), dim=1)
    with torch.no_grad():
        weighed, plain = block(values, attn_mask=bias), block(repeated)
    torch.testing.assert_close(weighed, plain[:, [0, 1, 2, 5, 6]], atol=1e-5, rtol=1e-4)


def test_rows_come_back_into_the_same_sequences():
    batch = ragged([3, 5, 1])
    assert batch.rows().shape == (9, DIM)
    assert torch.equal(batch.like(batch.rows()).values, batch.values)
    assert batch.like(batch.rows()).lengths is batch.lengths
    flat = Tokens(torch.randn(2, 4, 3))
    assert flat.rows() is flat.values
    assert flat.bias() is None


def attention_of(*samples):
    """CLS attention of one head over CLS and patches, from shares of the patches."""
    return torch.tensor([[[0.2, *(0.8 * share for share in sample)]] for sample in samples])


def test_the_fewest_patches_that_hold_the_mass_are_kept():
    tokens = torch.arange(2 * 5 * 2.0).reshape(2, 5, 2)
    seen = Seen(Tokens(tokens), attention_of([0.1, 0.6, 0.25, 0.05], [0.25, 0.25, 0.25, 0.25]))
    reducer = token_reducers.build({"name": "attention_mass", "mass": 0.7})
    reduced = reducer.reduce(seen, torch_generator("r"))
    assert reduced.kept.tolist() == [[1, 2, -1], [0, 1, 2]]
    assert reduced.tokens.lengths.tolist() == [4, 5]
    assert torch.equal(reduced.tokens.values[0, :3], tokens[0, [0, 2, 3]])
    merged = (0.1 * tokens[0, 1] + 0.05 * tokens[0, 4]) / 0.15
    torch.testing.assert_close(reduced.tokens.values[0, 3], merged)
    assert not reduced.tokens.values[0, 4].any()
    torch.testing.assert_close(reduced.merge_weights[1], torch.tensor([0.0, 0.0, 0.0, 1.0]))
    weighed = reducer.model_copy(update={"proportional": True}).reduce(seen, torch_generator("r")).tokens
    assert weighed.sizes.tolist() == [[1, 1, 1, 2, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(("mass", "counts"), [(1.0, [4, 4]), (1e-9, [1, 1]), (0.6, [1, 3]), (0.601, [2, 3])])
def test_the_edges_of_the_mass(mass, counts):
    seen = Seen(Tokens(torch.randn(2, 5, 2)), attention_of([0.1, 0.6, 0.25, 0.05], [0.25, 0.25, 0.25, 0.25]))
    reduced = token_reducers.build({"name": "attention_mass", "mass": mass}).reduce(seen, torch_generator("r"))
    assert (reduced.kept >= 0).sum(dim=1).tolist() == counts
    if mass == 1.0:
        assert torch.equal(reduced.tokens.values, seen.tokens.values)


def test_a_reducer_that_needs_attention_says_so():
    for name in ("attention_mass", "top_k_merge"):
        options = {"mass": 0.5} if name == "attention_mass" else {"n_tokens": 3}
        with pytest.raises(ConfigError, match=f"{name}: needs the CLS token's attention"):
            token_reducers.build({"name": name, **options}).reduce(
                Seen(Tokens(torch.randn(2, 5, 2))), torch_generator()
            )


def frame(rows, *side):
    sections = [Section.float32(rows.numpy())]
    for values, bits in side:
        codes = torch.tensor(values).numpy().astype("uint8")
        sections.append(Section(codes, Layout(codes.shape, Format.PACKED, bits, side=True)))
    return write_frame(Kind.ACTIVATIONS, sections)


@pytest.mark.parametrize(
    "side",
    [
        [([3, 3], 6)],
        [([3, 2], 5)],
        [([5, 0], 6)],
        [([3, 2], 6), ([1, 1, 1, 1], 6)],
        [([3, 2], 6), ([1, 1, 0, 1, 1], 6)],
        [([3, 2], 6), ([1, 1, 1, 1, 1], 6), ([1], 6)],
    ],
    ids=str,
)
def test_lengths_and_sizes_that_do_not_fit_are_refused(side):
    receiver = TokenReceiver(TokenCodec(), N_PATCHES)
    with pytest.raises(FrameError):
        receiver.receive(frame(torch.zeros(5, DIM), *side), 0)
    good = receiver.receive(frame(torch.zeros(5, DIM), ([3, 2], 6), ([1, 9, 1, 1, 2], 6)), 0)
    assert good.sizes is not None
    assert good.sizes.tolist() == [[1, 9, 1], [1, 2, 0]]


def test_a_sequence_longer_than_the_model_is_refused_before_it_is_padded():
    receiver = TokenReceiver(TokenCodec(), 4)
    with pytest.raises(FrameError, match="allowed: lengths of 1 to 5"):
        receiver.receive(frame(torch.zeros(7, DIM), ([1, 6], 3)), 0)


def test_ragged_bytes_are_those_of_the_tokens_that_were_sent(settings):
    method = {"algorithm": "sflora", "tokens": {"name": "attention_mass", "mass": 0.5}}
    record = run(small_config(method, backbone={"weights": "bundled"}), settings)
    full = run(small_config({"algorithm": "sflora"}, backbone={"weights": "bundled"}), settings)
    for entry, whole in zip(record.history, full.history, strict=True):
        sent, returned = entry.uplink_bytes["activations"], entry.downlink_bytes["gradients"]
        assert sent == returned < 0.8 * whole.uplink_bytes["activations"]
        assert sent % (4 * DIM) == 0
