"""What holds for every rule; the tests walk the registry."""

import ast
import inspect
import math
import pkgutil
import re

import numpy as np
import pytest

import throughtime.diagnosis.rules as package
from throughtime.diagnosis.finding import SEVERITIES
from throughtime.diagnosis.report import Needed, Report
from throughtime.diagnosis.rule import SECTIONS, History, Rule, registry
from throughtime.flow import Flow, LayerFlow

RANGES = {"1": "gradient", "2": "gates", "3": "dynamics", "4": "set-up"}


@pytest.fixture(params=registry().values(), ids=registry().keys())
def rule(request) -> Rule:
    return request.param


def file_of(rule: Rule) -> str:
    return type(rule).__module__.rpartition(".")[2]


def test_every_file_holds_one_rule_that_is_called_like_it():
    files = [module.name for module in pkgutil.iter_modules(package.__path__)]
    assert sorted(files) == sorted(file_of(rule) for rule in registry().values())


def test_code_and_name(rule):
    assert re.fullmatch(r"TT[1-4]\d\d", rule.code)
    assert rule.code[2] in RANGES
    assert file_of(rule) == rule.name.replace("-", "_")
    assert type(rule).__name__.lower() == rule.name.replace("-", "")
    assert rule.severity in SEVERITIES
    assert inspect.getdoc(inspect.getmodule(type(rule))) == f"{rule.code}."


def test_the_docstring_says_everything(rule):
    assert re.match(r"^[A-Z].{20,118}\.$", rule.summary())
    assert tuple(rule.sections()) == SECTIONS
    assert all(len(body) > 40 for body in rule.sections().values())
    assert rule.references
    assert all(len(reference) > 10 for reference in rule.references)
    assert rule.sections()["References"].count("\n- ") == len(rule.references) - 1


def test_thresholds_are_named_constants_with_their_source(rule):
    tree = ast.parse(inspect.getsource(inspect.getmodule(type(rule))))
    for here, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(here, ast.Assign) and isinstance(here.targets[0], ast.Name) and here.targets[0].id.isupper():
            assert isinstance(following, ast.Expr), f"{here.targets[0].id} does not say where it comes from"


def test_it_fires_on_its_example_and_is_silent_on_the_other(rule):
    finding = rule.check(*rule.fires())
    assert finding is not None
    assert rule.check(*rule.silent()) is None
    assert (finding.code, finding.name, finding.preview) == (rule.code, rule.name, rule.preview)
    assert finding.layer == rule.fires()[0].name
    assert finding.severity in SEVERITIES
    assert math.isfinite(finding.value)
    assert math.isfinite(finding.threshold)
    assert re.fullmatch(r"\S.*[.]", finding.message)
    assert re.search(r"\d", finding.message), "the message lacks the measured numbers"
    assert len(finding.message) < 320
    assert finding.remedy
    assert finding.references == rule.references


def test_what_is_pasted_is_python(rule):
    remedy = rule.check(*rule.fires()).remedy
    for line in re.findall(r"`([^`]*)`", remedy):
        if "(" in line or " = " in line:
            ast.parse(line)


def test_a_preview_never_changes_whether_a_report_passed(rule):
    layer, needed, _ = rule.fires()
    finding = rule.check(*rule.fires())
    report = Report(Flow({layer.name: layer}, "0", "0"), (needed,), (finding,))
    assert report.passed("info") is rule.preview


def test_without_a_known_need_nothing_about_needs_is_said(rule):
    layer, _, history = rule.fires()
    finding = rule.check(layer, Needed(layer.name, (), "unknown"), history)
    if finding is not None:
        assert not re.search(r"\bneeded lag|vanish", finding.message)


@pytest.mark.parametrize("history", [None, History(np.array([])), History(np.full(40, np.nan), np.full(40, np.nan))])
def test_any_layer_and_any_history_can_be_judged(rule, history, odd_layer):
    for needed in (Needed("rnn", (), "unknown"), Needed("rnn", (0,), "demand"), Needed("rnn", (3, 500), "user")):
        finding = rule.check(odd_layer, needed, history)
        assert finding is None or (math.isfinite(finding.value) and math.isfinite(finding.threshold))


@pytest.fixture(params=["one step", "one sequence", "one unit", "every step", "no biases", "a tail"])
def odd_layer(request) -> LayerFlow:
    from throughtime.diagnosis.example import measured

    return {
        "one step": lambda: measured("GRU", steps=1, lag=0),
        "one sequence": lambda: measured("LSTM", batch=1),
        "one unit": lambda: measured("RNN", hidden=1),
        "every step": lambda: measured("LSTM", loss_steps=40),
        "no biases": lambda: measured("GRU", bias=False),
        "a tail": lambda: measured("RNN", steps=90, loss_steps=90),
    }[request.param]()
