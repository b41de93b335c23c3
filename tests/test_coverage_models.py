"""Nearly every transformer of timm can be warmed up and handed off; every class really learns."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.volo import VOLO
from torch import Tensor, nn

from vitwarm.commands.check_models import OTHER_TRANSFORMERS, check_model, model_names
from vitwarm.handoff import attach, export_model
from vitwarm.rules import make_rule
from vitwarm.rules.masking import IGNORE, make_batch
from vitwarm.seeding import torch_seeded
from vitwarm.trunk import TokenModel, build_model, save_trunk, trunk_names
from vitwarm.trunk.family import PREFIX_TOKENS

pytestmark = pytest.mark.slow

#: Names per part of the coverage check, so that workers share them.
PART = 60
NAMES = model_names()


def test_there_are_as_many_names_as_promised() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 360


@pytest.mark.parametrize("first", range(0, len(NAMES), PART))
def test_patch_transformers_warm_up_and_hand_off(first: int) -> None:
    """Shapes, gradients, audit and image model, on the meta device (`doctor.check_model`)."""
    verdicts = [check_model(name) for name in NAMES[first : first + PART]]
    assert [v for v in verdicts if not v.ok] == []


@pytest.mark.parametrize("module", OTHER_TRANSFORMERS)
def test_the_others_say_why_not(module: str) -> None:
    verdict = check_model(model_names((module,))[0])
    assert not verdict.ok
    assert "cannot be warmed up: " in verdict.why
    assert "no transformer blocks that this tool knows" not in verdict.why


SMALL: dict[str, Any] = {
    "embed_dim": 64, "depth": 3, "num_heads": 4, "img_size": 32, "patch_size": 8,
}  # fmt: skip
#: Without Swin's stochastic depth, by which both sequences now and then skip a block.
STAGES: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4),
    "window_size": 2, "drop_path_rate": 0.0,
}  # fmt: skip
HIERA: dict[str, Any] = {
    "img_size": 32, "patch_stride": (8, 8), "embed_dim": 64, "num_heads": 2, "stages": (2, 2),
    "q_pool": 1, "mask_unit_size": (2, 2), "mask_unit_attn": (True, False),
}  # fmt: skip
VOLO_KWARGS: dict[str, Any] = {
    "layers": [2, 2], "embed_dims": [64, 64], "num_heads": [2, 4], "downsamples": (True, False),
    "outlook_attention": (True, False), "img_size": 64, "patch_size": 16, "num_classes": 5,
}  # fmt: skip

#: What it stands for -> (timm model, arguments that make it small). Every class, and every way in
#: which a class takes tokens otherwise than a plain ViT does.
SMALL_ONES: dict[str, tuple[str, dict[str, Any]]] = {
    "VisionTransformer": ("vit_tiny_patch16_224", SMALL),
    "registers, average pooling": ("vit_base_patch16_reg4_gap_256", SMALL),
    "pre-norm (CLIP)": ("vit_base_patch16_clip_224", SMALL),
    "post-norm": ("vit_base_patch16_rpn_224", SMALL),
    "parallel blocks": ("vit_base_patch16_xp_224", SMALL),
    "no class token, RMS norm": ("aimv2_large_patch14_224", SMALL),
    "no final norm, small layer scale": ("vit_base_patch16_radio_v3", SMALL),
    "hybrid": (
        "vit_tiny_r_s16_p8_224", {"embed_dim": 64, "depth": 3, "num_heads": 4, "img_size": 128},
    ),
    "VisionTransformerDistilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "Eva": ("eva02_tiny_patch14_224", SMALL),
    "rotary positions alone": ("vit_small_patch16_rope_224", SMALL),
    "Beit": ("beit_base_patch16_224", SMALL),
    "VisionTransformerRelPos": ("vit_relpos_small_patch16_224", SMALL),
    "Cait": ("cait_xxs24_224", SMALL),
    "ConVit": ("convit_tiny", {**SMALL, "embed_dim": 16, "local_up_to_layer": 2}),
    "Xcit": ("xcit_nano_12_p16_224", SMALL),
    "VisionTransformerSAM": (
        "samvit_base_patch16_224", {**SMALL, "window_size": 2, "global_attn_indexes": (1,)},
    ),
    "NaFlexVit": ("naflexvit_base_patch16_gap", {**SMALL, "init_values": 0.1}),
    "Hiera": ("hiera_tiny_224", HIERA),
    "VOLO": ("", VOLO_KWARGS),
    "SwinTransformer": ("swin_tiny_patch4_window7_224", STAGES),
    "SwinTransformerV2": ("swinv2_tiny_window8_256", STAGES),
    "SwinTransformerV2Cr": ("swinv2_cr_tiny_224", STAGES),
}  # fmt: skip


def _build(name: str, kwargs: dict[str, Any]) -> nn.Module:
    if name:
        return build_model(name, seed=0, **kwargs)
    with torch_seeded(0, "model"):  # timm's names of VOLO fix its layers
        return VOLO(**kwargs)


def _steps_until(tokens: TokenModel, *, n_kinds: int, goal: float, at_most: int) -> int | None:
    """Steps until the running accuracy on hidden closing brackets reaches `goal`."""
    rule = make_rule("dyck", n_kinds=n_kinds)
    head = nn.Linear(tokens.width, rule.n_ids)
    trained = [p for p in tokens.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*trained, *head.parameters()], lr=2e-3, weight_decay=0.05)
    ramp = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, 1.0, 40)
    running = 0.0
    for step in range(at_most):
        batch = make_batch(rule, seed=0, start=step * 64, n_sequences=64, n_tokens=tokens.n_tokens)
        targets_BT = torch.from_numpy(batch.target_ids).long()
        hidden_BT = targets_BT != IGNORE
        logits_KV = head(tokens(torch.from_numpy(batch.input_ids))[hidden_BT])
        loss = nn.functional.cross_entropy(logits_KV, targets_BT[hidden_BT])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ramp.step()
        hits = (logits_KV.argmax(-1) == targets_BT[hidden_BT]).float().mean().item()
        running = 0.9 * running + 0.1 * hits
        if running >= goal:
            return step + 1
    return None


def _two_steps(tokens: TokenModel, n_ids: int) -> None:
    """Two, because Swin v2 begins with norms of weight zero: at first nothing else has a slope."""
    ids_BT = torch.arange(2 * tokens.n_tokens).reshape(2, -1) % n_ids
    trained = [p for p in tokens.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        tokens(ids_BT).square().mul(torch.arange(tokens.width)).sum().backward()
        optimizer.step()


def _moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


#: Classes whose blocks hold windows or tables of one grid: their patch count, nothing else.
OF_ONE_GRID = ("VisionTransformerRelPos", "VisionTransformerSAM", "Hiera", "Swin", "VOLO")


@pytest.mark.parametrize("what", SMALL_ONES)
def test_every_class_hands_off_what_it_trained(what: str, tmp_path: Path) -> None:
    """Two real steps move trunk and prefix tokens and nothing else; timm alone loads the export.

    Real numbers, more ids than channels, and a grid that is not square where the class takes one.
    """
    name, kwargs = SMALL_ONES[what]
    if what not in ("ConVit", "VOLO", "hybrid"):
        side = kwargs["img_size"]
        kwargs = {**kwargs, "img_size": (side, 2 * side)}
    tokens = TokenModel(_build(name, kwargs), n_ids=130)
    before = {k: v.clone() for k, v in tokens.state_dict().items()}
    _two_steps(tokens, 130)
    after = tokens.state_dict()
    trunk = {f"model.{n}" for n in trunk_names(tokens.model)}
    own = {n for n in before if n.split(".")[-1] in PREFIX_TOKENS or n.startswith("unfold.")}
    assert trunk <= _moved(before, after) <= trunk | own
    if not name:  # no name of timm's builds so small a VOLO
        return

    path = save_trunk(tmp_path / "trunk.safetensors", tokens, {})
    vit, audit = attach(path, model=name, **kwargs)
    assert {f"model.{n}" for n in audit.carried} == trunk
    assert all(torch.equal(vit.state_dict()[n], after[f"model.{n}"]) for n in audit.carried)
    export = export_model(vit, tmp_path / "export", facts={})
    plain = timm.create_model(name, **kwargs).eval()
    plain.load_state_dict(load_file(export / "model.safetensors"), strict=True)
    loaded = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    sides = kwargs.get("img_size", (32, 32))
    images = torch.ones(1, 3, *(sides if isinstance(sides, tuple) else (sides, sides)))
    with torch.no_grad():
        logits = vit.eval()(images)
        assert torch.isfinite(logits).all()
        assert torch.equal(plain(images), logits)
        assert torch.equal(loaded(images), logits)


# timm's own, where it resamples a table of relative positions
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.filterwarnings("ignore:.*searchsorted.*non-contiguous:UserWarning")
@pytest.mark.parametrize(
    ("what", "n_tokens"),
    [
        (what, n_tokens)
        for what in SMALL_ONES
        for n_tokens in (15, 49)
        if not what.startswith(OF_ONE_GRID) and (what, n_tokens) != ("ConVit", 15)
    ],
)
def test_every_class_without_a_grid_takes_any_length(what: str, n_tokens: int) -> None:
    """49: patches of 32 at 224 pixels; 15: no square, so not for ConViT."""
    tokens = TokenModel(_build(*SMALL_ONES[what]), n_ids=18, n_tokens=n_tokens)
    _two_steps(tokens, 18)
    assert all(bool(torch.isfinite(p).all()) for p in tokens.parameters())


@pytest.mark.parametrize("patch_size", [4, 14, 32])
@pytest.mark.parametrize("what", ["VisionTransformer", "Eva", "Beit", "NaFlexVit"])
def test_patches_of_any_size(what: str, patch_size: int) -> None:
    """As DINOv2 (14) and ViT-B/32; 1,369 tokens are DINOv2's 518 pixels."""
    side = 37 if patch_size == 14 and what == "VisionTransformer" else 7
    name, kwargs = SMALL_ONES[what]
    sizes = {"patch_size": patch_size, "img_size": side * patch_size}
    tokens = TokenModel(_build(name, {**kwargs, **sizes}), n_ids=18)
    assert tokens.n_tokens == side * side
    _two_steps(tokens, 18)


@pytest.mark.parametrize("what", SMALL_ONES)
def test_every_class_learns(what: str) -> None:
    """Five times chance with 8 kinds of brackets: the tokens' statistics alone give 0.45."""
    name, kwargs = SMALL_ONES[what]
    torch.manual_seed(0)
    tokens = TokenModel(_build(name, kwargs), n_ids=18)
    assert _steps_until(tokens, n_kinds=8, goal=5 / 8, at_most=900) is not None
