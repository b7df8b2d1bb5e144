"""The signature of a class whose constructor passes ``*args`` and ``**kwargs`` to the next constructor."""

from collections.abc import Sequence
from inspect import Parameter, Signature, signature


def constructor_signature(classes: Sequence[type]) -> Signature:
    """
    :param classes: a class and its bases, in the order in which methods are looked up
    :return: the signature of the first constructor among them, with ``*args`` and ``**kwargs`` replaced by the arguments of
        the next constructor
    """
    return Signature(_parameters([vars(each)["__init__"] for each in classes if "__init__" in vars(each)]))


def _parameters(constructors: Sequence) -> list[Parameter]:
    own = list(signature(constructors[0]).parameters.values())[1:]  # without self
    named = [each for each in own if each.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    if len(named) == len(own) or len(constructors) == 1:
        return named
    names = [each.name for each in named]
    passed_on = [each for each in _parameters(constructors[1:]) if each.name not in names]
    takes_args = any(each.kind is Parameter.VAR_POSITIONAL for each in own)
    has_defaults = any(each.kind < Parameter.KEYWORD_ONLY and each.default is not Parameter.empty for each in own)
    if has_defaults or not takes_args:  # no argument without a default may follow one that has a default
        passed_on = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in passed_on]
    return sorted([*named, *passed_on], key=lambda each: each.kind)


def with_defaults(given: Signature, defaults: dict) -> Signature:
    """
    :param given: a signature
    :param defaults: other defaults, by name; names that the signature lacks are ignored
    :return: the signature with these defaults
    """
    parameters = given.parameters.values()
    return given.replace(
        parameters=[each.replace(default=defaults[each.name]) if each.name in defaults else each for each in parameters]
    )
