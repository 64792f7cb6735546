"""What all tests share: shapes in signatures are checked, threads are fixed, real data is optional."""

# ruff: noqa: E402
import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # tests are of the CPU; those of a GPU run where it is set to one

import pytest
import torch
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
assert "xai_lib" not in sys.modules, "the hook must be there before xai_lib is imported"
HOOK = install_import_hook("xai_lib", "beartype.beartype")

from site_browser import address, browser, pages, site  # noqa: F401

torch.set_num_threads(1)  # toys wait for a second thread longer than it helps, and workers share the processor


def pytest_configure(config):
    config.addinivalue_line("markers", "mnist: needs the real MNIST files under $XAI_DATA")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no worker is left alone with one of them at the end."""
    first = ("test_site", "test_workflow", "test_resume")
    items.sort(key=lambda item: first.index(item.path.stem) if item.path.stem in first else len(first))


def pytest_runtest_setup(item):
    from xai_lib import data

    if item.get_closest_marker("mnist") and not data.is_available("mnist"):
        pytest.skip(f"no MNIST under {data.root()} (make data SETS=mnist, or set XAI_DATA)")


def unchecked(name: str) -> ModuleType:
    """Return a module of xai_lib loaded without shape checks, to reach the errors that it raises itself."""
    spec = importlib.util.spec_from_file_location(f"unchecked_{name}", ROOT / "xai_lib" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plain():
    """`unchecked`, as a fixture: ``plain("metrics").accuracy``."""
    yield unchecked
    for name in [name for name in sys.modules if name.startswith("unchecked_")]:
        del sys.modules[name]


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """Point $XAI_DATA at an empty folder of this test's own, and return it."""
    folder = tmp_path / "xai_data"
    folder.mkdir()
    monkeypatch.setenv("XAI_DATA", str(folder))
    return folder


@pytest.fixture(scope="session")
def hashed_once():
    from xai_lib import provenance

    return functools.cache(provenance.code_hashes)


@pytest.fixture
def light(monkeypatch, hashed_once):
    """Hash the library, which stays as it is, once."""
    from xai_lib import provenance

    monkeypatch.setattr(provenance, "code_hashes", hashed_once)


@pytest.fixture
def double():
    """New tensors and modules in float64, where together and apart differ by rounding alone."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
