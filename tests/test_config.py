"""Configs: every spelling becomes the same object, and what is misspelt is named with the right spelling."""

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any, Literal

import pytest

from pixel_align import settings
from pixel_align.config import from_config_dict, load, to_config_dict
from pixel_align.experiment import Experiment
from pixel_align.settings import ConfigError, from_json, override, to_json


@dataclasses.dataclass(frozen=True)
class Optim:
    peak_lr: float = 1e-4
    warmup_steps: int = 10
    clip: float | None = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"


@dataclasses.dataclass(frozen=True)
class Lora:
    rank: int = 0
    targets: tuple[str, ...] = ("query", "value")


@dataclasses.dataclass(frozen=True)
class SamVit:
    kind: str = "sam"
    window: int = 14


@dataclasses.dataclass(frozen=True)
class EvaVit:
    kind: str = "eva"
    rotary: bool = True
    grid: tuple[int, int] = (16, 16)


@dataclasses.dataclass(frozen=True)
class Model:
    image: SamVit | EvaVit = dataclasses.field(default_factory=SamVit)
    mask: EvaVit | None = None
    lora: Lora = dataclasses.field(default_factory=Lora)
    points: int = 2
    corners: int = 2

    def __post_init__(self) -> None:
        if self.points != self.corners:
            raise ValueError("points and corners disagree")


@dataclasses.dataclass(frozen=True)
class Eval:
    task: str = "none"
    every: int = 100


@dataclasses.dataclass(frozen=True)
class Tree:
    model: Model = dataclasses.field(default_factory=Model)
    optim: Optim = dataclasses.field(default_factory=Optim)
    evals: tuple[Eval, ...] = (Eval("a"), Eval("b", 5))
    name: str | None = None


EDITED = Tree(
    model=Model(image=EvaVit(rotary=False), mask=EvaVit(grid=(4, 8)), lora=Lora(8, ())),
    optim=Optim(clip=None, schedule="constant"),
    evals=(),
    name="3",
)


@pytest.mark.parametrize("tree", [Tree(), EDITED])
def test_every_spelling_comes_back_equal(tree: Tree) -> None:
    assert from_config_dict(Tree, to_config_dict(tree)) == tree
    assert from_json(Tree, to_json(tree)) == tree
    assert from_config_dict(Tree, tree) == tree
    assert override(tree, ()) == tree
    assert hash(from_json(Tree, to_json(tree))) == hash(tree)


def test_a_config_dict_is_locked_and_edits_arrive() -> None:
    config = to_config_dict(Tree())
    with pytest.raises(AttributeError, match="peek_lr"):
        config.optim.peek_lr = 1.0
    with pytest.raises(TypeError, match="peak_lr"):
        config.optim.peak_lr = "fast"
    config.optim.peak_lr = 1
    config.model.image = to_config_dict(EvaVit(rotary=False))
    config.evals = (Eval("c"), to_config_dict(Eval("d")))
    config.name = "named"
    tree = from_config_dict(Tree, config)
    assert tree.optim.peak_lr == 1.0 and isinstance(tree.optim.peak_lr, float)
    assert tree.model.image == EvaVit(rotary=False)
    assert tree.evals == (Eval("c"), Eval("d"))
    assert tree.name == "named"


@pytest.mark.parametrize(
    ("texts", "path", "value"),
    [
        (["optim.peak_lr=1e-3"], "optim.peak_lr", 1e-3),
        (["optim.peak_lr=1"], "optim.peak_lr", 1.0),
        (["config.optim.warmup_steps= 1_000"], "optim.warmup_steps", 1000),
        (["optim.clip=none"], "optim.clip", None),
        (["optim.clip=0.5"], "optim.clip", 0.5),
        (["optim.schedule=constant"], "optim.schedule", "constant"),
        (["name=a=b"], "name", "a=b"),
        (["name=3"], "name", "3"),
        (["name=None"], "name", None),
        (["name="], "name", ""),
        (["model.lora.targets=query,key"], "model.lora.targets", ("query", "key")),
        (["model.lora.targets=(out,)"], "model.lora.targets", ("out",)),
        (['model.lora.targets=["a,b"]'], "model.lora.targets", ("a,b",)),
        (["model.lora.targets=()"], "model.lora.targets", ()),
        (["model.lora.targets="], "model.lora.targets", ()),
        (["model.lora.targets.1=wi"], "model.lora.targets", ("query", "wi")),
        (["evals.1.every=7"], "evals", (Eval("a"), Eval("b", 7))),
        (['evals=[{"task": "z"}]'], "evals", (Eval("z", 100),)),
        (["evals="], "evals", ()),
        (['optim={"peak_lr": 2}'], "optim", Optim(2.0)),
        (["model.image.kind=eva"], "model.image", EvaVit()),
        (["model.image.grid=(2,3)", "model.image.kind=eva"], "model.image", EvaVit(grid=(2, 3))),
        (["model.image.window=3", "model.image.kind=sam"], "model.image", SamVit(window=3)),
        (["model.mask.kind=eva", "model.mask.rotary=False"], "model.mask", EvaVit(rotary=False)),
        (["model.points=4", "model.corners=4"], "model.points", 4),
        (["optim.warmup_steps=1", "optim.warmup_steps=2"], "optim.warmup_steps", 2),
    ],
)
def test_overrides_are_read_as_their_fields_types(texts: list[str], path: str, value: Any) -> None:
    tree = override(Tree(), texts)
    found: Any = tree
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)
    unchanged = {field.name for field in dataclasses.fields(Tree)} - {path.split(".")[0]}
    assert all(getattr(tree, name) == getattr(Tree(), name) for name in unchanged)


