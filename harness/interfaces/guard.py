"""Name the component in every failure of a plugin: which component, of which distribution and version, in which method.

The base class of each component type extends `GuardedComponent`. When a plugin's class is defined, the methods of the
interface that it implements are wrapped: an exception becomes a `ComponentError`, and so does a result of a wrong type.
A `HarnessError` passes unchanged, since it already says where, what and what to do.
"""

from __future__ import annotations

import errno
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, cast

from harness.errors import ComponentError, HarnessError, InvalidRow
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.types import Item

ResultCheck = Callable[[Any, Any, Callable[[], Mapping[str, Any]]], str | None]
"""(component, result, function that returns the arguments by name) -> what is wrong; None if nothing is."""

ElementCheck = Callable[[Any], str | None]
"""value -> what is wrong with a value that an iterator yields; None if nothing is."""

FunctionCheck = Callable[[Any, Sequence[Any]], str | None]
"""(value, arguments) -> what is wrong with what a returned function returns; None if nothing is."""

IDENTITY_ATTRIBUTE = "_harness_identity"
"""The attribute of a component's instance that holds its `ComponentIdentity`; it is not an option."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class ComponentIdentity:
    """Which component an instance is.

    Attributes:
        component_type: Singular, e.g. `mitigation`.
        name: The name in the spec.
        distribution: The distribution that provides it.
    """

    component_type: str
    name: str
    distribution: str

    def __str__(self) -> str:
        kind = self.component_type.replace("_", " ")
        return f"{kind} {self.name!r} of {distribution_and_version(self.distribution)}"


def distribution_and_version(distribution: str) -> str:
    """Return the name of a distribution with its version, if it is installed."""
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return distribution


class GuardedComponent:
    """Base class of all component types. A subclass lists the methods of its interface."""

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {}
    """Method of the interface -> the check of its result; None: any result."""

    element_checks: ClassVar[Mapping[str, ElementCheck]] = {}
    """Method that returns an iterator -> the check of each value: what is wrong; None if nothing is."""

    function_checks: ClassVar[Mapping[str, FunctionCheck]] = {}
    """Method that returns a function -> the check of what that function returns."""

    required_members: ClassVar[tuple[str, ...]] = ()
    """Methods and attributes that every component of the type must define. "a or b": one of the two is enough."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Wrap the methods of the interface that the class implements."""
        super().__init_subclass__(**options)
        if "guarded_methods" in vars(cls):
            return  # the interface itself: its own methods are defaults
        for method, check_result in cls.guarded_methods.items():
            function = inspect.getattr_static(cls, method, None)
            if _is_callable(function) and _is_implementation(cls, method, function):
                setattr(
                    cls,
                    method,
                    _guard(function, _interface_method(cls, method), check_result, cls.element_checks.get(method)),
                )


def identify(component: Any) -> str:
    """Return what to call a component in an error."""
    identity = getattr(component, IDENTITY_ATTRIBUTE, None)
    return str(identity) if identity is not None else f"{type(component).__module__}.{type(component).__qualname__}"


def missing_members(component: GuardedComponent) -> list[str]:
    """Return the required members that a component does not define."""
    return [
        name
        for name in component.required_members
        if not any(_is_defined(component, alternative) for alternative in name.split(" or "))
    ]


def _is_defined(component: GuardedComponent, name: str) -> bool:
    return getattr(component, name, None) is not None and not _is_default(type(component), name)


def component_error(
    component: Any, method: str, error: BaseException, arguments: Sequence[object] = ()
) -> ComponentError:
    """Return the error that names the component and the method in which an exception was raised.

    Args:
        component: The component.
        method: Name of the method.
        error: The exception.
        arguments: Arguments of the call; an item among them is named.
    """
    item = next((f" (item {argument.id})" for argument in arguments if isinstance(argument, Item)), "")
    return ComponentError(f"{identify(component)}, {method}", f"{describe_exception(error)}{item}")


