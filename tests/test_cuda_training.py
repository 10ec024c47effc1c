"""Training, evaluation, decoding and the command line with device "cuda", on the emulated device."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda_device import EMULATED, down, emulated, up
from rheme import _cuda, decoding, evaluation, nn, ops, optim, training
from rheme import functional as F
from rheme.autograd import Tensor, gradcheck
from rheme.decoding import GenerationOptions
from rheme.errors import InputError
from rheme.models.classifier import ClassifierConfig, TextClassifier
from rheme.models.pointer_generator import PointerGenerator, PointerGeneratorConfig
from rheme.models.seq2seq import Seq2Seq, Seq2SeqConfig
from rheme.models.span_reader import ReaderBatch, SpanReader, SpanReaderConfig
from rheme.models.text_vae import TextVAE, TextVAEConfig
from rheme.training import Interrupted, TrainingConfig
from test_autograd import CHECKS
from test_training import SETTINGS, new_task, pairs, weights

RNG = np.random.default_rng(5)
IDS = RNG.integers(4, 23, (6, 4))
LENGTHS = np.array([6, 3, 1, 4])
TARGETS = np.where(np.arange(6)[:, None] < LENGTHS, IDS, -1)


@pytest.fixture
def cupy() -> Iterator[Any]:
    with emulated() as module:
        yield module


def vae() -> tuple[Any, Callable[[Any, int], Any]]:
    sizes = {"vocab_size": 23, "embedding_size": 6, "encoder_size": 5, "decoder_size": 7, "latent_size": 3}
    kept = {"word_dropout": 0.2, "free_bits": 0.1, "free_bits_over": "batch", "bidirectional": True}
    return TextVAE(TextVAEConfig(**sizes | kept)), lambda model, seed: model.loss(IDS, TARGETS, seed=seed)  # type: ignore[arg-type]


def seq2seq() -> tuple[Any, Callable[[Any, int], Any]]:
    config = Seq2SeqConfig(
        vocab_size=23, embedding_size=6, encoder_size=5, encoder_layers=2, decoder_size=7, latent_size=2, latent_free_bits=0.1
    )
    return Seq2Seq(config), lambda model, seed: model.loss(IDS, LENGTHS, IDS, TARGETS, seed=seed)


def span_reader() -> tuple[Any, Callable[[Any, int], Any]]:
    rng = np.random.default_rng(2)
    config = SpanReaderConfig(
        vocab_size=20, word_size=4, char_size=3, char_filters=5, char_width=3, embedding_size=6, hidden_size=4, features=2,
        pair_size=3, max_span=3,
    )  # fmt: skip
    batch = ReaderBatch(
        words=rng.integers(0, 20, 9),
        chars=rng.integers(0, 200, (9, 7)),
        passages=rng.integers(0, 9, (6, 2)),
        questions=rng.integers(0, 9, (3, 3)),
        passage_lengths=np.array([6, 4]),
        question_lengths=np.array([3, 1, 2]),
        owner=np.array([0, 1, 1]),
        features=rng.normal(size=(6, 3, 2)).astype(np.float32),
    )
    spans, counts = np.array([[[1, 2]], [[0, 0]], [[0, 0]]]), np.array([1, 1, 0])
    return SpanReader(config), lambda model, seed: model.loss(batch, spans, counts, seed)


def pointer_generator() -> tuple[Any, Callable[[Any, int], Any]]:
    config = PointerGeneratorConfig(vocab_size=23, embedding_size=6, encoder_size=5, decoder_size=7, copy_size=4)
    return PointerGenerator(config), lambda model, seed: model.loss(IDS, LENGTHS, IDS, TARGETS, seed=seed)


def classifier() -> tuple[Any, Callable[[Any, int], Any]]:
    rng = np.random.default_rng(2)
    config = ClassifierConfig(embedding_size=5, hidden_size=4, code_size=3, piece_dropout=0.1)
    bag = rng.integers(0, 30, (7, 4)), rng.random((7, 4)).astype(np.float32)

    def loss(model: Any, seed: int) -> Any:
        logits = model(IDS, LENGTHS, *bag, seed=seed)
        return F.neg(F.sum(F.log_softmax(logits)[:, 1])), 4, {}

    return TextClassifier(config, pieces=23, features=30, labels=3), loss


MODELS = {
    "text_vae": vae,
    "seq2seq": seq2seq,
    "pointer_generator": pointer_generator,
    "span_reader": span_reader,
    "classifier": classifier,
}


def trained(name: str, device: str, steps: int = 3) -> tuple[Any, list[float]]:
    with nn.init_scope(1):
        model, loss_of = MODELS[name]()
    model.to(device).train()
    # Not AdamW: where a gradient is rounding alone (free bits), it makes a whole step of it, in any direction.
    optimizer, losses = optim.SGD(model.parameters(), 0.1, momentum=0.9), []
    for step in range(steps):
        with nn.dropout_scope(0, step):
            loss, count, _ = loss_of(model, step)
        loss.backward(np.full(loss.shape, 1.0 / count, loss.dtype))
        losses += [loss.item(), optimizer.step(max_norm=1.0)]
        optimizer.zero_grad()
    return model, losses


@pytest.mark.parametrize("name", MODELS)
def test_training_follows_the_cpu(name: str, cupy: Any) -> None:
    (here, losses), (there, their_losses) = trained(name, "cpu"), trained(name, "cuda")
    np.testing.assert_allclose(their_losses, losses, rtol=2e-5)
    for (label, ours), (_, theirs) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert ops.on_gpu(theirs.data), label
        np.testing.assert_allclose(down(theirs.data), ours.data, rtol=1e-4, atol=2e-6, err_msg=label)
    assert not ops.on_gpu(next(iter(there.to("cpu").parameters())).data)


def test_a_new_decoder_after_the_autoencoder_is_the_cpus(cupy: Any) -> None:
    weights = []
    for device in ("cpu", "cuda"):
        with nn.init_scope(1):
            model = TextVAE(TextVAEConfig(vocab_size=23, embedding_size=6, encoder_size=5, decoder_size=7, latent_size=3))
        model.config.pretraining_share = 0.5
        model.to(device)
        before = {name: np.array(down(array)) for name, array in model.state_dict().items()}
        for step in range(4):
            model.on_step(step + 1, 4)
        weights.append({name: down(array) for name, array in model.state_dict().items()})
        assert any((before[name] != array).any() for name, array in weights[-1].items())
    for name, array in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], array, name)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_copies_nothing_to_the_host_but_its_figures(name: str, cupy: Any) -> None:
    """The figures that are logged, the loss, and the norm that decides about clipping: a few numbers of 8 bytes or less."""
    model, loss_of = MODELS[name]()
    model.to("cuda").train()
    optimizer = optim.AdamW(model.parameters(), 1e-2)
    for step in range(2):
        cupy.counts.clear()
        with nn.dropout_scope(0, step):
            loss, count, info = loss_of(model, step)
        figures = cupy.counts["to host"]
        assert figures <= len(info)
        loss.backward(np.full(loss.shape, 1.0 / count, loss.dtype))
        assert cupy.counts["to host"] == figures, "backward copies to the host"
        optimizer.step(max_norm=1.0)
        assert cupy.counts["to host"] == figures + 1
        loss.item()
        assert cupy.counts["bytes to host"] <= 8 * figures + 24 + 8
        # What goes up: ids, lengths and masks of the batch
        assert cupy.counts["bytes to device"] < 20_000


def decoded(name: str) -> Iterator[tuple[Any, Any]]:
    """Ids that a model writes, on the CPU and on the device, for each of some options."""
    here, there = trained(name, "cpu", 1)[0].eval(), trained(name, "cpu", 1)[0].to("cuda").eval()
    for options in (
        GenerationOptions(max_new_tokens=7),
        GenerationOptions(max_new_tokens=7, num_beams=3, num_return_sequences=2),
        GenerationOptions(max_new_tokens=7, do_sample=True, top_k=9, top_p=0.9, num_return_sequences=2),
        GenerationOptions(max_new_tokens=7, repetition_penalty=1.3, no_repeat_ngram_size=2),
    ):
        texts = []
        for model in (here, there):
            state = model.start(here.prior(4, 3) if name == "text_vae" else model.encode(IDS, LENGTHS))
            constraints = decoding.Constraints(forbid=[0, 3])
            found = decoding.generate(model, state, 4, options, 1, 2, constraints, streams=range(4))
            texts.append([[hypothesis.ids for hypothesis in one] for one in found])
        yield texts[0], texts[1]


@pytest.mark.parametrize("name", ["text_vae", "seq2seq", "pointer_generator"])
def test_decoding_gives_the_cpus_texts(name: str, cupy: Any) -> None:
    for here, there in decoded(name):
        assert here == there
        assert cupy.counts["graph"], "a step is recorded as a graph"
        cupy.counts.clear()


def test_a_step_of_decoding_brings_ids_and_their_scores(cupy: Any) -> None:
    model = trained("seq2seq", "cuda", 1)[0].eval()
    state = model.start(model.encode(IDS, LENGTHS))
    cupy.counts.clear()
    decoding.generate(model, state, 4, GenerationOptions(max_new_tokens=5), 1, 2, decoding.Constraints(forbid=[2]))
    assert cupy.counts["to host"] == 2 * 5
    assert cupy.counts["bytes to host"] == 5 * 4 * (8 + 4)


def test_a_step_of_the_summarizer_is_one_graph(cupy: Any) -> None:
    """What it copies is sorted at `encode`: in a step nothing is sorted, and nothing but the ids comes from the host."""
    here, there = (trained("pointer_generator", device, 1)[0].eval() for device in ("cpu", "cuda"))
    step, states = there.captured(), []
    for model in (here, there, there):
        state = model.start(model.encode(IDS, LENGTHS))
        states.append(state.select(np.tile(np.arange(4), 3)).select([0, 2, 3, 4, 6, 7]))  # beams, and an ended sentence
    ids = np.array([7, 9, 5, 9, 7, 11])
    for number in range(4):
        cupy.counts.clear()
        logs, states[0] = here.step(ids, states[0])
        on_device, states[1] = step.step(ids, states[1])
        np.testing.assert_allclose(down(on_device), logs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(down(states[1].attention[0]), states[0].attention[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(states[1].attention[1], states[0].attention[1])
        assert not cupy.counts["argsort"]
        if number > 1:  # not recorded; recorded, and what does not change brought there; then the ids alone
            assert (cupy.counts["graph"], cupy.counts["bytes to device"]) == (1, ids.nbytes)
        directly, states[2] = there.step(ids, states[2])
        np.testing.assert_array_equal(down(directly), down(on_device))
        ids = ids[::-1]


def test_graphs_are_kept_until_a_weight_changes(cupy: Any) -> None:
    """Other sources of the same shape, ended after other numbers of steps, find the graphs there; other weights do not."""
    here, there = (trained("pointer_generator", device, 1)[0].eval() for device in ("cpu", "cuda"))
    launched, graphs = [], []
    for call, steps in enumerate((2, 3, 2, 5, 4)):
        if call == 3:
            for model in (here, there):
                bias = model.output.vocabulary.bias
                model.load_state_dict(model.state_dict() | {"output.vocabulary.bias": ops.to_host(bias.data)[::-1].copy()})
        source, found = np.roll(IDS, call, axis=1), []
        for model in (here, there):
            cupy.counts.clear()
            state = model.start(model.encode(source))
            answers = decoding.generate(model, state, 4, GenerationOptions(max_new_tokens=steps), 1, 2)
            found.append([answer[0].ids for answer in answers])
        assert found[0] == found[1]
        launched.append(cupy.counts["graph"])
        graphs.append(there.captured().recordings)
    assert launched == [1, 3, 2, 4, 4]  # recorded at the second step
    assert graphs[0] is graphs[2] is not graphs[3] is graphs[4]
    step, state = there.captured(), there.start(there.encode(IDS))
    alive = weakref.ref(there)
    del there, model
    step.step(np.full(4, 1), state)
    del step, state
    gc.collect()
    assert alive() is None


def test_what_one_graph_writes_another_reads_anew(cupy: Any) -> None:
    from rheme._cuda import Graphs
    from rheme.ops.recorded import Captured

    def step(ids: Any, state: tuple[Any, Any]) -> Any:
        h = ops.exp(state[0])
        return ops.embedding(ids, h), (h, h if state[1] is None else ops.add(h, state[1]))

    graphs = Captured(step, Graphs())
    for call in range(4):  # the first step of each has a shape of its own: its graph's results go to the other's
        states = [(start, None) for start in (np.full((3, 2), call / 9), up(np.full((3, 2), call / 9)))]
        for ids in (np.array([2]), np.array([1])):
            (here, states[0]), (there, states[1]) = step(ids, states[0]), graphs.step(ids, states[1])
            np.testing.assert_allclose(down(there), here, rtol=1e-12)
    assert cupy.counts["graph"] == 6


def test_a_step_that_cannot_be_recorded_says_why(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rheme._cuda import Graphs
    from rheme.ops.recorded import Captured

    graphs = Captured(lambda ids, state: (ops.exp(up(down(state))), state), Graphs())
    end = cupy.cuda.Stream.end_capture

    def invalidated(stream: Any) -> None:
        end(stream)
        raise RuntimeError("cudaErrorStreamCaptureInvalidated")

    monkeypatch.setattr(cupy.cuda.Stream, "end_capture", invalidated)
    state = up(np.ones(2))
    graphs.step(np.array([1]), state)
    with pytest.raises(RuntimeError, match="a copy to host while a stream is captured"):
        graphs.step(np.array([1]), state)
    assert not cupy.cuda.Stream(non_blocking=True).is_capturing()


def test_not_all_shapes_are_kept(cupy: Any) -> None:
    from rheme.ops.recorded import _MOST

    model = trained("seq2seq", "cuda", 1)[0].eval()
    for length in range(1, _MOST + 9):
        model.captured().step(np.full(1, 1), model.start(model.encode(np.full((length, 1), 5))))
    assert len(model.captured().recordings._seen) == _MOST


def test_evaluation_of_a_vae(cupy: Any) -> None:
    sentences = [[5, 6, 7], [8], [9, 10, 11, 12], [5, 5]]
    reports = []
    for device in ("cpu", "cuda"):
        model = trained("text_vae", "cpu", 1)[0].to(device)
        reports.append(evaluation.evaluate_vae(model, sentences, importance_samples=3, batch_tokens=16))
    for name, value in reports[0].to_dict().items():
        assert reports[1].to_dict()[name] == pytest.approx(value, rel=1e-5), name


def test_gradients_in_float64(cupy: Any) -> None:
    """The tape on the device against the tape on the CPU, where gradcheck holds it to finite differences."""
    x, w = RNG.normal(size=(4, 3, 5)), RNG.normal(size=(6, 5))

    def gradients(device: str) -> list[Any]:
        a, b = (Tensor(ops.to_device(array, device), requires_grad=True) for array in (x, w))
        y = F.relu(F.linear(a, b)) * 2.0 - 0.5
        total = F.sum(F.mean(F.exp(F.tanh(y)), axis=(0, 2), mask=np.array([True, False, True, True])[:, None, None]))
        total = total + F.sum(F.max(y, axis=1)) + F.sum(F.logsumexp(y, axis=0)) + F.sum(y[1:3, ::2] / (y[:2, ::2] + 30.0))
        total = total + F.sum(F.concat([y, F.transpose(y, (0, 1, 2))], axis=2) * np.ones(12))
        total.backward()
        return [ops.to_host(t.grad) for t in (a, b)]  # type: ignore[arg-type]

    for ours, theirs in zip(gradients("cpu"), gradients("cuda"), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-12, atol=1e-13)


CHECKED = ["lstm", "linear_cross_entropy_smooth", "attention", "gaussian_kl_batch", "layer_norm", "embedding", "slice", "max"]


@pytest.mark.parametrize("op", CHECKED)
def test_gradcheck(op: str, rng: np.random.Generator, cupy: Any) -> None:
    """On the device; all ops on a GPU (test_gpu.py)."""
    fn, shapes = CHECKS[op]
    assert gradcheck(fn, [up(rng.normal(size=shape)) for shape in shapes])
    assert cupy.counts["launch"]


def run(out: Path, device: str, resume: bool = False, stop: int | None = None) -> dict[str, Any]:
    task, config = new_task(), TrainingConfig(**SETTINGS | {"max_steps": 8, "valid_every_steps": 4})  # type: ignore[arg-type]
    if stop is not None:
        loss, calls = task.loss, [0]

        def until(items: Any, step_seed: int) -> Any:
            calls[0] += 1
            if calls[0] == stop:
                raise Interrupted("stopped")
            return loss(items, step_seed)

        task.loss = until  # type: ignore[method-assign]
    return training.train(task, pairs(20), pairs(6, 1), out, config, resume=resume, echo=lambda line: None, device=device)


def test_a_checkpoint_moves_between_devices(tmp_path: Path, cupy: Any) -> None:
    whole = run(tmp_path / "cpu", "cpu")
    for first, second in (("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")):
        out = tmp_path / f"{first}-{second}"
        with pytest.raises(Interrupted):
            run(out, first, stop=12)  # after three probes and a few steps
        assert list(out.glob("checkpoint-*"))
        figures = run(out, second, resume=True)
        assert figures["valid_loss"] == pytest.approx(whole["valid_loss"], rel=1e-3)
        assert all(isinstance(array, np.ndarray) for array in weights(out).values())


def test_dlpack(cupy: Any) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    moved = _cuda.from_dlpack(array)
    assert ops.on_gpu(moved)
    np.testing.assert_array_equal(down(ops.exp(moved)), ops.exp(array))


def test_arrays_cross_where_they_must_and_nowhere_else(cupy: Any) -> None:
    weight = up(np.ones((5, 4), np.float32))
    with pytest.raises(IndexError, match="ids: 7 at position 1"):
        ops.embedding(np.array([0, 7]), weight)
    host = np.ones((2, 4), np.float32)
    assert ops.on_gpu(F.linear(host, Tensor(weight)).data)
    assert ops.on_gpu(ops.concat([host, up(host)]))
    assert not ops.on_gpu(ops.asarray(up(host), like=host))
    with pytest.raises(TypeError, match="CuPy"):
        ops.linear(up(host), np.ones((5, 4), np.float32))
    assert nn.Linear(4, 5).to("cuda").load_state_dict({"weight": weight, "bias": np.zeros(5, np.float32)}) is None
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        nn.Linear(4, 5).to("tpu")


# The command line -----------------------------------------------------------------------------------------------------------


def rheme(*arguments: str, emulate: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {f"RHEME_EMULATED_{name}": value for name, value in settings.items()}
    environment |= {"CUPY_CACHE_IN_MEMORY": "1", "RHEME_NUM_THREADS": "1"}
    if emulate:
        environment["PYTHONPATH"] = str(EMULATED)
    return subprocess.run(
        [sys.executable, "-m", "rheme", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_command_line_on_the_device(tmp_path: Path) -> None:
    words = "a b c d e f g h i j k l m n o p".split()
    lines = [" ".join(words[(i * j) % 16] for j in range(1, 3 + i % 5)) for i in range(40)]
    data, model = tmp_path / "pairs.tsv", tmp_path / "model"
    data.write_text("".join(f"{line}\t{line.upper()} {i}\n" for i, line in enumerate(lines)))
    sizes = {"embedding_size": 4, "encoder_size": 4, "decoder_size": 5}
    chosen = [f"--set=task.model.{name}={value}" for name, value in sizes.items()]
    chosen += ["--set=task.vocab_size=320", "--set=train.max_steps=3", "--set=train.batch_tokens=60", "--valid-share=0.2"]
    chosen += ["--set=train.evaluate=false", "--from=en", "--to=fr", "--device=cuda"]
    done = rheme("train", "translation", "--train", str(data), "--out", str(model), *chosen)
    assert done.returncode == 0, done.stderr
    texts = {}
    for device in ("cpu", "cuda"):
        options = ["--model", str(model), "--to", "fr", "--device", device, "--max-new-tokens", "4", "--num-beams", "2"]
        said = rheme("translate", "a b c", "d e", *options)
        assert said.returncode == 0, said.stderr
        texts[device] = said.stdout
    assert texts["cpu"] == texts["cuda"]
    options = ["--model", str(model), "--device", "cuda", "--max-new-tokens", "3", "--num-beams", "1", "--json"]
    (tmp_path / "few.tsv").write_text("".join(f"{line}\t{line}\n" for line in lines[:3]))
    measured = rheme("evaluate", "translation", "--data", str(tmp_path / "few.tsv"), *options)
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)


def test_info_names_the_device() -> None:
    told = rheme("info", "--json")
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    assert facts["device"] == "cuda: emulated device (sm_90, 4 multiprocessors)"
    assert "GiB free" in facts["device memory"]
    assert facts["cupy"] == "14.2.0 (CUDA 13.0, driver 13.0)"
    assert facts["cuda kernels"].startswith("compiled at first use")
    assert facts["cuda choices"] == "no table of this device: the plain ways"
    assert "driver is too old" in json.loads(rheme("info", "--json", FAULT="driver").stdout)["device"]


@pytest.mark.parametrize(
    ("settings", "line"), [({"FAULT": "driver"}, "driver is too old"), ({"MEMORY": "30000"}, "the GPU is out of memory")]
)
def test_a_device_out_of_reach_is_one_line(settings: dict[str, str], line: str, tmp_path: Path) -> None:
    data = tmp_path / "lines.txt"
    data.write_text("".join(f"a b c {i}\n" for i in range(30)))
    out = tmp_path / "model"
    failed = rheme("train", "generation", "--train", str(data), "--out", str(out), "--device", "cuda", **settings)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("rheme: ")
    assert line in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
