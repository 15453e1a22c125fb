"""A benchmark that was stopped goes on where it was."""

import json

from kept_runs import run_missing


def test_only_what_is_missing_runs(tmp_path):
    path = tmp_path / "results.json"
    done = []

    def run(name):
        done.append(name)
        return {"figure": len(done)}

    run_missing(path, {"a": lambda: run("a")})
    results = run_missing(path, {"b": lambda: run("b"), "a": lambda: run("a")})
    assert done == ["a", "b"]
    assert results == {"a": {"figure": 1}, "b": {"figure": 2}}
    assert json.loads(path.read_text()) == results
