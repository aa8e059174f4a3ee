"""The wheel and the sdist: the library, its types and nothing else."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

import greendrop

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


class Built(NamedTuple):
    """The files for users, and the output of the build."""

    sdist: Path
    wheel: Path
    output: str


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """Build an sdist, and a wheel from it, in a copy of the checkout.

    A build writes into the source tree, hence the copy. It uses the setuptools of this
    environment, so that the test needs no network.
    """
    source = tmp_path_factory.mktemp("packaging") / "source"
    made_here = shutil.ignore_patterns(
        ".*", "_build", "build", "dist", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=made_here)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (sdist,) = (source / "dist").glob("*.tar.gz")
    (wheel,) = (source / "dist").glob("*.whl")
    return Built(sdist, wheel, done.stdout)


def in_wheel(built) -> set[str]:
    """Return the names of the files in the wheel."""
    with zipfile.ZipFile(built.wheel) as wheel:
        return set(wheel.namelist())


def in_sdist(built) -> set[str]:
    """Return the names of the files in the sdist, relative to its only folder."""
    with tarfile.open(built.sdist) as sdist:
        files = [PurePosixPath(m.name) for m in sdist.getmembers() if m.isfile()]
    return {str(file.relative_to(file.parts[0])) for file in files}


def test_wheel_installs_greendrop_and_nothing_else(built):
    """The wheel contains greendrop and its plugin for pytest, and no tests."""
    metadata = f"greendrop-{greendrop.__version__}.dist-info"

    folders = {name.partition("/")[0] for name in in_wheel(built)}

    assert {"greendrop", "pytest_greendrop.py", metadata} == folders


def test_wheel_has_every_module_and_the_types(built):
    """The wheel contains all modules of the checkout, and py.typed."""
    modules = {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("greendrop/**/*.py")
    }

    assert modules | {"greendrop/py.typed"} <= in_wheel(built)


def test_sdist_has_no_tests(built):
    """The sdist contains the sources of the wheel, and no tests."""
    files = in_sdist(built)

    assert {"setup.cfg", "setup.py", "README.md", "LICENSE"} <= files
    assert not [name for name in files if name.startswith("tests/")]


def test_metadata_says_what_setup_cfg_says(built):
    """Version, licence and the lowest Python are in the metadata."""
    with zipfile.ZipFile(built.wheel) as wheel:
        name = f"greendrop-{greendrop.__version__}.dist-info/METADATA"
        metadata = Parser().parsestr(wheel.read(name).decode())

    assert greendrop.__version__ == metadata["Version"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"


def test_build_uses_nothing_deprecated(built):
    """The build does not warn of deprecated metadata."""
    assert "Deprecat" not in built.output
