"""Tests of reading SQuAD and of cutting its contexts into windows."""

import json
import random
import string

import numpy as np
import pytest
from absl import logging
from reference_tokenizer import ReferenceTokenizer

from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.data.squad import is_version_2
from bert_pruning.data.squad import read_squad
from bert_pruning.data.squad_windows import encode_questions
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.errors import UserError

LETTERS = string.ascii_lowercase + string.digits
VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "##ing", *"().-,?'", *LETTERS),
    *("##" + letter for letter in LETTERS),
)


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(VOCABULARY, do_lower_case=True)


@pytest.fixture
def read(tmp_path):
    """Writes a file of contexts and their questions, and reads it."""

    def write_and_read(*paragraphs, needs_answers=False):
        path = tmp_path / "squad.json"
        data = [{"title": "", "paragraphs": paragraphs}]
        path.write_text(json.dumps({"version": "", "data": data}))
        return read_squad(str(path), needs_answers)

    return write_and_read


def paragraph(context, *qas):
    return {"context": context, "qas": list(qas)}


def qa(name, question="q", answers=(), **more):
    answers = [{"text": text, "answer_start": at} for text, at in answers]
    return {"id": name, "question": question, "answers": answers, **more}


def rows_of(windows):
    """The rows as words."""
    dataset = windows.dataset
    return [
        " ".join(VOCABULARY[i] for i in dataset.token_ids[begin:end])
        for begin, end in zip(
            dataset.offsets[:-1], dataset.offsets[1:], strict=True
        )
    ]


def words_of(windows, questions):
    """For each row, the word that each position of the window belongs to."""
    words = []
    for row, index in enumerate(windows.question_index):
        boundary = windows.dataset.type_boundaries[row]
        size = windows.dataset.lengths[row] - boundary - 1
        first = windows.first_piece[row]
        numbers = windows.piece_words[first : first + size]
        words.append([questions[index].words[number] for number in numbers])
    return words


class OfficialWindows:
    """The rules of run_squad.py, piece by piece, for one question."""

    def __init__(self, question, tokenizer, max_length, stride, max_query):
        query = tokenizer.tokenize(question.question)[:max_query]
        pieces, words, starts = [], [], []
        for number, word in enumerate(question.words):
            starts.append(len(pieces))
            for piece in tokenizer.tokenize(word):
                pieces.append(piece)
                words.append(number)
        answer = self.find_answer(question, pieces, starts, tokenizer)
        room = max_length - len(query) - 3
        spans = []
        begin = 0
        while begin < len(pieces):
            size = min(len(pieces) - begin, room)
            spans.append((begin, size))
            if begin + size == len(pieces):
                break
            begin += min(size, stride)
        self.rows = []
        for number, (begin, size) in enumerate(spans):
            shift = len(query) + 2 - begin
            row = {
                "ids": [2, *query, 3, *pieces[begin : begin + size], 3],
                "boundary": len(query) + 2,
                "words": words[begin : begin + size],
                "max_context": [
                    place + shift
                    for place in range(begin, begin + size)
                    if self.find_best(spans, place) == number
                ],
                "label": [0, 0],
            }
            if answer and begin <= answer[0] and answer[1] < begin + size:
                row["label"] = [answer[0] + shift, answer[1] + shift]
            self.rows.append(row)

    def find_answer(self, question, pieces, starts, tokenizer):
        """First and last piece; None if impossible or skipped."""
        self.skipped = False
        if question.is_impossible:
            return None
        text, start = question.answers[0]
        char_to_word, inside = [], False
        word = -1
        for character in question.context:
            if character in " \t\r\n\u202f":
                inside = False
            else:
                word += not inside
                inside = True
            char_to_word.append(word)
        first, last = char_to_word[start], char_to_word[start + len(text) - 1]
        joined = " ".join(question.words[first : last + 1])
        if " ".join(text.split()) not in joined:
            self.skipped = True
            return None
        low = starts[first]
        high = (starts[last + 1] if last + 1 < len(starts) else len(pieces)) - 1
        wanted = tokenizer.tokenize(text)
        for begin in range(low, high + 1):
            for end in range(high, begin - 1, -1):
                if pieces[begin : end + 1] == wanted:
                    return begin, end
        return low, high

    @staticmethod
    def find_best(spans, place):
        best, best_score = None, None
        for number, (begin, size) in enumerate(spans):
            left, right = place - begin, begin + size - 1 - place
            if left < 0 or right < 0:
                continue
            score = min(left, right) + 0.01 * size
            if best is None or score > best_score:
                best, best_score = number, score
        return best


