"""The experiments that are measured by name: those of a checkout."""

from pathlib import Path

PRESETS = {
    "quickstart": "experiments/quickstart.py:no_first_stage",
    "bench": "experiments/localized_narratives.py:bench",
}


def path(preset: str) -> str:
    """The file and preset of an experiment. Raises ValueError for an unknown name."""
    if preset not in PRESETS:
        raise ValueError(f"--preset is {preset!r}, expected one of {', '.join(PRESETS)}. Or give --experiment.")
    return str(Path(__file__).resolve().parents[2] / PRESETS[preset])
