"""The trunk is what the warm-up trains; tokens take the place of patches, and that is all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitwarm.errors import ModelError
from vitwarm.trunk import (
    TokenModel,
    blocks_of,
    build_model,
    build_shapes,
    patch_grid,
    published_scale,
    trunk_names,
)
from vitwarm.trunk.vectors import random_units, token_table

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
VIT = "vit_tiny_patch16_224"


def _ids(tokens: TokenModel, n_ids: int, n_sequences: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (n_sequences, tokens.n_tokens)
    return torch.randint(0, n_ids, shape, generator=generator, dtype=torch.int16)


def test_the_model_depends_on_its_seed_alone_and_leaves_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = build_model(VIT, seed=1, **SMALL).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    again = build_model(VIT, seed=1, **SMALL).state_dict()
    other = build_model(VIT, seed=2, **SMALL).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_wrong_name_or_argument_is_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"vit_tniy.*Did you mean vit_tiny_patch16_224"):
        build_model("vit_tniy_patch16_224", seed=0)
    with pytest.raises(ModelError, match=r"depht.*model_kwargs"):
        build_model(VIT, seed=0, depht=3)
    with pytest.raises(ModelError, match=r"resnet18.*no transformer blocks.*doctor --models"):
        TokenModel(build_shapes("resnet18"), n_ids=5)


def test_the_trunk_is_blocks_and_final_norm() -> None:
    model = build_shapes(VIT, **SMALL)
    rest = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    rest |= {"head.weight", "head.bias"}
    assert set(trunk_names(model)) == set(model.state_dict()) - rest
    assert list(blocks_of(model)) == ["blocks.0", "blocks.1"]


def test_the_final_norm_after_pooling_is_of_the_trunk_only_if_there_is_no_other() -> None:
    pooled = build_shapes(VIT, **SMALL, global_pool="avg", class_token=False)
    assert [n for n in trunk_names(pooled) if "blocks" not in n] == [
        "fc_norm.weight",
        "fc_norm.bias",
    ]
    both = build_shapes(VIT, **SMALL)
    both.fc_norm = torch.nn.LayerNorm(32, device="meta")
    assert [n for n in trunk_names(both) if "blocks" not in n] == ["norm.weight", "norm.bias"]


def test_tokens_pass_timms_own_forward() -> None:
    """Equal, bit for bit, to timm's forward on patches that happen to be the token vectors."""
    tokens = TokenModel(build_model(VIT, seed=0, **SMALL), n_ids=17, seed=3).eval()
    ids = _ids(tokens, 17)
    embed = tokens.model.patch_embed
    reference = build_model(VIT, seed=0, **SMALL).eval()
    with torch.no_grad():
        reference.pos_embed[:, 0] = 0  # the class token has no position
        reference.pos_embed[:, 1:] = embed.positions
        reference.patch_embed = torch.nn.Identity()
        expected = reference.forward_features(embed.table[ids.long()])[:, 1:]
        assert torch.equal(tokens(ids), expected)


def test_published_vectors() -> None:
    """As published: identity x 0.02 for tokens, unit vectors x 0.02 for positions, all frozen."""
    tokens = TokenModel(build_model(VIT, seed=0, **SMALL), n_ids=17)
    embed = tokens.model.patch_embed
    assert torch.equal(embed.table, 0.02 * torch.eye(17, 32))
    torch.testing.assert_close(embed.positions.norm(dim=1), torch.full((16,), 0.02))
    assert not list(embed.parameters())
    assert tokens.facts["token_scale"] == tokens.facts["position_scale"] == "0.02"
    assert float(tokens.facts["norm_eps"]) == 1e-6


@pytest.mark.parametrize(("n_ids", "width"), [(5, 8), (8, 8), (130, 64)])
def test_token_rows_are_orthonormal_as_far_as_they_go(n_ids: int, width: int) -> None:
    table, words = token_table(n_ids, width, seed=0)
    reach = min(n_ids, width)
    assert torch.equal(table[:reach] @ table[:reach].T, torch.eye(reach))
    torch.testing.assert_close(table.norm(dim=1), torch.ones(n_ids))
    assert len(torch.unique(table, dim=0)) == n_ids
    assert ("random" in words) == (n_ids > width)


