"""Give a warmed trunk a fresh patch embedding; graft, expand, import or publish a trunk.

    vitwarm handoff runs/dyck-1a2b3c4d --model vit_tiny_patch16_224 --out DIR
    vitwarm handoff RUN --scope attention --blocks=-4: --out DIR
    vitwarm handoff graft RUN_A RUN_B --attention-of A --out grafted.safetensors
    vitwarm handoff graft RUN_A RUN_B --first-blocks 6 --out grafted.safetensors
    vitwarm handoff expand CORE --model vit_base_patch16_224 --out base.safetensors
    vitwarm handoff mix RUN --warmed 0.4 --fresh 0.1 --out shrunk.safetensors
    vitwarm handoff import mae_pretrain_vit_base.pth --out mae.safetensors
    vitwarm handoff push RUN hf-hub:OWNER/NAME --private

A hand-off prints where every tensor comes from and writes a folder that
timm.create_model("local-dir:DIR", pretrained=True) loads, with audit.json beside the weights.
What is pushed is a trunk, or the model that a training exported, with a card from its record.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitwarm.config import NO_FRESH_MODEL
from vitwarm.config.ranges import whole_number
from vitwarm.errors import ConfigError, HandoffError
from vitwarm.files import write_text

if TYPE_CHECKING:
    from vitwarm.trunk import Audit, Trunk


@dataclass(frozen=True)
class _Way:
    """What goes with a word before the trunks."""

    what: str
    n_trunks: int
    takes: str
    """The trunks, in words."""
    example: str
    own: tuple[str, ...]
    """Options that it alone has."""
    shared: tuple[str, ...]
    """Options that it has of the hand-off's."""


