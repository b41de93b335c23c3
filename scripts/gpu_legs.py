"""Spends some minutes of one GPU in order of worth.

    python scripts/gpu_legs.py --minutes 13 --out OUT --data PART...

    facts     versions, the card, `pytest -m gpu`
    speed     warm-up, image training and augmentation beside their yardsticks
    trunk     the 64-kind Dyck warm-up of ViT-T, kept in bf16
    row       CIFAR-100 at 32 px: default, dyck and mimetic, seed by seed, on 10 % of the images,
              then on all
    control   the warm-up on shuffled Dyck, and its arm of the row

Each leg is a process of its own and ends at its deadline; one that fails does not end the next.
All that is known lies in OUT at any moment, in at most 8 files of at most 16 MiB, 63 MiB together:
legs.jsonl, the records of all runs, the finished trunks, and the checkpoint of a warm-up that is
not finished (where it fits: that of `control` does not fit beside the finished trunk). The next
visit takes that folder as --state and goes on behind it; a leg that is finished is not run again.
`scripts/gpu_publish.py OUT` makes tables of it.

What --data takes: folders or .tgz files that `scripts/pack_cifar100.py` made. Where packages are
missing and nothing can be fetched, --wheels installs those of a folder first.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

# Nothing but the standard library: on a bare machine the package loads only after --wheels.

HOME = Path(__file__).resolve().parent.parent
#: Seconds of each leg in a visit of FULL_MINUTES; none: all that is left.
LEGS: dict[str, int | None] = {
    "facts": 45,
    "speed": 100,
    "trunk": 300,
    "row": None,
    "control": None,
}
FULL_MINUTES = 13
#: No leg gets fewer seconds: on a bare machine the imports alone can take half of them.
SHORTEST = 40.0
#: Seconds between the request to end and the end.
GRACE = 12
PART_BYTES = 15 << 20
#: How tars are unpacked; Python before 3.11.4 (Debian 12's) knows no filter.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
#: Of all that lies in OUT.
TOTAL_BYTES = 63 << 20
#: What is kept of a run; weights are not.
KEPT = {"config.yaml", "env.json", "record.json", "metrics.jsonl", "failure.json", "manifest.json"}
TRUNKS = ("vit_tiny_dyck64", "vit_tiny_shuffled64")


def main(argv: list[str] | None = None) -> int:
    """Runs the legs; 0 if each is finished, 75 if time ran out first, 1 if one failed."""
    args = parse(argv)
    began = time.monotonic()
    work = args.work or args.out.resolve().with_name(args.out.name + "-work")
    for folder in (args.out, work / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` packs
    if args.wheels:
        install(args.wheels)
    if args.state:
        unpack(args.state, work)
    fetch_data(args.data, work / "data")
    mirror = Mirror(work, args.out)
    end = began + 60 * args.minutes
    try:
        for leg in args.legs:
            if state_of(work, leg) == "finished":
                continue
            run_leg(leg, args, work, mirror, end)
    finally:
        mirror.pack()
    states = [state_of(work, leg) for leg in args.legs]
    print(" ".join(f"{leg}={state}" for leg, state in zip(args.legs, states, strict=True)))
    return 1 if "failed" in states else 0 if set(states) == {"finished"} else 75


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the words of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=13.0, help="of this visit, in all (13)")
    parser.add_argument("--out", type=Path, required=True, help="takes what is to be kept")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="parts of CIFAR-100")
    parser.add_argument("--state", type=Path, help="--out of an earlier visit")
    parser.add_argument("--work", type=Path, help="runs and caches (default: OUT-work beside OUT)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--legs", type=lambda text: text.split(","), default=list(LEGS),
                        metavar="LEG,...", help=f"some of {','.join(LEGS)}")  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="tiny models, two minutes of a CPU")
    args = parser.parse_args(argv)
    if unknown := [leg for leg in args.legs if leg not in LEGS]:
        parser.error(f"--legs names {unknown[0]!r}; there are {', '.join(LEGS)}.")
    if args.state and not args.state.is_dir():
        parser.error(f"--state is {args.state}, which is no folder; give --out of a visit before.")
    if missing := [part for part in args.data if not part.exists()]:
        parser.error(f"--data names {missing[0]}, which is not there; see pack_cifar100.py.")
    return args


def run_leg(leg: str, args: argparse.Namespace, work: Path, mirror: Mirror, end: float) -> None:
    """Runs one leg in a process group of its own until it ends or its deadline comes."""
    left = end - time.monotonic() - GRACE
    share = LEGS[leg]
    if share is not None and not args.rehearse:  # a rehearsal is small already, its machine slow
        left = min(left, max(SHORTEST, share * min(1.0, args.minutes / FULL_MINUTES)))
    if left < 1:
        note(work, leg, "unfinished", why="no time was left")
        return
    command = [sys.executable, str(HOME / "scripts" / "gpu_leg.py"), leg, "--work", str(work),
               "--seconds", str(left), *(["--rehearse"] if args.rehearse else [])]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH"))))
    cache = str(work.resolve() / "inductor")  # compiled once for all processes of all legs
    began = time.monotonic()
    with open(work / "logs" / f"{leg}.log", "ab") as log:
        child = subprocess.Popen(
            command, cwd=HOME, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": cache},
        )  # fmt: skip
        try:
            while child.poll() is None and time.monotonic() < began + left:
                time.sleep(0.2)
                mirror.pack_now_and_then()
            if child.poll() is None:
                child.terminate()
                child.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
    state = "finished" if code == 0 else "unfinished" if code in (75, -15, -9) else "failed"
    why = {} if code == 0 else {"exit_code": code, "log": tail(work / "logs" / f"{leg}.log")}
    note(work, leg, state, seconds=round(time.monotonic() - began, 1), **why)
    mirror.pack()


def note(work: Path, leg: str, state: str, **facts: object) -> None:
    """Appends what became of a leg to legs.jsonl."""
    with open(work / "legs.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"leg": leg, "state": state, **facts}) + "\n")


def read_lines(work: Path) -> list[dict[str, object]]:
    """Returns the lines of legs.jsonl; one that a kill cut short is left out."""
    lines = []
    path = work / "legs.jsonl"
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def state_of(work: Path, leg: str) -> str:
    """Returns `finished`, `unfinished`, `failed` (the last that is noted) or `not begun`."""
    states = [str(x["state"]) for x in read_lines(work) if x.get("leg") == leg and "state" in x]
    return states[-1] if states else "not begun"


def tail(path: Path) -> str:
    """Returns the end of a log."""
    return path.read_text(encoding="utf-8", errors="replace")[-1500:]


def install(wheels: Path) -> None:
    """Installs every wheel of a folder; nothing is fetched and nothing else is changed."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"--wheels is {wheels}, which holds no .whl file.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, *files], check=True)


