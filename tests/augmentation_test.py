"""New sentences differ from the old ones only where they may."""

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert
import tiny_runs

from bert_pruning.data.augmentation import STOP_WORDS
from bert_pruning.data.augmentation import Augmenter
from bert_pruning.data.augmentation import Masked
from bert_pruning.data.augmentation import augment_row
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.data.word_vectors import WordVectors
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.training.masked_lm import MaskedPredictor

VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("good", "bad", "film", "a", "the", ",", "un", "##moved", "##s", "what"),
)
IDS = {token: i for i, token in enumerate(VOCABULARY)}
VECTORS = WordVectors(
    ["unmoved", "still", "films", "movies"],
    np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32),
)


class Predictor:
    """Names the same pieces everywhere, and notes what it was asked."""

    def __init__(self, *tokens):
        self.ids = [IDS[token] for token in tokens]
        self.asked = []

    def __call__(self, masked):
        self.asked.append(masked)
        return np.tile(self.ids, (len(masked), 1))


def make(predict=None, vectors=VECTORS, case=True, **options):
    options.setdefault("num_candidates", 9)
    predict = predict or Predictor("good", "bad", "##s", "[UNK]", ",")
    tokenizer = BertTokenizer(VOCABULARY, case)
    return Augmenter(tokenizer, predict, vectors, **options)


def augment(augmenter, *texts, seed=0):
    generators = [np.random.default_rng([seed, i]) for i in range(len(texts))]
    return augmenter.augment(texts, generators)


def test_words_of_one_piece_are_masked_beside_their_sentence():
    predict = Predictor("good")
    make(predict).candidates(["A good film, unmoved"])
    [masked] = predict.asked
    sentence = [IDS[t] for t in ("a", "good", "film", ",", "un", "##moved")]
    assert masked == [
        Masked(
            ids=(
                IDS["[CLS]"],
                *sentence[:i],
                IDS["[MASK]"],
                *sentence[i + 1 :],
                IDS["[SEP]"],
                *sentence,
                IDS["[SEP]"],
            ),
            first_length=8,
            position=i + 1,
        )
        for i in (1, 2)
    ]


def test_candidates_are_words_that_can_be_read():
    [(words, found)] = make().candidates(["A good film, unmoved"])
    assert words == ["a", "good", "film", ",", "unmoved"]
    # Neither stop words nor punctuation have any.
    assert found == {
        1: ["good", "bad", ","],
        2: ["good", "bad", ","],
        4: ["still", "movies", "films"],
    }


def test_words_without_candidates_stay():
    [(_, found)] = make(Predictor("##s"), vectors=None).candidates(
        ["good unmoved"]
    )
    assert found == {0: ["good"], 1: ["unmoved"]}
    assert augment(make(Predictor("##s"), None), "good unmoved") == [
        ["good unmoved"]
    ]


def test_question_words_may_be_replaced_and_function_words_not():
    assert len(STOP_WORDS) == 173
    assert "what" not in STOP_WORDS
    assert {"the", "'s", "don't"} <= STOP_WORDS
    [(_, found)] = make().candidates(["what the film 7 fi1m"])
    assert sorted(found) == [0, 2]


def test_the_text_itself_comes_first_and_none_twice():
    [made] = augment(make(num_variants=50), "A Good film , film")
    assert made[0] == "A Good film , film"
    assert len(made) == len(set(made)) > 5
    for text in made[1:]:
        words = text.split(" ")
        assert len(words) == 5
        assert words[0] == "a"
        assert words[3] == ","
        assert set(words) <= {"a", "good", "bad", "film", ","}


def test_the_share_of_replaced_words_is_the_one_asked_for():
    predict = Predictor("bad")
    text = " ".join(["good"] * 40)
    for share in (0.1, 0.4, 1.0):
        [made] = augment(
            make(predict, replace_probability=share, num_variants=60), text
        )
        replaced = [variant.split().count("bad") / 40 for variant in made[1:]]
        assert np.mean(replaced) == pytest.approx(share, abs=0.05)


