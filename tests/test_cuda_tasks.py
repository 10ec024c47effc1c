"""Every task answers on a device as it does on the CPU, on the emulated one: what stands around a model's steps, too.

The models are as good as untrained, which is enough to run every line.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rheme
from cuda_device import emulated
from rheme import nn, ops, tasks
from test_latent import TEXTS
from test_question_answering import facts, new_task
from test_semantic_analysis import small, tickets
from test_summarization import example


def untrained(name: str, texts: Any, **settings: Any) -> Any:
    cls = tasks.get_task(name)
    task: Any = cls(tasks.configure(cls.Config, settings))
    with nn.init_scope(1):
        task.setup(texts)
    task.model.eval()
    return task


def summarization(folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    draw = random.Random(1)
    sizes = {"embedding_size": 12, "encoder_size": 8, "decoder_size": 10, "copy_size": 8}
    task = untrained("summarization", [example(draw) for _ in range(60)], vocab_size=420, max_input_length=60, model=sizes)
    long = " ".join(example(draw)[0] for _ in range(4)) + " There were 12 of them in 1914-18."

    def answer(task: Any) -> Any:
        some = {"max_new_tokens": 5}
        return task([long, example(random.Random(2))[0]], **some), task(long, extract=2), task(long, max_words=4, **some)

    return task, answer


def question_answering(folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    task = new_task(window=32)
    with nn.init_scope(1):
        task.setup(facts(20))
    task.model.eval()
    given = [(one.question, [one.context]) for one in facts(3)]
    return task, lambda task: task.answer(given, top_k=2, no_answer_threshold=0.0)


def semantic_analysis(folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    small(folder, tickets(40), max_epochs=1)
    return rheme.load(model=folder / "m"), lambda task: task([text for text, _ in tickets(5)])


def generation(folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    sizes = {"embedding_size": 8, "encoder_size": 8, "decoder_size": 8, "latent_size": 4}
    task = untrained("generation", TEXTS, vocab_size=300, model=sizes)
    task.options["max_new_tokens"] = 4
    task.calibrate(TEXTS)
    saved = task.save(folder / "m", metrics={"kl": 3.0, "mutual_information": 2.0, "active_units": 4})

    def answer(task: Any) -> Any:
        space = task.latent
        mu, logvar = space.encode(TEXTS)
        written = space.decode(mu[:2]), space.mix(*TEXTS[:2], steps=2), space.walk(TEXTS[0], 1, steps=2)
        moved = space.shift(TEXTS[:2], space.direction(TEXTS[:2], TEXTS[2:4])), space.neighbours(TEXTS[0], TEXTS[1:], 2)
        drawn = space.sample(TEXTS[0], 2, seed=1), space.map(TEXTS)
        nats = [result.extra["nats"] for result in task.confidence(TEXTS[:3])]
        return mu, logvar, written, moved, drawn, task.generate(2, seed=1), nats

    return rheme.load("generation", saved), answer


def translation(folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    sizes = {"embedding_size": 8, "encoder_size": 8, "decoder_size": 8}
    pairs = [(text, text.upper()) for text in TEXTS]
    task = untrained("translation", pairs, vocab_size=330, languages=("en", "fr"), model=sizes)
    return task, lambda task: [task(TEXTS[:2], to="fr", num_beams=beams, max_new_tokens=4) for beams in (1, 2)]


def same(ours: Any, theirs: Any) -> None:
    """Texts and whole numbers equal; real ones near each other."""
    if isinstance(ours, float | np.ndarray | np.floating):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            same(*pair)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        same(list(ours.values()), [theirs[key] for key in ours])
    elif hasattr(ours, "__dataclass_fields__") or hasattr(ours, "__struct_fields__"):
        names = getattr(ours, "__struct_fields__", None) or list(ours.__dataclass_fields__)
        same([getattr(ours, name) for name in names], [getattr(theirs, name) for name in names])
    else:
        assert ours == theirs


MADE = [translation, question_answering, summarization, semantic_analysis, generation]


@pytest.mark.parametrize("made", MADE)
def test_a_task_answers_on_a_device(made: Callable[..., Any], tmp_path: Path) -> None:
    task, answer = made(tmp_path)
    here = answer(task)
    with emulated() as cupy:
        task.model.to("cuda")
        assert ops.on_gpu(next(task.model.parameters()).data)
        same(here, answer(task))
        assert cupy.counts["launch"]
        assert bool(cupy.counts["graph"]) == task.model.capturable
        task.model.to("cpu")
    same(here, answer(task))
