"""Format of a teacher's targets on disk, addressed by content. reader.py, writer.py and shard.py implement it.

A cache is a folder with manifest.json and the shards shard-000000.safetensors, shard-000001.safetensors, ... Nothing
else in it is read. All numbers are little-endian. V is the vocabulary's size, M the number of temperatures, and id_bits
= ceil(log2 V).

manifest.json
    One line of canonical JSON: keys sorted, no spaces, everything past ASCII escaped, "\\n" at the end.
    format    "spanwise teacher cache 1"
    spec      kind ("sampled" or "topk"), vocab_size, id_bits, temperatures, num_draws (sampled), top_k (topk),
              precision ("16bit" or "fp32", of topk), has_entropy (false of an endpoint's topk at T = 1, which tells
              none); null for what the kind does not have
    identity  names and values, all strings, that the targets are of: teacher, revision, weights, tokenizer, template,
              data, seed, ...
    shards    a list, shard i named shard-{i:06}.safetensors: name, bytes, sha256 of the file (hex), blocks (the CRC-32
              of each 64 KiB of the file, 8 hex digits each, so that damage can be told by place), records, rows
    missing   a list of records that got no targets: key (hex), record_id, reason
    sha256    of the same canonical JSON without this key and without "\\n"

A shard holds the R records of a fixed run of capture batches, so that its bytes do not depend on who wrote it. Its
metadata has one key, "cache": a JSON list of 32 hex digits (the first half of the SHA-256 of the canonical JSON of a
manifest with the same spec and identity, no shards, nothing missing and no sha256) and of the shard's number. Tensors,
N rows in all, record after record:
    keys         uint8 [R, 16]   BLAKE2b-128 of a record's token ids as int32 (kd/batching/record_key.py)
    row_digests  uint8 [R, 8]    BLAKE2b-64 of its supervised positions as int32
    num_rows     int32 [R]       supervised positions: the positions whose logits predict a trained token, ascending
    entropy      uint16 [N]      of the teacher's whole distribution at T = 1, in 1/4096 nat; 65535: not known
    entropy_t    uint16 [M', N]  the same at each temperature that is not 1, in the spec's order; absent where there is
                 none
With precision fp32 both entropies are float32, in nats, NaN where not known.

sampled: num_draws draws from the teacher's distribution at each temperature, as tokens with counts
    num_entries  int32 [M, R]    entries of each record at each temperature
    data_0 ... data_{M-1}  uint8 [bytes]   a temperature's entries, row after row
    An entry has ceil((id_bits + bits of num_draws) / 8) bytes, a number: token id + (count << id_bits). At 50 draws and
    V of 131,073 to
    262,144 that is 18 + 6 bits, 3 bytes. A row's first entry is the teacher's argmax, with count 0 if it was not drawn;
    the others follow by ascending id. A row ends where its counts reach num_draws. p_T of a token is estimated by count
    / num_draws.

topk: the K = top_k best tokens, the argmax first
    ids        uint8 [N, ceil(K id_bits / 8)]   ids of id_bits bits each, lowest bit first, with no gap between them
    log_probs  uint16 [N, K]     log-probabilities at T = 1 as codes c: -c/2048 nats for c < 32768, -(16 + (c -
               32768)/128) from there on,
                                 65535: -inf. float32, in nats, with precision fp32
    log_tail   float32 [M, N]    log of the mass that all other tokens have at each temperature, in nats; -inf where
               there are none
    The probabilities at T are (1 - e^log_tail_T) p_k^(1/T) / sum_k p_k^(1/T); fp32 ones at T = 1 are taken as they are.

While a cache is being written, shard-000000.json, a manifest of that one shard and of its records that got no targets,
stands beside each shard that is whole; manifest.json comes last, and takes these away. Where shards are written again
later (--retry-missing, or a damaged one) the manifest is of the old ones until then, and reading refuses the new ones
by name. A capture may leave refused.jsonl, lines of the data that it refused, and, killed, .records-*.jsonl. Every
other file is written under another name (.NAME.*.part), flushed to disk and renamed, so that a reader, or a capture
that resumes after a kill, sees it whole or not at all.

Invariants
    Nothing of a shard is given out before its SHA-256 was checked in the process that asks. A file that is damaged, cut
    short or of another cache is refused by name, and by offset where that can be told.
    A record is found by its tokens and supervised positions, never by its place or step; what is not found is an error,
    after every byte was checked, so that damage is not reported as absence.
    Names of shards cannot leave the folder, and no number from a file is used as a place before it was checked.
"""
