"""grad_checkpointing: the same numbers from fewer kept activations, or a sentence why not."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_coverage_models import SMALL_ONES, _build
from tiny_images import write_tiny_shards
from torch import Tensor, nn

from vitwarm.config import SweepConfig, TrainRun, WarmupRun, load_config
from vitwarm.errors import ModelError, Stopped
from vitwarm.loop.start import compile_blocks
from vitwarm.sweep.plan import make_plan
from vitwarm.training import run_training, training_folder
from vitwarm.trunk import TokenModel, blocks_of, build_model, checkpoint_gradients, load_trunk
from vitwarm.warmup import plan_warmup, run_warmup, warmup_folder

SHAPE = "{embed_dim: 32, depth: 3, num_heads: 2, img_size: 8, patch_size: 2}"
COMMON = ["run.progress=false", "run.device=cpu", "run.threads=1", "run.log_every_steps=2"]
ON = "grad_checkpointing=true"


def warm(root: Path, *words: str) -> WarmupRun:
    tiny = [
        f"warmup.model_kwargs={SHAPE}", "rule.params.n_kinds=8", "warmup.precision=fp32",
        "warmup.batch_size=8", "warmup.eval_sequences=64", "warmup.budget=6steps",
    ]  # fmt: skip
    return load_config(WarmupRun, None, [*tiny, *COMMON, f"run.root={root}", *words])


def images(shards: Path, root: Path, *words: str) -> TrainRun:
    tiny = [
        "train.model_kwargs={embed_dim: 32, depth: 3, num_heads: 2, patch_size: 2, drop_rate: 0.1}",
        "train.img_size=8", "train.precision=fp32", "train.batch_size=16", "train.steps=6",
        "train.warmup_epochs=30", "train.evaluations=1", "train.drop_path=0.3", "run.workers=0",
        f"data.train={shards}/tiny-train-*.tar", f"data.val={shards}/tiny-validation-*.tar",
    ]  # fmt: skip
    return load_config(TrainRun, None, [*tiny, *COMMON, f"run.root={root}", *words])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_shards(folder)
    return folder


class Step:
    """A forward and backward pass: its gradients, what it kept between, how often blocks ran."""

    def __init__(self, model: nn.Module, forward: Callable[[], Tensor]) -> None:
        self.passes: Counter[str] = Counter()
        model.zero_grad()
        own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        handles = [
            block.register_forward_pre_hook(lambda *_, name=name: self.passes.update([name]))
            for name, block in blocks_of(model).items()
        ]
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = forward()
        self.kept_bytes = sum(kept.values())
        out.square().sum().backward()
        for handle in handles:
            handle.remove()
        self.gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def check_same_for_less(model: nn.Module, forward: Callable[[], Tensor]) -> None:
    """The same gradients bit for bit, every block run twice, and less kept."""
    model.train()
    plain = Step(model, forward)
    checkpoint_gradients(model, "it", section="warmup")
    again = Step(model, forward)
    assert set(plain.passes.values()) == {1}
    assert again.passes == dict.fromkeys(blocks_of(model), 2)
    assert again.kept_bytes < 0.6 * plain.kept_bytes
    assert again.gradients.keys() == plain.gradients.keys()
    for name, gradient in plain.gradients.items():
        assert torch.equal(again.gradients[name], gradient), name


def of_tokens(what: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    name, kwargs = SMALL_ONES[what]
    tokens = TokenModel(_build(name, kwargs), n_ids=18)
    ids_BT = torch.arange(2 * tokens.n_tokens).reshape(2, -1) % 18
    return tokens.model, lambda: tokens(ids_BT)


def of_images(**kwargs: float) -> tuple[nn.Module, Callable[[], Tensor]]:
    name, small = SMALL_ONES["VisionTransformer"]
    vit = build_model(name, seed=0, **small, **kwargs)
    pixels = torch.linspace(-1, 1, 4 * 3 * 32 * 32).reshape(4, 3, 32, 32)
    return vit, lambda: vit(pixels)


CAN = [what for what in SMALL_ONES if what not in ("ConVit", "Xcit")]


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=() if what in ("VisionTransformer", "SwinTransformer") else slow)
        for slow in [pytest.mark.slow]
        for what in CAN
    ],
)
def test_the_blocks_of_a_warm_up_run_twice_and_give_the_same(what: str) -> None:
    """Tokens enter past the patch embedding, and nothing in front of the first block is trained."""
    check_same_for_less(*of_tokens(what))


def test_random_depth_falls_on_the_same_blocks_again() -> None:
    check_same_for_less(*of_images(drop_path_rate=0.5, proj_drop_rate=0.2))


def test_a_first_block_learns_where_timm_was_told_to_reenter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TIMM_REENTRANT_CKPT=1: without a class token nothing in front of the blocks has gradients."""
    from timm.layers import set_reentrant_ckpt, use_reentrant_ckpt

    before = use_reentrant_ckpt()
    set_reentrant_ckpt(True)
    try:
        check_same_for_less(*of_tokens("no class token, RMS norm"))
    finally:
        set_reentrant_ckpt(before)


