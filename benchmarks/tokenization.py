"""How fast the tokenizer is and how many of its ids are wrong, beside others.

    pip install -e '.[peers]'
    python benchmarks/tokenization.py --data_dir=glue --init_checkpoint=MINILM

Every contender turns the same Python list of str into ids, in batches where
that is faster for it, on as many threads as there are cores. In each round all
of them run once, one after the other, so that a busy machine is unkind to all.
Sentences per second are those of the best round; the ratio is to those of the
fastest way to call Hugging Face's tokenizer. A sentence is
different when its ids, [CLS] and [SEP] aside, are not those of the official
FullTokenizer, which `tests/reference_tokenizer.py` restates.
"""

import argparse
import os
import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

os.environ["KERAS_BACKEND"] = "tensorflow"
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

import keras_hub
import tensorflow as tf
import tensorflow_text as tf_text
import tokenizers
from reference_tokenizer import ReferenceTokenizer
from reference_tokenizer import read_texts

from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.modeling.files import read_vocabulary

NUM_CORES = len(os.sched_getaffinity(0))
OURS = "bert_pruning"
PEER = "Hugging Face tokenizers"


def make_contenders(vocabulary_file, do_lower_case, batch_size):
    """Dict of name to two functions: texts -> result, result -> ids."""
    vocabulary = read_vocabulary(vocabulary_file)
    ours = BertTokenizer(vocabulary, do_lower_case)
    peer = tokenizers.BertWordPieceTokenizer(
        str(vocabulary_file), lowercase=do_lower_case
    )._tokenizer
    tf_text_fast = tf_text.FastBertTokenizer(
        list(vocabulary),
        lower_case_nfd_strip_accents=do_lower_case,
        token_out_type=tf.int32,
    )
    strings = tf.TensorSpec([None], tf.string)
    hub = keras_hub.tokenizers.BertTokenizer(
        list(vocabulary), lowercase=do_lower_case
    )

    def encode(texts):
        return ours.encode(texts, max_seq_length=1 << 20)[0]

    def slice_batches(texts):
        starts = range(0, len(texts), batch_size)
        return [texts[start : start + batch_size] for start in starts]

    def map_batches(tokenize, num_threads=NUM_CORES):
        def run(texts):
            with ThreadPoolExecutor(num_threads) as executor:
                return list(executor.map(tokenize, slice_batches(texts)))

        return run

    def get_rows(batches):
        return [row for batch in batches for row in batch.to_list()]

    def get_inner_rows(batches):
        return [row[1:-1] for row in get_rows(batches)]

    def get_inner_ids(encodings):
        return [encoding.ids[1:-1] for encoding in encodings]

    return {
        OURS: (map_batches(encode), get_inner_rows),
        f"{OURS}, one thread": (map_batches(encode, 1), get_inner_rows),
        PEER: (peer.encode_batch_fast, get_inner_ids),
        f"{PEER}, in batches": (
            lambda texts: [
                encoding
                for batch in slice_batches(texts)
                for encoding in peer.encode_batch_fast(batch)
            ],
            get_inner_ids,
        ),
        "tf_text.FastBertTokenizer": (
            map_batches(tf_text_fast.tokenize),
            get_rows,
        ),
        "keras_hub BertTokenizer": (
            # Outside a graph it makes Python lists, which takes the longest.
            map_batches(tf.function(hub.tokenize, input_signature=[strings])),
            get_rows,
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, type=pathlib.Path)
    parser.add_argument("--init_checkpoint", required=True, type=pathlib.Path)
    parser.add_argument("--cased", action="store_true")
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    texts = read_texts(args.data_dir)
    vocabulary_file = args.init_checkpoint / "vocab.txt"
    official = ReferenceTokenizer(
        read_vocabulary(vocabulary_file), not args.cased
    )
    expected = [official.tokenize(text) for text in texts]
    contenders = make_contenders(
        vocabulary_file, not args.cased, args.batch_size
    )
    differences = {}
    for name, (run, get_ids) in contenders.items():  # also the warm-up
        pairs = zip(get_ids(run(texts)), expected, strict=True)
        differences[name] = sum(ids != right for ids, right in pairs)

    seconds = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, (run, _) in contenders.items():
            start = time.perf_counter()
            run(texts)
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in seconds.items()}
    fastest_peer = min(best[name] for name in best if PEER in name)

    print(f"{len(texts)} sentences, {NUM_CORES} cores, {args.rounds} rounds\n")
    print("| tokenizer | sentences/s | ratio | different |")
    print("|---|---:|---:|---:|")
    for name, taken in best.items():
        speed, ratio = len(texts) / taken, fastest_peer / taken
        print(f"| {name} | {speed:.0f} | {ratio:.1f} | {differences[name]} |")


if __name__ == "__main__":
    main()
