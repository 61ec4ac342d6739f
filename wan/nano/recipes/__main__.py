"""Train the embedded miniature family: `python -m wan.nano.recipes t2v`; docs/training.md tells the time it takes.

The stages of a family run in order and read the files that earlier ones wrote into `--dir`. A stage continues where a
killed run stopped. Draws have fixed seeds and budgets are counted in steps, so runs differ only by rounding.
"""

import sys
import time
from pathlib import Path

if __name__ == "__main__":  # before torch is imported
    from wan.program import share_cores

    share_cores()

from wan.nano.recipes import animate, i2v, s2v, t2v, ti2v
from wan.parser import Parser, exit_code
from wan.typed import at_least, one_of, path

RECIPES = {"t2v": t2v.RECIPE, "i2v": i2v.RECIPE, "ti2v": ti2v.RECIPE, "s2v": s2v.RECIPE, "animate": animate.RECIPE}


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m wan.nano.recipes", description=__doc__.split("\n")[0])
    parser.add_argument("family", type=one_of(RECIPES), metavar="{t2v,i2v,ti2v,s2v,animate}", help="what to train")
    parser.add_argument("--stage", default="all", help="one stage of the family; default: all of them")
    parser.add_argument(
        "--dir", "--work", dest="folder", type=path, default="nano-training", help="default: nano-training"
    )
    parser.add_argument("--budget", type=one_of(["full", "smoke"]), default="full", help="or smoke; default: full")
    parser.add_argument(
        "--steps", type=at_least(1), help="steps of the training stages chosen; default: those of the budget"
    )
    args = parser.parse_args(arguments)
    recipe, folder = RECIPES[args.family], Path(args.folder)
    if args.stage not in ("all", *recipe.stages):
        parser.error(f"--stage {args.stage!r} is not one of all, {', '.join(recipe.stages)}")
    budget = recipe.budgets[args.budget]
    if args.steps:
        budget = recipe.with_steps(budget, args.steps)
    folder.mkdir(parents=True, exist_ok=True)
    for name in recipe.stages if args.stage == "all" else [args.stage]:
        started = time.monotonic()
        print(f"--- {name}", flush=True)
        recipe.stages[name](folder, budget)
        print(f"--- {name} done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
