"""The figures of a VAE against a model whose likelihood, posterior and mutual information are known, and the text metrics."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rheme import evaluation, metrics, nn, ops
from rheme.models.text_vae import TextVAE, TextVAEConfig
from rheme.text.stemming import stem
from rheme.text.words import plain_words

# The linear Gaussian: z ~ N(0, I) of two dimensions, x = W z + noise, W with orthogonal columns, so that p(z|x) is diagonal.
SIGMA = 0.7
W = np.array([[1.5, 0.4], [1.5, -0.4], [0.0, 0.8]]) * [1.0, 0.5]
W[:, 1] -= W[:, 0] * (W[:, 0] @ W[:, 1]) / (W[:, 0] @ W[:, 0])  # orthogonal
PRECISION = 1.0 + (W**2).sum(axis=0) / SIGMA**2  # of the posterior


def linear_gaussian(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (N, 3), and the exact posterior's mu and logvar (N, 2)."""
    x = rng.standard_normal((count, 2)) @ W.T + SIGMA * rng.standard_normal((count, 3))
    return x, x @ W / SIGMA**2 / PRECISION, np.tile(-np.log(PRECISION), (count, 1))


def log_likelihood(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """log p(x|z) (K, N) for z (K, N, 2)."""
    return -0.5 * (((x - z @ W.T) / SIGMA) ** 2 + math.log(2 * math.pi * SIGMA**2)).sum(axis=-1)


def log_evidence(x: np.ndarray) -> np.ndarray:
    covariance = W @ W.T + SIGMA**2 * np.eye(3)
    quadratic = np.einsum("ni,ij,nj->n", x, np.linalg.inv(covariance), x)
    return -0.5 * (quadratic + np.linalg.slogdet(2 * math.pi * covariance)[1])


def test_importance_weights_with_the_exact_posterior(rng: np.random.Generator) -> None:
    """p(x|z) p(z) / q(z|x) is then p(x) whatever z: one draw is enough."""
    x, mu, logvar = linear_gaussian(50, rng)
    for draws in (1, 7):
        eps = evaluation.noise(3, range(50), draws, 2)
        found = evaluation.importance_weighted(lambda z: log_likelihood(x, z), mu, logvar, eps)
        np.testing.assert_allclose(found, log_evidence(x), rtol=1e-12)


def test_importance_weights_with_a_wrong_posterior(rng: np.random.Generator) -> None:
    """Many draws close the gap that the ELBO leaves; the estimate stays below on average."""
    x, mu, logvar = linear_gaussian(40, rng)
    mu, logvar = mu + 0.3, logvar + 0.5
    gaps = []
    for draws in (1, 10, 2000):
        eps = evaluation.noise(3, range(40), draws, 2)
        found = evaluation.importance_weighted(lambda z: log_likelihood(x, z), mu, logvar, eps)
        gaps.append(float((log_evidence(x) - found).mean()))
    assert gaps[0] > gaps[1] > abs(gaps[2])
    assert abs(gaps[2]) < 0.005


def test_mutual_information_in_closed_form(rng: np.random.Generator) -> None:
    """With the exact posterior it is that of x and z: half the log of det(posterior precision)."""
    _, mu, logvar = linear_gaussian(3000, rng)
    z = evaluation.draw(mu, logvar, evaluation.noise(1, range(3000), 1, 2))[0]
    expected = 0.5 * float(np.log(PRECISION).sum())
    # measured over 20 seeds: off by 0.004 in the mean, deviation 0.016
    assert evaluation.mutual_information(mu, logvar, z) == pytest.approx(expected, abs=0.07)
    assert expected > 1.3


def test_mutual_information_of_few_is_that_of_the_definition(rng: np.random.Generator) -> None:
    mu, logvar, z = rng.standard_normal((3, 6, 4))
    densities = -0.5 * ((z[:, None] - mu) ** 2 / np.exp(logvar) + logvar + math.log(2 * math.pi)).sum(axis=2)
    expected = np.diag(densities).mean() - (np.log(np.exp(densities).mean(axis=1))).mean()
    assert evaluation.mutual_information(mu, logvar, z) == pytest.approx(expected, rel=1e-11)


def test_a_collapsed_posterior_has_nothing(rng: np.random.Generator) -> None:
    mu, logvar = np.zeros((700, 5)), np.zeros((700, 5))
    assert evaluation.mutual_information(mu, logvar, rng.standard_normal((700, 5))) == pytest.approx(0.0, abs=1e-12)
    assert evaluation.active_units(mu) == 0


def test_active_units(rng: np.random.Generator) -> None:
    mu = rng.standard_normal((5000, 4)) * np.sqrt([0.5, 0.02, 0.005, 0.0]) + 10
    assert evaluation.active_units(mu) == 2
    assert evaluation.active_units(mu, threshold=0.001) == 3


# The whole report ------------------------------------------------------------------------------------------------------------


class LinearGaussian:
    """The linear Gaussian under a TextVAE's interface: a "sentence" is one id, the number of its x."""

    config = TextVAEConfig(vocab_size=4000, latent_size=2)

    def __init__(self, x: np.ndarray, mu: np.ndarray, logvar: np.ndarray) -> None:
        self.x, self.mu, self.logvar = x, mu, logvar
        self.embedding = SimpleNamespace(weight=np.zeros((1, 1)))

    def eval(self) -> "LinearGaussian":
        return self

    def encode(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = ids[0] - 4
        return self.mu[rows], self.logvar[rows]

    def reconstruction(self, ids_in: np.ndarray, ids_out: np.ndarray, lengths: np.ndarray, z: np.ndarray) -> np.ndarray:
        return -log_likelihood(self.x[ids_out[0] - 4], z[None])[0]


@pytest.mark.parametrize("off", [0.0, 0.4])
def test_every_figure_of_the_report_in_closed_form(off: float, rng: np.random.Generator) -> None:
    """With the exact posterior -ELBO is -log p(x); with one that is off, dearer by KL(q || posterior)."""
    x, mu, logvar = linear_gaussian(1500, rng)
    q_mu, q_logvar = mu + off, logvar + off  # wider than the posterior: importance weights stay small
    report = evaluation.evaluate_vae(LinearGaussian(x, q_mu, q_logvar), [[4 + i] for i in range(len(x))], 300, 300)
    variance = np.exp(q_logvar)
    kl = 0.5 * (q_mu**2 + variance - q_logvar - 1)
    np.testing.assert_allclose(report.kl_per_dimension, kl.mean(axis=0), rtol=1e-12)
    assert report.kl == pytest.approx(kl.sum(axis=1).mean(), rel=1e-12)
    residual = ((x - q_mu @ W.T) ** 2).sum(axis=1) + (variance @ (W**2).T).sum(axis=1)
    reconstruction = (0.5 * (residual / SIGMA**2 + 3 * math.log(2 * math.pi * SIGMA**2))).mean()
    # 450,000 draws, each with a deviation of about 1: measured 0.0005 apart
    assert report.reconstruction == pytest.approx(reconstruction, abs=0.01)
    gap = 0.5 * (np.exp(q_logvar - logvar) + (q_mu - mu) ** 2 / np.exp(logvar) - 1 - (q_logvar - logvar)).sum(axis=1).mean()
    assert report.neg_elbo == pytest.approx(-log_evidence(x).mean() + gap, abs=0.01)
    assert report.nll == pytest.approx(-log_evidence(x).mean(), abs=1e-9 if off == 0 else 0.02)
    assert report.perplexity == pytest.approx(math.exp(report.nll / 2), rel=1e-12)  # two words each: the id and the end
    assert report.active_units == 2
    if off == 0:
        assert report.mutual_information == pytest.approx(0.5 * np.log(PRECISION).sum(), abs=0.1)


def test_a_language_model_has_an_exact_likelihood(rng: np.random.Generator) -> None:
    with nn.init_scope(1):
        model = TextVAE(TextVAEConfig(vocab_size=15, embedding_size=6, decoder_size=9, latent_size=0))
    items = [rng.integers(4, 15, n).tolist() for n in (3, 7, 1)]
    report = evaluation.evaluate_vae(model, items, importance_samples=5)
    costs = []
    for ids in items:
        scores = model.logits(np.array([[1, *ids]]).T, np.zeros((1, 0), np.float32))[:, 0]
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        costs.append(-sum(log_p[t, word] for t, word in enumerate([*ids, 2])))
    assert report.nll == report.neg_elbo == pytest.approx(np.mean(costs), rel=1e-5)
    assert report.perplexity == pytest.approx(math.exp(np.sum(costs) / 14), rel=1e-5)
    assert evaluation.sentence_nll(model, items) == pytest.approx(costs, rel=1e-5)


@pytest.fixture
def model() -> TextVAE:
    with nn.init_scope(1):
        sizes = {"vocab_size": 15, "embedding_size": 6, "encoder_size": 8, "decoder_size": 9, "latent_size": 3}
        return TextVAE(TextVAEConfig(**sizes))  # type: ignore[arg-type]


@pytest.fixture
def sentences(rng: np.random.Generator) -> list[list[int]]:
    return [rng.integers(4, 15, rng.integers(0, 9)).tolist() for _ in range(30)]


def test_the_report_adds_up(model: TextVAE, sentences: list[list[int]]) -> None:
    report = evaluation.evaluate_vae(model, sentences, samples=20, importance_samples=200)
    assert report.words == sum(len(s) + 1 for s in sentences)
    assert report.neg_elbo == pytest.approx(report.reconstruction + report.kl, rel=1e-12)
    assert sum(report.kl_per_dimension) == pytest.approx(report.kl, rel=1e-12)
    assert report.nll < report.neg_elbo
    assert report.nll == pytest.approx(report.neg_elbo, abs=1.0)
    assert report.perplexity == pytest.approx(math.exp(report.nll * 30 / report.words), rel=1e-12)
    # The model's own loss, with draws of its own, agrees within the draws' noise.
    from rheme.text.batches import pad

    ids_in, _ = pad([[1, *s] for s in sentences])
    ids_out, _ = pad([[*s, 2] for s in sentences], -1)
    loss = np.mean([model.eval().loss(ids_in, ids_out, seed=seed)[0].item() / 30 for seed in range(20)])
    assert loss == pytest.approx(report.neg_elbo, abs=0.02)


def test_the_report_does_not_depend_on_the_batches(model: TextVAE, sentences: list[list[int]]) -> None:
    whole, parts = (
        evaluation.evaluate_vae(model, sentences, samples=3, importance_samples=5, batch_tokens=tokens)
        for tokens in (10_000, 12)
    )
    assert whole == parts
    assert set(evaluation.evaluate_vae(model, sentences[:3]).to_dict()) & {"nll", "perplexity"} == set()


def test_no_sentences(model: TextVAE) -> None:
    with pytest.raises(ValueError, match="no sentences"):
        evaluation.evaluate_vae(model, [])


def test_reconstruction_ignores_padding(model: TextVAE) -> None:
    z = ops.random_normal(0, 0, 0, (2, 3))
    ids_in, ids_out = np.array([[1, 1], [5, 6], [7, 0]]), np.array([[5, 6], [7, 2], [2, -1]])
    both = model.eval().reconstruction(ids_in, ids_out, np.array([3, 2]), z)
    alone = model.reconstruction(ids_in[:2, 1:], ids_out[:2, 1:], np.array([2]), z[1:])
    assert both[1].tobytes() == alone[0].tobytes()


# Metrics ---------------------------------------------------------------------------------------------------------------------


def test_answers() -> None:
    references = [["the Eiffel Tower"], ["in 1889", "1889"], ["Gustave"], [""]]
    predictions = ["Eiffel tower.", "1889", "Gustave Eiffel", ""]
    assert metrics.exact_match(predictions, references) == 75.0
    assert metrics.answer_f1(predictions, references) == pytest.approx(100 * (1 + 1 + 2 / 3 + 1) / 4)
    with pytest.raises(ValueError, match="1 predictions for 4 references"):
        metrics.exact_match(["x"], references)


def test_rouge_by_hand() -> None:
    assert metrics.rouge(["two meetings"], [["meeting"]])["rouge1"] == 0.0
    assert metrics.rouge(["two meetings"], [["meeting"]], metrics.rouge_stems)["rouge1"] == pytest.approx(200 / 3)
    found = metrics.rouge(["the cat sat on the mat"], [["the cat lay on a mat", "nothing"]])
    # the (1 of 2), cat, on, mat of 6 words a side; "the cat" of 5 pairs; the cat on mat
    assert found == {"rouge1": pytest.approx(400 / 6), "rouge2": pytest.approx(20.0), "rougeL": pytest.approx(400 / 6)}
    assert metrics.rouge([""], [[""]])["rouge1"] == 0.0
    assert metrics.rouge(["今天好"], [["今天很好"]], words=list)["rougeL"] == pytest.approx(600 / 7)


def test_a_perplexity_without_a_likelihood() -> None:
    assert math.isnan(evaluation._perplexity(math.nan, 1, 5))
    assert evaluation._perplexity(4000.0, 1, 5) == math.inf
    assert evaluation._perplexity(5.0, 1, 5) == math.e


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Москва — столица.", ["москва", "столица"]),
        ("Naïve cafe\u0301: B2B, 2,5", ["naïve", "café", "b2b", "2", "5"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("今天好 ok_no", ["今", "天", "好", "ok", "no"]),
        ("รุ่ง", ["รุ่", "ง"]),
        ("", []),
    ],
)
def test_words_of_rouge_in_any_script(text: str, words: list[str]) -> None:
    assert plain_words(text) == words
    assert metrics.rouge([text], [[text]], plain_words)["rouge1"] == (100 if words else 0)


@pytest.mark.parametrize("stemmed", [False, True])
def test_rouge_agrees_with_the_oracle(rng: np.random.Generator, stemmed: bool) -> None:
    """Google's rouge_score on texts of few different words, so that n-grams repeat, with capitals, digits and punctuation."""
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmed)
    vocabulary = ["the", "The", "cat", "a", "B2B", "2,5", "e-mail", "naïve", "—", "sat.", "今天", "mat", "mats"]
    vocabulary += ["meeting", "Meetings", "met", "used", "user", "dies", "generalization", "generally", "happy", "happily"]

    def text() -> str:
        return " ".join(rng.choice(vocabulary, rng.integers(0, 14)))

    predictions, references = [text() for _ in range(200)], [[text() for _ in range(rng.integers(1, 4))] for _ in range(200)]
    found = metrics.rouge(predictions, references, metrics.rouge_stems if stemmed else metrics.rouge_words)
    for name, value in found.items():
        best = [
            max(scorer.score(reference, prediction)[name].fmeasure for reference in wanted)
            for prediction, wanted in zip(predictions, references, strict=True)
        ]
        assert value == pytest.approx(100 * sum(best) / len(best), rel=1e-12)


def test_stems() -> None:
    """The examples of Porter's paper, where NLTK did not change them, and those that it did."""
    stems = {
        "caresses": "caress", "ponies": "poni", "caress": "caress", "cats": "cat", "feed": "feed", "agreed": "agre",
        "plastered": "plaster", "bled": "bled", "motoring": "motor", "sing": "sing",
        "conflated": "conflat", "troubled": "troubl",
        "sized": "size", "hopping": "hop", "falling": "fall", "hissing": "hiss", "fizzed": "fizz", "failing": "fail",
        "filing": "file", "happy": "happi", "sky": "sky", "relational": "relat", "conditional": "condit", "rational": "ration",
        "digitizer": "digit", "vietnamization": "vietnam", "operator": "oper", "feudalism": "feudal", "hopefulness": "hope",
        "formality": "formal", "sensibility": "sensibl", "triplicate": "triplic", "electrical": "electr", "revival": "reviv",
        "adoption": "adopt", "homologous": "homolog", "probate": "probat", "rate": "rate", "cease": "ceas", "rolling": "roll",
        "controlling": "control",
        "dies": "die", "spied": "spi", "enjoyment": "enjoy", "dying": "die", "news": "news", "radically": "radic",
    }  # fmt: skip
    assert {word: stem(word) for word in stems} == stems


def test_stems_agree_with_the_oracle(rng: np.random.Generator) -> None:
    oracle = pytest.importorskip("nltk.stem.porter").PorterStemmer()
    endings = "ational tional izer bli alli ousli ization alism iveness ousness fulli logi icate ful al er able ement ion ous"
    endings += " ate ize ed ing eed s ies ied sses y e ll"
    for _ in range(5000):
        word = "".join(rng.choice(list("aeioubcdlstyz"), rng.integers(0, 6)))
        word += "".join(rng.choice(endings.split(), rng.integers(0, 4)))
        assert stem(word) == oracle.stem(word), word


def test_labels() -> None:
    assert metrics.accuracy([1, 2, 2, 3], [1, 2, 3, 3]) == 75.0
    # a: 2/3 (2 right of 2 wanted and 4 said), b: 0, c: 1
    labels: list[Any] = ["a", "a", "a", "a", "c"], ["a", "a", "b", "b", "c"]
    assert metrics.macro_f1(*labels) == pytest.approx(100 * (2 / 3 + 0 + 1) / 3)
    assert metrics.macro_f1([{1, 2}, {3}], [{1}, {3}]) == pytest.approx(100 * (1 + 0 + 1) / 3)


def test_bleu_and_chrf() -> None:
    pytest.importorskip("sacrebleu")
    texts = ["the cat sat on the mat", "there is a dog in the garden"]
    found = metrics.bleu_chrf(texts, [[t] for t in texts])
    assert found["bleu"] == pytest.approx(100.0)
    assert found["chrf"] == pytest.approx(100.0)
    assert "tok:13a" in str(found["bleu_signature"])
    with pytest.raises(ValueError, match="same number of references"):
        metrics.bleu_chrf(texts, [["a"], ["b", "c"]])
