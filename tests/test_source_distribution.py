"""The source distribution holds what a packager needs: code, tests, docs, kernels and the demo; and no downloads."""

import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The paths in a source distribution that is built from this checkout."""
    out = tmp_path_factory.mktemp("sdist")
    build = [sys.executable, "-m", "build", "--sdist", "--outdir", out, ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (file,) = out.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        return {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in archive.getnames()}


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("llama3", "*.py"),
        ("kernels", "*"),
        ("tests", "*.py"),
        ("tests/references", "*"),
        ("benchmarks", "*.py"),
        ("docs", "*"),
        ("weights/demo", "*"),
        ("weights/training", "*.py"),
        (".", "[A-Z]*"),
    ],
)
def test_it_holds_the_tree(folder: str, pattern: str, files: set[str]):
    search = (ROOT / folder).glob if folder == "." else (ROOT / folder).rglob
    expected = {file.relative_to(ROOT).as_posix() for file in search(pattern) if file.is_file()}
    expected = {name for name in expected if "__pycache__" not in name}
    assert expected and expected - files == set()


def test_it_holds_nothing_that_git_ignores(files: set[str]):
    assert {name for name in files if "__pycache__" in name or name.startswith((".venv", "build/", "dist/"))} == set()
    here = {"README.md", "demo", "training", "rhyme"}
    assert {name.split("/")[1] for name in files if name.startswith("weights/")} == here
