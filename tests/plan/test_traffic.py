"""What the partition of the model's own pieces costs in traffic, counted in what is compiled for eight devices."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pixel_align import losses, param_rules, sharding
from pixel_align.batch import Outputs, Shape, spec
from pixel_align.models import pixel_llm
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn import eva_vit, partitioning, sam_vit
from pixel_align.nn.eva_vit import EvaVit, EvaVitConfig
from pixel_align.nn.sam_vit import SamVit, SamVitConfig
from pixel_align.plan import counter, traced

WIDTH, CHIPS, EXAMPLES = 64, 8, 16


def test_the_vocabulary_is_gathered_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 2 * 4 * (EXAMPLES // CHIPS) * 256)  # two positions of a device
    config = PixelLLMConfig.tiny(shape=Shape(canvas=112, text=12, instruction=4))
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=CHIPS))
    whole = spec(config.shape, EXAMPLES)

    def placed(x: Any, where: PartitionSpec | None = None) -> Any:
        at = sharding.over_batch(mesh) if where is None else NamedSharding(mesh, where)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)

    batch = jax.tree.map(placed, whole)
    features = placed(jax.ShapeDtypeStruct((EXAMPLES, 1, 12, WIDTH), jnp.float32))
    kernel = placed(jax.ShapeDtypeStruct((WIDTH, 256), jnp.float32), PartitionSpec("fsdp"))

    def text_loss(features: jax.Array, kernel: jax.Array, batch: Any) -> jax.Array:
        outputs = Outputs(
            features, kernel, batch.token_points, batch.text_tokens, batch.text_mask, batch.valid, batch.prompt_boxes
        )
        total, weight = pixel_llm.loss(outputs, batch, config)["text"][1]
        return total / weight

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(text_loss)).lower(features, kernel, batch).compile()
    counts = counter.count(compiled.as_text())
    # Eleven positions in chunks of two are six chunks, forwards and again backwards.
    assert counts.collectives["all-gather"] <= 2
    assert counts.collective_bytes["all-gather"] <= 2 * 4 * WIDTH * 256
    expected = 2 * 2 * (EXAMPLES // CHIPS) * 12 * WIDTH * 256  # the twelfth position is padding
    assert sum(counts.flops.values()) == expected


def test_parts_are_those_of_the_mesh_in_force() -> None:
    assert partitioning.parts("batch", 16) == 1
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))):
        assert [partitioning.parts("batch", size) for size in (16, 2, 3)] == [4, 2, 1]
        assert partitioning.parts("vocabulary", 16) == 2


@pytest.mark.parametrize("kind", ["eva", "sam"])
def test_encoders_share_out_pictures_and_not_channels(kind: str) -> None:
    """Left to the partitioner they did more than twice their work on 16 chips."""
    encoder: Any = EvaVit(EvaVitConfig.tiny()) if kind == "eva" else SamVit(SamVitConfig.tiny())
    rules = (eva_vit if kind == "eva" else sam_vit).rules(encoder.config).sharding
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=CHIPS))
    pictures = jax.ShapeDtypeStruct((CHIPS, 112, 112, 3), jnp.float32, sharding=sharding.over_batch(mesh))
    params = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 112, 112, 3))))["params"]
    placed = jax.tree.map(
        lambda x, names: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.resolve(names, x.shape, mesh)),
        params,
        param_rules.match(rules, params),
    )

    def loss(params: Any, pictures: jax.Array) -> jax.Array:
        return jnp.square(encoder.apply({"params": params}, pictures)).mean()

    with jax.set_mesh(mesh):
        trace = jax.jit(jax.grad(loss), out_shardings=jax.tree.map(lambda x: x.sharding, placed)).trace(
            placed, pictures
        )
        counts = counter.count(trace.lower().compile().as_text())
    assert CHIPS * sum(counts.flops.values()) == pytest.approx(traced.flops(trace.jaxpr.jaxpr), rel=0.05)
