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
import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitwarm.config import NO_FRESH_MODEL
from vitwarm.errors import ConfigError, HandoffError
from vitwarm.files import write_text

if TYPE_CHECKING:
    from vitwarm.trunk import Trunk

#: What one kind of trunk file alone takes, and an example of it.
_ONLY = {
    "expand": (("depth", "width", "scale", "vectors", "order"), "CORE --model NAME --out FILE"),
    "mix": (("warmed", "fresh", "norms"), "RUN --warmed 0.4 --fresh 0.1 --out FILE"),
}


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
    add("--num-classes", type=int, help="default: the model's own")
    add("--img-size", type=_read_sides, help=f"pixels, 224 or 192x256; {warmed}")
    add("--scope", default="all", choices=["all", "blocks", "attention", "mlp"])
    add("--blocks", help="-4: or 0,1,2; default: all")
    add("--seed", type=int, default=0, help="of the fresh tensors (default 0)")
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
    add("--warmed", type=float, help="mix: factor of the trunk (default 1)")
    add("--fresh", type=float, help="mix: factor of a start by timm, of --seed (default 0)")
    add("--norms", choices=["kept", "timm"], help="mix: timm gives matrices the size of timm's")
    add("--private", action="store_true", help="push: a new repository is private")
    add("--json", action="store_true", help="print the audit as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the hand-off, the graft or the push that the arguments describe."""
    if args.trunks[0] == "push":
        return _push(args)
    if args.private:
        raise ConfigError("--private has no effect here; it belongs to vitwarm handoff push.")
    if not args.out:
        raise ConfigError(
            "--out is not given; name the folder (the file of graft, expand, mix, import) to write."
        )
    for word, (names, example) in _ONLY.items():
        given = [f"--{name}" for name in names if getattr(args, name) is not None]
        if given and args.trunks[0] != word:
            raise ConfigError(
                f"{', '.join(given)} has no effect here; write {word} before the trunk: vitwarm "
                f"handoff {word} {example}."
            )
    makers = {"expand": _expand, "graft": _graft, "import": _import, "mix": _mix}
    if args.trunks[0] in makers:
        return makers[args.trunks[0]](args)
    if len(args.trunks) != 1:
        raise ConfigError(
            f"handoff takes one trunk, not {len(args.trunks)} ({', '.join(args.trunks)}). "
            "To assemble one from two: vitwarm handoff graft A B --attention-of A --out FILE."
        )
    if args.attention_of or args.first_blocks:
        raise ConfigError(
            "--attention-of and --first-blocks assemble a trunk from two; write graft before them: "
            "vitwarm handoff graft A B --attention-of A --out FILE."
        )
    from vitwarm.handoff import attach, export_model

    trunk = _load(args.trunks[0], allow_failed=args.allow_failed)
    facts = trunk.metadata if trunk else {}
    model = args.model or facts.get("model")
    if not model:
        raise ConfigError("--model is not given, and the trunk does not name one. Give --model.")
    kwargs = _model_kwargs(args, model, facts)
    part = {"scope": args.scope, "blocks": args.blocks}
    vit, audit = attach(trunk, model=model, seed=args.seed, **part, **kwargs)
    out = Path(args.out)
    if out.is_file():
        raise HandoffError(f"--out is {args.out}, a file; give a folder (it may not exist yet).")
    exported = {"trunk_sha256": audit.trunk_sha256, "handoff": audit.summary(), "seed": args.seed}
    export_model(vit, out, facts={**exported, "tag": "handoff", "description": audit.summary()})
    write_text(out / "audit.json", json.dumps(audit.to_json(), indent=1) + "\n")
    print(json.dumps(audit.to_json()) if args.json else f"{audit.table()}\n\n{audit.summary()}")
    if not args.json:
        print(f'timm.create_model("local-dir:{out}", pretrained=True)')
    return 0


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
        return dataclasses.replace(trunk, path=Path(name))
    return trunk


def _push(args: argparse.Namespace) -> int:
    if len(args.trunks) != 3:
        raise ConfigError(
            "push takes a trunk or a run, and a name: vitwarm handoff push RUN hf-hub:OWNER/NAME."
        )
    if args.out:
        raise ConfigError("--out has no effect on a push, which writes nothing here.")
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


def _read_sides(text: str) -> int | tuple[int, ...]:
    """`224`, or `192x256`, the height first."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 224, or 192x256")
    numbers = tuple(map(int, text.split("x")))
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _model_kwargs(args: argparse.Namespace, model: str, facts: dict[str, str]) -> dict[str, Any]:
    """The warmed model's own arguments where it is the same model, then what was asked for."""
    kwargs: dict[str, Any] = {}
    if args.model_kwargs is not None:
        kwargs = _checked(args.model_kwargs)
    elif facts.get("model") == model.split(".")[0] and "model_args" in facts:
        kwargs = json.loads(facts["model_args"])
    return kwargs | _asked(args)


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the model that are options of their own."""
    asked = {name: getattr(args, name) for name in ("num_classes", "img_size")}
    return {name: value for name, value in asked.items() if value is not None}


def _checked(model_kwargs: Any) -> dict[str, Any]:
    """Returns --model-kwargs, unless an option or none says what it says."""
    if not isinstance(model_kwargs, dict):
        raise ConfigError(
            f"--model-kwargs is {json.dumps(model_kwargs)}; give an object: '{{\"depth\": 3}}'."
        )
    options = {"num_classes": "--num-classes", "img_size": "--img-size", "seed": "--seed"}
    reserved = {**NO_FRESH_MODEL, **{key: f"use {option}" for key, option in options.items()}}
    for key in model_kwargs:
        if key in reserved:
            raise ConfigError(
                f"--model-kwargs has the key {key!r}, which has no place there: {reserved[key]}."
            )
    return model_kwargs


def _refuse_unused(args: argparse.Namespace, what: str, *more: str, but: str = "") -> None:
    """Refuses options of a hand-off on what only makes a trunk file."""
    plain = {"scope": "all", "seed": 0, "allow_failed": False}
    names = ["num_classes", "scope", "blocks", "seed", "allow_failed", *more]
    unused = [
        f"--{name.replace('_', '-')}"
        for name in names
        if name != but and getattr(args, name) != plain.get(name)
    ]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)} has no effect on {what}, which only makes a trunk file. "
            "Leave it out, and give it to the hand-off of that file."
        )


def _import(args: argparse.Namespace) -> int:
    if len(args.trunks) != 2:
        raise ConfigError("import takes one file: vitwarm handoff import FILE --out FILE.")
    _refuse_unused(args, "an import", "attention_of", "first_blocks")
    from vitwarm.trunk import import_weights

    kwargs = _checked(args.model_kwargs or {}) | _asked(args)
    made = import_weights(args.trunks[1], args.out, model=args.model, **kwargs)
    facts = {**made.trunk.facts, "content_sha256": made.trunk.sha256}
    print(json.dumps(facts) if args.json else f"{made.summary()}\nwrote {made.trunk.path}")
    return 0


def _graft(args: argparse.Namespace) -> int:
    if len(args.trunks) != 3:
        raise ConfigError(
            f"graft takes two trunks, not {len(args.trunks) - 1}: vitwarm handoff graft A B "
            "--attention-of A --out FILE."
        )
    _refuse_unused(args, "a graft", "model", "model_kwargs", "img_size")
    from vitwarm.inits import write_init

    parts = {"a": args.trunks[1], "b": args.trunks[2], "attention_of": args.attention_of}
    parts["first_blocks"] = args.first_blocks
    return _show_made(write_init("graft", args.out, model="", seed=0, **parts), args)


def _expand(args: argparse.Namespace) -> int:
    if len(args.trunks) != 2 or not args.model:
        raise ConfigError(
            "expand takes a trunk and the model that it becomes: vitwarm handoff expand CORE "
            "--model vit_base_patch16_224 --out FILE."
        )
    _refuse_unused(args, "an expansion", "attention_of", "first_blocks")
    from vitwarm.inits import write_init

    how = _given(args, "expand")
    kwargs = _checked(args.model_kwargs or {}) | _asked(args)
    how |= {"model_kwargs": kwargs, "core": args.trunks[1]}
    return _show_made(write_init("expand", args.out, model=args.model, seed=0, **how), args)


def _mix(args: argparse.Namespace) -> int:
    if len(args.trunks) != 2:
        raise ConfigError(f"mix takes one trunk: vitwarm handoff mix {_ONLY['mix'][1]}.")
    theirs = ("model", "model_kwargs", "img_size", "attention_of", "first_blocks")
    _refuse_unused(args, "a mix", *theirs, but="seed")
    from vitwarm.inits import write_init
    from vitwarm.trunk import load_trunk

    facts = load_trunk(args.trunks[1]).facts
    if "model" not in facts:
        raise HandoffError(
            f"{args.trunks[1]} does not name its model, so there is no fresh start of it to mix "
            "in. Give the trunk of a warm-up or of an import."
        )
    how = {**_given(args, "mix"), "model_kwargs": facts.get("model_args")}
    how |= {"model": facts["model"], "trunk": args.trunks[1]}
    return _show_made(write_init("mixed", args.out, seed=args.seed, **how), args)


def _given(args: argparse.Namespace, word: str) -> dict[str, Any]:
    return {name: given for name in _ONLY[word][0] if (given := getattr(args, name)) is not None}


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
    print(json.dumps(audit.to_json()) if args.json else f"{audit.table()}\n\n{audit.summary()}")
    if not args.json:
        print(f"wrote {path}")
    return 0
