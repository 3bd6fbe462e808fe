"""A folder of pictures: each answered once, whatever happens in between; what cannot be read is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from pixel_align import predict_folder
from pixel_align.cli import main
from pixel_align.prediction import Prediction


class Teller:
    """Stands in for a predictor: says how large the picture is."""

    def __init__(self) -> None:
        self.asked = 0

    def set_image(self, pixels: np.ndarray) -> None:
        self.size = pixels.shape[:2]

    def predict(self, mode: str, **said: Any) -> Prediction:
        self.asked += 1
        return Prediction(f"{mode} {self.size[0]} x {self.size[1]}", self.size, words=["one"], scores=np.ones(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    made.mkdir()
    for k in range(4):
        PIL.Image.new("RGB", (20 + k, 16)).save(made / f"{k}.png")
    (made / "notes.txt").write_text("no picture")
    (made / "broken.jpg").write_bytes(b"no picture")
    return made


def run(folder: Path, out: Path, most: int = 1) -> tuple[Teller, list[str]]:
    teller = Teller()
    pictures = predict_folder.pictures_of(folder)
    told = predict_folder.predict_folder(teller, pictures, out, "caption", {}, most_failures=most)  # type: ignore[arg-type]
    return teller, [path.name for path in told]


def test_each_picture_is_answered_once_and_failures_are_named(folder: Path, tmp_path: Path) -> None:
    teller, names = run(folder, out := tmp_path / "out")
    assert names == ["0.png", "1.png", "2.png", "3.png", "broken.jpg"] and teller.asked == 4
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(line["file"], line["text"]) for line in lines] == [
        (f"{k}.png", f"caption 16 x {20 + k}") for k in range(4)
    ]
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [f"{k}.png.png" for k in range(4)]
    told = predict_folder.report(out, 0)
    assert (told.answered, told.before, list(told.failures)) == (4, 0, ["broken.jpg"])
    assert "expected a picture" in told.failures["broken.jpg"]


def test_what_was_broken_off_goes_on(folder: Path, tmp_path: Path) -> None:
    """In the middle of a line: that picture is asked about again, the ones before it are not."""
    run(folder, out := tmp_path / "out")
    whole = (out / "predictions.jsonl").read_bytes()
    (out / "predictions.jsonl").write_bytes(whole[: whole.index(b"2.png") + 9])
    assert predict_folder.answered_in(out) == 2
    teller, names = run(folder, out)
    assert names == ["2.png", "3.png", "broken.jpg"] and teller.asked == 2
    assert (out / "predictions.jsonl").read_bytes() == whole
    assert predict_folder.report(out, 2).before == 2


def test_too_many_failures_and_an_empty_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 pictures cannot be read, expected at most 0; the last: .*--max-failures"):
        run(folder, tmp_path / "out", most=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture, expected at least one"):
        predict_folder.pictures_of(tmp_path / "empty")


def test_answers_to_two_requests_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    run(folder, out := tmp_path / "out")
    mask = np.eye(4, 6, dtype=bool)
    for mode, said, message in (
        ("trace", {}, "mode is 'trace', expected 'caption', which the answers in '.*out' are to. Choose another --out"),
        ("caption", {"box": (1, 2, 3, 4)}, r"box is \[1, 2, 3, 4\], expected None"),
        ("caption", {"mask": mask}, "mask is '6 x 4, [0-9a-f]{12}', expected None"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_folder.check_asked(out, mode, said)
    predict_folder.check_asked(out, "caption", {"box": None})
    # What was asked before there were answers is of no account: most likely it could not be asked.
    (out / "predictions.jsonl").unlink()
    predict_folder.check_asked(out, "trace", {})


def test_from_the_command_line(
    folder: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--max-failures", "1"]
    for words, code, told in (
        ([*out, "--format", "localized_narratives"], 2, "--mode is 'caption', expected one that --format localized_n"),
        (out, 0, "4 pictures, 0 from before, 1 failed"),
        # Nothing is asked again for its sake.
        ([*out, "--format", "coco"], 0, "0 pictures, 4 from before, 1 failed"),
        ([*out, "--format", "coco"], 0, "captions.json: 4 pictures, 0 of them not in full"),
        ([*out, "--text", "a dog"], 2, "text is 'a dog', expected None, which the answers in"),
        ([], 2, "image is a folder, expected --out DIR"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["predict", str(folder), "--checkpoint", str(tiny_run), "--mode", "caption", *words])
        captured = capsys.readouterr()
        assert (left.value.code or 0) == code and told in captured.out + captured.err
    content = json.loads((tmp_path / "out" / "captions.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [one["caption"] for one in content["annotations"]] == [line["text"] for line in lines]
    assert [image["file_name"] for image in content["images"]] == [f"{k}.png" for k in range(4)]


def test_the_format_of_one_picture_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", str(folder / "0.png"), "--checkpoint", "nowhere", "--format", "coco"])
    assert "--format is 'coco', expected none: image is no folder" in capsys.readouterr().err
