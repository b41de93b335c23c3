"""How well hidden tokens are learned does not depend on the epsilon of a model's LayerNorms."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from vitwarm.loop.plan import Schedule
from vitwarm.rules import make_rule
from vitwarm.rules.masking import IGNORE, make_batch
from vitwarm.seeding import seed_of
from vitwarm.trunk import TokenModel, build_model, published_scale

RULE = make_rule("dyck", n_kinds=8)
WIDTH, N_TOKENS = 64, 16
SMALL = {"embed_dim": WIDTH, "depth": 3, "num_heads": 4, "img_size": 8, "patch_size": 2}
#: Scales at this width that meet the first norm as the published ones do in a ViT-B.
LIKE_VIT_B = math.sqrt(WIDTH / 768)


def _hidden(seed: int, start: int, n_sequences: int) -> tuple[torch.Tensor, ...]:
    batch = make_batch(RULE, seed=seed, start=start, n_sequences=n_sequences, n_tokens=N_TOKENS)
    targets_BT = torch.from_numpy(batch.target_ids).long()
    hidden_BT = targets_BT != IGNORE
    return torch.from_numpy(batch.input_ids), hidden_BT, targets_BT[hidden_BT]


def learn(*, eps: float, scale: float, seed: int, n_steps: int, batch_size: int) -> float:
    """Returns the percentage of held-out hidden tokens that a small ViT gets right.

    Args:
        eps: epsilon of every LayerNorm.
        scale: norm of token and of position vectors.
    """
    norm_layer = partial(nn.LayerNorm, eps=eps)
    vit = build_model("vit_tiny_patch16_224", seed=seed, norm_layer=norm_layer, **SMALL)
    tokens = TokenModel(
        vit, n_ids=RULE.n_ids + 1, seed=seed, token_scale=scale, position_scale=scale
    )
    torch.manual_seed(seed)
    head = nn.Linear(WIDTH, RULE.n_ids)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    trained = [p for p in tokens.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*trained, *head.parameters()], weight_decay=0.05)
    schedule = Schedule(
        n_steps=n_steps, ramp_steps=n_steps // 15, warmup_lr=1e-7, lr=2e-3, min_lr=1e-6
    )
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step)
        input_BT, hidden_BT, targets_K = _hidden(seed, step * batch_size, batch_size)
        loss = nn.functional.cross_entropy(head(tokens(input_BT)[hidden_BT]), targets_K)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    input_BT, hidden_BT, targets_K = _hidden(seed_of(seed, "held-out"), 0, 1024)
    with torch.no_grad():
        right_K = head(tokens(input_BT)[hidden_BT]).argmax(-1) == targets_K
    return 100 * float(right_K.float().mean())


@pytest.mark.slow
def test_hidden_accuracy_does_not_depend_on_epsilon() -> None:
    """1e-6 and 1e-5, the two that timm has, at the damping that a ViT-B's width gives.

    The policy brings the larger epsilon back to what the smaller one reaches; the published 0.02
    as it stands does not, so the tolerance can be missed.
    """

    def accuracy(eps: float, seed: int, *, policy: bool = True) -> float:
        scale = LIKE_VIT_B * published_scale(eps if policy else 1e-6, WIDTH)
        return learn(eps=eps, scale=scale, seed=seed, n_steps=300, batch_size=32)

    small = [accuracy(1e-6, seed) for seed in range(3)]
    large = [accuracy(1e-5, seed) for seed in range(3)]
    flat = accuracy(1e-5, 0, policy=False)
    assert min(small) > 70.0
    assert [b - a for a, b in zip(small, large, strict=True)] == pytest.approx([0.0] * 3, abs=2.0)
    assert flat < small[0] - 3.0
