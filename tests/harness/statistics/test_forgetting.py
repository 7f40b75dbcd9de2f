"""The summaries of the stage × task matrix, compared with published numbers and with each other."""

from __future__ import annotations

import numpy as np
import pytest

from harness.spec import matrix_summaries
from harness.statistics import forgetting

NAN = float("nan")

# Exact match after each stage in the published logs of O-LoRA (github.com/cmnfriend/O-LoRA at 07117e1, order 1:
# dbpedia, amazon, yahoo, agnews). The logs have no base model and no scores on later tasks.
OLORA_LOGS = {
    "SeqFT": (
        [[97.0132], [89.1053, 55.25], [74.7632, 53.4474, 72.2763], [79.5263, 52.6711, 48.8421, 90.0263]],
        67.77,
        -14.50,
    ),
    "IncLoRA": (
        [[98.7105], [82.4737, 57.0132], [80.7763, 44.9474, 72.3816], [79.5, 40.8158, 64.1447, 90.0132]],
        68.62,
        -14.55,
    ),
    "O-LoRA": (
        [[98.7105], [98.5526, 57.7632], [97.4079, 57.4079, 71.9079], [97.7368, 56.0658, 71.0395, 88.6184]],
        78.37,
        -1.18,
    ),
}


def lower_triangle(rows: list[list[float]]) -> np.ndarray:
    matrix = np.full((len(rows) + 1, len(rows)), NAN)
    for stage, row in enumerate(rows, start=1):
        matrix[stage, : len(row)] = row
    return matrix


@pytest.mark.parametrize("name", OLORA_LOGS)
def test_average_and_backward_transfer_match_published_logs(name: str) -> None:
    rows, average, transfer = OLORA_LOGS[name]
    matrix = lower_triangle(rows)
    assert forgetting.average_accuracy(matrix) == pytest.approx(average, abs=0.005)
    assert forgetting.backward_transfer(matrix) == pytest.approx(transfer, abs=0.005)


def test_forgetting_definitions_differ_on_an_improving_task() -> None:
    """0.90, 0.95, 0.97 on the first task: the pinned values of the three definitions in use."""
    # The second task does not change, so the mean over both is half of the first one's.
    first = np.array([[0.5, 0.5, 0.5], [0.90, 0.5, 0.5], [0.95, 0.6, 0.5], [0.97, 0.6, 0.7]])
    by_task = {
        "Chaudhry": 2 * forgetting.forgetting(first),
        "Mammoth": 2 * forgetting.forgetting_from_best(first),
        "first-last": 2 * forgetting.forgetting_since_learned(first),
    }
    assert by_task == {
        "Chaudhry": pytest.approx(-0.02),
        "Mammoth": pytest.approx(0.0),
        "first-last": pytest.approx(-0.07),
    }


def test_forgetting_is_positive_and_the_negative_of_backward_transfer() -> None:
    matrix = np.array([[0.2, 0.1], [0.9, 0.1], [0.6, 0.8]])
    assert forgetting.forgetting(matrix) == pytest.approx(0.3)
    assert forgetting.forgetting_since_learned(matrix) == pytest.approx(0.3)
    assert forgetting.backward_transfer(matrix) == pytest.approx(-0.3)


def test_rising_loss_counts_as_forgetting() -> None:
    """NLL 1.0 after its own stage and 1.4 at the end: 0.4 nats of forgetting."""
    nll = np.array([[3.0, 2.5], [1.0, 2.6], [1.4, 0.7]])
    matrix = forgetting.utility(nll, higher_is_better=False)
    assert forgetting.forgetting(matrix) == pytest.approx(0.4)
    assert forgetting.backward_transfer(matrix) == pytest.approx(-0.4)
    assert forgetting.forward_transfer(matrix) == pytest.approx(-0.1), (
        "the second task was 2.6 before its stage, base 2.5"
    )
    assert forgetting.average_accuracy(matrix) == pytest.approx(-1.05)
    assert np.array_equal(forgetting.utility(nll, higher_is_better=True), nll)


def test_forward_transfer_is_relative_to_base_model() -> None:
    matrix = np.array([[0.2, 0.1, 0.3], [0.9, 0.4, 0.3], [0.9, 0.8, 0.2], [0.9, 0.8, 0.9]])
    assert forgetting.forward_transfer(matrix) == pytest.approx(((0.4 - 0.1) + (0.2 - 0.3)) / 2)


def test_learning_accuracy_uses_the_stage_of_each_task() -> None:
    matrix = np.array([[0.0, 0.0], [0.8, 0.0], [0.1, 0.6]])
    assert forgetting.learning_accuracy(matrix) == pytest.approx(0.7)


