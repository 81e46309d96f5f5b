"""Reading speed of a teacher's cache: rows a second of one process, its time by function, bytes a row.

    python benchmarks/cache_reading.py          # writes benchmarks/results/cache_reading.json

Teacher distributions are made up at a language model's profile: Zipf tails over the whole vocabulary, mean entropy 2 to
3 nats. They go through the kernels that capture uses; a pool of rows is then repeated, in random windows, into records
of 200 rows, and micro-batches of 8 records are read in random order. "first" opens the cache and checks the SHA-256 of
every shard on the way; "later" is every epoch after that. The system's file cache is warm. One thread.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from benchmarks import measure  # noqa: E402
from kd.batching.record_key import record_key, rows_digest  # noqa: E402
from kd.paths import path_option  # noqa: E402
from kd.teacher.cache.check_rows import slice_rows  # noqa: E402
from kd.teacher.cache.reader import CacheReader  # noqa: E402
from kd.teacher.cache.spec import CacheSpec, Entry  # noqa: E402
from kd.teacher.cache.writer import CacheWriter  # noqa: E402
from kernels import Head, TeacherSamples, TeacherTopK, teacher_sample, teacher_topk  # noqa: E402

VOCABS = (151_936, 262_144)
NUM_DRAWS, TOP_K = 50, 32
RECORDS, LENGTH = 8, 200  # of a micro-batch, and rows of each
_ZIPFS, _NOISE = 16, 8
_IDENTITY = {"teacher": "made up, Zipf"}


class Cache(NamedTuple):
    folder: Path
    spec: CacheSpec
    records: list[tuple[bytes, bytes]]
    tokens: float  # a row, mean
    write_rows_s: float


def made_up_teacher(vocab: int, num_rows: int) -> tuple[torch.Tensor, Head]:
    """Each row is Zipf-Mandelbrot, p of rank r ~ (r + 3)^-s, s spread evenly from 2 to 4, over one of 16 orders of the
    vocabulary, disturbed. At T = 1 the mean entropy is 2 to 3 nats."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.5 * torch.randn(vocab, _ZIPFS + _NOISE, generator=generator)
    for column in range(_ZIPFS):
        weight[torch.randperm(vocab, generator=generator), column] = -(torch.arange(1, vocab + 1) + 3).log()
    hidden = torch.zeros(num_rows, _ZIPFS + _NOISE)
    hidden[torch.arange(num_rows), torch.arange(num_rows) % _ZIPFS] = torch.linspace(2, 4, num_rows)
    hidden[:, _ZIPFS:] = 0.5 * torch.randn(num_rows, _NOISE, generator=generator)
    return hidden[torch.randperm(num_rows, generator=generator)], Head(weight)


def targets_of(spec: CacheSpec, num_rows: int) -> TeacherSamples | TeacherTopK:
    hidden, head = made_up_teacher(spec.vocab_size, num_rows)
    if spec.kind == "topk":
        return teacher_topk(hidden, head, spec.top_k, spec.temperatures)
    return teacher_sample(hidden, head, spec.num_draws, spec.temperatures, torch.arange(num_rows))


def write_cache(
    folder: Path, spec: CacheSpec, targets: TeacherSamples | TeacherTopK, shards: int, records_a_shard: int
) -> Cache:
    """Records of LENGTH rows, each a window of the rows, which go round."""
    pool, rng, records = len(targets.argmax), random.Random(0), []
    by_temperature = {"log_probs_t", "log_tail", "entropy_t"} | ({"ids", "counts"} if spec.kind == "sampled" else set())
    rows = torch.arange(pool + LENGTH) % pool
    turns = targets._replace(
        **{
            name: value[:, rows] if name in by_temperature else value[rows]
            for name, value in targets._asdict().items()
            if isinstance(value, torch.Tensor)
        }
    )
    writer, seconds = CacheWriter(folder, spec, _IDENTITY), 0.0
    for index in range(shards):
        entries = []
        for number in range(records_a_shard):
            start = rng.randrange(pool)
            entries.append(
                Entry(
                    record_key([index, number]), rows_digest([index, number]), slice_rows(turns, start, start + LENGTH)
                )
            )
        began = time.perf_counter()
        writer.write_shard(index, entries)
        seconds += time.perf_counter() - began
        records += [(entry.key, entry.row_digest) for entry in entries]
    writer.finish(shards)
    tokens = spec.top_k if spec.kind == "topk" else (targets.ids >= 0).sum(-1).double().mean().item()
    return Cache(folder, spec, records, tokens, len(records) * LENGTH / seconds)


