"""Any file and any command line gives a configuration or a list of problems that name their place.

And what is written of a configuration reads as the same one.
"""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from pykubeproxy.cli import configure
from pykubeproxy.config import Command, is_same
from pykubeproxy.configwrite import configz_json, flagz, to_yaml
from pykubeproxy.errors import ConfigError
from pykubeproxy.flags import FLAGS
from pykubeproxy.settings import SECTIONS, SETTINGS, Type

FIELDS = sorted(path for path in SETTINGS if not path.startswith("--"))
PLACES = {*SETTINGS, *SECTIONS, *(flag.name for flag in FLAGS), "-v", "apiVersion", "kind"}
HEAD = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}

# Values that mean something in one field or another, and so are wrong in most.
TEXTS = (
    *("", "iptables", "ipvs", "nftables", "userspace", "primary", "json", "text", "rr", "1.35"),
    *("0.0.0.0", "::", "::1", "10.0.0.1:99", "[fd00::1]:80", "1.2.3.4:0", "10.0.0.0/8", "fd00::/8"),
    *("NodeCIDR", "BridgeInterface", "InterfaceNamePrefix", "cni0", "application/json", "64Ki"),
    *("0s", "1s", "30s", "1h30m", "-1s", "1.5h", "300ms", "1ns", "x" * 200, "a\nb", " ", "yes"),
)
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=12))
numbers = st.one_of(
    st.sampled_from((0, 1, -1, 14, 31, 32, -1000, -1001, 10**30)), st.integers(), st.floats()
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(texts, st.sampled_from(FIELDS)), inner, max_size=3),
        st.fixed_dictionaries({"filePattern": inner, "verbosity": inner}),
    ),
    max_leaves=6,
)
# By type, so that some files are valid; each type's values are right for the type only.
OF_TYPE = {
    Type.BOOL: st.booleans(),
    Type.INT: st.integers(-1001, 40),
    Type.LEVEL: st.integers(-1, 40),
    Type.FLOAT: st.floats(0, 1e6),
    Type.SECONDS: st.sampled_from(("0s", "1s", "30s", "1h30m", "300ms", "1h0m0.000000001s")),
    Type.TEXTS: st.lists(st.sampled_from(("10.0.0.0/8", "fd00::/8", "primary")), max_size=2),
    Type.COMMA_TEXT: st.sampled_from(("10.0.0.0/8", "fd00::/8", "10.0.0.0/8,fd00::/8", "x")),
    Type.GATES: st.dictionaries(
        st.sampled_from(("AllBeta", "AllowServiceExternalIPs", "ComponentFlagz", "Foo")),
        st.booleans(),
    ),
    Type.SIZE: st.sampled_from(("0", "64Ki")),
    Type.VMODULE: st.lists(
        st.fixed_dictionaries(
            {"filePattern": st.just("a*")},
            optional={"verbosity": st.integers(0, 9), "x": st.none()},
        ),
        max_size=2,
    ),
}


def of_field(path):
    return st.one_of(OF_TYPE.get(SETTINGS[path].type, st.sampled_from(TEXTS)), st.none())


def tree(fields):
    document = dict(HEAD)
    for path, value in fields.items():
        place = document
        *sections, name = path.split(".")
        for section in sections:
            below = place.get(section)
            place[section] = place = below if isinstance(below, dict) else {}
        place[name] = value
    return document


always_alike = settings(deadline=None, derandomize=True)

right_fields = st.lists(st.sampled_from(FIELDS), max_size=6, unique=True).flatmap(
    lambda paths: st.fixed_dictionaries({path: of_field(path) for path in paths})
)
odd_fields = st.dictionaries(
    st.one_of(st.sampled_from([*FIELDS, *sorted(SECTIONS), *HEAD]), texts), values, max_size=4
)


def result_of(argv, text):
    """The configuration or ``None``, and the problems; nothing else may come of it."""
    try:
        config = configure(argv, lambda _path: text)
    except ConfigError as error:
        return None, error.problems
    return config, ()


def configured(text):
    """The configuration that a file with *text* gives, or ``None``."""
    config, problems = result_of(["--config=FILE"], text)
    assert config is not None or problems
    assert {where for where, _ in problems} <= PLACES
    assert_readable([*map(": ".join, problems), *(config.notices if config else ())])
    return config


def assert_readable(lines):
    assert all(lines)
    assert all(line.isprintable() for line in lines)
    assert all(len(line) < 1000 for line in lines)


@always_alike
@given(right_fields, odd_fields, st.booleans())
def test_any_document_gives_a_configuration_or_problems(right, odd, as_json):
    document = {**tree(right), **odd}
    text = json.dumps(document) if as_json else yaml.safe_dump(document, allow_unicode=True)
    config = configured(text)
    if config is not None:
        configz_json(config)


