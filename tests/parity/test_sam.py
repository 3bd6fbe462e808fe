"""Segment Anything here and in transformers: encoders, two-way transformer, prompts to masks. Run by `make parity`."""

from typing import Any

import numpy as np
import pytest

from tests.goldens.cases import CASES, Case
from tests.parity.conftest import Compare

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sam = pytest.importorskip("transformers.models.sam.modeling_sam")

AGAINST = f"transformers {transformers.__version__}, SamModel"


def _tensor(x: np.ndarray) -> Any:
    return torch.tensor(np.asarray(x))


def _linear(name: str, ours: dict) -> dict[str, Any]:
    """A linear layer's or a norm's parameters under their name."""
    if "scale" in ours:
        return {f"{name}.weight": _tensor(ours["scale"]), f"{name}.bias": _tensor(ours["bias"])}
    return {f"{name}.weight": _tensor(ours["kernel"].T), f"{name}.bias": _tensor(ours["bias"])}


def _convolution(kernel: np.ndarray) -> Any:
    return _tensor(kernel.transpose(3, 2, 0, 1))


def _resized(table: np.ndarray, side: int, antialias: bool) -> Any:
    """[H, W, D] -> [1, side, side, D] by torch."""
    grid = _tensor(table).permute(2, 0, 1)[None]
    grid = torch.nn.functional.interpolate(
        grid, (side, side), mode="bicubic", align_corners=False, antialias=antialias and side != table.shape[0]
    )
    return grid.permute(0, 2, 3, 1)


def _relative(table: np.ndarray, length: int, antialias: bool) -> Any:
    """[L, d] -> [length, d] by torch; the plain way is left to the model itself."""
    if not antialias or length == len(table):
        return _tensor(table)
    # Two columns alike: torch 2.13 answers zeros for a picture that is one pixel wide.
    rows = _tensor(table).T[None, :, :, None].repeat(1, 1, 1, 2)
    rows = torch.nn.functional.interpolate(rows, (length, 2), mode="bilinear", align_corners=False, antialias=True)
    return rows[0, :, :, 0].T.contiguous()


def _image_encoder(case: Case) -> Any:
    c, params = case.module.config, case.params()
    pixels = case.inputs[0].shape[1]
    side = pixels // c.patch_size
    config = transformers.SamVisionConfig(
        hidden_size=c.width,
        output_channels=c.output_width,
        num_hidden_layers=c.depth,
        num_attention_heads=c.num_heads,
        image_size=pixels,
        patch_size=c.patch_size,
        mlp_dim=c.width * c.mlp_ratio,
        window_size=c.window,
        global_attn_indexes=list(c.global_blocks),
        attn_implementation="eager",
    )
    model = sam.SamVisionEncoder(config).eval()
    state = {
        "patch_embed.projection.weight": _convolution(params["patch_embedding"]["kernel"]),
        "patch_embed.projection.bias": _tensor(params["patch_embedding"]["bias"]),
        "pos_embed": _resized(params["positions"], side, c.antialias),
        "neck.conv1.weight": _convolution(params["neck_in"]["kernel"]),
        "neck.conv2.weight": _convolution(params["neck_out"]["kernel"]),
        **_linear("neck.layer_norm1", params["neck_in_norm"]),
        **_linear("neck.layer_norm2", params["neck_out_norm"]),
    }
    per_group = c.depth // len(c.global_blocks)
    for index, layer in enumerate(model.layers):
        group, place = divmod(index, per_group)
        ours = params[f"groups_{group}"]
        ours = ours["whole"] if place == per_group - 1 else ours[f"windowed_{place}"]
        name, attention = f"layers.{index}", ours["attention"]
        state |= _linear(f"{name}.layer_norm1", ours["attention_norm"]) | _linear(
            f"{name}.layer_norm2", ours["mlp_norm"]
        )
        state |= _linear(f"{name}.attn.qkv", attention["qkv"]) | _linear(f"{name}.attn.proj", attention["out"])
        state |= _linear(f"{name}.mlp.lin1", ours["mlp"]["wi"]) | _linear(f"{name}.mlp.lin2", ours["mlp"]["wo"])
        length = 2 * (c.window if place < per_group - 1 else side) - 1
        for axis in "hw":
            table = _relative(attention[f"relative_{axis}"], length, c.antialias)
            # Their tables have the size of the canvas at hand; ours rest as pretrained, and their forward resizes.
            setattr(layer.attn, f"rel_pos_{axis}", torch.nn.Parameter(table))
            state[f"{name}.attn.rel_pos_{axis}"] = table
    model.load_state_dict(state, strict=True)
    return model


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("sam_")])
def test_image_encoders_agree(name: str, compare: Compare) -> None:
    case = CASES[name]
    with torch.no_grad():
        found = _image_encoder(case)(_tensor(case.inputs[0]).permute(0, 3, 1, 2)).last_hidden_state
    compare(case, [found.permute(0, 2, 3, 1).numpy()], AGAINST)