def bytes_a_row(cache: Cache) -> float:
    """Count the bytes of everything in the folder."""
    return sum(path.stat().st_size for path in cache.folder.iterdir()) / (len(cache.records) * LENGTH)


def read_all(reader: CacheReader, cache: Cache, temperature: float, seed: int) -> list[float]:
    """Read every record once; return the seconds of each micro-batch."""
    records, seconds = list(cache.records), []
    random.Random(seed).shuffle(records)
    for at in range(0, len(records), RECORDS):
        keys, digests = zip(*records[at : at + RECORDS])
        began = time.perf_counter()
        reader.read(keys, digests, [LENGTH] * len(keys), temperature)
        seconds.append(time.perf_counter() - began)
    return seconds


def rates(cache: Cache, temperature: float, repeats: int) -> dict:
    """Rows a second of whole passes, by the wall's clock and by this process's processor time, and milliseconds of a
    micro-batch, which other processes seldom cut into: on a busy machine they say what an idle one does."""
    rows, found, batches = len(cache.records) * LENGTH, {"first": [], "later": []}, []
    for repeat in range(repeats):
        reader = None
        for which in ("first", "later"):
            wall, processor = time.perf_counter(), time.process_time()
            reader = reader or CacheReader(cache.folder)
            seconds = read_all(reader, cache, temperature, repeat)
            found[which].append((rows / (time.perf_counter() - wall), rows / (time.process_time() - processor)))
        batches += seconds
    rows_s = {
        which: {
            clock: {"median": round(statistics.median(all_of)), "spread": [round(min(all_of)), round(max(all_of))]}
            for clock, all_of in zip(("wall_rows_s", "processor_rows_s"), zip(*found[which]))
        }
        for which in found
    }
    fifths = [1e3 * cut for cut in statistics.quantiles(batches, n=5)]
    return rows_s | {
        "micro_batch_ms": {
            "median": round(1e3 * statistics.median(batches), 3),
            "spread": [round(fifths[0], 3), round(fifths[-1], 3)],
        }
    }


def profile(cache: Cache, temperature: float) -> list[dict]:
    """A later pass's time by function of kd/teacher: shares with all that it calls, and without what it calls in
    Python. numpy's operators count as their caller's own. The profiler's cost is in them."""
    reader = CacheReader(cache.folder)
    read_all(reader, cache, temperature, 0)
    profiler = cProfile.Profile()
    profiler.runcall(read_all, reader, cache, temperature, 1)
    stats = pstats.Stats(profiler)
    ours = [
        (Path(file), name, *numbers)
        for (file, _, name), numbers in stats.stats.items()
        if (ROOT / "kd/teacher") in Path(file).parents
    ]
    total = stats.total_tt
    return [
        {
            "function": f"{path.stem}.{name}",
            "share": round(whole / total, 3),
            "own_share": round(own / total, 3),
            "calls": calls,
        }
        for path, name, _, calls, own, whole, _ in sorted(ours, key=lambda row: -row[5])
        if whole > 0.01 * total
    ]


