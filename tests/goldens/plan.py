"""Makes plan_*.txt.gz: a small step as libtpu compiled it for four v5e chips, its layers scanned and written out.

    python -m tests.goldens.plan

Needs pixel-align[tpu]. What the counter does not read (layouts of loops, settings of the compiler) is left out.
"""

import gzip
import re
from pathlib import Path
from typing import Any

LAYERS, WIDTH, HIDDEN, EXAMPLES = 6, 512, 1024, 64
FOLDER = Path(__file__).parent


def text(where: Any, scan: bool) -> str:
    """The compiled step: gradient and descent of `LAYERS` layers, parameters and examples split over four chips."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from pixel_align import sharding

    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=4), list(where.devices))

    def layer(x: jax.Array, kernels: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        wi, wo = kernels
        hidden = jax.nn.gelu(x @ wi.astype(jnp.bfloat16))
        return x + hidden @ wo.astype(jnp.bfloat16), None

    def step(params: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        def loss(params: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
            y = jax.lax.scan(layer, x.astype(jnp.bfloat16), params, unroll=1 if scan else LAYERS)[0]
            return jnp.mean(jnp.square(y.astype(jnp.float32)))

        # Of the examples too: written out, the first layer would drop what only they need.
        gradient, of_examples = jax.grad(loss, argnums=(0, 1))(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), of_examples

    over = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    shapes = ((LAYERS, WIDTH, HIDDEN), (LAYERS, HIDDEN, WIDTH))
    params = tuple(jax.ShapeDtypeStruct(shape, jnp.float32, sharding=over) for shape in shapes)
    examples = jax.ShapeDtypeStruct((EXAMPLES, WIDTH), jnp.float32, sharding=sharding.over_batch(mesh))
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=0, out_shardings=((over, over), examples.sharding)).lower(
            params, examples
        )
    return lowered.compile().as_text()


def short(compiled: str) -> str:
    """The same without what the counter does not read."""
    compiled = re.sub(r', backend_config=(\{.*\}|"[^"]*")', "", compiled)
    compiled = re.sub(r" stack_frame_id=\d+", "", compiled)
    head, _, rest = compiled.partition("\n")
    count = re.findall(r"num_partitions=\d+|replica_count=\d+", head)
    rest = rest[re.search(r"^(%|ENTRY)", rest, re.MULTILINE).start() :]  # tables of file names stand before
    return f"HloModule jit_step, {', '.join(count)}\n{rest}"


def main() -> None:
    from pixel_align.plan.topology import topology

    where = topology("v5e:2x2")
    for name, scan in (("scanned", True), ("unrolled", False)):
        with gzip.GzipFile(FOLDER / f"plan_{name}.txt.gz", "wb", mtime=0) as file:
            file.write(short(text(where, scan)).encode())


if __name__ == "__main__":
    main()
