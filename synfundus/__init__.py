"""synfundus: from patient fundus photographs to a synthetic data set.

What other programs may use is in `synfundus.api`, and has its names here too; it is imported when one is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "ShardDataset",
    "SynfundusPipeline",
    "__version__",
    "load_model",
    "open_dataset",
    "read_manifest",
    "save_image",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name in __all__:
        return getattr(import_module("synfundus.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
