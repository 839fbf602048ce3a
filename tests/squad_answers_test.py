"""Tests of answers from logits, and of the files they are written to."""

import json
import math
import random
import string

import numpy as np
import pytest
import reference_tokenizer
from reference_tokenizer import ReferenceTokenizer

from bert_pruning.data.squad import read_squad
from bert_pruning.data.squad_answers import find_answers
from bert_pruning.data.squad_answers import restore_text
from bert_pruning.data.squad_answers import write_predictions
from bert_pruning.data.squad_windows import encode_questions
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.errors import UserError

LETTERS = string.ascii_lowercase + string.digits
VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", *"().-,?'", *LETTERS),
    *("##" + letter for letter in LETTERS),
)


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(VOCABULARY, do_lower_case=True)


@pytest.fixture
def encode(tmp_path, tokenizer):
    """Reads and encodes one question "q" for each of some contexts."""

    def write_and_encode(*contexts, is_impossible=None, **lengths):
        path = tmp_path / "squad.json"
        more = {} if is_impossible is None else {"is_impossible": is_impossible}
        paragraphs = [
            {"context": c, "qas": [{"id": str(i), "question": "q", **more}]}
            for i, c in enumerate(contexts)
        ]
        path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
        questions = read_squad(str(path), needs_answers=False)
        windows = encode_questions(
            questions, tokenizer, with_labels=False, **lengths
        )
        return questions, windows

    return write_and_encode


def make_logits(windows, *spans, null=-50.0):
    """Logits of -100 but for [CLS] and (row, first, last, start, end)."""
    shape = [len(windows.dataset), int(windows.dataset.lengths.max())]
    starts, ends = np.full(shape, -100.0), np.full(shape, -100.0)
    starts[:, 0] = ends[:, 0] = null
    for row, first, last, start, end in spans:
        starts[row, first] = start
        ends[row, last] = end
    return starts, ends


@pytest.fixture
def answer(encode, tokenizer):
    """The best answer of a span of tokens in one context."""

    def find(context, first, last):
        questions, windows = encode(context)
        logits = make_logits(windows, (0, first, last, 5, 5))
        return find_answers(questions, windows, *logits, tokenizer).texts["0"]

    return find


class TestSpelling:
    """Positions: [CLS] 0, q 1, [SEP] 2, the context from 3."""

    @pytest.mark.parametrize(
        "context, first, last, expected",
        [
            ("The Cat sat", 6, 8, "Cat"),
            ("It was (18-19).", 9, 10, "18"),
            ("It was (18-19).", 9, 13, "18-19"),
            # Pieces inside of a word are cut out of it.
            ("undone", 5, 8, "done"),
            ("(Ren\u00e9's)", 4, 7, "Ren\u00e9"),
            ("\u00c9T\u00c9 is", 3, 5, "\u00c9T\u00c9"),
            # Decomposed accents: letters do not match one to one.
            ("(Rene\u0301's)", 4, 7, "(Rene\u0301's)"),
            ("(a\u00adb)", 4, 5, "(a\u00adb)"),
            # Unknown words have no pieces to look for.
            ("(\u597d a)", 4, 5, "(\u597d a)"),
            # The first of equal parts, as in the official code.
            ("aXa", 5, 5, "a"),
            # Spaces between words become one.
            ("x 10\u202fkm\n \tno", 4, 9, "10 km no"),
            ("10\u00a0km", 3, 6, "10\u00a0km"),
        ],
    )
    def test_spans_are_spelt_as_in_the_context(
        self, answer, context, first, last, expected
    ):
        assert answer(context, first, last) == expected

    def test_cased_vocabularies(self, encode):
        tokenizer = BertTokenizer((*VOCABULARY, "C", "\u00c9"), False)
        questions, _ = encode("(\u00c9 C)")
        windows = encode_questions(questions, tokenizer, with_labels=False)
        logits = make_logits(windows, (0, 4, 5, 5, 5))
        answers = find_answers(questions, windows, *logits, tokenizer)
        assert answers.texts["0"] == "\u00c9 C"

    @pytest.mark.parametrize(
        "text, original, basic, expected",
        [
            ("a b", "(A B)", "( a b )", "A B"),
            ("a . b", "A.B c", "a . b c", "A.B"),
            ("x", "A B", "a b", "A B"),
            ("a", "A\u00ad B", "a b", "A\u00ad B"),
        ],
    )
    def test_restore_text(self, text, original, basic, expected):
        assert restore_text(text, original, basic) == expected


