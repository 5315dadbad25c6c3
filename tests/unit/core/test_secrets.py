"""What is secret in a text is masked, and nothing else."""

from __future__ import annotations

import pytest

from fishr_exp.core import secrets
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.secrets import bare, masked, masked_value, remember
from fishr_exp.runs.files import to_json


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", set())


@pytest.mark.parametrize(
    ("text", "shown", "kept"),
    [
        ("http://me:hunter2@h/x", "http://***@h/x", "http://h/x"),
        ("https://TOKEN@h", "https://***@h", "https://h"),
        ("https://TOKEN:@h", "https://***@h", "https://h"),
        ("https://***@h", "https://***@h", "https://h"),
        ("HTTPS://me:hunter2@h", "HTTPS://***@h", "HTTPS://h"),
        ("http://me:a@b@h", "http://***@h", "http://h"),
        ("http://me:hun/ter2@h:80/x", "http://***@h:80/x", "http://h:80/x"),
        ("postgresql+psycopg2://me:a@h:5433/db", "postgresql+psycopg2://me:***@h:5433/db",
         "postgresql+psycopg2://me@h:5433/db"),
        ("mysql://me:h@u/n:t'er\"2@h/db", "mysql://me:***@h/db", "mysql://me@h/db"),
        ("redis://:hunter2@h", "redis://:***@h", "redis://@h"),
        ("http://h/?password=hunter2", "http://h/?password=***", "http://h/"),
        ("http://h?x=1&access_token=a%20b&y=2", "http://h?x=1&access_token=***&y=2",
         "http://h?x=1&y=2"),
        ("http://h/?X-Amz-Signature=ab", "http://h/?X-Amz-Signature=***", "http://h/"),
    ],
)  # fmt: skip
def test_addresses(text: str, shown: str, kept: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
    assert masked(f"tracker.tracking_uri={text} failed ('{text}')") == (
        f"tracker.tracking_uri={shown} failed ('{shown}')"
    )
    assert bare(text) == kept
    assert bare(kept) == kept


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me/a:b@c/mlflow.db", "postgresql://me@h:5433/mlflow", "http://h:80/a@b",
        "https://cdn.example/npm/pkg@1.2/f", "me@example.org: 12:30", "trainer.gamma=1",
        "http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning",
        "https://${oc.env:NAME}@h", "https://me:${oc.env:NAME}@h", "tracker.token=${oc.env:NAME}",
        "file:///tmp/x", "databricks://profile", "tokens=5", "s3://bucket/a:b@c",
    ],
)  # fmt: skip
def test_what_is_not_secret_stays(text: str) -> None:
    assert masked(text) == text
    assert masked_value("tracking_uri", text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tracker.api_key=abc other=1", "tracker.api_key=*** other=1"),
        ("+tracker.password='a b'", "+tracker.password=***"),
        ("tracker={_target_:x.Y,token:abc}", "tracker={_target_:x.Y,token:***}"),
        ("{'token': 'abc', 'x': 1}", "{'token': ***, 'x': 1}"),
        ("Authorization: Bearer abc", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic bWU6aA=='}", "{'Authorization': 'Basic ***'}"),
    ],
)
def test_names_that_say_so(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_values_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "xyzzy12345")
    monkeypatch.setenv("MY_PRIVATE_TOKEN", "/run/secrets/token")  # a path
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "something-else")
    assert masked("bad key xyzzy12345.") == "bad key ***."
    assert masked("xyzzy123456 /run/secrets/token something-else") == (
        "xyzzy123456 /run/secrets/token something-else"
    )


@pytest.mark.parametrize("written", ["hunter2", "p%40ss-w0rd"])
def test_a_password_that_a_library_names_by_itself(written: str) -> None:
    remember(f"tracker.tracking_uri=http://me:{written}@h")
    assert masked(f"not a port: {written.replace('%40', '@')}!") == "not a port: ***!"
    assert masked("me and hunter22") == "me and hunter22"


def test_ordinary_words_stay_words() -> None:
    """Such a password is masked in addresses only: the records have such words, too."""
    for address in ("postgresql://mlflow:mlflow@h/mlflow", "http://me:sketch@h", "http://h"):
        remember(address)
    assert masked("mlflow ui: test sketch 50 %") == "mlflow ui: test sketch 50 %"


def test_json_and_errors() -> None:
    config = {"tracker": {"tracking_uri": "http://me:hunter2@h", "token": "abc", "n": [1, True]},
              "command": ["fishr-exp", "tracker.token=abc"]}  # fmt: skip
    assert to_json(config) == (
        '{"tracker": {"tracking_uri": "http://***@h", "token": "***", "n": [1, true]},'
        ' "command": ["fishr-exp", "tracker.token=***"]}'
    )
    error = ConfigError("tracker.tracking_uri", "http://me:hunter2@h", "is wrong", "http://a:b@h")
    assert str(error) == "tracker.tracking_uri=http://***@h: is wrong; http://***@h"
    assert str(ConfigError("tracker.token", "abc", "is wrong")) == "tracker.token=***: is wrong"


def test_a_long_text_costs_little() -> None:
    for text in ("a." * 50_000, "http://" * 5_000, "{," * 20_000, "x://" + "a:" * 50_000):
        assert masked(text) == text
