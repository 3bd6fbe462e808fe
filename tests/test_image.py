"""Every kind of file becomes the same upright RGB, and points move with the pixels."""

import contextlib
import io
import os
import pathlib
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest

from pixel_align import geometry, image
from pixel_align.image import ImageError

SIZE = (40, 60)  # height, width of the test picture: a red left half, a blue right half


def two_halves() -> np.ndarray:
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, :30] = (250, 5, 10)
    pixels[:, 30:] = (10, 5, 250)
    return pixels


def encoded(picture: PIL.Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_rgb_png_is_read_exactly_from_bytes_and_from_a_path(tmp_path: pathlib.Path) -> None:
    data = encoded(PIL.Image.fromarray(two_halves()))
    (tmp_path / "a picture.png").write_bytes(data)
    for source in (data, tmp_path / "a picture.png", str(tmp_path / "a picture.png")):
        pixels = image.read_image(source)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, two_halves())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_made_upright(orientation: int) -> None:
    transforms: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        # EXIF: where row 0 and column 0 of the stored picture belong -> how an upright picture is stored.
        1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2), 6: lambda p: p.transpose(1, 0, 2)[::-1],
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1], 8: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    }  # fmt: skip
    upright = two_halves()
    upright[:10] = 255  # top differs from bottom too
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(transforms[orientation](upright))
    np.testing.assert_array_equal(image.read_image(encoded(PIL.Image.fromarray(stored), exif=exif.tobytes())), upright)


@pytest.mark.parametrize(
    ("mode", "form", "tolerance"),
    [("P", "PNG", 0), ("P", "GIF", 0), ("CMYK", "TIFF", 0), ("CMYK", "JPEG", 12), ("YCbCr", "TIFF", 3),
     ("RGB", "JPEG", 12), ("RGB", "WEBP", 25), ("RGB", "BMP", 0), ("RGBA", "PNG", 0)],
)  # fmt: skip
def test_colour_modes_become_rgb(mode: str, form: str, tolerance: int) -> None:
    picture = PIL.Image.fromarray(two_halves())
    pixels = image.read_image(encoded(picture.quantize(4) if mode == "P" else picture.convert(mode), form))
    assert pixels.shape == (*SIZE, 3)
    # Away from the seam, where lossy formats bleed.
    difference = np.abs(pixels.astype(int) - two_halves())
    assert max(difference[:, :24].max(), difference[:, 36:].max()) <= tolerance


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.asarray([[0, 128, 255]], np.uint8), [0, 128, 255]),
        (np.asarray([[0, 257 * 128, 65535]], np.uint16), [0, 128, 255]),
        (np.asarray([[0, 100, 200]], np.uint16), [0, 0, 1]),  # a dark 16-bit picture stays dark
        (np.asarray([[0, 257 * 128, 65535]], np.int32), [0, 128, 255]),
        (np.asarray([[0, 100, 200]], np.int32), [0, 100, 200]),
        (np.asarray([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.asarray([[-5, 100, 255]], np.float32), [0, 100, 255]),
    ],
)
def test_gray_of_any_depth(values: np.ndarray, expected: list[int]) -> None:
    form = "TIFF" if values.dtype in (np.int32, np.float32) else "PNG"
    pixels = image.read_image(encoded(PIL.Image.fromarray(values), form))
    assert pixels[0].tolist() == [[value] * 3 for value in expected]


def test_one_bit_pictures() -> None:
    pixels = image.read_image(encoded(PIL.Image.fromarray(np.asarray([[True, False]]))))
    assert pixels[0].tolist() == [[255] * 3, [0] * 3]


def test_transparency_is_laid_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 128, 255)
    np.testing.assert_array_equal(image.read_image(encoded(PIL.Image.fromarray(rgba)))[0, :, 0], [255, 127, 0])
    palette = PIL.Image.fromarray(np.asarray([[0, 1]], np.uint8), "L").convert("P")
    assert image.read_image(encoded(palette, transparency=0))[0, 0].tolist() == [255] * 3


def test_first_frame_of_an_animation() -> None:
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert image.read_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [
        255,
        0,
        0,
    ]


