"""The Python half of `launch/slurm.sbatch`: one srun for the stage, and the job back into the queue when it was interrupted.

Runs once, on the job's first node, as its batch step.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lape_ds.distributed.launchers import slurm
from lape_ds.distributed.launchers.job import COMMAND_LINE, TRAINING, free_port
from lape_ds.distributed.launchers.options import SLURM_OPTIONS, CommandLine, read_command_line
from lape_ds.distributed.launchers.running import stopping_on_signals
from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError, tell_error
from lape_ds.languages import find_language
from lape_ds.recipe import Recipe, load_matrix, load_recipe

SCRIPT = "launch/slurm.sbatch"
STAGES = ("train", "corpus", "identify", "export", "eval", "summary", "matrix")
_OF_RANKS = ("train", "identify", "eval")
_GOING_ON = (
    "train",
    "corpus",
    "identify",
    "eval",
    "matrix",
)  # where they were interrupted; the others begin anew
# Every task of the step ends so long after the first one has ended; a rank waiting for a dead one would hold the nodes.
_SECONDS_AFTER_FIRST = 45


def run_batch(arguments: Sequence[str]) -> int:
    """Runs `[--stage STAGE] [--languages A,B] RECIPE [key=value …]` in this job.

    Returns:
        The step's exit code.

    Raises:
        UserError: A bad command line, recipe or array; or the time limit is too short to get anywhere.
    """
    command = read_command_line(
        arguments, script=SCRIPT, allowed=SLURM_OPTIONS, passed_on=_takes_options(arguments)
    )
    stage = command.options.get("stage", "train")
    if stage not in STAGES:
        raise UserError(f"--stage must be one of {', '.join(STAGES)}, not {stage!r}")
    if stage == "matrix":
        command, recipe = _with_number(command)
    else:
        command = _with_part(command) if stage == "identify" else _with_language(command)
        recipe = load_recipe(command.recipe, command.overrides)
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(f"this is no Slurm job: submit it, `sbatch {SCRIPT} RECIPE`")
    before = kept_work(recipe)
    step = subprocess.Popen(srun_command(stage, command, recipe))
    with stopping_on_signals(lambda: None) as came:
        passed_on = 0
        while (code := _wait(step)) is None:
            for number in came[passed_on:]:
                step.send_signal(number)
            passed_on = len(came)
    # Told while it starts, or in a stage other than training, it dies of the signal; what it had finished stays.
    interrupted = code in (STOPPED, 128 + signal.SIGUSR1, 128 + signal.SIGTERM)
    return _requeue(stage, recipe, before) if interrupted else code


def _takes_options(arguments: Sequence[str]) -> bool:
    """Whether the stage has options of its own, which stand behind the recipe: of a matrix `--retry`."""
    command = read_command_line(arguments, script=SCRIPT, allowed=SLURM_OPTIONS, passed_on=True)
    return command.options.get("stage") == "matrix"


def _wait(step: subprocess.Popen[bytes]) -> int | None:
    try:
        return step.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return None


def srun_command(stage: str, command: CommandLine, recipe: Recipe) -> list[str]:
    """The job's one step: a rank per task, or the one process of a stage that has no ranks, on the first node."""
    rest = [command.recipe, *command.overrides]
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")  # srun no longer takes it from sbatch (Slurm 22.05)
    if stage not in _OF_RANKS or (stage == "eval" and recipe.eval.backend == "vllm"):
        words = (
            ["matrix", "run"] if stage == "matrix" else [stage]
        )  # which itself starts ranks on this node's GPUs
        cpus = cpus or os.environ.get("SLURM_CPUS_ON_NODE")  # else srun gives a task one
        shared = [] if cpus is None else [f"--cpus-per-task={cpus}"]
        return ["srun", "--nodes=1", "--ntasks=1", *shared, sys.executable, "-m", COMMAND_LINE, *words, *rest]
    shared = [] if cpus is None else [f"--cpus-per-task={cpus}"]
    num_nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    per_node = _ranks_per_node(recipe, num_nodes)
    options = [
        f"--nodes={num_nodes}",
        f"--ntasks={num_nodes * per_node}",
        f"--ntasks-per-node={per_node}",
        "--kill-on-bad-exit=0",  # ranks that were told to stop leave with a code of their own, one after the other
        f"--wait={_SECONDS_AFTER_FIRST}",
    ]
    python = [sys.executable, "-u", "-m"]
    if stage != "train":
        # A single task is no rank, and would start ranks of its own.
        alone = ["launch.num_ranks=1"] if num_nodes * per_node == 1 else []
        command_line = ["env", f"MASTER_PORT={free_port()}", *python, COMMAND_LINE, stage, *rest, *alone]
        return ["srun", *options, *shared, *command_line]
    return ["srun", *options, *shared, *python, TRAINING, f"--master_port={free_port()}", *rest]


def _ranks_per_node(recipe: Recipe, num_nodes: int) -> int:
    """What sbatch was told; else one per GPU, at most `launch.num_ranks`; without GPUs that, or one."""
    told = os.environ.get("SLURM_NTASKS_PER_NODE")
    if told:
        return int(re.match(r"\d+", told)[0])  # type: ignore[index]
    if tasks := int(os.environ.get("SLURM_NTASKS", "0")):
        if tasks % num_nodes:
            raise UserError(
                f"--ntasks={tasks} does not give each of {num_nodes} nodes as many ranks: submit it with --ntasks-per-node=N"
            )
        return tasks // num_nodes
    asked, gpus = recipe.launch.num_ranks, int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
    ranks = min(asked or gpus, gpus) if gpus else asked or 1
    cpus = int(os.environ.get("SLURM_CPUS_ON_NODE", ranks))
    if cpus < ranks:  # srun would refuse it in words of its own
        raise UserError(
            f"the job has {cpus} CPUs on a node for {ranks} ranks: submit it with --ntasks-per-node={ranks} (and "
            "--cpus-per-task=N), or with --exclusive"
        )
    return ranks


