"""longspan: from raw text to a long-context text embedder that one can search with, publish and serve.

Importing the package is instant: `Embedder`, and with it torch, is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longspan.embedder import Embedder

__version__ = "0.1.0"

__all__ = ["Embedder", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Embedder":
        from longspan.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
