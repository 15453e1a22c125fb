"""Option files and overrides are read as plain values; nothing that they say is run."""

import contextlib

import pytest
import yaml
from basicsr.utils.options import _postprocess_yml_value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adabm_basicsr import AdaBMError
from adabm_basicsr.errors import OptionError
from adabm_basicsr.options.yaml_files import MAX_VALUES, apply_override, load_yaml


def repeated(depth):
    """A few lines that stand for ``9 ** depth`` values."""
    lines = ["a0: &a0 x"] + [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, depth)
    ]
    return "\n".join(lines)


HOSTILE = {
    "calls a function": (
        "x: !!python/object/apply:os.system ['touch hacked']",
        "is not valid YAML",
    ),
    "imports a module": ("x: !!python/module:os", "is not valid YAML"),
    "makes an object": ("x: !!python/object/new:pathlib.Path ['/']", "is not valid YAML"),
    "repeats itself": (
        repeated(9),
        f"repeats itself through anchors to more than {MAX_VALUES} values",
    ),
    "holds itself": ("x: &x\n  y: *x", "repeats itself"),
    "is nested deeply": ("x: " + "[" * 400, "is not valid YAML"),
    "no number": ("x: !!int one", "is not valid YAML"),
    "no float": ("x: !!float x", "is not valid YAML"),
    "no date": ("x: 2024-99-99", "is not valid YAML"),
    "no timestamp": ("x: !!timestamp soon", "is not valid YAML"),
    "no binary": ("x: !!binary é", "is not valid YAML"),
    "control character": ("x: \0", "is not valid YAML"),
    "a key twice": ("a:\n  b: 1\n  c: 2\n  b: 3", "key 'b' stands twice"),
    "a key that is no text": ("a:\n  1: x", "a: 1: keys are texts; put it in quotes"),
    "a key that is true": ("on: x", "True: keys are texts"),
    "a key in a list": ("a: [{2: x}]", "a: 2: keys are texts"),
    "a list as a key": ("? [a]\n: b", "is not valid YAML"),
    "a list": ("[a, b]", "holds no keys"),
    "nothing": ("", "holds no keys"),
    "two documents": ("a: 1\n---\nb: 2", "is not valid YAML"),
    "tabs": ("a:\n\tb: 1", "is not valid YAML"),
    "an unknown anchor": ("a: *b", "is not valid YAML"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_and_broken_files(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content, text = HOSTILE[kind]
    (tmp_path / "x.yml").write_text(content)
    with pytest.raises(AdaBMError, match=text):
        load_yaml(tmp_path / "x.yml")
    assert [path.name for path in tmp_path.iterdir()] == ["x.yml"]


@pytest.mark.parametrize("content", [b"a: \xff", b"\xff\xfea", bytes(range(256))])
def test_files_that_are_no_text(tmp_path, content):
    (tmp_path / "x.yml").write_bytes(content)
    with pytest.raises(AdaBMError, match="is not valid YAML"):
        load_yaml(tmp_path / "x.yml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_yaml_knows(tmp_path, encoding):
    (tmp_path / "x.yml").write_text("name: é\n", encoding=encoding)
    assert load_yaml(tmp_path / "x.yml") == {"name": "é"}


def test_anchors_and_merges_work(tmp_path):
    (tmp_path / "x.yml").write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")
    assert load_yaml(tmp_path / "x.yml")["b"] == {"x": 3, "y": 2}


@given(st.text(max_size=80) | st.text("{}[]:,&*!?|>-#'\"%@`\n ax1", max_size=60))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_gives_options_or_one_error(tmp_path, content):
    path = tmp_path / "x.yml"
    path.write_text(content, encoding="utf-8", errors="ignore")
    with contextlib.suppress(AdaBMError):
        assert isinstance(load_yaml(path), dict)


def overridden(value):
    opt = {"section": {"key": 0}}
    apply_override(opt, f"section:key={value}")
    return opt["section"]["key"]


PLAIN = [
    "1",
    "007",
    "1.5",
    ".5",
    "5.",
    "true",
    "False",
    "~",
    "None",
    "none",
    "x",
    "a/b.png",
    "yes",
    "2024-01-01",
    "12:30",
]


@pytest.mark.parametrize(
    "value", [*PLAIN, "[1, 2]", "['a', 'b']", "calculate_psnr", "x#y", "0x10", "1_000"]
)
def test_overrides_are_read_as_basicsr_reads_them(value):
    expected = _postprocess_yml_value(value)
    assert overridden(value) == expected
    assert type(overridden(value)) is type(expected)


@given(
    st.integers(0, 10**6)
    | st.floats(0, 1e6).map(lambda x: round(x, 4))
    | st.booleans()
    | st.sampled_from(PLAIN)
)
@settings(max_examples=60, deadline=None)
def test_plain_values_are_read_as_basicsr_reads_them(value):
    assert overridden(value) == _postprocess_yml_value(str(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("-1", -1), ("1e-4", 1e-4), ("{a: 1}", {"a": 1}), ("a=b", "a=b"), ("", None)],
)
def test_overrides_that_basicsr_misreads(value, expected):
    assert overridden(value) == expected


@pytest.mark.parametrize(
    "value", ["[__import__('os').system('touch hacked')]", "[].__class__", "[x for x in ()]"]
)
def test_overrides_run_nothing(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    try:
        values = overridden(value)
    except AdaBMError as error:
        message = str(error)
    else:
        message = "the value is not valid YAML"
        assert all(isinstance(text, str) for text in values)
    assert "the value is not valid YAML" in message
    assert not list(tmp_path.iterdir())


def test_an_override_makes_a_section_that_is_known():
    opt = {"train": {"total_iter": 4}}
    apply_override(opt, "train:finetune:lr_decay=0.5", ["train", "train: finetune"])
    assert opt == {"train": {"total_iter": 4, "finetune": {"lr_decay": 0.5}}}
    with pytest.raises(OptionError, match="there is no section 'finetun'"):
        apply_override({"train": {}}, "train:finetun:lr_decay=0.5", ["train: finetune"])


@pytest.mark.parametrize(
    "override",
    ["a;b=1", "section:key]=1", "section:key'] = 1; import os #=2", "=1", "section:=1", ":"],
)
def test_keys_of_overrides_run_nothing(override):
    opt = {"section": {"key": 0}}
    with contextlib.suppress(AdaBMError):
        apply_override(opt, override)
    assert opt["section"].get("key") == 0


@given(st.text(max_size=40) | st.text("{}[]:,='\"!&*1ea.", max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_override_is_a_value_or_one_error(text):
    with contextlib.suppress(AdaBMError):
        value = overridden(text)
        read = yaml.safe_load(yaml.safe_dump(value))
        assert repr(read) == repr(value)  # NaN isn't equal to itself
