"""The rule engine: first match wins, everything is covered, nothing is dead, and halves go together again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import param_rules


def tree() -> dict:
    return {
        "image": {"layers": {"mlp": {"kernel": jnp.ones((4, 2, 3)), "bias": jnp.zeros((4, 3))}}, "scale": jnp.ones(2)},
        "text": {"layers_0": {"wi": {"kernel": jnp.ones((2, 2))}}, "layers_11": {"wi": {"kernel": jnp.ones((2, 2))}}},
    }


def test_paths_are_joined_by_slashes() -> None:
    assert list(param_rules.paths(tree())) == [
        "image/layers/mlp/bias",
        "image/layers/mlp/kernel",
        "image/scale",
        "text/layers_0/wi/kernel",
        "text/layers_11/wi/kernel",
    ]
    assert list(param_rules.paths({"a": [1, {"b": 2}], "c": None})) == ["a/0", "a/1/b"]


def test_the_first_match_wins_and_a_match_is_of_the_whole_path() -> None:
    values = param_rules.match(
        [(r".*bias", 0), (r"image/.*", 1), (r"text/layers_1", 2), (r".*", 3)], tree(), dead="ignore"
    )
    assert param_rules.paths(values) == {
        "image/layers/mlp/bias": 0,
        "image/layers/mlp/kernel": 1,
        "image/scale": 1,
        "text/layers_0/wi/kernel": 3,
        "text/layers_11/wi/kernel": 3,
    }


def test_shapes_do_as_well_as_arrays_and_values_may_be_tuples() -> None:
    shapes = jax.eval_shape(tree)
    values = param_rules.match([(r".*kernel", (..., "fsdp")), (r".*", ())], shapes)
    ranks = jax.tree.map(lambda leaf, value: (len(leaf.shape), value), shapes, values)
    assert ranks["image"]["layers"]["mlp"]["kernel"] == (3, (..., "fsdp"))
    assert ranks["image"]["scale"] == (1, ())


def test_uncovered_parameters_and_dead_rules_are_named_together() -> None:
    rules = [(r"image/.*", 0), (r"image/scale", 1), (r"text/layers_0/wi/kernal", 2), (r"text/layers_11/.*", 3)]
    with pytest.raises(ValueError, match="matched by no rule") as caught:
        param_rules.match(rules, tree())
    uncovered, shadowed, misspelt = str(caught.value).split("\n")
    assert uncovered.startswith(
        "1 parameter is matched by no rule, expected every one to be: text/layers_0/wi/kernel. "
    )
    assert "rule 1 'image/scale' decides nothing" in shadowed and "'image/.*'" in shadowed
    assert "rule 2 'text/layers_0/wi/kernal' matches no parameter" in misspelt
    assert "Did you mean text/layers_0/wi/kernel" in misspelt


def test_dead_rules_may_be_ignored_but_uncovered_parameters_never() -> None:
    assert param_rules.match([("nothing", 0), (".*", 1)], {"a": jnp.ones(1)}, dead="ignore") == {"a": 1}
    with pytest.raises(ValueError, match="nothing.*matches no parameter"):
        param_rules.match([("nothing", 0), (".*", 1)], {"a": jnp.ones(1)})
    with pytest.raises(ValueError, match="1 parameter is matched by no rule"):
        param_rules.match([("nothing", 0)], {"a": jnp.ones(1)}, dead="ignore")


def test_a_long_list_is_cut_and_counted() -> None:
    with pytest.raises(ValueError, match=r"13 parameters are matched by no rule.*: p00, .*, p09 and 3 more\."):
        param_rules.match([], {f"p{i:02}": jnp.ones(1) for i in range(13)})


def test_a_function_of_the_layer_is_the_same_for_stacked_and_written_out_layers() -> None:
    def halved(layer: int) -> float:
        return 0.5**layer

    stacked = {"layers": {"kernel": jnp.arange(24.0).reshape(4, 2, 3), "bias": jnp.ones((4, 3))}}
    written = {f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked["layers"]) for i in range(4)}
    rules = [(r".*", halved)]
    scaled = jax.tree.map(lambda leaf, value: leaf * value, stacked, param_rules.match(rules, stacked))
    for i in range(4):
        expected = jax.tree.map(lambda leaf, value: leaf * value, written, param_rules.match(rules, written))
        for name, leaf in expected[f"layers_{i}"].items():
            np.testing.assert_array_equal(scaled["layers"][name][i], leaf)
    assert param_rules.match(rules, stacked)["layers"]["kernel"].shape == (4, 1, 1)


def test_a_function_of_the_layer_needs_a_layer() -> None:
    with pytest.raises(ValueError, match=r"value of rule '\.\*' is a function of the layer number.*image/scale"):
        param_rules.match([(".*", lambda layer: layer)], {"image": {"scale": jnp.ones(1)}})


def test_split_then_merge_is_the_identity_also_inside_jit() -> None:
    params = tree()
    mask = param_rules.match([(r"image/.*", False), (r".*", True)], params)
    trainable, frozen = param_rules.split(params, mask)
    assert list(param_rules.paths(trainable)) == ["text/layers_0/wi/kernel", "text/layers_11/wi/kernel"]
    assert all(path.startswith("image/") for path in param_rules.paths(frozen))
    for merged in (param_rules.merge(trainable, frozen), jax.jit(param_rules.merge)(frozen, trainable)):
        assert jax.tree.structure(merged) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_rules_cover_half_a_tree() -> None:
    params = tree()
    trainable, _ = param_rules.split(params, param_rules.match([(r"image/.*", False), (r".*", True)], params))
    values = param_rules.match([(r"image/.*", 0.0), (r".*", 1.0)], trainable, dead="ignore")
    assert jax.tree.structure(values) == jax.tree.structure(trainable)
    assert set(param_rules.paths(values).values()) == {1.0}


def test_halves_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="parameter a is in both halves"):
        param_rules.merge({"a": jnp.ones(1)}, {"a": jnp.ones(1)})
    with pytest.raises(ValueError, match="parameter a is in neither half"):
        param_rules.merge({"a": None}, {"a": None})
    with pytest.raises(ValueError, match=r"mask of a is array.*expected True or False"):
        param_rules.split({"a": jnp.ones(2)}, {"a": np.array([True, False])})
