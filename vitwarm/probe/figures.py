"""What every figure of a probe means, in which unit, and where its definition comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One figure as the JSON, the terminal and the page call it."""

    name: str
    """Key in the JSON."""
    title: str
    unit: str
    definition: str
    source: str
    of: Literal["head", "block", "pair", "model"] = "block"
    digits: int = 2


FIGURES = (
    Figure(
        "attention_distance", "attention distance", "patches",
        "Mean distance between the centres of a querying patch and the patches it looks at, "
        "weighted by the attention on them; attention on prefix tokens is left out.",
        "Dosovitskiy et al. 2021, Fig. 7", "head",
    ),
    Figure(
        "attention_entropy", "attention entropy", "nats",
        "Mean entropy of a patch's attention over all tokens; at most the log of their number.",
        "Shannon 1948", "head",
    ),
    Figure(
        "prefix_share", "attention on prefix tokens", "share",
        "Share of the patches' attention that class and register tokens get.", "", "head", 3,
    ),
    Figure(
        "outlier_share", "attention on outlier tokens", "share",
        "Share of the patches' attention on patch tokens that enter the block with more than 3 "
        "times the median norm of their image's.",
        "After Darcet et al. 2024, whose cut is absolute; the factor is ours", "head", 3,
    ),
    Figure(
        "outlier_tokens", "outlier tokens", "share",
        "Share of the patch tokens that are such outliers.", "As above", digits=3,
    ),
    Figure(
        "qk_effective_rank", "effective rank of QK", "rank",
        "exp(entropy) of the singular values of a head's Wq^T Wk, as shares of their sum.",
        "Roy & Vetterli 2007, eq. 3", "head", 1,
    ),
    Figure(
        "vo_effective_rank", "effective rank of VO", "rank",
        "The same of a head's Wo Wv.", "Roy & Vetterli 2007, eq. 3", "head", 1,
    ),
    Figure(
        "weight_norm", "norm of the weights", "",
        "Euclidean norm of all weights of a block, biases and norms included.", "",
    ),
    Figure(
        "linear_probe", "linear probe", "% top-1",
        "Top-1 on held-out images of a linear map from a block's output, the mean of its patch "
        "tokens, to the classes: ridge regression on one-hot targets, its penalty by generalised "
        "cross-validation.",
        "Alain & Bengio 2017; Golub, Heath & Wahba 1979", digits=1,
    ),
    Figure(
        "cka", "linear CKA", "",
        "Similarity of two models' outputs of the same block (means of the patch tokens) over all "
        "images: 1, equal up to rotation and scale; 0, as unrelated ones are on average.",
        "Kornblith et al. 2019, eq. 3; without bias after Song et al. 2012, eq. 5", "pair",
    ),
    Figure(
        "knn_top1", "k-NN", "% top-1",
        "Top-1 on held-out images of a vote among the 20 nearest others by cosine, weighted by "
        "exp(cosine / 0.07), on what the model's head would see.",
        "Wu et al. 2018; Caron et al. 2021", "model", 1,
    ),
    Figure(
        "miou", "segmentation", "% mIoU",
        "Mean over classes of intersection over union, on held-out masks, of a linear map (as "
        "above) from a patch's last token to its shares of the classes, interpolated to pixels.",
        "As Caron et al. 2021 and its followers; closed form ours", "model", 1,
    ),
    Figure(
        "corloc_attention", "localisation, attention", "% CorLoc",
        "Images in which a found box overlaps a true one by at least half of their union. Found: "
        "around the patch that the last block's class token attends to most (without one: that "
        "patches do), and those connected with it that get more than the mean patch.",
        "Deselaers et al. 2010; the map as Caron et al. 2021, the cut ours", "model", 1,
    ),
    Figure(
        "corloc_lost", "localisation, LOST", "% CorLoc",
        "The same of the box that LOST finds by the similarity of the last block's keys, grown "
        "from the seventh of the patches that is similar to the fewest others.",
        "Simeoni et al. 2021, whose 100 of some 700 patches this is", "model", 1,
    ),
    Figure(
        "corloc_whole", "localisation, whole image", "% CorLoc",
        "The same of the whole image as the box: what large objects give away.", "", "model", 1,
    ),
)  # fmt: skip


def definitions() -> dict[str, dict[str, str]]:
    """Returns the definitions as every JSON of a probe carries them."""
    return {
        figure.name: {
            "unit": figure.unit,
            "definition": figure.definition,
            "source": figure.source or "its definition",
        }
        for figure in FIGURES
    }