def test_a_seed_repeats_and_rows_do_not_depend_on_each_other():
    texts = ("a good film", "the bad film", "a good film")
    made = augment(make(), *texts)
    assert made == augment(make(), *texts)
    assert made != augment(make(), *texts, seed=1)
    generator = np.random.default_rng([0, 1])
    assert make().augment([texts[1]], [generator]) == [made[1]]
    # Equal texts are predicted once, and vary each in its own way.
    predict = Predictor("good", "bad")
    again = augment(make(predict), *texts)
    assert len(predict.asked[0]) == 4
    assert again[0] != again[2]


def test_words_behind_what_the_model_reads_have_neighbours_only():
    predict = Predictor("good")
    augmenter = make(predict, max_length=6)
    [(_, found)] = augmenter.candidates([" ".join(["film"] * 9)])
    [masked] = predict.asked
    assert [each.position for each in masked] == [1, 2, 3, 4, 5]
    assert all(len(each.ids) == 6 for each in masked)
    assert masked[0].first_length == 6
    assert found[8] == ["film"]


def test_strange_texts_are_no_error():
    texts = ["", "   ", "!?", "\u2028", "½ … ß"]
    made = augment(make(), *texts)
    assert [variants[0] for variants in made] == texts
    assert all(text.strip() for variants in made for text in variants[1:])
    assert made[0] == [""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_variants": 0}, "--num_variants.*0 and 9"),
        ({"num_candidates": 0}, "--num_candidates"),
        ({"num_candidates": 16}, "--num_candidates=16 is more than the 15"),
        ({"replace_probability": 0.0}, "--replace_probability"),
        ({"replace_probability": 1.1}, r"\(0, 1\]. Received: 1.1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_a_vocabulary_without_a_mask_is_refused():
    vocabulary = [token for token in VOCABULARY if token != "[MASK]"]
    tokenizer = BertTokenizer(vocabulary, True)
    with pytest.raises(UserError, match=r"no \[MASK\]"):
        Augmenter(tokenizer, Predictor("good"), num_candidates=9)


def test_the_second_text_varies_beside_the_original_first():
    made = augment_row(
        ["7", "a", "b", "1"], [1, 2], [["a", "a2", "a3"], ["b", "b2"]]
    )
    assert made == [
        ["7", "a", "b", "1"],
        ["7", "a2", "b", "1"],
        ["7", "a3", "b", "1"],
        ["7", "a", "b2", "1"],
    ]


# === The masked language model ===


def make_predictor(**options):
    config = tiny_runs.tiny_config(num_layers=2)
    model = bert.build_masked_lm(config)
    weights = tiny_bert.random_weights(config, heads=("mlm",))
    bert.set_weights(model, weights, initialized=())
    return MaskedPredictor(model, number=4, **options), config, weights


def test_the_head_is_the_official_one():
    predict, config, weights = make_predictor()
    ids = (2, 7, 4, 9, 3, 7, 8, 9, 3)
    encoder = bert.build_model(config)
    bert.set_weights(encoder, weights, initialized=("pooler",))
    types = [[0] * 5 + [1] * 4]
    states = encoder([np.array([ids]), np.ones((1, 9), int), np.array(types)])
    x = states["hidden_states"][-1][0, 2].numpy()
    x = x @ weights["mlm_transform/kernel"] + weights["mlm_transform/bias"]
    x = tf.nn.gelu(x).numpy()
    x = (x - x.mean()) / np.sqrt(x.var() + config.layer_norm_eps)
    x = x * weights["mlm_norm/gamma"] + weights["mlm_norm/beta"]
    logits = x @ weights["word_embeddings/embeddings"].T
    logits += weights["mlm_output/bias"]
    [found] = predict([Masked(ids, 5, 2)])
    assert found.tolist() == np.argsort(-logits)[:4].tolist()


def test_a_prediction_does_not_depend_on_its_batch():
    generator = np.random.default_rng(0)
    masked = []
    for length in (9, 4, 15, 7, 15, 6, 3):
        ids = (2, *generator.integers(5, 20, length - 2).tolist(), 3)
        masked.append(Masked(ids, max(2, length // 2), 1))
    predict, *_ = make_predictor()
    alone = [predict([each])[0].tolist() for each in masked]
    assert predict(masked).tolist() == alone
    few, *_ = make_predictor(batch_tokens=16)
    assert few(masked).tolist() == alone


def test_factorized_embeddings_have_no_decoder():
    with pytest.raises(UserError, match="rank 3"):
        bert.build_masked_lm(tiny_bert.uneven_config())
