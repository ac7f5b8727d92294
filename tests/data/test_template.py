"""Templates: what they may name, what they say, and what is said of rows that do not fit."""

from __future__ import annotations

import pytest

from foreword.data import Task
from foreword.data.template import as_row, columns, fill
from foreword.errors import DataError

FILLED = [
    ("{mr} ->", {"mr": "name[Zizzi]"}, "name[Zizzi] ->"),
    ("{{{mr}}}", {"mr": "x"}, "{x}"),
    ("{{mr}} {mr}", {"mr": "x"}, "{mr} x"),
    ("{{}}", {}, "{}"),
    ("{a}{b}{a}", {"a": 1, "b": "x"}, "1x1"),
    ("{mr}", {"mr": "{ref} {0} {{"}, "{ref} {0} {{"),
    ("{a b}", {"a b": "a column with a space"}, "a column with a space"),
    ("plain", {}, "plain"),
]


@pytest.mark.parametrize(("template", "row", "text"), FILLED)
def test_filling_replaces_names_and_nothing_else(
    template: str, row: dict[str, object], text: str
) -> None:
    assert fill(template, row) == text


def test_names_are_listed_in_order() -> None:
    assert columns("{b} {{not}} {a}{b}") == ["b", "a", "b"]


@pytest.mark.parametrize(
    "template", ["{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{a:{b}}", "{}", "{ref", "ref}", "{a}}"]
)
def test_everything_but_a_name_in_braces_is_refused(template: str) -> None:
    with pytest.raises(DataError, match="template"):
        columns(template)
    with pytest.raises(DataError, match="template"):
        Task(template, "{ref}")
    with pytest.raises(DataError, match="template"):
        Task("{mr}", template)


def test_prompt_and_target_come_together() -> None:
    with pytest.raises(DataError, match="a prompt template needs a target template"):
        Task(prompt="{mr}")
    with pytest.raises(DataError, match="a target template needs a prompt template"):
        Task(target="{ref}")


@pytest.mark.parametrize("target", ["", "same for all", "{{ref}}"])
def test_a_target_names_a_column(target: str) -> None:
    with pytest.raises(DataError, match="names no column"):
        Task("{mr}", target)


def test_a_pair_is_prompt_and_target() -> None:
    assert Task("{mr} ->", " {ref}").pair({"mr": "m", "ref": "r", "more": 1}) == ("m ->", " r")
    assert not Task("{mr}", "{ref}").chat
    assert Task().chat
    assert Task("{mr}", "{ref}").as_json() == {"prompt": "{mr}", "target": "{ref}"}


def test_a_missing_column_is_named_with_its_row_and_what_is_there() -> None:
    rows = [{"mr": "m", "ref": "r"}, {"mr": "m", "text": "r"}]
    with pytest.raises(DataError) as caught:
        Task("{mr}", "{ref}").check(rows)
    assert str(caught.value) == "row 2 has no column 'ref'; its columns are: mr, text"
    with pytest.raises(DataError, match="row 1 has no column 'mr'; its columns are: none"):
        Task("{mr}", "{ref}").check([{}])
    with pytest.raises(DataError, match="names column 'ref'; the columns are: mr"):
        fill("{ref}", {"mr": "m"})


def test_an_empty_cell_is_not_the_text_none() -> None:
    with pytest.raises(DataError, match="row 1 has no value in column 'ref'"):
        Task("{mr}", "{ref}").check([{"mr": "m", "ref": None}])


@pytest.mark.parametrize("value", [None, float("nan"), b"hello", ["x", "y"], {"x": 1}])
def test_what_is_not_text_is_refused_with_row_and_column(value: object) -> None:
    """A null became "None" in generate, bytes b'hello', and a list ['x', 'y']."""
    rows = [{"mr": "m", "ref": "r"}, {"mr": value, "ref": "r"}]
    with pytest.raises(DataError, match="^row 2(:| has no value in) column 'mr'"):
        Task("{mr}", "{ref}").check(rows)
    with pytest.raises(DataError, match="^column 'mr': "):
        fill("{mr}", rows[1])


def test_a_json_object_that_has_a_column_twice_is_refused() -> None:
    """The last value won."""
    task = Task("{mr}", "{ref}")
    with pytest.raises(DataError, match="the JSON object has 'mr' twice"):
        as_row('{"mr": "a", "mr": "b"}', task)
    text = '{"a": 1, "a": 2}'  # a text that is JSON by chance
    assert as_row(text, task) == {"mr": text}


def test_a_chat_task_needs_conversations_with_an_answer() -> None:
    ask, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    Task().check([{"messages": [ask, answer]}])
    with pytest.raises(DataError, match=r"row 1 has no column 'messages'.*or give --prompt"):
        Task().check([{"mr": "m"}])
    with pytest.raises(DataError, match="row 2: its messages have no assistant turn"):
        Task().check([{"messages": [ask, answer]}, {"messages": [ask]}])
    with pytest.raises(DataError, match="row 1: its messages must be a list of turns; found str"):
        Task().check([{"messages": "hello"}])


def test_a_column_like_one_that_is_there_is_asked_about() -> None:
    row = {"Text": "a", "labels": "b", 3: "c"}
    with pytest.raises(
        DataError, match=r"no column 'text'; .*: Text, labels, 3; did you mean 'Text'\?$"
    ):
        Task("{text}", "{labels}").check([row])
    with pytest.raises(
        DataError, match=r"the columns are: Text, labels, 3; did you mean 'labels'\?$"
    ):
        fill("{label}", row)
    with pytest.raises(DataError, match="the columns are: Text, labels, 3$"):
        fill("{mr}", row)
    with pytest.raises(
        DataError, match=r"no value in column 'text'; its columns are: text, texts$"
    ):
        Task("{text}", "{texts}").check([{"text": None, "texts": "a"}])