def fetch_data(parts: list[Path], data: Path) -> None:
    """Puts the parts of the data set below one folder, outside the tree that they came in."""
    data.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if part.is_file():
            with tarfile.open(part) as tar:
                tar.extractall(data, **SAFELY)
        else:
            shutil.copytree(part, data, dirs_exist_ok=True)


class Mirror:
    """Keeps in OUT, in few files that are whole at any moment, what the next visit needs."""

    def __init__(self, work: Path, out: Path) -> None:
        self.work = work
        self.out = out
        self.last = time.monotonic()
        self.packed: Path | None = out  # no checkpoint's path: the first time nothing is known

    def pack_now_and_then(self) -> None:
        """Packs if the last time was some seconds ago."""
        if time.monotonic() - self.last > 3:
            self.pack()

    def pack(self) -> None:
        """Brings OUT up to date: what is small or finished first, a checkpoint if there is room."""
        found = sorted(self.work.glob("runs/vit_tiny_*/checkpoints/step*.pt"))
        found = [path for path in found if not (path.parent.parent / "record.json").is_file()]
        newest = found[-1] if found else None
        if (self.work / "legs.jsonl").is_file():
            self._put("legs.jsonl", (self.work / "legs.jsonl").read_bytes())
        runs = self.work / "runs"
        small = [path for path in sorted(runs.rglob("*")) if path.name in KEPT and path.is_file()]
        small += sorted((self.work / "logs").glob("*.log"))
        self._put("records.tgz", to_tar(small, self.work))
        for name in TRUNKS:
            trunk = self.work / "trunks" / f"{name}.safetensors"
            # That of an unfinished warm-up lies in its checkpoint, and there is no room for both.
            if trunk.is_file() and not (newest and name in str(newest.relative_to(self.work))):
                self._put(trunk.name, trunk.read_bytes())
        if newest != self.packed:
            self._put_checkpoint(newest)
        self.last = time.monotonic()

    def _put_checkpoint(self, newest: Path | None) -> None:
        """Replaces the checkpoint in OUT by this one, cut into parts; none: takes it away."""
        for old in self.out.glob("checkpoint-*.part"):
            old.unlink()
        content = to_tar([newest], self.work) if newest else b""
        room = TOTAL_BYTES - sum(path.stat().st_size for path in self.out.iterdir())
        if len(content) > room:
            print(f"{newest} is left out: {len(content):,} bytes, and there is room for {room:,}.")
        else:
            digest = hashlib.sha256(content).hexdigest()[:16]
            pieces = [content[k : k + PART_BYTES] for k in range(0, len(content), PART_BYTES)]
            for number, piece in enumerate(pieces):
                self._put(f"checkpoint-{digest}-{number}.part", piece)
        self.packed = newest

    def _put(self, name: str, content: bytes) -> None:
        path = self.out / name
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
        beside = self.out / f".{name}.new"
        beside.write_bytes(content)
        os.replace(beside, path)


def to_tar(paths: list[Path], home: Path) -> bytes:
    """Returns a compressed tar of files, named from `home`, without those that have vanished."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for path in paths:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            info = tarfile.TarInfo(str(path.relative_to(home)))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def unpack(state: Path, work: Path) -> None:
    """Takes over what a visit left; a checkpoint that is not whole is left out."""
    if (state / "legs.jsonl").is_file() and not (work / "legs.jsonl").exists():
        shutil.copyfile(state / "legs.jsonl", work / "legs.jsonl")
    if (state / "records.tgz").is_file():
        with tarfile.open(state / "records.tgz") as tar:
            tar.extractall(work, **SAFELY)
    (work / "trunks").mkdir(exist_ok=True)
    for name in TRUNKS:
        if (state / f"{name}.safetensors").is_file():
            shutil.copyfile(state / f"{name}.safetensors", work / "trunks" / f"{name}.safetensors")
    parts = sorted(state.glob("checkpoint-*.part"), key=lambda p: int(p.stem.split("-")[2]))
    if parts:
        content = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(content).hexdigest()[:16] == parts[0].name.split("-")[1]:
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                tar.extractall(work, **SAFELY)


if __name__ == "__main__":
    sys.exit(main())
