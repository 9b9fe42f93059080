"""`velm STAGE [overrides]`: dispatches to a stage and keeps the whole Hydra grammar. Imports no torch."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
from typing import NoReturn

from velm_cli import __version__, console
from velm_cli.errors import StageError, UserError, did_you_mean, visible
from velm_cli.files import refused_by_the_system
from velm_cli.place import place
from velm_cli.surroundings import settle_in
from velm_cli.unexpected import in_one_line, is_meant_to_pass, wants_traceback

STAGES = {
    "preprocess": "check, resize and pack a data set's images; tokenise its captions",
    "train": "train a model from a config",
    "finetune": "go on from another run's weights",
    "evaluate": "caption a split with a trained model and score it (also: eval)",
    "score": "score any predictions against any references: no model, the field's numbers with error bars",
    "report": "one table of any number of runs: scores, error bars, size, speed",
    "doctor": "say what works on this machine and how to mend what does not",
}
ALIASES = {"eval": "evaluate"}
SWEEP_FLAGS = ("-m", "--where", "--point", "--jobs")  # of train and finetune: sweep.py

HELP = """velm {version}: train vision-enhanced language models, and report the field's numbers

usage: velm STAGE [key=value ...]

{stages}

examples:
  velm preprocess dataset=shapes
  velm train      dataset=shapes vision=convnet text=transformer fusion=cross_modal loss.beta=0.1
  velm finetune   checkpoint=runs/train/NAME optim.lr=1e-4
  velm eval       checkpoint=runs/train/NAME split=test decode.beams=5
  velm score      predictions=results.json references=captions_val2014.json vs=other.json out=scored
  velm train -m   fusion=concat,cross_modal seed=0,1 --jobs=2   a sweep: every combination, two at a time
  velm report     runs/train/* out=fusions.png                  the table and plot of it

more:
  velm STAGE --help                  the options of a stage, with their values
  velm STAGE --cfg job               the config that a command makes, without running it
  velm STAGE dry_run=true ...        check everything, print sizes and estimates, run nothing
  velm train ... --where             the run folder of a command, or those of a sweep, a line each
  eval "$(velm -sc install=bash)"    tab completion (also zsh, fish)
  velm --version
"""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 fine, 1 failed, 2 the command was wrong."""
    console.endure()
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(args)
    except UserError as error:
        _fail(str(error))
    except StageError as error:
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        _fail("interrupted", code=130)
    except BaseException as error:
        if is_meant_to_pass(error) or (wants_traceback() and not _is_of_a_disk(error)):
            raise
        line, code = in_one_line(error)
        _fail(line, code)
    sys.exit(console.exit_code())


def _is_of_a_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and refused_by_the_system(error) is not None


def _dispatch(args: list[str]) -> None:
    if args[:1] in (["-sc"], ["--shell-completion"]):
        _complete(args[1:])
        return
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, STAGES))
        stages = "\n".join(f"  {name:<{width}}  {meaning}" for name, meaning in STAGES.items())
        print(HELP.format(version=__version__, stages=stages), end="")
        return
    if args[0] in ("-V", "--version", "version"):
        print(f"velm {__version__}")
        return
    settle_in()
    stage = ALIASES.get(args[0], args[0])
    if stage not in STAGES:
        hint = did_you_mean(args[0], [*STAGES, *ALIASES]) or f"; stages: {', '.join(STAGES)}"
        raise UserError(f"unknown stage {args[0]!r}{hint}")
    if stage == "report":
        from velm_cli.stages.report import main as report

        report(args[1:])
        return
    args = _prepare(args[1:])
    if stage in ("train", "finetune") and any(arg.partition("=")[0] in SWEEP_FLAGS for arg in args):
        from velm_cli.sweep import train_or_sweep

        train_or_sweep(stage, args, _run_stage)
    else:
        _run_stage(stage, args)


def _prepare(args: list[str]) -> list[str]:
    """The arguments as Hydra wants them."""
    args = _join_urls([_quote_schedule(arg) for arg in args])
    if sweep := [arg for arg in args if arg in ("-m", "--multirun")]:
        told = [arg for arg in args if arg.partition("=")[0] in ("--cfg", "-c", "--info", "-i")]
        if told:
            raise UserError(f"{told[0]} tells of one config: leave out -m (velm train -m ... --where lists the points)")
        # Hydra 1.3 refuses `a=1 -m b=1,2`: flags must come first.
        args = ["-m", *(arg for arg in args if arg not in sweep)]
    if place().rank > 0:  # only the first rank writes Hydra's own files, and shows progress
        os.environ["TQDM_DISABLE"] = "1"
        args += ["hydra.output_subdir=null", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    return args


def _quote_schedule(arg: str) -> str:
    """`loss.beta=linear(0,1,5ep)` looks like a function call to Hydra; quoted it is a value."""
    match = re.fullmatch(r"(loss\.\w+)=((?:linear|cosine|step)\(.*\))", arg)
    return f"{match[1]}='{match[2]}'" if match else arg


def _join_urls(args: list[str]) -> list[str]:
    """Shards as a shell leaves them: `dataset.urls=shards/{00..99}.tar`, quoted or not, is one value to Hydra."""
    for key in ("dataset.urls", "dataset.val_urls"):
        values = [arg.partition("=")[2] for arg in args if arg.startswith(f"{key}=")]
        plain = [value for value in values if value and value[0] not in "['\"" and value != "null"]
        if not plain or len(plain) < len(values):
            continue
        quoted = ["'" + value.replace("'", "\\'") + "'" for value in plain]
        joined = f"{key}={quoted[0] if len(quoted) == 1 else '[' + ','.join(quoted) + ']'}"
        place = next(place for place, arg in enumerate(args) if arg.startswith(f"{key}="))
        others = [arg for arg in args if not arg.startswith(f"{key}=")]
        args = [*others[:place], joined, *others[place:]]
    return args


def _run_stage(stage: str, args: list[str]) -> None:
    gc.disable()  # composing makes many small objects and hardly any garbage: 1/10 less time
    import hydra  # takes a moment, so `velm --help` does without
    from hydra.core.global_hydra import GlobalHydra

    from velm_cli import compose
    from velm_cli.engine.signals import Stopped, StopRequest, stop_on_signals
    from velm_cli.usage import explain

    sweeping = "-m" in args
    if sweeping and place().world > 1:
        raise UserError("-m under torchrun would run the sweep on every rank; start one torchrun a point (--point=N)")
    compose.register(stage, compose.checkpoint_argument(stage, args))

    errors: list[Exception] = []

    def job(config) -> float | None:
        gc.enable()
        from velm_cli.stages import run

        if sweeping and stop:  # it ended the point before
            raise Stopped
        try:
            return run(config)
        except Exception as error:  # kept from Hydra, which would print lines of its own about it
            errors.append(error)
            if sweeping:
                known = isinstance(error, (UserError, StageError))
                said = str(error) if known else explain(error, stage) or in_one_line(error)[0]
                print(f"velm: this point of the sweep failed: {visible(said)}", file=sys.stderr)
            return None

    sys.argv = [f"velm {stage}", *args]
    # With this set Hydra lets exceptions through, and `explain` makes one line of them.
    asked_for = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    GlobalHydra.instance().clear()  # of the point before
    try:
        with stop_on_signals() if sweeping else contextlib.nullcontext(StopRequest()) as stop:
            hydra.main(version_base="1.3", config_path=str(compose.conf_dir()), config_name=stage)(job)()
    except Stopped:
        print(f"the sweep was stopped by {stop.signal_name}; the same command goes on with it")
        return
    except OverflowError as error:  # OmegaConf's, of an integer of hundreds of digits for an option that takes floats
        raise UserError(f"a number in the command is too large: {error}") from error
    except Exception as error:
        line = explain(error, stage)
        if line is None or asked_for not in (None, "", "0"):
            raise
        raise UserError(line) from None
    finally:  # or processes started later would print tracebacks where the user wanted none
        gc.enable()
        if asked_for is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = asked_for
    if len(errors) > 1:
        raise StageError(f"{len(errors)} points of the sweep failed, the last with: {errors[-1]}")
    if errors:
        line = explain(errors[0], stage)  # an interpolation in an option is resolved only here
        raise errors[0] if line is None else UserError(line)


def _complete(args: list[str]) -> None:
    """Tab completion: the stage's name here, everything after it by Hydra."""
    import hydra

    from velm_cli import compose

    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    stage = None
    if any(arg.startswith("query=") for arg in args):
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            start = words[1] if len(words) == 2 else ""
            print("\n".join(name for name in [*STAGES, *ALIASES] if name.startswith(start)))
            return
        stage = ALIASES.get(words[1], words[1])
        if stage not in STAGES or stage == "report":
            return
        shorter = re.sub(r"^(\s*\S+\s+)\S+\s", r"\1", line, count=1)
        point = int(os.environ.get("COMP_POINT", len(line)))
        os.environ["COMP_POINT"] = str(max(0, point - (len(line) - len(shorter))))
        os.environ["COMP_LINE"] = shorter
        try:
            compose.register(stage, compose.checkpoint_argument(stage, words[2:]))
        except UserError:
            compose.register(stage)
    sys.argv = ["velm", "-sc", *args]
    hydra.main(version_base="1.3", config_path=str(compose.conf_dir()), config_name=stage)(lambda _: None)()


def _fail(message: str, code: int = 2) -> NoReturn:
    rank = 0
    with contextlib.suppress(UserError):  # the environment's numbers may be what is wrong
        rank = place().rank
    for line in visible(message).split("\n"):
        print(f"velm: {f'process {rank}: ' if rank else ''}{line}", file=sys.stderr)
    sys.exit(code)