class TestSpans:
    def find(self, encoded, tokenizer, *spans, **settings):
        questions, windows = encoded
        logits = make_logits(windows, *spans)
        answers = find_answers(
            questions, windows, *logits, tokenizer, **settings
        )
        return [candidate.text for candidate in answers.candidates["0"]]

    @pytest.mark.parametrize(
        "span",
        [
            (0, 1, 4, 9, 9),  # from the question
            (0, 0, 4, 9, 9),  # from [CLS]
            (0, 3, 6, 9, 9),  # to the last [SEP]
            (0, 5, 4, 9, 9),  # backwards
        ],
    )
    def test_what_is_no_span_of_the_context(self, encode, tokenizer, span):
        encoded = encode("a b c")
        texts = self.find(encoded, tokenizer, (0, 4, 5, 1, 1), span)
        assert "b c" in texts
        assert set(texts) <= {"a", "b", "c", "a b", "b c", "a b c"}

    def test_longest_answer(self, encode, tokenizer):
        encoded = encode("a b c d")
        span = (0, 3, 5, 9, 9)
        texts = self.find(encoded, tokenizer, span, max_answer_length=3)
        assert texts[0] == "a b c"
        texts = self.find(encoded, tokenizer, span, max_answer_length=2)
        assert "a b c" not in texts and "a b" in texts

    def test_only_the_best_starts_and_ends_are_combined(
        self, encode, tokenizer
    ):
        encoded = encode("a b c d")
        spans = [(0, 3, 5, 9, 9), (0, 3, 6, 9, 8), (0, 3, 4, 9, 7)]
        texts = self.find(encoded, tokenizer, *spans, n_best_size=2)
        assert texts == ["a b c", "a b c d"]
        texts = self.find(encoded, tokenizer, *spans, n_best_size=3)
        assert texts == ["a b c", "a b c d", "a b"]

    def test_of_equal_spans_the_better_start_comes_first(
        self, encode, tokenizer
    ):
        encoded = encode("a b c")
        spans = [(0, 3, 5, 9, 7), (0, 4, 4, 8, 8)]
        texts = self.find(encoded, tokenizer, *spans)
        assert texts[:4] == ["a b", "a b c", "b", "b c"]

    def test_equal_texts_count_once(self, encode, tokenizer):
        encoded = encode("a b a")
        spans = [(0, 3, 3, 9, 9), (0, 5, 5, 8, 8), (0, 4, 4, 7, 7)]
        texts = self.find(encoded, tokenizer, *spans)
        assert texts[0] == "a"
        assert len(texts) == len(set(texts))

    def test_a_span_begins_where_its_window_sees_most(self, encode, tokenizer):
        lengths = {"max_seq_length": 9, "max_query_length": 1, "doc_stride": 2}
        encoded = encode("a b c d e f g", **lengths)
        # Rows "a b c d e" and "c d e f g"; up to d the first sees more.
        texts = self.find(encoded, tokenizer, (1, 3, 3, 9, 9), (0, 5, 5, 1, 1))
        assert texts[0] == "c"
        questions, windows = encoded
        logits = make_logits(windows, (1, 3, 3, 9, 9), (0, 5, 5, 1, 1))
        answers = find_answers(questions, windows, *logits, tokenizer)
        assert answers.candidates["0"][0].start_logit == 1
        # But it may end where another window sees more.
        assert self.find(encoded, tokenizer, (0, 6, 7, 9, 9))[0] == "d e"

    def test_the_best_of_all_windows(self, encode, tokenizer):
        lengths = {"max_seq_length": 9, "max_query_length": 1, "doc_stride": 2}
        encoded = encode("a b c d e f g", **lengths)
        spans = [(0, 3, 4, 2, 2), (1, 6, 7, 3, 3)]
        assert self.find(encoded, tokenizer, *spans)[0] == "f g"

    def test_padding_is_not_read(self, encode, tokenizer):
        questions, windows = encode("a b c", "d e f g h i")
        logits = make_logits(windows, (0, 4, 4, 5, 5), (1, 4, 4, 5, 5))
        expected = find_answers(questions, windows, *logits, tokenizer)
        padded = []
        for array in logits:
            array = np.pad(array, [(0, 0), (0, 30)], constant_values=50.0)
            array[0, windows.dataset.lengths[0] :] = np.nan
            padded.append(array)
        answers = find_answers(questions, windows, *padded, tokenizer)
        assert answers == expected

    def test_probabilities(self, encode, tokenizer):
        questions, windows = encode("a b")
        spans = [(0, 3, 3, 1, 2), (0, 4, 4, 0, 1)]
        logits = make_logits(windows, *spans)
        answers = find_answers(questions, windows, *logits, tokenizer)
        candidates = answers.candidates["0"]
        assert [c.text for c in candidates] == ["a", "a b", "b"]
        assert [c.start_logit for c in candidates] == [1, 1, 0]
        assert [c.end_logit for c in candidates] == [2, 1, 1]
        weights = [math.exp(score) for score in (3, 2, 1)]
        expected = [weight / sum(weights) for weight in weights]
        assert [c.probability for c in candidates] == pytest.approx(expected)
        assert answers.null_odds is None

    def test_large_logits(self, encode, tokenizer):
        questions, windows = encode("a b")
        logits = make_logits(windows, (0, 3, 4, 5000, 5000))
        answers = find_answers(questions, windows, *logits, tokenizer)
        assert answers.candidates["0"][0].text == "a b"
        assert answers.candidates["0"][0].probability == 1.0

    def test_a_question_without_a_span(self, encode, tokenizer):
        questions, windows = encode("a b", " ")
        logits = make_logits(windows, (0, 3, 3, 5, 5))
        answers = find_answers(questions, windows, *logits, tokenizer)
        assert answers.texts == {"0": "a", "1": "empty"}
        (candidate,) = answers.candidates["1"]
        assert (candidate.text, candidate.probability) == ("empty", 1.0)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_logits_that_are_not_finite(self, encode, tokenizer, bad):
        questions, windows = encode("a b")
        starts, ends = make_logits(windows, (0, 3, 3, 5, bad))
        with pytest.raises(UserError, match="1 of 1 windows are not finite"):
            find_answers(questions, windows, starts, ends, tokenizer)

    @pytest.mark.parametrize("shape", [(2, 6), (1, 5), (6,)])
    def test_logits_that_do_not_fit(self, encode, tokenizer, shape):
        questions, windows = encode("a b")
        logits = np.zeros(shape)
        with pytest.raises(ValueError, match="logits for 1 rows of up to 6"):
            find_answers(questions, windows, logits, logits, tokenizer)

    @pytest.mark.parametrize("name", ["n_best_size", "max_answer_length"])
    def test_settings_below_one(self, encode, tokenizer, name):
        questions, windows = encode("a b")
        logits = make_logits(windows)
        with pytest.raises(UserError, match="must be at least 1.*: .*0"):
            find_answers(questions, windows, *logits, tokenizer, **{name: 0})


