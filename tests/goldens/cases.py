"""Small models with drawn weights: what parity compares with other implementations, whose answers are the goldens.

A case is ours: a module, its inputs, weights drawn from a seed. `make parity` gives the same weights to another
implementation, compares, and leaves its answers in `<case>.npz` here; `make test` holds our code against these files
without any other implementation.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pixel_align import param_rules
from pixel_align.batch import PromptPoints
from pixel_align.nn.bert import Bert, BertConfig
from pixel_align.nn.eva_vit import EvaVit, EvaVitConfig
from pixel_align.nn.mask_decoder import MaskDecoder, MaskDecoderConfig
from pixel_align.nn.prompt_encoder import PromptEncoder, PromptEncoderConfig
from pixel_align.nn.sam_vit import SamVit, SamVitConfig
from pixel_align.nn.t5 import T5, T5Config
from pixel_align.nn.two_way import TwoWayTransformer

FOLDER = Path(__file__).parent
TOLERANCE = 1e-4  # largest absolute difference, float32


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison. part and setting are its row in docs/parity.md."""

    name: str
    part: str
    setting: str
    module: nn.Module
    inputs: tuple[Any, ...]
    method: str = "__call__"
    spread: float = 0.2  # standard deviation of the weights; norm scales lie around 1

    def params(self) -> dict[str, Any]:
        """The weights, NumPy float32; layers written out."""
        shapes = jax.eval_shape(lambda: self.module.init(jax.random.key(0), *self.inputs, method=self.method))
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        paths = param_rules.paths(shapes["params"])
        drawn = {
            path: (rng.normal(size=leaf.shape) * self.spread + path.endswith("scale")).astype(np.float32)
            for path, leaf in sorted(paths.items())
        }
        return jax.tree.unflatten(jax.tree.structure(shapes["params"]), [drawn[path] for path in paths])

    def ours(self) -> list[np.ndarray]:
        """What our code answers, in the order of the golden's arrays."""
        apply = jax.jit(lambda params, inputs: self.module.apply({"params": params}, *inputs, method=self.method))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(apply(self.params(), self.inputs))]

    def golden(self) -> list[np.ndarray]:
        """What the other implementation answered."""
        with np.load(FOLDER / f"{self.name}.npz") as file:
            return [file[f"out_{i}"] for i in range(len(file.files))]


class _Tokens(nn.Module):
    """The prompt tokens at `keep` and their mask, or the code of a grid."""

    config: PromptEncoderConfig
    keep: tuple[int, ...]

    @nn.compact
    def __call__(self, boxes: jax.Array, points: PromptPoints | None) -> tuple[jax.Array, jax.Array | None]:
        tokens, mask = PromptEncoder(self.config, name="prompt")(boxes, _CANVAS, points)
        keep = jnp.asarray(self.keep)
        return tokens[..., keep, :], None if mask is None else mask[..., keep]

    @nn.compact
    def grid(self) -> jax.Array:
        return PromptEncoder(self.config, name="prompt").grid(6, 6)


