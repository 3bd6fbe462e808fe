"""Model families: `family.py` is the contract, every other module is a family that registers itself."""

from pixel_align.models import pixel_llm_modes
from pixel_align.models.family import FAMILIES, Family, Mode, ModelConfig, Said, Scoring, family_of, register

__all__ = ["FAMILIES", "Family", "Mode", "ModelConfig", "Said", "Scoring", "family_of", "pixel_llm_modes", "register"]
