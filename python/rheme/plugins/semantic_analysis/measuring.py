"""The figures of semantic analysis on labelled texts and on pairs."""

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from rheme import calibration, metrics, ops
from rheme.plugins.semantic_analysis.config import AnalysisOptions, SemanticAnalysisConfig
from rheme.text.features import Bag

Array = NDArray[Any]


def one_label(
    config: SemanticAnalysisConfig, rows: Array, chosen: list[str], wanted: list[str], settings: AnalysisOptions
) -> dict[str, float | str]:
    """rows float (N, labels), the labels chosen and wanted."""
    best = [float(row.max()) for row in rows]
    outside = [bool(config.out_of_scope) and label == config.out_of_scope for label in wanted]
    inside = [k for k in range(len(wanted)) if not outside[k]]
    right = [chosen[k] == wanted[k] for k in inside]
    figures: dict[str, float | str] = {
        "accuracy": metrics.accuracy([chosen[k] for k in inside], [wanted[k] for k in inside]),
        "macro_f1": metrics.macro_f1([chosen[k] for k in inside], [wanted[k] for k in inside]),
        "calibration_error": metrics.calibration_error([best[k] for k in inside], right),
    }
    if config.groups:
        places = {label: k for k, label in enumerate(config.labels)}
        names = {label: name for name, labels in config.groups.items() for label in labels}
        sums = {
            name: ops.sum(ops.contiguous(rows[:, [places[label] for label in labels]]), axis=1)
            for name, labels in config.groups.items()
        }
        likeliest = [max(sums, key=lambda name: float(sums[name][k])) for k in inside]
        figures[f"{config.group_name}_accuracy"] = metrics.accuracy(likeliest, [names.get(wanted[k], "") for k in inside])
    for share in (0.9, 0.95):
        bound = calibration.confidence_for_accuracy([best[k] for k in inside], right, share)
        kept = metrics.accuracy([best[k] >= bound for k in inside], [True] * len(inside))
        figures[f"answered_at_{share:.0%}_accuracy".replace("%", "")] = kept
    if settings.min_confidence:
        answered = [
            k for k, b in zip(range(len(right)), (best[k] for k in inside), strict=True) if b >= settings.min_confidence
        ]
        figures["answered"] = 100.0 * len(answered) / max(1, len(right))
        figures["accuracy_of_answered"] = metrics.accuracy([right[k] for k in answered], [True] * len(answered))
    if any(outside):
        found = [
            config.out_of_scope if b < config.calibration.scope_threshold else c for b, c in zip(best, chosen, strict=True)
        ]
        figures["accuracy_with_out_of_scope"] = metrics.accuracy(found, wanted)
        gone = [k for k in range(len(wanted)) if outside[k]]
        figures["out_of_scope_recall"] = metrics.accuracy([found[k] for k in gone], [config.out_of_scope] * len(gone))
        figures["out_of_scope_auroc"] = metrics.auroc([1.0 - b for b in best], outside)
    return figures


def many_labels(
    config: SemanticAnalysisConfig, rows: Array, targets: Array, chosen: list[list[str]], wanted: list[list[str]]
) -> dict[str, float | str]:
    """rows float and targets uint8 (N, outputs), the labels chosen and wanted."""
    size = len(config.labels)
    flat, hit = rows[:, :size].reshape(-1).tolist(), targets[:, :size].reshape(-1).astype(bool).tolist()
    top = rows[:, :size].argmax(axis=1)
    figures: dict[str, float | str] = {
        "macro_f1": metrics.macro_f1(chosen, wanted),
        "micro_f1": metrics.micro_f1(chosen, wanted),
        "top_label_accuracy": metrics.accuracy([bool(targets[n, k]) for n, k in enumerate(top)], [True] * len(top)),
        "calibration_error": metrics.calibration_error(flat, hit),
        "top_calibration_error": metrics.calibration_error(
            [float(rows[n, k]) for n, k in enumerate(top)], [bool(targets[n, k]) for n, k in enumerate(top)]
        ),
    }
    if config.groups:
        best = rows[:, size:].argmax(axis=1)
        right = [bool(targets[n, size + k]) for n, k in enumerate(best)]
        figures[f"{config.group_name}_accuracy"] = metrics.accuracy(right, [True] * len(right))
        figures[f"{config.group_name}_calibration_error"] = metrics.calibration_error(
            [float(rows[n, size + k]) for n, k in enumerate(best)], right
        )
    return figures


def pairs(codes: Array, bags: Sequence[Bag], scores: Sequence[float] | None) -> dict[str, float | str]:
    """codes (2N, D) of both texts of each pair, side by side, and their bags; scores None: pairs that mean the same."""
    figures: dict[str, float | str] = {"pairs": len(codes) // 2}
    if scores is not None:
        found = [float(value) for value in ops.sum(ops.mul(codes[0::2], codes[1::2]), axis=1)]
        plain = [_overlap(first, second) for first, second in zip(bags[0::2], bags[1::2], strict=True)]
        figures |= {"pearson": metrics.pearson(found, scores), "spearman": metrics.spearman(found, scores)}
        return figures | {"tfidf_pearson": metrics.pearson(plain, scores), "tfidf_spearman": metrics.spearman(plain, scores)}
    right = []
    for start in range(0, len(codes), 200):
        part = codes[start : start + 200]
        nearest = ops.matmul(ops.contiguous(part[0::2]), ops.contiguous(part[1::2]), transpose_b=True).argmax(axis=1)
        right += [int(place) == k for k, place in enumerate(nearest)]
    return figures | {"nearest_of_100": metrics.accuracy(right, [True] * len(right))}


def _overlap(first: Bag, second: Bag) -> float:
    """The cosine of two bags of TF-IDF weights (words and characters have norm 1 each)."""
    weights = dict(zip(first[0].tolist(), first[1].tolist(), strict=True))
    return 0.5 * math.fsum(weights.get(row, 0.0) * w for row, w in zip(second[0].tolist(), second[1].tolist(), strict=True))
