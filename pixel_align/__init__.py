"""pixel_align: vision and language models whose words have places.

    import pixel_align
    predictor = pixel_align.load("runs/localized_narratives")
    predictor.set_image("photo.jpg")
    prediction = predictor.trace()

Public names are loaded when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Prediction", "Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("load", "Predictor", "Prediction"):
        return getattr(importlib.import_module("pixel_align.predict"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "Prediction", "Predictor", "load"]
