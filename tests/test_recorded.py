"""A step of decoding that is recorded by the core: the same bits as the step itself, whatever comes between."""

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from rheme import _core, decoding, nn, ops, quantization, storage
from rheme.decoding import GenerationOptions
from rheme.models.pointer_generator import PointerGenerator, PointerGeneratorConfig
from rheme.models.seq2seq import Seq2Seq, Seq2SeqConfig
from rheme.models.text_vae import TextVAE, TextVAEConfig
from rheme.ops.recorded import _MOST, Captured, OnCpu

SIZES = {"vocab_size": 83, "embedding_size": 12, "encoder_size": 9, "decoder_size": 20}
SOURCE = np.random.default_rng(3).integers(4, 83, (7, 5))
LENGTHS = np.array([7, 3, 6, 1, 7])


def text_vae(latent_size: int = 6) -> TextVAE:
    return TextVAE(TextVAEConfig(**SIZES, latent_size=latent_size))  # type: ignore[arg-type]


MODELS = {
    "text_vae": text_vae,
    "language_model": lambda: text_vae(0),
    "seq2seq": lambda: Seq2Seq(Seq2SeqConfig(**SIZES)),  # type: ignore[arg-type]
    "latent_seq2seq": lambda: Seq2Seq(Seq2SeqConfig(**SIZES, latent_size=4)),  # type: ignore[arg-type]
    "pointer_generator": lambda: PointerGenerator(PointerGeneratorConfig(**SIZES)),  # type: ignore[arg-type]
}


def made(name: str, precision: str = "float32") -> Any:
    with nn.init_scope(5):
        model: Any = MODELS[name]().eval()
    if precision == "float64":
        model.astype(np.float64)
    elif precision != "float32":
        quantization.load(model, storage.compress(model.state_dict(), precision), precision)
    return model


def started(model: Any, seed: int = 0) -> Any:
    """The state before the first step, for five inputs."""
    if isinstance(model, TextVAE):
        return model.start(model.prior(5, seed))
    return model.start(model.encode(np.roll(SOURCE, seed, axis=1), LENGTHS))


