"""The models of text: they learn, their gradients are right, and a step gives the bits of the whole sequence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rheme import _core, nn, optim
from rheme.autograd import Tensor
from rheme.errors import InputError
from rheme.models.pointer_generator import PointerGenerator, PointerGeneratorConfig, _places
from rheme.models.seq2seq import Seq2Seq, Seq2SeqConfig, Seq2SeqState
from rheme.models.text_vae import TextVAE, TextVAEConfig

SMALL = {"vocab_size": 11, "embedding_size": 6, "encoder_size": 5, "decoder_size": 7}


def seq2seq(seed: int = 0, **settings: Any) -> Seq2Seq:
    with nn.init_scope(seed):
        return Seq2Seq(Seq2SeqConfig(**SMALL | settings))


def pointer(seed: int = 0, **settings: Any) -> PointerGenerator:
    with nn.init_scope(seed):
        return PointerGenerator(PointerGeneratorConfig(**SMALL | {"copy_size": 4} | settings))


def text_vae(seed: int = 0, **settings: Any) -> TextVAE:
    with nn.init_scope(seed):
        return TextVAE(TextVAEConfig(**SMALL | {"latent_size": 4} | settings))


def sentences(rng: np.random.Generator, rows: int, longest: int, vocab: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """ids (T, N), 0 past each row's end, and lengths (N,); row 0 is the longest, the last one has one id."""
    lengths = rng.integers(1, longest + 1, rows)
    lengths[0], lengths[-1] = longest, 1
    ids = rng.integers(4, vocab, (longest, rows))
    ids[np.arange(longest)[:, None] >= lengths] = 0
    return ids, lengths


