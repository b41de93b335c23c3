"""A sweep on a cluster: sbatch arrays whose jobs each run one row of the plan.

Three arrays: warm-ups and initialisers, trainings that need neither, and trainings that wait for
the first array. `afterany` and not `afterok`: one failed warm-up must not hold back the arms of the
others; a row whose own warm-up failed says so and ends. A job saves some time before its limit
(`--signal`) or when it is preempted, and puts itself back into the queue.

A script of our own and not submitit: arrays wait for arrays, a text file lists an array's rows, and
the job's exit code (75: out of time, resumable) decides whether it queues again. submitit requeues
by pickling a callable, and a run behind srun cannot save there either (submitit#1615).
"""

from __future__ import annotations

import hashlib
import re
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
from vitwarm.units import count_of

#: Options that the script sets by itself.
OWN_OPTIONS = ("array", "requeue", "output", "open-mode", "job-name", "dependency")

#: So long before its limit a job is told to save, or a quarter of the limit before where that is
#: less: what remains must hold the imports, and work.
LEAD_SECONDS = 120

#: A job that was put back so often and whose run noted no start ends: the run's own count (see
#: `vitwarm.loop.start.refuse_standstill`) begins after the imports.
MOST_STARTS = 3

#: In `<home>/slurm`: a line for every array that was ever submitted, its job id and the stem of its
#: script and list of keys. `vitwarm sweep --status` finds a row's job by it.
JOBS_FILE = "jobs.txt"

