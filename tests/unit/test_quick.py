"""Which tests `make quick` chooses."""

from __future__ import annotations

from quick import choose, distances, imports_of, module_of

IMPORTERS = {"p.low": {"p.middle"}, "p.middle": {"p.top", "p.low"}, "p.top": set[str]()}


def test_distance_counts_imports_also_in_a_circle() -> None:
    assert distances(["p.low"], IMPORTERS) == {"p.low": 0, "p.middle": 1, "p.top": 2}
    assert distances(["p.top", "p.low"], IMPORTERS) == {"p.top": 0, "p.low": 0, "p.middle": 1}
    assert distances([], IMPORTERS) == {}


def test_nearest_tests_come_first_and_strangers_not_at_all() -> None:
    tests = {
        "tests/unit/test_far.py": {"p.top"},
        "tests/unit/test_near.py": {"p.low", "p.top"},
        "tests/unit/test_else.py": {"q"},
        "tests/unit/test_itself.py": {"q"},
    }
    near = distances(["p.low"], IMPORTERS)
    chosen = choose(tests, ["synfundus/low.py", "tests/unit/test_itself.py"], near)
    assert chosen == ["tests/unit/test_itself.py", "tests/unit/test_near.py", "tests/unit/test_far.py"]


def test_modules_are_found_as_python_names_them() -> None:
    assert module_of("synfundus/training/ema.py") == "synfundus.training.ema"
    assert module_of("synfundus/training/__init__.py") == "synfundus.training"
    assert imports_of("import a.b\nfrom c import d\nfrom . import e\n") == {"a.b", "c", "c.d"}
