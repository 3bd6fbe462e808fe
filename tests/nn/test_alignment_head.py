"""The choice of each word among the visual tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import param_rules
from pixel_align.nn import alignment_head
from pixel_align.nn.alignment_head import AlignmentHead, AlignmentHeadConfig

B, N, T, Q = 2, 3, 4, 6


def test_a_word_is_compared_with_each_visual_token_of_its_picture() -> None:
    head = AlignmentHead(AlignmentHeadConfig(enabled=True, width=8))
    rng = np.random.default_rng(0)
    text, visual = rng.normal(size=(B, N, T, 10)), rng.normal(size=(B, 1, Q, 12))
    params = head.init(jax.random.key(0), text, visual)
    run = jax.jit(head.apply)
    logits = run(params, text, visual)
    assert logits.shape == (B, N, T, Q) and logits.dtype == jnp.float32
    # Queries in another order: the same choice.
    order = rng.permutation(Q)
    np.testing.assert_allclose(run(params, text, visual[:, :, order]), np.asarray(logits)[..., order], rtol=1e-4)
    # Another picture does not matter, nor another word.
    other = visual.copy()
    other[1] += rng.normal(size=other[1].shape)
    changed = np.abs(np.asarray(run(params, text, other)) - logits) > 1e-6
    assert not changed[0].any() and changed[1].all()


def test_every_parameter_has_its_rules() -> None:
    config = AlignmentHeadConfig(enabled=True)
    shapes = jax.eval_shape(
        AlignmentHead(config).init, jax.random.key(0), jnp.zeros((B, N, T, 10)), jnp.zeros((B, 1, Q, 12))
    )["params"]
    rules = alignment_head.rules(config)
    for found in (rules.sharding, rules.weight_decay, rules.trainable):
        assert jax.tree.structure(param_rules.match(found, shapes), is_leaf=lambda x: isinstance(x, tuple))
    decayed = param_rules.paths(param_rules.match(rules.weight_decay, shapes))
    assert {path for path, decay in decayed.items() if decay} == {"text/kernel", "visual/kernel"}
    with pytest.raises(ValueError, match="alignment.width is 0, expected 1 or more"):
        AlignmentHeadConfig(width=0)
