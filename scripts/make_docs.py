"""The documentation's pages that come from the code: mkdocs calls this (see mkdocs.yml).

mkdocs serve
python scripts/make_docs.py FOLDER    # the same pages as files
"""

from __future__ import annotations

import ast
import contextlib
import html
import inspect
import io
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Parameters with which a rule's example is short enough to be read.
SMALL = {
    "dyck": "n_kinds=3", "shuffle-dyck": "n_kinds=3", "eca": "grid=[4,8]",
    "mixture": "of=[dyck,copy]", "curriculum": "of=[copy,dyck] n_sequences=2",
}  # fmt: skip
#: Files of the repository that pages link to, as GitHub shows them, and their pages here.
_PAGE_OF = {"../configs/RESULTS.md": "results.md"}
_LINKS = r"\[([^]]+)\]\((?!http|#)[^)]+\)"
EXAMPLES = ["--n", "2", "--tokens", "32"]


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages to what mkdocs read from docs/ (its hook of this name)."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    r"""In a table GitHub reads `a\|b` in code as a|b, Python-Markdown shows the backslash."""
    for file, name in _PAGE_OF.items():
        markdown = markdown.replace(f"]({file})", f"]({name})")
    return re.sub(
        r"^\|.*$",
        lambda row: re.sub(r"`([^`]*\\\|[^`]*)`", _code_with_bars, row[0]),
        markdown,
        flags=re.M,
    )


def _code_with_bars(found: re.Match[str]) -> str:
    return (
        f"<code>{html.escape(found[1].replace(chr(92) + '|', '|')).replace('|', '&#124;')}</code>"
    )


def on_page_content(html: str, page: Any, files: Any, **_: Any) -> str:
    """Links of the notebook lead to pages; `Returns:` and `Raises:` stand on lines of their own."""
    if page.file.src_uri.endswith(".ipynb"):
        return re.sub(r'href="([\w./-]+\.md)"', lambda link: _to_page(link[1], page, files), html)
    if page.file.src_uri == "reference.md":
        html = html.replace(">make_report<", ">report<")  # its name for others
        html = re.sub(r"(?:<p>|\s)(Returns|Raises):\s+", r"</p>\n<p><b>\1</b>: ", html)
        html = re.sub(r"(?m)^(\s*)</p>$", r"\1", html)  # of a paragraph that begins with it
        return re.sub(r"\n\s*(?=(?:\w+Error, )*\w+Error: )", "<br>", html)
    return html


def _to_page(link: str, page: Any, files: Any) -> str:
    target = files.get_file_from_path(_PAGE_OF.get(link, link))
    if target is None:
        raise RuntimeError(f"{page.file.src_uri} links to {link}, which is no page")
    return f'href="{target.url_relative_to(page.file)}"'


def main() -> int:
    """Writes the pages into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page())
        print(folder / name)
    return 0


def fields() -> str:
    """Every config field, from the schema."""
    from vitwarm.config.fields import to_markdown

    return to_markdown()


def rules() -> str:
    """Every rule with its parameters, their meaning, and drawn sequences."""
    from vitwarm.rules import RULES

    head = """\
        # Rules

        A rule writes token sequences and decides what is hidden. `vitwarm rules show NAME` draws
        some, `vitwarm rules stats NAME` says how hard it is. Hidden tokens are marked `^`.
        `shuffled:NAME` is the control of a rule: the same tokens in a random order.
        """
    parts = [textwrap.dedent(head), _one_scale()]
    for name, rule in RULES.items():
        words = SMALL.get(name, "").split() or (["of=dyck"] if name == "shuffled" else [])
        doc = inspect.cleandoc(rule.__doc__ or "").partition("\nArgs:")
        meanings = f"\n```text\n{textwrap.dedent(doc[2]).strip()}\n```\n" if doc[2] else ""
        drawn = _printed(["rules", "show", name, *words, *EXAMPLES])
        command = " ".join(["vitwarm rules show", name, *words, *EXAMPLES])
        parts.append(
            f"## {name}\n\n{doc[0].strip()}\n{meanings}\n```text\n$ {command}\n{drawn}\n```\n"
        )
    return "\n".join(parts)


