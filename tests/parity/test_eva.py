"""EVA-02 here, in timm where timm can be imported, and in a formulation from the paper. Run by `make parity`."""

import math
from typing import Any

import numpy as np
import pytest

from tests.goldens.cases import CASES, Case
from tests.parity.conftest import Compare

torch = pytest.importorskip("torch")

EVA = [name for name in CASES if name.startswith("eva_")]


def _tensor(x: np.ndarray) -> Any:
    return torch.tensor(np.asarray(x))


def _positions(case: Case) -> Any:
    """[1, 1 + h * w, D]: the table at the size of the picture, by torch."""
    c, table = case.module.config, _tensor(case.params()["positions"])
    side = case.inputs[0].shape[1] // c.patch_size
    grid = table[1:].reshape(1, c.pretrain_grid, c.pretrain_grid, c.width).permute(0, 3, 1, 2)
    if side != c.pretrain_grid:
        grid = torch.nn.functional.interpolate(
            grid, (side, side), mode="bicubic", align_corners=False, antialias=c.antialias
        )
    return torch.cat([table[:1], grid.flatten(2)[0].T])[None]


def _from_paper(case: Case) -> np.ndarray:
    """arXiv 2303.11331 in float64: matrices that turn, one head after the other, each logit a sum."""
    c = case.module.config
    p = dict(_flat(case.params()))
    pixels = _tensor(case.inputs[0]).double()
    side, head = pixels.shape[1] // c.patch_size, c.width // c.num_heads

    def linear(x: Any, name: str, bias: bool = True) -> Any:
        y = x @ p[f"{name}/kernel"]
        return y + p[f"{name}/bias"] if bias else y

    def norm(x: Any, name: str, epsilon: float) -> Any:
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
        return (x - mean) / (variance + epsilon).sqrt() * p[f"{name}/scale"] + p[f"{name}/bias"]

    def turning(row: int, column: int) -> Any:
        """[head, head]: blocks of 2 x 2 along the diagonal, the first half of them for the row."""
        matrix, count = torch.zeros(head, head, dtype=torch.float64), head // 4
        for i in range(head // 2):
            place = row if i < count else column
            if c.rotary_grid:
                place = place * c.rotary_grid / side
            angle = place / 10_000.0 ** (i % count / count)
            cos, sin = math.cos(angle), math.sin(angle)
            matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[cos, -sin], [sin, cos]])
        return matrix

    turns = torch.stack([torch.eye(head, dtype=torch.float64)] + [turning(*divmod(s, side)) for s in range(side**2)])
    patches = pixels.unfold(1, c.patch_size, c.patch_size).unfold(2, c.patch_size, c.patch_size)  # [B, h, w, 3, p, p]
    kernel = p["patch_embedding/kernel"].permute(2, 0, 1, 3).reshape(-1, c.width)
    x = patches.flatten(3).flatten(1, 2) @ kernel + p["patch_embedding/bias"]
    first = p["class_token"].expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + _positions(case).double()
    for number in range(c.depth):
        layer = f"layers_{number}"
        y = norm(x, f"{layer}/attention_norm", 1e-6)
        query, value = (linear(y, f"{layer}/attention/{name}") for name in ("query", "value"))
        key = linear(y, f"{layer}/attention/key", bias=False)
        outs = []
        for at in (slice(h * head, (h + 1) * head) for h in range(c.num_heads)):
            q, k = (torch.einsum("sij,bsj->bsi", turns, z[..., at]) for z in (query, key))
            outs.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(head), dim=-1) @ value[..., at])
        y = torch.cat(outs, dim=-1)
        if c.attention_norm:
            y = norm(y, f"{layer}/attention/norm", 1e-6)
        x = x + linear(y, f"{layer}/attention/out")
        y = norm(x, f"{layer}/mlp_norm", 1e-6)
        gate = linear(y, f"{layer}/mlp/wi_0")
        hidden = gate * torch.sigmoid(gate) * linear(y, f"{layer}/mlp/wi_1")
        x = x + linear(norm(hidden, f"{layer}/mlp/norm", 1e-5), f"{layer}/mlp/wo")
    return norm(x[:, 1:], "norm", 1e-6).reshape(len(x), side, side, -1).numpy()


def _flat(tree: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves by their joined names, float64."""
    pairs = []
    for key, value in tree.items():
        nested = isinstance(value, dict)
        pairs += _flat(value, f"{prefix}{key}/") if nested else [(f"{prefix}{key}", _tensor(value).double())]
    return pairs


@pytest.mark.parametrize("name", EVA)
def test_we_compute_the_paper(name: str, compare: Compare) -> None:
    case = CASES[name]
    compare(case, [_from_paper(case).astype(np.float32)], "a formulation from the paper, float64")


@pytest.mark.parametrize("name", EVA)
def test_encoders_agree_with_timm(name: str, compare: Compare) -> None:
    try:
        import timm
        from timm.models.eva import Eva
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision and torch of different builds
        pytest.skip(f"timm cannot be imported: {error}")
    case = CASES[name]
    c, params = case.module.config, case.params()
    model = Eva(
        img_size=case.inputs[0].shape[1],
        patch_size=c.patch_size,
        embed_dim=c.width,
        depth=c.depth,
        num_heads=c.num_heads,
        num_classes=0,
        global_pool="",
        qkv_fused=False,
        mlp_ratio=c.mlp_width / c.width,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=c.attention_norm,
        use_rot_pos_emb=True,
        ref_feat_shape=(c.rotary_grid, c.rotary_grid) if c.rotary_grid else None,
    ).eval()

    def linear(name: str, ours: dict) -> dict[str, Any]:
        weight = _tensor(ours["scale"] if "scale" in ours else ours["kernel"].T)
        return {f"{name}.weight": weight} | ({f"{name}.bias": _tensor(ours["bias"])} if "bias" in ours else {})

    state = {
        "cls_token": _tensor(params["class_token"])[None, None],
        "pos_embed": _positions(case),
        "patch_embed.proj.weight": _tensor(params["patch_embedding"]["kernel"].transpose(3, 2, 0, 1)),
        "patch_embed.proj.bias": _tensor(params["patch_embedding"]["bias"]),
        **linear("norm", params["norm"]),
    }
    for index in range(c.depth):
        ours, layer = params[f"layers_{index}"], f"blocks.{index}"
        state |= linear(f"{layer}.norm1", ours["attention_norm"]) | linear(f"{layer}.norm2", ours["mlp_norm"])
        attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "proj": "out"}
        for theirs, mine in (attention | ({"norm": "norm"} if c.attention_norm else {})).items():
            state |= linear(f"{layer}.attn.{theirs}", ours["attention"][mine])
        for theirs, mine in {"fc1_g": "wi_0", "fc1_x": "wi_1", "norm": "norm", "fc2": "wo"}.items():
            state |= linear(f"{layer}.mlp.{theirs}", ours["mlp"][mine])
        model.blocks[index].mlp.norm.eps = 1e-5  # the published PixelLLM's; timm has 1e-6
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        found = model.forward_features(_tensor(case.inputs[0]).permute(0, 3, 1, 2))
    side = case.inputs[0].shape[1] // c.patch_size
    compare(case, [found[:, 1:].reshape(-1, side, side, c.width).numpy()], f"timm {timm.__version__}, Eva")
