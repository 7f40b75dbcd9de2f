"""Checks of what a plugin's methods return. Each returns what is wrong, or None.

They look at types, shapes and finiteness alone, and import nothing heavy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from harness.types import Example, Finding, InvalidRecord, Item, Message, Record, Share, Span, Stage, StageSource

Arguments = Callable[[], Mapping[str, Any]]

_STATS_KEY = re.compile(r"[A-Za-z0-9_.-]+")
_PLAIN_TYPES = (type(None), bool, int, float, str)


def check_spans(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Template.render`."""
    return _check_sequence(result, Span, "spans")


def check_messages(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `RowFormat.parse_row`."""
    return _check_sequence(result, Message, "messages")


def check_strings(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a sequence of strings."""
    return _check_sequence(result, str, "strings")


def check_string(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a single string."""
    return None if isinstance(result, str) else f"returned {_describe(result)}, not a string"


def check_bool(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a truth value; numpy's are accepted."""
    return None if type(result).__name__ in ("bool", "bool_") else f"returned {_describe(result)}, not True or False"


def check_mapping(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a mapping with string keys."""
    if not isinstance(result, Mapping):
        return f"returned {_describe(result)}, not a dict"
    return next((f"has the key {key!r}, which is not a string" for key in result if not isinstance(key, str)), None)


def check_iterable(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check something to iterate over."""
    is_iterable = hasattr(result, "__iter__") and not isinstance(result, str | bytes | Mapping)
    return None if is_iterable else f"returned {_describe(result)}, not an iterator"


def check_record(value: Any) -> str | None:
    """Check a value that `Source.records` yields."""
    if isinstance(value, InvalidRecord):
        return None
    if not isinstance(value, Record):
        return f"{_describe(value)}, not a Record or InvalidRecord,"
    has_columns = isinstance(value.data, Mapping)
    return None if has_columns else f"a Record ({value.location}) with {_describe(value.data)} instead of a dict"


def check_finding(value: Any) -> str | None:
    """Check a value that `Check.find_issues` yields."""
    if not isinstance(value, Finding):
        return f"{_describe(value)}, not a Finding,"
    is_text = isinstance(value.location, str) and isinstance(value.text, str)
    return None if is_text else "a Finding whose location or text is not a string,"


def check_variant(value: Any) -> str | None:
    """Check a name that `Mitigation.variants` yields."""
    return None if isinstance(value, str) and value else f"{_describe(value)}, not a name"


def check_stages(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Mode.stages`."""
    problem = _check_sequence(result, Stage, "stages") or ("returned no stage" if not result else None)
    return problem or next((problem for stage in result for problem in _stage_problems(stage)), None)


def check_selection(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Mode.select`: a truth value for each row, or None."""
    if result is None:
        return None
    problem = _check_length(result, len(arguments()["rows"]), "truth values")
    is_bool = (type(value).__name__ in ("bool", "bool_") for value in result) if problem is None else ()
    return problem or (None if all(is_bool) else "returned values that are not True or False")


def check_order(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Mode.order`: a finite number for each row, or None."""
    if result is None:
        return None
    problem = _check_length(result, len(arguments()["rows"]), "keys")
    if problem is not None:
        return problem
    bad = next((index for index, value in enumerate(result) if not _is_finite(value)), None)
    return None if bad is None else f"returned {_describe(result[bad])} for row {bad}, not a finite number"


def check_transformed_stages(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Mitigation.transform_stages`: the same stages, by name and order."""
    problem = _check_sequence(result, Stage, "stages")
    before = [stage.name for stage in arguments()["stages"]]
    if problem is not None:
        return problem
    after = [stage.name for stage in result]
    if len(before) != len(after):
        return f"turns {len(before)} stages into {len(after)}; a mitigation must keep the number of stages"
    if before != after:
        return f"turns the stages {before} into {after}; keep names and order"
    return next((problem for stage in result for problem in _stage_problems(stage)), None)


def check_written_row(value: Any) -> str | None:
    """Check a value that `Mitigation.generate_rows` yields."""
    return (
        None if isinstance(value, Example | InvalidRecord) else f"{_describe(value)}, not an Example or InvalidRecord,"
    )


def check_settings(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check settings that a cache is keyed by: a dict that JSON can hold, or None."""
    if result is None:
        return None
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"returned settings that JSON cannot hold ({error})"
    return check_mapping(component, result, arguments)


def check_model(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Mitigation.prepare_model`."""
    is_model = hasattr(result, "named_parameters") and callable(result)
    return None if is_model else f"returned {_describe(result)}, not the model to train"


def check_labels(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Mitigation.filter_labels`: integer labels of the batch's shape."""
    if result is None:
        return None
    expected = tuple(arguments()["batch"]["labels"].shape)
    if not _is_tensor(result) or tuple(result.shape) != expected:
        return f"returned {_describe(result)}, not a tensor of labels of shape {expected}"
    is_integer = not result.dtype.is_floating_point and str(result.dtype) != "torch.bool"
    return None if is_integer else f"returned labels of {result.dtype}, not of integers"


def check_function(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a function, or None."""
    is_function = result is None or callable(result)
    return None if is_function else f"returned {_describe(result)}, not a function or None"


def check_token_values(result: Any, arguments: Sequence[Any]) -> str | None:
    """Check what the function of `Mitigation.token_penalty` returns: one number for each of its n tokens."""
    expected = (len(arguments[0]),)
    is_valid = _is_tensor(result) and tuple(result.shape) == expected
    return None if is_valid else f"its function returned {_describe(result)}, not a tensor of shape {expected}"


def check_scalar(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a term of the loss: a tensor without dimensions, or None."""
    is_scalar = result is None or (_is_tensor(result) and result.ndim == 0)
    return None if is_scalar else f"returned {_describe(result)}, not a scalar tensor or None"


def check_optimizer(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Optimizer.build`: a torch optimizer of the weights that it received."""
    if not hasattr(result, "step") or not hasattr(result, "param_groups") or not hasattr(result, "state_dict"):
        return f"returned {_describe(result)}, not a torch optimizer"
    expected, actual = (
        sorted(id(weight) for group in groups for weight in group["params"])
        for groups in (arguments()["param_groups"], result.param_groups)
    )
    if expected != actual:
        return f"returned an optimizer of {len(actual)} weights; it must have each of the {len(expected)} weights once"
    return None


def check_param_groups(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `param_groups`: dicts with `params` and settings."""
    problem = _check_sequence(result, Mapping, "dicts")
    if problem is not None:
        return problem
    for index, group in enumerate(result):
        if not isinstance(group.get("params"), list | tuple):
            return f"returned a group without a list 'params' at index {index}"
        if "lr" in group:
            return f"returned a group with 'lr' at index {index}; use 'lr_scale', a factor of train.learning_rate"
        if not _is_finite(group.get("lr_scale", 1)) or group.get("lr_scale", 1) < 0:
            return f"returned {_describe(group['lr_scale'])} as 'lr_scale' at index {index}, not a finite number"
    return None


def check_factor(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a factor of the learning rate: a finite number, at least 0."""
    valid = _is_finite(result) and result >= 0
    return None if valid else f"returned {_describe(result)} for step {arguments()['step']}, not a number of at least 0"


def check_token_weights(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Mitigation.token_weights`: one floating-point number for each target."""
    expected = tuple(arguments()["targets"].shape)
    if not _is_tensor(result) or tuple(result.shape) != expected:
        return f"returned {_describe(result)}, not a tensor of weights of shape {expected}"
    return None if result.dtype.is_floating_point else f"returned weights of {result.dtype}, not of floats"


def check_penalty_value(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the value of a weight penalty: a number, a scalar tensor or None."""
    is_number = type(result) is float or (isinstance(result, Real) and not isinstance(result, bool))
    return None if is_number else check_scalar(component, result, arguments)


def check_stats(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `stage_stats` or `on_evaluation` of a mitigation: key -> finite number."""
    problem = check_mapping(component, result, arguments)
    for key, value in result.items() if problem is None else ():
        if not _STATS_KEY.fullmatch(key):
            return f"has the key {key!r}; use letters, digits, '_', '.' and '-'"
        if not _is_finite(value):
            return f"has {key!r}: {_describe(value)}, not a finite number"
    return problem


def check_count(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a number of bytes or tokens."""
    is_count = isinstance(result, int) and not isinstance(result, bool) and result >= 0
    return None if is_count else f"returned {_describe(result)}, not a number of at least 0"


def check_state(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check that a state can be read back: tensors, numbers and strings, nested in dicts and lists."""
    return check_mapping(component, result, arguments) or next(_unreadable_values(result, "state"), None)


def check_statistics(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the result of `Metric.statistics`: one vector of finite numbers for each score."""
    if not isinstance(result, Mapping):
        return f"{_item(arguments)}: returned {_describe(result)}, not a dict of score name -> statistics"
    for name, vector in result.items():
        if not isinstance(vector, Sequence) or isinstance(vector, str | bytes):
            return f"{_item(arguments)}: the statistics of {name!r} are {_describe(vector)}, not a tuple of numbers"
        for value in vector:
            if not _is_finite(value):
                return f"{_item(arguments)}: the statistics of {name!r} hold {_describe(value)}, not a finite number"
    return None


def check_computed(value: Any) -> str | None:
    """Check what `Metric.prepare` and `Metric.measure` yield: an item and its value."""
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], Item):
        return f"{_describe(value)}, not (item, value),"
    try:
        json.dumps(value[1], allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"a value of item {value[0].id} that JSON cannot hold ({error})"
    return None


def check_number(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a number; it may be infinite or NaN."""
    is_number = type(result) is float or (isinstance(result, Real) and not isinstance(result, bool))
    return None if is_number else f"returned {_describe(result)}, not a number"


def check_margin(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check a margin: a finite number above 0. A base score that is not finite has no margin."""
    valid = (_is_finite(result) and result > 0) or not math.isfinite(arguments()["base"])
    return None if valid else f"returned {_describe(result)}, not a finite number above 0"


def check_score_name(component: Any, result: Any, arguments: Arguments) -> str | None:
    """Check the name of one of the metric's scores."""
    known = tuple(component.score_names)
    return None if result in known else f"returned {_describe(result)}, not one of its scores {known}"


def _item(arguments: Arguments) -> str:
    item: Item = arguments()["item"]
    return f"item {item.id}"


def _check_length(result: Any, expected: int, noun: str) -> str | None:
    if not hasattr(result, "__len__") or isinstance(result, str | bytes | Mapping):
        return f"returned {_describe(result)}, not {expected} {noun}"
    return None if len(result) == expected else f"returned {len(result)} {noun} for {expected} rows"


def _check_sequence(result: Any, element_type: type, noun: str) -> str | None:
    if not isinstance(result, tuple | list):
        return f"returned {_describe(result)}, not a tuple of {noun}"
    for index, element in enumerate(result):
        if not isinstance(element, element_type):
            return f"returned {_describe(element)} at index {index}, not only {noun}"
    return None


def _stage_problems(stage: Stage) -> Iterator[str]:
    """Yield what is wrong with the types of a stage's fields. Names, roles and settings are checked with the plan."""
    name = f"the stage {stage.name!r}"
    if not isinstance(stage.name, str):
        yield f"returned a stage whose name is {_describe(stage.name)}, not a string"
    sequences: tuple[tuple[str, Any, type], ...] = (
        ("sources", stage.sources, StageSource), ("shares", stage.shares, Share), ("suites", stage.suites, str)
    )  # fmt: skip
    for field, values, element_type in sequences:
        problem = _check_sequence(values, element_type, f"{element_type.__name__} objects")
        if problem is not None:
            yield f"has {field} of {name} that are wrong: {problem.removeprefix('returned ')}"
            return
    if not isinstance(stage.train, Mapping):
        yield f"gives {name} {_describe(stage.train)} as train, not a dict"
    if stage.mitigations is not None and not isinstance(stage.mitigations, Mapping):
        yield f"gives {name} {_describe(stage.mitigations)} as mitigations, not a dict or None"
    if stage.adapter not in ("continue", "merge", "new"):
        yield f"gives {name} the adapter {stage.adapter!r}, not 'continue', 'merge' or 'new'"
    for source in stage.sources:
        if not isinstance(source.source, str) or not isinstance(source.role, str):
            yield f"has a source of {name} whose name or role is not a string: {source.source!r}, {source.role!r}"
        if source.limit is not None and (not isinstance(source.limit, int) or isinstance(source.limit, bool)):
            yield f"limits the source {source.source!r} of {name} to {_describe(source.limit)}, not an integer or None"
    for share in stage.shares:
        problem = _check_sequence(share.sources, str, "names of sources")
        if problem is not None or not _is_finite(share.amount):
            yield f"has a share of {name} that is wrong: its sources are {share.sources!r}, its amount {share.amount!r}"


def _is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor of torch: an array of numpy has other data types, and no graph."""
    return hasattr(getattr(value, "dtype", None), "is_floating_point")


def _unreadable_values(value: Any, path: str) -> Iterator[str]:
    """Yield each value that `torch.load` with `weights_only` would refuse, with its path."""
    if isinstance(value, Mapping) and type(value).__name__ in ("dict", "OrderedDict"):
        for key, element in value.items():
            if not isinstance(key, str | int):
                yield f"{path} has the key {key!r}; use strings or integers"
            yield from _unreadable_values(element, f"{path}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, element in enumerate(value):
            yield from _unreadable_values(element, f"{path}[{index}]")
    elif type(value) not in _PLAIN_TYPES and type(value).__name__ not in ("Tensor", "Parameter"):
        yield f"{path} is {_describe(value)}, which cannot be read back; use tensors, numbers, strings, dicts and lists"


def _is_finite(value: Any) -> bool:
    if type(value) is float:  # nearly every value: `isinstance` of an abstract class takes ten times as long
        return math.isfinite(value)
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _describe(value: Any) -> str:
    """Return a short description of a value: a number or None itself, else its type (and shape)."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    described = f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
    return described if shape is None else f"{described} of shape {tuple(shape)}"
