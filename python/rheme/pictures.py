"""Pictures by matplotlib (the extra ``plot``): a figure to draw on, and the file it becomes."""

from pathlib import Path
from typing import Any

from rheme.errors import InputError


def figure(width: float, height: float) -> Any:
    """An empty figure of so many inches. InputError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install 'rheme[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Any, path: str | Path) -> None:
    """Write a figure; the name's ending gives the format. InputError where that cannot be."""
    try:
        drawn.savefig(str(path), dpi=110)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: the picture cannot be written: {error}") from None
