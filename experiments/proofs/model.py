"""Proof: the published model has its published size, its loss stays small, and meshes change no number of it.

    python -m experiments.proofs.model

Counts are of abstract parameters: nothing of that size is allocated. Memory is what XLA says of the compiled gradient.
Meshes are eight simulated devices of the CPU against one, in float32. Writes docs/proof/model.json and the tables of
docs/model.md. Some ten minutes on two cores, most of it compiling; nothing to resume.
"""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import record
from pixel_align import losses, models, param_rules, sharding
from pixel_align.batch import Batch, Shape, zeros
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.region_head import RegionHeadConfig

PARTS = ("image/eva", "image/sam", "prompt", "extractor", "visual_projection", "visual_norm", "text", "location")
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2))
LOSS_SHAPES = {
    "one text of 128, 16 pictures, width 2,048": ((16, 1, 128), 2048),
    "the same, width 512": ((16, 1, 128), 512),
    "16 regions of 32, 4 pictures, width 512": ((4, 16, 32), 512),
    "512 regions of 4, 1 picture, width 512": ((1, 512, 4), 512),
}
VOCABULARY = 32_128


def main() -> None:
    result = {
        "command": "python -m experiments.proofs.model",
        "commit": record.commit(),
        "machine": record.machine(),
        "counts": {name: counts(getattr(PixelLLMConfig, name)()) for name in ("tiny", "bench", "published")},
        "loss": {name: loss_memory(*shape) for name, shape in LOSS_SHAPES.items()},
        "meshes": [row for name in ("tiny", "bench") for seed in (0, 1) for row in mesh_rows(name, seed)],
    }
    record.write("model", result)
    page = record.ROOT / "docs" / "model.md"
    said = f"\n\n`{result['command']}`, commit {result['commit']}, {result['machine']}."
    for mark, table in (("counts", count_table), ("loss", loss_table), ("meshes", mesh_table)):
        record.fill(page, table(result[mark]) + said, mark)
        print(table(result[mark]), end="\n\n")


def counts(config: PixelLLMConfig) -> dict[str, tuple[int, int]]:
    """Part -> (parameters, trained ones), abstractly."""
    family = models.family_of(config)
    shapes = jax.eval_shape(lambda: family.init(config))
    trained = param_rules.paths(param_rules.match(family.rules(config)["trainable"], shapes))
    sizes = {path: math.prod(leaf.shape) for path, leaf in param_rules.paths(shapes).items()}

    def of(prefix: str) -> tuple[int, int]:
        paths = [path for path in sizes if path.startswith(prefix)]
        return sum(sizes[path] for path in paths), sum(sizes[path] for path in paths if trained[path])

    found = {part: of(f"{part}/") for part in PARTS}
    found["LoRA, in the text part"] = (sum(size for path, size in sizes.items() if "/lora/" in path),) * 2
    return found | {"all": of("")}


