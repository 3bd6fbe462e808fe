"""The formula of each part against the products that are really traced, forwards and backwards."""

import dataclasses
from typing import Any

import jax
import pytest

from pixel_align import losses, models, param_rules
from pixel_align.batch import Shape
from pixel_align.models.pixel_llm import MasksConfig, PixelLLMConfig
from pixel_align.nn.bert import BertConfig
from pixel_align.nn.box_decoder import BoxDecoderConfig
from pixel_align.nn.image_features import FusionConfig
from pixel_align.nn.location_head import LocationHeadConfig
from pixel_align.nn.mask_adapter import MaskAdapterConfig
from pixel_align.nn.mask_decoder import MaskDecoderConfig
from pixel_align.nn.prompt_encoder import PromptEncoderConfig
from pixel_align.nn.sam_vit import SamVitConfig
from pixel_align.plan import model_flops, traced

DETECTING = PixelLLMConfig.tiny(
    shape=Shape(canvas=112, regions=3, prompts=3, text=12, instruction=4, described=4),
    detector=BoxDecoderConfig.tiny(enabled=True),
)
MASKING = PixelLLMConfig.tiny(
    shape=Shape(canvas=112, regions=3, text=12, instruction=4, mask=28),
    image=FusionConfig.tiny(eva=dataclasses.replace(FusionConfig.tiny().eva, frozen=True)),
    prompt=PromptEncoderConfig.tiny(masks=True, width=64, frozen=True),
    extractor=dataclasses.replace(PixelLLMConfig.tiny().extractor, frozen=True),
    text=BertConfig.tiny(frozen=True),
    location=LocationHeadConfig.tiny(frozen=True),
    masks=MasksConfig(True, MaskDecoderConfig.tiny(frozen=True), MaskAdapterConfig.tiny()),
)
LEARNING = PixelLLMConfig.tiny(image=SamVitConfig.tiny(stem="conv"), text=BertConfig.tiny())


@pytest.mark.parametrize("config", [DETECTING, MASKING, LEARNING], ids=["detector", "masks", "all trained"])
def test_the_formula_is_what_a_step_computes(config: PixelLLMConfig) -> None:
    family = models.family_of(config)
    batch, rules = family.batch_spec(config, 2), family.rules(config)
    params = jax.eval_shape(lambda: family.init(config))
    trainable, frozen = param_rules.split(params, param_rules.match(rules["trainable"], params))

    def loss(trainable: Any, frozen: Any, batch: Any) -> Any:
        variables = {"params": param_rules.merge(trainable, frozen)}
        outputs = family.module(config).apply(variables, batch, train=True, rngs={"dropout": jax.random.key(0)})
        return losses.join([family.loss(outputs, batch, config)])[0]

    found = traced.flops(jax.make_jaxpr(jax.grad(loss))(trainable, frozen, batch).jaxpr)
    formula = model_flops.of_step([(config, 2)])
    # For a backward pass the loss makes its logits a second time.
    again = formula.forward["vocabulary"] if formula.backward["vocabulary"] else 0
    expected = formula.total + again
    assert found == pytest.approx(expected, rel=0.02)


def test_parts_that_stand_still_cost_no_backward_pass() -> None:
    formula = model_flops.of_step([(MASKING, 2)])
    assert {part for part, flops in formula.backward.items() if flops} == {"mask_adapter", "mask_decoder"}
    assert formula.backward["mask_decoder"] < 1.5 * formula.forward["mask_decoder"]  # its weights get no gradient
    assert sum(formula.by_part().values()) == formula.total
