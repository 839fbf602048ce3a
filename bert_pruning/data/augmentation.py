"""Makes new sentences by replacing words, as TinyBERT does.

For each word of a sentence there are candidates: of a word that is one piece,
what a masked language model would put there; of a longer word, its neighbours
among word vectors. A new sentence replaces some words, by chance.

    augmenter = Augmenter(tokenizer, predict, vectors)
    augmenter.augment(["a good film"], [generator])

Here all words of many sentences are predicted in batches, each sentence has a
generator of its own so that results do not depend on what comes before, and
the second text of a pair is augmented beside the first one's original.
"""

import dataclasses
import re
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from bert_pruning.errors import UserError

# Variants of each text, as in TinyBERT's code.
NUM_VARIANTS = {"CoLA": 30, "SST-2": 20, "QNLI": 20, "MNLI": 10, "QQP": 10}
DEFAULT_NUM_VARIANTS = 30

_WORD = re.compile(r"[a-z]+", re.IGNORECASE)

# Function words stay: replacing them makes no sentence of the same sense.
# Question words may be replaced.
STOP_WORDS = frozenset(
    """
    i me my myself we our ours ourselves you you're you've you'll you'd your
    yours yourself yourselves he him his himself she she's her hers herself it
    it's its itself they them their theirs themselves this that that'll these
    those am is are was were be been being have has had having do does did
    doing a an the and but if or because as until while of at by for with about
    against between into through during before after above below to from up
    down in out on off over under again further then once here there all any
    both each few more most other some such no nor not only own same so than
    too very s t can will just don don't should should've now d ll m o re ve y
    ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn
    hasn't haven haven't isn isn't ma mightn mightn't mustn mustn't needn
    needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won won't
    wouldn wouldn't 's 're
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Masked:
    """A sentence with one piece to predict, followed by itself unmasked.

    Args:
        ids: tuple of ints. [CLS] masked sentence [SEP] sentence [SEP].
        first_length: int. Tokens up to and including the first [SEP].
        position: int. Of [MASK] in `ids`.
    """

    ids: tuple[int, ...]
    first_length: int
    position: int


class Augmenter:
    """Makes variants of sentences.

    Args:
        tokenizer: `BertTokenizer`.
        predict: function of a list of `Masked` that returns an int array
            `(masked, candidates)`, the ids of the likeliest pieces first.
        vectors: `WordVectors`, or None: longer words stay.
        num_variants: int. New sentences of each at most; repetitions are
            dropped.
        num_candidates: int. For each word.
        replace_probability: float. Of each word that has candidates.
        max_length: int. Tokens that the model reads.

    Raises:
        UserError: if a number is out of range, or the vocabulary has no
            [MASK].

    Reference: [TinyBERT](https://arxiv.org/abs/1909.10351), algorithm 1.
    """

    def __init__(
        self,
        tokenizer,
        predict: Callable[[list[Masked]], np.ndarray],
        vectors=None,
        num_variants: int = DEFAULT_NUM_VARIANTS,
        num_candidates: int = 15,
        replace_probability: float = 0.4,
        max_length: int = 512,
    ):
        if min(num_variants, num_candidates) < 1:
            raise UserError(
                "--num_variants and --num_candidates must be positive. "
                f"Received: {num_variants} and {num_candidates}."
            )
        if not 0.0 < replace_probability <= 1.0:
            raise UserError(
                "--replace_probability must lie in (0, 1]. Received: "
                f"{replace_probability}."
            )
        if num_candidates > len(tokenizer.vocabulary):
            raise UserError(
                f"--num_candidates={num_candidates} is more than the "
                f"{len(tokenizer.vocabulary)} entries of the vocabulary."
            )
        if tokenizer.mask_id is None:
            raise UserError("The vocabulary has no [MASK] to predict.")
        self.tokenizer = tokenizer
        self.predict = predict
        self.vectors = vectors
        self.num_variants = num_variants
        self.num_candidates = num_candidates
        self.replace_probability = replace_probability
        self.max_length = max_length
        self._neighbours = {}

    def augment(
        self,
        texts: Sequence[str],
        generators: Sequence[np.random.Generator],
    ) -> list[list[str]]:
        """Makes the variants of each text.

        Args:
            texts: sequence of str.
            generators: sequence of `numpy.random.Generator`, one per text.

        Returns:
            A list per text: itself, then its variants, all different.
        """
        unique = list(dict.fromkeys(texts))
        candidates = dict(zip(unique, self.candidates(unique), strict=True))
        return [
            self._variants(text, *candidates[text], generator)
            for text, generator in zip(texts, generators, strict=True)
        ]

    def candidates(
        self, texts: Sequence[str]
    ) -> list[tuple[list[str], dict[int, list[str]]]]:
        """Finds what may replace the words of each text.

        Args:
            texts: sequence of str.

        Returns:
            A pair per text: its words, and the candidates by the position of
            the word.
        """
        words, pieces = (
            ragged.to_list() for ragged in self.tokenizer.split_words(texts)
        )
        words = [[word.decode() for word in row] for row in words]
        masked, places, rare = [], [], []
        for row, (row_words, row_pieces) in enumerate(
            zip(words, pieces, strict=True)
        ):
            flat = [piece for word in row_pieces for piece in word]
            start = 0
            for i, (word, ids) in enumerate(
                zip(row_words, row_pieces, strict=True)
            ):
                if _is_replaceable(word):
                    # Before it: [CLS] and the pieces of the words before.
                    if len(ids) == 1 and start + 1 < self.max_length:
                        masked.append(self._mask(flat, start))
                        places.append((row, i))
                    else:
                        rare.append((row, i))
                start += len(ids)
        found = [{} for _ in texts]
        if masked:
            predicted = self.predict(masked)
            for (row, i), ids in zip(places, predicted, strict=True):
                found[row][i] = self._readable(ids) or [words[row][i]]
        self._look_up({words[row][i] for row, i in rare})
        for row, i in rare:
            word = words[row][i]
            found[row][i] = self._neighbours.get(word) or [word]
        return [
            (row_words, dict(sorted(row_found.items())))
            for row_words, row_found in zip(words, found, strict=True)
        ]

    def _mask(self, pieces, position):
        tokenizer = self.tokenizer
        masked = list(pieces)
        masked[position] = tokenizer.mask_id
        ids = [tokenizer.cls_id, *masked, tokenizer.sep_id]
        first_length = min(len(ids), self.max_length)
        ids += [*pieces, tokenizer.sep_id]
        return Masked(tuple(ids[: self.max_length]), first_length, position + 1)

    def _readable(self, ids):
        pieces = [self.tokenizer.vocabulary[i] for i in ids]
        return [
            piece
            for piece in pieces[: self.num_candidates]
            if not piece.startswith(("##", "["))
        ]

    def _look_up(self, words):
        new = sorted(words - self._neighbours.keys())
        if self.vectors is None or not new:
            return
        found = self.vectors.neighbours(new, self.num_candidates)
        self._neighbours.update(zip(new, found, strict=True))

    def _variants(self, text, words, candidates, generator):
        variants = {text: None}
        if not words:
            return [text]
        shape = (self.num_variants, len(candidates))
        chances = generator.random((2, *shape))
        for choices, hits in zip(
            chances[0], chances[1] < self.replace_probability, strict=True
        ):
            variant = list(words)
            for (i, options), choice, hit in zip(
                candidates.items(), choices, hits, strict=True
            ):
                if hit:
                    variant[i] = options[int(choice * len(options))]
            variants.setdefault(" ".join(variant))
        return list(variants)


def augment_row(
    row: Sequence[str],
    columns: Sequence[int],
    variants: Sequence[Sequence[str]],
) -> list[list[str]]:
    """Makes the rows of a table that come of one of its rows.

    Args:
        row: sequence of str. Its fields.
        columns: sequence of ints. Where its texts are.
        variants: sequence of lists of str. Of each text: itself, then others.

    Returns:
        The row itself, then one with each variant of the first text, then one
        with each of the second beside the original first.
    """
    rows = [list(row)]
    for column, texts in zip(columns, variants, strict=True):
        for text in texts[1:]:
            rows.append([*row[:column], text, *row[column + 1 :]])
    return rows


def _is_replaceable(word):
    return _WORD.fullmatch(word) and word.lower() not in STOP_WORDS
