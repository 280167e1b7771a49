"""The command `spanchain`: each sub-command reads its arguments, calls one function of the room that does the work, and
shows what came of it. Heavy imports happen inside the sub-commands, so that `--help` answers at once.

Exit codes: 0 done, 1 it ran and found something wrong, 2 it was called wrongly or its config is wrong.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collector_processor.config import Config
    from collector_processor.evaluation.labels import Labels
    from collector_processor.replay import Summary
    from exporters.store.reader import Reader

app = typer.Typer(
    help="Joins logs with trace spans into transaction chains, finds the unusual ones, and says what broke.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
UNREAD_SHOWN = 5  # places of a recording that could not be read
WIDE = 140  # columns of a table when nobody's terminal sets a limit: piped into a file nothing needs to be cut
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
err = Console(stderr=True)


class Which(StrEnum):
    """Which verdicts are written."""

    unusual = "unusual"
    all = "all"
    none = "none"


ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; without one, the defaults.")]
DataDir = Annotated[Path, typer.Option("--data", help="Folder for all that the service keeps.")]
Recordings = Annotated[
    list[Path], typer.Argument(help="Recorded OTLP: JSON lines or length-prefixed protobuf, .zst/.gz too.")
]


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the command with `message` on standard error."""
    err.print(f"spanchain: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)


def said(error: Exception) -> str:
    """An error in words: without its number, and with its file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def load_config(path: Path | None) -> Config:
    """The config in `path`, or the defaults; ends the command when it is wrong, or a rule file that it names."""
    from collector_processor.config import Config
    from collector_processor.config_file import ConfigError, load

    if path is None:
        return Config()
    try:
        settings = load(path)
    except ConfigError as error:
        fail(str(error))
    if settings.detectors.context.rules:
        check_rules(settings)
    if settings.detectors.retrieval.embedding_model is not None:
        check_embedding(settings)
    return settings


def check_rules(settings: Config) -> None:
    """Ends the command when a rule file cannot be used."""
    from collector_processor.model import Symbols
    from detectors.context.rules import Rules, RulesError

    try:
        Rules(settings.detectors.context.rules, settings.join.attributes, Symbols())
    except RulesError as error:
        fail(str(error))


def check_embedding(settings: Config) -> None:
    """Ends the command when the embedding model fails its trial."""
    from collector_processor.training.registry import ModelError, try_embedding

    try:
        try_embedding(settings.detectors.retrieval)
    except ModelError as error:
        fail(f"detectors.retrieval.embedding_model: {error}")


def check_model(settings: Config) -> Config:
    """The same settings; ends the command when the sequence model that they name cannot be used. `serve` alone goes on
    without it, for it is watched by its metrics, and not by whoever sits before it."""
    from detectors.sequence_transformer.promoted import folder_of, in_use
    from detectors.sequence_transformer.transformer import load

    folder = folder_of(settings)
    if folder is not None:
        try:
            model = in_use(folder)
            load(model.path, model.sha256)
        except (OSError, ValueError) as error:
            fail(f"detectors.sequence_transformer.model: {said(error)}")
    return settings


@app.command()
def serve(
    config: ConfigFile = None,
    data: DataDir = Path("spanchain-data"),
    verdicts: Annotated[
        Which | None, typer.Option(help="Also write verdicts.jsonl and incidents.jsonl to the data folder.")
    ] = None,
) -> None:
    """Runs the service: OTLP on 4317 and 4318, metrics on 9464, health on 13133; on localhost by default."""
    gc.disable()  # importing leaves no garbage, and looking for it takes a fifth of the start; `run` turns it on again
    from collector_processor.process import run
    from collector_processor.runtime import StartError

    try:
        settings = load_config(config)
        if verdicts is not None:
            settings = settings.with_verdicts(verdicts.value)
        run(settings, data)
    except StartError as error:
        fail(str(error), 1)
    finally:
        gc.enable()  # also when it never came so far: whoever called this goes on in the same process


@app.command()
def demo(
    duration: Annotated[
        float | None, typer.Option(help="Seconds after which --exit ends it (120 without this).")
    ] = None,
    exit_after: Annotated[
        bool, typer.Option("--exit", help="End after the duration and print a summary; else it runs until Ctrl-C.")
    ] = False,
) -> None:
    """Runs the service with a simulated payment platform in front of it, breaks the platform, and shows what is
    found."""
    from collector_processor.demo import run_demo

    raise typer.Exit(run_demo(duration, exit_after=exit_after))


@app.command()
def replay(
    paths: Recordings,
    config: ConfigFile = None,
    out_dir: Annotated[
        Path, typer.Option("--out", help="Folder for verdicts.jsonl, incidents.jsonl, summary.json.")
    ] = Path("spanchain-replay"),
    verdicts: Annotated[Which, typer.Option(help="Which verdicts are written.")] = Which.unusual,
) -> None:
    """Runs recorded OTLP through the engine at full speed, in event time."""
    from collector_processor.ingest.recording import recorded_files
    from collector_processor.replay import replay_to

    settings = check_model(load_config(config))
    try:
        files = recorded_files(paths)
        with _progress(sum(path.stat().st_size for path in files)) as progress:
            summary = replay_to(out_dir, files, settings, verdicts.value, progress)
    except OSError as error:
        fail(said(error), 1)
    _show(summary, out_dir)
    raise typer.Exit(0 if summary.accounted else 1)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes on standard error; yields the function to call with the bytes done so far."""
    columns = (TextColumn("replaying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("replay", total=total)
        yield lambda done: bar.update(task, completed=done)


def _show(summary: Summary, folder: Path) -> None:
    """The summary as a table in which the parts add up to the records."""
    title = "Every record is accounted for" if summary.accounted else "RECORDS ARE MISSING"
    table = Table(title=title, show_header=False, min_width=len(title) + 2)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("records", f"{summary.records:,}", style="bold")
    table.add_row("  spans / logs", f"{summary.spans:,} / {summary.logs:,}")
    table.add_row("in chains", f"{summary.chain_records:,}")
    for name in ("orphans", "late", "duplicates", "oversize"):
        table.add_row(name, f"{getattr(summary, name):,}")
    for reason, count in sorted(summary.rejected.items()):
        table.add_row(f"rejected: {reason}", f"{count:,}")
    table.add_section()
    table.add_row("chains", f"{summary.chains:,}", style="bold")
    for reason, count in sorted(summary.evicted.items()):
        table.add_row(f"  evicted: {reason}", f"{count:,}")
    table.add_row("  unusual", f"{summary.unusual:,}")
    table.add_row("incidents", f"{summary.incidents:,}", style="bold")
    out.print(table)
    for place in summary.unread[:UNREAD_SHOWN]:
        err.print(f"not read: {place}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if len(summary.unread) > UNREAD_SHOWN:
        err.print(f"more of these: {folder / 'summary.json'}", style="yellow", highlight=False, markup=False)
    out.print(f"written to {folder}", highlight=False, markup=False)


@app.command()
def validate(file: Annotated[Path, typer.Argument(help="A spanchain config.")]) -> None:
    """Checks a config file: the error names the key, the line, and the nearest valid key."""
    check_model(load_config(file))
    out.print(f"{file}: valid", highlight=False, markup=False)


@app.command()
def doctor(config: ConfigFile = None, data: DataDir = Path("spanchain-data")) -> None:
    """Checks the installation and what it can reach; changes nothing."""
    from collector_processor.doctor import examine

    settings = load_config(config)
    sound = True
    for finding in examine(settings, data):
        sound &= finding.well
        mark = "[green]✓[/green]" if finding.well else "[red]✗[/red]"
        out.print(f"{mark} {escape(finding.what)}: {escape(finding.detail)}", highlight=False)
    raise typer.Exit(0 if sound else 1)


LabelFile = Annotated[
    Path, typer.Option("--labels", help="JSON lines: faults with their windows, and traces with `anomalous`.")
]
ModelFolder = Annotated[Path, typer.Option("--models", help="Folder of trained models.")]
MODELS = Path("spanchain-data") / "models"


@app.command()
def evaluate(
    paths: Recordings,
    labels: LabelFile,
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every measure as JSON.")] = False,
    figures: Annotated[Path | None, typer.Option(help="Folder for figures of scores against faults.")] = None,
) -> None:
    """Replays labelled recordings and measures what was found, missed and said falsely, beside trivial baselines."""
    import orjson

    from collector_processor.evaluation import show
    from collector_processor.evaluation.run import evaluate as measure

    settings, known = check_model(load_config(config)), load_labels(labels)
    try:
        report = measure(paths, known, settings)
    except OSError as error:
        fail(said(error), 1)
    if not report.concerned:
        fail(f"{labels}: no label is about a chain of the recording, and no fault within its time", 1)
    name = labels.resolve().parent.name
    if as_json:
        sys.stdout.write(orjson.dumps(show.as_dict(report), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        for table in show.tables(name, report):
            out.print(table)
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for path in show.figures(report, known, figures, name):
            err.print(f"figure: {path}", highlight=False, markup=False)


def load_labels(path: Path) -> Labels:
    """The labels in `path`; ends the command when they are not readable."""
    from collector_processor.evaluation import labels

    try:
        return labels.load([path])
    except (OSError, labels.LabelsError) as error:
        fail(said(error))


@app.command()
def tune(
    paths: Recordings,
    labels: LabelFile,
    config: ConfigFile = None,
    written: Annotated[Path, typer.Option("--out", help="Config file to write.")] = Path("spanchain-tuned.yaml"),
    trials: Annotated[int, typer.Option(min=1, help="Replays to spend.")] = 30,
) -> None:
    """Searches weights, thresholds and detector settings on the first part of a labelled recording, judges the rest."""
    from collector_processor.evaluation.tune import as_yaml
    from collector_processor.evaluation.tune import tune as search

    settings, known = check_model(load_config(config)), load_labels(labels)
    try:
        with err.status("replaying with the present settings") as status:
            tuned = search(
                paths,
                known,
                settings,
                trials=trials,
                progress=lambda trial, of, best: status.update(f"trial {trial} of {of}: best J {best:.3f}"),
            )
        written.write_text(as_yaml(tuned, paths))
    except (OSError, ValueError) as error:
        fail(said(error), 1)
    for name, (before, after) in tuned.changed.items():
        out.print(f"{name}: {before} -> {after}", highlight=False, markup=False)
    judged = "pays" if tuned.better else "does not pay"
    out.print(f"{tuned.tried} trials; the change {judged} on the part that had no say; written to {written}")


@app.command()
def train(
    paths: Recordings,
    config: ConfigFile = None,
    models: ModelFolder = MODELS,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training.")] = None,
) -> None:
    """Trains a sequence model on recorded chains (needs the extra `train`); `models promote` takes it into use."""
    try:
        from collector_processor.training.train import STEPS, TooLittleError
        from collector_processor.training.train import train as fit
    except ImportError as error:
        fail(f"{error}; training needs PyTorch: pip install 'spanchain[train]'", 1)
    settings = check_model(load_config(config))
    try:
        with err.status("reading the recording") as status:
            facts = fit(
                paths,
                models,
                settings,
                steps=steps or STEPS,
                report=lambda step, loss: status.update(f"step {step}: loss {loss:.3f}"),
            )
    except (OSError, TooLittleError) as error:
        fail(said(error), 1)
    for name, value in facts.items():
        out.print(f"{name}: {value}", highlight=False, markup=False)


def where_used(models: Path) -> str:
    """How a service comes to look into the folder `models`."""
    return f"a service whose detectors.sequence_transformer.model is {models} takes it at its next epoch"


incidents_app = typer.Typer(help="Incidents of the store: the list, and one with its explanation and evidence.")
app.add_typer(incidents_app, name="incidents")
Tenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's; without it, all.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def open_store(config: Path | None, data: Path) -> Iterator[Reader]:
    """The store that the config names, for reading; ends the command when it cannot be read."""
    from exporters.store.reader import Reader, StoreError

    try:
        reader = Reader(load_config(config).exporters.store, data)
        try:
            yield reader
        finally:
            reader.close()
    except StoreError as error:
        fail(str(error), 1)


@incidents_app.callback(invoke_without_command=True)
def incidents_list(
    context: typer.Context,
    config: ConfigFile = None,
    data: DataDir = Path("spanchain-data"),
    tenant: Tenant = None,
    since: Annotated[str, typer.Option(help="Changed since: 90m, 2h, 7d, or a date and time.")] = "30d",
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are open.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """The incidents of the store, the newest first; `incidents show ID` tells all about one."""
    if context.invoked_subcommand is not None:
        return
    import time

    import orjson

    from collector_processor import incident_view

    try:
        after_ns = incident_view.since_ns(since, time.time_ns())
    except ValueError as error:
        fail(str(error))
    with open_store(config, data) as store:
        found = store.incidents(tenant=tenant, since_ns=after_ns, only_open=only_open, limit=limit)
    if as_json:
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n")
    elif found:
        out.print(incident_view.listing(found))
    else:
        out.print(f"no incident has changed since {incident_view.moment(after_ns)} UTC", highlight=False, markup=False)


@incidents_app.command("show")
def incidents_show(
    incident: Annotated[str, typer.Argument(help="Its id, or the beginning of it.")],
    config: ConfigFile = None,
    data: DataDir = Path("spanchain-data"),
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """One incident: what happened, in what context, what is affected, what to do; and chains that show it."""
    import orjson

    from collector_processor import incident_view

    with open_store(config, data) as store:
        found = store.incident(incident, tenant=tenant)
        evidence = store.evidence_of(found)
    if as_json:
        sys.stdout.write(orjson.dumps(found | {"evidence": evidence}, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    for part in incident_view.page(found, evidence):
        out.print(part, highlight=False, soft_wrap=True)


models_app = typer.Typer(help="Trained models: what there is, and which is in use.", no_args_is_help=True)
app.add_typer(models_app, name="models")


@models_app.command("list")
def models_list(models: ModelFolder = MODELS) -> None:
    """The trained models; a star marks the one in use."""
    from collector_processor.training.registry import ModelError, versions

    try:
        found = versions(models)
    except ModelError as error:
        fail(str(error), 1)
    for version in found:
        out.print(f"{'*' if version.current else ' '} {version.version}", highlight=False, markup=False)
    if not any(version.current for version in found):
        out.print("in use: the model that ships with spanchain")


@models_app.command("promote")
def models_promote(
    version: Annotated[str, typer.Argument(help="As `models list` shows it.")],
    models: ModelFolder = MODELS,
    force: Annotated[bool, typer.Option(help="Even if it is no better than the n-gram model.")] = False,
) -> None:
    """Takes a model into use after a trial in a limited process; a running service takes it at its next epoch."""
    from collector_processor.training.registry import ModelError, promote

    try:
        promote(models, version, force=force)
    except ModelError as error:
        fail(str(error), 1)
    out.print(f"{version} is promoted; {where_used(models)}", highlight=False, markup=False)


@models_app.command("rollback")
def models_rollback(models: ModelFolder = MODELS) -> None:
    """Goes back to the model before."""
    from collector_processor.training.registry import ModelError, rollback

    try:
        version = rollback(models)
    except ModelError as error:
        fail(str(error), 1)
    name = version or "the model that ships with spanchain"
    out.print(f"back to {name}; {where_used(models)}", highlight=False, markup=False)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
