"""The command line: one class a verb. Starts in well under a second, since torch is imported by their calls."""

from __future__ import annotations

import dataclasses
import difflib
import io
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from boxwise.cli import data, recipes, runs, start
from boxwise.cli.failures import empty_words, plain_warnings, told
from boxwise.cli.verb import FAILED, USAGE, Verb
from boxwise.strict import SettingsError, nearest, scalar

SWITCHES = ("compile", "run.compile", "data.classes")
"""Settings that are given bare so often that a word after them is theirs only where it is true or false."""
STOPPED = (130, 143)
"""Exit codes of a run that a signal ended."""

VERBS: dict[str, type[Verb]] = {
    "show": recipes.Show,
    "proposals": data.Proposals,
    "pretrain": recipes.Pretrain,
    "finetune": recipes.Finetune,
    "probe": recipes.Probe,
    "evaluate": runs.Evaluate,
    "predict": runs.Predict,
    "compare": recipes.Compare,
    "report": runs.Report,
    "list": start.List,
    "scenes": data.Scenes,
    "doctor": start.Doctor,
    "demo": start.Demo,
}
GO_ON = {
    "proposals": "go on with the same command",
    "pretrain": "go on with --resume",
    "finetune": "go on with --resume",
    "probe": "go on with --resume",
    "compare": "go on with the same command",
    "demo": "start again with --overwrite",
}
"""What to do after a training that a signal ended."""
ELSEWHERE = {
    ("pretrain", "weights"): "finetune's; pretrain starts from weights with --init",
    ("show", "weights"): "finetune's; show draws what goes into a network, whatever its weights",
    ("probe", "init"): "pretrain's and compare's; probe reads the weights of --weights",
    ("finetune", "init"): "pretrain's and compare's; finetune starts from weights with --weights",
    ("compare", "weights"): "finetune's; compare starts from each of --init",
}
"""Flags of other verbs, by the verb that was given them."""
INNER: dict[str, type[Verb]] = {"proposals check": data.CheckProposals, "data check": data.CheckData}
"""Commands of two words. A folder that is named like the second is reached as ./check."""
WITH_RECIPE = ("show", "pretrain", "finetune", "probe", "compare")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. Results go to stdout; progress and errors to stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else USAGE
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("boxwise"))
        return 0
    two = " ".join(argv[:2])
    if two in INNER:
        return _run(two, argv[2:])
    if argv[0] not in VERBS:
        named = two if argv[0] == "data" else argv[0]
        return _usage(f"{named}: no such command{nearest(named, [*VERBS, *INNER])}")
    return _run(argv[0], argv[1:])


def _run(verb: str, argv: list[str]) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Names of files may be no text, and a terminal may know ASCII alone.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with plain_warnings():
            return _called(verb, argv)
    except SettingsError as error:
        return _usage(*(_or_flag(verb, problem) for problem in error.problems))
    except SystemExit as stop:  # tyro's help and usage errors; the engine's 130 and 143
        if stop.code in STOPPED:
            _say_how_to_go_on(verb)
        return stop.code if isinstance(stop.code, int) else FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if (sentence := told(error)) is None:
            raise
        print(f"boxwise {verb}: {sentence}", file=sys.stderr)
        return int(getattr(error, "exit_code", FAILED))


def _called(verb: str, argv: list[str]) -> int:
    if empty := [*empty_words([*verb.split(), *argv])]:
        raise SettingsError(empty)
    known, settings = _split(verb, argv)
    kind: Any = (VERBS | INNER)[verb]
    try:
        command: Verb = tyro.cli(
            kind, args=known, prog=f"boxwise {verb}", config=(tyro.conf.FlagCreatePairsOff,)
        )
    except SystemExit as stop:
        if verb in WITH_RECIPE:
            if stop.code == 0:
                _recipe_help(verb, known)
            else:
                _refuse_unknown(verb, known, settings)
        print(end="", flush=True)
        raise
    code = command.call(settings) or 0
    print(end="", flush=True)
    return code


