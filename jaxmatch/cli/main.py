"""The command line: ``jaxmatch COMMAND``."""

import argparse
import io
import json
import logging
import os
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmatch.cli.arguments import parser
from jaxmatch.cli.words import AND, join_overrides, split_runs
from jaxmatch.errors import DiskError, InputError, JaxmatchError
from jaxmatch.runtime.paths import check_output, write_output

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from rich.console import RenderableType

Command = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    Exit codes: 0 done, 2 bad input, 3 NaN or Inf, 4 disk, 130 stopped by Ctrl-C, 143 stopped by
    SIGTERM, 1 any other error, such as too little device memory.

    Args:
        argv: the words after ``jaxmatch``; by default those of this process.
    """
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it warns of the bucket's kind at each call
    # Pillow tells of odd metadata; what matters about a file is among the run's findings.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow reads no s3:// and loads slowly
    for handler in logging.getLogger().handlers:  # an imported library may have added one
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("jaxmatch: %(message)s"))
    # Orbax logs every save, and every failure several times, each with a traceback. The library
    # reports a failure in one sentence.
    logging.getLogger("absl").addFilter(is_not_orbax)
    words, *others = split_runs(sys.argv[1:] if argv is None else argv)
    try:
        arguments, rest = parser().parse_known_args(words)
        if arguments.command in ("train", "demo"):
            # The first Ctrl-C during training saves the run. Any other one ends the process at
            # once, even in an import, a computation or a write.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if rest and "config" not in arguments:
            raise InputError(f"unknown argument {rest[0]!r}; see jaxmatch {arguments.command} -h.")
        arguments.overrides = join_overrides(rest)
        arguments.others = []
        for words in others:
            if arguments.command != "train":
                raise InputError(f"{AND} joins runs of jaxmatch train, not {arguments.command}.")
            other, rest = parser().parse_known_args(["train", *words])
            other.overrides = join_overrides(rest)
            arguments.others.append(other)
        _prepare_process()
        COMMANDS[arguments.command](arguments)
    except JaxmatchError as error:
        sys.exit(_fail(error))
    except BrokenPipeError:  # a reader such as head has closed the pipe
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes stdout at its exit
    except OSError as error:
        sys.exit(_fail(DiskError(f"{error.filename or 'a file'}: {error.strerror or error}.")))
    except RuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        sys.exit(_fail(JaxmatchError(_out_of_memory(str(error)))))
    except KeyboardInterrupt:
        print("jaxmatch: interrupted.", file=sys.stderr)
        sys.exit(130)


def is_not_orbax(record: logging.LogRecord) -> bool:
    """Whether a library other than Orbax logged the record."""
    return "orbax" not in record.pathname


def _out_of_memory(text: str) -> str:
    """The error message for XLA's ``text``."""
    first_line = text.removeprefix("RESOURCE_EXHAUSTED: ").partition("\n")[0].rstrip(".")
    return (
        f"{first_line}; use more devices, dtype=bfloat16, microbatches or a smaller batch. The "
        "same command continues a run from its last checkpoint."
    )


def _prepare_process() -> None:
    from jaxmatch.runtime.compilation import prepare_process

    prepare_process()


def _fail(error: JaxmatchError) -> int:
    """Print the error and return its exit code."""
    print(f"jaxmatch: {error}", file=sys.stderr)
    return error.exit_code


def _config(arguments: argparse.Namespace) -> "ConfigDict":
    """The configuration of the arguments; notes about it go to stderr."""
    from jaxmatch.config.flags import from_flags

    minutes = getattr(arguments, "minutes", None)
    given = [] if minutes is None else [f"--config.minutes={minutes}"]
    config, notes = from_flags(arguments.config, [*arguments.overrides, *given])
    for note in notes:
        print(f"jaxmatch: note: {note}", file=sys.stderr)
    return config


def _train(arguments: argparse.Namespace) -> None:
    from jaxmatch.runtime import hosts
    from jaxmatch.training.train import train

    if arguments.others:
        _train_together([arguments, *arguments.others])
        return
    config = _config(arguments)
    where = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.multihost or any(value is not None for value in where):
        hosts.join(*where, seconds=arguments.join_seconds)
        if not hosts.leader():
            logging.disable(logging.WARNING)
    summary = train(config, arguments.workdir, arguments.data)
    if hosts.leader():
        _print_end(arguments, config, summary)


