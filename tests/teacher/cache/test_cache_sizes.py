"""What a row takes on disk, and that the benchmark of reading runs and writes what readers of its results count on."""

import json

import pytest

from benchmarks import cache_reading


@pytest.mark.parametrize("vocab", cache_reading.VOCABS)
def test_bytes_a_row_with_everything_counted(tmp_path, vocab):
    """Shards and manifest. Sampled: 3 bytes for each distinct token drawn and 5 more, for each temperature; topk of 32:
    150.
    """
    for row in cache_reading.sizes(tmp_path, vocab, rows=48, records_a_shard=200):
        print(row)
        assert row["bytes_a_row"] <= row["most"], row
        if row["kind"] == "sampled":
            assert 2 <= row["entropy_nats"][0] <= 3 or row["temperatures"] == (2.0,)
            assert row["bytes_a_row"] > 3 * sum(row["distinct_drawn"]) + 2  # the bound is of this format, not of any
        else:
            assert row["bytes_a_row"] > 136


def test_the_benchmark(tmp_path):
    out = tmp_path / "results.json"
    arguments = [
        "--vocabs",
        "3000",
        "--pool",
        "30",
        "--shards",
        "2",
        "--records",
        "6",
        "--repeats",
        "3",
        "--out",
        str(out),
    ]
    cache_reading.main(arguments)
    results = json.loads(out.read_text())
    assert {"schema", "date", "device", "versions", "commit", "shape"} <= set(results)
    assert [(row["kind"], row["temperature"]) for row in results["reading"]] == [
        ("sampled", 1.0),
        ("sampled", 2.0),
        ("topk", 2.0),
    ]
    for row in results["reading"]:
        assert row["rows"] == 2400 and row["profile"][0]["share"] > 0
        for which in ("first", "later"):
            rate = row[which]["processor_rows_s"]
            assert rate["spread"][0] <= rate["median"] <= rate["spread"][1]
    assert len(results["sizes"]) == 5