def test_a_warm_up_with_it_is_the_one_without(tmp_path: Path) -> None:
    """In micro-batches; also where it was begun without, because memory ran short on the way."""
    micro = "warmup.micro_batch_size=4"
    plain, other = warm(tmp_path / "plain", micro), warm(tmp_path / "other", micro, f"warmup.{ON}")
    records = [run_warmup(plain), run_warmup(other)]
    assert [record.extra["grad_checkpointing"] for record in records] == [False, True]
    assert "blocks computed again backwards" in str(plan_warmup(other))
    assert "again" not in str(plan_warmup(plain))

    with pytest.raises(Stopped):
        run_warmup(warm(tmp_path / "mixed", micro, "run.time_limit_minutes=1e-9"))
    mixed = warm(tmp_path / "mixed", micro, f"warmup.{ON}")
    run_warmup(mixed)
    shas = {
        load_trunk(warmup_folder(config) / "trunk.safetensors").sha256
        for config in (plain, other, mixed)
    }
    assert len(shas) == 1


def test_a_training_with_it_is_the_one_without(shards: Path, tmp_path: Path) -> None:
    """With dropout, random depth, an average of the weights, and micro-batches."""
    words = "train.model_ema=true", "train.micro_batch_size=4"
    plain = images(shards, tmp_path / "plain", *words)
    other = images(shards, tmp_path / "other", *words, f"train.{ON}")
    records = [run_training(plain), run_training(other)]
    assert [record.extra["grad_checkpointing"] for record in records] == [False, True]
    assert records[0].val_loss == records[1].val_loss
    assert records[0].train_loss == records[1].train_loss
    for name in ("export", "export_ema"):
        a, b = (load_file(training_folder(c) / name / "model.safetensors") for c in (plain, other))
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_keep_less_too(shards: Path, tmp_path: Path) -> None:
    torch._dynamo.reset()
    model, forward = of_images(drop_path_rate=0.5, proj_drop_rate=0.2)
    compile_blocks(model)
    check_same_for_less(model, forward)

    words = f"train.{ON}", "train.compile=on", "train.model_kwargs.drop_rate=0", "train.drop_path=0"
    record = run_training(images(shards, tmp_path / "fast", *words))
    eager = run_training(images(shards, tmp_path / "plain", *words[2:]))
    assert record.extra["compiled"]
    assert record.train_loss == pytest.approx(eager.train_loss, rel=1e-3)


REFUSED: dict[str, tuple[str, str]] = {
    "convit_tiny": ("{embed_dim: 16, depth: 2, img_size: 32}", "gradient checkpointing not supp"),
    "xcit_nano_12_p16_224": (
        "{depth: 2, img_size: 32, patch_size: 16}",
        "statistics of its BatchNorms once more",
    ),
}


@pytest.mark.parametrize("model", REFUSED)
def test_what_timm_cannot_is_refused_before_anything_is_written(
    model: str, shards: Path, tmp_path: Path
) -> None:
    kwargs, why = REFUSED[model]
    given: list[Any] = [f"warmup.model={model}", f"warmup.model_kwargs={kwargs}", f"warmup.{ON}"]
    with pytest.raises(
        ModelError, match=rf"warmup\.grad_checkpointing is true, but '{model}' .*{why}"
    ):
        run_warmup(warm(tmp_path / "runs", *given))
    given = [
        f"train.model={model}",
        "train.model_kwargs={depth: 2, patch_size: 16}",
        "train.img_size=32",
    ]
    with pytest.raises(ModelError, match=rf"train\.grad_checkpointing is true.*{why}"):
        run_training(images(shards, tmp_path / "runs", *given, f"train.{ON}"))
    assert not (tmp_path / "runs").exists()


def test_a_sweep_refuses_it_before_the_warm_up(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: base\ntrain: {model: convit_tiny, model_kwargs: {embed_dim: 16, depth: 2}, "
        "img_size: 32, steps: 2, warmup_epochs: 0, grad_checkpointing: true}\n"
    )
    (tmp_path / "warm.yaml").write_text(
        "name: warm\nwarmup: {model: convit_tiny, model_kwargs: {embed_dim: 16, depth: 2, "
        "img_size: 32}, budget: 2steps}\n"
    )
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text(
        "name: s\nbase: base.yaml\nmatch: steps\nwarmup_seeds: shared\nseeds: [0]\n"
        "arms: {dyck: {warmup: warm.yaml}}\n"
        f"set: {{data.train: '{shards}/tiny-train-*.tar', data.val: '{shards}/tiny-val*.tar'}}\n"
    )
    config = load_config(SweepConfig, recipe, [f"run.root={tmp_path}/runs", "run.device=cpu"])
    with pytest.raises(ModelError, match=r"train\.grad_checkpointing is true, but 'convit_tiny'"):
        make_plan(config, recipe=recipe)
    assert not (tmp_path / "runs").exists()
