"""The wheel holds everything that the package needs, runs outside the checkout, and imports little at the start."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llama3.resources import resource

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy of the tracked sources, so that no leftover of an earlier build gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("llama3", "kernels", "weights/demo", "pyproject.toml", "README.md", "LICENSE"):
        for file in [ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                target = source / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", out, source]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_every_module_every_kernel_and_the_demo_and_nothing_else(wheel):
    modules = {f.relative_to(ROOT).as_posix() for f in (ROOT / "llama3").rglob("*.py")}
    demo = {f"llama3/{f.relative_to(ROOT).as_posix()}" for f in (ROOT / "weights/demo").iterdir() if f.is_file()}
    kernels = {f"llama3/{f.relative_to(ROOT).as_posix()}" for f in (ROOT / "kernels").iterdir()}
    folders = [ROOT / "llama3" / package / "static" for package in ("", "server", "inspect")]
    static = {f.relative_to(ROOT).as_posix() for folder in folders for f in folder.iterdir()}
    assert demo and kernels and static
    inside = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert inside == modules | kernels | demo | static | {"llama3/py.typed"}


def test_the_installed_package_answers_outside_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r});"
        "from llama3 import Llama; from llama3.resources import resource;"
        "print(resource('weights', 'demo')); print(Llama.load().generate('a', max_tokens=3).finish_reason)"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    where, reason = ran.stdout.split()
    assert where == str(tmp_path / "site" / "llama3" / "weights" / "demo") and reason in ("length", "stop")


def test_a_resource_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="weights/nothing"):
        resource("weights", "nothing")


def test_import_is_light():
    heavy = (
        "cupy torch transformers huggingface_hub tiktoken regex tqdm starlette uvicorn httpx httpx2 requests argparse"
    )
    code = f"import sys, llama3; llama3.Llama; print([m for m in {heavy.split()} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert ran.stdout.strip() == "[]"


def test_the_public_names_are_there():
    import llama3

    assert all(hasattr(llama3, name) for name in llama3.__all__)