def sizes(folder: Path, vocab: int, rows: int, shards: int = 1, records_a_shard: int = 320) -> list[dict]:
    """Bytes a row on disk of sampled caches at T = 1, 2 and both, and of topk ones, beside what the format promises."""
    found = []
    both = targets_of(CacheSpec("sampled", vocab, (1.0, 2.0), num_draws=NUM_DRAWS), rows)
    for places in ((0,), (1,), (0, 1)):
        at = list(places)
        targets = both._replace(
            ids=both.ids[at],
            counts=both.counts[at],
            entropy_t=both.entropy_t[at],
            temperatures=tuple(both.temperatures[i] for i in at),
        )
        spec = CacheSpec("sampled", vocab, targets.temperatures, num_draws=NUM_DRAWS)
        drawn = (targets.counts > 0).sum(-1).double().mean(1).tolist()
        cache = write_cache(
            folder / f"sampled-{vocab}-{'-'.join(map(str, at))}", spec, targets, shards, records_a_shard
        )
        found.append(
            {
                "kind": "sampled",
                "vocab": vocab,
                "temperatures": targets.temperatures,
                "num_draws": NUM_DRAWS,
                "entropy_nats": [round(x, 3) for x in targets.entropy_t.double().mean(1).tolist()],
                "distinct_drawn": [round(x, 3) for x in drawn],
                "entries": round(cache.tokens, 3),
                "bytes_a_row": round(bytes_a_row(cache), 3),
                "most": round(sum(3 * d + 5 for d in drawn), 3),
            }
        )
    for temperatures in ((1.0,), (1.0, 2.0)):
        spec = CacheSpec("topk", vocab, temperatures, top_k=TOP_K)
        cache = write_cache(
            folder / f"topk-{vocab}-{len(temperatures)}", spec, targets_of(spec, rows), shards, records_a_shard
        )
        found.append(
            {
                "kind": "topk",
                "vocab": vocab,
                "temperatures": temperatures,
                "top_k": TOP_K,
                "bytes_a_row": round(bytes_a_row(cache), 3),
                "most": 150,
            }
        )
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabs", type=measure.count, nargs="+", default=VOCABS)
    parser.add_argument("--pool", type=measure.count, default=400, help="rows that the kernels make")
    parser.add_argument("--shards", type=measure.count, default=8)
    parser.add_argument("--records", type=measure.count, default=320, help="a shard")
    parser.add_argument("--repeats", type=measure.count, default=5)
    parser.add_argument("--out", type=path_option, default=ROOT / "benchmarks/results/cache_reading.json")
    args = parser.parse_args(arguments)
    measure.check_out(args.out)
    torch.set_num_threads(1)
    results = measure.facts(torch.device("cpu"))
    vocab = args.vocabs[0]
    specs = [
        (CacheSpec("sampled", vocab, (1.0,), num_draws=NUM_DRAWS), 1.0),
        (CacheSpec("sampled", vocab, (2.0,), num_draws=NUM_DRAWS), 2.0),
        (CacheSpec("topk", vocab, (1.0, 2.0), top_k=TOP_K), 2.0),
    ]
    shape = {"records": RECORDS, "rows_a_record": LENGTH, "shards": args.shards, "records_a_shard": args.records}
    results |= {"shape": shape, "reading": [], "sizes": []}
    with tempfile.TemporaryDirectory() as folder:
        for spec, temperature in specs:
            cache = write_cache(
                Path(folder) / f"{spec.kind}-{temperature}",
                spec,
                targets_of(spec, args.pool),
                args.shards,
                args.records,
            )
            rows = len(cache.records) * LENGTH
            row = {
                "kind": spec.kind,
                "vocab": vocab,
                "temperature": temperature,
                "tokens_a_row": round(cache.tokens, 2),
                "rows": rows,
                "megabytes": round(bytes_a_row(cache) * rows / 1e6, 1),
                "write_rows_s": round(cache.write_rows_s),
                **rates(cache, temperature, args.repeats),
                "profile": profile(cache, temperature),
            }
            results["reading"].append(row)
            print({key: value for key, value in row.items() if key != "profile"}, flush=True)
        for size in args.vocabs:
            for row in sizes(Path(folder), size, args.pool):
                results["sizes"].append(row)
                print(row, flush=True)
    measure.write_json(args.out, results)


if __name__ == "__main__":
    main()