def _train_together(runs: Sequence[argparse.Namespace]) -> None:
    from jaxmatch.training import together

    for run in runs:
        if run.multihost or run.coordinator or run.processes or run.process:
            raise InputError(f"several processes train one run at a time; leave out {AND}.")
        if run.data:
            raise InputError(f"--data works for one run at a time; leave out {AND}.")
    configs = [_config(run) for run in runs]
    pairs = [(config, run.workdir) for config, run in zip(configs, runs, strict=True)]
    summaries = together.train(pairs)
    for run, config, summary in zip(runs, configs, summaries, strict=True):
        run.json = runs[0].json
        _print_end(run, config, summary)


def _print_end(run: argparse.Namespace, config: "ConfigDict", summary: Mapping[str, Any]) -> None:
    """Print the summary of a finished run as JSON, or what it says and what to do next."""
    from jaxmatch.record.folder import RunFolder
    from jaxmatch.report.scores import ending
    from jaxmatch.training.train import default_folder

    if run.json:
        print(json.dumps({key: value for key, value in summary.items() if key != "ctaugment"}))
    else:
        folder = run.workdir or default_folder(config)
        print("\n".join(ending(folder, summary, RunFolder.at(folder).read_baselines())))


def _show(content: "RenderableType") -> None:
    """Print tables to stdout: 80 columns wide where that is no terminal."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack letters of class names
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(highlight=False, emoji=False, markup=False)
    with console.capture() as captured:
        console.print(content)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _evaluate(arguments: argparse.Namespace) -> None:
    import numpy as np

    from jaxmatch.data.lazy import Images
    from jaxmatch.evaluation.classifier import NETWORKS, load
    from jaxmatch.record.run_data import load_recorded
    from jaxmatch.report.scores import scores

    classifier = load(arguments.workdir, arguments.step)
    if not classifier.program.algorithm.labeled:
        raise InputError(
            f"{arguments.workdir} was trained without labels and has no classifier; use jaxmatch "
            "probe."
        )
    data = load_recorded(classifier.config, classifier.folder, place=arguments.data, needed="held")

    def measured(images: Images, labels: np.ndarray) -> dict[str, Any]:
        return {name: classifier.score(images, labels, name) for name in NETWORKS}

    found = {
        "step": classifier.step,
        "evaluated": classifier.program.algorithm.evaluated,
        **measured(data.source.test_images, data.source.test_labels),
    }
    if data.validation_images is not None and data.validation_labels is not None:
        found["validation"] = measured(data.validation_images, data.validation_labels)
    if arguments.json:
        print(json.dumps(found))
    else:
        _show(scores(found))


def _predict(arguments: argparse.Namespace) -> None:
    from jaxmatch.errors import some
    from jaxmatch.evaluation.classifier import load
    from jaxmatch.evaluation.predict import check_outputs, predict

    check_outputs(arguments.output, arguments.left_out)
    missing = predict(
        load(arguments.workdir, arguments.step),
        arguments.paths,
        arguments.output,
        probabilities=arguments.probabilities,
        left_out=arguments.left_out,
        tell=_tell_images if sys.stderr.isatty() else lambda done: None,
    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for reason, names in sorted(missing.items()):
        print(f"jaxmatch: left out {len(names):,} ({reason}): {some(names)}", file=sys.stderr)


def _tell_images(done: int) -> None:
    print(f"\rjaxmatch: {done:,} images", end="", file=sys.stderr, flush=True)


def _pseudo_label(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.pseudo_label import make
    from jaxmatch.record.pseudo_labels import check_file, write

    check_file(arguments.output)
    table, of_files = make(arguments.runs, arguments.average, arguments.step, arguments.data)
    write(arguments.output, table, of_files)
    known = table.labels >= 0
    print(
        f"wrote {arguments.output}: {int(known.sum()):,} unlabeled images, {arguments.average} of "
        f"{len(arguments.runs)} {'run' if len(arguments.runs) == 1 else 'runs'}, mean confidence "
        f"{table.confidence[known].mean():.2f}"
    )
    if not known.all():
        print(f"{int((~known).sum()):,} images are not readable and have no label.")


def _probe(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.probe import probe

    both = arguments.knn == arguments.linear
    most = {} if arguments.images is None else {"images": arguments.images}
    found = probe(
        arguments.workdir,
        arguments.step,
        knn=both or arguments.knn,
        linear=both or arguments.linear,
        place=arguments.data,
        all_labels=arguments.all_labels,
        **most,
    )
    if found.get("all_labels") and not arguments.all_labels:
        print(
            "jaxmatch: note: the run saw no labels, so the probes learned from all "
            f"{found['labels']:,} known labels of its training images.",
            file=sys.stderr,
        )
    print(json.dumps(found))


def _features(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation import features

    _check_one_place(arguments, "features")
    if arguments.workdir is None:
        if arguments.step is not None:
            raise InputError("--step chooses a checkpoint of a run: it needs --workdir=RUN.")
        found, existed = features.of_config(_config(arguments), arguments.cache)
    else:
        found, existed = features.of_run(
            arguments.workdir, arguments.step, arguments.data, arguments.cache
        )
    if arguments.json:
        print(json.dumps(found))
        return
    verb = "reused" if existed else "wrote"
    print(
        f"{verb} {found['folder']}: {found['count']:,} images of {found['data']}, "
        f"{found['width']:,} features each, of {found['network']}"
    )
    if found["unreadable"]:
        print(f"{found['unreadable']:,} images are not readable.")


def _check_one_place(arguments: argparse.Namespace, command: str) -> None:
    """Check that a command has either a configuration or a run folder.

    Raises:
        InputError: if not, or if other arguments do not fit.
    """
    if (arguments.config is None) == (arguments.workdir is None):
        raise InputError(f"{command} needs either --config=NAME:DATA,labels=N or --workdir=RUN.")
    if arguments.workdir is None and arguments.data:
        raise InputError("--data says where a run's data is now: it needs --workdir=RUN.")
    if arguments.workdir is not None and arguments.overrides:
        raise InputError("--workdir has its own configuration; leave out --config.key=value.")


def _baseline(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.baselines import of_config, of_run
    from jaxmatch.evaluation.comparison import compare
    from jaxmatch.record.folder import RunFolder
    from jaxmatch.report.baselines import page

    _check_one_place(arguments, "baseline")
    if arguments.output is not None:
        check_output(arguments.output)
    if arguments.workdir is None:
        found = of_config(_config(arguments), arguments.features)
    else:
        found = of_run(arguments.workdir, arguments.data, arguments.features)
    text = json.dumps(found, indent=2)
    if arguments.output is not None:
        write_output(arguments.output, f"{text}\n".encode())
    if arguments.json:
        print(text)
        return
    _show(page(found))
    summary = arguments.workdir and RunFolder.at(arguments.workdir).read_summary()
    if summary and (lost := compare(summary, found)):
        print(lost)


def _export(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.classifier import load
    from jaxmatch.models.lora import merged
    from jaxmatch.weights.export import check_export, export
    from jaxmatch.weights.trained import Trained

    check_export(arguments.output)
    run = load(arguments.workdir, arguments.step)
    program = run.program
    trained = Trained(
        variables=merged(program.model, run.variables(arguments.network)),
        algorithm=program.algorithm,
        network=program.network,
        classes=run.classes,
        image_shape=run.image_shape,
        mean=program.mean,
        std=program.std,
        naming=arguments.naming,
    )
    holds = export(arguments.output, trained)
    network = arguments.network or program.algorithm.evaluated
    print(f"wrote {arguments.output}: {network} of step {run.step}, {holds}")


def _report(arguments: argparse.Namespace) -> None:
    from jaxmatch.report.page import report

    if arguments.baselines:
        from jaxmatch.evaluation.baselines import add_missing

        add_missing(arguments.runs)
    for file in report(arguments.runs, arguments.output):
        print(f"wrote {file}")


def _sweep(arguments: argparse.Namespace) -> None:
    from jaxmatch.cli import sweep
    from jaxmatch.report.results import group, read, table_text

    points = sweep.points(
        arguments.config, arguments.overrides, seeds=arguments.seeds, base=arguments.workdir
    )
    groups = sweep.grouped(points, arguments.vmap_seeds)
    if not arguments.here:
        print("\n".join(sweep.command(group) for group in groups))
        return

    def say(text: str) -> None:
        print(f"jaxmatch: {text}", file=sys.stderr)

    for line in sweep.opening(points):
        say(line)
    failed = sweep.run(points, say, arguments.vmap_seeds)
    done = [read(point.workdir) for point in points if point.workdir not in failed]
    if done:
        print(table_text(group(done)))
    if failed:
        reasons = "; ".join(f"{folder} ({reason})" for folder, reason in failed.items())
        raise JaxmatchError(
            f"{len(failed)} of {len(points)} runs did not finish: {reasons}; "
            "the same command tries them again."
        )


def _demo(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from jaxmatch.config.flags import from_flags
    from jaxmatch.evaluation.baselines import add_missing
    from jaxmatch.evaluation.comparison import compare
    from jaxmatch.record.folder import RunFolder
    from jaxmatch.training.train import train

    summaries = {}
    for name in ("supervised", "fixmatch"):
        config, _ = from_flags(f"{name}:mnist5k,labels=40,seed={arguments.seed}", [])
        summaries[name] = train(config, arguments.workdir / name)
    folders = [arguments.workdir / name for name in summaries]
    add_missing(folders)
    baselines = RunFolder(folders[0]).read_baselines() or {"baselines": {}}
    table = Table("method", "test accuracy", "steps", "seconds", title="MNIST-5k, 40 labels")
    for found in baselines["baselines"].values():
        table.add_row(found["title"], f"{found['test']['accuracy']:.1%}", "", "")
    for name, summary in summaries.items():
        accuracy = f"{summary[summary['evaluated']]['last']:.1%}"
        table.add_row(name, accuracy, str(summary["steps"]), f"{summary['seconds']:.0f}")
    _show(table)
    for summary in summaries.values():
        if text := compare(summary, baselines):
            print(text)


def _describe(arguments: argparse.Namespace) -> None:
    if arguments.keys is not None:
        _describe_keys(arguments)
        return
    if arguments.config is None:
        raise InputError("describe needs --config=NAME:DATA, or --keys to list the keys.")
    from jaxmatch.report.describe import describe, page

    found = describe(_config(arguments))
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        _show(page(found, arguments.config))


def _describe_keys(arguments: argparse.Namespace) -> None:
    from jaxmatch.config.keys import documented, with_prefix
    from jaxmatch.config.stages import stages_of

    configs = [None] if arguments.config is None else stages_of(_config(arguments)).values()
    rows = with_prefix((row for each in configs for row in documented(each)), arguments.keys)
    for key, kind, value, meaning in rows:
        print(f"{key}={value!r}  ({kind})")
        print(textwrap.indent(textwrap.fill(meaning, 96), "    "))


def _show_augment(arguments: argparse.Namespace) -> None:
    import jax
    import numpy as np

    from jaxmatch.algorithms import build_algorithm
    from jaxmatch.augment.build import build_transforms
    from jaxmatch.config.stages import stages_of
    from jaxmatch.record.run_data import load_new
    from jaxmatch.record.settled import settled
    from jaxmatch.report.sheet import check_name, contact_sheet, summarize, write_sheet

    check_name(arguments.output)
    *_, asked = stages_of(_config(arguments)).values()
    config, _ = settled(asked)
    transforms = build_transforms(config.augment, config.views)
    algorithm = build_algorithm(config.algorithm)
    views = {role: transforms[role] for role in (*algorithm.labeled, *algorithm.unlabeled)}
    source = load_new(config).source
    images = np.asarray(source.images[:: max(1, len(source.images) // 8)][:8])
    chosen = textwrap.shorten(" ".join([arguments.config, *arguments.overrides]), 200)
    title = f"{chosen} on images of {images.shape[1]} x {images.shape[2]}"
    sheet = contact_sheet(images, views, jax.random.key(config.seed), title)
    write_sheet(sheet, arguments.output)
    print("\n".join([*summarize(views), f"wrote {arguments.output}"]))


COMMANDS: Mapping[str, Command] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "pseudo-label": _pseudo_label,
    "probe": _probe,
    "features": _features,
    "baseline": _baseline,
    "export": _export,
    "report": _report,
    "sweep": _sweep,
    "demo": _demo,
    "describe": _describe,
    "show-augment": _show_augment,
}
