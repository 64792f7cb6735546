"""requirements.lock: complete, hashed, and installable where the README says so."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-apple-darwin")
# Pure Python, published without a wheel.
SOURCE_ONLY = "connection-pool"


def pins(text):
    return set(re.findall(r"^([a-z0-9._-]+==[^\s;\\]+)", text, re.MULTILINE))


def resolve(*words):
    """Let uv resolve; skip where the package index cannot be reached."""
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", "--no-header", "--no-annotate", "--no-config"]
    settings = {"UV_PYTHON_DOWNLOADS": "never", "MACOSX_DEPLOYMENT_TARGET": "14.0", "UV_HTTP_TIMEOUT": "20"}
    done = subprocess.run(
        [*command, *words], cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    if re.search("dns error|error sending request|Could not connect|timed out", done.stderr):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    return pins(done.stdout)


def test_each_pin_has_hashes_and_no_address():
    text = LOCK.read_text()
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert len(blocks) == len(pins(text))
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text


def test_the_lock_names_all_that_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.match(r"[\w.-]+", one)[0].lower() for one in wanted}
    assert names <= {pin.split("==")[0] for pin in pins(LOCK.read_text())}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_it_resolves(platform, python):
    """Everything that a pinned package needs is pinned, and there is a file of it for that platform."""
    where = ["--python-platform", platform, "--python-version", python]
    found = resolve(LOCK.name, *where, "--only-binary", ":all:", "--no-binary", SOURCE_ONLY)
    assert found <= pins(LOCK.read_text())
    assert {one.split("==")[0] for one in found} >= {"torch", "torchvision", "jupyterlab", "papermill", "ipywidgets"}