class TestNoAnswer:
    """Version 2.0."""

    def test_threshold(self, encode, tokenizer):
        questions, windows = encode("a b", is_impossible=False)
        logits = make_logits(windows, (0, 3, 3, 2, 3), null=3.0)
        for threshold, text in ((0.99, ""), (1.0, "a"), (5.0, "a")):
            answers = find_answers(
                questions,
                windows,
                *logits,
                tokenizer,
                null_score_diff_threshold=threshold,
            )
            assert answers.null_odds == {"0": 1.0}
            assert answers.texts == {"0": text}
            texts = [c.text for c in answers.candidates["0"]]
            assert texts[:2] == ["", "a"]

    def test_the_least_score_of_all_windows(self, encode, tokenizer):
        lengths = {"max_seq_length": 9, "max_query_length": 1, "doc_stride": 2}
        questions, windows = encode(
            "a b c d e f g", is_impossible=True, **lengths
        )
        starts, ends = make_logits(windows, (0, 3, 3, 1, 1))
        starts[:, 0] = [4, 1]
        ends[:, 0] = [0, 2]
        answers = find_answers(questions, windows, starts, ends, tokenizer)
        assert answers.null_odds == {"0": 1.0}
        null = next(c for c in answers.candidates["0"] if not c.text)
        assert (null.start_logit, null.end_logit) == (1, 2)

    def test_sums_are_not_rounded(self, encode, tokenizer):
        lengths = {"max_seq_length": 9, "max_query_length": 1, "doc_stride": 2}
        questions, windows = encode(
            "a b c d e f g", is_impossible=True, **lengths
        )
        starts, ends = np.float32(make_logits(windows, (0, 3, 3, 1, 1)))
        starts[:, 0] = 2**24  # To which float32 cannot add 1.
        ends[:, 0] = [1, 0]
        answers = find_answers(questions, windows, starts, ends, tokenizer)
        assert answers.null_odds == {"0": 2.0**24 - 2}

    def test_no_answer_is_added_to_a_full_list(self, encode, tokenizer):
        questions, windows = encode("a b", is_impossible=False)
        logits = make_logits(
            windows, (0, 3, 3, 2, 2), (0, 4, 4, 1, 1), null=-9.0
        )
        answers = find_answers(
            questions, windows, *logits, tokenizer, n_best_size=2
        )
        assert [c.text for c in answers.candidates["0"]] == ["a", "a b", ""]
        assert answers.texts == {"0": "a"}
        assert answers.null_odds == {"0": -22.0}

    def test_nothing_but_no_answer(self, encode, tokenizer):
        """The official code failed here."""
        questions, windows = encode("a b", " ", is_impossible=True)
        logits = make_logits(windows, (0, 1, 1, 50, 50), null=60.0)
        answers = find_answers(
            questions,
            windows,
            *logits,
            tokenizer,
            n_best_size=2,
            null_score_diff_threshold=100.0,
        )
        assert answers.texts == {"0": "", "1": ""}
        assert answers.null_odds == {"0": 1e6, "1": 1e6}
        for name in ("0", "1"):
            (candidate,) = answers.candidates[name]
            assert (candidate.text, candidate.probability) == ("", 1.0)