def make_paragraph(rng, number, num_words):
    """A context of random words with two questions, one with an answer."""
    alphabet = [
        *"abcABC01",
        *"().-,'",
        "é",
        "e\u0301",
        "ß",
        "Σ",
        "\u00ad",
        "好",
    ]
    separators = [" "] * 9 + ["\n", "\t", "  ", "\u202f", "\u00a0"]
    context = "".join(
        "".join(rng.choices(alphabet, k=rng.randint(1, 5)))
        + rng.choice(separators)
        for _ in range(num_words)
    )
    start = rng.randrange(len(context) - 4)
    text = context[start : start + rng.randint(1, 20)].strip("\u00ad")
    text = text.strip() or context.split()[0]
    start = context.index(text)
    question = " ".join(rng.choices(["ab", "c?", "Éa"], k=rng.randint(1, 12)))
    return paragraph(
        context,
        qa(f"{number}a", question, [(text, start)], is_impossible=False),
        qa(f"{number}b", "c", is_impossible=True),
    )


class TestRead:
    def test_contexts_are_split_at_five_characters(self, read):
        context = " a\tb\r\nc  d\u202fe\u00a0f\u2003g "
        (question,) = read(paragraph(context, qa("x", "Why?")))
        assert question.words == ("a", "b", "c", "d", "e\u00a0f\u2003g")
        assert question.word_offsets == (1, 3, 6, 9, 11)
        assert (question.id, question.question) == ("x", "Why?")
        assert question.context == context

    def test_questions_keep_the_order_of_the_file(self, read):
        questions = read(
            paragraph("a", qa("3"), qa("1")), paragraph("b", qa("2"))
        )
        assert [q.id for q in questions] == ["3", "1", "2"]
        assert [q.context for q in questions] == ["a", "a", "b"]

    def test_all_answers_are_kept(self, read):
        answers = [("a b", 0), ("b", 2), ("b", 2)]
        (question,) = read(paragraph("a b", qa("x", answers=answers)))
        assert question.answers == tuple(answers)

    def test_files_without_answers(self, read):
        question = {"id": "x", "question": "q"}
        assert read(paragraph("a", question))[0].answers == ()

    def test_is_impossible_tells_version_2(self, read):
        first = read(paragraph("a", qa("x")))
        assert first[0].is_impossible is None
        assert not is_version_2(first)
        second = read(
            paragraph("a", qa("x", is_impossible=False)),
            paragraph("a", qa("y", is_impossible=True)),
        )
        assert [q.is_impossible for q in second] == [False, True]
        assert is_version_2(second) and is_version_2(second[:1])

    @pytest.mark.parametrize("count", [0, 2])
    def test_training_needs_exactly_one_answer(self, read, count):
        context = paragraph("a", qa("x7", answers=[("a", 0)] * count))
        with pytest.raises(UserError, match=f"'x7' has {count} answers"):
            read(context, needs_answers=True)
        read(context, needs_answers=False)

    def test_training_needs_no_answer_to_the_impossible(self, read):
        questions = read(
            paragraph("a", qa("x", is_impossible=True)),
            paragraph("a", qa("y", answers=[("a", 0)], is_impossible=False)),
            needs_answers=True,
        )
        assert len(questions) == 2

    def test_missing_file(self, tmp_path):
        path = str(tmp_path / "none.json")
        with pytest.raises(UserError, match=f"Cannot read {path}"):
            read_squad(path, needs_answers=False)

    @pytest.mark.parametrize(
        "text, message",
        [
            ('{"data": [', "is not JSON"),
            ("[1, 2]", "must hold a JSON object"),
            ('{"version": "1.1"}', "must have 'data', a list.*\"version\""),
            ('{"data": {}}', "must have 'data', a list"),
            ('{"data": []}', "no questions"),
            ('{"data": [{"paragraphs": []}]}', "no questions"),
            ('{"data": ["a"]}', r"\.data\[0\] must have 'paragraphs'"),
            (
                '{"data": [{"paragraphs": [{"qas": []}]}]}',
                r"\.data\[0\]\.paragraphs\[0\] must have 'context', a text",
            ),
            (
                '{"data": [{"paragraphs": [{"context": "", "qas": '
                '[{"id": 1, "question": ""}]}]}]}',
                r"\.paragraphs\[0\]\.qas\[0\] must have 'id', a text",
            ),
            (
                '{"data": [{"paragraphs": [{"context": "", "qas": '
                '[{"id": "1", "question": "", "answers": [{"text": ""}]}]}]}]}',
                r"\.answers\[0\] must have 'answer_start', a number",
            ),
        ],
    )
    def test_other_files_are_told_by_name(self, tmp_path, text, message):
        path = tmp_path / "other.json"
        path.write_text(text)
        with pytest.raises(UserError, match=f"other.json.*{message}"):
            read_squad(str(path), needs_answers=False)

    def test_ids_that_repeat(self, read):
        with pytest.raises(UserError, match="2 questions have the id 'x'"):
            read(paragraph("a", qa("x"), qa("y")), paragraph("b", qa("x")))