def header_only_png(width: int, height: int) -> bytes:
    data = bytearray(encoded(PIL.Image.new("L", (1, 1))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def test_errors_are_one_line_that_names_the_picture(tmp_path: pathlib.Path) -> None:
    good = encoded(PIL.Image.fromarray(two_halves()), "JPEG")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "half.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "bomb.png").write_bytes(header_only_png(60_000, 60_000))
    (tmp_path / "big.png").write_bytes(header_only_png(9_000, 8_000))
    expected = {
        "none.jpg": r"none\.jpg', expected a file that exists",
        "text.jpg": r"text\.jpg', expected a picture",
        "empty.jpg": r"empty\.jpg', expected a picture",
        "half.jpg": r"half\.jpg' is broken",
        "bomb.png": r"bomb\.png' is beyond what is safe",
        "big.png": r"big\.png' is 9000 x 8000 = 72000000 pixels, expected at most 64000000 pixels",
    }
    for name, message in expected.items():
        with pytest.raises(ImageError, match=message) as caught:
            image.read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="the given bytes, expected a picture"):
        image.read_image(b"no picture")
    assert image.read_image(good, max_pixels=2400).shape == (*SIZE, 3)
    with pytest.raises(ImageError, match="2400 pixels, expected at most 2399"):
        image.read_image(good, max_pixels=2399)
    with pytest.raises(ImageError, match="expected a file that exists"):
        image.read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # PIL reports some damage by a warning and reads on
def test_no_damage_gets_past_as_another_kind_of_error() -> None:
    """Cut and scribbled files either read or raise ImageError, never anything else."""
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        data = encoded(PIL.Image.fromarray(two_halves()), form)
        for _ in range(60):
            damaged = bytearray(data[: rng.integers(1, len(data))] if rng.random() < 0.5 else data)
            for at in rng.integers(0, len(damaged), 3):
                damaged[at] = rng.integers(256)
            with contextlib.suppress(ImageError):
                assert image.read_image(bytes(damaged), max_pixels=1_000_000).shape[-1] == 3


def with_dot(size: tuple[int, int], at: tuple[int, int], radius: int = 6) -> np.ndarray:
    """A dark picture with one bright disc around the pixel coordinates `at` (x, y)."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    disc = (x - at[0]) ** 2 + (y - at[1]) ** 2 <= radius**2
    return np.repeat(np.where(disc, 255, 20).astype(np.uint8)[..., None], 3, axis=-1)


def center_of_light(pixels: np.ndarray, background: float = 20.0) -> np.ndarray:
    """Weighted mean (x, y), in [0, 1] of the canvas, of what is brighter than the background."""
    weight = np.clip(pixels[..., 0].astype(float) - background - 8, 0, None)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
    return np.asarray([(x * weight).sum(), (y * weight).sum()]) / weight.sum() / pixels.shape[0]


@pytest.mark.parametrize("size", [(120, 160), (160, 120), (97, 211), (400, 500), (31, 30)])
@pytest.mark.parametrize("canvas", [64, 96, 224])
def test_a_point_moves_with_its_pixels_onto_the_canvas(size: tuple[int, int], canvas: int) -> None:
    at = (size[1] // 3, size[0] // 4)
    pixels, placement = image.fit_to_canvas(with_dot(size, at), canvas)
    assert pixels.shape == (canvas, canvas, 3) and max(placement.valid_size) == canvas
    found = center_of_light(pixels)
    np.testing.assert_allclose(found, placement.to_canvas(np.asarray(at, np.float64)), atol=0.4 / canvas)
    np.testing.assert_allclose(placement.to_original(found), at, atol=0.4 * max(size) / canvas)
    height, width = placement.valid_size
    assert pixels[:height, :width].min() >= 20 and not pixels[height:].any() and not pixels[:, width:].any()


def test_a_point_moves_with_its_pixels_through_random_views() -> None:
    rng = np.random.default_rng(0)
    seen = flipped = 0
    for _ in range(200):
        size = tuple(int(n) for n in rng.integers(60, 200, 2))
        at = (int(rng.integers(8, size[1] - 8)), int(rng.integers(8, size[0] - 8)))
        picture = with_dot((size[0], size[1]), at)
        pixels, placement = image.random_resize_crop(picture, 64, rng, scale=(0.5, 2.0), flip_rate=0.5)
        box = np.asarray([at[0] - 6, at[1] - 6, at[0] + 6, at[1] + 6], np.float64)
        if geometry.visible_share(placement.to_canvas(box), placement.valid_box) > 0.999:
            np.testing.assert_allclose(
                center_of_light(pixels), placement.to_canvas(np.asarray(at, np.float64)), atol=0.5 / 64
            )
            seen += 1
            flipped += placement.flip
        x0, y0, x1, y1 = placement.crop
        assert x0 >= 0 and y0 >= 0 and x1 <= size[1] and y1 <= size[0]
        height, width = placement.valid_size
        assert not pixels[height:].any() and not pixels[:, width:].any() and pixels[:height, :width].min() >= 19
    assert seen > 80 and 25 < flipped < seen - 25


def test_random_views_use_their_whole_range() -> None:
    rng = np.random.default_rng(0)
    picture = with_dot((100, 100), (50, 50))
    views = [image.random_resize_crop(picture, 50, rng, scale=(0.5, 2.0))[1] for _ in range(300)]
    scales = np.asarray([view.scale[0] for view in views]) * 100 / 50
    assert scales.min() < 0.55 and scales.max() > 1.95 and np.all((scales > 0.48) & (scales < 2.02))
    cropped = [view.crop for view in views if view.scale[0] > 0.9]
    assert min(crop[0] for crop in cropped) < 3 and max(crop[2] for crop in cropped) > 97
    assert not any(view.flip for view in views)


def test_the_same_seed_gives_the_same_view_and_takes_the_same_draws() -> None:
    small, large = with_dot((50, 70), (20, 20)), with_dot((170, 90), (20, 20))
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    a, placed_a = image.random_resize_crop(small, 64, first)
    b, placed_b = image.random_resize_crop(small, 64, second)
    np.testing.assert_array_equal(a, b)
    assert placed_a == placed_b
    image.random_resize_crop(small, 64, first, flip_rate=0.5)
    image.random_resize_crop(large, 64, second, scale=(1.0, 1.0))
    assert first.random() == second.random()


def test_a_view_of_scale_one_is_fit_to_canvas() -> None:
    picture = with_dot((90, 130), (40, 40))
    fitted, placed = image.fit_to_canvas(picture, 64)
    viewed, placed_view = image.random_resize_crop(picture, 64, np.random.default_rng(0), scale=(1.0, 1.0))
    np.testing.assert_array_equal(fitted, viewed)
    assert placed == placed_view


def test_a_picture_of_the_canvas_size_is_untouched() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(image.fit_to_canvas(picture, 64)[0], picture)


def test_resizing_is_antialiased() -> None:
    """A one-pixel chequerboard made four times smaller is even gray, not a pattern."""
    board = np.indices((256, 256)).sum(0) % 2 * 255
    pixels, _ = image.fit_to_canvas(np.repeat(board.astype(np.uint8)[..., None], 3, axis=-1), 64)
    assert np.abs(pixels.astype(int) - 127).max() <= 8


def test_threads_agree_with_one_thread() -> None:
    data = [encoded(PIL.Image.fromarray(with_dot((80, 100), (10 + i, 20))), "JPEG") for i in range(40)]

    def work(item: bytes) -> np.ndarray:
        return image.fit_to_canvas(image.read_image(item), 64)[0]

    with ThreadPoolExecutor(8) as pool:
        for ours, theirs in zip(map(work, data), pool.map(work, data), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_misuse_is_named() -> None:
    picture = with_dot((20, 20), (5, 5))
    with pytest.raises(ValueError, match=r"image is float64\[20, 20, 3\], expected uint8\[H, W, 3\]"):
        image.fit_to_canvas(picture / 255.0, 64)
    with pytest.raises(ValueError, match="canvas is 0"):
        image.fit_to_canvas(picture, 0)
    with pytest.raises(ValueError, match=r"scale is \(1.5, 1.0\)"):
        image.random_resize_crop(picture, 64, np.random.default_rng(0), scale=(1.5, 1.0))


def test_real_photographs() -> None:
    """Real COCO files keep their size and have a content."""
    samples = os.environ.get("PIXEL_ALIGN_SAMPLES")
    if not samples:
        pytest.skip("PIXEL_ALIGN_SAMPLES is not set: no real photographs to read")
    paths = sorted(pathlib.Path(samples).glob("coco/val2017/*.jpg"))
    assert paths
    for path in paths[:20]:
        pixels = image.read_image(path)
        with PIL.Image.open(path) as reference:
            assert pixels.shape == (reference.height, reference.width, 3)
        assert pixels.std() > 5


def test_masks_are_read_back_and_broken_ones_are_refused() -> None:
    mask = np.random.default_rng(0).random((9, 14)) < 0.5
    png = image.write_mask(mask)
    np.testing.assert_array_equal(image.read_mask(png), mask)
    for broken in (b"", b"no picture", png[:40]):
        with pytest.raises(ImageError, match="mask is not a whole PNG, expected a black and white one"):
            image.read_mask(broken)
    with pytest.raises(ImageError, match="mask is 14 x 9 in mode 1, expected one channel and at most 100 pixels"):
        image.read_mask(png, max_pixels=100)


def test_cells_of_a_mask_lie_where_the_pixels_go() -> None:
    """A mask painted into the picture: after any view both cover the same cells."""
    rng = np.random.default_rng(1)
    for size in ((40, 64), (64, 40), (50, 50)):
        mask = np.zeros(size, bool)
        mask[8:30, 12:34] = True
        painted = np.repeat(np.uint8(255) * mask[..., None], 3, axis=-1)
        for _ in range(8):
            seen, placement = image.random_resize_crop(painted, 32, rng, scale=(0.7, 1.8), flip_rate=0.5)
            np.testing.assert_array_equal(image.mask_to_cells(mask, placement, 32), seen[..., 0] > 127)


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (32, 32), (33, 57)])
def test_the_middle_of_a_picture_fills_the_canvas(height: int, width: int) -> None:
    """The published evaluation of captions: shortest side to the canvas, and what is left over on both sides is cut."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    seen, placement = image.center_crop(pixels, 32)
    assert seen.shape == (32, 32, 3) and placement.valid_size == (32, 32)
    np.testing.assert_allclose(placement.to_original(np.asarray([0.5, 0.5])), [width / 2, height / 2])
    corner = placement.to_original(np.asarray([0.0, 0.0]))
    np.testing.assert_allclose(corner, [(width - min(height, width)) / 2, (height - min(height, width)) / 2])
    if height == width == 32:
        np.testing.assert_array_equal(seen, pixels)
