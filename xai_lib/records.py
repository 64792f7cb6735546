"""Run records: where they are, how they are written whole or not at all, how two of them compare."""

import json
import math
import os
import platform
import resource
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from xai_lib.verdicts import by_part, summarize

BLOCKS = {"notebook", "parameters", "threads", "data", "values", "measures", "rules", "code"}
_STARTED = time.time()


def project() -> Path:
    """Return the top of the project: the nearest folder upwards that holds ``claims.yml``.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    for folder in [Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent]:
        if (folder / "claims.yml").exists():
            return folder
    raise FileNotFoundError(f"no folder from {Path.cwd()} upwards holds claims.yml: run this inside the project")


def folder(profile: str) -> Path:
    """Return where runs of a profile are kept: ``build/<profile>``."""
    return project() / "build" / profile


def edited_since_start(path: Path) -> bool:
    """Say whether a file was written after this process began: what runs may then be another text than the file's."""
    return path.stat().st_mtime > _STARTED


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: the old content stays until the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def circumstances() -> dict:
    """Return what a run depends on but does not repeat: time, memory, device, versions, commit."""
    top = project()

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(top), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git here
        commit = changes = None
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # bytes there, kB elsewhere
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "seconds": round(time.time() - _STARTED, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit),
        "device": gpu or f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit or "unknown",
        "dirty": bool(changes) if commit else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def read_records(where: Path) -> dict[str, dict]:
    """Read the records of a folder, {notebook: record}; a folder that is not there holds none.

    Raises
    ------
    ValueError
        A file is no record.
    """
    found = {}
    for path in sorted(where.glob("*.json")):
        found[path.stem] = read_record(path)
    return found


def read_record(path: Path) -> dict:
    """Read one record.

    Raises
    ------
    ValueError
        The file is no record.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no run record: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != 1 or "results" not in content:
        raise ValueError(f"{path} is no run record of schema 1")
    results = content["results"] if isinstance(content["results"], dict) else {}
    lacking = sorted(({"profile", "circumstances"} - content.keys()) | (BLOCKS - results.keys()))
    if lacking:
        raise ValueError(f"{path} is no run record: it lacks {', '.join(lacking)}")
    return content


def compare(one: Mapping, two: Mapping) -> tuple[bool, list[str]]:
    """Compare the results of two records.

    Returns
    -------
    same : bool
        True where they are bit-identical, or where every number agrees within seed noise: means differ by at most two
        standard errors of their difference (equal where there is one seed).
    lines : list of str
        What differs, a line each.
    """
    a, b = one["results"], two["results"]
    if a == b:
        return True, ["identical: every number, parameter, checksum and code hash"]
    lines, same = [], True
    for block in ("notebook", "parameters", "threads", "data", "rules", "code"):
        if a[block] != b[block]:
            keys = (
                sorted(k for k in a[block].keys() | b[block].keys() if a[block].get(k) != b[block].get(k))
                if isinstance(a[block], Mapping)
                else [f"{a[block]} and {b[block]}"]
            )
            lines.append(f"{block} differ: {', '.join(keys)}")
    for block in ("values", "measures"):
        for name in sorted(a[block].keys() | b[block].keys()):
            parts = by_part(a[block].get(name, {})), by_part(b[block].get(name, {}))
            for part in sorted(parts[0].keys() | parts[1].keys()):
                left, right = (side.get(part) for side in parts)
                if left == right:
                    continue
                label = f"{name} {part}".strip()
                if not left or not right:
                    lines, same = [*lines, f"{label}: only in one of them"], False
                    continue
                x, y = summarize(left), summarize(right)
                error = math.sqrt(sum((s.sd or 0) ** 2 / s.n for s in (x, y)))
                within = abs(x.mean - y.mean) <= 2 * error
                same &= within
                found = "within" if within else "beyond"
                lines.append(f"{label}: {x.mean:.6g} and {y.mean:.6g}, {found} two standard errors ({2 * error:.3g})")
    return same, lines
