"""The base class of mitigations: methods that take part in a run, each with a default that changes nothing.

The core calls them in this order:

| method                        | called                                             | typical use                    |
|-------------------------------|----------------------------------------------------|--------------------------------|
| `check_compatible`            | before anything is loaded                          | reject other mitigations       |
| `check_stage`                 | before anything is loaded                          | reject settings of a stage     |
| `transform_stages`            | before anything is loaded                          | choose data and settings       |
| `generate_rows`               | after loading, or before each stage                | let the model write rows       |
| `prepare_model`               | before the first stage, and for a new adapter      | add an adapter, freeze weights |
| `held_bytes`, `extra_tokens`  | in `harness plan`                                  | state the memory that it needs |
| `on_stage_start`              | at the start of each stage                         | copy weights, measure          |
| `param_groups`                | at the start of each stage, after `on_stage_start` | settings of single weights     |
| `filter_labels`               | every micro-batch, before any loss of the step     | remove targets from the loss   |
| `token_weights`               | every micro-batch                                  | weigh the tokens of the loss   |
| `token_penalty`               | every micro-batch                                  | add to the loss of each token  |
| `batch_penalty`, `extra_loss` | every micro-batch                                  | add to the loss                |
| `on_step_restart`             | when a step begins again, after memory ran out     | forget the interrupted step    |
| `add_weight_penalty`          | every step, before or after clipping               | add to the gradient            |
| `on_before_step`              | every step, before the optimizer                   | read or change the gradient    |
| `stage_stats`                 | once a stage, in its first step                    | report what was measured       |
| `on_step_end`                 | every step, after the optimizer                    | read or change the weights     |
| `on_evaluation`               | after each mid-stage evaluation                    | change weights that forget     |
| `after_checkpoint`            | after each checkpoint, in the main process         | copy or upload it              |
| `on_stage_end`                | at the end of each stage                           | learn from the finished stage  |
| `variants`                    | at the end of each stage, last                     | offer other weights            |

After a step, an evaluation that is due comes first, then `on_evaluation`, then a checkpoint that is due. A run that
resumes from this checkpoint does not call `on_evaluation` again for the step.

`state_dict` is called at checkpoints and between stages, `load_state_dict` after `on_stage_start` of a resumed run or
before the `on_stage_start` of a stage with new instances.

Random choices are made from the `seed` that `prepare_model` and `on_stage_start` receive, with `harness.seeding`.
Global random state is not read: the same seed gives the same result, however many random numbers were drawn before.

A `batch` has `input_ids` and `labels` of shape (B, T), and what the model needs to separate rows: `attention_mask`
(B, T) where each line is one row with padding, else `position_ids` (B, T) that restart at each row of a line. So
`model(**harness.training.loss.model_inputs(batch))` runs a model on the batch again, e.g. the base model.

This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.interfaces import result_checks
from harness.interfaces.guard import ElementCheck, FunctionCheck, GuardedComponent, ResultCheck

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from harness.interfaces.prompt_rows import PromptRows
    from harness.types import Example, InvalidRecord, Stage, SuiteScores, TokenizedExample


class Mitigation(GuardedComponent):
    """One method to forget less. Every method's default changes nothing.

    A subclass's module imports nothing heavy at its top: `harness validate` creates mitigations to build the plan.
    """

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {
        "check_compatible": None,
        "check_stage": None,
        "transform_stages": result_checks.check_transformed_stages,
        "generate_rows": result_checks.check_iterable,
        "generation_settings": result_checks.check_settings,
        "prepare_model": result_checks.check_model,
        "held_bytes": result_checks.check_count,
        "extra_tokens": result_checks.check_count,
        "on_stage_start": None,
        "filter_labels": result_checks.check_labels,
        "token_weights": result_checks.check_token_weights,
        "token_penalty": result_checks.check_function,
        "batch_penalty": result_checks.check_scalar,
        "extra_loss": result_checks.check_scalar,
        "on_step_restart": None,
        "add_weight_penalty": result_checks.check_penalty_value,
        "param_groups": result_checks.check_param_groups,
        "on_before_step": None,
        "stage_stats": result_checks.check_stats,
        "on_step_end": None,
        "on_evaluation": result_checks.check_stats,
        "after_checkpoint": None,
        "on_stage_end": None,
        "variants": result_checks.check_iterable,
        "state_dict": result_checks.check_state,
        "load_state_dict": None,
    }

    element_checks: ClassVar[Mapping[str, ElementCheck]] = {
        "variants": result_checks.check_variant,
        "generate_rows": result_checks.check_written_row,
    }
    function_checks: ClassVar[Mapping[str, FunctionCheck]] = {"token_penalty": result_checks.check_token_values}

    priority: ClassVar[int] = 0
    """Mitigations are applied in ascending priority, then by name; never in the order of the JSON file."""

    adds_adapter: ClassVar[bool] = False
    """Whether `prepare_model` adds an adapter to the model."""

    supports_quantized_weights: ClassVar[bool] = True
    """Whether the adapter can be trained on quantized weights. False if `prepare_model` reads or changes weights."""

    works_on_shards: bool = False
    """Whether the mitigation works while `train.sharding` divides the weights among processes.

    True if it neither reads nor changes weights or gradients in a step, and does not run the model again.
    """

    requires_logits: bool = False
    """Whether `batch_penalty` is called. If so, the logits of all trained tokens of a batch are in memory at once;
    `token_penalty` avoids that."""

    weighs_tokens_in_parts: bool = False
    """Whether `token_weights` may be called with a part of a batch's tokens at a time.

    If so, the logits of a whole batch never exist at once. Set it if the weight of a token depends on that token alone.
    """

    composes_token_weights: ClassVar[bool] = False
    """Whether the weights of tokens may be multiplied with those of another mitigation that sets this too.

    Otherwise a spec with two mitigations that weigh tokens is refused.
    """

    generates_with: Literal["base", "current"] = "base"
    """The model that `generate_rows` receives.

    `base`: the model as loaded, once before the first stage. `current`: the model with which a stage begins, before
    its adapter is replaced.
    """

    unmixed_sources: Sequence[str] = ()
    """Sources whose prompts this mitigation writes rows to for itself. They are not mixed into the rows of a stage:
    its `on_stage_start` receives them.

    To train on written rows, set `StageSource.written_by` in `transform_stages` instead.
    """

    unmixed_limit: int | None = None
    """Maximum number of prompts of each of `unmixed_sources`, chosen by the seed; None: all."""

    monitored_suites: Sequence[str] | None = ()
    """Suites whose primary scores `on_evaluation` needs; None: every general suite with one, at least one.
    A stage whose mid-stage evaluations do not measure them is refused before anything is loaded.
    """

    writes_prompts: bool = False
    """Whether `generate_rows` lets the model write the prompts too, by `PromptRows.write_prompts`.

    The rows of the source are then placeholders alone. A model whose tokenizer has no chat template is refused.
    """

    penalty_timing: Literal["before_clip", "after_clip"] = "after_clip"
    """When `add_weight_penalty` is called.

    `before_clip`: before the gradient is clipped. Task gradient and penalty are clipped together, as if the penalty
    were in the loss. `after_clip`: after it. The penalty neither shrinks the task's step nor is clipped.
    """

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject a combination with other mitigations of the spec. Reads options alone; nothing is loaded yet.

        Args:
            others: the other mitigations by name.

        Raises:
            HarnessError: one of them cannot be combined with this one, or options contradict each other.
        """

    def check_stage(self, stage: Stage) -> None:
        """Reject settings of a stage that uses this mitigation. Nothing is loaded yet.

        Args:
            stage: the stage with its training settings, without `planned_steps`, `planned_saves` and `planned_rows`.

        Raises:
            HarnessError: the stage cannot be trained with this mitigation.
        """

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return the stages with other data, shares or settings.

        The result must depend on the options alone: the plan is built by another instance than the one that trains.

        Args:
            stages: the stages of the plan, in order.

        Returns:
            As many stages, with the same names, in the same order.
        """
        return stages

    def generate_rows(
        self, stage: Stage, model: PreTrainedModel, prompts: PromptRows, *, seed: int
    ) -> Iterator[Example | InvalidRecord]:
        """Yield rows that the model writes; they replace those of a source.

        Called for each source that a stage marks with `StageSource.written_by`, and for `unmixed_sources`, without
        gradients and with the model in evaluation mode. The core verifies the mask of each row, mixes the rows with the
        shares of the stage, and stores them in the run's folder, from which a resumed run reads them. The call is made
        on an instance without state, in the main process only.

        Args:
            stage: The stage that uses the rows.
            model: See `generates_with`.
            prompts: The training rows of the source; `prompts.write_responses` lets the model answer them.
            seed: Seed of everything random here, in [0, 2**32); the same for each stage and each mitigation.

        Yields:
            A conversation that ends with a response, or why a row is not used. The core computes its id.
        """
        raise NotImplementedError

    def generation_settings(self) -> Mapping[str, Any] | None:
        """Return what the written rows depend on besides model, template, prompts and seed.

        Include a version that changes with the code. Rows of the base model are cached by it, for all runs and all
        mitigations that return equal settings.

        Returns:
            Plain JSON values; None: the rows are not cached.
        """
        return None

    def prepare_model(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """Decide which weights are trainable, e.g. by an adapter.

        Called once before the first stage, and again before a later stage that begins with a new adapter.

        Args:
            model: the model as loaded, or as earlier mitigations prepared it.
            seed: seed of everything random here, in [0, 2**32). Derive one for each purpose with
                `harness.seeding.derive_seed(seed, "<name>", …)`.

        Returns:
            The model to train; it may be a wrapper of the one received.
        """
        return model

    def held_bytes(self, model: PreTrainedModel, *, itemsize: int) -> int:
        """Return the bytes that the mitigation holds on the model's device while it trains, for `harness plan`.

        Args:
            model: the model after `prepare_model`, on the meta device: it has shapes and no values.
            itemsize: bytes of a number in the computation: 2 under autocast, else 4.
        """
        return 0

    def extra_tokens(self, rows: Mapping[str, Sequence[TokenizedExample]]) -> int:
        """Return the tokens of additional passes whose activations are alive with those of a batch.

        Args:
            rows: source -> its rows.
        """
        return 0

    def on_stage_start(
        self,
        stage: Stage,
        model: PreTrainedModel,
        rows: Mapping[str, Sequence[TokenizedExample]],
        *,
        seed: int,
    ) -> None:
        """Record where the stage begins.

        Args:
            stage: the stage that begins, with `planned_steps`, `planned_saves` and `planned_rows`.
            model: the model with the weights that the stage begins with.
            rows: tokenized training rows of the sources that the options name, by source.
            seed: seed of everything random in this stage, `on_stage_end` included, in [0, 2**32). Each stage has its
                own; it is the same when the stage is resumed. A `prepare_model` for this stage received the same seed.
        """

    def filter_labels(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Return labels to train on instead of the batch's.

        Called without gradients for each micro-batch of a step before any of their losses is computed: the mean over
        trained tokens counts the remaining ones.

        Args:
            model: the model as it is at this step.
            batch: the micro-batch; the module's docstring lists what it has.

        Returns:
            Labels of shape (B, T), -100 where not trained; None: those of the batch.
        """
        return None

    def token_weights(
        self, logits: torch.Tensor, targets: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the weight of each trained token in the loss of the task. Called without gradients.

        The loss that is trained and logged is the sum of weight times negative log-likelihood, divided by the number of
        trained tokens of the step, and not by the sum of the weights. The mean without weights is logged as `nll`.

        Args:
            logits: (N, V), the predictions of the N trained tokens, detached, in the order of
                `labels[:, 1:][labels[:, 1:] != -100]`. With `weighs_tokens_in_parts`, of a part of them. N may be 0.
            targets: (N,), the trained tokens.
            batch: The whole micro-batch, as for `batch_penalty`.

        Returns:
            (N,), at least 0.
        """
        raise NotImplementedError

    def token_penalty(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]
    ) -> Callable[[torch.Tensor, slice], torch.Tensor] | None:
        """Return a function that adds to the loss of each trained token of this micro-batch.

        It is called for the N trained tokens in chunks, so the logits of a whole batch are never in memory. With
        arguments (logits, place) it returns what is added, (n,), with its graph: `logits` (n, V) predict the tokens
        `place`, a slice of the N tokens in the order of `labels[:, 1:][labels[:, 1:] != -100]`.

        Args:
            model: the model as it is at this step.
            batch: `input_ids` and `labels` of shape (B, T).

        Returns:
            The function; None: nothing to add.
        """
        return None

    def batch_penalty(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor], logits: torch.Tensor
    ) -> torch.Tensor | None:
        """Return a term of the loss from this micro-batch. Called only where `requires_logits` is set.

        Args:
            model: the model as it is at this step.
            batch: the micro-batch; the module's docstring lists what it has.
            logits: (N, V), the predictions of the N trained tokens in the order of
                `labels[:, 1:][labels[:, 1:] != -100]`. N may be 0.

        Returns:
            A scalar with its graph, averaged over the micro-batch's trained tokens; None: nothing to add.
        """
        return None

    def extra_loss(self, model: PreTrainedModel, token_fraction: float) -> torch.Tensor | None:
        """Return a term of the loss from rows that are not in the micro-batch.

        Called for every micro-batch. The results of all calls of a step, in all processes, are summed.

        Args:
            model: the model as it is at this step.
            token_fraction: this micro-batch's fraction of the step's trained tokens, in [0, 1]. The fractions of a step
                sum to 1.

        Returns:
            A scalar with its graph; None: nothing to add.
        """
        return None

    def on_step_restart(self, model: PreTrainedModel) -> None:
        """Forget what the methods of the micro-batches have kept since the last step.

        Memory ran out, and `train.halve_batches` computes the step again with the same rows in smaller micro-batches.
        The gradients are gone, and `token_weights`, `token_penalty`, `batch_penalty` and `extra_loss` are called again
        for all micro-batches of the step. `filter_labels` is not.

        Args:
            model: the model, with the weights that the step began with.
        """

    def add_weight_penalty(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Add the gradient of a function of the weights to their `.grad`, in place.

        Called once a step, without gradients, in every process alike. The gradients are those of the whole step, over
        all micro-batches and processes, without loss scaling. `penalty_timing` chooses between before and after
        clipping. A mitigation that changes the weights in `on_step_end` only returns the value.

        Args:
            model: the model with its gradients.

        Returns:
            The value of the penalty, to be logged as `penalty/<mitigation>`; None: nothing to log.
        """
        return None

    def param_groups(self, model: PreTrainedModel) -> Sequence[Mapping[str, Any]]:
        """Return settings of single weights, e.g. another learning rate.

        Called in each stage before its first step. Weights in no group have the settings of `train`. A weight in groups
        of several mitigations has the settings of all: their `lr_scale` are multiplied, other keys must agree.

        Args:
            model: The model to train.

        Returns:
            Groups. Each has `params`, a list of weights, and settings: `lr_scale`, a factor of the learning rate,
            `weight_decay`, or another key of the optimizer's groups.
        """
        return ()

    def on_before_step(self, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
        """Read or change the gradients that the optimizer gets, in place and without gradients.

        Called once a step, in every process alike, after clipping and all weight penalties.

        Args:
            model: The model with its gradients.
            optimizer: The optimizer, with the `lr` of this step in its groups.
        """

    def stage_stats(self) -> Mapping[str, float]:
        """Return numbers measured at the start of the stage.

        Returns:
            Key -> value; logged as `<mitigation>/<key>` with the stage's first step. Keys consist of letters, digits,
            `_`, `.` and `-`.
        """
        return {}

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Read or change the weights after the optimizer's step, without gradients.

        Args:
            model: the model with its new weights.
            learning_rate: that of this step; 0 when loss scaling found infinite gradients and the step was skipped.
        """

    def on_evaluation(
        self, stage: Stage, model: PreTrainedModel, scores: Mapping[str, SuiteScores]
    ) -> Mapping[str, float]:
        """Read the scores of a mid-stage evaluation, and read or change the weights. Called without gradients.

        Called in every process alike, with the scores that the main process computed. Early stopping has decided
        already, from the same scores; `restore_best` restores the weights that were evaluated, not changed ones.

        Args:
            stage: The stage, without `planned_steps`, `planned_saves` and `planned_rows`.
            model: The model with the weights that were evaluated.
            scores: Suite -> its scores, of the suites and metrics that mid-stage evaluations measure.

        Returns:
            Key -> value; logged with the evaluation as `<mitigation>/<key>`. Keys as for `stage_stats`.
        """
        return {}

    def after_checkpoint(self, path: Path) -> None:
        """Use a checkpoint that is complete. Called in the main process, after older checkpoints were deleted.

        Args:
            path: The checkpoint's folder, `checkpoint-<step>`. Do not change it: its files have checksums.
        """

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Learn from the stage that has ended.

        Args:
            stage: the stage that has ended.
            model: the model with the weights that the stage ends with.
            rows: the rows that the stage trained on.
        """

    def variants(self, model: PreTrainedModel) -> Iterator[str]:
        """Yield the names of other weights of the stage that has ended; each is evaluated in addition.

        Called after every mitigation's `on_stage_end`. While a name is yielded the model has that variant's weights.
        When the iterator ends or is closed it has its own again, bit for bit.

        Args:
            model: the model, changed in place.

        Yields:
            The name of a variant, e.g. `alpha=0.5`.
        """
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """Return the state that is stored with each checkpoint.

        It is complete between any two steps and between stages: an instance that loads it, within a stage after
        `on_stage_start`, continues exactly as this one would.

        Returns:
            Tensors, numbers and strings, nested in dicts.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state.

        Args:
            state: the result of `state_dict`.
        """