def test_choosing_the_present_kind_again_changes_nothing() -> None:
    edited = override(Tree(), ["model.image.window=3"])
    assert override(edited, ["model.image.kind=sam"]) == edited
    assert override(edited, ["model.image.kind=eva"]).model.image == EvaVit()


def test_overrides_may_be_values() -> None:
    tree = override(Tree(), {"optim.peak_lr": 3, "evals": (Eval("q"),), "model.image": EvaVit(), "model.lora.rank": 4})
    assert tree == Tree(Model(image=EvaVit(), lora=Lora(4)), Optim(3.0), (Eval("q"),))
    assert isinstance(tree.optim.peak_lr, float)
    with pytest.raises(ConfigError, match=r"config\.model\.lora\.rank is '4', expected int"):
        override(Tree(), {"model.lora.rank": "4"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.peek_lr=1", "config.optim.peek_lr is not a field of Optim. Did you mean config.optim.peak_lr?"),
        ("optum.peak_lr=1", "config.optum is not a field of Tree. Did you mean config.optim.peak_lr?"),
        ("peak_lr=1", "config.peak_lr is not a field of Tree. Did you mean config.optim.peak_lr?"),
        ("model.loro.rank=1", "config.model.loro is not a field of Model. Did you mean config.model.lora.rank?"),
        (
            "optim.zzz=1",
            "config.optim.zzz is not a field of Optim. Its fields are peak_lr, warmup_steps, clip, schedule.",
        ),
        ("optim.peak_lr=abc", "config.optim.peak_lr is 'abc', expected float. Write it as 1e-3."),
        ("optim.warmup_steps=1.5", "config.optim.warmup_steps is '1.5', expected int. Write it as 8."),
        ("optim.clip=x", "config.optim.clip is 'x', expected float or None. Write it as 1e-3 or none."),
        (
            "optim.schedule=linear",
            "config.optim.schedule is 'linear', expected one of 'cosine', 'constant'. Change the value.",
        ),
        (
            "model.image.kind=vgg",
            "config.model.image.kind is 'vgg', expected one of 'sam', 'eva'. Choose one that exists.",
        ),
        ("model.mask.kind=sam", "config.model.mask.kind is 'sam', expected 'eva'. Choose one that exists."),
        ("model.image.rotary=true", "config.model.image.rotary is not a field of SamVit. Its fields are kind, window."),
        ("model.mask.rotary=true", "config.model.mask is None, expected a group of settings to find 'rotary' in. "),
        ("optim.peak_lr.x=1", "config.optim.peak_lr is 0.0001, expected a group of settings to find 'x' in. "),
        ("model.lora.kind=x", "config.model.lora.kind is not a field of Lora. Its fields are rank, targets."),
        ("evals.2.every=7", "config.evals.2 is not an element of config.evals, expected a number below 2. "),
        ("evals=5", "config.evals.0 is '5', expected Eval. Write it as {\"field\": value}."),
        ('evals=[{"tusk": 1}]', "config.evals.0.tusk is not a field of Eval. Did you mean config.evals.0.task?"),
        ('optim={"peak_lr": "x"}', "config.optim.peak_lr is 'x', expected float. Write it as 1e-3."),
        ("peak_lr", "override is 'peak_lr', expected name=value. Write it as optim.peak_lr=1e-3."),
    ],
)
def test_messages(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Tree(), [text])
    assert str(caught.value).startswith(message)


def test_pairs_have_their_length() -> None:
    with pytest.raises(ConfigError, match=r"image\.grid is \['1', '2', '3'\], expected a tuple \(int, int\)\. Give 2"):
        override(Tree(), ["model.image.kind=eva", "model.image.grid=1,2,3"])
    with pytest.raises(ConfigError, match=r"image\.grid\.1 is 'b', expected int"):
        override(Tree(), ["model.image.kind=eva", "model.image.grid=1,b"])


