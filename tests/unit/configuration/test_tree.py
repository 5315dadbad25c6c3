"""The configuration as a tree."""

from __future__ import annotations

from fishr_exp.configuration.tree import tree


def test_it_is_drawn_with_plain_values_and_without_secrets() -> None:
    config = {
        "seed": 0,
        "trainer": {"gamma": 1.0, "penalties": {"a": {"gamma": None}}, "_neutral_": {"gamma": 1}},
        "resume": True,
        "tracker": {"token": "abc", "uri": "http://me:secret@host/"},
        "empty": {},
        "test_domains": ["a", None],
    }
    text = "\n".join(tree(config))
    assert text.splitlines()[:9] == [
        "├── seed: 0",
        "├── trainer",
        "│   ├── gamma: 1.0",
        "│   └── penalties",
        "│       └── a",
        "│           └── gamma: null",
        "├── resume: true",
        "├── tracker",
        "│   ├── token: ***",
    ]
    assert text.splitlines()[-2:] == ["├── empty: {}", "└── test_domains: [a, null]"]
    assert "abc" not in text
    assert "secret" not in text
