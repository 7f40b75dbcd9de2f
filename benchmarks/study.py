"""Compare mitigations on SmolLM2-135M in three task pairs: what is learned, and what may be forgotten.

    python benchmarks/study.py --cost                            # tokens of every part; trains nothing
    python benchmarks/study.py [--folder runs/study]             # everything that is missing
    python benchmarks/study.py --pair lists --arms naive,ewc --seeds 0,1       # a piece of it
    OMP_NUM_THREADS=1 python benchmarks/study.py --on ray        # a run for each CPU core (docs/forgetting.md)
    python benchmarks/study.py --pair lists --choices docs/evidence.json       # with the values that were chosen there
    python benchmarks/study.py --quick --pair lists              # a few steps: shows that it runs, no result
    python benchmarks/study.py --table docs/evidence.json

`specs/study/` has one spec for each pair, with all methods as arms. `docs/evidence.md` has the protocol, and the order
that was expected before any run. A study that was interrupted is continued by the same command, and so are its pieces.
A finished pair replaces its result in the output file. Until then the file has the values that were chosen. The results
of other pairs stay there, so that pairs can run on different machines.

A pair has two experiments. In the first, each value of `TRIES` is an arm, with a seed of its own, evaluated on the
held-out rows of the training files. `method_study.choose_values` chooses a value of each method. The second begins when
all values are chosen. It is the experiment of the spec with these values.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from method_study import (
    Method,
    choice_arms,
    choose_values,
    find_run,
    format_tables,
    read_versions,
    run_arms,
    summarize_arms,
)

SPECS = Path(__file__).resolve().parent.parent / "specs" / "study"
PAIRS = ("lists", "help_desk_lists", "chinese_tasks")
CHOICE_SEED = 100
NO_CHANGES: Mapping[str, Any] = {}

TRIES: dict[str, tuple[str, tuple[float, float]]] = {
    "lower-lr": ("factor", (0.3, 0.1)),
    "mixing-written": ("share", (0.1, 0.2)),
    "mixing-self": ("share", (0.1, 0.2)),
    "kl-written": ("strength", (1, 3)),
    "kl-self": ("strength", (1, 3)),
    "replay": ("share", (0.1, 0.2)),
    "replay-written": ("share", (0.1, 0.2)),
    "l2sp": ("strength", (0.1, 1)),
    "ewc": ("strength", (1, 10)),
    "lora": ("learning_rate", (1e-3, 3e-3)),
    "wise-ft": ("alpha", (0.5, 0.75)),
    "reweight": ("floor", (0.01, 0.1)),
    "freeze": ("share", (0.5, 0.75)),
}
"""Method -> its hyper-parameter and the values that are tried. The specs have the first value."""


@dataclass(frozen=True)
class Scope:
    """What a call runs, and where.

    Attributes:
        arms: Arms of the specs; empty for all.
        seeds: Seeds of the second experiment; None for all.
        changes: Changes of every spec, dotted key -> value.
        on: Where arms run side by side, as for `harness.run_experiment`; None: one after the other.
        choices: Pair -> the choices of its methods, if they were made before. Other pairs choose.
    """

    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    on: str | None = None
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def load_pair(pair: str) -> dict[str, Any]:
    """Return the spec of a pair, with relative paths as in its file."""
    return dict(json.loads((SPECS / f"{pair}.json").read_text(encoding="utf-8")))


def quick_pair(pair: str, arms: Sequence[str]) -> dict[str, Any]:
    """Return the spec of a pair with few steps, one seed and few items, of the named arms and the controls."""
    spec = shorten(load_pair(pair))
    spec["evaluate"] = {name: {**suite, "limit": 30} for name, suite in spec["evaluate"].items()}
    kept = {*(arms or spec["arms"]["named"]), *spec["arms"]["baseline"]}
    spec["arms"]["named"] = {name: changes for name, changes in spec["arms"]["named"].items() if name in kept}
    return spec


def shorten(value: Any) -> Any:
    """Return a part of a spec with few steps, one seed, and few and short written rows."""
    if isinstance(value, Mapping):
        limits = {"steps": 2, "prompts": 24, "max_new_tokens": 48, "batch_size": 2, "evaluate_steps": 1, "seeds": 1}
        return {
            key: min(inner, limits[key]) if key in limits and isinstance(inner, int) else shorten(inner)
            for key, inner in value.items()
        }
    return [shorten(inner) for inner in value] if isinstance(value, list) else value


def methods_of(spec: Mapping[str, Any]) -> dict[str, Method]:
    """Return the methods of a pair: the arms of its spec but naive, with a gap where their hyper-parameter is."""
    return {
        name: Method(*TRIES[name], changes=with_gap(changes, TRIES[name][0]))
        for name, changes in spec["arms"]["named"].items()
        if name != "naive"
    }


def with_gap(changes: Mapping[str, Any], option: str) -> dict[str, Any]:
    """Return the changes of an arm with None at the option, which may end a dotted key."""
    return {
        key: None
        if key.rpartition(".")[2] == option
        else with_gap(inner, option)
        if isinstance(inner, Mapping)
        else inner
        for key, inner in changes.items()
    }


def choice_changes(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that make the experiment of the choice: one seed, all values, validation rows at its end."""
    axes = {key: spec["arms"][key] for key in ("gain", "forgetting")}
    suites = {
        name: {**suite, "source": suite["source"].removesuffix("_heldout")}
        for name, suite in spec["evaluate"].items()
        if "source" in suite
    }
    named = choice_arms(methods_of(spec))
    return {
        "name": f"{spec['name']}-choice",
        "seed": CHOICE_SEED,
        "evaluate": suites,
        "checks": {"contamination": {"drop": True}},  # of the validation rows, which are rows of the training file
        "train": {key: value for key, value in spec["train"].items() if not key.startswith("evaluate_")},
        "arms": {"named": named, "baseline": "naive", **axes},
    }