def _prompt_encoder(params: dict) -> Any:
    config = transformers.SamConfig(
        vision_config={"num_pos_feats": 16, "hidden_size": 32, "num_hidden_layers": 0},
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 8},
    )
    model = sam.SamPromptEncoder(config).eval()
    ours = params["prompt"]
    with torch.no_grad():
        model.shared_embedding.positional_embedding.copy_(_tensor(ours["positions"]["gaussian"]))
        for embedding, row in zip(model.point_embed, ours.get("point_embeddings", ()), strict=False):
            embedding.weight.copy_(_tensor(row)[None])
        if "no_point_embedding" in ours:
            model.not_a_point_embed.weight.copy_(_tensor(ours["no_point_embedding"])[None])
    return model


@pytest.mark.parametrize("name", ["prompt_boxes", "prompt_points", "prompt_both"])
def test_prompt_encoders_agree(name: str, compare: Compare) -> None:
    case = CASES[name]
    boxes, points = case.inputs
    asked, labels = None, None
    if points is not None:
        asked, labels = _tensor(points.xy * 64), _tensor(points.foreground.astype(np.int64))
    given = None if points is not None and not points.boxed.any() else _tensor(boxes * 64)
    with torch.no_grad():
        tokens, _ = _prompt_encoder(case.params())(asked, labels, given, None)
    exist = [] if points is None else [np.ones(tokens.shape[:-1], bool)]
    compare(case, [tokens.numpy(), *exist], AGAINST)


def test_codes_of_a_grid_agree(compare: Compare) -> None:
    case = CASES["prompt_grid"]
    centers = (torch.arange(6) + 0.5) / 6
    grid = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), dim=-1)
    with torch.no_grad():
        found = _prompt_encoder(case.params()).shared_embedding(grid)
    compare(case, [found.numpy()], AGAINST)


def _two_way(name: str, params: dict) -> dict[str, Any]:
    """The parameters of a two-way transformer under its name."""

    def attention(name: str, ours: dict) -> dict[str, Any]:
        names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
        return {k: v for theirs, mine in names.items() for k, v in _linear(f"{name}.{theirs}", ours[mine]).items()}

    state = attention(f"{name}final_attn_token_to_image", params["final_token_to_image"])
    state |= _linear(f"{name}layer_norm_final_attn", params["final_norm"])
    norms = ("self_attention_norm", "token_to_image_norm", "mlp_norm", "image_to_token_norm")
    for path, ours in params.items():
        if not path.startswith("layers_"):
            continue
        layer = f"{name}layers.{path.removeprefix('layers_')}"
        state |= attention(f"{layer}.self_attn", ours["self_attention"])
        state |= attention(f"{layer}.cross_attn_token_to_image", ours["token_to_image"])
        state |= attention(f"{layer}.cross_attn_image_to_token", ours["image_to_token"])
        state |= _linear(f"{layer}.mlp.lin1", ours["mlp_in"]) | _linear(f"{layer}.mlp.lin2", ours["mlp_out"])
        for number, norm in enumerate(norms, start=1):
            state |= _linear(f"{layer}.layer_norm{number}", ours[norm])
    return state


def test_two_way_transformers_agree(compare: Compare) -> None:
    case = CASES["two_way"]
    params, width = case.params(), 32
    config = transformers.SamMaskDecoderConfig(
        hidden_size=width,
        num_hidden_layers=case.module.depth,
        num_attention_heads=case.module.num_heads,
        mlp_dim=case.module.mlp_width,
        layer_norm_eps=1e-5,  # torch's default, which the release has; transformers says 1e-6
    )
    config._attn_implementation = "eager"
    model = sam.SamTwoWayTransformer(config).eval()
    model.load_state_dict(_two_way("", params), strict=True)
    tokens, image, code = (_tensor(x) for x in case.inputs)
    with torch.no_grad():
        found = model(
            tokens[:, None],
            image.transpose(1, 2).reshape(2, width, 7, 7),
            code.transpose(1, 2).reshape(2, width, 7, 7),
            None,
        )
    compare(case, [x[:, 0].numpy() for x in found], AGAINST)