def _with_language(command: CommandLine) -> CommandLine:
    """In a job array: the target that belongs to this task, in a run folder of its own."""
    number, named = os.environ.get("SLURM_ARRAY_TASK_ID"), command.options.get("languages")
    if number is None:
        if named is not None:
            raise UserError(
                f"--languages is for a job array: sbatch --array=0-N {SCRIPT} --languages {named} …"
            )
        return command
    if named is None:
        raise UserError(
            f"each task of a job array must train something else: sbatch --array=0-2 {SCRIPT} --languages mt,cy,is RECIPE"
        )
    languages = [find_language(text.strip()).code for text in named.split(",")]
    if int(number) >= len(languages):
        raise UserError(
            f"array task {number} has no language: --languages names {len(languages)}, counted from 0"
        )
    target = languages[int(number)]
    own = [f"languages.target={target}"]
    recipe = load_recipe(command.recipe, [*command.overrides, *own])
    own.append(f"train.run_name={recipe.run_dir.relative_to(recipe.output_dir / 'train')}-{target}")
    return replace(command, overrides=[*command.overrides, *own])


def _with_number(command: CommandLine) -> tuple[CommandLine, Recipe]:
    """In a job array: the language of a model that belongs to this task, and its recipe."""
    if "languages" in command.options:
        raise UserError("--languages is for trainings; a matrix names its languages itself")
    languages = load_matrix(command.recipe, command.settings).languages
    number = os.environ.get("SLURM_ARRAY_TASK_ID")
    if number is None or int(number) >= len(languages):
        raise UserError(
            f"--stage matrix is for a job array with a task for every language of every model: sbatch --array=0-"
            f"{len(languages) - 1} {SCRIPT} --stage matrix {command.recipe}"
        )
    numbered = replace(command, overrides=[*command.overrides, f"--number={number}"])
    return numbered, languages[int(number)].recipe


def _with_part(command: CommandLine) -> CommandLine:
    """In a job array: the part of the counting that belongs to this task."""
    if "languages" in command.options:
        raise UserError(
            "--languages is for trainings; an array of --stage identify counts a part in each task"
        )
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return command
    number, first, last, num_tasks = (
        int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
    )
    if any(override.startswith("identify.part=") for override in command.overrides):
        if num_tasks > 1:
            raise UserError(
                f"{num_tasks} array tasks would count the same identify.part; leave it out, and each counts its own"
            )
        return command
    # All tasks of another array, such as the repetition of one, would be parts of another whole: no parts of the first array's.
    if first != 0 or last + 1 != num_tasks or num_tasks == 1:
        raise UserError(
            "an array of --stage identify counts in each task a part of all: submit it with --array=0-7 for 8 parts; to count "
            f"one of them again, submit no array: sbatch {SCRIPT} --stage identify {command.recipe} identify.part=3/8"
        )
    return replace(command, overrides=[*command.overrides, f"identify.part={number}/{num_tasks}"])


def kept_work(recipe: Recipe) -> dict[Path, int]:
    """What an interrupted stage goes on from: checkpoints, packed texts' state, counts, tasks' results, with the time of each."""
    packed = recipe.corpus_dir
    kept = [*(recipe.run_dir / "checkpoints").glob("step-*"), *packed.glob("*/*/state.json")]
    kept += (recipe.output_dir / "train" / "sweep").glob("*/*/*/checkpoints/step-*")
    kept += (recipe.output_dir / "eval").glob("*/*.json")
    for pattern in ("counts/*.safetensors", "units/*/*.safetensors"):
        kept += recipe.counting_dir.glob(pattern)
    return {path: path.stat().st_mtime_ns for path in kept}


def check_progress(stage: str, recipe: Recipe, before: dict[Path, int]) -> None:
    """Whether another start of a job that had all its time would get further; else it would be queued for ever.

    The first start has more to do than the others, such as to fetch a model; it is not yet judged.

    Args:
        stage: The job's.
        recipe: Its recipe.
        before: `kept_work` as this start began.

    Raises:
        UserError: It would not.
    """
    if stage not in _GOING_ON:
        raise UserError(
            f"the time limit ended --stage {stage}, which begins anew each time: submit it with a longer --time"
        )
    starts = 1 + int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if starts > 1 and kept_work(recipe) == before:
        raise UserError(
            f"start {starts} of this job had all its time and made no progress (no checkpoint, packed text, counts or measured "
            "task): it is not queued again; submit it with a longer --time"
        )


def _requeue(stage: str, recipe: Recipe, before: dict[Path, int]) -> int:
    """Puts the job back into the queue, unless it is being cancelled: then it is to end."""
    job = slurm.job_name()
    shown = slurm.scontrol("show", "job", job)
    if re.search(r"JobState=RUNNING\b", shown):
        if slurm.at_time_limit(shown):
            check_progress(stage, recipe, before)
        print(f"interrupted; job {job} goes back into the queue and goes on from there", file=sys.stderr)
        slurm.scontrol("requeue", job)
    return STOPPED


def main(arguments: Sequence[str]) -> int:
    """The exit code of the batch step."""
    try:
        return run_batch(arguments)
    except UserError as error:
        tell_error(error)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
