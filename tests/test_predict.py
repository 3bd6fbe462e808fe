"""Prediction: any picture, in pixels of its original, encoded once; cached decoding says what full passes say."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest

import pixel_align
from pixel_align import batch, models, predict, text
from pixel_align.batch import Batch
from pixel_align.image import ImageError, read_image
from pixel_align.models import pixel_llm_modes
from pixel_align.predict import Prediction, Predictor
from pixel_align.text_alignment import words_of

TENSORFLOW = ("clu", "seqio", "tensorboard", "tensorflow", "tensorflow_datasets", "tensorflow_text")


@pytest.fixture(scope="module")
def predictor(tiny_run: Path) -> Predictor:
    return pixel_align.load(tiny_run)


def picture(height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    """uint8[H, W, 3], blocks of 8 pixels in grays, so that every mode can hold it exactly."""
    gray = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8), np.uint8)
    return np.repeat(np.kron(gray, np.ones((8, 8), np.uint8))[..., None], 3, axis=-1)


def same(one: Prediction, other: Prediction) -> None:
    assert (one.text, one.words, one.size) == (other.text, other.words, other.size)
    for name in ("points", "boxes", "scores", "placed", "word_spans"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


# ---- What is answered


def test_a_trace_has_words_with_places_in_the_picture(predictor: Predictor) -> None:
    predictor.set_image(picture(48, 80))
    told = predictor.trace()
    assert told.size == (48, 80)
    assert told.words == [told.text[a:b] for a, b in told.word_spans] and told.words
    assert told.points.shape == (len(told.words), 2, 2)
    assert told.placed.shape == told.scores.shape == (len(told.words),)
    np.testing.assert_array_equal(told.boxes[:, :2], told.points.min(axis=1))
    np.testing.assert_array_equal(told.boxes[:, 2:], told.points.max(axis=1))
    assert ((told.points >= 0) & (told.points <= [80, 48])).all()
    assert ((told.scores > 0) & (told.scores <= 1)).all() and told.logprob < 0
    # Words are parts of what was said: together they are at least as probable.
    assert np.log(told.scores).sum() >= told.logprob - 1e-4


def test_json_holds_the_prediction_in_pixels(predictor: Predictor) -> None:
    predictor.set_image(picture(48, 80))
    told = predictor.trace(text="a red circle")
    document = json.dumps(told.to_json())
    read = json.loads(document)
    assert list(read) == ["text", "words", "logprob", "width", "height"]
    assert (read["text"], read["width"], read["height"]) == ("a red circle", 80, 48)
    assert [word["word"] for word in read["words"]] == ["a", "red", "circle"]
    for i, word in enumerate(read["words"]):
        assert list(word) == ["word", "score", "points", "box", "placed"]
        np.testing.assert_allclose(word["points"], told.points[i], atol=0.00501)
        np.testing.assert_allclose(word["box"], told.boxes[i], atol=0.00501)
        assert word["score"] == pytest.approx(told.scores[i], abs=5e-5)
    assert not re.search(r"\d\.\d{5}", document), "digits that mean nothing"


@pytest.mark.parametrize("given", ["a red circle", "Red,  RED red!", "café ½ circle 😀 blue", "", "   "])
def test_a_given_text_keeps_its_own_words(predictor: Predictor, given: str) -> None:
    predictor.set_image(picture())
    told = predictor.trace(text=given)
    assert told.text == given
    assert told.words == [given[a:b] for a, b in told.word_spans] == words_of(given)
    assert len(told.points) == len(told.words) == len(told.boxes)
    json.dumps(told.to_json())


def test_a_caption_is_the_same_sentence_without_places(predictor: Predictor) -> None:
    predictor.set_image(picture())
    told, traced = predictor.caption(), predictor.trace()
    assert told.text == traced.text and told.words == traced.words
    assert told.points.shape[0] == told.boxes.shape[0] == 0 and not told.placed.any()
    assert told.places() == ([None] * len(told.words),) * 2
    assert all(list(word) == ["word", "score"] for word in told.to_json()["words"])


def test_words_without_a_place_are_drawn_without_one(predictor: Predictor) -> None:
    predictor.set_image(picture())
    told = predictor.trace(text="a red circle")
    told = dataclasses.replace(told, placed=np.asarray([False, True, False]))
    points, boxes = told.places()
    assert [place is None for place in points] == [place is None for place in boxes] == [True, False, True]
    np.testing.assert_array_equal(points[1], told.points[1])


def test_what_is_asked_by_default_is_what_training_asks(predictor: Predictor, tiny_run: Path) -> None:
    from data_pipelines import localized_narratives

    asked = predictor.config.instruction
    assert asked == localized_narratives.INSTRUCTIONS[0]
    predictor.set_image(picture())
    same(predictor.trace(text="a red circle"), predictor.trace(asked, "a red circle"))
    other = predictor.trace("red", "a red circle")
    assert np.abs(other.points - predictor.trace(text="a red circle").points).max() > 0


def test_a_part_of_a_picture_may_be_asked_about(predictor: Predictor) -> None:
    """A box of all of it is the whole picture; a smaller one, in pixels of the original, is another question."""
    predictor.set_image(picture(48, 80))
    whole = predictor.trace(text="a red circle")
    same(predictor.trace(text="a red circle", box=(0, 0, 80, 48)), whole)
    same(predictor.trace(text="a red circle", box=(-5, -5, 99, 48)), whole)  # cut to the picture
    part = predictor.trace(text="a red circle", box=(40, 0, 80, 24))
    assert np.abs(part.points - whole.points).max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "tracing"}, "mode is 'tracing', expected one of trace, caption"),
        (
            {"mode": "caption", "text": "a circle"},
            "text is given in mode 'caption', expected only box, foreground, instruction",
        ),
        ({"text": "circle " * 60}, r"text has \d+ tokens, expected at most 38"),
        ({"box": (9, 9, 3, 3)}, r"box is \(9, 9, 3, 3\), expected x0, y0, x1, y1"),
        ({"box": (90, 0, 99, 9)}, "expected one inside the picture of 80 x 48 pixels"),
        ({"points": [[3, 3]]}, "points are 1, expected none: this model reads boxes only"),
    ],
)
def test_what_cannot_be_asked(predictor: Predictor, arguments: dict[str, Any], message: str) -> None:
    predictor.set_image(picture())
    with pytest.raises(ValueError, match=message):
        predictor.predict(**arguments)


def test_a_picture_must_be_set(predictor: Predictor) -> None:
    fresh = Predictor(predictor.config, predictor.params, predictor.vocabulary)
    with pytest.raises(ValueError, match="no picture is set"):
        fresh.trace()
    with pytest.raises(ImageError, match="expected a file that exists"):
        fresh.set_image("nowhere.png")


# ---- Cached decoding against a pass over everything, by the path that training takes


def test_cached_greedy_decoding_says_what_repeated_full_passes_say(predictor: Predictor) -> None:
    config, pixels = predictor.config, picture(80, 56, seed=3)
    predictor.set_image(pixels)
    written = predictor.trace()
    model, shape = config.model, config.model.shape
    module = models.family_of(model).module(model)
    canvas, placement = predict.image.fit_to_canvas(pixels, shape.canvas)
    request = pixel_llm_modes.ask_trace(model, predictor.vocabulary, placement, instruction=config.instruction)  # type: ignore[arg-type]

    @jax.jit
    def full_pass(params: Any, given: Batch) -> tuple[jax.Array, jax.Array]:
        outputs = module.apply({"params": params}, given, train=False)
        return outputs.text_features @ outputs.vocabulary_kernel, outputs.points

    given = dataclasses.replace(
        batch.zeros(shape, 1),
        images=canvas[None],
        valid_size=request.valid_size,
        prompt_boxes=request.prompt_boxes,
        instruction_tokens=request.instruction_tokens,
        instruction_mask=request.instruction_mask,
        valid=np.ones((1, 1), bool),
    )
    tokens = np.full(shape.text, predictor.vocabulary.pad_id, np.int32)
    length, points = 0, np.zeros(0)
    while length < shape.text - 1:
        logits, points = full_pass(predictor.params, dataclasses.replace(given, text_tokens=tokens[None, None]))
        tokens[length + 1] = int(np.argmax(logits[0, 0, length]))
        length += 1
        if tokens[length] == predictor.vocabulary.eos_id:
            break
    _, points = full_pass(predictor.params, dataclasses.replace(given, text_tokens=tokens[None, None]))
    sentence, spans = predictor.vocabulary.decode_with_spans(tokens[1 : length + 1])
    assert sentence == written.text
    owners = text.tokens_of_words(spans, written.word_spans)
    for word in range(len(written.words)):
        place = np.asarray(points)[0, 0, 1 : length + 1][owners == word].mean(axis=0)
        np.testing.assert_allclose(placement.to_original(place), written.points[word], atol=1e-3)


# ---- Pictures as they come


def exif_rotated(pixels: np.ndarray, path: Path) -> Path:
    """A file that lies on its side and says so: shown upright, it is `pixels`."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    PIL.Image.fromarray(np.rot90(pixels).copy()).save(path.with_suffix(".png"), exif=exif)
    return path.with_suffix(".png")