class _Masks(nn.Module):
    """Prompts on image features, asked of Segment Anything's whole second half: (mask logits, predicted IoU)."""

    config: MaskDecoderConfig
    several: bool

    @nn.compact
    def __call__(
        self, image: jax.Array, boxes: jax.Array | None, points: PromptPoints | None, masks: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        b, h, w, width = image.shape
        encoder = PromptEncoder(PromptEncoderConfig(width=width, points=points is not None, masks=True), name="prompt")
        prompt, mask = jnp.zeros((b, 1, 0, width)), None  # a mask alone
        if boxes is not None:
            prompt, mask = encoder(boxes, _CANVAS, points)
        decoder = MaskDecoder(self.config, name="masks")
        return decoder(image, encoder.grid(h, w), prompt, mask, encoder.dense(masks), several=self.several)


_CANVAS = 64  # pixels of the pictures that prompts are about


def _random(name: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def _uniform(name: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).uniform(size=shape).astype(np.float32)


def _sam(side: int, antialias: bool) -> Case:
    """Windows of 3 on a pretrained grid of 8: 8 and 5 cells are padded to 9 and 6, 11 to 12."""
    config = SamVitConfig(
        patch_size=4,
        width=24,
        depth=4,
        num_heads=2,
        window=3,
        global_blocks=(1, 3),
        pretrain_grid=8,
        antialias=antialias,
        output_width=16,
        scan=False,
    )
    way = "antialiased" if antialias else "torch's resizing"
    name, pixels = f"sam_{side}_{'antialiased' if antialias else 'torch'}", 4 * side
    tables = "tables as pretrained" if side == 8 else f"tables {8} -> {side}, {way}"
    setting = f"{pixels} px, {side} x {side} cells, windows of 3 padded, {tables}"
    return Case(name, "SAM image encoder", setting, SamVit(config), (_random(name, 2, pixels, pixels, 3),))


def _eva(side: int, rotary_grid: int, attention_norm: bool, antialias: bool) -> Case:
    config = EvaVitConfig(
        patch_size=4,
        width=32,
        depth=3,
        num_heads=2,
        mlp_width=48,
        attention_norm=attention_norm,
        pretrain_grid=4,
        rotary_grid=rotary_grid,
        antialias=antialias,
        scan=False,
    )
    name = f"eva_{side}_rotary_{rotary_grid}{'_norm' if attention_norm else ''}{'' if antialias else '_torch'}"
    setting = (
        f"{4 * side} px, table 4 -> {side}{'' if antialias else ' by torch'}, rotary positions on "
        f"{f'a grid of {rotary_grid}' if rotary_grid else 'the grid itself'}{', attention norm' * attention_norm}"
    )
    return Case(name, "EVA-02", setting, EvaVit(config), (_random(name, 2, 4 * side, 4 * side, 3),))


def _prompts(name: str, setting: str, boxed: bool, k: int) -> Case:
    """Two pictures, three prompts each. SAM says "no point" in place of a missing box; we hold both and mask one."""
    b, m = 2, 3
    boxes = np.sort(_uniform(name, b, m, 2, 2), axis=2).reshape(b, m, 4)
    points = PromptPoints(
        xy=_uniform(f"{name} points", b, m, k, 2),
        mask=np.ones((b, m, k), bool),
        foreground=_uniform(f"{name} labels", b, m, k) < 0.5,
        boxed=np.full((b, m), boxed),
    )
    keep = (*range(k), k + 1, k + 2) if boxed else range(k + 1)
    module = _Tokens(PromptEncoderConfig(width=32, points=k > 0), tuple(keep) if k else (0, 1))
    return Case(name, "SAM prompt encoder", setting, module, (boxes, points if k else None))


def _masks(
    name: str, setting: str, *, n: int = 1, k: int = 0, boxed: bool = False, drawn: bool = False, several: bool = False
) -> Case:
    """Two pictures of 6 x 6 cells, n prompts each, of k points, a box, the logits of a mask."""
    b, name = 2, f"masks_{name}"
    inputs = (
        _random(name, b, 6, 6, 32),
        np.sort(_uniform(name, b, n, 2, 2), axis=2).reshape(b, n, 4) if boxed or k else None,
        PromptPoints(
            xy=_uniform(f"{name} points", b, n, k, 2),
            mask=np.ones((b, n, k), bool),
            foreground=_uniform(f"{name} labels", b, n, k) < 0.5,
            boxed=np.full((b, n), boxed),
        )
        if k
        else None,
        3 * _random(f"{name} drawn", b, n, 24, 24) if drawn else None,
    )
    config = MaskDecoderConfig(width=32, num_heads=4, mlp_width=48, quality_width=24, scan=False)
    module = _Masks(config, several)
    return Case(name, "SAM prompts to masks", f"{setting}; {'three masks' if several else 'one mask'}", module, inputs)


def _two_way() -> Case:
    name = "two_way"
    inputs = (_random("tokens", 2, 5, 32), _random("image", 2, 49, 32), _random("code", 2, 49, 32))
    module = TwoWayTransformer(3, 4, 64, scan=False)
    return Case(name, "SAM two-way transformer", "3 layers, 5 tokens, 49 cells", module, inputs)


def _t5() -> Case:
    """As many layers on either side: transformers 5.23 sizes the decoder's cache by the encoder's number of layers."""
    rng = np.random.default_rng(0)
    valid = np.arange(150) < np.array([150, 90, 3])[:, None]  # long enough for distances beyond the last bucket
    words, tokens = rng.integers(2, 64, (3, 150)), rng.integers(2, 64, (3, 40))
    tokens[:, 0] = 0
    config = T5Config.tiny(vocab_size=64, encoder_layers=3, decoder_layers=3, scan=False)
    inputs = (words.astype(np.int32), valid, tokens.astype(np.int32))
    return Case("t5", "T5 1.1", "3 + 3 layers, 150 words read, 40 written; logits", T5(config), inputs, spread=0.1)


def _bert() -> Case:
    rng = np.random.default_rng(0)
    valid = np.arange(20) < np.array([20, 9, 1])[:, None]
    words, tokens = (rng.integers(4, 64, (3, length)).astype(np.int32) for length in (20, 15))
    tokens[:, 0] = 2
    config = BertConfig.tiny(vocab_size=64, layers=3, positions=32, scan=False)
    return Case(
        "bert",
        "BERT prefix decoder",
        "3 layers, 20 words before, 15 written; logits",
        Bert(config),
        (words, valid, tokens),
    )


def _all() -> list[Case]:
    grid = _Tokens(PromptEncoderConfig(width=32), ())
    return [
        _sam(8, True),
        _sam(5, True),
        _sam(5, False),
        _sam(11, True),
        _sam(11, False),
        _prompts("prompt_boxes", "boxes", True, 0),
        _prompts("prompt_points", "points with labels, no box", False, 4),
        _prompts("prompt_both", "boxes and points with labels", True, 4),
        Case("prompt_grid", "SAM prompt encoder", "code of a 6 x 6 grid", grid, (), "grid"),
        _two_way(),
        _masks("boxes", "3 boxes a picture", n=3, boxed=True),
        _masks("boxes_several", "3 boxes a picture", n=3, boxed=True, several=True),
        _masks("points", "2 times 4 points a picture", n=2, k=4, several=True),
        _masks("drawn", "a mask alone", drawn=True),
        _masks("all", "2 times points, box and mask a picture", n=2, k=3, boxed=True, drawn=True),
        _masks("all_several", "2 times points, box and mask a picture", n=2, k=3, boxed=True, drawn=True, several=True),
        _eva(4, 0, False, True),
        _eva(7, 0, False, True),
        _eva(7, 4, False, True),
        _eva(7, 4, False, False),
        _eva(7, 4, True, True),
        _t5(),
        _bert(),
    ]


CASES: Mapping[str, Case] = {case.name: case for case in _all()}