def test_true_is_no_number_and_one_is_no_truth() -> None:
    for path, value in (("optim.warmup_steps", True), ("optim.peak_lr", True), ("optim.warmup_steps", 1.0)):
        with pytest.raises(ConfigError, match="expected"):
            override(Tree(), {path: value})
    with pytest.raises(ConfigError, match="expected bool"):
        override(EDITED, {"model.image.rotary": 1})


def test_objects_made_in_python_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"config\.optim\.peak_lr is 'x', expected float"):
        from_config_dict(Tree, Tree(optim=Optim("x")))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"config\.optim is SamVit.*expected Optim"):
        from_config_dict(Tree, Tree(optim=SamVit()))  # type: ignore[arg-type]


def test_checks_between_fields_see_the_result_only() -> None:
    with pytest.raises(ValueError, match="points and corners disagree"):
        override(Tree(), ["model.points=4"])


def test_json_is_strict() -> None:
    plain = json.loads(to_json(Tree()))
    del plain["optim"]["clip"]
    with pytest.raises(ConfigError, match=r"config\.optim\.clip is missing, expected float or None"):
        from_json(Tree, json.dumps(plain))
    plain["optim"] |= {"clip": 1.0, "peak_lt": 3}
    with pytest.raises(ConfigError, match=r"config\.optim\.peak_lt is not a field of Optim\. Did you mean .*peak_lr"):
        from_json(Tree, json.dumps(plain))
    with pytest.raises(ConfigError, match="config is no JSON"):
        from_json(Tree, "{")
    with pytest.raises(ConfigError, match=r"config is \[\], expected Tree"):
        from_json(Tree, "[]")


def test_a_dataclass_that_no_config_can_hold_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Bad:
        table: dict

    with pytest.raises(TypeError, match="a field's annotation is <class 'dict'>"):
        from_config_dict(Bad, {"table": {}})


def experiment(tmp_path: Path, body: str) -> Path:
    (tmp_path / "experiments").mkdir(exist_ok=True)
    path = tmp_path / "experiments" / "one.py"
    path.write_text(textwrap.dedent(body), encoding="utf-8")
    return path


def test_an_experiment_file_becomes_an_object(tmp_path: Path) -> None:
    path = experiment(
        tmp_path,
        """
        from pixel_align.config import to_config_dict
        from pixel_align.experiment import Experiment

        def get_config(preset="full"):
            config = to_config_dict(Experiment())
            config.optim.warmup_steps = {"full": 100, "bench": 1}[preset]
            return config
        """,
    )
    assert load(path).optim.warmup_steps == 100
    assert load(f"{path}:bench", ["optim.peak_lr=3"]) == override(
        Experiment(), {"optim.warmup_steps": 1, "optim.peak_lr": 3.0}
    )


def test_an_experiment_may_import_its_neighbour(tmp_path: Path) -> None:
    experiment(tmp_path, "").with_name("neighbour_of_one.py").write_text("STEPS = 17\n", encoding="utf-8")
    path = experiment(
        tmp_path,
        """
        import dataclasses
        from experiments_of_a_test.neighbour_of_one import STEPS
        from pixel_align.experiment import Experiment
        from pixel_align.optim import Optim

        def get_config():
            return Experiment(optim=Optim(warmup_steps=STEPS))
        """,
    )
    path = path.parent.rename(tmp_path / "experiments_of_a_test") / path.name
    assert load(path).optim.warmup_steps == 17


def test_wrong_experiments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"experiment is '.*absent\.py', expected an existing \.py or \.gin file"):
        load(tmp_path / "absent.py")
    with pytest.raises(ConfigError, match=r"expected an existing \.py or \.gin file"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="has no get_config"):
        load(experiment(tmp_path, "x = 1"))
    with pytest.raises(ConfigError, match="preset is 'bench', expected none"):
        load(f"{experiment(tmp_path, 'def get_config(): ...')}:bench")


def test_the_experiment_itself_is_made_of_what_configs_can_hold() -> None:
    """Walks all annotations, those of choices not taken included; sweeps over defaults would not see them."""

    def walk(annotation: Any) -> None:
        for alternative in settings._alternatives(annotation):
            if dataclasses.is_dataclass(alternative):
                for hint in settings._hints(alternative).values():
                    walk(hint)
            else:
                for argument in getattr(alternative, "__args__", ()):
                    if argument is not Ellipsis and not isinstance(argument, str | int):
                        walk(argument)

    walk(Experiment)
    assert from_json(Experiment, to_json(Experiment())) == Experiment()
    assert from_config_dict(Experiment, to_config_dict(Experiment())) == Experiment()
