"""`velm STAGE [overrides]`: dispatches to a stage and keeps the whole Hydra grammar. Imports no torch."""

from __future__ import annotations

import contextlib
import gc
import os
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
    "finetune": "continue from another run's weights",
    "evaluate": "caption a split with a trained model and score it (also: eval)",
    "score": "score any predictions against any references: no model, the field's numbers with error bars",
    "caption": "write captions of any images with a trained model",
    "answer": "answer questions about any images with a trained model",
    "search": "find images by a text or another image, with a trained model",
    "serve": "serve a trained model over HTTP, with a web page: captions, answers, embeddings",
    "report": "one table of any number of runs: scores, error bars, size, speed",
    "export": "a trained model as a folder that needs nothing else: velm, transformers, ONNX",
    "doctor": "check what works on this machine, and how to fix what does not",
}
ALIASES = {"eval": "evaluate"}
VERSION = ("-V", "-v", "--version", "version")
SWEEP_FLAGS = ("-m", "--where", "--point", "--jobs")  # of train and finetune: sweep.py

HELP = """velm {version}: train vision-enhanced language models, and report the field's numbers

usage: velm STAGE [key=value ...]

{stages}

examples:
  velm preprocess dataset=shapes
  velm train      dataset=shapes vision=convnet text=transformer fusion=cross_modal loss.beta=0.1
  velm finetune   checkpoint=runs/train/NAME optim.lr=1e-4
  velm eval       checkpoint=runs/train/NAME split=test decode.beams=5
  velm caption    checkpoint=runs/train/NAME images=photos out=captions.json
  velm search     index=photos.index checkpoint=runs/train/NAME images=photos query="a dog in the snow"
  velm score      predictions=results.json references=captions_val2014.json vs=other.json out=scored
  velm train -m   fusion=concat,cross_modal seed=0,1 --jobs=2   a sweep: every combination, two at a time
  velm serve      checkpoint=runs/train/NAME
  velm export     checkpoint=runs/train/NAME out=FOLDER         the model alone, to give away
  velm report     runs/train/* out=fusions.png                  their table and plot

more:
  velm STAGE --help [GROUP]          the options of a stage: defaults, values, meanings
  velm STAGE --cfg job               the config of a command, without running it
  velm STAGE dry_run=true ...        check everything, print sizes and estimates, run nothing
  velm train ... --where             the run folder of a command, or those of a sweep, one per line
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
    if not args or args in (["-h"], ["--help"], ["help"]):
        width = max(map(len, STAGES))
        stages = "\n".join(f"  {name:<{width}}  {meaning}" for name, meaning in STAGES.items())
        print(HELP.format(version=__version__, stages=stages), end="")
        return
    if args[0] in ("-h", "--help", "help"):  # velm help train
        args = [args[1], "--help", *args[2:]]
    if args[0] in VERSION or "--version" in args:
        print(f"velm {__version__}")
        return
    settle_in()
    stage = ALIASES.get(args[0], args[0])
    if stage not in STAGES:
        hint = did_you_mean(args[0], [*STAGES, *ALIASES]) or f"; stages: {', '.join(STAGES)}"
        raise UserError(f"unknown stage {args[0]!r}{hint}")
    if stage == "report":
        from velm_cli.schema.paths import expand_home
        from velm_cli.stages.report import main as report

        report([f"out={expand_home(arg[4:])}" if arg.startswith("out=~") else arg for arg in args[1:]])
        return
    args = args[1:]
    if any(arg in ("-h", "--help") for arg in args) or args == ["help"]:
        _help(stage, [arg for arg in args if arg not in ("-h", "--help", "help")])
        return
    args = _prepare(stage, args)
    if stage in ("train", "finetune") and any(arg.partition("=")[0] in SWEEP_FLAGS for arg in args):
        from velm_cli.sweep import train_or_sweep

        train_or_sweep(stage, args, _run_stage)
    else:
        _run_stage(stage, args)


def _help(stage: str, words: list[str]) -> None:
    """The stage's page; words of it, and choices as in a command (`vision=vit`), narrow it down."""
    from velm_cli.options import choices
    from velm_cli.stage_help import stage_help

    is_command = any(word.startswith("-") for word in words)  # with --help at its end
    named = [word for word in words if not is_command and ("=" not in word or choices(word.partition("=")[0]))]
    print(stage_help(stage, STAGES[stage], named))


def _prepare(stage: str, args: list[str]) -> list[str]:
    """The arguments as Hydra wants them."""
    from velm_cli.as_typed import for_hydra

    first = place().rank == 0
    looking = any(arg.partition("=")[0] in ("--cfg", "-c", "--info", "-i", "--where") for arg in args)
    args = for_hydra(stage, args, note=(_aside if looking else _note) if first else lambda _: None)
    told = [arg for arg in args if arg.partition("=")[0] in ("--cfg", "-c", "--info", "-i")]
    if "-m" in args and told:
        raise UserError(f"{told[0]} tells of one config: leave out -m (velm train -m ... --where lists the points)")
    if "--where" in args and told:
        raise UserError(f"--where prints folders and {told[0]} a config: leave one of them out")
    if not first:  # only the first rank writes Hydra's own files, and shows progress
        os.environ["TQDM_DISABLE"] = "1"
        args += ["hydra.output_subdir=null", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    return args


def _note(text: str) -> None:
    print(f"note        {visible(text)}")


def _aside(text: str) -> None:
    """Where standard output is what was asked for."""
    print(f"velm: note: {visible(text)}", file=sys.stderr)


def _run_stage(stage: str, args: list[str]) -> None:
    gc.disable()  # composing makes many small objects and hardly any garbage: 1/10 less time
    import hydra  # takes a moment, so `velm --help` does without
    from hydra.core.global_hydra import GlobalHydra

    from velm_cli import compose, start_from
    from velm_cli.engine.signals import Stopped, StopRequest, stop_on_signals
    from velm_cli.usage import explain

    sweeping = "-m" in args
    if sweeping and place().world > 1:
        raise UserError("-m under torchrun would run the sweep on every rank; start one torchrun a point (--point=N)")
    args = start_from.register(stage, args)

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
    """`-sc install=SHELL` prints what the shell evaluates; `-sc query=SHELL` what may follow the line in COMP_LINE."""
    from velm_cli import completion

    what, _, shell = (args[0] if args else "").partition("=")
    scripts = {"install": completion.INSTALL, "uninstall": completion.UNINSTALL}
    if what == "query":
        line = os.environ.get("COMP_LINE", "")
        with contextlib.suppress(ValueError):
            line = line[: int(os.environ.get("COMP_POINT", len(line)))]
        current = os.environ.get("VELM_WORD")
        for offer in completion.answer(line, shell, current, tuple(STAGES), ALIASES):
            print(offer)
    elif shell in scripts.get(what, {}):
        print(scripts[what][shell])
    else:
        raise UserError("velm -sc install=SHELL, with bash, zsh or fish; or uninstall=SHELL")


def _fail(message: str, code: int = 2) -> NoReturn:
    rank = 0
    with contextlib.suppress(UserError):  # the environment's numbers may be what is wrong
        rank = place().rank
    for line in visible(message).split("\n"):
        print(f"velm: {f'process {rank}: ' if rank else ''}{line}", file=sys.stderr)
    sys.exit(code)
