"""Where estimators are imported from."""

from __future__ import annotations

import warnings

import pytest

import ragrad_ext
from ragrad_ext import estimators
from ragrad_ext.estimators import research


def test_recommended_estimators_have_a_top_level_name() -> None:
    for name in ("Effectiveness", "FirstOrder", "Gate", "Hutchinson", "FiniteDifference"):
        assert getattr(ragrad_ext, name) is getattr(estimators, name)
        assert name in ragrad_ext.__all__


@pytest.mark.parametrize("name", research.__all__)
def test_a_research_estimator_warns_under_its_old_name(name: str) -> None:
    assert name not in ragrad_ext.__all__
    with pytest.warns(
        DeprecationWarning, match=f"ragrad_ext.{name} .* ragrad_ext.estimators.research"
    ) as found:
        assert getattr(ragrad_ext, name) is getattr(research, name)
    assert found[0].filename == __file__


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'ragrad_ext' has no attribute 'Fischer'"):
        ragrad_ext.Fischer  # noqa: B018


def test_the_new_place_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from ragrad_ext.estimators.research import Fisher  # noqa: F401
