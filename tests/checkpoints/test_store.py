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
from pixel_align.checkpoints import digests, store

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
    keeper.save(2, arrays(2.0), [POSITION | {"drawn": 16}])
    keeper.save(4, arrays(4.0, average=True), [POSITION])
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
    back = keeper.restore(4, abstract(arrays(0.0, average=True)))
    equal(back.arrays, arrays(4.0, average=True))
    assert back.positions == [POSITION] and back.step == 4 and back.base == {}
    back = keeper.restore(2, abstract(arrays(0.0)))
    equal(back.arrays, arrays(2.0))
    assert back.positions[0]["drawn"] == 16
    keeper.close()


def test_arrays_come_back_onto_the_devices_that_are_asked_for(run: Path) -> None:
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4))
    place = sharding.resolve(("fsdp", None), (8, 4), mesh)
    wanted = abstract(arrays(0.0))
    kernel = wanted["params"]["text"]["kernel"]
    wanted["params"]["text"]["kernel"] = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=place)
    keeper = store.Store(run / "checkpoints")
    back = keeper.restore(2, wanted).arrays
    keeper.close()
    assert back["params"]["text"]["kernel"].sharding == place
    equal(back["params"], tree(2.0))


def test_only_the_newest_steps_stay(tmp_path: Path) -> None:
    keeper = store.Store(tmp_path, keep=2)
    for step in (1, 2, 3):
        keeper.save(step, {"params": {"x": jnp.float32(step)}, "optimizer": {"y": jnp.float32(step)}}, [])
    keeper.wait()
    assert keeper.steps() == [2, 3] == store.steps_of(tmp_path)
    keeper.close()


def test_arrays_may_be_donated_as_soon_as_saving_has_begun(tmp_path: Path) -> None:
    made = {"params": tree(7.0), "optimizer": tree(1.0)}
    keeper = store.Store(tmp_path)
    keeper.save(1, made, [])
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
        keeper.save(step, arrays(float(step)), [POSITION])
    keeper.wait()
    assert keeper.steps() == [4, 6, 8]  # keeps three
    keeper.close()
    assert store.read_params(folder, 6, jax.eval_shape(lambda: tree(0.0)))["scale"] == 6


def resumed(folder: Path) -> tuple[store.Restored | None, list[str]]:
    """What a run that is started there finds, and what it is told."""
    told: list[str] = []
    with store.Store(folder) as keeper:
        found = keeper.restore_newest(lambda trained_only: abstract(arrays(0.0)), told.append)
        keeper.save(9, arrays(9.0), [POSITION])  # nothing is in the way of what is saved next
    assert store.steps_of(folder)[-1] == 9
    return found, told


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def contents(item: Path) -> list[Path]:
    """The files that hold the arrays."""
    return [path for path in item.rglob("d/*") if path.is_file()]


# tensorstore's other reads find orbax's event loop closed when one of them has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda step: [cut(path) for path in contents(step / "params")], "params: "),
        (lambda step: [flip(path) for path in contents(step / "optimizer")], "optimizer: "),
        (lambda step: (step / "optimizer" / "_METADATA").unlink(), "optimizer: "),
        (lambda step: cut(step / "position" / "metadata"), "position: "),
        (lambda step: cut(step / "digests" / "metadata"), "digests: "),
        (lambda step: shutil.rmtree(step / "optimizer"), "optimizer: "),
    ],
)
def test_a_spoilt_step_is_named_and_set_aside_and_the_one_before_is_used(
    written: Path, tmp_path: Path, spoil: Any, said: str
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(written / "checkpoints", folder)
    shutil.rmtree(folder / "4")
    shutil.copytree(folder / "2", folder / "3")
    spoil(folder / "3")
    found, told = resumed(folder)
    assert found is not None and found.step == 2
    equal(found.arrays, arrays(2.0))
    (line,) = told
    assert line.startswith(f"step 3 of {folder} is broken: {said}") and line.endswith("; the step before it is used")
    assert "\n" not in line
    assert (folder / "3.broken").is_dir() and not (folder / "3").exists()


def test_what_a_disk_changed_is_found_by_its_digest(run: Path) -> None:
    """Whatever the disk's own checks say: another array lies there, whole, where one was written."""
    folder = run / "checkpoints"
    shutil.rmtree(folder / "2" / "params")
    other = store.Store(run / "other")
    other.save(2, {"params": tree(2.0) | {"scale": jnp.float32(3.0)}, "optimizer": {"y": jnp.zeros(1)}}, [])
    other.close()
    shutil.copytree(run / "other" / "2" / "params", folder / "2" / "params")
    for read in (
        lambda: store.read_params(folder, 2, jax.eval_shape(lambda: tree(0.0))),
        lambda: store.read_some(folder, 2, {"text/bias": jnp.zeros(4)}),
    ):
        with pytest.raises(store.Broken, match="step 2 of .* is broken: params: scale is not what its digest is of"):
            read()


def test_a_step_of_another_model_is_refused_and_stays(run: Path) -> None:
    folder, wanted = run / "checkpoints", abstract(arrays(0.0, average=True))
    with (
        store.Store(folder) as keeper,
        pytest.raises(ValueError, match="optimizer of .* do not fit the model") as caught,
    ):
        keeper.restore_newest(lambda _: wanted | {"optimizer": wanted["params"]}, lambda line: None)
    assert not isinstance(caught.value, store.Broken)
    assert store.steps_of(folder) == [2, 4]


def test_no_step_that_can_be_read_is_an_error_and_no_new_beginning(run: Path) -> None:
    folder = run / "checkpoints"
    for step in (2, 4):
        cut(folder / str(step) / "position" / "metadata")
    told: list[str] = []
    with (
        store.Store(folder) as keeper,
        pytest.raises(ValueError, match="has 2 steps and none can be read, expected one"),
    ):
        keeper.restore_newest(lambda _: abstract(arrays(0.0)), told.append)
    assert len(told) == 2


def test_what_is_left_out_has_its_digests(tmp_path: Path) -> None:
    made = arrays(1.0)
    with store.Store(tmp_path) as keeper:
        keeper.save(1, made, [], base={"image": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}})
        keeper.wait()
        base = keeper.restore(1, abstract(made)).base
    assert base == digests.of({"image": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}}) == store.base_of(tmp_path, 1)


# ---- Digests


def test_a_digest_is_of_bits_and_places_and_not_of_devices() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6, 4)).astype(np.float32)
    (whole,) = digests.of({"x": x}).values()
    assert len(whole) == 16
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    for names in (("data", "tensor"), (("data", "fsdp"), None, "tensor"), ()):
        placed = jax.device_put(x, jax.NamedSharding(mesh, jax.P(*names)))
        assert digests.of({"x": placed}) == {"x": whole}
    others = [x.copy() for _ in range(4)]
    others[0][3, 2, 1] = np.nextafter(others[0][3, 2, 1], np.float32(9))
    others[1][[0, 1]] = others[1][[1, 0]]
    others[2][0, 0, 0] *= -1
    others[3] = others[3].reshape(6, 8, 4)[:, :, ::-1]
    found = [digests.of({"x": other})["x"] for other in others] + [whole]
    assert len(set(found)) == 5
    # All kinds of arrays that a checkpoint holds, by their paths; -0.0 is not 0.0.
    many = {"a": [jnp.bfloat16(1), jnp.arange(3), jnp.array([True, False])], "b": jnp.zeros(()), "c": -jnp.zeros(())}
    named = digests.of(many)
    assert list(named) == ["a/0", "a/1", "a/2", "b", "c"] and named["b"] != named["c"]


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
