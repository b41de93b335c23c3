"""A sweep on a cluster: sbatch arrays whose jobs each run one row of the plan.

Three arrays: warm-ups and initialisers, trainings that need neither, and trainings that wait for
the first array. `afterany` and not `afterok`: one failed warm-up must not hold back the arms of the
others; a row whose own warm-up failed says so and ends. Every job saves two minutes before its
limit (`--signal`), and puts itself back into the queue.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vitwarm.config import SweepConfig
from vitwarm.errors import ConfigError
from vitwarm.files import write_text
from vitwarm.sweep.rows import Plan, Row, save_plan

#: Options that the script sets by itself.
OWN_OPTIONS = ("array", "signal", "requeue", "output", "open-mode", "job-name", "dependency")

_SCRIPT = """\
#!/bin/bash
{options}
# Each job of this array runs the row whose key stands on its line of {keys}.
cd {cwd} || exit 1
key=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {keys})
late=
# The run saves on SIGTERM. Slurm sends USR1 to this shell alone, two minutes before the limit.
trap 'late=1; kill -TERM "$run" 2>/dev/null' USR1
srun {python} -m vitwarm.cli sweep --plan {plan} --row "$key" &
run=$!
wait "$run"
code=$?
while kill -0 "$run" 2>/dev/null; do
  wait "$run"  # the trap ended the first wait; the run is still saving
  code=$?
done
# 75: out of its own time limit, resumable.
if [ -n "$late" ] || [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclass(frozen=True)
class Submission:
    """The files of a sweep on a cluster."""

    submit: Path
    """The shell script that hands everything to sbatch."""
    scripts: list[Path]
    n_jobs: int


def write_slurm(plan: Plan, config: SweepConfig, rows: list[Row]) -> Submission:
    """Writes the arrays of a sweep into `<home>/slurm`, without submitting them.

    Args:
        rows: the plan's rows that have no result yet.
    Raises: ConfigError: an sbatch option that the sweep sets by itself.
    """
    for name in config.sbatch:
        if name.lstrip("-").replace("_", "-") in OWN_OPTIONS:
            raise ConfigError(
                f"sbatch has {name!r}, which the sweep sets by itself ({', '.join(OWN_OPTIONS)}). "
                "Leave it out; slots limits the jobs at a time."
            )
    folder = plan.home / "slurm"
    plan_file = save_plan(plan)
    first = [row for row in rows if row.kind == "warmup" or (row.kind == "init" and not row.needs)]
    made = [row for row in rows if row.kind == "init" and row.needs]
    alone = [row for row in rows if row.kind == "train" and not row.needs]
    after = [row for row in rows if row.kind == "train" and row.needs]
    lines = [
        "#!/bin/bash",
        "# Hands every array of the sweep to sbatch; run it on the login node.",
        "set -euo pipefail",
    ]
    scripts: list[Path] = []
    jobs: dict[str, list[str]] = {}
    for name, group, waits in (
        ("warmups", first, ()), ("inits", made, ("warmups",)), ("alone", alone, ()),
        ("trainings", after, ("warmups", "inits")),
    ):  # fmt: skip
        for place in range(0, len(group), config.array_limit):
            chunk = group[place : place + config.array_limit]
            stem = f"{name}-{place // config.array_limit}"
            script = _write_script(plan, config, plan_file, stem, chunk)
            scripts.append(script)
            variable = stem.replace("-", "_")
            earlier = [job for kind in waits for job in jobs.get(kind, [])]
            after_any = "".join(f":${{{job}}}" for job in earlier)
            depend = f"--dependency=afterany{after_any} " if earlier else ""
            lines.append(f"{variable}=$(sbatch --parsable {depend}{shlex.quote(str(script))})")
            lines.append(f'echo "{len(chunk)} jobs as ${{{variable}}}: {name}"')
            jobs.setdefault(name, []).append(variable)
    submit = folder / "submit.sh"
    write_text(submit, "\n".join(lines) + "\n")
    submit.chmod(0o755)
    return Submission(submit, scripts, len(rows))


def submit_slurm(submission: Submission) -> str:
    """Hands the arrays to sbatch and returns what it said.

    Raises: ConfigError: there is no sbatch here, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "executor is 'slurm', but there is no sbatch on this machine. The scripts are written: "
            f"run {submission.submit} on a login node, or use executor=local."
        )
    done = subprocess.run([str(submission.submit)], capture_output=True, text=True)
    if done.returncode != 0:
        raise ConfigError(
            f"sbatch refused ({done.stderr.strip()}). Mend `sbatch` in the sweep's recipe and "
            "start it again; jobs that were accepted already do nothing twice."
        )
    return done.stdout.strip()


def _write_script(
    plan: Plan, config: SweepConfig, plan_file: Path, stem: str, rows: list[Row]
) -> Path:
    listed = "".join(f"{row.key}\n" for row in rows)
    # Named by content: jobs that still wait in the queue keep reading the list they were made for.
    stem = f"{stem}-{hashlib.sha256(listed.encode()).hexdigest()[:8]}"
    folder = (plan.home / "slurm").resolve()
    keys = folder / f"{stem}.keys"
    write_text(keys, listed)
    (plan.home / "logs").mkdir(parents=True, exist_ok=True)
    throttle = f"%{config.slots}" if config.slots else ""
    options = {
        "job-name": f"{plan.name}-{stem}",
        "array": f"0-{len(rows) - 1}{throttle}",
        "signal": "B:USR1@120",
        "requeue": None,
        "open-mode": "append",
        "output": f"{(plan.home / 'logs').resolve()}/%x-%A_%a.out",
        "nodes": config.run.nodes,
        "ntasks-per-node": config.run.devices,
        **({} if config.run.device == "cpu" else {"gpus-per-node": config.run.devices}),
        **{name.lstrip("-").replace("_", "-"): value for name, value in config.sbatch.items()},
    }
    lines = [
        f"#SBATCH --{name}" + ("" if value is None else f"={value}")
        for name, value in options.items()
    ]
    script = folder / f"{stem}.sh"
    quoted = {
        "keys": shlex.quote(str(keys)), "cwd": shlex.quote(str(Path.cwd())),
        "python": shlex.quote(sys.executable), "plan": shlex.quote(str(plan_file.resolve())),
    }  # fmt: skip
    write_text(script, _SCRIPT.format(options="\n".join(lines), **quoted))
    script.chmod(0o755)
    return script