def test_single_task_has_no_forgetting() -> None:
    matrix = np.array([[0.2], [0.9]])
    for summary in (
        forgetting.forgetting,
        forgetting.forgetting_from_best,
        forgetting.forgetting_since_learned,
        forgetting.backward_transfer,
    ):
        assert np.isnan(summary(matrix))
    assert np.isnan(forgetting.forward_transfer(matrix))
    assert forgetting.average_accuracy(matrix) == pytest.approx(0.9)


def test_general_ability_delta_and_relative_forgetting() -> None:
    general = np.array([[0.5, 0.8], [0.4, 0.8], [0.3, 0.6]])
    assert forgetting.general_ability_delta(general) == pytest.approx(-0.2)
    # ((0.1 + 0.2) / 0.5 + (0.0 + 0.2) / 0.8) / 2 suites / 2 stages
    assert forgetting.relative_forgetting(general) == pytest.approx(100 * (0.6 + 0.25) / 4)


def test_relative_forgetting_of_rising_loss_is_positive() -> None:
    assert forgetting.relative_forgetting(
        forgetting.utility(np.array([[2.0], [3.0]]), higher_is_better=False)
    ) == pytest.approx(50.0)


def test_relative_forgetting_of_zero_base_is_nan() -> None:
    assert np.isnan(forgetting.relative_forgetting(np.array([[0.0], [0.5]])))


@pytest.mark.parametrize(
    ("method", "naive", "stderr", "fraction"),
    [(0.1, 0.5, 0.05, 0.8), (0.6, 0.5, 0.05, -0.2), (0.0, 0.5, 0.25, None), (0.0, -0.5, 0.1, None)],
)
def test_fraction_is_recovered_only_if_naive_run_forgot(
    method: float, naive: float, stderr: float, fraction: float | None
) -> None:
    assert forgetting.fraction_recovered(method, naive, stderr) == (
        fraction if fraction is None else pytest.approx(fraction)
    )


def test_each_task_contributes_a_contrast_of_two_stages() -> None:
    """Every summary is the mean over its tasks of the difference that its interval is computed from."""
    random = np.random.default_rng(0)
    for _ in range(20):
        matrix = random.random((5, 4))
        for name, summary in forgetting.SUMMARIES.items():
            tasks = [stage for stage in (1, 2, 3, 4) if matrix_summaries.takes_part(name, stage, 4)]
            contrasts = []
            for stage in tasks:
                scores = matrix[:, stage - 1]
                first, second = forgetting.contrast_of_task(name, scores, stage)
                contrasts.append(scores[first] - (0 if second is None else scores[second]))
            assert summary(matrix) == pytest.approx(np.mean(contrasts)), name


def test_best_stage_does_not_depend_on_rounding() -> None:
    scores = np.array([0.1, 0.3, 0.1 + 0.2, 0.2])
    assert scores[2] > scores[1]
    assert forgetting.contrast_of_task("forgetting", scores, 1) == (1, 3)


def test_every_summary_keeps_leading_axes() -> None:
    replicates = np.random.default_rng(0).random((5, 4, 3))
    for name, summary in forgetting.SUMMARIES.items():
        by_replicate = np.array([summary(replicate) for replicate in replicates])
        assert np.allclose(summary(replicates), by_replicate), name
    for name, general in forgetting.GENERAL_SUMMARIES.items():
        assert np.allclose(general(replicates), np.array([general(replicate) for replicate in replicates])), name


def test_stage_may_have_several_tasks_or_none() -> None:
    matrix = np.array([[0.1, 0.2, 0.3], [0.7, 0.5, 0.3], [0.6, 0.1, 0.3], [0.5, 0.4, 0.9]])
    task_stage = (1, 1, 3)
    assert forgetting.backward_transfer(matrix, task_stage) == pytest.approx((-0.2 - 0.1) / 2)
    assert forgetting.forward_transfer(matrix, task_stage) == pytest.approx(0.0)
    assert forgetting.learning_accuracy(matrix, task_stage) == pytest.approx((0.7 + 0.5 + 0.9) / 3)


@pytest.mark.parametrize("task_stage", [None, (1, 2), (0, 1, 2), (1, 2, 3)])
def test_tasks_without_stage_are_rejected(task_stage: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="2 stages and 3 tasks"):
        forgetting.backward_transfer(np.zeros((3, 3)), task_stage)


def test_pareto_set_excludes_dominated_points() -> None:
    points = [(0.5, 0.3), (0.5, 0.1), (0.4, 0.2), (0.9, 0.9), (0.9, 0.9), (NAN, 0.0)]
    assert forgetting.pareto(points) == (1, 3, 4)
