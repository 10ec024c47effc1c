"""``rheme tasks`` and ``rheme info``."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import click

from rheme.errors import RhemeError


@click.command("tasks")
@click.option("--check", is_flag=True, help="Import each plugin and say whether it works.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def tasks_command(check: bool, as_json: bool) -> None:
    """List the installed tasks."""
    from rheme import tasks

    broken = 0
    for name, info in tasks.list_tasks().items():
        row: dict[str, Any] = {"name": name, "package": info.distribution, "version": info.version, "module": info.module}
        if info.clash:
            row["problem"] = f"also claimed by {', '.join(info.clash)}"
        elif check:
            try:
                tasks.get_task(name)
            except tasks.PluginError as error:
                row["problem"] = str(error)
        broken += "problem" in row
        if as_json:
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            line = f"{name:<20}  {row['package']} {row['version']}"
            click.echo(f"{line:<42}  {info.module}" + (f"\n    {row['problem']}" if "problem" in row else ""))
    if broken:
        raise click.exceptions.Exit(1)


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info_command(as_json: bool) -> None:
    """Show version, instruction set, threads, device and bundled models."""
    facts = info()
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    for name, value in facts.items():
        click.echo(f"{name + ':':<18}{', '.join(value) if isinstance(value, list) else value}")


def info() -> dict[str, Any]:
    """What runs here, by name."""
    import platform
    from importlib import metadata

    import numpy as np

    from rheme import _core, tasks

    forced = os.environ.get("RHEME_ISA")
    facts: dict[str, Any] = {
        "rheme": metadata.version("rheme"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "isa": _core.isa() + (f" (forced by RHEME_ISA={forced})" if forced else " (the widest one here)"),
        "isas available": list(_core.available_isas()),
        "int8 products": _core.int8_instruction(),
        "threads": f"{_core.num_threads()} ({_why_threads()})",
    } | _device()
    facts |= {f"core {name}": value for name, value in _core.build_info().items()}
    facts["bundled models"] = list(tasks.bundled()) or ["none"]
    return facts


def _why_threads() -> str:
    """Where the number of threads comes from."""
    if os.environ.get("RHEME_NUM_THREADS"):
        return f"RHEME_NUM_THREADS={os.environ['RHEME_NUM_THREADS']}"
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return f"affinity: {affinity} CPUs; cgroup quota: {f'{quota:g} CPUs' if quota else 'none'}"


def _cgroup_quota() -> float | None:
    """CPUs that the control group grants (version 2, then 1); None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return None if limit <= 0 else limit / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


def _device() -> dict[str, str]:
    """The GPU, if there is one that CuPy can use; asking for it costs a second, so only `rheme info` does."""
    if importlib.util.find_spec("cupy") is None:
        return {"device": "cpu (CuPy is not installed: pip install 'rheme[cuda12]' or 'rheme[cuda13]')"}
    from rheme import _cuda

    try:
        told = _cuda.build_info()
    except RhemeError as error:
        return {"device": f"cpu ({error})"}
    return {
        "device": f"cuda: {told['device']}",
        "device memory": told["memory"],
        "cupy": f"{told['cupy']} (CUDA {told['cuda']}, driver {told['driver']})",
        "cuda kernels": f"compiled at first use; compiled here before: {told['kept']}",
        "cuda choices": told["calibrated"],
    }
