"""The command line: ``jaxmatch COMMAND``.

train, evaluate, predict, probe, export, report, sweep, demo, describe, show-augment.
"""

import argparse
import csv
import io
import json
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmatch.cli.words import AND, join_overrides, split_runs
from jaxmatch.errors import DiskError, InputError, JaxmatchError
from jaxmatch.runtime.paths import check_output, path, write_output

RUN_HELP = "a run folder, as train writes it"
DATA_HELP = "where the run's folder, npz file or TFDS directory is now, if it has moved"
CONFIG_HELP = "FILE_OR_NAME:DATA[,labels=N][,seed=S][,preset=P][,split=FILE]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    0 done, 1 out of device memory, 2 bad input, 3 NaN or Inf, 4 disk, 130 and 143 stopped.
    """
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("gcsfs").setLevel(logging.ERROR)  # guesses at a bucket's kind, at each call
    os.environ.setdefault("EPATH_USE_TF", "false")  # which reads no s3://, and takes seconds
    for handler in logging.getLogger().handlers:  # an imported library may have set one up
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("jaxmatch: %(message)s"))
    # What goes wrong with a checkpoint is said in one sentence; Orbax logs every failure several
    # times, each with a traceback, and every save.
    logging.getLogger("absl").addFilter(not_of_orbax)
    words, *others = split_runs(sys.argv[1:] if argv is None else argv)
    try:
        arguments, rest = _parser().parse_known_args(words)
        if arguments.run in (_train, _demo):
            # While a run trains the first Ctrl-C saves. Before that, and at the second one, nothing
            # may keep the process: neither what it imports nor what it computes or writes.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if rest and not hasattr(arguments, "config"):
            raise InputError(f"unknown argument {rest[0]!r}; see jaxmatch {arguments.command} -h.")
        arguments.overrides = join_overrides(rest)
        arguments.others = []
        for words in others:
            if arguments.command != "train":
                raise InputError(f"{AND} joins runs of jaxmatch train, not {arguments.command}.")
            other, rest = _parser().parse_known_args(["train", *words])
            other.overrides = join_overrides(rest)
            arguments.others.append(other)
        _prepare_process()
        arguments.run(arguments)
    except JaxmatchError as error:
        sys.exit(_fail(error))
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for Python's own flush at the end
    except OSError as error:
        sys.exit(_fail(DiskError(f"{error.filename or 'a file'}: {error.strerror or error}.")))
    except RuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        sys.exit(_fail(JaxmatchError(_out_of_memory(str(error)))))
    except KeyboardInterrupt:
        print("jaxmatch: interrupted.", file=sys.stderr)
        sys.exit(130)


def not_of_orbax(record: logging.LogRecord) -> bool:
    """Whether another library than Orbax logs this."""
    return "orbax" not in record.pathname


def _out_of_memory(text: str) -> str:
    told = text.removeprefix("RESOURCE_EXHAUSTED: ").partition("\n")[0].rstrip(".")
    return (
        f"{told}; use more devices, dtype=bfloat16, microbatches or a smaller batch. A run goes on "
        "from its last checkpoint."
    )


def _prepare_process() -> None:
    from jaxmatch.runtime.compilation import prepare_process

    prepare_process()


def _fail(error: JaxmatchError) -> int:
    print(f"jaxmatch: {error}", file=sys.stderr)
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxmatch", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    added = command("train", _train, "Train, or continue, a run; --config.key=value overrides.")
    added.add_argument("--config", required=True, help=CONFIG_HELP)
    added.add_argument("--workdir", type=path, help="the run folder (default: runs/NAME)")
    added.add_argument("--data", default="", metavar="DIR", help=DATA_HELP)
    added.add_argument("--multihost", action="store_true", help="join the other hosts of a cluster")
    added.add_argument("--coordinator", metavar="HOST:PORT", help="process 0, where none is found")
    added.add_argument("--processes", type=int, help="how many there are")
    added.add_argument("--process", type=int, help="the number of this one, from 0")
    added.add_argument("--join-seconds", type=int, default=300, help="how long to wait for all")
    added.epilog = (
        f"RUN {AND} RUN {AND} ... trains runs that are equal but for their seed in one program; "
        "each RUN is a --config, overrides and a --workdir."
    )

    added = command("evaluate", _evaluate, "Test accuracy of a run's teacher and student, as JSON.")
    added.add_argument("--workdir", type=path, required=True, help=RUN_HELP)
    added.add_argument("--step", type=int, help="the checkpoint (default: the newest)")
    added.add_argument("--data", default="", metavar="DIR", help=DATA_HELP)

    added = command("predict", _predict, "Classify image files into a CSV: path,class,confidence.")
    added.add_argument("--workdir", type=path, required=True, help=RUN_HELP)
    added.add_argument("--step", type=int, help="the checkpoint (default: the newest)")
    added.add_argument("paths", type=path, nargs="+", help="image files, or folders of them")
    added.add_argument("-o", "--output", type=path, required=True, help="the CSV file to write")

    added = command("probe", _probe, "Accuracy of classifiers on a run's frozen features, as JSON.")
    added.add_argument("--workdir", type=path, required=True, help=RUN_HELP)
    added.add_argument("--knn", action="store_true", help="only k-nearest-neighbor")
    added.add_argument("--linear", action="store_true", help="only a linear classifier")
    added.add_argument(
        "--images", type=int, metavar="N", help="at most so many for training and test each"
    )
    added.add_argument("--step", type=int, help="the checkpoint (default: the newest)")
    added.add_argument("--data", default="", metavar="DIR", help=DATA_HELP)

    added = command(
        "export",
        _export,
        "Write a run's network, with the heads the naming knows, under PyTorch's tensor names.",
    )
    added.add_argument("--workdir", type=path, required=True, help=RUN_HELP)
    added.add_argument("--step", type=int, help="the checkpoint (default: the newest)")
    added.add_argument("--network", default="", help="teacher or student (default: the reported)")
    added.add_argument("--naming", help="torchvision, simmatch, torchssl, usb, usb_heads, comatch")
    added.add_argument("-o", "--output", type=path, required=True, help=".safetensors or .npz, new")

    added = command("report", _report, "Compare runs: one HTML page, its plots also as PNGs.")
    added.add_argument("runs", type=path, nargs="+", metavar="RUN", help=RUN_HELP)
    added.add_argument("-o", "--output", type=path, default=Path("report.html"), help="the page")

    added = command("sweep", _sweep, "List the commands of a config's sweep(), or run them here.")
    added.add_argument("--config", required=True, help="FILE_OR_NAME[:ARGUMENT] with a sweep()")
    added.add_argument("--seeds", type=int, nargs="+", default=(), help="repeat all points for")
    added.add_argument("--run", dest="here", action="store_true", help="run what is not finished")
    added.add_argument(
        "--vmap-seeds", type=int, default=1, metavar="N", help="train up to N seeds in one program"
    )
    added.add_argument("--workdir", type=path, default=Path("runs"), help="where the runs go")

    added = command("demo", _demo, "Supervised, then FixMatch, on 40 labels of MNIST-5k: a table.")
    added.add_argument("--workdir", type=path, default=Path("runs/demo"), help="where both go")
    added.add_argument("--seed", type=int, default=0, help="of labels and draws")

    added = command("describe", _describe, "Shapes, parameters, memory and arithmetic of a config.")
    added.add_argument("--config", help=CONFIG_HELP)
    added.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="PREFIX",
        help="list the keys of a configuration instead: type, value (of --config, else the "
        "default) and meaning",
    )

    added = command("show-augment", _show_augment, "A contact sheet of each op and of whole views.")
    added.add_argument("--config", default="fixmatch:mnist5k", help=CONFIG_HELP)
    added.add_argument("-o", "--output", type=path, default=Path("augment.png"), help="the PNG")
    return parser


def _config(arguments: argparse.Namespace):
    from jaxmatch.config.flags import from_flags

    config, notes = from_flags(arguments.config, arguments.overrides)
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
        _print_summary(summary)


def _train_together(runs: Sequence[argparse.Namespace]) -> None:
    from jaxmatch.training import together

    for run in runs:
        if run.multihost or run.coordinator or run.processes or run.process:
            raise InputError(f"several processes train one run at a time; leave {AND} out.")
        if run.data:
            raise InputError(f"--data is for one run at a time; leave {AND} out.")
    for summary in together.train([(_config(run), run.workdir) for run in runs]):
        _print_summary(summary)


def _print_summary(summary: Mapping[str, Any]) -> None:
    print(json.dumps({key: value for key, value in summary.items() if key != "ctaugment"}))


def _evaluate(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.classifier import load
    from jaxmatch.record.run_data import load_recorded

    classifier = load(arguments.workdir, arguments.step)
    if not classifier.program.algorithm.labeled:
        raise InputError(f"{arguments.workdir} is a label-free run: use jaxmatch probe.")
    source = load_recorded(
        classifier.config, classifier.folder, place=arguments.data, needed="held"
    ).source
    result = {"step": classifier.step, "evaluated": classifier.program.algorithm.evaluated}
    for network in ("teacher", "student"):
        found = classifier.predict(source.test_images, network).label
        readable = found >= 0
        result[network] = float((found == source.test_labels)[readable].mean())
    print(json.dumps(result))


def _predict(arguments: argparse.Namespace) -> None:
    from jaxmatch.data.images import image_files, read_images
    from jaxmatch.evaluation.classifier import load

    check_output(arguments.output)
    classifier = load(arguments.workdir, arguments.step)
    files = image_files(arguments.paths)
    share = classifier.config.data.center_crop
    images, readable = read_images(files, classifier.image_shape[:2], share=share)
    found = classifier.predict(images)
    output = io.StringIO(newline="")
    writer = csv.writer(output)
    writer.writerow(("path", "class", "confidence"))
    for file, label, confidence in zip(readable, found.label, found.confidence, strict=True):
        writer.writerow((file, classifier.classes[label], f"{confidence:.6f}"))
    write_output(arguments.output, output.getvalue().encode("utf-8", "surrogateescape"))


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
        **most,
    )
    print(json.dumps(found))


def _export(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.classifier import load
    from jaxmatch.weights.export import check_export, export
    from jaxmatch.weights.trained import Trained

    check_export(arguments.output)
    run = load(arguments.workdir, arguments.step)
    program = run.program
    trained = Trained(
        variables=run.variables(arguments.network),
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

    for file in report(arguments.runs, arguments.output):
        print(f"wrote {file}")


def _sweep(arguments: argparse.Namespace) -> None:
    from jaxmatch.cli import sweep
    from jaxmatch.report.results import group, read, table_text

    points = sweep.points(
        arguments.config, arguments.overrides, seeds=arguments.seeds, base=arguments.workdir
    )
    if not arguments.here:
        groups = sweep.grouped(points, arguments.vmap_seeds)
        print("\n".join(sweep.command(group) for group in groups))
        return

    def say(text: str) -> None:
        print(f"jaxmatch: {text}", file=sys.stderr)

    failed = sweep.run(points, say, arguments.vmap_seeds)
    done = [read(point.workdir) for point in points if point.workdir not in failed]
    if done:
        print(table_text(group(done)))
    if failed:
        why = "; ".join(f"{folder} ({reason})" for folder, reason in failed.items())
        raise JaxmatchError(
            f"{len(failed)} of {len(points)} runs did not finish: {why}; "
            "the same command tries them again."
        )


def _demo(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from jaxmatch.config.flags import from_flags
    from jaxmatch.training.train import train

    table = Table("method", "test accuracy", "steps", "seconds", title="MNIST-5k, 40 labels")
    for name in ("supervised", "fixmatch"):
        config, _ = from_flags(f"{name}:mnist5k,labels=40,seed={arguments.seed}", [])
        summary = train(config, arguments.workdir / name)
        accuracy = f"{summary[summary['evaluated']]['last']:.1%}"
        table.add_row(name, accuracy, str(summary["steps"]), f"{summary['seconds']:.0f}")
    Console().print(table)


def _describe(arguments: argparse.Namespace) -> None:
    if arguments.keys is not None:
        _describe_keys(arguments)
        return
    if arguments.config is None:
        raise InputError("describe needs --config=NAME:DATA, or --keys to list the keys.")
    from jaxmatch.report.describe import describe

    print(json.dumps(describe(_config(arguments)), indent=2))


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
    from jaxmatch.report.sheet import check_name, contact_sheet, write_sheet

    check_name(arguments.output)
    *_, config = stages_of(_config(arguments)).values()
    transforms = build_transforms(config.augment, config.views)
    algorithm = build_algorithm(config.algorithm)
    views = {role: transforms[role] for role in (*algorithm.labeled, *algorithm.unlabeled)}
    source = load_new(config).source
    images = np.asarray(source.images[:: max(1, len(source.images) // 8)][:8])
    write_sheet(contact_sheet(images, views, jax.random.key(config.seed)), arguments.output)
    print(f"wrote {arguments.output}")