def official_answers(
    question, rows, windows, starts, ends, n_best, longest, has_null
):
    """The rules of run_squad.py, span by span."""
    dataset = windows.dataset
    found, nulls = [], []
    for row in rows:
        begin, end = dataset.offsets[row : row + 2]
        ids = dataset.token_ids[begin:end]
        nulls.append((starts[row][0] + ends[row][0], row))
        low, high = windows.max_context[row]
        for first in best_places(starts[row][: len(ids)], n_best):
            for last in best_places(ends[row][: len(ids)], n_best):
                if not low <= first < high or last >= len(ids) - 1:
                    continue
                if last < first or last - first + 1 > longest:
                    continue
                logits = starts[row][first], ends[row][last]
                found.append((row, first, last, *logits))
    if has_null:
        row = min(nulls, key=lambda null: null[0])[1]
        null = (starts[row][0], ends[row][0])
        found.append((row, 0, 0, *null))
    found.sort(key=lambda span: -(span[3] + span[4]))
    best = []
    for row, first, last, start, end in found:
        if len(best) == n_best:
            break
        text = ""
        if first:
            shift = windows.first_piece[row] - dataset.type_boundaries[row]
            low, high = windows.piece_words[[shift + first, shift + last]]
            begin = dataset.offsets[row]
            ids = dataset.token_ids[begin + first : begin + last + 1]
            pieces = " ".join(VOCABULARY[i] for i in ids)
            pieces = pieces.replace(" ##", "").replace("##", "")
            text = realign(pieces, " ".join(question.words[low : high + 1]))
        if text not in [entry[0] for entry in best]:
            best.append((text, start, end))
    if has_null and "" not in [entry[0] for entry in best]:
        best.append(("", *null))
    return best


def best_places(logits, count):
    return sorted(range(len(logits)), key=lambda i: -logits[i])[:count]