def _say_how_to_go_on(verb: str) -> None:
    from boxwise.engine.device import leads

    if verb in GO_ON and leads():
        print(f"boxwise {verb}: {GO_ON[verb]}", file=sys.stderr)


def _split(verb: str, argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The verb's own flags, and settings of the recipe. `--a.b 1`, `--a.b=1` and a bare `--flag` are settings."""
    own = {f.name for f in dataclasses.fields((VERBS | INNER)[verb])} | {"help"}
    known: list[str] = []
    settings: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name.replace("-", "_").removeprefix("no_") in own:
            known.append(word)
            continue
        if verb not in WITH_RECIPE:
            flags = [f"--{n.replace('_', '-')}" for n in sorted(own - {"help"})]
            raise SettingsError([f"{word}: no such flag{nearest(word, flags)}"])
        if not equals:
            follows = bool(rest) and not rest[0].startswith("--")
            if name in SWITCHES and follows:
                follows = type(scalar(rest[0])) is bool
            text = rest.pop(0) if follows else "true"
        settings[name.replace("-", "_")] = scalar(text)
    return known, settings


def _overview() -> str:
    alone = {two: kind for two, kind in INNER.items() if two.split()[0] not in VERBS}
    lines = [f"  {verb:<10} {(kind.__doc__ or '').splitlines()[0]}" for verb, kind in (VERBS | alone).items()]
    return "\n".join(
        [
            "usage: boxwise COMMAND [--help] ...",
            "",
            "Self-supervised pretraining aligned with object detection: from unlabelled images to a better detector.",
            "",
            *lines,
            "",
            "boxwise COMMAND --help teaches the command; boxwise pretrain scrl --help lists the recipe's settings too.",
        ]
    )


def _recipe_help(verb: str, known: Sequence[str]) -> None:
    """Every setting of the named recipe with its value, after the verb's own flags."""
    if named := _recipe(verb, known):
        from boxwise.run.catalogue import settings_help

        print(settings_help(named, verb=verb))


def _refuse_unknown(verb: str, known: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Beside what tyro said: an argument may be missing since its flag was misspelt and taken for a setting.

    Raises SettingsError. A file of settings may change what there is, so nothing is said beside one.
    """
    named = _recipe(verb, known) or (recipes.Compare.detector if verb == "compare" else None)
    if named and not any(word.startswith("--config") for word in known):
        from boxwise.run.find import FINDERS

        FINDERS[verb](named, settings=settings)


def _or_flag(verb: str, problem: str) -> str:
    """What is no setting may be a flag of the verb, misspelt: the nearer of the two is told."""
    key, none, setting = problem.partition(": no such setting")
    if none and (verb, key) in ELSEWHERE:
        return f"{key}: {ELSEWHERE[verb, key]}"
    flags = ["help", *(f.name for f in dataclasses.fields((VERBS | INNER)[verb]) if f.name != "recipe")]
    near = setting.removeprefix(", did you mean ").removesuffix("?")
    close = difflib.get_close_matches(key, [*flags, near], n=1)
    return (
        f"{key}{none}, did you mean --{close[0].replace('_', '-')}?"
        if none and {*close} & {*flags}
        else problem
    )


def _recipe(verb: str, known: Sequence[str]) -> str | None:
    """The recipe's name: the first word that is neither a flag nor what follows one."""
    if verb == "compare":  # whose recipe is a flag
        return next((after for word, after in itertools.pairwise(known) if word == "--detector"), None)
    alone = {"help", "h", *(f.name for f in dataclasses.fields(VERBS[verb]) if f.type == "bool")}
    words = iter(known)
    for word in words:
        if not word.startswith("-"):
            return word
        if "=" not in word and word.lstrip("-").replace("-", "_") not in alone:
            next(words, None)
    return None


def _usage(*problems: str) -> int:
    for problem in problems:
        print(f"boxwise: {problem}", file=sys.stderr)
    return USAGE