def describe_exception(error: BaseException) -> str:
    """Return the class and the message of an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def passes_unchanged(error: BaseException) -> bool:
    """Return whether an exception says enough already, or is handled by its class.

    These are errors with a remedy, an invalid row, and too little memory.
    """
    return isinstance(error, HarnessError | InvalidRow | MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_own_os_error(identity: ComponentIdentity | None, error: BaseException) -> bool:
    """Return whether a built-in could not read or write a file: the command names the file and the remedy.

    An `OSError` of a plugin is never one: it may come from its network or its programs.

    Args:
        identity: Which component raised it; None: not known.
        error: What it raised.
    """
    is_file_error = isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK_ERRORS)
    return is_file_error and identity is not None and identity.distribution == CORE_DISTRIBUTION


def _passes(component: Any, error: BaseException) -> bool:
    return passes_unchanged(error) or is_own_os_error(getattr(component, IDENTITY_ATTRIBUTE, None), error)


def _is_callable(member: Any) -> bool:
    """Return whether a member of a class is a method: a function, or e.g. a static method or a cached function."""
    return callable(member) or isinstance(member, staticmethod | classmethod | functools.partialmethod)


def _bind(member: Any, component: Any) -> Callable[..., Any]:
    """Return a member of a class as the method of an instance, as attribute access would."""
    bind = getattr(type(member), "__get__", None)
    return cast(Callable[..., Any], member if bind is None else bind(member, component, type(component)))


def _is_implementation(cls: type, method: str, function: Any) -> bool:
    return not hasattr(function, "_is_guarded") and not _is_default(cls, method)


def _is_default(cls: type, name: str) -> bool:
    """Return whether a member is the one that the interface itself defines."""
    for base in cls.__mro__:
        if name in vars(base):
            return "guarded_methods" in vars(base) and callable(vars(base)[name])
    return False


def _interface_method(cls: type, method: str) -> Callable[..., Any]:
    """Return the interface's own definition of a method, which has the names of its arguments."""
    interface = next(base for base in cls.__mro__ if "guarded_methods" in vars(base))
    return cast(Callable[..., Any], vars(interface)[method])


def _guard(
    function: Callable[..., Any],
    interface_method: Callable[..., Any],
    check_result: ResultCheck | None,
    check_element: ElementCheck | None,
) -> Callable[..., Any]:
    method, signature = interface_method.__name__, inspect.signature(interface_method)

    def guarded(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            result = _bind(function, self)(*arguments, **options)
            problem = None
            if check_result is not None:
                problem = check_result(self, result, lambda: signature.bind(self, *arguments, **options).arguments)
        except (Exception, SystemExit) as error:
            if _passes(self, error):
                raise
            raise component_error(self, method, error, (*arguments, *options.values())) from error
        if problem is not None:
            raise ComponentError(f"{identify(self)}, {method}", problem)
        if check_element is not None or isinstance(result, Iterator):
            return _guard_values(self, method, iter(result), check_element)
        if method in self.function_checks and result is not None:
            return _guard_function(self, method, result, self.function_checks[method])
        return result

    functools.update_wrapper(guarded, function)
    guarded._is_guarded = True  # type: ignore[attr-defined]
    return guarded


def _guard_function(
    component: Any, method: str, function: Callable[..., Any], check: FunctionCheck
) -> Callable[..., Any]:
    """Return a function that a method returned; a failure or a wrong result is named as one of the method."""

    def guarded(*arguments: Any) -> Any:
        try:
            result = function(*arguments)
            problem = check(result, arguments)
        except (Exception, SystemExit) as error:
            if _passes(component, error):
                raise
            raise component_error(component, method, error) from error
        if problem is not None:
            raise ComponentError(f"{identify(component)}, {method}", problem)
        return result

    return guarded


def _guard_values(
    component: Any, method: str, values: Iterator[Any], check_element: ElementCheck | None
) -> Iterator[Any]:
    """Yield the values that a method returned; a failure of the iterator is named as one of the method."""
    try:
        for index, value in enumerate(values):
            problem = None if check_element is None else check_element(value)
            if problem is not None:
                raise ComponentError(f"{identify(component)}, {method}", f"yielded {problem} at index {index}")
            yield value
    except (Exception, SystemExit) as error:
        if _passes(component, error):
            raise
        raise component_error(component, method, error) from error
    finally:
        close = getattr(values, "close", None)
        if close is not None:
            close()
