"""The contract of mitigations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.data.written_rows import validate_written_rows
from harness.interfaces.mitigation import Mitigation
from harness.testing.checks.declaration import check_light_creation
from harness.testing.component_under_test import ComponentUnderTest, require
from harness.testing.fixed_prompt_rows import build_prompt_rows
from harness.types import IGNORE_INDEX, Example, Stage, StageSource, SuiteScores, TokenizedExample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

STAGE = Stage("one", (StageSource("given", "domain"), StageSource("chat", "general")), {"epochs": 1})
ROWS = [TokenizedExample(f"row-{i}", "given", (5, 6, 7, 8 + i, 9, 2), (-100, -100, 7, 8 + i, 9, 2)) for i in range(3)]
WORSE_SCORES = SuiteScores("general", "accuracy", {"accuracy": 0.9}, {"accuracy": 0.1}, {"accuracy": True}, 0.02)


def check_logits(subject: ComponentUnderTest) -> None:
    """It requests logits if and only if it uses them."""
    mitigation = subject.create()
    uses_logits = type(mitigation).batch_penalty is not Mitigation.batch_penalty
    require(
        mitigation.requires_logits is uses_logits,
        f"requires_logits is {mitigation.requires_logits}, but batch_penalty is {'' if uses_logits else 'not '}defined",
    )


def check_methods(subject: ComponentUnderTest) -> None:
    """Its public methods are those of the interface: a misspelled one would never be called."""
    methods = {name for name, value in vars(type(subject.create())).items() if callable(value) and name[0] != "_"}
    extra = sorted(methods - set(vars(Mitigation)))
    require(not extra, f"{extra} are not methods of Mitigation; begin the names of other methods with '_'")


def check_stages(subject: ComponentUnderTest) -> None:
    """It keeps the sources, names and order of the stages."""
    stages = (STAGE, Stage("two", STAGE.sources, {"epochs": 2}))
    transformed = subject.create().transform_stages(stages)
    require([stage.name for stage in transformed] == ["one", "two"], "the stages have other names, or another order")
    before, after = ({part.source for stage in plan for part in stage.sources} for plan in (stages, transformed))
    require(before <= after, f"it removes the sources {sorted(before - after)}")


def check_state(subject: ComponentUnderTest) -> None:
    """An instance that loads the state has the same state."""
    import torch

    first, second = subject.create(), subject.create()
    run_empty_stage(first, subject.build_model())
    state = first.state_dict()
    second.load_state_dict(state)
    before, after = dict(_flatten_state(state)), dict(_flatten_state(second.state_dict()))
    require(before.keys() == after.keys(), f"the keys differ: {sorted(before.keys() ^ after.keys())}")
    for path, value in before.items():
        require(torch.equal(torch.as_tensor(value), torch.as_tensor(after[path])), f"the values of {path} differ")


def check_seed(subject: ComponentUnderTest) -> None:
    """The same seed gives the same state and the same model."""
    import torch

    results = []
    for _ in range(2):
        mitigation = subject.create()
        model = run_empty_stage(mitigation, subject.build_model())
        results.append((dict(_flatten_state(mitigation.state_dict())), dict(model.named_parameters())))
    for what, first, second in zip(("state", "model"), *results, strict=True):
        require(first.keys() == second.keys(), f"the names of the {what} differ")
        different = [key for key in first if not torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key]))]
        require(not different, f"the {what} differs between two runs: {different[:3]}; use the seed that it receives")


def check_penalty(subject: ComponentUnderTest) -> None:
    """The penalty of the weights and its gradient are 0 while no weight has changed."""
    import torch

    mitigation = subject.create()
    model = run_empty_stage(mitigation, subject.build_model())
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    value = mitigation.add_weight_penalty(model)
    require(value is None or float(value) == 0, f"the penalty is {value}")
    unchanged = all(weight.grad is not None and bool((weight.grad == 1).all()) for weight in weights)
    require(unchanged, "the gradient of the penalty is not 0")


def check_token_weights(subject: ComponentUnderTest) -> None:
    """The weights of tokens are finite and at least 0, for any number of tokens; also in parts, if it says so."""
    import torch

    mitigation, model, batch = _begin_stage(subject)
    if type(mitigation).token_weights is Mitigation.token_weights:
        return
    logits, targets = _predictions(model, batch)
    with torch.no_grad():
        weights = mitigation.token_weights(logits, targets, batch)
        require(bool(weights.isfinite().all()) and bool((weights >= 0).all()), f"the weights are {weights.tolist()}")
        mitigation.token_weights(logits[:0], targets[:0], batch)
        if mitigation.weighs_tokens_in_parts:
            parts = [mitigation.token_weights(logits[i : i + 2], targets[i : i + 2], batch) for i in (0, 2, 4, 6)]
            in_parts = torch.cat(parts)[: len(weights)]
            require(torch.allclose(in_parts, weights), "the weights of a part differ; unset `weighs_tokens_in_parts`")


def check_token_penalty(subject: ComponentUnderTest) -> None:
    """The penalty of each token is finite, and the same in chunks as for all tokens at once."""
    import torch

    mitigation, model, batch = _begin_stage(subject)
    logits, _ = _predictions(model, batch)
    with torch.no_grad():
        penalty = mitigation.token_penalty(model, batch)
        if penalty is None:
            return
        at_once = penalty(logits, slice(0, len(logits)))
        require(bool(at_once.isfinite().all()), f"the penalties are {at_once.tolist()}")
        chunks = [slice(begin, min(begin + 2, len(logits))) for begin in range(0, len(logits), 2)]
        in_chunks = torch.cat([penalty(logits[place], place) for place in chunks])
    require(torch.allclose(in_chunks, at_once, atol=1e-6), "the penalties of chunks differ from those of all tokens")


def check_labels(subject: ComponentUnderTest) -> None:
    """The labels that it returns are those of the batch, or not trained."""
    import torch

    mitigation, model, batch = _begin_stage(subject)
    with torch.no_grad():
        labels = mitigation.filter_labels(model, batch)
    if labels is not None:
        unknown = (labels != batch["labels"]) & (labels != IGNORE_INDEX)
        require(not bool(unknown.any()), f"it trains other targets: {labels[unknown].tolist()[:5]}")


def check_loss(subject: ComponentUnderTest) -> None:
    """The terms that it adds to the loss are finite, and have a graph."""
    mitigation, model, batch = _begin_stage(subject)
    model.train()
    terms = {"extra_loss": mitigation.extra_loss(model, 1.0)}
    if mitigation.requires_logits:
        terms["batch_penalty"] = mitigation.batch_penalty(model, batch, _predictions(model, batch)[0])
    for name, term in terms.items():
        if term is not None:
            require(bool(term.isfinite()), f"{name} is {term.item()}")
            require(term.requires_grad, f"{name} has no graph, so it does not train; do not detach it")


def check_step_restart(subject: ComponentUnderTest) -> None:
    """A step that begins again after `on_step_restart` has the same loss, whatever was computed before."""
    mitigation, model, batch = _begin_stage(subject)
    model.eval()
    interrupted = _loss_terms(mitigation, model, batch)
    mitigation.on_step_restart(model)
    restarted = _loss_terms(mitigation, model, batch)
    different = [name for name, value in interrupted.items() if value != restarted[name]]
    require(not different, f"a restarted step has another {', '.join(different)}; define `on_step_restart`")


def _loss_terms(mitigation: Any, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, float | None]:
    """Return what the methods of a micro-batch add to its loss, and the sum of the weights of its tokens."""
    import torch

    with torch.no_grad():
        logits, targets = _predictions(model, batch)
        extra = mitigation.extra_loss(model, 1.0)
        penalty = mitigation.token_penalty(model, batch)
        terms = {"extra_loss": extra, "token_penalty": penalty and penalty(logits, slice(0, len(logits))).sum()}
        if mitigation.requires_logits:
            terms["batch_penalty"] = mitigation.batch_penalty(model, batch, logits)
        if type(mitigation).token_weights is not Mitigation.token_weights:
            terms["token_weights"] = mitigation.token_weights(logits, targets, batch).sum()
    return {name: None if term is None else round(float(term), 4) for name, term in terms.items()}


def check_evaluation(subject: ComponentUnderTest) -> None:
    """It reacts to the same scores in the same way: otherwise the weights of several processes would differ."""
    import torch

    results = []
    for _ in range(2):
        mitigation, model, _ = _begin_stage(subject)
        scores = dict.fromkeys(("general", *(mitigation.monitored_suites or ())), WORSE_SCORES)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(0.01)
            stats = dict(mitigation.on_evaluation(STAGE, model, scores))
        results.append((stats, [weight.detach().clone() for weight in model.parameters()]))
    (first, weights), (second, others) = results
    require(first == second, f"it returns {first} and {second} for the same scores")
    equal = all(torch.equal(weight, other) for weight, other in zip(weights, others, strict=True))
    require(equal, "the weights differ after the same scores")


def check_generated_rows(subject: ComponentUnderTest) -> None:
    """The rows that it lets the model write are conversations, and the same for the same seed."""
    written = []
    for _ in range(2):
        mitigation = subject.create()
        if type(mitigation).generate_rows is Mitigation.generate_rows or not _writes_rows(mitigation):
            return
        rows = mitigation.generate_rows(STAGE, subject.build_model().eval(), build_prompt_rows(), seed=3)
        written.append(list(rows))
    require(written[0] == written[1], "two calls with the same seed write other rows")
    require(any(isinstance(row, Example) for row in written[0]), "it writes no row from 10 prompts")
    validate_written_rows(written[0], subject.name)


def _writes_rows(mitigation: Any) -> bool:
    """Return whether the options of the example let it write rows."""
    later = replace(STAGE, name="two", sources=(StageSource("later", "domain"), StageSource("chat", "general")))
    stages = mitigation.transform_stages((STAGE, later))
    return bool(mitigation.unmixed_sources) or any(part.written_by for stage in stages for part in stage.sources)


def _begin_stage(subject: ComponentUnderTest) -> tuple[Any, PreTrainedModel, dict[str, torch.Tensor]]:
    """Return the component at the first step of a stage, its model, and a micro-batch with padding."""
    import torch

    torch.set_num_threads(1)
    mitigation = subject.create()
    model: PreTrainedModel = mitigation.prepare_model(subject.build_model(), seed=3)
    mitigation.on_stage_start(STAGE, model, {"given": ROWS, "chat": ROWS}, seed=3)
    ids = torch.tensor([[5, 6, 7, 8, 9, 2], [5, 6, 7, 2, 0, 0]])  # (B, T)
    labels = torch.tensor([[-100, -100, 7, 8, 9, 2], [-100, 6, 7, 2, -100, -100]])
    return mitigation, model, {"input_ids": ids, "labels": labels, "attention_mask": (ids != 0).long()}


def _predictions(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (N, V) and targets (N,) of the trained tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    return logits[targets != IGNORE_INDEX], targets[targets != IGNORE_INDEX]


def run_empty_stage(mitigation: Any, model: PreTrainedModel) -> PreTrainedModel:
    """Run one stage without an optimizer step, with the calls of a run.

    Returns:
        The model that would have been trained.
    """
    import torch

    torch.set_num_threads(1)
    prepared: PreTrainedModel = mitigation.prepare_model(model, seed=3)
    mitigation.on_stage_start(STAGE, prepared, {"given": ROWS, "chat": ROWS}, seed=3)
    mitigation.on_stage_end(STAGE, prepared, ROWS)
    return prepared


def _flatten_state(state: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (keys, tensor or number) of a nested state; strings and lists as one value of their text."""
    import torch

    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _flatten_state(value, (*path, key))
        elif isinstance(value, torch.Tensor | int | float):
            yield (*path, key), value
        else:
            yield (*path, key, str(value)), 0


CHECKS = (
    check_light_creation,
    check_logits,
    check_methods,
    check_stages,
    check_state,
    check_seed,
    check_penalty,
    check_token_weights,
    check_token_penalty,
    check_labels,
    check_loss,
    check_step_restart,
    check_evaluation,
    check_generated_rows,
)
