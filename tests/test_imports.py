"""Each layer imports only lower layers, without cycles. Imports in functions and under TYPE_CHECKING count."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom to the top, as docs/architecture.md explains it. A name is a module or a package of llama3; each may
# import what stands before it.
LAYERS = (
    "errors limits resources philox added_tokens lfs_pointer batch",
    "config sampling_params byte_pair json_text",
    "activation_names",
    "model",
    "plain",
    "tokenizer_file",
    "tokenizer",
    "chat text",
    "schema_check",
    "constraint",
    "tools",
    "sampler_fast logit_hooks",
    "sampler",
    "cpu_model",
    "checkpoint",
    "quantize",
    "cuda",
    "tensor_parallel",
    "request",
    "step_ahead",
    "engine",
    "completion",
    "workers_ai_input",
    "workers_ai",
    "api_format",
    "model_names",
    "openai_api",
    "batch_request",
    "batch_file",
    "prefix stream turns trace",
    "llama",
    "llama3",  # the public names
    "parity",
    "inspect",
    "tour",
    "server",
    "ray",
    "cli",
    "__main__",
)
LAYER = {name: floor for floor, names in enumerate(LAYERS) for name in names.split()}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "llama3").rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """The modules of llama3 that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "llama3"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if (node.module or "").split(".")[0] == "llama3":
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= names & MODULES.keys() | ({node.module} if names - MODULES.keys() else set())
    return found


def room(module: str) -> str:
    """llama3.model.rope is in model, llama3.engine is engine itself."""
    return module.split(".")[1] if "." in module else module


def test_every_module_has_its_floor():
    assert {room(module) for module in MODULES} == LAYER.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str):
    mine = LAYER[room(module)]
    if module == "llama3":  # it names modules as text, and imports them when they are first used
        assert "llama3.llama" in imports(MODULES[module])
    wrong = {other for other in imports(MODULES[module]) if room(other) != room(module) and LAYER[room(other)] >= mine}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}, on the same floor or above"


def test_there_is_no_cycle():
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert len(done) >= 90


def test_the_packages_do_not_import_themselves_back():
    """Importing llama3.model.rope runs llama3/model/__init__.py first, so that must import nothing of its own room
    that imports the package again."""
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            inside = {other for other in imports(path) if other.startswith(module + ".")}
            assert all(module not in imports(MODULES[other]) for other in inside), module