_SHAPE = ("model", "model_kwargs", "img_size")
_OF_A_HANDOFF = (*_SHAPE, "num_classes", "scope", "blocks", "seed", "allow_failed")
_OF_A_GRAFT = ("attention_of", "first_blocks")
_OF_AN_EXPANSION = ("depth", "width", "scale", "vectors", "order")
#: Values of options that were not given, where these are not None.
_NOT_GIVEN = {"scope": "all", "seed": 0, "allow_failed": False, "private": False}
# fmt: off
#: The words that may stand before the trunks.
WAYS = {
    "graft": _Way("a graft", 2, "two trunks", "A B --attention-of A --out FILE", _OF_A_GRAFT, ()),
    "expand": _Way("an expansion", 1, "a trunk and the model that it becomes",
                   "CORE --model vit_base_patch16_224 --out FILE", _OF_AN_EXPANSION, _SHAPE),
    "mix": _Way("a mix", 1, "one trunk", "RUN --warmed 0.4 --fresh 0.1 --out FILE",
                ("warmed", "fresh", "norms"), ("seed",)),
    "import": _Way("an import", 1, "one file", "FILE --out FILE", (), _SHAPE),
    "push": _Way("a push", 2, "a trunk or a run, and a name", "RUN hf-hub:OWNER/NAME",
                 ("private",), ()),
}
# fmt: on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments; the first word may be graft, expand, mix, import or push."""
    add = parser.add_argument
    add(
        "trunks",
        nargs="+",
        metavar="TRUNK",
        help="run folder, trunk file, shipped name or hf-hub:OWNER/NAME; `none`: the default arm; "
        "or `graft A B`, `expand A`, `mix A`, `import FILE` (.safetensors, .pth, .pt), "
        "`push A hf-hub:OWNER/NAME`",
    )
    add("--out", help="export folder; of graft, expand, mix, import: the trunk file")
    add("--model", help="timm model name; default: the one that was warmed up")
    warmed = "default: as it was warmed up"
    add("--model-kwargs", type=_read_json, metavar="JSON", help=f"for timm.create_model; {warmed}")
    add("--num-classes", type=whole_number(most=10**6), help="default: the model's own")
    add("--img-size", type=_read_sides, help=f"pixels, 224 or 192x256; {warmed}")
    add("--scope", default="all", choices=["all", "blocks", "attention", "mlp"])
    add("--blocks", help="-4: or 0,1,2; default: all")
    add("--seed", type=whole_number(), default=0, help="of the fresh tensors (default 0)")
    failed = "hand off a trunk that learned nothing, too"
    add("--allow-failed", action="store_true", help=failed)
    add("--attention-of", choices=["A", "B"], help="graft: MLPs of the other")
    add("--first-blocks", type=int, metavar="N", help="graft: N of A, rest of B")
    depths = ["core", "stack", "interleave"]
    add("--depth", choices=depths, help="expand: blocks (default core)")
    add("--width", choices=["tile", "zero"], help="expand: (default tile)")
    add("--scale", choices=["none", "fro"], help="expand, tiled: (default fro)")
    add("--vectors", choices=["published", "tiled"], help="expand, tiled: biases and norms")
    add("--order", choices=["cyclic", "each"], help="expand: (default cyclic)")
    add("--warmed", type=_read_factor, help="mix: factor of the trunk (default 1)")
    add("--fresh", type=_read_factor, help="mix: factor of a start by timm, of --seed (default 0)")
    add("--norms", choices=["kept", "timm"], help="mix: timm gives matrices the size of timm's")
    add("--private", action="store_true", help="push: a new repository is private")
    add("--json", action="store_true", help="print the audit as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the hand-off, the graft or the push that the arguments describe."""
    word, n_trunks = args.trunks[0], len(args.trunks)
    way = WAYS.get(word)
    _refuse_idle(args, way)
    if way is not None:
        if n_trunks != 1 + way.n_trunks or (word == "expand" and not args.model):
            raise ConfigError(f"{word} takes {way.takes}: vitwarm handoff {word} {way.example}.")
        return {"import": _import, "push": _push}.get(word, _make)(args)
    if n_trunks != 1:
        raise ConfigError(
            f"handoff takes one trunk, not {n_trunks} ({', '.join(args.trunks)}). "
            f"To assemble one from two: vitwarm handoff graft {WAYS['graft'].example}."
        )
    return _hand_off(args)


def _refuse_idle(args: argparse.Namespace, way: _Way | None) -> None:
    """Refuses options without an effect on a way, or on a hand-off, and an --out that is none."""

    def given(names: tuple[str, ...]) -> str:
        found = [name for name in names if getattr(args, name) != _NOT_GIVEN.get(name)]
        return ", ".join(f"--{name.replace('_', '-')}" for name in found)

    for word, other in WAYS.items():
        if other is not way and (idle := given(other.own)):
            raise ConfigError(
                f"{idle} has no effect here; write {word} before the trunk: vitwarm handoff "
                f"{word} {other.example}."
            )
    if way is WAYS["push"]:
        if args.out:
            raise ConfigError("--out has no effect on a push, which writes nothing here.")
    elif not args.out:
        raise ConfigError(
            "--out is not given; name the folder (the file of graft, expand, mix, import) to write."
        )
    elif way and not args.out.endswith(".safetensors"):
        raise ConfigError(
            f"--out is {args.out}; a trunk file ends in .safetensors. Give --out FILE.safetensors."
        )
    if args.trunks[0].lower() == "none" and (idle := given(("scope", "blocks", "allow_failed"))):
        raise ConfigError(
            f"{idle} has no effect on none: nothing is carried. Name a trunk, or leave it out."
        )
    if way and (idle := given(tuple(name for name in _OF_A_HANDOFF if name not in way.shared))):
        raise ConfigError(
            f"{idle} has no effect on {way.what}. Leave it out; a hand-off of that trunk takes it."
        )


def _hand_off(args: argparse.Namespace) -> int:
    from vitwarm.handoff import attach, export_model

    trunk = _load(args.trunks[0], allow_failed=args.allow_failed)
    facts = trunk.metadata if trunk else {}
    model = args.model or facts.get("model")
    if not model:
        raise ConfigError("--model is not given, and the trunk does not name one. Give --model.")
    same = facts.get("model") == model.split(".")[0]
    kwargs = _model_kwargs(args, json.loads(facts.get("model_args", "{}")) if same else {})
    part = {"scope": args.scope, "blocks": args.blocks}
    vit, audit = attach(trunk, model=model, seed=args.seed, **part, **kwargs)
    out = Path(args.out)
    if out.is_file():
        raise HandoffError(f"--out is {args.out}, a file; give a folder (it may not exist yet).")
    exported = {"trunk_sha256": audit.trunk_sha256, "handoff": audit.summary(), "seed": args.seed}
    export_model(vit, out, facts={**exported, "tag": "handoff", "description": audit.summary()})
    write_text(out / "audit.json", json.dumps(audit.to_json(), indent=1) + "\n")
    return _show(audit, f'timm.create_model("local-dir:{out}", pretrained=True)', args)


def _load(name: str, *, allow_failed: bool) -> Trunk | None:
    """Loads the trunk, unless it learned nothing, as a training does."""
    from vitwarm.handoff import refuse_unlearned
    from vitwarm.trunk import load_trunk

    if name.lower() == "none":
        return None
    trunk = load_trunk(name)
    if not allow_failed:
        refuse_unlearned(trunk, name, "give --allow-failed")
    if name.startswith("hf-hub:"):  # a path in the cache would say nothing
        return replace(trunk, path=Path(name))
    return trunk


def _push(args: argparse.Namespace) -> int:
    from vitwarm.trunk import push

    pushed = push(args.trunks[1], args.trunks[2], private=args.private)
    print(f"pushed {args.trunks[1]} as {pushed}")
    return 0


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no JSON ({error}); write '{{\"depth\": 3}}'"
        ) from error