#: What was tried on SLURM 22.05 stands behind every line. srun answers SIGTERM by killing its step
#: at once, so the run is signalled through scancel. One task of an array has the array's own number
#: as its SLURM_JOB_ID, and to requeue that number is to requeue every task. A job that is cancelled
#: or requeued by others is no longer RUNNING here, and to requeue it would bring it back. Without
#: kill-on-bad-exit one process that is refused leaves the others waiting for it.
_SCRIPT = r"""#!/bin/bash
{options}
# The run saves on SIGTERM. Slurm sends USR1 to this shell alone, some time before the limit.
trap 'scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1
# When the job is ended from outside, the run has the signal already and this shell waits for it.
trap : TERM
# Each job of this array runs the row whose key stands on its line of {keys}.
cd {cwd} || exit 1
key=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {keys})
job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
state={rows}/$key.json
# Notes what became of the row, where its run cannot do so itself.
note() {{
  folder=$(sed -n 's/.*"folder": \("[^"]*"\).*/\1/p' "$state" 2>/dev/null)
  echo "$2" >&2
  printf '{{"state": "%s", "reason": "%s", "folder": %s, "time": %d, "job": "%s"}}\n' \
    "$1" "$2" "${{folder:-null}}" "$(date +%s)" "$job" > "$state.new"
  mv "$state.new" "$state"
}}
folder=$(sed -n 's/.*"folder": "\([^"]*\)".*/\1/p' "$state" 2>/dev/null)
starts={home}/$folder/starts.json
n=${{SLURM_RESTART_COUNT:-0}}
if [ "$n" -ge {most} ] && ! grep -qs "\"$SLURM_ARRAY_JOB_ID\"" "$starts"; then
  note failed "This SLURM job was put back into the queue $n times and its run has not begun. \
Raise its time limit (sbatch.time); see {logs}"
  exit 1
fi
# What an earlier start noted is not how this one ends.
sed -i 's/"state": "\(unfinished\|failed\|refused\)"/"state": "running"/' "$state" 2>/dev/null
# Since 22.05 srun does not take over cpus-per-task by itself.
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 {python} -m vitwarm.cli sweep --plan {plan} --row "$key" &
run=$!
wait "$run"
while kill -0 "$run" 2>/dev/null; do
  wait "$run"  # a trap ended the first wait; the run is still saving
done
wait "$run"  # once more: bash remembers how the run ended, also where it ended during the trap
code=$?
[ "$code" -ne 0 ] || exit 0
told() {{ grep -qsE "\"state\": \"($1)\".*\"job\": \"$job\"" "$state"; }}
# A signal that came after the result takes nothing back. slurmctld sends what a dead node missed
# once more (72 s later, 22.05): it reaches the same step of the job's next start.
! told finished || exit 0
now=$(squeue --noheader --jobs="$job" --format="%T %r")
why="exit code $code"
[ "$code" -le 128 ] || why="SIG$(kill -l "$code")"
[ "$code" -ne 137 ] || why="$why (out of memory?)"
if told "failed|refused"; then
  :  # its run has said why
# 143: stopped by SIGTERM (the limit, a preemption); 75: stopped, and to be gone on with. 137: one
# of several processes was killed, if only by srun as it was slower to leave than the others.
elif [ "$code" -eq 143 ] || [ "$code" -eq 75 ] || [ "$code:{several}" = 137:1 ]; then
  case $now in
    RUNNING* | *TimeLimit)
      [ "$code" -ne 137 ] || told unfinished || note unfinished "a process was ended by $why"
      scontrol requeue "$job"
      ;;
  esac
elif [[ $now == RUNNING* ]]; then
  note failed "the run was ended by $why; see {logs}"
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
    for name, value in config.sbatch.items():
        if name.lstrip("-").replace("_", "-") in OWN_OPTIONS:
            raise ConfigError(
                f"sbatch has {name!r}, which the sweep sets by itself ({', '.join(OWN_OPTIONS)}). "
                "Leave it out; slots limits the jobs at a time."
            )
        if name.lstrip("-") == "signal" and not re.fullmatch(r"B:USR1@\d+", str(value)):
            raise ConfigError(
                f"sbatch.signal is {value!r}; the job's script listens for B:USR1@SECONDS. Give "
                "that, or leave it out: two minutes, or a quarter of sbatch.time."
            )
    folder = plan.home / "slurm"
    plan_file = save_plan(plan)
    groups: dict[str, list[Row]] = {"warmups": [], "inits": [], "alone": [], "trainings": []}
    for row in rows:
        alone, needy = ("alone", "trainings") if row.kind == "train" else ("warmups", "inits")
        groups[needy if row.needs else alone].append(row)
    waits = {"inits": ("warmups",), "trainings": ("warmups", "inits")}
    lines = [
        "#!/bin/bash",
        "# Hands every array of the sweep to sbatch; run it on the login node.",
        "set -euo pipefail",
    ]
    scripts: list[Path] = []
    jobs: dict[str, list[str]] = {}
    jobs_file = shlex.quote(str((folder / JOBS_FILE).resolve()))
    for name, group in groups.items():
        for place in range(0, len(group), config.array_limit):
            chunk = group[place : place + config.array_limit]
            stem = f"{name}-{place // config.array_limit}"
            script = _write_script(plan, config, plan_file, stem, chunk)
            scripts.append(script)
            variable = stem.replace("-", "_")
            earlier = [job for kind in waits.get(name, ()) for job in jobs.get(kind, [])]
            after_any = "".join(f":${{{job}}}" for job in earlier)
            depend = f"--dependency=afterany{after_any} " if earlier else ""
            lines.append(f"{variable}=$(sbatch --parsable {depend}{shlex.quote(str(script))})")
            lines.append(f'echo "{count_of(len(chunk), "job")} as ${{{variable}}}: {name}"')
            lines.append(f'echo "${{{variable}}} {script.stem}" >> {jobs_file}')
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
            f"sbatch refused ({done.stderr.strip()}). Fix `sbatch` in the sweep's recipe and "
            "start it again; jobs that were accepted already do nothing twice."
        )
    return done.stdout.strip()


def find_lead(limit: object) -> int:
    """Returns how many seconds before its limit a job is told to save.

    Args:
        limit: in one of sbatch's forms: 90, 90:00, 1:30:00, 2-12, 2-12:30; others: not known.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(limit))
    if not found:
        return LEAD_SECONDS
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    from_hours = days is not None or len(numbers) == 3
    units = (3600, 60, 1) if from_hours else (60, 1)
    seconds = int(days or 0) * 86_400 + sum(map(int.__mul__, numbers, units))
    return max(1, min(LEAD_SECONDS, seconds // 4)) if seconds else LEAD_SECONDS


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
    (plan.home / "rows").mkdir(exist_ok=True)
    throttle = f"%{config.slots}" if config.slots else ""
    given = {name.lstrip("-").replace("_", "-"): value for name, value in config.sbatch.items()}
    options = {
        "job-name": f"{plan.name}-{stem}",
        "array": f"0-{len(rows) - 1}{throttle}",
        "signal": f"B:USR1@{find_lead(given.get('time'))}",
        "requeue": None,
        "open-mode": "append",
        "output": f"{(plan.home / 'logs').resolve()}/%x-%A_%a.out",
        "nodes": config.run.nodes,
        "ntasks-per-node": config.run.devices,
        **({} if config.run.device == "cpu" else {"gpus-per-node": config.run.devices}),
        **given,
    }
    lines = [
        f"#SBATCH --{name}" + ("" if value is None or value is True else f"={_quoted(value)}")
        for name, value in options.items()
        if value is not False
    ]
    script = folder / f"{stem}.sh"
    home = plan.home.resolve()
    paths = {
        "keys": keys, "cwd": Path.cwd(), "python": sys.executable, "plan": plan_file.resolve(),
        "home": home, "rows": home / "rows",
    }  # fmt: skip
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    several = int(config.run.nodes * config.run.devices > 1)
    text = _SCRIPT.format(
        options="\n".join(lines), logs=home / "logs", most=MOST_STARTS, several=several, **quoted
    )
    write_text(script, text)
    script.chmod(0o755)
    return script


def _quoted(value: object) -> str:
    """A value in a line of #SBATCH, where blanks end it and quotes keep them."""
    text = str(value)
    return f'"{text}"' if re.search(r"\s", text) and '"' not in text else text
