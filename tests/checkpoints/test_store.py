"""Checkpoints: what is written comes back, what is half written is not taken, and a folder works wherever it lies."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_align import sharding, text
from pixel_align.checkpoints import store

POSITION = {"drawn": 24, "tasks": {"a": [1, 4], "b": [0, 7]}}


def tree(value: float) -> dict[str, Any]:
    return {"text": {"kernel": jnp.full((8, 4), value), "bias": jnp.arange(4.0) + value}, "scale": jnp.float32(value)}


def arrays(value: float, average: bool = False) -> dict[str, Any]:
    made = {"params": tree(value), "optimizer": (jnp.int32(3), {"mu": tree(value / 2)})}
    return made | ({"average": tree(value + 100)} if average else {})


def abstract(of: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), of)


def equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(autouse=True)
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The library below says nothing that a user could not act on."""
    yield
    said = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert not [line for line in said if "Waiting for previous save" not in line]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose checkpoints hold the steps 2 and 4 (with an average), config and vocabulary."""
    run = tmp_path_factory.mktemp("run")
    vocabulary = text.train_sentencepiece(["one two three"] * 5, run / "v.model", 18, model_type="bpe")
    store.write_header(run / "checkpoints", '{"some": "config"}', text.load_vocabulary(vocabulary))
    keeper = store.Store(run / "checkpoints")
    keeper.save(2, arrays(2.0), POSITION | {"drawn": 16})
    keeper.save(4, arrays(4.0, average=True), POSITION)
    keeper.close()
    return run


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt, in another place than it was written to."""
    shutil.copytree(written, tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_what_is_saved_comes_back_whole(run: Path) -> None:
    keeper = store.Store(run / "checkpoints")
    assert keeper.latest() == 4 and keeper.steps() == [2, 4]
    back, position = keeper.restore(4, abstract(arrays(0.0, average=True)))
    equal(back, arrays(4.0, average=True))
    assert position == POSITION
    back, position = keeper.restore(2, abstract(arrays(0.0)))
    equal(back, arrays(2.0))
    assert position["drawn"] == 16
    keeper.close()


def test_arrays_come_back_onto_the_devices_that_are_asked_for(run: Path) -> None:
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4))
    place = sharding.resolve(("fsdp", None), (8, 4), mesh)
    wanted = abstract(arrays(0.0))
    kernel = wanted["params"]["text"]["kernel"]
    wanted["params"]["text"]["kernel"] = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=place)
    keeper = store.Store(run / "checkpoints")
    back, _ = keeper.restore(2, wanted)
    keeper.close()
    assert back["params"]["text"]["kernel"].sharding == place
    equal(back["params"], tree(2.0))


def test_only_the_newest_steps_stay(tmp_path: Path) -> None:
    keeper = store.Store(tmp_path, keep=2)
    for step in (1, 2, 3):
        keeper.save(step, {"params": {"x": jnp.float32(step)}, "optimizer": {"y": jnp.float32(step)}}, {})
    keeper.wait()
    assert keeper.steps() == [2, 3] == store.steps_of(tmp_path)
    keeper.close()


def test_arrays_may_be_donated_as_soon_as_saving_has_begun(tmp_path: Path) -> None:
    made = {"params": tree(7.0), "optimizer": tree(1.0)}
    keeper = store.Store(tmp_path)
    keeper.save(1, made, {})
    jax.tree.map(lambda x: x.delete(), made)
    keeper.close()
    back = store.read_params(tmp_path, 1, jax.eval_shape(lambda: tree(0.0)))
    equal(back, tree(7.0))


def test_a_half_written_step_is_not_taken_and_not_in_the_way(run: Path) -> None:
    folder = run / "checkpoints"
    shutil.copytree(folder / "4", folder / "8.orbax-checkpoint-tmp-17")  # as a killed save leaves it
    shutil.copytree(folder / "4", folder / "6")
    shutil.rmtree(folder / "6" / "params")  # as a copy that broke off leaves it
    (folder / "9").mkdir()
    (folder / "7").mkdir()
    (folder / "7" / "params").mkdir()
    assert store.steps_of(folder) == [2, 4]
    assert store.find(run) == (folder, 4)
    keeper = store.Store(folder)
    assert keeper.latest() == 4
    for step in (6, 8):
        keeper.save(step, arrays(float(step)), POSITION)
    keeper.wait()
    assert keeper.steps() == [4, 6, 8]  # keeps three
    keeper.close()
    assert store.read_params(folder, 6, jax.eval_shape(lambda: tree(0.0)))["scale"] == 6


@pytest.mark.parametrize("named", ["", "checkpoints", "checkpoints/4", "checkpoints/2"])
def test_a_run_a_checkpoint_folder_or_a_step_is_found(run: Path, named: str) -> None:
    assert store.find(run / named) == (run / "checkpoints", 2 if named.endswith("2") else 4)


@pytest.mark.parametrize("named", ["nowhere", "checkpoints/3", "checkpoints/2/params", "v.model"])
def test_what_is_no_checkpoint_is_refused_in_one_line(run: Path, named: str) -> None:
    with pytest.raises(FileNotFoundError, match="expected a run folder or a checkpoint folder") as caught:
        store.find(run / named)
    assert str(run / named) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_steps_or_without_config_is_no_checkpoint(run: Path) -> None:
    shutil.copytree(run / "checkpoints", run / "bare")
    (run / "bare" / store.CONFIG).unlink()
    store.write_header(run / "new", "{}", store.read_vocabulary(run / "checkpoints"))
    for folder in ("bare", "new"):
        with pytest.raises(FileNotFoundError):
            store.find(run / folder)


def test_config_and_vocabulary_lie_beside_the_steps(run: Path, written: Path) -> None:
    folder, _ = store.find(run)
    assert store.read_config(folder) == '{"some": "config"}'
    assert store.read_vocabulary(folder).digest() == text.load_vocabulary(written / "v.model").digest()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]  # nothing half done is left


def test_the_average_is_preferred_where_there_is_one(run: Path) -> None:
    wanted = jax.eval_shape(lambda: tree(0.0))
    equal(store.read_params(run / "checkpoints", 2, wanted), tree(2.0))
    equal(store.read_params(run / "checkpoints", 4, wanted), tree(104.0))


def test_parameters_that_do_not_fit_are_all_named(run: Path) -> None:
    wanted = jax.eval_shape(lambda: tree(0.0))
    wanted["text"]["kernel"] = jax.ShapeDtypeStruct((8, 5), jnp.float32)
    wanted["more"] = wanted.pop("scale")
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        store.read_params(run / "checkpoints", 2, wanted)
    said = str(caught.value)
    for fault in ("more is missing", "scale is not expected", "text/kernel is (8, 4), expected (8, 5)"):
        assert fault in said
    assert said.count(";") == 2 and "\n" not in said


def test_shapes_are_told_and_some_parameters_read(run: Path) -> None:
    folder = run / "checkpoints"
    assert store.saved_shapes(folder, 4) == {"scale": (), "text/bias": (4,), "text/kernel": (8, 4)}
    wanted = {"text/bias": jnp.zeros(4, jnp.bfloat16)}
    read = store.read_some(folder, 4, wanted)
    assert list(read) == ["text/bias"] and read["text/bias"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(read["text/bias"].astype(jnp.float32), np.arange(4) + 104)