def _sam_model(case: Case) -> Any:
    """The whole model, of whose image encoder nothing is asked."""
    c, params = case.module.config, case.params()
    prompt, masks = params["prompt"], params["masks"]
    config = transformers.SamConfig(
        vision_config={"num_pos_feats": c.width // 2, "hidden_size": 32, "num_hidden_layers": 0, "image_size": 96},
        prompt_encoder_config={"hidden_size": c.width, "image_size": 64, "image_embedding_size": 6},
        mask_decoder_config={
            "hidden_size": c.width,
            "mlp_dim": c.mlp_width,
            "num_hidden_layers": c.depth,
            "num_attention_heads": c.num_heads,
            "num_multimask_outputs": c.alternatives,
            "iou_head_hidden_dim": c.quality_width,
            "layer_norm_eps": 1e-5,  # torch's default, which the release has; transformers says 1e-6
        },
        attn_implementation="eager",
    )
    config.prompt_encoder_config.image_embedding_size = 6  # else it is made from image and patch size
    model = sam.SamModel(config).eval()
    state = {
        "shared_image_embedding.positional_embedding": _tensor(prompt["positions"]["gaussian"]),
        "prompt_encoder.shared_embedding.positional_embedding": _tensor(prompt["positions"]["gaussian"]),
        "prompt_encoder.no_mask_embed.weight": _tensor(prompt["no_mask_embedding"])[None],
        "mask_decoder.iou_token.weight": _tensor(masks["quality_token"]),
        "mask_decoder.mask_tokens.weight": _tensor(masks["mask_tokens"]),
        **_two_way("mask_decoder.transformer.", masks["two_way"]),
        **_linear("mask_decoder.upscale_layer_norm", masks["upscale_norm"]),
        **_network("mask_decoder.iou_prediction_head", masks["quality"]),
    }
    for i in range(2):
        ours, name = masks[f"upscale_{i}"], f"mask_decoder.upscale_conv{i + 1}"
        state |= {
            f"{name}.weight": _tensor(ours["kernel"].transpose(2, 3, 0, 1)),
            f"{name}.bias": _tensor(ours["bias"]),
        }
    for i in range(c.alternatives + 1):
        mine = {layer: {key: x[i] for key, x in ours.items()} for layer, ours in masks["mask_vectors"].items()}
        state |= _network(f"mask_decoder.output_hypernetworks_mlps.{i}", mine)
    for i, row in enumerate(prompt["point_embeddings"]):
        state[f"prompt_encoder.point_embed.{i}.weight"] = _tensor(row)[None]
    if "no_point_embedding" in prompt:
        state["prompt_encoder.not_a_point_embed.weight"] = _tensor(prompt["no_point_embedding"])[None]
    if "mask_downscaling" in prompt:
        ours, name = prompt["mask_downscaling"], "prompt_encoder.mask_embed"
        for i in range(2):
            state[f"{name}.conv{i + 1}.weight"] = _convolution(ours[f"conv_{i}"]["kernel"])
            state[f"{name}.conv{i + 1}.bias"] = _tensor(ours[f"conv_{i}"]["bias"])
            state |= _linear(f"{name}.layer_norm{i + 1}", ours[f"norm_{i}"])
        state[f"{name}.conv3.weight"] = _tensor(ours["output"]["kernel"].T)[..., None, None]
        state[f"{name}.conv3.bias"] = _tensor(ours["output"]["bias"])
    missing, unknown = model.load_state_dict(state, strict=False)
    unread = ("vision_encoder.",)
    unread += ("prompt_encoder.mask_embed.",) * ("mask_downscaling" not in prompt)
    unread += ("prompt_encoder.not_a_point_embed.",) * ("no_point_embedding" not in prompt)
    assert not unknown and all(name.startswith(unread) for name in missing), (unknown, missing)
    return model


def _network(name: str, ours: dict) -> dict[str, Any]:
    names = {"proj_in": "hidden_0", "layers.0": "hidden_1", "proj_out": "output"}
    return {k: v for theirs, mine in names.items() for k, v in _linear(f"{name}.{theirs}", ours[mine]).items()}


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("masks_")])
def test_masks_of_prompts_agree(name: str, compare: Compare) -> None:
    case = CASES[name]
    image, boxes, points, drawn = case.inputs
    b, n = len(image), 1 if boxes is None else boxes.shape[1]
    asked: dict[str, Any] = {"image_embeddings": _tensor(image).permute(0, 3, 1, 2)}
    if boxes is not None and (points is None or points.boxed.all()):
        asked["input_boxes"] = _tensor(boxes * 64)
    if points is not None:
        asked["input_points"] = _tensor(points.xy * 64)
        asked["input_labels"] = _tensor(points.foreground.astype(np.int64))
    if drawn is not None:
        # A mask is asked of a whole picture there: every prompt gets a picture of its own.
        asked = {
            key: x.repeat_interleave(n, 0) if key == "image_embeddings" else x.reshape(b * n, 1, *x.shape[2:])
            for key, x in asked.items()
        }
        asked["input_masks"] = _tensor(drawn).reshape(b * n, 1, *drawn.shape[2:])
    with torch.no_grad():
        found = _sam_model(case)(**asked, multimask_output=case.module.several)
    answers = (found.pred_masks, found.iou_scores)
    compare(case, [x.reshape(b, n, *x.shape[2:]).numpy() for x in answers], AGAINST)