def _one_scale() -> str:
    """The rules side by side: what gzip makes of them and what can be reached on them."""
    from vitwarm.rules import RULES, make_rule
    from vitwarm.rules.stats import rule_stats

    words = """\
        ## On one scale

        Every plain rule by its defaults, 512 sequences of up to 196 tokens, as `vitwarm rules
        stats NAME` prints. In percent; from 1-gram on, accuracy on hidden tokens.

        - **gzip**: compressed over raw bytes, each sequence on its own, an id being one byte (two
          where there are more than 256); **shuffled**: compressed bytes over those of the same
          sequences with their order destroyed.
        - **n-gram**: predicts the most frequent id at the hidden place of a window of n tokens, the
          others as the input shows them; counted on 4,096 other sequences; the best place of n in
          the window; where a window is new, what n - 1 predicts.
        - **order-blind**: the best accuracy without the order of the tokens: that of the most
          frequent hidden id of each sequence, known beforehand.
        - **ceiling**: the best accuracy of any predictor; two numbers are bounds.

        | rule | ids | hidden | gzip | shuffled | 1-gram | 2-gram | 3-gram | order-blind | ceiling |
        |---|---|---|---|---|---|---|---|---|---|
        """
    rows = []
    for name in RULES:
        if name in ("shuffled", "mixture", "curriculum"):
            continue
        told = rule_stats(make_rule(name))
        low, high = (f"{100 * told['ceiling'][end]:.1f}" for end in ("low", "high"))
        shares = [
            told["hidden"]["share"], told["gzip"]["ratio"], told["gzip"]["over_shuffled"],
            *(told["predictors"][f"{n}-gram"] for n in (1, 2, 3)), told["order_blind"],
        ]  # fmt: skip
        cells = [f"{100 * share:.1f}" for share in shares]
        reach = low if low == high else f"{low} to {high}"
        rows.append(f"| {' | '.join([name, str(told['ids']['n_ids']), *cells, reach])} |")
    return textwrap.dedent(words) + "\n".join(rows) + "\n"


def records() -> str:
    """The fields of record.json, with what the source says of them."""
    from vitwarm.records import Record

    tree = ast.parse(textwrap.dedent(inspect.getsource(Record))).body[0]
    assert isinstance(tree, ast.ClassDef)
    rows = ["| field | type | meaning |", "|---|---|---|"]
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign):
            continue
        says = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        meaning = " ".join(str(after.value.value).split()) if says else ""  # type: ignore[union-attr]
        kind = ast.unparse(node.annotation).replace("|", "\\|")
        rows.append(f"| `{ast.unparse(node.target)}` | `{kind}` | {meaning} |")
    return (
        f"# Records\n\nEvery finished run leaves one `record.json`. {inspect.getdoc(Record)}\n\n"
        + "\n".join(rows)
        + "\n"
    )


def _copy_of(path: str) -> Callable[[], str]:
    def page() -> str:
        # Links to files of the repository are no pages of this site.
        return re.sub(_LINKS, r"`\1`", (ROOT / path).read_text())

    return page


def _printed(words: list[str]) -> str:
    from vitwarm.cli import main as vitwarm

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = vitwarm(words)
    if code:
        raise RuntimeError(f"vitwarm {' '.join(words)} ended with {code}")
    return out.getvalue().strip()


PAGES: dict[str, Callable[[], str]] = {
    "fields.md": fields,
    "rules.md": rules,
    "record.md": records,
    "data.md": _copy_of("data/README.md"),
    "results.md": _copy_of("configs/RESULTS.md"),
    "changelog.md": _copy_of("CHANGELOG.md"),
}

if __name__ == "__main__":
    sys.exit(main())
