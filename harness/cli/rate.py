"""`harness rate`: people rate the answers of a run, or of two runs side by side, in a local web page."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import (
    Subparsers,
    add_command,
    add_json_argument,
    int_at_least,
    print_json,
    print_renderable,
    write_text,
)
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.rating.session import RatingSession
    from harness.rating.summary import RatingSummary
    from harness.rating.task import RatingTask


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "rate",
        main,
        "Rate answers in a local web page: one run on five dimensions, or two runs side by side, without their names.",
        "harness rate runs/first runs/second --items 50",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder or the name of one run, or of two")
    parser.add_argument("--base", action="store_true", help="compare the only run with its model before training")
    parser.add_argument("--items", type=int_at_least(1), metavar="N", help="how many items (default 50)")
    parser.add_argument("--seed", type=int_at_least(0), help="seed of the sample, the order and the sides (default 0)")
    parser.add_argument("--suite", action="append", default=[], metavar="NAME", dest="suites", help="only this suite")
    parser.add_argument("--rubric", metavar="en|zh|FILE", help="the rubric (default en)")
    parser.add_argument("--name", help="name of the rating task, for a second one of the same runs")
    parser.add_argument("--rater", help="your name; the page asks otherwise")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 shares the page (default 127.0.0.1)"
    )
    parser.add_argument("--port", type=int_at_least(0), default=0, help="port (default: any that is free)")
    parser.add_argument("--no-open", action="store_true", help="print the address and open no browser")
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        metavar="FILE",
        dest="imports",
        help="add colleagues' ratings, or results of Label Studio or Argilla; opens no page",
    )
    parser.add_argument("--csv", metavar="FILE", help="write all ratings as CSV; - prints them; opens no page")
    parser.add_argument("--label-studio", metavar="FILE", help="write the tasks for Label Studio, and FILE.xml")
    parser.add_argument("--argilla", metavar="FILE", help="write the records for Argilla, and FILE.settings.json")
    parser.add_argument("--results", action="store_true", help="print the results so far; opens no page")
    parser.add_argument("--uri", help="the tracking store for the results; default: where the run was tracked")
    add_json_argument(parser, "print the results as JSON; opens no page")


def main(arguments: argparse.Namespace) -> int:
    """Open the page, or exchange ratings by files."""
    from harness.rating import rated_answers
    from harness.rating.session import RatingSession
    from harness.rating.task import TaskRequest, open_task
    from harness.utils.find_run import find_run

    if len(arguments.runs) > 2 or (arguments.base and len(arguments.runs) == 2):
        hint = "give one or two runs; compare more of them in pairs"
        raise HarnessError("harness rate", "one answer is graded, or two are compared", hint)
    folders = [find_run(run) for run in arguments.runs]
    models = rated_answers.find_rated_models(folders, with_base=arguments.base)
    request = TaskRequest(arguments.items, arguments.seed, arguments.rubric, tuple(arguments.suites), arguments.name)
    task = open_task(models, request)
    session = RatingSession(task, lambda summary: _publish(arguments, session, summary))
    if not _exchange_files(arguments, session):
        _open_page(arguments, session)
    return 0


def _exchange_files(arguments: argparse.Namespace, session: RatingSession) -> bool:
    """Import and export what the options ask for; return whether there is such an option."""
    from harness.rating import exchange
    from harness.rating.summary import summarize_ratings

    task, store = session.task, session.store
    for file in map(Path, arguments.imports):
        for rater, count in exchange.import_ratings(task, store, file).items():
            print(f"{file}: {count} new records of {rater}", file=sys.stderr)
    for file, tasks, suffix in (
        (arguments.label_studio, exchange.label_studio_tasks, ".xml"),
        (arguments.argilla, exchange.argilla_records, ".settings.json"),
    ):
        if file is not None:
            texts = tasks(task)
            write_text(file, texts[0])
            write_text(f"{file}{suffix}", texts[1])
            print(f"{file}\n{file}{suffix}")
    if arguments.csv is not None:
        write_text(arguments.csv, exchange.format_csv(task, store))
    if arguments.imports or arguments.results or arguments.json:
        if not store.raters():
            raise HarnessError(str(task.folder), "nobody has rated yet", "leave out --results to open the page")
        summary = summarize_ratings(task, store)
        _publish(arguments, session, summary)
    options = (arguments.label_studio, arguments.argilla, arguments.csv)
    return bool(arguments.imports or arguments.results or arguments.json or any(file is not None for file in options))


def _open_page(arguments: argparse.Namespace, session: RatingSession) -> None:
    """Serve the page until Ctrl-C."""
    from urllib.parse import quote

    from harness.rating.server import Access, serve_session

    access = Access.create(arguments.host)
    rater = quote(arguments.rater or "")

    def announce(port: int) -> None:
        address = access.address(port, rater)
        print(f"rate {len(session.task.items)} items: {address}", flush=True)
        print("the ratings are stored at once; Ctrl-C stops the page, and the same command resumes", flush=True)
        if not arguments.no_open:
            _open_browser(pages.enter_context(_redirect_page(address)))

    with contextlib.ExitStack() as pages, contextlib.suppress(KeyboardInterrupt):
        serve_session(session, access, arguments.port, announce)
    _print_progress(arguments, session.task, session)


@contextlib.contextmanager
def _redirect_page(address: str) -> Iterator[str]:
    """Write a page that leads to the address, readable for this user alone, and yield its own address.

    The command line of a browser is visible to all users of a machine, so the token must not be on it.
    """
    import os
    import tempfile
    from html import escape

    target = escape(address)
    descriptor, name = tempfile.mkstemp(prefix="harness-rate-", suffix=".html")  # with the rights 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={target}">')
            stream.write(f'<title>harness rate</title><p><a href="{target}">harness rate</a></p>\n')
        yield Path(name).as_uri()
    finally:
        Path(name).unlink(missing_ok=True)


def _open_browser(address: str) -> None:
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _print_progress(arguments: argparse.Namespace, task: RatingTask, session: RatingSession) -> None:
    for rater in session.store.raters():
        state = session.describe_state(rater)
        print(f"{rater}: {state['done']} of {state['total']}{', finished' if state['finished'] else ''}")
    runs = " ".join(map(shlex.quote, [*arguments.runs, *(["--base"] if arguments.base else [])]))
    name = f" --name {shlex.quote(arguments.name)}" if arguments.name else ""
    print(f"resume: harness rate {runs}{name}; results so far: add --results")


def _publish(arguments: argparse.Namespace, session: RatingSession, summary: RatingSummary) -> None:
    """Write the summary, the report and the tracked results, and print the results."""
    from harness.runner.publish_ratings import publish_ratings
    from harness.terminal.rating_table import format_ratings
    from harness.utils.json_files import json_safe

    def warn(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    pages = publish_ratings(session.task, session.store, summary, arguments.uri, warn)
    if arguments.json:
        print_json(json_safe(summary.to_json()))
        return
    print_renderable(format_ratings(summary))
    for page in pages:
        print(page)
    sys.stdout.flush()