@always_alike
@given(st.text())
@example("{")
@example("&a [*a]")
@example("? {a: b}\n: c")
@example("a: !!python/object:os.system x")
@example("<<: [1]")
@example("=: =")
@example("a: !!binary x")
@example("--- !!set {a, b}")
def test_any_text_gives_a_configuration_or_problems(text):
    configured(text)
    configured("\n".join(f"{key}: {value}" for key, value in HEAD.items()) + "\n" + text)


words = st.one_of(
    st.builds(
        lambda flag, dashes, value: f"{dashes}{flag.name[2:]}{value}",
        st.sampled_from(FLAGS),
        st.sampled_from(("--", "--", "-")),
        st.one_of(st.just(""), texts.map("={}".format)),
    ),
    texts,
)


@always_alike
@given(st.lists(words, max_size=5))
def test_any_command_line_gives_a_configuration_or_problems(argv):
    config, problems = result_of(argv, yaml.safe_dump(HEAD))
    assert_readable([*map(": ".join, problems), *(config.notices if config else ())])
    if config is not None:
        configz_json(config)
        assert all(isinstance(text, str) for text in flagz(config).values())


# What a flag may say, of those that a file can say too.
FLAG_TEXTS = {
    Type.BOOL: st.sampled_from(("true", "false")),
    Type.INT: st.integers(0, 40).map(str),
    Type.LEVEL: st.integers(0, 40).map(str),
    Type.FLOAT: st.floats(0, 3e38).map(str),
    Type.SECONDS: st.integers(0, 10**12).map("{}us".format),
    Type.TEXTS: st.sampled_from(("", "10.0.0.0/8", "fd00::1/8,010.1.2.3/9", "primary")),
    Type.COMMA_TEXT: st.sampled_from(("", "10.0.0.0/8", "fd00::1/8,10.1.2.3/9")),
    Type.GATES: st.sampled_from(("", "AllBeta=false", "AllowServiceExternalIPs=false,Foo=true")),
    Type.SIZE: st.sampled_from(("0", "64Ki")),
    Type.VMODULE: st.sampled_from(("", "a*=1,b=2")),
}
TEXT_FLAGS = {
    "mode": ("", "iptables", "ipvs"),
    "bindAddress": ("", "0.0.0.0", "::", "10.0.0.1"),
    "healthzBindAddress": ("", "10.0.0.1", "[fd00::1]:9"),
    "metricsBindAddress": ("", "10.0.0.1", "[fd00::1]:9"),
    "hostnameOverride": ("", "a", " B ", "1e3", "on", "ä", "\u2028", "'", "0x1", "1:30", "null"),
    "detectLocalMode": ("", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"),
    "logging.format": ("text", "json"),
    "showHiddenMetricsForVersion": ("", "1.35"),
    "ipvs.scheduler": ("", "lc", "010"),
}
EXPRESSIBLE = [flag for flag in FLAGS if not flag.setting.startswith("--")]


def flag_text(flag):
    if flag.type is Type.TEXT:
        return st.sampled_from(TEXT_FLAGS.get(flag.setting, ("", "x y: z", "~", "#")))
    return FLAG_TEXTS[flag.type]


flag_words = st.lists(
    st.sampled_from(EXPRESSIBLE).flatmap(
        lambda flag: flag_text(flag).map(lambda text: f"{flag.name}={text}")
    ),
    max_size=8,
)


@always_alike
@given(flag_words)
def test_what_is_written_reads_as_the_same(argv):
    config, _ = result_of([*argv, "--write-config-to=OUT"], "")
    if config is None:
        return
    asked = structs.replace(config, command=Command.RUN, write_config_to="", flags={})
    read = configured(to_yaml(config))
    assert read is not None
    read = structs.replace(read, flags={})
    assert is_same(asked, read), (to_yaml(asked), to_yaml(read))
    assert to_yaml(config) == to_yaml(read)
    as_json = configured(json.dumps(json.loads(configz_json(config))["kubeproxy.config.k8s.io"]))
    assert as_json is not None
    assert is_same(asked, structs.replace(as_json, flags={}))


@pytest.mark.parametrize("path", FIELDS)
def test_some_value_of_every_field_is_right(path):
    right = {
        Type.BOOL: True, Type.INT: 5, Type.LEVEL: 5, Type.FLOAT: 5.5, Type.SECONDS: "5s",
        Type.SIZE: "5Ki", Type.TEXTS: ["10.0.0.0/8"], Type.COMMA_TEXT: "10.0.0.0/8",
        Type.GATES: {"AllBeta": False}, Type.VMODULE: [{"filePattern": "a", "verbosity": 1}],
        Type.TEXT: {
            "mode": "ipvs", "bindAddress": "10.0.0.1", "healthzBindAddress": "10.0.0.1:9",
            "metricsBindAddress": "10.0.0.1:9", "detectLocalMode": "NodeCIDR",
            "logging.format": "json", "showHiddenMetricsForVersion": "1.35",
        }.get(path, "x"),
    }  # fmt: skip
    assert configured(yaml.safe_dump(tree({path: right[SETTINGS[path].type]}))) is not None