def test_frozen_vectors_follow_the_seed() -> None:
    first, second = (random_units(4, 8, seed=s, name="positions") for s in (0, 1))
    assert torch.equal(first, random_units(4, 8, seed=0, name="positions"))
    assert not torch.equal(first, second)
    assert not torch.equal(first, random_units(4, 8, seed=0, name="tokens"))


@given(st.floats(1e-7, 1e-4), st.integers(16, 768))
@settings(max_examples=30, deadline=None)
def test_the_scale_keeps_the_published_damping(eps: float, width: int) -> None:
    def damping(eps: float, scale: float) -> float:
        variance = 2 * scale**2 / width
        return float(np.sqrt(variance / (variance + eps)))

    assert damping(eps, published_scale(eps, width)) == pytest.approx(damping(1e-6, 0.02))


@pytest.mark.parametrize(
    ("name", "damping"),
    [
        ("vit_tiny_patch16_224", "published"),
        ("vit_small_patch16_rope_224", "published"),  # rotary alone: no position vectors
        ("beit_base_patch16_224", "published"),  # a relative table alone
        ("vit_base_patch16_clip_224", "published"),  # epsilon 1e-5
        ("vit_relpos_small_patch16_rpn_224", "none"),  # post-norm, relative
        ("vit_base_patch16_rpn_224", "none"),  # post-norm, absolute
    ],
)
def test_tokens_enter_with_the_variance_that_the_policy_states(name: str, damping: str) -> None:
    tokens = TokenModel(build_model(name, seed=0, **SMALL), n_ids=17)
    x_BTD = tokens.model.patch_embed(_ids(tokens, 17, n_sequences=64))
    v = float(x_BTD.square().mean())
    eps = float(tokens.facts["norm_eps"])
    wanted = 2 * 0.02**2 / 32 * eps / 1e-6 if damping == "published" else 1.0
    assert v == pytest.approx(wanted, rel=0.05)


def test_the_scale_never_damps_more_than_in_a_vit_b() -> None:
    assert published_scale(1e-6, 768) == pytest.approx(0.02)
    assert published_scale(1e-6, 3072) == pytest.approx(0.04)


def test_only_trunk_and_prefix_tokens_are_trained() -> None:
    tokens = TokenModel(build_model(VIT, seed=0, **SMALL), n_ids=17)
    tokens(_ids(tokens, 17)).square().mean().backward()
    trained = {n.removeprefix("model.") for n, p in tokens.named_parameters() if p.requires_grad}
    assert trained == {*trunk_names(tokens.model), "cls_token"}
    for name, parameter in tokens.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert moved == parameter.requires_grad, name


@pytest.mark.parametrize(
    ("n_tokens", "grid"), [(None, (4, 4)), (1, (1, 1)), (12, (3, 4)), (49, (7, 7)), (13, (1, 13))]
)
def test_any_length(n_tokens: int | None, grid: tuple[int, int]) -> None:
    tokens = TokenModel(build_model(VIT, seed=0, **SMALL), n_ids=5, n_tokens=n_tokens)
    assert tokens.grid == grid
    assert tokens(_ids(tokens, 5)).shape == (3, grid[0] * grid[1], 32)


@pytest.mark.parametrize(
    "sizes", [{"img_size": (32, 64), "patch_size": 16}, {"img_size": 28, "patch_size": 4}]
)
def test_the_patch_count_follows_image_and_patch_size(sizes: dict) -> None:
    model = build_shapes(VIT, **{**SMALL, **sizes})
    assert patch_grid(model) == ((2, 4) if sizes["patch_size"] == 16 else (7, 7))


def test_autocast_changes_numbers_only_a_little() -> None:
    tokens = TokenModel(build_model(VIT, seed=0, **SMALL), n_ids=17).eval()
    ids = _ids(tokens, 17)
    with torch.no_grad():
        exact = tokens(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = tokens(ids).float()
    assert 0 < (exact - rough).abs().max() < 0.1


def test_a_state_dict_round_trip_keeps_the_frozen_vectors() -> None:
    first = TokenModel(build_model(VIT, seed=0, **SMALL), n_ids=17, seed=1)
    second = TokenModel(build_model(VIT, seed=9, **SMALL), n_ids=17, seed=2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(_ids(first, 17)), second(_ids(second, 17)))
