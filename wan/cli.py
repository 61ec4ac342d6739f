"""Command line: arguments become one checked Job (`wan.planning`), a Job becomes a file."""

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from wan.arguments import parse

if __name__ == "__main__":  # before torch is imported
    from wan.program import share_cores

    share_cores()
    parse()  # ends here for help and wrong arguments

import torch

from wan.checkpoint.download import from_flags as download
from wan.distributed.util import (
    broadcast_text,
    get_rank,
    is_first_failure,
    start as join_processes,
    stop as part_from_processes,
)
from wan.distributed.watch import is_lost_contact
from wan.extension import extended
from wan.interrupts import INTERRUPTED, as_interrupt
from wan.jobs import PIPELINES, Job, Outcome, describe, make
from wan.parallel import launched_rank, launched_size, local_rank
from wan.parser import exit_code
from wan.planner import out_of_memory
from wan.planning import plan, warn_about_texts
from wan.program import OneLine, print_error
from wan.runtime import own_device

log = logging.getLogger(__name__)

DONE, FAILED, WRONG = 0, 1, 2


def main(arguments: list[str] | argparse.Namespace | None = None) -> int:
    """Run the command and return its exit code; wrong arguments are one line on stderr, without a traceback.

    `arguments` are the result of `wan.arguments.parse`, or its input. Of several processes only one shows an error of
    any of them, and rank 0 logs. SIGTERM and SIGHUP end the run as Ctrl-C does.
    """
    with as_interrupt():
        try:
            return _main(arguments)
        except KeyboardInterrupt as error:  # before planning, or while others still work
            if is_first_failure(error):
                print_error("interrupted")
            return INTERRUPTED
        except Exception as error:  # another of several processes may have ended while they joined or left
            if is_first_failure(error):
                _report_failure(error)
            return FAILED


def _main(arguments: list[str] | argparse.Namespace | None) -> int:
    try:
        args = arguments if isinstance(arguments, argparse.Namespace) else parse(arguments)
    except SystemExit as stop:  # help or the error is printed
        return int(stop.code or 0)
    level = logging.INFO if launched_rank() == 0 else logging.ERROR
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("[%(asctime)s] %(levelname)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])
    if args.download:
        return exit_code(lambda: download(args))
    try:
        if launched_size() > 1:
            join_processes(own_device(args.device, local_rank()))
        job = agreed(with_written_out_prompt(plan(args)))
    except (ValueError, OSError) as error:
        if is_first_failure(error):
            print_error(f"error: {error}")
        return WRONG
    except KeyboardInterrupt as error:
        if is_first_failure(error):
            print_error("interrupted; nothing was written")
        return INTERRUPTED
    code = run(job)
    if code == DONE:
        part_from_processes()
    return code


def with_written_out_prompt(job: Job) -> Job:
    """Extend the prompt in rank 0, if that was asked for; the others get it in `agreed`."""
    if job.extension is None:
        return job
    if get_rank() == 0:
        job = replace(job, request=extended(job.request, job.extension))
        warn_about_texts(job)
    return replace(job, extension=None)


def agreed(job: Job) -> Job:
    """Take the job as rank 0 planned it: a seed may be drawn, a prompt written out, a name contains the time."""
    mine = {name: getattr(job.request, name) for name in ("seed", "prompt", "original_prompt")}
    values = json.loads(broadcast_text(json.dumps([mine, str(job.video)]), job.runtime.device))
    return replace(job, request=replace(job.request, **values[0]), video=Path(values[1]))


def run(job: Job) -> int:
    """Make all videos of this process; return the exit code. A failure after sampling prints how to resume."""
    outcome, pipeline = Outcome(job), None
    try:
        describe(job)
        pipeline = PIPELINES[job.config.name](job.config, job.checkpoint, runtime=job.runtime)
        if pipeline.replica.is_first and get_rank() > 0:  # it logs the files that it saves
            logging.getLogger().setLevel(logging.INFO)
        for outcome.job in job.variants()[pipeline.replica.index :: job.runtime.parallel.replicas]:
            make(outcome, pipeline)
    except KeyboardInterrupt as error:
        done = outcome.in_words()
        if is_first_failure(error) or done:
            print_error(f"interrupted; {done or 'nothing was written'}")
        return INTERRUPTED
    except Exception as error:  # the outermost frame of the program
        if pipeline is not None and (phase := getattr(error, "phase", None)):
            error = torch.OutOfMemoryError(out_of_memory(phase, job.plan, job.runtime, pipeline.phases))
        if is_first_failure(error):
            _report_failure(error)
        if done := outcome.in_words():
            print_error(done)
        return FAILED
    return DONE


def _report_failure(error: Exception) -> None:
    """Print one line for a failure of disk, memory or values; for a defect of the program also a traceback."""
    where = f"rank {get_rank()}: " if launched_size() > 1 else ""
    if is_lost_contact(error):
        reason = str(error).partition(". ")[0]  # the rest is advice to programmers
        print_error(f"failed: {where}another process is gone, probably killed ({reason})")
        return
    expected = isinstance(error, (OSError, ValueError, MemoryError, FloatingPointError, torch.OutOfMemoryError))
    if not expected:
        log.error("this is a defect, please report it with the following lines", exc_info=error)
    print_error(f"failed: {where}{str(error) or type(error).__name__}")


if __name__ == "__main__":
    sys.exit(main())
