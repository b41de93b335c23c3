"""Give a warmed trunk a fresh patch embedding, or assemble a trunk from two.

    vitwarm handoff runs/dyck-1a2b3c4d --model vit_tiny_patch16_224 --out DIR
    vitwarm handoff RUN --scope attention --blocks=-4: --out DIR
    vitwarm handoff graft RUN_A RUN_B --attention-of A --out grafted.safetensors
    vitwarm handoff graft RUN_A RUN_B --first-blocks 6 --out grafted.safetensors

A hand-off prints where every tensor comes from and writes a folder that
timm.create_model("local-dir:DIR", pretrained=True) loads, with audit.json beside the weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vitwarm.errors import ConfigError, HandoffError
from vitwarm.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments; the first word may be `graft`."""
    parser.add_argument(
        "trunks",
        nargs="+",
        metavar="TRUNK",
        help="run folder, trunk file or shipped name; `none`: the default arm; or `graft A B`",
    )
    parser.add_argument("--out", required=True, help="export folder; for a graft, the trunk file")
    parser.add_argument("--model", help="timm model name; default: the one that was warmed up")
    parser.add_argument(
        "--model-kwargs",
        type=json.loads,
        metavar="JSON",
        help="for timm.create_model; default: as it was warmed up",
    )
    parser.add_argument("--num-classes", type=int, help="default: the model's own")
    parser.add_argument("--img-size", type=int, help="pixels; default: as in --model-kwargs")
    parser.add_argument("--scope", default="all", choices=["all", "attention", "mlp"])
    parser.add_argument("--blocks", help="-4: or 0,1,2; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of what is fresh (default 0)")
    parser.add_argument("--attention-of", choices=["A", "B"], help="graft: MLPs of the other")
    parser.add_argument("--first-blocks", type=int, metavar="N", help="graft: N of A, rest of B")
    parser.add_argument("--json", action="store_true", help="print the audit as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the hand-off or the graft that the arguments describe."""
    if args.trunks[0] == "graft":
        return _graft(args)
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
    from vitwarm.trunk import load_trunk

    trunk = None if args.trunks[0].lower() == "none" else load_trunk(args.trunks[0])
    facts = trunk.metadata if trunk else {}
    model = args.model or facts.get("model")
    if not model:
        raise ConfigError("--model is not given, and the trunk does not name one. Give --model.")
    vit, audit = attach(
        trunk,
        model=model,
        scope=args.scope,
        blocks=args.blocks,
        seed=args.seed,
        **_model_kwargs(args, model, facts),
    )
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


def _model_kwargs(args: argparse.Namespace, model: str, facts: dict[str, str]) -> dict[str, Any]:
    """The warmed model's own arguments where it is the same model, then what was asked for."""
    kwargs: dict[str, Any] = {}
    if args.model_kwargs is not None:
        kwargs = dict(args.model_kwargs)
    elif facts.get("model") == model.split(".")[0] and "model_args" in facts:
        kwargs = json.loads(facts["model_args"])
    if args.num_classes is not None:
        kwargs["num_classes"] = args.num_classes
    if args.img_size is not None:
        kwargs["img_size"] = args.img_size
    return kwargs


def _graft(args: argparse.Namespace) -> int:
    if len(args.trunks) != 3:
        raise ConfigError(
            f"graft takes two trunks, not {len(args.trunks) - 1}: vitwarm handoff graft A B "
            "--attention-of A --out FILE."
        )
    unused = [
        flag
        for flag, given in (
            ("--model", args.model is not None),
            ("--model-kwargs", args.model_kwargs is not None),
            ("--num-classes", args.num_classes is not None),
            ("--img-size", args.img_size is not None),
            ("--scope", args.scope != "all"),
            ("--blocks", args.blocks is not None),
            ("--seed", args.seed != 0),
        )
        if given
    ]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)} has no effect on a graft, which only assembles a trunk file. "
            "Leave it out, and give it to the hand-off of that file."
        )
    from vitwarm.inits import write_init
    from vitwarm.trunk import Audit, audit_tensors, load_trunk

    first, second = args.trunks[1:]
    path = write_init(
        "graft",
        args.out,
        model="",
        seed=0,
        a=first,
        b=second,
        attention_of=args.attention_of,
        first_blocks=args.first_blocks,
    )
    made = load_trunk(path)
    audit = Audit(
        model=made.metadata.get("model", "unnamed model"),
        entries=audit_tensors(made.tensors, json.loads(made.metadata["sources"]), "nowhere"),
        trunk=made.metadata["made_from"],
        trunk_sha256=made.sha256,
        metadata=made.metadata,
    )
    print(json.dumps(audit.to_json()) if args.json else f"{audit.table()}\n\n{audit.summary()}")
    if not args.json:
        print(f"wrote {path}")
    return 0
