"""One self-contained HTML page: no network, light and dark, readable on a phone and without script.

Every picture has its numbers in a table below it; the words come from `words.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources

from vitwarm.records import code_version
from vitwarm.report import drawings
from vitwarm.report.facts import Analysis, RunLine
from vitwarm.report.page_tables import (
    accuracy_table,
    difference_table,
    difficulty_table,
    run_table,
    saving_table,
    warmup_table,
)
from vitwarm.report.svg import swatch
from vitwarm.report.words import arm_note, count, headlines, method_notes, seeds_at

#: Groups of `hidden_accuracy_by` and what they count.
_DIFFICULTIES = {
    "match_distance": "tokens back to the bracket that the hidden one closes",
    "depth": "brackets open before the hidden one closes",
    "equal_id_distance": "tokens to the nearest visible one with the same id",
}


def make_page(analyses: Sequence[Analysis], title: str = "Data-efficiency report") -> str:
    """Returns the report as one HTML document."""
    assets = resources.files("vitwarm.report")
    style = assets.joinpath("page.css").read_text(encoding="utf-8")
    script = assets.joinpath("page.js").read_text(encoding="utf-8")
    made = time.strftime("%Y-%m-%d %H:%M")
    links = "".join(f'<li><a href="#{a.slug}">{escape(a.title)}</a></li>' for a in analyses)
    nav = f'<nav class="sections" aria-label="Sections"><ul>{links}</ul></nav>'
    body = "\n".join(_section(analysis) for analysis in analyses)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header class="top"><h1>{escape(title)}</h1>
<p class="quiet">Made {made} by vitwarm {escape(code_version())} from the records of the runs.</p>
{nav if len(analyses) > 1 else ""}</header>
<main>
{body}
</main>
<footer>All numbers of this page are in report.json and the CSV files beside it.</footer>
<div id="tip" role="status" aria-hidden="true"></div>
<script>
{script}</script>
</body>
</html>
"""


def _section(analysis: Analysis) -> str:
    said = "".join(f"<p>{_prose(text)}</p>" for text in headlines(analysis))
    lead = f'<div class="lead">{said}</div>' if analysis.runs else ""
    parts = [
        f'<section class="report" id="{analysis.slug}"><h2>{escape(analysis.title)}</h2>',
        _facts(analysis),
        lead,
        _problems(analysis),
    ]
    if any(cell.points for cell in analysis.cells):
        parts += [_legend(analysis), _accuracy(analysis), _compared(analysis), _total(analysis)]
        parts.append(_convergence(analysis))
    parts += [_warmups(analysis), _runs(analysis)]
    if analysis.runs:
        parts.append(_method(analysis))
    parts.append("</section>")
    return "\n".join(part for part in parts if part)


def _facts(analysis: Analysis) -> str:
    facts = [
        ("match", analysis.match),
        ("warm-up seeds", analysis.warmup_seeds),
        ("seeds", seeds_at(analysis) if analysis.cells else None),
        ("model", analysis.model),
        ("classes", analysis.n_classes),
        ("validation images", count(analysis.n_val_images) if analysis.n_val_images else None),
        ("weights", " and ".join(analysis.weights) or None),
        *((name, value) for name, value in analysis.setting.items()),
    ]
    items = "".join(
        f"<li>{escape(name)} <b>{escape(str(value))}</b></li>"
        for name, value in facts
        if value is not None
    )
    return f'<ul class="facts">{items}</ul>' if items else ""


def _problems(analysis: Analysis) -> str:
    missing = [run for run in analysis.runs if run.state not in ("finished", "left out")]
    items = [f"<li>{escape(text)}</li>" for text in analysis.problems]
    if missing:
        states = {state: sum(r.state == state for r in missing) for state in _unique(missing)}
        words = ", ".join(f"{n} {state}" for state, n in states.items())
        items.append(
            f"<li>{len(missing)} of {len(analysis.runs)} image trainings have no result "
            f"({words}). Means are over the seeds that finished; the table of runs names the "
            "others.</li>"
        )
    controls = ("shuffled", "random")  # learning nothing is what they are for
    bad = [
        line
        for line in analysis.warmups
        if line.verdict == "not learned" and not line.rule.startswith(controls)
    ]
    if bad:
        arms = sorted({arm for line in bad for arm in line.arms})
        items.append(
            f"<li>Warm-ups that learned nothing: {escape(', '.join(arms) or str(len(bad)))}. What "
            "such a trunk does to the image training says nothing about its rule.</li>"
        )
    if not items:
        return ""
    return f'<div class="problems" role="note"><b>Read with care</b><ul>{"".join(items)}</ul></div>'


def _unique(runs: Iterable[RunLine]) -> list[str]:
    return list(dict.fromkeys(run.state for run in runs))


def _legend(analysis: Analysis) -> str:
    buttons = "".join(
        f'<button type="button" data-arm="{i}" aria-pressed="true" title="{escape(arm_note(arm))}">'
        f"{swatch(i)}<span>{escape(arm.label)}</span></button>"
        for i, arm in enumerate(analysis.arms)
    )
    return f'<div class="legend" role="group" aria-label="Show or hide arms">{buttons}</div>'