def _read_factor(text: str) -> float:
    try:
        if math.isfinite(factor := float(text)):
            return factor
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no finite number; write 0.4")


def _read_sides(text: str) -> int | tuple[int, ...]:
    """`224`, or `192x256`, the height first."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 224, or 192x256")
    numbers = tuple(map(int, text.split("x")))
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _model_kwargs(args: argparse.Namespace, warmed: dict[str, Any]) -> dict[str, Any]:
    """Returns --model-kwargs, else those that were warmed up, with what has an option of its own.

    Raises: ConfigError: --model-kwargs is no object, or says what an option or none says.
    """
    asked = {name: getattr(args, name) for name in ("num_classes", "img_size")}
    asked = {name: value for name, value in asked.items() if value is not None}
    given = args.model_kwargs
    if given is None:
        return warmed | asked
    if not isinstance(given, dict):
        raise ConfigError(
            f"--model-kwargs is {json.dumps(given)}; give an object: '{{\"depth\": 3}}'."
        )
    options = {"num_classes": "--num-classes", "img_size": "--img-size", "seed": "--seed"}
    reserved = {**NO_FRESH_MODEL, **{key: f"use {option}" for key, option in options.items()}}
    for key in given:
        if key in reserved:
            raise ConfigError(
                f"--model-kwargs has the key {key!r}, which has no place there: {reserved[key]}."
            )
    return given | asked


def _import(args: argparse.Namespace) -> int:
    from vitwarm.trunk import import_weights

    kwargs = _model_kwargs(args, {})
    made = import_weights(args.trunks[1], args.out, model=args.model, **kwargs)
    facts = {**made.trunk.facts, "content_sha256": made.trunk.sha256}
    print(json.dumps(facts) if args.json else f"{made.summary()}\nwrote {made.trunk.path}")
    return 0


def _make(args: argparse.Namespace) -> int:
    """Makes a trunk file of one or two trunks by an initialiser."""
    from vitwarm.inits import write_init

    word, first, *second = args.trunks
    how: dict[str, Any] = {name: getattr(args, name) for name in WAYS[word].own}
    if word == "graft":
        how |= {"a": first, "b": second[0]}
    else:
        how = {name: value for name, value in how.items() if value is not None}
        how |= {"trunk" if word == "mix" else "core": first}
    if word == "expand":
        how["model_kwargs"] = _model_kwargs(args, {})
    name = "mixed" if word == "mix" else word
    path = write_init(name, args.out, model=args.model or "", seed=args.seed, **how)
    return _show_made(path, args)


def _show_made(path: Path, args: argparse.Namespace) -> int:
    """Prints where every tensor of a trunk file comes from that was made of others."""
    from vitwarm.trunk import Audit, audit_tensors, load_trunk

    made = load_trunk(path)
    audit = Audit(
        model=made.metadata.get("model", "unnamed model"),
        entries=audit_tensors(made.tensors, json.loads(made.metadata["sources"]), "nowhere"),
        trunk=made.metadata["made_from"],
        trunk_sha256=made.sha256,
        metadata=made.metadata,
        notes=[made.metadata["note"]] if "note" in made.metadata else [],
    )
    return _show(audit, f"wrote {path}", args)


def _show(audit: Audit, last: str, args: argparse.Namespace) -> int:
    as_text = f"{audit.table()}\n\n{audit.summary()}\n{last}"
    print(json.dumps(audit.to_json()) if args.json else as_text)
    return 0
