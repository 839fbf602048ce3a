"""Served answers are those that whole data sets of questions get."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert
import tiny_runs

from bert_pruning.data.squad import read_squad
from bert_pruning.data.squad_answers import find_answers
from bert_pruning.data.squad_windows import encode_questions
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.delivery import spans
from bert_pruning.modeling import bert
from bert_pruning.training.step import INPUT_NAMES

TOKENIZER = BertTokenizer(tiny_runs.VOCABULARY, True)
WORDS = [word for word in tiny_runs.VOCABULARY if word.isalpha()]


@pytest.fixture(scope="module")
def model():
    config = tiny_runs.tiny_config(max_position_embeddings=64)
    weights = tiny_bert.random_weights(config, 0, None, ("pooler", "span"))
    # Far from one another, so that no two spans are as likely.
    weights["span/kernel"] = 20 * weights["span/kernel"]
    found = bert.build_span_model(config)
    bert.set_weights(found, weights)
    return found


def read_questions(directory, texts):
    paragraphs = [
        {"context": context, "qas": [{"id": str(i), "question": question}]}
        for i, (question, context) in enumerate(texts)
    ]
    path = directory / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return read_squad(str(path), needs_answers=False)


def some_texts(lengths):
    random = np.random.default_rng(0)
    return [
        (
            " ".join(random.choice(WORDS, random.integers(5))),
            " ".join(random.choice(WORDS, length)),
        )
        for length in lengths
    ]


def serve(model, texts, **settings):
    questions, contexts = zip(*texts, strict=True)
    # In a graph, as it is served.
    found = tf.function(spans.answer, autograph=False)(
        lambda inputs: model(list(inputs.values()), training=False)["logits"],
        *(TOKENIZER, tf.constant(questions), tf.constant(contexts)),
        **settings,
    )
    return {name: tensor.numpy() for name, tensor in found.items()}


@pytest.mark.parametrize("doc_stride", [1, 3, 128])
@pytest.mark.parametrize("max_seq_length", [10, 16, 64])
def test_answers_are_those_of_a_data_set(
    model, tmp_path, max_seq_length, doc_stride
):
    settings = {"max_seq_length": max_seq_length, "doc_stride": doc_stride}
    texts = some_texts([1, 40, 7, 2, 23, 90, 12, 13])
    questions = read_questions(tmp_path, texts)
    windows = encode_questions(
        *(questions, TOKENIZER),
        max_query_length=5,
        with_labels=False,
        **settings,
    )
    if max_seq_length < 64:
        assert len(windows.dataset) > len(questions)
    batch = windows.dataset.batch(np.arange(len(windows.dataset)))
    logits = model(
        [tf.constant(batch[name]) for name in INPUT_NAMES], training=False
    )["logits"].numpy()
    expected = find_answers(
        *(questions, windows, logits[..., 0], logits[..., 1], TOKENIZER),
        n_best_size=1000,
        has_null=True,
    )
    found = serve(model, texts, **settings)
    for row, question in enumerate(questions):
        best = next(c for c in expected.candidates[question.id] if c.text)
        assert found["answer"][row].decode() == best.text
        odds = expected.null_odds[question.id]
        assert found["score"][row] == pytest.approx(-odds, abs=1e-4)


def test_a_context_of_many_windows_is_answered_wherever_the_answer_is():
    """A model that marks one word finds it at any place."""
    marked = TOKENIZER.tokenize(["good"]).to_list()[0][0]

    def run(inputs):
        is_marked = tf.cast(inputs["input_word_ids"] == marked, tf.float32)
        return tf.stack([10 * is_marked, 10 * is_marked], -1)

    for place in range(50):
        words = ["film"] * 50
        words[place] = "good"
        found = spans.answer(
            *(
                run,
                TOKENIZER,
                tf.constant(["it"]),
                tf.constant([" ".join(words)]),
            ),
            max_seq_length=16,
            doc_stride=4,
        )
        assert found["answer"].numpy() == [b"good"]
        assert found["score"].numpy() == [20.0]


def test_batches_of_nothing_have_no_answers(model):
    texts = [("it", ""), ("", " ")]
    found = serve(model, texts, max_seq_length=16)
    assert found["answer"].tolist() == [b"", b""]
    assert found["score"].tolist() == [0.0, 0.0]


def test_an_empty_context_leaves_the_others_as_they_are(model):
    texts = some_texts([30, 5])
    alone = serve(model, texts, max_seq_length=16)
    mixed = serve(model, [texts[0], ("it", ""), texts[1]], max_seq_length=16)
    assert mixed["answer"][[0, 2]].tolist() == alone["answer"].tolist()
    np.testing.assert_allclose(mixed["score"][[0, 2]], alone["score"], 1e-4)
