"""What an answer carried out of a tool's result: values, whole, and nothing that chance would put there."""

import json
import random
import time

import pytest

from kd.toolcalls.grounding import find_carried, occurs

RESULT = json.dumps(
    {
        "city": "Paris",
        "temp": 21,
        "n": 7,
        "ok": True,
        "none": None,
        "word": "the",
        "price": 1234.5,
        "delta": -5.25,
        "sky": ["light rain", "rain"],
        "deep": [{"x": {"id": "A-12"}}],
        "day": "2024-05-12",
        "file": "src/a_b.py",
        "zip": "0042",
    }
)


def texts(answer, *results):
    found = find_carried(answer, list(results or [RESULT]))
    assert all(answer[one.start : one.end] == one.text for one in found)
    assert all(one.end <= two.start for one, two in zip(found, found[1:]))
    return [one.text for one in found]


@pytest.mark.parametrize(
    "answer, carried",
    [
        ("It is 21 in Paris.", ["21", "Paris"]),
        ("light rain, then rain", ["light rain", "rain"]),  # the longest value at a place
        ("1,234.50 or 1234.5 or 1,234.5", ["1,234.50", "1234.5", "1,234.5"]),
        ("1234 or 1,234.55 or 12,34.5", []),  # rounded, another value, odd commas
        ("at -5.25, not 5.25", ["-5.25"]),
        ("212 221 21.5 -21 A-21 21:30 x21 21kg 3,210", []),
        ("21% and $21, (21) or 21. A 21-hour trip", ["21", "21", "21", "21", "21"]),
        ("On 2024-05-12 see A-12 in src/a_b.py", ["2024-05-12", "A-12", "src/a_b.py"]),
        ("Parisian paris", []),  # inside a word; another case
        ("Paris's", ["Paris"]),
        ("7 7.00 true none the ok city temp", []),  # too small, stop words, booleans, keys
        ("code 0042", ["0042"]),
        ("May 12, 2024 or 12 May or May 12th or 2024/05/12", ["May 12, 2024", "12 May", "May 12th", "2024/05/12"]),
        ("05/12/2024 or 12.05.2024 or May 1 or May 121 or June 12", []),  # two readings; other days
        ("", []),
    ],
)
def test_json_results(answer, carried):
    assert texts(answer) == carried


def test_plain_text_results():
    result = "Flight LH123 leaves at 14:30 from gate B12.\nTotal: 99.9\nItems: salt, black pepper\nSaid 'see you'"
    answer = "LH123, 14:30, B12; 99.90 for salt and black pepper: see you at the gate"
    assert texts(answer, result) == ["LH123", "14:30", "B12", "99.90", "salt", "black pepper", "see you"]


def test_dates_and_times_as_answers_write_them():
    result = '{"at": "2025-12-31T14:05:00Z", "born": "2001-01-01", "no": "2024-02-30"}'
    answer = "31/12/2025 12/31/2025 31.12.2025 at 14:05 or 2:05 PM, Dec 31; 01/01/2001, January 1st, 2001; February 30"
    assert texts(answer, result) == [
        "31/12/2025",
        "12/31/2025",
        "31.12.2025",
        "14:05",
        "2:05 PM",
        "Dec 31",
        "01/01/2001",
        "January 1st, 2001",
    ]
    assert texts("On May 12 at 09:30.", "departs 2024-05-12 09:30, gate 4") == ["May 12", "09:30"]


@pytest.mark.parametrize(
    "value", ["with", "Success", "one", "1", "7", "a", "of the", "this and that", "ok", "...", "0", "true"]
)
def test_words_that_chance_puts_there_never_count(value):
    assert texts(f"It is {value} with {value}. One {value}", json.dumps({"x": value})) == []


def test_numbers_as_answers_write_them():
    assert texts("21.50 21.5° $1,234.5 1,234.50 €21.5, 21.5%", RESULT.replace('"temp": 21', '"temp": 21.5')) == [
        "21.50",
        "21.5",
        "1,234.5",
        "1,234.50",
        "21.5",
        "21.5",
    ]


def test_json_inside_a_json_string_is_opened():
    assert texts("got Oslo and 33", json.dumps({"body": '{"place": "Oslo", "n": 33}'})) == ["Oslo", "33"]


@pytest.mark.parametrize("result", ["", "[" * 100_000, '{"a": 1e999999999}', "[NaN]", "{", "null", '"', "9" * 5000])
def test_odd_results_are_no_error(result):
    assert texts("abc 12 NaN", result) == []


def test_a_value_rendered_into_an_answer_is_found_there():
    rng = random.Random(0)
    for _ in range(2000):
        value = rng.choice(
            [
                rng.randint(10, 10**6),
                round(rng.uniform(0.1, 999), 2),
                "".join(rng.choices("abcdé -_/.@7", k=9)).strip(" "),
            ]
        )
        answer = f"{rng.choice(['So: ', '(', '', 'it is '])}{value}{rng.choice(['', ')', ', yes', ' now'])}"
        found = texts(answer, json.dumps({"x": [value]}))
        if isinstance(value, str) and not (value[:1].isalpha() and value[-1:].isalpha()):
            continue  # edges of punctuation may fuse with the sentence's own
        assert str(value) in found


@pytest.mark.parametrize(
    "value, text, there", [("1", "21", False), ("21", "21 21.5", True), ("12.5", "12.50", False), ("", "a", False)]
)
def test_occurs_means_whole(value, text, there):
    assert occurs(value, text) is there


def test_time_grows_with_the_text_and_not_with_its_square():
    start = time.process_time()
    texts("a " * 20_000, json.dumps(["a " * 200 + str(number) for number in range(500)]))
    texts("item 5, item 777 " * 500, json.dumps([{"id": f"item {number}"} for number in range(20_000)]))
    assert time.process_time() - start < 10