class TestRows:
    def test_one_window(self, read, tokenizer):
        questions = read(
            paragraph("The cat", qa("1", "a b?"), qa("2", "c")),
            paragraph("dogs", qa("3", "the")),
        )
        windows = encode_questions(questions, tokenizer, with_labels=False)
        assert rows_of(windows) == [
            "[CLS] a b ? [SEP] the c ##a ##t [SEP]",
            "[CLS] c [SEP] the c ##a ##t [SEP]",
            "[CLS] the [SEP] d ##o ##g ##s [SEP]",
        ]
        assert windows.question_index.tolist() == [0, 1, 2]
        assert windows.dataset.type_boundaries.tolist() == [5, 3, 3]
        assert windows.max_context.tolist() == [[5, 9], [3, 7], [3, 7]]
        assert words_of(windows, questions) == [
            ["The", "cat", "cat", "cat"],
            ["The", "cat", "cat", "cat"],
            ["dogs"] * 4,
        ]
        assert windows.dataset.labels is None
        assert windows.skipped == 0

    def test_stride_is_the_step_between_windows(self, read, tokenizer):
        questions = read(paragraph("a b c d e f g", qa("1", "q")))
        windows = encode_questions(
            questions, tokenizer, 9, 2, 1, with_labels=False
        )
        assert rows_of(windows) == [
            "[CLS] q [SEP] a b c d e [SEP]",
            "[CLS] q [SEP] c d e f g [SEP]",
        ]
        # On their poorer sides d has one piece in both windows, so the first
        # has it; e has none in the first and two in the second.
        assert windows.max_context.tolist() == [[3, 7], [5, 8]]

    def test_a_stride_beyond_the_window_leaves_no_gaps(self, read, tokenizer):
        questions = read(paragraph("a b c d e", qa("1", "q")))
        windows = encode_questions(
            questions, tokenizer, 6, 128, 1, with_labels=False
        )
        assert [row.split()[3:-1] for row in rows_of(windows)] == [
            ["a", "b"],
            ["c", "d"],
            ["e"],
        ]

    def test_pieces_go_where_they_see_more_context(self, read, tokenizer):
        questions = read(paragraph("a " * 353, qa("1", "q")))
        windows = encode_questions(
            questions, tokenizer, 324, 128, 4, with_labels=False
        )
        # The windows hold the pieces 0 to 319 and 128 to 352. Piece 224 has
        # 95 on its poorer side there and 3.20 for the length, but 96 and 2.25
        # here; piece 223 has 96 and 95.
        assert windows.max_context.tolist() == [
            [3, 3 + 224],
            [3 + 224 - 128, 3 + 225],
        ]

    def test_a_long_window_outdoes_a_little_more_context(self, read, tokenizer):
        questions = read(paragraph("a " * 327, qa("1", "q")))
        windows = encode_questions(
            questions, tokenizer, 324, 316, 4, with_labels=False
        )
        # Piece 319 is the last of 320 here, and the fourth of 11 there: 0 and
        # 3.20 for the length against 3 and 0.11.
        assert windows.max_context.tolist() == [[3, 323], [7, 14]]

    def test_long_questions_are_cut(self, read, tokenizer):
        questions = read(paragraph("a b c", qa("1", "x y going")))
        windows = encode_questions(
            questions, tokenizer, 8, 128, 4, with_labels=False
        )
        assert rows_of(windows) == [
            "[CLS] x y g ##o [SEP] a [SEP]",
            "[CLS] x y g ##o [SEP] b [SEP]",
            "[CLS] x y g ##o [SEP] c [SEP]",
        ]

    def test_a_context_without_text_makes_no_row(self, read, tokenizer):
        questions = read(
            paragraph(" \n", qa("1")),
            paragraph("\u00ad", qa("2")),
            paragraph("a", qa("3")),
        )
        windows = encode_questions(questions, tokenizer, with_labels=False)
        assert windows.question_index.tolist() == [2]
        with pytest.raises(UserError, match="2 questions hold no text"):
            encode_questions(questions[:2], tokenizer, with_labels=False)

    def test_each_context_and_word_is_tokenised_once(self, read, tokenizer):
        class Counter:
            texts = []
            cls_id, sep_id = tokenizer.cls_id, tokenizer.sep_id

            def tokenize(self, texts):
                self.texts += texts
                return tokenizer.tokenize(texts)

        questions = read(
            paragraph("a b a b", qa("1", "q"), qa("2", "r")),
            paragraph("b c", qa("3", "s")),
        )
        encode_questions(questions, Counter(), with_labels=False)
        assert sorted(Counter.texts) == ["a", "b", "c", "q", "r", "s"]

    @pytest.mark.parametrize(
        "lengths, message",
        [
            ((67, 128, 64), "max_seq_length.*Received: 67 and 64"),
            ((384, 0, 64), "doc_stride.*Received: 0 and 64"),
            ((384, 128, 0), "max_query_length.*Received: 128 and 0"),
        ],
    )
    def test_lengths_that_leave_no_room(self, lengths, message):
        with pytest.raises(UserError, match=message):
            encode_questions([], None, *lengths, with_labels=False)

    @pytest.mark.parametrize("seed", range(8))
    def test_equals_the_official_rules(self, read, tokenizer, seed):
        rng = random.Random(seed)
        paragraphs = [
            make_paragraph(rng, i, num_words=rng.randint(1, 60))
            for i in range(12)
        ]
        questions = read(*paragraphs)
        max_query = rng.randint(1, 12)
        room = rng.choice([1, 2, 5, 16, 61])
        max_length = max_query + 3 + room
        lengths = (max_length, rng.choice([1, 2, 7, 20, 70]), max_query)
        windows = encode_questions(
            questions, tokenizer, *lengths, with_labels=True
        )
        reference = ReferenceTokenizer(VOCABULARY, do_lower_case=True)
        rows, skipped = [], 0
        for index, question in enumerate(questions):
            official = OfficialWindows(question, reference, *lengths)
            skipped += official.skipped
            if not official.skipped:
                rows += [(index, row) for row in official.rows]
        dataset = windows.dataset
        assert windows.skipped == skipped
        assert windows.question_index.tolist() == [index for index, _ in rows]
        for number, (_, row) in enumerate(rows):
            begin, end = dataset.offsets[number : number + 2]
            assert dataset.token_ids[begin:end].tolist() == row["ids"]
            boundary = dataset.type_boundaries[number]
            assert boundary == row["boundary"]
            assert dataset.labels[number].tolist() == row["label"]
            best = range(*windows.max_context[number])
            assert list(best) == row["max_context"]
            first = windows.first_piece[number]
            size = end - begin - boundary - 1
            words = windows.piece_words[first : first + size].tolist()
            assert words == row["words"]
        assert room < 16 or (dataset.labels > 0).any()


