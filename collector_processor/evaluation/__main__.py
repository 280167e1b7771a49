"""`python -m collector_processor.evaluation`: every labelled recording and set in the data folder, measured in one go.

How it works. The data folder is `--data`, SPANCHAIN_DATA or `../shared/data`. Names after the options choose recordings
and sets; without any, all that are there are measured. Tables go to standard output, everything as `results.json` and
figures to `--out`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import orjson
from rich.console import Console

from collector_processor.config import Config
from collector_processor.config_file import load as load_config
from collector_processor.evaluation import labels, show
from collector_processor.evaluation.datasets import DATASETS
from collector_processor.evaluation.run import evaluate
from collector_processor.evaluation.sets import evaluate_set


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 2 when there is nothing to measure."""
    parser = argparse.ArgumentParser(prog="make evaluate", description="Detection quality on labelled data.")
    parser.add_argument("names", nargs="*", help="recordings and sets; all that are there when none is named")
    default = Path(os.environ.get("SPANCHAIN_DATA") or Path("..") / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default, help="folder of the labelled data")
    parser.add_argument(
        "--out", type=Path, default=Path("spanchain-evaluation"), help="folder for results.json and figures"
    )
    parser.add_argument("--config", type=Path, help="YAML file; the defaults without one")
    chosen = parser.parse_args(arguments)
    config = load_config(chosen.config) if chosen.config else Config()
    folder = chosen.data / "recordings"
    recordings = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    sets = [name for name, dataset in DATASETS.items() if dataset.present(chosen.data)]
    names = chosen.names or [*recordings, *sets]
    unknown = [name for name in names if name not in recordings and name not in sets]
    if unknown or not names:
        print(f"not in {chosen.data}: {', '.join(unknown) or 'any labelled data'}", file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=160)
    results = {}
    for name in names:
        if name in recordings:
            results[name] = _recording(console, folder / name, config, chosen.out)
        else:
            report = evaluate_set(DATASETS[name], chosen.data, config)
            console.print(show.set_table(report))
            results[name] = show.set_as_dict(report)
    (chosen.out / "results.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    console.print(f"all measures: {chosen.out / 'results.json'}")
    return 0


def _recording(console: Console, folder: Path, config: Config, out: Path) -> dict[str, object]:
    files, label_files = show.recording_files(folder)
    known = labels.load(label_files)
    report = evaluate(files, known, config)
    for table in show.tables(folder.name, report):
        console.print(table)
    for figure in show.figures(report, known, out, folder.name):
        console.print(f"figure: {figure}")
    return show.as_dict(report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
