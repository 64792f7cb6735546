"""What the widgets share: one ES module each, the same in JupyterLab and on a page of the book, where no kernel is.

A widget is an `anywidget` whose behaviour is all in JavaScript: ``common.js`` and ``<name>.js`` of this folder, joined
(`source`). Python only packs what it shows. In JupyterLab anywidget runs the module; on a page ``host.js`` runs it on
the state that papermill left in the executed notebook, with no other library and no request to another host.

Three traits hold everything: `data` (what is shown, JSON and packed arrays), `kept` (what the reader made of it: names,
votes; kept in the browser by the page, in a file by JupyterLab) and `label` (what a screen reader calls the widget).
"""

import json
import os
import tempfile
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from numpy.typing import ArrayLike

FOLDER = Path(__file__).resolve().parent


def source(name: str) -> str:
    """Return the ES module of a widget: what all share, then its own.

    Parameters
    ----------
    name : str
        Its file in this folder, without ``.js``.

    Raises
    ------
    ValueError
        There is no such file.
    """
    path = FOLDER / f"{name}.js"
    if not path.exists():
        raise ValueError(f"no widget {name!r}; there are {', '.join(sorted(names()))}")
    return (FOLDER / "common.js").read_text(encoding="utf-8") + "\n" + path.read_text(encoding="utf-8")


def names() -> list[str]:
    """Return the names of all widgets."""
    return sorted(path.stem for path in FOLDER.glob("*.js") if path.stem not in ("common", "host"))


def style() -> str:
    """Return the style sheet of all widgets."""
    return (FOLDER / "widgets.css").read_text(encoding="utf-8")


def pack(array: ArrayLike, dtype: str = "float16") -> dict[str, object]:
    """Return an array as a widget takes it: type, shape, bytes in little-endian order.

    Parameters
    ----------
    array : array_like
        Any shape, finite. ``uint8`` expects values in [0, 255]. ``int8`` divides by the largest magnitude over 127 and
        keeps it as ``scale``, which is exact to 0.4 % of that magnitude.
    dtype : {"float32", "float16", "uint8", "int8"}
        How it is stored; ``float16`` is exact to 0.05 %.

    Returns
    -------
    dict
        ``{"dtype", "shape", "scale", "bytes"}``; ``unpack`` of ``common.js`` takes it apart.

    Raises
    ------
    ValueError
        The type is another, or a value is not finite or outside the range of the type.
    """
    if dtype not in ("float32", "float16", "uint8", "int8"):
        raise ValueError(f"dtype is float32, float16, uint8 or int8, got {dtype!r}")
    values = np.asarray(array, dtype=np.float64)
    limit = {"float32": 3.4e38, "float16": 65504.0, "uint8": 255.0, "int8": np.inf}[dtype]
    low = 0.0 if dtype == "uint8" else -limit
    if values.size and not (np.isfinite(values).all() and values.min() >= low and values.max() <= limit):
        raise ValueError(f"array does not fit into {dtype}: its values are in [{values.min()}, {values.max()}]")
    scale = float(np.abs(values).max(initial=0) / 127) or 1.0 if dtype == "int8" else 1.0
    stored = (np.rint(values / scale) if dtype in ("uint8", "int8") else values).astype(
        np.dtype(dtype).newbyteorder("<")
    )
    return {"dtype": dtype, "shape": list(values.shape), "scale": scale, "bytes": stored.tobytes()}


class Widget(anywidget.AnyWidget):
    """The base of all widgets.

    Parameters
    ----------
    data : dict
        What is shown: numbers, texts, lists, dicts, and arrays from `pack`.
    label : str
        What the widget is, in a few words.
    file : path, optional
        Where JupyterLab keeps what the reader made. Read at the start where it exists, written after each change.

    Raises
    ------
    ValueError
        The file exists and holds no JSON object, or cannot be there.
    """

    data = traitlets.Dict().tag(sync=True)
    kept = traitlets.Dict().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)

    def __init__(self, data: dict, label: str, file: str | os.PathLike | None = None) -> None:
        super().__init__(data=data, label=label, kept=_read(Path(file)) if file else {})
        if file:
            self.observe(lambda change: _write(Path(file), change["new"]), "kept")


def _read(path: Path) -> dict:
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ValueError(f"file must be a file in a folder that is there; got {path}")
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def _write(path: Path, kept: dict) -> None:
    """Write at once or not at all, so that a crash leaves the file before it."""
    handle, name = tempfile.mkstemp(dir=path.resolve().parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(kept, stream, indent=1, ensure_ascii=False)
    os.replace(name, path)