@pytest.mark.parametrize("precision", ["float32", "float64", "float16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_steps_have_the_same_bits(name: str, precision: str) -> None:
    """Steps from the state before, from one with rows chosen anew, and from other inputs of the same shape."""
    model = made(name, precision)
    captured, generator = model.captured(), np.random.default_rng(0)
    for seed in range(3):
        here = there = started(model, seed)
        for step in range(9):
            ids = generator.integers(0, 83, 5)
            logits, here = model.step(ids, here)
            recorded, there = captured.step(ids, there)
            np.testing.assert_array_equal(recorded, logits)
            if getattr(here, "attention", None) is not None:
                np.testing.assert_array_equal(there.attention[0], here.attention[0])
                np.testing.assert_array_equal(there.attention[1], here.attention[1])
            if step in (4, 6):
                rows = generator.permutation(5)
                here, there = here.select(rows), there.select(rows)
    assert captured.recordings._latest is not None, "nothing was recorded"


@pytest.mark.parametrize("name", MODELS)
def test_decoding_writes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(name)
    for options in (
        GenerationOptions(max_new_tokens=12),
        GenerationOptions(max_new_tokens=12, num_beams=3, num_return_sequences=2),
        GenerationOptions(max_new_tokens=12, do_sample=True, top_k=9, top_p=0.9, num_return_sequences=2),
        GenerationOptions(max_new_tokens=12, repetition_penalty=1.3, no_repeat_ngram_size=2),
    ):
        texts = []
        for capture in (True, False):
            with monkeypatch.context() as patched:
                if not capture:
                    patched.setattr(nn.Module, "captured", lambda self: self)
                constraints = decoding.Constraints(forbid=[0, 3])
                found = decoding.generate(model, started(model), 5, options, 1, 2, constraints, streams=range(5))
            texts.append([[(hypothesis.ids, hypothesis.score) for hypothesis in one] for one in found])
        assert texts[0] == texts[1]


def test_recordings_are_kept_until_a_weight_changes() -> None:
    model = made("seq2seq")
    for _ in range(2):
        decoding.generate(model, started(model), 5, GenerationOptions(max_new_tokens=5), 1, 2)
        before = model.captured().recordings
    assert before is model.captured().recordings
    bias = model.output.vocabulary.bias
    model.load_state_dict(model.state_dict() | {"output.vocabulary.bias": bias.data[::-1].copy()})
    assert model.captured().recordings is not before
    captured, state, other = model.captured(), started(model), started(model)
    for _ in range(4):
        ids = np.full(5, 1)
        recorded, state = captured.step(ids, state)
        logits, other = model.step(ids, other)
        np.testing.assert_array_equal(recorded, logits)
    alive = weakref.ref(model)
    del model, bias, captured, state
    gc.collect()
    assert alive() is None, "a recording keeps its model alive"


def test_weights_outlive_the_module_that_packed_them() -> None:
    """What was recorded may be run after the weights were packed anew, and then still reads those that it was recorded with."""
    linear = nn.Linear(70, 130)
    x = ops.random_normal(0, 0, 0, (2, 70))
    linear.infer(x)  # packs, which is not to be recorded
    (copy,), y, run = OnCpu().record(linear.infer, [x])
    first = y.copy()
    for _ in range(20):
        linear.weight.version += 1
        linear.infer(x)  # packs anew, where the old one stood if that were free
    y[...] = 0
    run()
    np.testing.assert_array_equal(y, first)
    np.testing.assert_array_equal(copy, x)


def test_ids_are_checked_at_each_run() -> None:
    model = made("text_vae")
    captured, state = model.captured(), started(model)
    for _ in range(4):
        _, state = captured.step(np.full(5, 1), state)
    with pytest.raises(IndexError, match=r"ids: 83 at position 2, wanted 0\.\.82"):
        captured.step(np.array([1, 1, 83, 1, 1]), state)


def test_every_thread_has_its_own() -> None:
    model, found = made("pointer_generator"), {}

    def decode(seed: int) -> None:
        for _ in range(6):
            answers = decoding.generate(model, started(model, seed), 5, GenerationOptions(max_new_tokens=20), 1, 2)
            found.setdefault(seed, set()).add(str([answer[0].ids for answer in answers]))

    threads = [threading.Thread(target=decode, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        answers = decoding.generate(model, started(model, seed), 5, GenerationOptions(max_new_tokens=20), 1, 2)
        assert found[seed] == {str([answer[0].ids for answer in answers])}


def test_not_all_shapes_are_kept() -> None:
    model = made("seq2seq")
    for length in range(1, _MOST + 9):
        state = model.start(model.encode(np.full((length, 1), 5)))
        for _ in range(3):
            _, state = model.captured().step(np.full(1, 1), state)
    assert len(model.captured().recordings._seen) == _MOST


def test_what_one_recording_writes_another_reads_anew() -> None:
    def step(ids: Any, state: tuple[Any, Any]) -> Any:
        h = ops.exp(state[0])
        return ops.embedding(ids, h), (h, h if state[1] is None else ops.add(h, state[1]))

    captured = Captured(step, OnCpu())
    for call in range(5):  # the first step of each has a shape of its own: its results go to the other recording
        here = there = (np.full((3, 2), call / 9), None)
        for ids in (np.array([2]), np.array([1])):
            (plain, here), (recorded, there) = step(ids, here), captured.step(ids, there)  # type: ignore[assignment]
            np.testing.assert_array_equal(recorded, plain)


def test_a_recording_that_fails_is_ended() -> None:
    def step(x: Any) -> Any:
        ops.exp(x)
        raise KeyError("no")

    for _ in range(2):
        with pytest.raises(KeyError, match="no"):
            OnCpu().record(step, [np.ones(3)])
    recording = _core.Recording()
    recording.begin()
    try:
        with pytest.raises(RuntimeError, match="recording already"):
            _core.Recording().begin()
        with pytest.raises(RuntimeError, match="no part of another"):
            recording.run()
        w = [np.ones((4, 1), np.float32)]
        with pytest.raises(ValueError, match="packed"):
            ops.lstm(np.ones((2, 2, 1), np.float32), w, w, [np.ones(4, np.float32)])
        small = np.ones((4, 1), np.float16)
        rest = {"targets": np.array([0]), "ignore_index": -1, "label_smoothing": 0.0, "saved": w[0].T.copy()}
        for name, call in {
            "pack_linear": lambda: ops.pack_linear(w[0]),
            "pack_lstm": lambda: ops.pack_lstm(w, w),
            "pack_quantized": lambda: ops.pack_quantized(small),
            "global_norm": lambda: ops.global_norm(w),
            "cross_entropy_backward": lambda: ops.cross_entropy_backward(np.ones(1, np.float32), w[0].T.copy(), **rest),
        }.items():
            with pytest.raises(RuntimeError, match=f"^{name}: cannot be recorded"):
                call()
    finally:
        recording.end()
    ops.lstm(np.ones((2, 2, 1), np.float32), w, w, [np.ones(4, np.float32)])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", ">f4"])
def test_copies_are_those_of_numpy(dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 2, (4, 3, 5)).astype(dtype)
    for view in (x.T, x[:, ::2], x[::-1, :, 1], x.transpose(0, 2, 1), x[:, :0], x[..., None], x[0, 0, 0:1].reshape(())):
        copy = ops.contiguous(view)
        assert copy.flags.c_contiguous
        assert copy.dtype == view.dtype
        np.testing.assert_array_equal(copy, view)
        np.testing.assert_array_equal(_core.contiguous(x=view), view)
    for axis in (0, 1, -1):
        np.testing.assert_array_equal(ops.concat([x, x[::-1], x], axis), np.concatenate([x, x[::-1], x], axis))
    np.testing.assert_array_equal(ops.concat([x[:, :0], x], 1), x)