def loss_memory(shape: tuple[int, int, int], width: int) -> dict[str, Any]:
    """Bytes of the temporaries of the text loss and its gradient, beside those of the logits alone."""

    def total(features: jax.Array, kernel: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        return losses.text(features, kernel, labels, weights, 0.1)[0]

    arguments = (
        jax.ShapeDtypeStruct((*shape, width), jnp.float32),
        jax.ShapeDtypeStruct((width, VOCABULARY), jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    memory = jax.jit(jax.grad(total)).lower(*arguments).compile().memory_analysis()
    return {"temporaries": memory.temp_size_in_bytes, "logits": 4 * math.prod(shape) * VOCABULARY}


def mesh_rows(preset: str, seed: int) -> list[dict[str, Any]]:
    """The largest differences of losses and gradient on each mesh from one device; with the dense objective on."""
    config = getattr(PixelLLMConfig, preset)()
    shape = dataclasses.replace(config.shape, objects=3)
    config = dataclasses.replace(
        config,
        shape=shape,
        location=dataclasses.replace(config.location, presence=True),
        regions=RegionHeadConfig(enabled=True),
    )
    batch = drawn(shape, 8, seed)
    alone_losses, alone = gradients(config, batch, (1, 1, 1))
    rows = []
    for mesh in MESHES:
        found_losses, found = gradients(config, batch, mesh)
        by_loss = {name: abs(found_losses[name] - value) / abs(value) for name, value in alone_losses.items()}
        largest = max(np.abs(leaf).max() for leaf in alone.values())
        rows.append(
            {
                "preset": preset,
                "batch": seed,
                "mesh": mesh,
                "losses": len(by_loss),
                "loss": float(max(by_loss.values())),
                "gradient": float(max(np.abs(found[path] - leaf).max() for path, leaf in alone.items()) / largest),
                "leaves": len(alone),
                "entries": sum(leaf.size for leaf in alone.values()),
                "beyond": sum(int((np.abs(found[path] - leaf) > 1e-5 * largest).sum()) for path, leaf in alone.items()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def gradients(
    config: PixelLLMConfig, batch: Batch, mesh_shape: tuple[int, int, int]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """(losses by name, gradient by path) of a training pass, dropout included, laid out by the rules on a mesh."""
    devices = jax.devices()[: math.prod(mesh_shape)]
    mesh = sharding.make_mesh(sharding.MeshConfig(*mesh_shape), devices)
    family = models.family_of(config)
    abstract = jax.eval_shape(lambda: family.init(config))
    rules = family.rules(config)
    names = param_rules.match(rules["sharding"], abstract)
    placed = jax.tree.map(lambda x, n: sharding.resolve(n, x.shape, mesh), abstract, names)
    mask = param_rules.match(rules["trainable"], abstract)
    with jax.set_mesh(mesh):
        params = jax.jit(lambda: family.init(config), out_shardings=placed)()
        trainable, frozen = param_rules.split(params, mask)

        @jax.jit
        def step(trainable: Any, frozen: Any, batch: Batch) -> Any:
            def total(trainable: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
                whole, rngs = param_rules.merge(trainable, frozen), {"dropout": jax.random.key(1)}
                outputs = family.module(config).apply({"params": whole}, batch, train=True, rngs=rngs)
                return losses.join([family.loss(outputs, batch, config)])

            return jax.value_and_grad(total, has_aux=True)(trainable)

        batch = jax.tree.map(lambda x: jax.device_put(x, sharding.over_batch(mesh)), batch)
        (loss, means), gradient = step(trainable, frozen, batch)
    return (
        {name: float(value) for name, value in {"loss": loss, **means}.items()},
        {path: np.asarray(leaf, np.float64) for path, leaf in param_rules.paths(gradient).items()},
    )


def drawn(shape: Shape, size: int, seed: int) -> Batch:
    """Random pictures, texts of unequal length, places and objects; some of each absent."""
    rng, empty = np.random.default_rng(seed), zeros(shape, size)
    assert empty.regions is not None
    mask = np.arange(shape.text) < rng.integers(3, shape.text + 1, (size, 1, 1))
    corners = rng.uniform(0, 0.5, (size, shape.objects, 2))
    regions = dataclasses.replace(
        empty.regions,
        boxes=np.concatenate([corners, corners + 0.3], axis=-1).astype(np.float32),
        mask=rng.uniform(size=(size, shape.objects)) < 0.8,
        tokens=rng.integers(3, 200, empty.regions.tokens.shape).astype(np.int32),
        token_mask=np.ones_like(empty.regions.token_mask),
    )
    return dataclasses.replace(
        empty,
        images=rng.integers(0, 256, empty.images.shape, dtype=np.uint8),
        valid_size=rng.integers(shape.canvas // 2, shape.canvas + 1, (size, 2)).astype(np.int32),
        prompt_boxes=np.tile(np.asarray([0, 0, 1, 1], np.float32), (size, 1, 1)),
        instruction_tokens=rng.integers(3, 200, empty.instruction_tokens.shape).astype(np.int32),
        instruction_mask=np.ones_like(empty.instruction_mask),
        text_tokens=rng.integers(3, 200, empty.text_tokens.shape).astype(np.int32) * mask,
        text_mask=mask,
        token_points=rng.uniform(0, 1, empty.token_points.shape).astype(np.float32),
        locate=mask & (rng.uniform(size=mask.shape) < 0.5),
        valid=np.ones_like(empty.valid),
        weights=jax.tree.map(np.ones_like, empty.weights),
        regions=regions,
    )


def count_table(found: dict[str, Any]) -> str:
    lines = ["| part | " + " | ".join(f"`{name}` | trained" for name in found) + " |", "|---" + "|---:" * 6 + "|"]
    for part in next(iter(found.values())):
        cells = [f"{count:,}" for of in found.values() for count in of[part]]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def loss_table(found: dict[str, Any]) -> str:
    lines = ["| 2,048 tokens x 32,128 pieces, float32 | temporaries | the logits alone |", "|---|---:|---:|"]
    for name, row in found.items():
        lines.append(f"| {name} | {row['temporaries'] / 1e6:.1f} MB | {row['logits'] / 1e6:.1f} MB |")
    return "\n".join(lines)


def mesh_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| preset, batch | data, fsdp, tensor | losses | largest relative difference | "]
    lines[0] += "gradient: largest difference / largest entry | entries beyond 1e-5 of it |"
    lines.append("|---|---|---:|---:|---:|---:|")
    for row in rows:
        mesh = ", ".join(map(str, row["mesh"]))
        lines.append(f"| `{row['preset']}`, {row['batch']} | {mesh} | {row['losses']} | {row['loss']:.1e} | ")
        lines[-1] += f"{row['gradient']:.1e} | {row['beyond']:,} of {row['entries']:,} |"
    return "\n".join(lines)


if __name__ == "__main__":
    main()
