"""Run one notebook of a profile: ``python -m workflow.execute NOTEBOOK PROFILE PARAMETERS MINUTES``.

The executed notebook appears under ``build/<profile>/runs`` only when every cell has passed; a failing one is kept
beside its log under ``build/<profile>/logs``.
"""

import base64
import io
import json
import os
import re
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path

import papermill
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from traitlets.config import Config

from xai_lib import records

TICK_SECONDS = 15
LARGE_PICTURE = 100_000  # characters of base64


class _Progress(NBClientEngine):
    """papermill's own engine, which also notes the cell that it is at."""

    at = 0
    of = 0

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        start = nb_man.cell_start
        cls.of = len(nb_man.nb.cells)

        def noting(cell, cell_index=None, **more):
            cls.at = (cell_index or 0) + 1
            return start(cell, cell_index, **more)

        nb_man.cell_start = noting
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


def duration(seconds: float) -> str:
    """Return a time as a person says it: "40 s", "3 min 05 s", "1 h 20 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def execute(name: str, profile: str, parameters: dict, minutes: float) -> int:
    """Run a notebook with papermill and say how far it is; return the exit status.

    Parameters
    ----------
    name, profile : str
    parameters : dict
        Checked by `profiles.read`.
    minutes : float
        Expected time, shown beside the time so far.
    """
    folder = records.folder(profile)
    target, logs = folder / "runs" / f"{name}.ipynb", folder / "logs"
    working, log = logs / f"{name}.ipynb", logs / f"{name}.log"
    for one in (target.parent, logs):
        one.mkdir(parents=True, exist_ok=True)
    started, done = time.monotonic(), threading.Event()

    def say(what: str) -> None:
        print(f"[{name}] {what}", flush=True)

    def tick() -> None:
        while not done.wait(TICK_SECONDS):
            so_far = duration(time.monotonic() - started)
            say(f"cell {_Progress.at} of {_Progress.of}, {so_far} of about {duration(60 * minutes)}")

    say(f"starts, about {duration(60 * minutes)}")
    threading.Thread(target=tick, daemon=True).start()
    papermill_engines.register("progress", _Progress)
    try:
        # sockets are files of this user, where TCP ports are open to all; in a folder of their own, since kernels that
        # start at the same moment may choose the same names
        short = "/tmp" if os.access("/tmp", os.W_OK) else None  # the name of a socket has 107 characters at most
        with tempfile.TemporaryDirectory(prefix="kernel-", dir=short) as sockets:
            papermill.execute_notebook(
                Path("notebooks") / f"{name}.ipynb",
                working,
                {**parameters, "profile": profile},
                engine_name="progress",
                progress_bar=False,
                cwd="notebooks",
                config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/socket"}),
            )
    except PapermillExecutionError as error:
        value = next((line for line in str(error.evalue).splitlines() if line.strip()), "")
        code = next((line for line in error.source.splitlines() if line.strip()), "")
        _keep_log(log, str(error))
        say(f"FAILED in cell {error.cell_index + 1} ({code}): {error.ename}: {value}")
        print(f"    log: {log}\n    notebook: {working}", flush=True)
        return 1
    except Exception as error:  # the kernel died, the disk is full: whatever it is, one line says so
        _keep_log(log, traceback.format_exc())
        say(f"FAILED in cell {_Progress.at}: {type(error).__name__}: {error}\n    log: {log}")
        return 1
    finally:
        done.set()
    log.unlink(missing_ok=True)
    records.write_text(target, _tidied(working.read_text(encoding="utf-8")))
    working.unlink()
    say(f"done in {duration(time.monotonic() - started)}")
    return 0


def _tidied(text: str) -> str:
    """Return an executed notebook without the paths that papermill notes in it, and its large figures lighter."""
    notebook = json.loads(text)
    for key in ("input_path", "output_path"):
        notebook["metadata"]["papermill"].pop(key, None)
    for output in (one for cell in notebook["cells"] for one in cell.get("outputs", ())):
        picture = output.get("data", {}).get("image/png", "")
        if len(picture) > LARGE_PICTURE:
            output["data"]["image/png"] = _with_fewer_colours(picture)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _with_fewer_colours(picture: str) -> str:
    """Return a PNG, base64, with the 256 colours that fit it best: a third of the size, and the same to the eye."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        fewer = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    fewer.save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def _keep_log(path: Path, text: str) -> None:
    path.write_text(re.sub(r"\x1b\[[0-9;]*m", "", text), encoding="utf-8")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="Passing a schema to Validator.iter_errors")
    name, profile, parameters, minutes = sys.argv[1:]
    sys.exit(execute(name, profile, json.loads(parameters), float(minutes)))