def saved(suffix: str, convert: Callable[[PIL.Image.Image], PIL.Image.Image]) -> Callable[[np.ndarray, Path], Path]:
    def save(pixels: np.ndarray, path: Path) -> Path:
        convert(PIL.Image.fromarray(pixels)).save(path.with_suffix(suffix))
        return path.with_suffix(suffix)

    return save


def cmyk(rgb: PIL.Image.Image) -> PIL.Image.Image:
    none = PIL.Image.new("L", rgb.size, 0)
    return PIL.Image.merge("CMYK", (none, none, none, rgb.convert("L").point(lambda value: 255 - value)))


def with_alpha(rgb: PIL.Image.Image) -> PIL.Image.Image:
    """White where `rgb` is white, but by being transparent there."""
    pixels = np.asarray(rgb)
    alpha = np.where(pixels[..., :1] == 255, 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(np.concatenate([np.where(alpha == 0, 9, pixels).astype(np.uint8), alpha], axis=-1))


FILES = {
    "rgb.png": saved(".png", lambda rgb: rgb),
    "gray.png": saved(".png", lambda rgb: rgb.convert("L")),
    "palette.png": saved(".png", lambda rgb: rgb.convert("L").convert("P")),
    "palette.gif": saved(".gif", lambda rgb: rgb.convert("L").convert("P")),
    "alpha.png": saved(".png", with_alpha),
    "gray_alpha.png": saved(".png", lambda rgb: rgb.convert("LA")),
    "cmyk.tif": saved(".tif", cmyk),
    "rgb.bmp": saved(".bmp", lambda rgb: rgb),
    "rotated.png": exif_rotated,
}


@pytest.mark.parametrize("name", FILES)
def test_any_file_is_answered_as_its_upright_pixels_are(predictor: Predictor, tmp_path: Path, name: str) -> None:
    pixels = picture(48, 80)
    pixels[:16, :24] = 255  # for what is transparent
    predictor.set_image(pixels)
    expected = predictor.trace()
    path = FILES[name](pixels, tmp_path / "picture")
    np.testing.assert_array_equal(read_image(path), pixels)
    for source in (path, str(path), path.read_bytes()):
        predictor.set_image(source)
        same(predictor.trace(), expected)
    assert expected.size == (48, 80)


def test_size_and_places_scale_with_the_original(predictor: Predictor) -> None:
    """The same picture with 5 times the pixels: what the model sees differs by resizing alone."""
    small = np.full((32, 24, 3), 90, np.uint8)
    predictor.set_image(small)
    one = predictor.trace(text="a red circle")
    predictor.set_image(np.kron(small, np.ones((5, 5, 1), np.uint8)))
    five = predictor.trace(text="a red circle")
    assert (one.size, five.size) == ((32, 24), (160, 120))
    np.testing.assert_allclose(five.points, one.points * 5, rtol=1e-5)


# ---- Encoded once, compiled once


def test_a_picture_is_encoded_once_and_another_size_compiles_nothing(predictor: Predictor) -> None:
    calls, compiled = [], []
    functions = predictor._compiled

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return functions.encode(*arguments)

    def ask() -> None:
        predictor.trace()
        predictor.caption()
        predictor.trace("where?", "a red circle")
        predictor.trace(text="blue")

    predictor._compiled = dataclasses.replace(functions, encode=counted)
    try:
        predictor.set_image(picture(48, 80))
        ask()
        assert len(calls) == 1
        jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
        predictor.set_image(picture(96, 40))
        ask()
        predictor.set_image(picture(8, 400))
        ask()
    finally:
        jax.monitoring.clear_event_listeners()
        predictor._compiled = functions
    assert len(calls) == 3
    assert not [event for event in compiled if "compile" in event]


def test_predictors_of_equal_configs_share_what_is_compiled(predictor: Predictor) -> None:
    other = Predictor(predictor.config, predictor.params, predictor.vocabulary)
    assert other._compiled is predictor._compiled


# ---- A checkpoint alone


def test_a_checkpoint_moved_elsewhere_predicts_alone_without_tensorflow_and_in_silence(
    tiny_run: Path, tmp_path: Path, predictor: Predictor
) -> None:
    shutil.copytree(tiny_run / "checkpoints" / "12", tmp_path / "moved" / "12")
    for name in ("config.json", "vocabulary.model"):
        shutil.copy(tiny_run / "checkpoints" / name, tmp_path / "moved")
    PIL.Image.fromarray(picture()).save(tmp_path / "picture.png")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({TENSORFLOW!r})); from pixel_align.cli import main; "
        "main(['predict', 'picture.png', '--checkpoint', 'moved', '--out', 'out.png', '--json', 'out.json'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    predictor.set_image(tmp_path / "picture.png")
    expected = predictor.trace()
    assert done.stdout == f"{expected.text}\n"
    assert json.loads((tmp_path / "out.json").read_text())["text"] == expected.text
    with PIL.Image.open(tmp_path / "out.png") as drawn:
        assert min(drawn.size) > 80


def test_an_instruction_that_does_not_fit_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r"instruction has \d+ tokens, expected at most"):
        predictor.trace("describe " * 40)
