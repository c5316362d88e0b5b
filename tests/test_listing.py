"""What `ra-bench list` prints reads well at any width and leaves nothing out."""

from __future__ import annotations

import pytest

from ra_bench import registry
from ra_bench.listing import markdown, text
from ra_bench.registry import Info, info, names

INFOS = [info(name) for name in names()]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_line_is_longer_than_the_terminal_and_no_word_is_lost(width) -> None:
    shown = text(INFOS, width)

    assert max(map(len, shown.splitlines())) <= width
    words = " ".join(shown.split())
    for one in INFOS:
        assert one.idea in words
        assert one.paper in words


def test_facts_stand_below_their_titles() -> None:
    header, *lines = text(INFOS, 100).splitlines()

    (eigen,) = [line for line in lines if line.startswith("eigen ")]
    assert eigen[header.index("kind") :].startswith("compressor")
    assert eigen[header.index("query-aware") :].startswith("yes")
    assert eigen[header.index("where") :].startswith("host")


def test_what_cannot_run_here_says_why() -> None:
    broken = Info("broken", "search", "", "An idea.", "host", False, False, False, "not installed: absent")

    assert "UNAVAILABLE, not installed: absent. An idea." in text([broken], 100)
    assert "| `broken` | search | An idea. |  |  |  |  |" in markdown([broken])


@pytest.mark.parametrize(
    ("modules", "needs"),
    [
        (("ra_bench.indexes._native._native",), ""),
        (("faiss",), ""),  # of faiss-cpu, which always comes
        (("scann",), "ann"),
        (("usearch", "no_such_module"), "ann, no_such_module"),
    ],
)
def test_needs_are_the_extra_that_brings_a_module_or_the_module_itself(monkeypatch, modules, needs) -> None:
    cls = registry.index_class("hnsw")
    monkeypatch.setattr(cls, "requires", modules)

    assert registry.extra_of(cls) == needs