def _accuracy(analysis: Analysis) -> str:
    drawn = _both(lambda width: drawings.draw_accuracy(analysis, width), drawings.WIDE)
    few = min((len(c.points) for c in analysis.cells if c.points), default=0) < 3
    bars = "Small marks are seeds, large ones their mean, bars 95 % Student-t intervals."
    if few:
        bars += " Fewer than three seeds have no interval."
    return (
        "<h3>Accuracy against images</h3>"
        f"<figure>{drawn}<figcaption>{bars} Arms at one size are drawn side by side."
        "</figcaption></figure>" + accuracy_table(analysis)
    )


def _compared(analysis: Analysis) -> str:
    """Differences at matched images seen, and what they mean in images."""
    if not analysis.matched_images:
        return ""
    title = f"Paired differences to {analysis.reference}"
    drawn = _both(
        lambda width: drawings.draw_differences(analysis, analysis.matched_images, title, width)
    )
    figures = [
        f"<figure>{drawn}<figcaption>Each seed against {escape(str(analysis.reference))} with the "
        "same images in the same order and the same fresh tensors. Every arm saw the same number "
        "of images; a warmed arm had its warm-up on top.</figcaption></figure>"
    ]
    tables = [difference_table(analysis.matched_images, "Matched images seen: arm − reference.")]
    if analysis.savings:
        drawn = _both(lambda width: drawings.draw_savings(analysis, analysis.savings, width))
        figures.append(
            f"<figure>{drawn}<figcaption>Left of ×1: "
            "fewer images for the same accuracy. Small marks are seeds; an arrow is a bound, "
            "where the accuracy lies outside what was measured. Where the arms' difference is not "
            "told from zero the marks mean nothing; the table says where.</figcaption></figure>"
        )
        tables.append(saving_table(analysis.savings))
    return (
        "<h3>At matched images seen</h3>"
        f'<div class="pair">{"".join(figures)}</div>{"".join(tables)}'
    )


def _total(analysis: Analysis) -> str:
    """Differences at matched total samples: the warm-up against training longer."""
    if not analysis.matched_total:
        return ""
    title = "Paired differences at matched total samples"
    drawn = _both(
        lambda width: drawings.draw_differences(analysis, analysis.matched_total, title, width)
    )
    return (
        "<h3>At matched total samples</h3><p>Is a warm-up worth more than the same number of "
        "samples spent on images? The reference here trained longer by the warm-up's samples.</p>"
        f'<div class="pair"><figure>{drawn}<figcaption>Warmed arm − the arm that trained '
        "longer, paired over seeds.</figcaption></figure></div>"
        + difference_table(analysis.matched_total, "Matched total samples: arm − train longer.")
    )


def _convergence(analysis: Analysis) -> str:
    sizes = sorted({c.n_images for c in analysis.convergence if c.n_images and c.images_seen})
    if not sizes:
        return ""
    drawn = "".join(f"<figure>{drawings.draw_convergence(analysis, n)}</figure>" for n in sizes)
    return (
        "<h3>Convergence</h3><p class='quiet'>Validation accuracy while training. Thin lines are "
        f'seeds, thick ones their mean.</p><div class="small">{drawn}</div>'
    )


def _warmups(analysis: Analysis) -> str:
    if not analysis.warmups:
        return ""
    drawn = ""
    if any(line.curve_steps for line in analysis.warmups):
        picture = _both(lambda width: drawings.draw_warmups(analysis, width))
        drawn = (
            f'<div class="pair"><figure>{picture}<figcaption>On the '
            "training sequences; dotted: always answering the most frequent hidden id."
            "</figcaption></figure></div>"
        )
    hard = "".join(difficulty_table(analysis, group, what) for group, what in _DIFFICULTIES.items())
    note = (
        "<p class='quiet'>Chance: always the most frequent hidden id. Without order: what no "
        "predictor exceeds that is blind to the order of the tokens. Ceiling: what none "
        "exceeds.</p>"
    )
    return "<h3>Warm-ups</h3>" + drawn + note + warmup_table(analysis) + hard


def _runs(analysis: Analysis) -> str:
    if not analysis.runs:
        return ""
    finished = sum(run.state == "finished" for run in analysis.runs)
    return f"<h3>Runs: {finished} of {len(analysis.runs)} finished</h3>{run_table(analysis)}"


def _method(analysis: Analysis) -> str:
    notes = "".join(f"<li>{_prose(note)}</li>" for note in method_notes(analysis))
    arms = "".join(
        f"<li><b>{escape(arm.label)}</b>: {escape(note)}.</li>"
        for arm in analysis.arms
        if (note := arm_note(arm))
    )
    subsets = "".join(
        f"<li>{count(int(size))} images: <code>{', '.join(h[:12] for h in hashes)}</code></li>"
        for size, hashes in analysis.subsets.items()
    )
    hashes = f"<details><summary>Subset hashes</summary><ul>{subsets}</ul></details>"
    return (
        f'<h3>How to read this</h3><ul class="notes">{notes}{arms}</ul>{hashes if subsets else ""}'
    )


def _both(draw: Callable[[int], str], wide: int = drawings.HALF) -> str:
    """A picture twice: for desktops, and for phones with text of the same size."""
    return f'<div class="wide">{draw(wide)}</div><div class="narrow">{draw(drawings.NARROW)}</div>'


def _prose(text: str) -> str:
    """Escaped text whose numbers stay on one line with their units."""
    return escape(text).replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")
