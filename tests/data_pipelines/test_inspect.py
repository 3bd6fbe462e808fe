"""`inspect` draws examples of built sets, and says in one line why it cannot."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from data_pipelines import inspect, regions
from data_pipelines.__main__ import main
from data_pipelines.regions import Picture, Region
from tests.data_pipelines.drawn import save_gray

regions.register("inspected_regions", "refer")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Three gray pictures; on the first, twelve places, one with two phrases and a mask."""
    square = [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]]
    many = [Region(str(k), f"thing {k}", (3.0 * k, 24.0, 3.0 * k + 8, 40.0)) for k in range(11)]
    many += [Region(f"m{k}", text, (10.0, 10.0, 20.0, 20.0), square) for k, text in enumerate(("red", "square"))]
    found = [Picture(str(k), "", (48, 64), many[: 1 if k else None], "drawn") for k in range(3)]
    for k in range(3):
        save_gray(tmp_path / "images" / f"{k}.png")
    regions.build(tmp_path / "data", "inspected_regions", "train", found, [tmp_path / "images"])
    return tmp_path


def test_a_sheet_shows_places_and_masks(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = built / "new" / "sheet.png"
    options = ["--data", str(built / "data"), "--out", str(sheet), "--examples", "2", "--columns", "1"]
    assert main(["inspect", "inspected_regions", *options]) == 0
    assert capsys.readouterr().out == f"2 pictures of inspected_regions, split train: {sheet}\n"
    with PIL.Image.open(sheet) as page:
        assert page.height > page.width > 600
    first, *others = inspect.examples("inspected_regions", built / "data", "train", 2)
    assert len(others) == 1 and len(first["region_text"]) == 13
    drawn = np.asarray(inspect.picture(first, side=640)).astype(int)
    gray = (abs(drawn - 128) < 3).all(-1)
    assert 0.05 < (gray[:, : drawn.shape[1] // 2].mean()) < 0.95  # the picture, and something on it


def test_masks_are_drawn_where_they_are(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(inspect.draw, "annotate", lambda *args, **more: given.update(args=args, **more))
    inspect.picture(next(inspect.examples("inspected_regions", built / "data", "train", 1)))
    _, phrases, points, boxes, masks, title = given["args"]
    assert len(phrases) == len(points) == len(boxes) == len(masks) == 8 and title == "0: refer, 9 of 13 regions"
    assert phrases[0] == "thing 0" and phrases[-1] == "red / square"
    np.testing.assert_allclose(boxes[-1], [10, 10, 20, 20], rtol=1e-5)
    np.testing.assert_allclose(points[-1], [[15, 15]], rtol=1e-5)
    assert masks[0] is None and masks[-1].sum() == 100 and masks[-1][10:20, 10:20].all()


def test_what_cannot_be_drawn_is_one_line(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(built / "data")]
    for options, message in (
        (["inspected_region", *data], "set is 'inspected_region', expected one of coco_captions, "),
        (["refcoco_unc", *data], "holds no set 'refcoco_unc'"),
        (["inspected_regions", *data, "--split", "test"], "split is 'test', expected one of ['train']"),
        (["inspected_regions", *data, "--examples", "0"], "--examples is 0, expected at least 1"),
    ):
        assert main(["inspect", *options, "--out", str(built / "sheet.png")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
        assert not (built / "sheet.png").exists()