def result_changes(spec: Mapping[str, Any], choices: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the changes that make the experiment of the result: the arms with the chosen values."""
    methods = methods_of(spec)
    named = {name: methods[name].arm(choice["value"]) for name, choice in choices.items()}
    return {"name": spec["name"], "arms": {**spec["arms"], "named": {"naive": {}, **named}}}


def run_pair(folder: Path, pair: str, scope: Scope, *, quick: bool = False) -> dict[str, Any] | None:
    """Run the part of a pair that is in the scope and has not run.

    Returns:
        The result as plain data. It has `choices` alone if runs of the second experiment are missing, and it is None if
        runs of the first are.
    """
    spec = quick_pair(pair, scope.arms) if quick else load_pair(pair)
    located = with_absolute_paths(spec)
    arms = scope.arms or tuple(spec["arms"]["named"])
    methods = methods_of(spec)
    if pair in scope.choices:
        choices = {name: choice for name, choice in scope.choices[pair].items() if name in methods}
    else:
        tries = ["naive", *(f"{name}-{value:g}" for name in arms if name in methods for value in methods[name].values)]
        report = run_arms(folder, located, {**scope.changes, **choice_changes(spec)}, tries, scope.on)
        if report is None:
            print(f"{pair}: the values are not chosen yet: run the other arms too")
            return None
        choices = choose_values(report, methods)
    changes = {**scope.changes, **result_changes(spec, choices)}
    seeds = range(spec["arms"]["seeds"]) if scope.seeds is None else scope.seeds
    selected = [f"{name},seed={seed}" for name in arms for seed in seeds]
    report = run_arms(folder, located, changes, selected, scope.on)
    if report is None:
        print(f"{pair}: some arms or seeds are missing")
        return {"choices": choices}
    experiment = find_run(folder, spec["name"])
    assert experiment is not None
    equal_gain = report["equal_gain"] or {"gain": None, "limited_by": None}
    return {
        "versions": read_versions(experiment, ("torch", "transformers")),
        "seeds": spec["arms"]["seeds"],
        "choices": choices,
        "equal_gain": equal_gain["gain"],
        "limited_by": equal_gain["limited_by"],
        "failed": report["missing"],
        "arms": list(summarize_arms(report)),
    }


def with_absolute_paths(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec of `specs/study/` whose relative paths are absolute, so that it can be stored elsewhere."""

    def absolute(path: Any) -> Any:
        if isinstance(path, list):
            return [absolute(each) for each in path]
        return path if "://" in path else str((SPECS / path).resolve())

    sources = {
        name: {kind: {**options, "path": absolute(options["path"])} for kind, options in source.items()}
        for name, source in spec["sources"].items()
    }
    return {**{key: value for key, value in spec.items() if key != "$schema"}, "sources": sources}


# -- cost --------------------------------------------------------------------------------------------------------------


def cost_of_pair(pair: str, changes: Mapping[str, Any] = NO_CHANGES) -> dict[str, int]:
    """Return the tokens of a pair, computed from the plan of each arm: nothing is trained or written.

    Args:
        pair: The pair.
        changes: Changes of its spec, dotted key -> value.

    Returns:
        `runs`; `trained`: tokens of the rows of all steps, and of the rows on which `kl` is computed; `evaluated`:
        tokens of the rows of the suites, all evaluations after the base model's together; `written`: at most so many
        generated tokens.
    """
    spec = load_pair(pair)
    choices = {name: {"value": method.values[0]} for name, method in methods_of(spec).items()}
    total = dict.fromkeys(("runs", "trained", "evaluated", "written"), 0)
    for experiment in (choice_changes(spec), result_changes(spec, choices)):
        seeds = experiment["arms"].get("seeds", 1)
        for arm in experiment["arms"]["named"].values():
            overrides = {**changes, **experiment, "arms": None, **arm}
            for key, tokens in cost_of_run(SPECS / f"{pair}.json", overrides).items():
                total[key] += seeds * tokens
            total["runs"] += seeds
    return total


def cost_of_run(file: Path, overrides: Mapping[str, Any]) -> dict[str, int]:
    """Return the trained, evaluated and written tokens of one run, see `cost_of_pair`."""
    from harness.cli import planned_spec
    from harness.model.cached_tokenizer import load_light_tokenizer
    from harness.runner.prepare import prepare_run
    from harness.runner.rows_to_write import list_rows_to_write
    from harness.spec.arms import format_overrides
    from harness.spec.plan import stage_mitigations

    arguments = argparse.Namespace(spec=str(file), overrides=list(format_overrides(overrides)))
    loaded, registry, plan = planned_spec.load_spec_and_plan(arguments)
    prepared = prepare_run(loaded, registry, plan=plan, load_light=load_light_tokenizer)
    suites = {
        name: sum(len(row.input_ids) for row in suite.rows) for name, suite in prepared.data.tokenized_suites.items()
    }
    trained = evaluated = 0
    for stage in prepared.data.stages:
        lengths = [len(row.input_ids) for row in stage.rows]
        trained += sum(lengths[index] for sequence in stage.order for index in sequence)
        every = stage.stage.train["evaluate_steps"]
        within = stage.stage.train["evaluate_suites"] or suites
        evaluations = stage.count_steps() // every if every else 0
        evaluated += sum(suites.values()) + evaluations * sum(suites[name] for name in within)
        kl = stage_mitigations(prepared.plan, stage.stage).get("kl")
        if kl is not None:
            rows = prepared.data.tokenized_rows[kl["source"]]
            trained += round(stage.count_steps() * kl["rows"] * sum(len(row.input_ids) for row in rows) / len(rows))
    written = 0
    for task in list_rows_to_write(prepared.plan, registry):
        options = stage_mitigations(prepared.plan, prepared.plan.stages[task.stage_index - 1])[task.mitigation]
        length = options.get("writing", options)["max_new_tokens"]
        available = len(prepared.data.training_examples[task.source])
        asked = available if task.limit is None else task.limit if task.writes_prompts else min(task.limit, available)
        written += asked * length * (2 if task.writes_prompts else 1)
    return {"trained": trained, "evaluated": evaluated, "written": written}


def format_cost(costs: Mapping[str, Mapping[str, int]]) -> str:
    """Return the tokens of each pair as a table in Markdown."""
    lines = [
        "| pair | runs | trained tokens | evaluated tokens | written tokens, at most |",
        "| --- " + "| ---: " * 4 + "|",
    ]
    total = {key: sum(cost[key] for cost in costs.values()) for key in ("runs", "trained", "evaluated", "written")}
    for pair, cost in {**costs, "together": total}.items():
        lines.append(
            f"| {pair} | {cost['runs']} | " + " | ".join(_format_tokens(cost, key) for key in list(cost)[1:]) + " |"
        )
    return "\n".join(lines) + "\n"


def _format_tokens(cost: Mapping[str, int], key: str) -> str:
    return f"{cost[key] / 1e6:.1f} million"


# -- result ------------------------------------------------------------------------------------------------------------


def store_results(output: Path, results: Mapping[str, Any]) -> None:
    """Write what is known of pairs; what is known of other pairs stays in the file.

    Args:
        output: The file of the result.
        results: Pair -> its result, or its `choices` alone, which do not replace a result.
    """
    stored = json.loads(output.read_text(encoding="utf-8"))["pairs"] if output.is_file() else {}
    new = {name: result for name, result in results.items() if "arms" in result or "arms" not in stored.get(name, {})}
    merged = {**stored, **new}
    pairs = {pair: merged[pair] for pair in PAIRS if pair in merged}
    document = {"command": "python benchmarks/study.py", "pairs": pairs}
    output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load_choices(file: Path | None) -> dict[str, dict[str, Any]]:
    """Return pair -> the choices that a result has; {} without a file."""
    pairs = {} if file is None else json.loads(file.read_text(encoding="utf-8"))["pairs"]
    return {pair: result["choices"] for pair, result in pairs.items()}


def copy_plot(folder: Path, pair: str, plots: Path) -> None:
    """Draw the plots of a finished pair again, and copy that of gain and forgetting.

    Args:
        folder: The folder of the study.
        pair: The pair.
        plots: The folder of the plots of the page.
    """
    from harness.report.html.write import write_experiment_page

    experiment = find_run(folder, load_pair(pair)["name"])
    assert experiment is not None
    write_experiment_page(experiment)
    plots.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(experiment / "plots" / "gain-forgetting.svg", plots / f"evidence_{pair}.svg")


def format_result(result: Mapping[str, Any]) -> str:
    """Return the tables of all pairs of a result in Markdown."""
    return "\n".join(f"### {pair}\n\n{format_tables(values)}" for pair, values in result["pairs"].items())


# -- command -----------------------------------------------------------------------------------------------------------


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("docs/evidence.json"), help="file of the result")
    parser.add_argument("--plots", type=Path, help="folder of the plots; if left out, images beside the output file")
    parser.add_argument("--pair", action="append", choices=PAIRS, dest="pairs", help="run this pair only; repeatable")
    parser.add_argument("--arms", default="", help="arms to run, separated by commas; all if left out")
    parser.add_argument("--seeds", help="seeds to run, separated by commas; all if left out")
    parser.add_argument("--choices", type=Path, help="take chosen values from this result; choose them if left out")
    parser.add_argument("--on", help="run arms side by side: ray, or ray://HOST:PORT; one after the other if left out")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps and one seed of the named arms, in FOLDER/quick; no result"
    )
    parser.add_argument("--cost", action="store_true", help="print the tokens of every pair and run nothing")
    parser.add_argument("--table", type=Path, help="print the tables of this result and run nothing")
    given = parser.parse_args(words)
    given.pairs = given.pairs or list(PAIRS)
    given.arms = tuple(filter(None, given.arms.split(",")))
    known = {name for pair in given.pairs for name in load_pair(pair)["arms"]["named"]}
    if unknown := sorted(set(given.arms) - known):
        parser.error(f"there is no arm {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    given.seeds = None if given.seeds is None else tuple(map(int, given.seeds.split(",")))
    return given


def main(words: Sequence[str] | None = None) -> None:
    """Run the study or a piece of it, or print its cost or its tables."""
    given = parse_arguments(words)
    if given.cost:
        print(format_cost({pair: cost_of_pair(pair) for pair in given.pairs}), end="")
        return
    if given.table is not None:
        print(format_result(json.loads(given.table.read_text(encoding="utf-8"))), end="")
        return
    quick = Path("quick", "-".join(given.arms) or "all") if given.quick else Path()
    folder = (given.folder / quick).resolve()
    scope = Scope(given.arms, given.seeds, on=given.on, choices=load_choices(given.choices))
    results = {pair: run_pair(folder, pair, scope, quick=given.quick) for pair in given.pairs}
    known = {pair: values for pair, values in results.items() if values is not None}
    print(format_result({"pairs": known}), end="")
    if known and not given.quick:
        store_results(given.output, known)
        for pair in known:
            if "arms" in known[pair]:
                copy_plot(folder, pair, given.plots or given.output.parent / "images")


if __name__ == "__main__":
    main()
