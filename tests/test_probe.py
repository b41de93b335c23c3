"""Probes against independent formulas on small tensors, and the command on tiny shards."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_runs import write_training
from test_report_page import Nesting
from tiny_images import write_tiny_shards
from torch.nn import functional

from vitwarm.cli import main
from vitwarm.commands.report import find_probes
from vitwarm.errors import ConfigError, ModelError, ShardError
from vitwarm.handoff import attach, export_model
from vitwarm.probe.blocks import (
    attention_figures,
    block_norms,
    effective_rank,
    find_outliers,
    patch_distances,
    singular_values,
    weight_figures,
)
from vitwarm.probe.features import PENALTIES, Ridge, linear_cka, neighbour_percent, probe_percent
from vitwarm.probe.figures import FIGURES
from vitwarm.probe.images import ProbeImages
from vitwarm.probe.models import load_all
from vitwarm.trunk import build_model, save_trunk
from vitwarm.trunk.inside import BlockView, head_matrices, watching

TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2}
NAME = "vit_tiny_patch16_224"


@pytest.fixture
def vit() -> torch.nn.Module:
    model = build_model(NAME, seed=3, num_classes=4, **TINY)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # timm's own start would leave attention nearly uniform
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), n_val=48)


def test_what_is_watched_is_what_the_model_computes(vit: torch.nn.Module) -> None:
    views: list[BlockView] = []
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with watching(vit, views.append):
        out = vit.forward_features(images)
    vit.forward_features(images)
    assert [view.number for view in views] == [0, 1, 2]  # and nothing after the context
    assert torch.equal(vit.norm(views[-1].left_BTD), out)
    for view, block in zip(views, vit.blocks, strict=True):
        x = block.norm1(view.entered_BTD)
        v = block.attn.qkv(x)[..., 32:].unflatten(2, (2, 8)).transpose(1, 2)
        mixed = (view.attention_BHTT @ v).transpose(1, 2).flatten(2)
        middle = view.entered_BTD + block.attn.proj(mixed)
        assert torch.allclose(middle + block.mlp(block.norm2(middle)), view.left_BTD, atol=1e-5)
        assert view.keys_BHTF.shape == (2, 2, 17, 8)


def test_head_matrices_are_those_of_the_attention(vit: torch.nn.Module) -> None:
    attn = vit.blocks[1].attn
    heads = head_matrices(vit.blocks[1])
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    q, k, v = (functional.linear(x, w) for w in attn.qkv.weight.split(16))
    for h in range(2):
        mine = slice(8 * h, 8 * h + 8)
        scores = q[:, mine] @ k[:, mine].T
        assert torch.allclose(x @ heads.q_HFD[h].T @ heads.k_HFD[h] @ x.T, scores, atol=1e-5)
        out = functional.linear(v[:, mine], attn.proj.weight[:, mine])
        assert torch.allclose(x @ (heads.o_HDF[h] @ heads.v_HFD[h]).T, out, atol=1e-6)


def test_spectra_and_ranks_by_numpy(vit: torch.nn.Module) -> None:
    found = weight_figures(vit.blocks[0])
    heads = head_matrices(vit.blocks[0])
    for h in range(2):
        for name, product in (
            ("qk", heads.q_HFD[h].T @ heads.k_HFD[h]),
            ("vo", heads.o_HDF[h] @ heads.v_HFD[h]),
        ):
            values = np.linalg.svd(product.double().numpy(), compute_uv=False)
            assert np.allclose(found[f"{name}_spectrum"][h], values[:8], atol=1e-6)
            assert values[8:].max() < 1e-6
            p = values[:8] / values[:8].sum()
            rank = math.exp(-(p * np.log(p)).sum())
            assert found[f"{name}_effective_rank"][h] == pytest.approx(rank, rel=1e-6)


def test_effective_rank_of_known_spectra() -> None:
    spectra = torch.tensor([[2.0, 2, 2, 2], [5, 0, 0, 0], [0, 0, 0, 0], [3, 1, 0, 0]])
    expected = [4, 1, 0, math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))]
    assert effective_rank(spectra.double()).tolist() == pytest.approx(expected)
    wide = torch.eye(3)[None]  # more features than width
    assert singular_values(torch.cat([wide, wide], 1), torch.cat([wide, wide], 1))[0].tolist() == (
        pytest.approx([2, 2, 2])
    )


def test_norms_of_a_block(vit: torch.nn.Module) -> None:
    block = vit.blocks[2]
    norms = block_norms(block)
    assert norms["fc1"] == pytest.approx(float(np.linalg.norm(block.mlp.fc1.weight.numpy())))
    everything = np.concatenate([p.numpy().ravel() for p in block.parameters()])
    assert norms["total"] == pytest.approx(float(np.linalg.norm(everything)))
    assert set(norms) == {"qkv", "proj", "fc1", "fc2", "total"}


def test_attention_figures_by_loops() -> None:
    generator = torch.Generator().manual_seed(4)
    n_prefix, rows, columns = 2, 2, 3
    attention = torch.softmax(3 * torch.randn(2, 2, 8, 8, generator=generator), dim=-1)
    entered = torch.randn(2, 8, 16, generator=generator)
    entered[0, 4] *= 20  # a patch token beyond its image's others
    entered[1, 0] *= 20  # a prefix token, which is none
    view = BlockView(0, entered, attention, torch.empty(0), torch.empty(0))
    found = attention_figures(view, patch_distances(rows, columns), n_prefix)
    expected = {name: np.zeros(2) for name in found}
    expected["outlier_tokens"] = np.array([1 / 6])
    for b in range(2):
        for h in range(2):
            for q in range(6):
                a = attention[b, h, n_prefix + q].double().numpy()
                far = [math.dist(divmod(q, columns), divmod(k, columns)) for k in range(6)]
                expected["attention_distance"][h] += (a[2:] @ far) / a[2:].sum() / 6
                expected["attention_entropy"][h] -= (a * np.log(a)).sum() / 6
                expected["prefix_share"][h] += a[:2].sum() / 6
                expected["outlier_share"][h] += a[4] / 6 if b == 0 else 0
    for name, value in found.items():
        assert value.tolist() == pytest.approx(expected[name].tolist(), rel=1e-5), name


def test_outliers_are_relative_to_their_image() -> None:
    tokens = torch.ones(2, 5, 4)
    tokens[0, 1] *= 3.1
    tokens[1] *= 100
    tokens[1, 2] *= 2.9
    assert find_outliers(tokens).nonzero().tolist() == [[0, 1]]


def make_data(n: int = 60, d: int = 6, k: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * np.array([1, 10, 0.1, 1, 1, 0]) + np.array([0, 5, 1, 0, 0, 2.0])
    y = x[:, :k] @ rng.normal(size=(k, k)) + rng.normal(size=(n, k))
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize("n", [60, 5])
def test_ridge_is_the_explicit_solution_with_the_least_gcv(n: int) -> None:
    x, y = make_data(n)  # the last feature is constant
    ridge = Ridge(6, 3)
    ridge.add(x[:2], y[:2])
    ridge.add(x[2:], y[2:])
    found = ridge.fit()
    scale = x.std(0, correction=0)
    z = ((x - x.mean(0)) / torch.where(scale > 0, scale, 1)).numpy()
    t = (y - y.mean(0)).numpy()
    errors = {}
    for penalty in PENALTIES:
        hat = z @ np.linalg.solve(z.T @ z + penalty * n * np.eye(6), z.T) + 1 / n
        errors[penalty] = ((t - hat @ t) ** 2).sum() / n / (1 - np.trace(hat) / n) ** 2
        if penalty == found.penalty:
            fitted = hat @ y.numpy()
    assert errors[found.penalty] == pytest.approx(min(errors.values()), rel=1e-6)
    assert np.allclose(found(x).numpy(), fitted, atol=1e-8)


def test_ridge_takes_weights_as_repetitions() -> None:
    x, y = make_data()
    one, other = Ridge(6, 3), Ridge(6, 3)
    one.add(x, y, torch.tensor([2.0, 0, 1] * 20))
    other.add(torch.cat([x[::3], x[::3], x[2::3]]), torch.cat([y[::3], y[::3], y[2::3]]))
    assert torch.allclose(one.fit()(x), other.fit()(x))


def test_linear_probe_and_neighbours_by_loops() -> None:
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(np.arange(90) % 3)
    centres = np.array([[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]])
    x = torch.from_numpy(centres[labels] + rng.normal(0, 2.0, (90, 4)))
    is_fit = torch.arange(90) < 60
    u = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    hits = 0
    for i in range(60, 90):
        near = np.argsort(-(u[:60] @ u[i]))[:20]
        votes = np.zeros(3)
        for j in near:
            votes[labels[j]] += math.exp(u[j] @ u[i] / 0.07)
        hits += votes.argmax() == labels[i]
    percent = neighbour_percent(x, labels, is_fit)
    assert percent == pytest.approx(100 * hits / 30)
    assert 70 < percent < 100
    assert 70 < probe_percent(x, labels, is_fit) < 100
    assert probe_percent(torch.randn(90, 4), labels, is_fit) < 70


def test_cka_by_its_definition_over_quadruples() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 5))
    y[:, 0] += 2 * x[:, 0]

    def hsic(a: np.ndarray, b: np.ndarray) -> float:  # as a U-statistic: Song et al. 2012, eq. 4
        k, m, total, n = a @ a.T, b @ b.T, 0.0, len(a)
        for i, j, q, r in itertools.permutations(range(n), 4):
            total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
        return total / (n * (n - 1) * (n - 2) * (n - 3))

    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected)


def test_cka_of_likes_and_strangers() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 150, generator=generator)
    turned = 7 * x @ torch.linalg.qr(torch.randn(150, 150, generator=generator)).Q + 1000
    assert linear_cka(x, turned) == pytest.approx(1, abs=1e-3)
    strangers = linear_cka(x, torch.randn(200, 150, generator=generator))
    assert strangers is not None
    assert abs(strangers) < 0.05  # the plain estimator says 0.43 here
    assert linear_cka(x, torch.ones(200, 2)) is None


def test_models_side_by_side(tmp_path: Path) -> None:
    warm = build_model(NAME, seed=9, num_classes=0, **TINY)
    trunk = save_trunk(tmp_path / "run" / "trunk.safetensors", warm, {})
    trained, _ = attach(trunk, model=NAME, seed=5, num_classes=4, **TINY)
    facts = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    export_model(trained, tmp_path / "later" / "export", facts=facts)
    words = ["cold", str(trunk.parent), f"end={tmp_path / 'later'}", str(tmp_path / "later/export")]
    cold, fresh, end, later = load_all(words, seed=7)
    assert [one.label for one in (cold, fresh, end, later)] == ["cold", "run", "end", "later"]
    assert torch.equal(fresh.vit.blocks[1].attn.qkv.weight, warm.blocks[1].attn.qkv.weight)
    # Fresh tensors of one seed are the same, whatever the trunk: a hand-off's promise.
    assert torch.equal(fresh.vit.patch_embed.proj.weight, cold.vit.patch_embed.proj.weight)
    assert not torch.equal(cold.vit.blocks[1].attn.qkv.weight, warm.blocks[1].attn.qkv.weight)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(end.vit.state_dict()[name], tensor), name
    assert end.mean == later.mean == (0.1, 0.2, 0.3)
    assert (cold.size, cold.depth) == (8, 3)


def test_images_are_balanced_and_split_once(shards: str) -> None:
    images = ProbeImages(f"{shards}/validation", n_images=32, seed=0)
    assert np.bincount(images.labels).tolist() == [8, 8, 8, 8]
    assert np.bincount(images.labels[images.is_fit]).tolist() == [6, 6, 6, 6]
    again = ProbeImages(f"{shards}/validation", n_images=32, seed=0)
    assert np.array_equal(images.rows, again.rows)
    assert images.pixels(8).shape == (32, 3, 8, 8)
    assert images.facts()["n_fit"] == 24
    assert images.facts()["n_unknown"] == 0


def test_the_command_writes_a_json_per_model(
    tmp_path: Path, shards: str, vit: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(vit, tmp_path / "a" / "export", facts={})
    words = [str(tmp_path / "a"), "cold", "--data", f"{shards}/validation", "--images", "24"]
    assert main(["probe", *words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "a.probe.json").read_text())
    cold = json.loads((tmp_path / "out" / "cold.probe.json").read_text())
    assert found["images"]["n"] == 24
    assert len(found["blocks"]) == 3
    distance = found["blocks"][0]["attention_distance"]
    assert len(distance) == 2
    assert f"{sum(distance) / 2:.2f}" in printed
    # A cold start attends almost uniformly; the bent model does not.
    uniform = cold["uniform"]["attention_entropy"]
    assert cold["blocks"][0]["attention_entropy"][0] == pytest.approx(uniform, abs=1e-3)
    assert found["blocks"][2]["attention_entropy"][0] < uniform - 0.05
    assert found["cka"]["cold"] == cold["cka"]["a"]
    assert len(found["cka"]["cold"]) == 3
    assert f"{found['cka']['cold'][1]:.2f}" in printed
    assert 25 <= found["blocks"][2]["linear_probe"] <= 100  # four classes told by their colours
    assert f"{found['knn_top1']:.1f}" in printed
    assert set(cold["definitions"]) >= {"attention_distance", "vo_effective_rank", "weight_norm"}


def test_models_of_different_depths_are_told_apart(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for depth in (1, 2):
        shallow = build_model(NAME, seed=0, **{**TINY, "depth": depth})
        export_model(shallow, tmp_path / f"d{depth}", facts={})
    words = [str(tmp_path / "d1"), str(tmp_path / "d2"), "--data", f"{shards}/validation"]
    assert main(["probe", *words, "--images", "24", "--out", str(tmp_path / "out")]) == 0
    assert "d1 has 1 blocks and d2 has 2: CKA compares" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "d2.probe.json").read_text())["cka"] == {}


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["cold"], ConfigError, "there is none"),
        (["a=cold", "a=cold"], ConfigError, "Two models are called 'a'"),
        (["x/one", "y/one"], ConfigError, "vitwarm probe early=x/one late=y/one"),
        (["a/b=cold", "a-b=cold"], ConfigError, "'a/b' cannot name a file"),
        (["../up=cold"], ConfigError, "cannot name a file"),
        (["resnet18.a1_in1k"], ModelError, "resnet18.a1_in1k cannot be probed: it is 'resnet18'"),
    ],
)
def test_words_that_mean_no_models(words: list[str], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        load_all(words, seed=0)


def test_other_models_are_refused(tmp_path: Path) -> None:
    for name, kwargs, says in (
        ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (1, 1, 1, 1)}, "SwinTransf"),
        ("vit_tiny_patch16_224", {**TINY, "in_chans": 1}, "images of 1 channels"),
        ("vit_tiny_patch16_224", {**TINY, "img_size": (8, 16)}, "16 x 8 pixels"),
        ("vit_little_patch16_reg4_gap_256", {**TINY, "attn_layer": "diff"}, "in another way"),
    ):
        export_model(build_model(name, seed=0, **kwargs), tmp_path / "m", facts={})
        with pytest.raises((ModelError, ConfigError), match=says):
            load_all([str(tmp_path / "m")], seed=0)


def test_images_that_cannot_be_probed_on(shards: str) -> None:
    with pytest.raises(ConfigError, match="--images is 3"):
        ProbeImages(shards, n_images=3, seed=0)
    with pytest.raises(ShardError, match="is streamed"):
        ProbeImages("https://example.org/a-{0..3}.tar", n_images=100, seed=0)


def test_the_page_is_whole_and_shows_every_number(
    tmp_path: Path, shards: str, vit: torch.nn.Module
) -> None:
    export_model(vit, tmp_path / "a" / "export", facts={})
    words = [f"R&D={tmp_path / 'a'}", "cold", "--data", f"{shards}/validation", "--images", "24"]
    assert main(["probe", *words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    parsed = Nesting()
    parsed.feed(page)
    assert not parsed.errors
    assert not parsed.open
    assert not parsed.loads
    assert "R&amp;D" in page  # labels are escaped
    assert "R&D" not in page
    found = json.loads((tmp_path / "out" / "cold.probe.json").read_text())
    texts = "".join(parsed.texts)
    assert f"{found['blocks'][1]['norms']['total']:.2f}" in texts
    assert f"{found['knn_top1']:.1f}" in texts
    for figure in FIGURES:
        assert figure.definition in texts
    for name in ("attention_distance", "cka", "qk_spectrum_1", "vo_spectrum_3"):
        assert f'data-name="{name}"' in page
    heads = len(found["blocks"][0]["attention_entropy"])
    assert len(re.findall(r"cold · block 2 · head \d: ", page)) == heads * sum(
        figure.of == "head" for figure in FIGURES
    )


def test_probes_of_other_images_stand_in_sections_of_their_own(
    tmp_path: Path, shards: str, vit: torch.nn.Module
) -> None:
    export_model(vit, tmp_path / "m", facts={})
    for label, n in (("a", 48), ("b", 24)):
        words = [f"{label}={tmp_path / 'm'}", "cold", "--data", f"{shards}/validation"]
        assert main(["probe", *words, "--images", str(n), "--out", str(tmp_path / "out")]) == 0
    many, few = find_probes([tmp_path])
    assert (many.title[-11:], few.title[-11:]) == (", 48 images", ", 24 images")
    assert "a: as exported" in many.html
    assert "48 images of 4 classes" in many.html
    assert "cold" not in many.html
    assert "24 images of 4 classes" in few.html
    assert "b: as exported" in few.html


def test_a_report_shows_probes_beside_the_runs(
    tmp_path: Path, shards: str, vit: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found at any depth; a damaged one is named and left out; colours are those of the arms."""
    for seed in (0, 1):
        write_training(tmp_path / "runs", arm="dyck", seed=seed, top1=50.0 + seed)
    export_model(vit, tmp_path / "dyck", facts={})
    words = [str(tmp_path / "dyck"), "cold", "--data", f"{shards}/validation", "--images", "24"]
    probe = tmp_path / "probes" / "first"
    assert main(["probe", *words, "--out", str(probe), "--device", "cpu"]) == 0
    broken = json.loads((probe / "cold.probe.json").read_text())
    del broken["blocks"][1]["vo_spectrum"]
    (probe / "broken.probe.json").write_text(json.dumps(broken))
    (probe / "half.probe.json").write_text("{")
    capsys.readouterr()
    roots = [str(tmp_path / "runs"), str(tmp_path / "probes")]
    assert main(["report", *roots, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert re.findall(r"(\w+)\.probe\.json is left out", said) == ["broken", "half"]
    page = (tmp_path / "out" / "index.html").read_text()
    parsed = Nesting()
    parsed.feed(page)
    assert not parsed.errors
    assert not parsed.open
    assert '<li><a href="#probe-1">What it did to the network: first</a></li>' in page
    runs, probes = page.split('id="probe-1"')
    found = json.loads((probe / "dyck.probe.json").read_text())
    assert f"{found['knn_top1']:.1f}" in probes
    button = re.compile(r'data-arm="(\d)" aria-pressed="true"[^>]*>(?:(?!</button>).)*dyck', re.S)
    assert button.findall(runs.rpartition('class="legend"')[2]) == button.findall(probes)


def test_a_device_or_a_folder_that_is_none_is_refused_before_the_models_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").touch()
    words = ["probe", "nothing", "--data", "nowhere", "--out", str(tmp_path / "file" / "out")]
    for device, says in (("cuda", "--device is 'cuda'"), ("cpu", "out, which cannot be written")):
        assert main([*words, "--device", device]) == 2
        assert says in capsys.readouterr().err
