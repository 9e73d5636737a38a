"""The same model on many machines, with Ray (the extra `ray`).

cluster.py connects, placement.py says what a copy of the model takes. actors.py is one copy for batches, dispatch.py
shares requests out among them; docs/batch.md has a cluster of two machines. serve.py puts the model on Ray Serve:
replica.py answers, ingress.py stands in front, affinity.py chooses a replica; docs/ray.md explains it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama3.ray.dispatch import batch
    from llama3.ray.serve import app

__all__ = ["app", "batch"]
_MODULES = {"app": "serve", "batch": "dispatch"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): Ray takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module 'llama3.ray' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"llama3.ray.{_MODULES[name]}"), name)
    return value