def targets(ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(target_in, target_out) of T + 1 steps: begun with 1, ended with 2, then -1."""
    longest, rows = ids.shape
    target_in = np.concatenate([np.ones((1, rows), np.int64), ids])
    target_out = np.concatenate([ids, np.zeros((1, rows), np.int64)])
    target_out[np.arange(longest + 1)[:, None] > lengths] = -1
    target_out[lengths, np.arange(rows)] = 2
    return target_in, target_out


def pair(rng: np.random.Generator, rows: int, longest: int = 6) -> tuple[np.ndarray, ...]:
    source, lengths = sentences(rng, rows, longest + 1)
    return (source, lengths, *targets(*sentences(rng, rows, longest)))


MODELS: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    ("plain", seq2seq, {}),
    ("two layers", seq2seq, {"encoder_layers": 2}),
    ("latent", seq2seq, {"latent_size": 3}),
    ("pointer", pointer, {}),
    ("pointer, latent", pointer, {"latent_size": 3, "encoder_layers": 2}),
    ("vae", text_vae, {"annealing": "none"}),
    ("vae, both directions", text_vae, {"bidirectional": True, "word_dropout": 0.3, "free_bits": 0.1}),
    ("vae, normalised posterior", text_vae, {"posterior_deviation": 0.7}),
    ("language model", text_vae, {"latent_size": 0}),
]
every_model = pytest.mark.parametrize(("make", "settings"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])


def loss_of(model: Any, batch: tuple[np.ndarray, ...], seed: int = 5) -> tuple[Tensor, int, dict[str, float]]:
    if isinstance(model, Seq2Seq):
        return model.loss(*batch, seed=seed)
    return model.loss(batch[2], batch[3], seed=seed)


# Training --------------------------------------------------------------------------------------------------------------------


@every_model
def test_a_tiny_batch_is_learned(make: Callable[..., Any], settings: dict[str, Any], rng: np.random.Generator) -> None:
    smoothing = {"word_dropout": 0.0, "free_bits": 0.0} if make is text_vae else {"label_smoothing": 0.0}
    model, batch = make(**settings | smoothing | {"dropout": 0.0}), pair(rng, 4)
    optimizer = optim.AdamW(model.parameters(), 2e-2)
    losses = []
    for step in range(120):
        with nn.dropout_scope(0, step):
            loss, count, _ = loss_of(model.train(), batch)
        loss.backward(np.full((), 1 / count, np.float32))
        optimizer.step(max_norm=1.0)
        optimizer.zero_grad()
        losses.append(loss.item() / count)
    assert 2.0 < losses[0] < 3.0
    assert losses[-1] < 0.3 * losses[0]


@every_model
def test_gradients_end_to_end(make: Callable[..., Any], settings: dict[str, Any], rng: np.random.Generator) -> None:
    """Along random directions of each parameter, in float64, with dropout and label smoothing at work."""
    model = make(**settings).astype(np.float64).train()
    batch = pair(rng, 3, 4)

    def loss() -> Tensor:
        with nn.dropout_scope(3, 1):
            total, count, _ = loss_of(model, batch)
        return total * (1.0 / count)

    loss().backward()
    for name, parameter in model.named_parameters():
        if ".running_" in name:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        start, epsilon = parameter.data.copy(), 1e-6
        for _ in range(2):
            direction = rng.standard_normal(start.shape)
            ends = []
            for sign in (1, -1):
                parameter.data[...] = start + sign * epsilon * direction
                ends.append(loss().item())
            parameter.data[...] = start
            expected, found = (ends[0] - ends[1]) / (2 * epsilon), float((parameter.grad * direction).sum())
            # measured: at most 2e-9 apart; the differences' own error is about 1e-16 / 1e-6
            assert found == pytest.approx(expected, rel=1e-6, abs=2e-8), name


@every_model
def test_threads_do_not_change_a_bit(
    make: Callable[..., Any], settings: dict[str, Any], rng: np.random.Generator, restored: None
) -> None:
    batch, found = pair(rng, 5), []
    for threads in (1, 2):
        _core.set_num_threads(n=threads)
        model = make(**settings).train()
        with nn.dropout_scope(0, 1):
            loss, _, _ = loss_of(model, batch)
        loss.backward()
        found.append([loss.data.tobytes(), *(p.grad.tobytes() for p in model.parameters() if p.grad is not None)])
    assert found[0] == found[1]


@every_model
def test_op_calls_do_not_grow_with_time(
    make: Callable[..., Any], settings: dict[str, Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def counted(op: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return op(**arguments)

        return call

    model = make(**settings).train()
    for name in dir(_core):
        if callable(getattr(_core, name)) and name.islower() and not name.startswith("_"):
            monkeypatch.setattr(_core, name, counted(getattr(_core, name)))
    found = []
    for longest in (3, 40):
        batch, calls = pair(rng, 3, longest), 0
        model.zero_grad()
        loss_of(model, batch)[0].backward()
        found.append(calls)
    assert found[0] == found[1]
    assert found[0] < 250


text_to_text = pytest.mark.parametrize(
    ("make", "settings"),
    [
        (seq2seq, {}),
        (seq2seq, {"encoder_layers": 2}),
        (seq2seq, {"latent_size": 3}),
        (pointer, {}),
        (pointer, {"latent_size": 3}),
    ],
    ids=["plain", "two layers", "latent", "pointer", "pointer, latent"],
)


@pytest.mark.parametrize(
    ("make", "settings"),
    [(seq2seq, {}), (seq2seq, {"encoder_layers": 2}), (pointer, {})],
    ids=["plain", "two layers", "pointer"],
)
def test_padding_and_company_do_not_change_the_loss(
    make: Callable[..., Any], settings: dict[str, Any], rng: np.random.Generator
) -> None:
    """In eval mode the loss of a batch is the sum of the losses of its rows alone."""
    model = make(**settings).eval()
    source, lengths, target_in, target_out = pair(rng, 4)
    total, count, _ = model.loss(source, lengths, target_in, target_out)
    alone = []
    for n in range(4):
        steps = int((target_out[:, n] >= 0).sum())
        row = slice(n, n + 1)
        alone.append(model.loss(source[: lengths[n], row], lengths[row], target_in[:steps, row], target_out[:steps, row]))
    assert count == sum(c for _, c, _ in alone)
    assert total.item() == pytest.approx(sum(loss.item() for loss, _, _ in alone), rel=1e-6)


def test_label_smoothing_only_in_training(rng: np.random.Generator) -> None:
    batch = pair(rng, 4)
    smooth, plain = seq2seq(dropout=0.0, label_smoothing=0.1), seq2seq(dropout=0.0, label_smoothing=0.0)
    assert smooth.eval().loss(*batch)[0].item() == plain.eval().loss(*batch)[0].item()
    assert smooth.train().loss(*batch)[0].item() != plain.train().loss(*batch)[0].item()


def test_the_default_model_has_about_seven_million_parameters() -> None:
    assert 6.0e6 < Seq2Seq(Seq2SeqConfig()).num_parameters() < 7.0e6


# Decoding --------------------------------------------------------------------------------------------------------------------


@text_to_text
def test_steps_give_the_teacher_forced_bits(
    make: Callable[..., Any], settings: dict[str, Any], rng: np.random.Generator
) -> None:
    model = make(**settings).eval()
    source, lengths, target_in, _ = pair(rng, 5)
    whole = model.logits(source, lengths, target_in)
    state = model.start(model.encode(source, lengths))
    for step, ids in enumerate(target_in):
        logits, state = model.step(ids, state)
        assert logits.tobytes() == whole[step].tobytes()


def test_vae_steps_give_the_teacher_forced_bits(rng: np.random.Generator) -> None:
    model = text_vae().eval()
    ids_in, _ = targets(*sentences(rng, 5, 6))
    z = model.prior(5, seed=3)
    whole, state = model.logits(ids_in, z), model.start(z)
    for step, ids in enumerate(ids_in):
        logits, state = model.step(ids, state)
        assert logits.tobytes() == whole[step].tobytes()


@pytest.mark.parametrize("make", [seq2seq, pointer])
def test_a_row_does_not_depend_on_the_others(make: Callable[..., Any], rng: np.random.Generator) -> None:
    """Same bits alone, in a batch, and in another order, with other padding."""
    model = make(encoder_size=19, decoder_size=33).eval()
    source, lengths = sentences(rng, 9, 13)
    ids = rng.integers(4, 11, (4, 9))

    def logits(rows: np.ndarray) -> list[np.ndarray]:
        longest = lengths[rows].max()
        state, found = model.start(model.encode(source[:longest, rows], lengths[rows])), []
        for step in ids:
            out, state = model.step(step[rows], state)
            found.append(out)
        return found

    together = logits(np.arange(9))
    for rows in [np.array([n]) for n in range(9)] + [rng.permutation(9), np.array([4, 8, 2])]:
        for step, out in enumerate(logits(rows)):
            assert out.tobytes() == together[step][rows].tobytes()


@pytest.mark.parametrize(
    "indices",
    [[0, 1, 2], [0, 1, 2, 0, 1, 2], [2, 0, 2, 0], [1], [2, 1, 1], [0, 0, 1, 1], []],
    ids=["same", "repeated", "subset twice", "one", "uneven", "other order", "none"],
)
@pytest.mark.parametrize("make", [seq2seq, pointer])
def test_select(make: Callable[..., Any], indices: list[int], rng: np.random.Generator) -> None:
    """Whatever order the rows come in, each goes on as it would have alone."""
    model = make(latent_size=2).eval()
    source, lengths = sentences(rng, 3, 8)
    _, state = model.step(np.array([4, 5, 6]), model.start(model.encode(source, lengths)))
    alone, _ = model.step(np.array([7, 8, 9]), state)
    chosen = state.select(indices)
    if not indices:
        return
    logits, after = model.step(np.array([7, 8, 9])[indices], chosen)
    assert logits.tobytes() == alone[indices].tobytes()
    # And a second selection out of what has been selected.
    again = rng.integers(0, len(indices), 4)
    more, _ = model.step(np.full(4, 5), after.select(again))
    expected, _ = model.step(np.full(len(indices), 5), after)
    assert more.tobytes() == expected[again].tobytes()


def test_beams_share_their_sentences_memory(rng: np.random.Generator) -> None:
    model = seq2seq().eval()
    state: Seq2SeqState = model.start(model.encode(*sentences(rng, 3, 8)))
    beams = state.select(np.tile(np.arange(3), 4))
    assert beams.memory is state.memory
    assert beams.select([3, 1, 5, 9, 7, 2]).memory is state.memory
    fewer = beams.select([0, 1, 3, 4])  # sentence 2 is done
    assert fewer.memory.keys.shape[1] == 2


# Copying ---------------------------------------------------------------------------------------------------------------------


def test_the_mixture_is_one_distribution_and_the_loss_its_logarithm(rng: np.random.Generator) -> None:
    model = pointer().astype(np.float64).eval()
    source, lengths, target_in, target_out = pair(rng, 5)
    logs = model.logits(source, lengths, target_in)
    assert np.exp(logs).sum(axis=2) == pytest.approx(1.0, rel=1e-12)
    total, count, info = model.loss(source, lengths, target_in, target_out)
    steps, rows = np.nonzero(target_out >= 0)
    expected = -logs[steps, rows, target_out[steps, rows]].sum()
    assert count == len(rows)
    # the constant that keeps the log of a share of 0 finite: 1e-10 of a probability
    assert total.item() == pytest.approx(expected, rel=1e-8)
    assert 0 < info["copied"] < 1


def test_copied_probability_by_hand(rng: np.random.Generator) -> None:
    """Equal ids add up, in each row by itself; the gate weighs the two distributions."""
    model = pointer().eval()
    features = rng.standard_normal((2, 17)).astype(np.float32)
    weights = np.array([[0.5, 0.25, 0.25], [0.1, 0.9, 0.0]], np.float32)
    source = np.array([[7, 3, 7], [3, 9, 0]])
    places, order = _places(source.T, 11)
    found = np.exp(model._log_probabilities(features[None], weights[:, None], places, order))
    gates = np.exp(features @ model.gate.weight.data.T + model.gate.bias.data)
    gates /= gates.sum(axis=1, keepdims=True)
    logits = np.exp(model.output(features).data)
    expected = logits / logits.sum(axis=1, keepdims=True) * gates[:, :1]
    for row in range(2):
        for weight, index in zip(weights[row], source[row], strict=True):
            expected[row, index] += weight * gates[row, 1]
    assert found == pytest.approx(expected, rel=1e-5)


def test_it_learns_to_copy_what_it_never_wrote(rng: np.random.Generator) -> None:
    """Trained to repeat sources of the ids 4 to 24, it repeats ids 25 to 29, too; without copying no model can."""
    with nn.init_scope(1):
        model = PointerGenerator(
            PointerGeneratorConfig(
                vocab_size=30, embedding_size=24, encoder_size=24, decoder_size=32, copy_size=24, dropout=0.0
            )
        )
    optimizer = optim.AdamW(model.parameters(), 1e-2)

    def batch(low: int, high: int, rows: int) -> tuple[np.ndarray, ...]:
        source = rng.integers(low, high, (5, rows))
        lengths = np.full(rows, 5)
        return (source, lengths, *targets(source, lengths))

    for step in range(250):
        with nn.dropout_scope(0, step):
            loss, count, _ = model.train().loss(*batch(4, 25, 32))
        loss.backward(np.full((), 1 / count, np.float32))
        optimizer.step(max_norm=1.0)
        optimizer.zero_grad()
    source, lengths, target_in, _ = batch(25, 30, 40)
    logs = model.eval().logits(source, lengths, target_in[:1])
    assert (logs[0].argmax(axis=1) == source[0]).mean() > 0.9


# The VAE ---------------------------------------------------------------------------------------------------------------------


def test_beta_schedules() -> None:
    monotonic = TextVAEConfig(annealing="monotonic", annealing_share=0.5, beta=0.8)
    assert [monotonic.beta_at(step, 100) for step in (25, 50, 100)] == pytest.approx([0.4, 0.8, 0.8])
    cyclical = TextVAEConfig(annealing="cyclical", cycles=4)
    betas = [cyclical.beta_at(step, 400) for step in range(1, 401)]
    assert betas[:100] == betas[100:200] == betas[300:]
    assert betas[0] == 0.0
    assert betas[25] == pytest.approx(0.5)
    assert betas[50:100] == [1.0] * 50
    assert TextVAEConfig(annealing="none").beta_at(1, 100) == 1.0


def test_pretraining_begins_with_an_autoencoder_and_a_new_decoder() -> None:
    model = text_vae(pretraining_share=0.2, annealing_share=0.5)
    assert [model.config.beta_at(step, 100) for step in (1, 20, 40, 60, 100)] == pytest.approx([0, 0, 0.5, 1, 1])
    before = {name: array.copy() for name, array in model.state_dict().items()}
    for step in range(1, 22):
        model.on_step(step, 100)
        if step == 20:
            assert all((array == before[name]).all() for name, array in model.state_dict().items())
    kept = {name for name, array in model.state_dict().items() if (array == before[name]).all()}
    assert {"embedding.weight", "encoder.weight_ih_l0", "posterior.mu.weight", "posterior.logvar.weight"} <= kept
    assert not kept & {"bridge.weight", "decoder.weight_ih_l0", "decoder.weight_hh_l0", "output.projection.weight"}
    # as in a run that was resumed there: the same new weights
    again = text_vae(pretraining_share=0.2, annealing_share=0.5)
    again.on_step(21, 100)
    assert all((array == again.state_dict()[name]).all() for name, array in model.state_dict().items())


def test_aggressive_training_gives_the_encoder_more_turns(rng: np.random.Generator) -> None:
    model, batch = text_vae(aggressive_steps=2, aggressive_share=0.5, dropout=0.0).train(), pair(rng, 4)
    turns = []
    for step in range(1, 13):
        loss_of(model, batch)[0].backward()
        model.on_gradients(step, 20)
        given = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
        only = given <= {"encoder", "posterior", "norm"}
        turns.append("e" if only else "d" if "encoder" not in given else "b")
        model.zero_grad()
    assert "".join(turns) == "eedeedeedebb"


def test_a_normalised_posterior_pays_at_least_what_gamma_asks(rng: np.random.Generator) -> None:
    """KL >= D gamma^2 / 2 on the batch's mean: sum of (mu^2 + var - log var - 1) / 2 >= mu^2 / 2 (Zhu et al. 2020)."""
    model, batch = text_vae(posterior_deviation=0.7, dropout=0.0).train(), pair(rng, 16)
    assert loss_of(model, batch)[2]["kl"] >= 4 * 0.7**2 / 2 - 1e-4
    for step in range(1, 400):
        loss_of(model, batch)
        model.on_gradients(step, 1000)
    whole = loss_of(model.eval(), batch)[2]["kl"]
    assert whole == pytest.approx(loss_of(model.train(), batch)[2]["kl"], rel=1e-3), "the running figures are the batch's"


def test_beta_weighs_the_kl(rng: np.random.Generator) -> None:
    model, batch = text_vae(annealing="monotonic", annealing_share=1.0, dropout=0.0, posterior_deviation=0.0), pair(rng, 4)
    whole, _, info = loss_of(model.eval(), batch)
    reconstruction, kl = info["reconstruction"] * 4, info["kl"] * 4
    assert whole.item() == pytest.approx(reconstruction + kl, rel=1e-6)
    model.train().on_step(30, 100)
    part, _, info = loss_of(model, batch)
    assert info["beta"] == pytest.approx(0.3)
    assert part.item() == pytest.approx(reconstruction + 0.3 * kl, rel=1e-5)


def test_free_bits_raise_the_loss_but_not_the_reported_kl(rng: np.random.Generator) -> None:
    batch = pair(rng, 4)
    plain = loss_of(text_vae(dropout=0.0, annealing="none").train(), batch)
    freed = loss_of(text_vae(dropout=0.0, annealing="none", free_bits=2.0).train(), batch)
    assert freed[2]["kl"] == pytest.approx(plain[2]["kl"], rel=1e-6)
    assert freed[0].item() - plain[0].item() == pytest.approx(4 * (4 * 2.0 - plain[2]["kl"]), rel=1e-5)


def test_word_dropout_keeps_the_begin(rng: np.random.Generator) -> None:
    model = text_vae(word_dropout=0.9)
    ids_in, _ = targets(*sentences(rng, 50, 6))
    dropped = model._drop_words(ids_in, seed=1)
    assert (dropped[0] == 1).all()
    assert 0.8 < (dropped[1:] == 3).mean() < 0.97


def test_word_dropout_hides_pieces_as_a_whole(rng: np.random.Generator) -> None:
    model = seq2seq(word_dropout=0.5, dropout=0.0)
    ids = rng.integers(4, model.config.vocab_size, (40, 3))
    plain = model.eval()._embed(ids).data
    with nn.dropout_scope(1, 1):
        hidden = model.train()._embed(ids).data
    seen = hidden.any(axis=2)
    assert seen[0].all()
    assert 0.3 < seen.mean() < 0.7
    np.testing.assert_allclose(hidden[1:][seen[1:]], 2 * plain[1:][seen[1:]], rtol=1e-6)
    np.testing.assert_array_equal(hidden[0], plain[0])


def test_draws_from_the_prior_do_not_depend_on_their_number() -> None:
    model = text_vae()
    assert model.prior(5, seed=1)[3].tobytes() == model.prior(1, seed=1, first=3)[0].tobytes()
    assert model.prior(2, seed=1).tobytes() != model.prior(2, seed=2).tobytes()


# Mistakes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", 0), ("dropout", 1.0), ("word_dropout", 1.0), ("label_smoothing", -0.1), ("latent_size", -1)],
)
def test_seq2seq_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        Seq2SeqConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("copy_size", 0), ("label_smoothing", 0.1), ("dropout", 1.0)])
def test_pointer_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        PointerGeneratorConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("latent_size", -1), ("word_dropout", 1.0), ("free_bits", -1.0), ("annealing_share", 0.0)]
)
def test_vae_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        TextVAEConfig(**{name: value})