def realign(prediction, original):
    words = []
    cleaned = "".join(map(reference_tokenizer.clean, original))
    for word in reference_tokenizer.space_chinese(cleaned).split():
        word = reference_tokenizer.strip_accents(word.lower())
        words += reference_tokenizer.space_punctuation(word).split()
    basic = " ".join(words)
    place = basic.find(prediction)
    if place == -1:
        return original
    letters = {}
    for text, name in ((original, "original"), (basic, "basic")):
        letters[name] = [i for i, c in enumerate(text) if c != " "]
    if len(letters["original"]) != len(letters["basic"]):
        return original
    first = letters["basic"].index(place)
    last = letters["basic"].index(place + len(prediction) - 1)
    start, end = (letters["original"][i] for i in (first, last))
    return original[start : end + 1]


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_official_rules(encode, tokenizer, seed):
    rng = random.Random(seed)
    alphabet = [*"abcABC01", *"().-'", "\u00e9", "e\u0301", "\u00ad", "\u597d"]
    contexts = [
        " ".join(
            "".join(rng.choices(alphabet, k=rng.randint(1, 4)))
            for _ in range(rng.randint(1, 25))
        )
        for _ in range(12)
    ]
    has_null = seed % 2 == 1
    questions, windows = encode(
        *contexts,
        is_impossible=False if has_null else None,
        max_seq_length=24,
        doc_stride=rng.choice([5, 9, 30]),
        max_query_length=4,
    )
    dataset = windows.dataset
    # Few different values: many ties.
    shape = [len(dataset), 24]
    random_logits = np.random.default_rng(seed).integers(-3, 4, [2, *shape])
    starts, ends = random_logits.astype(np.float32) / 2
    n_best, longest = rng.choice([(20, 30), (5, 3), (3, 8)])
    answers = find_answers(
        questions, windows, starts, ends, tokenizer, n_best, longest, 0.5
    )
    reference = ReferenceTokenizer(VOCABULARY, do_lower_case=True)
    for index, question in enumerate(questions):
        rows = np.flatnonzero(windows.question_index == index)
        if not reference.tokenize(question.context):
            assert len(rows) == 0
            continue
        expected = official_answers(
            question,
            rows,
            windows,
            starts.tolist(),
            ends.tolist(),
            n_best,
            longest,
            has_null,
        )
        candidates = answers.candidates[question.id]
        if not expected:
            assert [c.text for c in candidates] == ["empty"]
            continue
        assert [
            (c.text, c.start_logit, c.end_logit) for c in candidates
        ] == expected
        others = [entry for entry in expected if entry[0]]
        if has_null and others:
            _, start, end = others[0]
            null = next(entry for entry in expected if not entry[0])
            odds = null[1] + null[2] - start - end
            assert answers.null_odds[question.id] == odds
            text = "" if odds > 0.5 else others[0][0]
            assert answers.texts[question.id] == text
        elif not has_null:
            assert answers.texts[question.id] == expected[0][0]


class TestFiles:
    @pytest.fixture
    def answers(self, encode, tokenizer):
        def find(is_impossible=None):
            questions, windows = encode(
                "Ren\u00e9", is_impossible=is_impossible
            )
            logits = make_logits(windows, (0, 3, 6, 1.5, 2))
            return find_answers(
                questions, windows, *logits, tokenizer, n_best_size=1
            )

        return find

    def test_version_1(self, tmp_path, answers):
        paths = write_predictions(tmp_path / "new", answers())
        names = ["predictions.json", "nbest_predictions.json"]
        assert paths == [str(tmp_path / "new" / name) for name in names]
        assert {p.name for p in (tmp_path / "new").iterdir()} == {*names}
        text = (tmp_path / "new" / "predictions.json").read_text()
        assert text == '{\n    "0": "Ren\\u00e9"\n}\n'
        nbest = json.loads((tmp_path / "new" / names[1]).read_text())
        assert nbest == {
            "0": [
                {
                    "text": "Ren\u00e9",
                    "probability": 1.0,
                    "start_logit": 1.5,
                    "end_logit": 2.0,
                }
            ]
        }
        assert list(nbest["0"][0]) == [
            "text",
            "probability",
            "start_logit",
            "end_logit",
        ]

    def test_version_2(self, tmp_path, answers):
        write_predictions(tmp_path, answers(is_impossible=False))
        odds = json.loads((tmp_path / "null_odds.json").read_text())
        assert odds == {"0": -103.5}
        nbest = json.loads((tmp_path / "nbest_predictions.json").read_text())
        assert [entry["text"] for entry in nbest["0"]] == ["Ren\u00e9", ""]
        texts = json.loads((tmp_path / "predictions.json").read_text())
        assert texts == {"0": "Ren\u00e9"}

    def test_folder_that_cannot_be_made(self, tmp_path, answers):
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / "answers"
        with pytest.raises(UserError, match=f"Cannot write to {folder}"):
            write_predictions(folder, answers())

    def test_folder_that_may_not_be_written_to(
        self, tmp_path, answers, read_only
    ):
        with pytest.raises(UserError, match=f"Cannot write to {tmp_path}"):
            write_predictions(tmp_path, answers())

    def test_a_failed_write_keeps_the_old_file(
        self, tmp_path, answers, monkeypatch
    ):
        write_predictions(tmp_path, answers())
        before = (tmp_path / "predictions.json").read_text()

        def fail(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", fail)
        with pytest.raises(UserError, match="No space left"):
            write_predictions(tmp_path, answers(is_impossible=True))
        assert (tmp_path / "predictions.json").read_text() == before
        assert not (tmp_path / "null_odds.json").exists()
