"""A method's file tells a reader what it does, where it comes from and what it costs."""

from __future__ import annotations

import dataclasses
import inspect
import sys

import pytest

from ra_bench import registry
from ra_bench.index import Index

NAMES = [name for name in registry.names() if not registry.info(name).reason]
WITHOUT_PAPER = {"exact", "floor"}


@pytest.fixture(params=NAMES)
def cls(request) -> type[Index]:
    return registry.index_class(request.param)


def source(cls: type[Index]) -> str:
    return inspect.getsource(sys.modules[cls.__module__])


def test_first_line_is_one_sentence(cls):
    first, second = source(cls).splitlines()[:2]
    assert first.startswith('"""')
    assert first.endswith(".")
    assert second == ""


def test_file_tells_the_cost_of_build_search_and_insert(cls):
    text = inspect.getdoc(sys.modules[cls.__module__]).lower()
    assert all(word in text for word in ("build", "search", "insert"))


def test_paper_is_named_unless_there_is_none(cls):
    if cls.kind not in WITHOUT_PAPER:
        assert cls.paper
        assert any(word in inspect.getdoc(sys.modules[cls.__module__]) for word in ("arXiv", "20", "19"))


def test_each_setting_is_explained(cls):
    text = source(cls)
    doc = (inspect.getdoc(cls) or "") + (inspect.getdoc(sys.modules[cls.__module__]) or "")
    for setting in dataclasses.fields(cls):
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{setting.name}:"))
        told = f"`{setting.name}" in doc or f"{setting.name}=" in doc or setting.name in Index.__dict__
        assert told or "#" in line, setting.name


def test_each_setting_and_effort_has_a_default(cls):
    cls()
    for parameter in inspect.signature(cls.search).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            assert parameter.default is not inspect.Parameter.empty


def test_init_only_stores(cls):
    assert dataclasses.is_dataclass(cls)
    assert cls.__init__.__qualname__ == f"{cls.__name__}.__init__"
    assert "__init__" not in inspect.getsource(cls)


def test_required_modules_are_named(cls):
    text = source(cls)
    for library in ("hnswlib", "pynndescent", "faiss"):
        imported = f"import {library}" in text or (library == "faiss" and "_faiss import" in text)
        assert not imported or library in cls.requires
