"""The presets of the model: their numbers of parameters, the epsilon of every norm, what of them is trained."""

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from pixel_align import param_rules
from pixel_align.batch import zeros
from pixel_align.models.pixel_llm import PixelLLM, PixelLLMConfig, rules
from pixel_align.nn.blocks import LayerNorm, RMSNorm
from pixel_align.nn.eva_vit import EvaVitConfig
from pixel_align.nn.image_features import FusionConfig
from pixel_align.nn.location_head import LocationHeadConfig
from pixel_align.nn.prompt_encoder import PromptEncoderConfig
from pixel_align.nn.prompt_extractor import PromptExtractorConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.settings import ConfigError, from_json, override, to_json

PRESETS = {"tiny": PixelLLMConfig.tiny, "bench": PixelLLMConfig.bench, "published": PixelLLMConfig.published}

# The published extractor holds a dense output layer that nobody reads; ours leaves it out.
UNREAD = {"bench": 128 * 256 + 256, "published": 512 * 1024 + 1024}


def _shapes(config: PixelLLMConfig) -> Any:
    return jax.eval_shape(lambda: PixelLLM(config).init(jax.random.key(0), zeros(config.shape, 1)))["params"]


def _count(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _trained(config: PixelLLMConfig, shapes: Any) -> int:
    return _count(param_rules.split(shapes, param_rules.match(rules(config)["trainable"], shapes))[0])


def test_the_published_model_has_its_numbers_of_parameters() -> None:
    config = PixelLLMConfig.published()
    shapes = _shapes(config)
    counts = {part: _count(shapes[part]) for part in shapes}
    assert counts["extractor"] + UNREAD["published"] == pytest.approx(44.03e6, abs=5e3)
    assert counts == {
        "image": 303_268_800 + 637_026_048,
        "prompt": 2 * 128 + 4 * 256 + 256,
        "extractor": 43_505_408,
        "visual_projection": 2_099_200,
        "visual_norm": 4_096,
        "text": 2_868_631_552,
        "location": 1_580_548,
    }
    adapters = sum(math.prod(leaf.shape) for path, leaf in param_rules.paths(shapes).items() if "/lora/" in path)
    assert adapters == 18_874_368
    assert _trained(config, shapes) + UNREAD["published"] == pytest.approx(370e6, rel=1e-3)


def test_bench_has_its_numbers_of_parameters() -> None:
    """24.77M and 7.57M with the published extractor's unread layer."""
    config = PixelLLMConfig.bench()
    shapes = _shapes(config)
    assert (_count(shapes), _trained(config, shapes)) == (24_732_084, 7_535_028)
    assert _count(shapes) + UNREAD["bench"] == pytest.approx(24.77e6, abs=5e3)
    assert _trained(config, shapes) + UNREAD["bench"] == pytest.approx(7.57e6, abs=5e3)


def test_tiny_stays_tiny() -> None:
    assert _count(_shapes(PixelLLMConfig.tiny())) < 600_000


@pytest.mark.parametrize("name", PRESETS)
def test_the_rules_cover_every_preset(name: str) -> None:
    config = PRESETS[name]()
    shapes = _shapes(config)
    found = {kind: param_rules.match(listed, shapes) for kind, listed in rules(config).items()}
    trained = param_rules.paths(found["trainable"])
    assert not any(trained[path] for path in trained if path.startswith(("image/sam/", "prompt/")))
    assert all(trained[path] for path in trained if path.startswith(("image/eva/", "extractor/", "location/")))
    assert all(trained[path] == ("/lora/" in path) for path in trained if path.startswith("text/"))


# The published value for every norm. They differ, and at 1e-4 no comparison of outputs would tell them apart.
EPSILONS = [
    (r"image/eva/layers/mlp/norm", 1e-5),  # torch's default, in the SwiGLU alone
    (r"image/eva/(layers/(attention|mlp)_norm|layers/attention/norm|norm)", 1e-6),
    (r"image/sam/.*", 1e-6),
    (r"extractor/two_way/.*", 1e-5),
    (r"visual_norm", 1e-5),
    (r"text/.*", 1e-6),
    (r"location/norm", 1e-6),
]


def test_every_norm_has_its_published_epsilon() -> None:
    eva = EvaVitConfig.tiny(attention_norm=True)
    config = PixelLLMConfig.tiny(image=FusionConfig(eva=eva, sam=SamVitConfig.tiny()))
    found: dict[str, float] = {}

    def collect(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, LayerNorm | RMSNorm):
            found["/".join(context.module.path)] = context.module.epsilon
        assert not isinstance(context.module, nn.LayerNorm | nn.RMSNorm), "norms are ours, their epsilon is said"
        return call(*args, **kwargs)

    with nn.intercept_methods(collect):
        _shapes(config)
    tree: dict[str, Any] = {}
    for path, epsilon in found.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.float64(epsilon)
    assert param_rules.paths(param_rules.match(EPSILONS, tree)) == found
    assert len(found) > 20


def test_an_encoder_is_a_choice_among_the_settings() -> None:
    config = PixelLLMConfig()
    fused = override(config, ["image.eva.width=64", "image.kind=fusion", "image.sam.frozen=false"])
    assert fused.image == FusionConfig(eva=EvaVitConfig(width=64, whole_canvas=False), sam=SamVitConfig())
    assert override(config, ["image.kind=eva_vit"]).image == EvaVitConfig()
    for preset in PRESETS.values():
        assert from_json(PixelLLMConfig, to_json(preset())) == preset()


def test_the_presets_of_the_model_are_those_of_its_parts() -> None:
    for name, preset in PRESETS.items():
        config, parts = preset(), (FusionConfig, PromptEncoderConfig, PromptExtractorConfig, LocationHeadConfig)
        own = [
            dataclasses.replace(part, frozen=False) if hasattr(part, "frozen") else part
            for part in (config.image, config.prompt, config.extractor, config.location)
        ]
        assert own == [getattr(part, name)() for part in parts]
    assert FusionConfig.published() == FusionConfig() == PixelLLMConfig.published().image


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape.canvas": 5}, "canvas is 5, expected 14 or more, the patch of eva_vit."),
        ({"shape.text": 0}, "shape.text is 0, expected 2 or more."),
        ({"image.sam.num_heads": 3}, "sam_vit.width is 64 with num_heads 3, expected a multiple of num_heads"),
        ({"image.sam.num_heads": 0}, "sam_vit.num_heads is 0, expected 1 or more."),
        ({"image.eva.rotary_grid": -3}, "eva_vit.rotary_grid is -3, expected 0 or more."),
        ({"image.eva.num_heads": 5}, "eva_vit.width is 48 with num_heads 5, expected a multiple of 4 * num_heads"),
        ({"image.eva.drop_path": 1.5}, "eva_vit.drop_path is 1.5, expected 0 to below 1."),
        ({"extractor.num_heads": 3}, "extractor.width is 32 with num_heads 3, expected a multiple of 2 * num_heads"),
        ({"extractor.queries": 0}, "extractor.queries is 0, expected 1 or more."),
        ({"masks.adapter.depth": 0}, "masks.adapter.depth is 0, expected 1 or more."),
        ({"masks.decoder.num_heads": 0}, "masks.decoder.num_heads is 0, expected 1 or more."),
        ({"prompt.width": 63}, "prompt.width is 63, expected an even number"),
        ({"location.hidden_width": 0}, "location.hidden_width is 0, expected 1 or more."),
        ({"text.mlp_dim": 0}, "t5.mlp_dim is 0, expected 1 or more."),
        ({"text.dropout_rate": 1.0}, "t5.dropout_rate is 1.0, expected 0 to below 1."),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        override(PixelLLMConfig.tiny(), changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["text", "image.eva", "image.sam", "extractor", "masks.decoder", "masks.adapter"])
def test_precision_and_remat_are_choices_that_settings_name(part: str) -> None:
    for name, choices in (("dtype", "'float32', 'bfloat16'"), ("remat", "'none', 'dots', 'full'")):
        with pytest.raises(ConfigError, match=rf"config.{part}.{name} is 'bfloat17', expected one of {choices}\."):
            override(PixelLLMConfig.tiny(), [f"{part}.{name}=bfloat17"])
    config = override(PixelLLMConfig.tiny(), [f"{part}.dtype=bfloat16", f"{part}.remat=full"])
    assert from_json(PixelLLMConfig, to_json(config)) == config
