"""Constructors that pass on ``*args`` and ``**kwargs`` show the arguments of the constructors that receive them."""

from inspect import signature

import pytest

from sb3_mbrl.common.signatures import constructor_signature, with_defaults


class Base:
    def __init__(self, policy, env, rate=1, *, device="cpu"): ...


def shown(cls):
    return str(constructor_signature(cls.__mro__))


def test_a_class_without_a_constructor_has_that_of_its_base():
    class Mine(Base): ...

    assert constructor_signature(Mine.__mro__) == signature(Base)


def test_arguments_that_are_passed_on_are_shown():
    class Mixin:
        def __init__(self, *args, own=2, **kwargs): ...

    class Mine(Mixin, Base): ...

    assert shown(Mine) == "(policy, env, rate=1, *, own=2, device='cpu')"


def test_own_arguments_come_first_and_take_the_place_of_others():
    class Mine(Base):
        def __init__(self, name, *args, rate=5, **kwargs): ...

    assert shown(Mine) == "(name, policy, env, *, rate=5, device='cpu')"


def test_keywords_alone():
    class Mine(Base):
        def __init__(self, env, **kwargs): ...

    assert shown(Mine) == "(env, *, policy, rate=1, device='cpu')"


def test_there_is_no_constructor_to_pass_arguments_to():
    class Free:
        def __init__(self, *args, own=2, **kwargs): ...

    assert shown(Free) == "(*, own=2)"


def test_other_defaults():
    assert str(with_defaults(signature(Base), {"rate": 3, "unknown": 4})) == "(policy, env, rate=3, *, device='cpu')"


@pytest.mark.parametrize("first", ["policy='Mlp', *args", "policy='Mlp', *args, **kwargs"])
def test_arguments_without_a_default_stay_in_front(first):
    class Mine(Base):
        exec(f"def __init__(self, {first}): ...")

    assert shown(Mine).startswith("(policy='Mlp', *, env")
