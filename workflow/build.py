"""What the make targets call: run the notebooks of a profile, build the book, say what came out.

``python -m workflow.build --profile quick`` builds the book; with ``--notebook NAME`` only that notebook runs; with
``--profile published`` the published runs alone are rendered.
"""

import argparse
import os
import sys
from pathlib import Path

from snakemake.cli import main as snakemake

from workflow import profiles
from xai_lib import ledger, records

MINE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CORES = min(MINE, 8)  # two for each notebook; more than four at once would fill a laptop's memory


def main(arguments: list[str] | None = None) -> int:
    """Check everything that can be checked, then let snakemake do what is left to do; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workflow.build")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--notebook")
    parser.add_argument("--seeds")
    options = parser.parse_args(arguments)
    if where := os.environ.get("XAI_DATA"):  # notebooks run in a folder of their own
        os.environ["XAI_DATA"] = str(Path(where).expanduser().resolve())
    os.chdir(records.project())
    published = options.profile == "published"
    try:
        ledger.read_claims()
        if published and options.notebook:
            raise ValueError("PROFILE must be smoke, quick, desk or paper to run a notebook; got published")
        if not published:
            profiles.read(options.profile, options.notebook, options.seeds)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    settings = {"profile": options.profile, "only": options.notebook, "seeds": options.seeds}
    status = _snakemake("runs" if options.notebook else "book", {k: v for k, v in settings.items() if v is not None})
    base = records.folder(options.profile)
    if options.notebook:
        print(f"record: {base / 'runs' / options.notebook}.json" if not status else "the run failed, see above")
        return status
    if not published:
        ledger.main(["--profile", options.profile])
    elif not status:
        ledger.main([])
    print(f"\nsite: {base / 'site' / 'index.html'}" if not status else "\nthe book was not built, see above")
    return status


def _snakemake(target: str, settings: dict[str, str]) -> int:
    """Run snakemake in this process, which has loaded torch already; return the exit status."""
    words = [target, "--cores", str(CORES), "--quiet", "all", "--keep-going", "--rerun-incomplete"]
    # outputs appear in one step, so a run that was killed needs no unlocking by hand
    words += ["--nolock", "--rerun-triggers", "params", "mtime"]
    # quoted, so that seeds such as 0,1 stay text
    words += ["--config", *(f'{name}="{value}"' for name, value in settings.items())]
    if not os.access(Path.home(), os.W_OK):  # snakemake keeps what it reads there
        os.environ.setdefault("XDG_CACHE_HOME", str(Path("build", ".cache").resolve()))
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    try:
        snakemake(words)
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