class TestLabels:
    @pytest.fixture
    def label(self, read, tokenizer):
        """The labels of a question about a context, and what they cover."""

        def encode(context, text, start=None, **lengths):
            start = context.index(text) if start is None else start
            questions = read(
                paragraph(context, qa("1", "q", [(text, start)])),
                paragraph("z", qa("2", "q", [("z", 0)])),
            )
            windows = encode_questions(
                questions, tokenizer, with_labels=True, **lengths
            )
            labels = windows.dataset.labels[:-1]
            covered = [
                " ".join(row.split()[start : end + 1])
                for row, (start, end) in zip(
                    rows_of(windows), labels, strict=False
                )
            ]
            return labels.tolist(), covered

        return encode

    def test_words(self, label):
        labels, covered = label("a bc d", "bc d")
        assert labels == [[4, 6]]
        assert covered == ["b ##c d"]

    @pytest.mark.parametrize(
        "context, text, covered",
        [
            ("was (18-19).", "18", "1 ##8"),
            ("was (18-19).", "18-19", "1 ##8 - 1 ##9"),
            ("in the US's", "US", "u ##s"),
            # No pieces of the word are those of the answer: all of it.
            ("the undone", "done", "u ##n ##d ##o ##n ##e"),
            # The first of two.
            ("x a-a x", "a", "a"),
            # "É" and "e" are the same to the tokenizer.
            ("x É,e x", "e", "e"),
        ],
    )
    def test_answers_inside_of_words(self, label, context, text, covered):
        assert label(context, text)[1] == [covered]

    def test_the_first_of_equal_parts(self, label):
        assert label("x a-a x", "a", start=4)[0] == [[4, 4]]

    def test_answers_that_a_window_cuts_are_at_cls(self, label):
        lengths = {"max_seq_length": 9, "max_query_length": 1, "doc_stride": 2}
        context = "a b c d e f g"
        assert label(context, "b", **lengths)[0] == [[4, 4], [0, 0]]
        assert label(context, "c d", **lengths)[0] == [[5, 6], [3, 4]]
        assert label(context, "e f", **lengths)[0] == [[0, 0], [5, 6]]
        assert label(context, "b c d e f", **lengths)[0] == [[0, 0], [0, 0]]

    def test_impossible_questions_are_at_cls(self, read, tokenizer):
        questions = read(
            paragraph("a b", qa("1", answers=[("b", 2)], is_impossible=True))
        )
        windows = encode_questions(questions, tokenizer, with_labels=True)
        assert windows.dataset.labels.tolist() == [[0, 0]]
        assert windows.skipped == 0

    @pytest.mark.parametrize(
        "context, text, start",
        [
            ("a b c", "b", 0),
            ("a b c", "B", 2),
            ("a b c", "b d", 2),
            ("a b c", "c", 9),
            ("a b c", "c", -1),
            ("a b c", "", 2),
            ("a b c", " ", 1),
            (" a b", " a", 0),
            # Python splits the answer at U+00A0, the context is not split.
            ("1\u00a0b c", "1\u00a0b", 0),
            ("a \u00ad c", "\u00ad", 2),
        ],
    )
    def test_answers_not_found_are_skipped_and_counted(
        self, read, tokenizer, caplog, context, text, start
    ):
        logging.get_absl_logger().propagate = True
        questions = read(
            paragraph("a", qa("good", answers=[("a", 0)])),
            paragraph(context, qa("bad", answers=[(text, start)])),
        )
        windows = encode_questions(questions, tokenizer, with_labels=True)
        assert windows.skipped == 1
        assert windows.question_index.tolist() == [0]
        assert "Skipped 1 of 2" in caplog.text and "bad" in caplog.text
        windows = encode_questions(questions, tokenizer, with_labels=False)
        assert windows.skipped == 0
        assert windows.question_index.tolist() == [0, 1]

    @pytest.mark.parametrize(
        "context, text", [("x 1\u202fb", "1\u202fb"), ("x 1 \n b", "1 \n b")]
    )
    def test_answers_with_other_spaces_are_found(self, label, context, text):
        assert label(context, text)[1] == ["1 b"]

    def test_no_answer_is_found(self, read, tokenizer):
        questions = read(paragraph("a", qa("1", answers=[("b", 0)])))
        with pytest.raises(UserError, match="None of the 1 answers"):
            encode_questions(questions, tokenizer, with_labels=True)

    def test_batches_hold_both_positions(self, read, tokenizer):
        questions = read(
            *(
                paragraph("a " * i + "z", qa(str(i), answers=[("z", 2 * i)]))
                for i in range(8)
            )
        )
        dataset = encode_questions(
            questions, tokenizer, with_labels=True
        ).dataset
        assert dataset.labels.dtype == np.int32
        part = dataset.take(np.array([5, 2]))
        assert part.labels.tolist() == [[8, 8], [5, 5]]
        (batch,) = TrainBatches(dataset, batch_size=8, seed=1).epoch(0)
        assert batch["label"].shape == (8, 2)
        z = VOCABULARY.index("z")
        for ids, (start, end) in zip(
            batch["input_word_ids"], batch["label"], strict=True
        ):
            assert ids[start] == ids[end] == z
            assert batch["input_type_ids"][0].sum() > 0
