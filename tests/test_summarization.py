"""Summarization on a small model that was taught one pattern: it copies, keeps to what it is told, and takes any text."""

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import rheme
from rheme import training
from rheme.cli import main
from rheme.errors import InputError
from rheme.plugins.summarization import Summarization, SummarizationConfig
from rheme.plugins.summarization.extraction import find_sentences, rank
from rheme.plugins.summarization.words import WordLimit, count_words, cut_words
from rheme.text.casing import capitalize, sentence_case, word_forms

KINDS, TOPICS = ("tool", "method", "library"), ("plants", "old maps", "music", "weather data", "rivers")
FILLERS = (
    "It runs on any machine.",
    "We tried it in three towns.",
    "Nobody has done this before.",
    "The code is free, and so is the data.",
    "Our users like it.",
)


def name(draw: random.Random) -> str:
    return "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(3)).capitalize()


def example(draw: random.Random) -> tuple[str, str]:
    """A document and its headline, which holds a name that stands nowhere else."""
    who, kind, topic = name(draw), draw.choice(KINDS), draw.choice(TOPICS)
    first, second = draw.sample(FILLERS, 2)
    return f"{first} We present {who}, a {kind} for {topic}. {second}", f"{who}: A {kind.title()} for {topic.title()}"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(1)
    sizes = {"embedding_size": 32, "encoder_size": 32, "decoder_size": 48, "copy_size": 32, "dropout": 0.0}
    values = {"vocab_size": 420, "max_input_length": 120, "model": sizes}
    task = Summarization(msgspec.convert(values, SummarizationConfig))
    settings = training.TrainingConfig(
        batch_tokens=2000, max_steps=420, learning_rate=8e-3, warmup_steps=40, evaluate=False, betas=(0.9, 0.98)
    )
    folder = tmp_path_factory.mktemp("models") / "m"
    training.train(task, [example(draw) for _ in range(2000)], [], folder, settings, echo=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def summarize(taught: Path) -> Any:
    return rheme.load("summarization", taught)


@pytest.fixture(scope="module")
def unseen() -> list[tuple[str, str]]:
    draw = random.Random(2)
    return [example(draw) for _ in range(40)]


# What it writes --------------------------------------------------------------------------------------------------------------


def test_names_it_never_saw_are_copied(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    results = summarize([document for document, _ in unseen])
    right = [result.text.lower() == headline.lower() for result, (_, headline) in zip(results, unseen, strict=True)]
    assert sum(right) >= 36  # measured: 40
    assert results[0].text == unseen[0][1].split(":")[0] + ":" + unseen[0][1].split(":")[1].lower()
