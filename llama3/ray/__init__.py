"""The same model on many machines, with Ray (the extra `ray`): cluster.py connects, placement.py shares it out.

serve.py puts the model on Ray Serve: replica.py answers, ingress.py stands in front, affinity.py chooses between them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama3.ray.serve import app

__all__ = ["app"]
_MODULES = {"app": "serve"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): Ray takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module 'llama3.ray' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"llama3.ray.{_MODULES[name]}"), name)
    return value
