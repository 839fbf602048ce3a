"""Pairs of segments for pre-training: masked tokens and the next sentence.

Documents are lists of tokenised sentences. `build_pairs` makes of each the
pairs of a pool of documents; everything is a function of the seed and of the
documents' own names, so that it does not matter who computes it, or when.

    pairs = list(build_pairs(pool, 0, PairOptions(128), generator))
"""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from bert_pruning.errors import UserError

# [CLS] and two [SEP].
NUM_SPECIAL = 3


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """How segments are paired.

    Args:
        max_seq_length: int. Of a pair, with [CLS] and two [SEP].
        short_seq_probability: float. Of a document being cut into pairs that
            are shorter than need be, as in fine-tuning.
        nsp_probability: float. Of the second segment coming from another
            document.
        cuts_both_ends: bool. What is too long loses tokens from either end, as
            the official BERT code has it; otherwise from the back.

    Raises:
        UserError: if a value is out of range.
    """

    max_seq_length: int = 128
    short_seq_probability: float = 0.1
    nsp_probability: float = 0.5
    cuts_both_ends: bool = False

    def __post_init__(self):
        if self.max_seq_length < NUM_SPECIAL + 2:
            raise UserError(
                f"--max_seq_length must be at least {NUM_SPECIAL + 2}: three "
                "special tokens and one of each segment. Received: "
                f"{self.max_seq_length}."
            )
        for name in ("short_seq_probability", "nsp_probability"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UserError(
                    f"--{name} must lie in [0, 1]. Received: {value}."
                )

    @property
    def num_tokens(self) -> int:
        """Tokens of both segments, at most."""
        return self.max_seq_length - NUM_SPECIAL


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two segments, and whether the second follows the first.

    Args:
        first: int32 array. Token ids, no special ones.
        second: int32 array.
        is_random: bool. The second comes from another document.
    """

    first: np.ndarray
    second: np.ndarray
    is_random: bool


def cut_sentences(
    sentences: Sequence[np.ndarray], options: PairOptions
) -> list[np.ndarray]:
    """Cuts sentences that no pair has room for into segments of one that has.

    Text without full stops is one sentence, of which a pair would hold the
    beginning alone.

    Args:
        sentences: list of int32 arrays. The token ids of a document.
        options: PairOptions.

    Example:

    ```python
    cut_sentences([np.arange(6)], PairOptions(8))  # [0 1 2], [3 4 5]
    ```
    """
    size = -(-options.num_tokens // 2)
    found = []
    for sentence in sentences:
        if len(sentence) <= options.num_tokens:
            found.append(sentence)
            continue
        found.extend(
            sentence[start : start + size]
            for start in range(0, len(sentence), size)
        )
    return found


def build_pairs(
    pool: Sequence[Sequence[np.ndarray]],
    index: int,
    options: PairOptions,
    random: np.random.Generator,
) -> Iterator[Pair]:
    """Cuts one document into pairs of segments.

    Sentences are gathered until they are long enough or the document ends. Of
    one sentence, or by chance, the second segment is a part of another
    document, and the sentences that it displaces are used again.

    Args:
        pool: list of documents, each a list of int32 arrays: the token ids of
            its sentences, of which none is empty. At least two documents.
        index: int. Which document.
        options: PairOptions.
        random: numpy Generator.

    Yields:
        `Pair`s of at most `options.num_tokens` tokens, none of them empty.

    Example:

    ```python
    pool = [[np.int32([5, 6]), np.int32([7])], [np.int32([8, 9])]]
    pairs = list(build_pairs(pool, 0, PairOptions(8), random))
    ```

    Reference: [BERT](https://arxiv.org/abs/1810.04805), `segment_pair_nsp` of
    [Prune Once for All](https://arxiv.org/abs/2111.05754).
    """
    document = pool[index]
    target = options.num_tokens
    if random.random() < options.short_seq_probability:
        target = int(random.integers(2, options.num_tokens + 1))
    chunk, length, place = [], 0, 0
    while place < len(document):
        chunk.append(document[place])
        length += len(document[place])
        place += 1
        if length < target and place < len(document):
            continue
        # How many of the sentences go into the first segment.
        end = 1 if len(chunk) == 1 else int(random.integers(1, len(chunk)))
        first = np.concatenate(chunk[:end])
        is_random = len(chunk) == 1 or random.random() < options.nsp_probability
        if is_random:
            second = _draw_segment(
                pool, index, max(1, target - len(first)), random
            )
            place -= len(chunk) - end
        else:
            second = np.concatenate(chunk[end:])
        yield _truncate(first, second, is_random, options, random)
        chunk, length = [], 0


def _draw_segment(pool, index, length, random):
    """Sentences of another document, from a random one on."""
    other = int(random.integers(len(pool) - 1))
    document = pool[other + (other >= index)]
    start = end = int(random.integers(len(document)))
    found = 0
    while found < length and end < len(document):
        found += len(document[end])
        end += 1
    return np.concatenate(document[start:end])


def _truncate(first, second, is_random, options, random):
    """Shortens the longer segment, token by token, to the room there is."""
    surplus = len(first) + len(second) - options.num_tokens
    if surplus > 0:
        lengths = [len(first), len(second)]
        # What makes both equal comes off the longer one, then off each in turn.
        longer = int(lengths[1] >= lengths[0])
        head = min(surplus, abs(lengths[0] - lengths[1]))
        cuts = [0, 0]
        cuts[longer] = head
        cuts[1] += (surplus - head + 1) // 2
        cuts[0] += (surplus - head) // 2
        first, second = (
            _cut(segment, count, options, random)
            for segment, count in zip((first, second), cuts, strict=True)
        )
    return Pair(first, second, is_random)


def _cut(segment, count, options, random):
    front = random.binomial(count, 0.5) if options.cuts_both_ends else 0
    return segment[front : len(segment) - (count - front)]


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which tokens are hidden, and behind what.

    Of the chosen tokens 80 % become [MASK], 10 % any token of the vocabulary,
    and 10 % stay.

    Args:
        vocabulary: sequence of str.
        probability: float in (0, 1). Share of a row's tokens, special ones
            counted, that are chosen; at least one is, unless all words are
            longer than there is room for.
        whole_word: bool. The pieces of a word are chosen together.
        max_predictions: int or None. Tokens chosen of a row, at most.

    Raises:
        UserError: if a value is out of range or a token is missing.

    Example:

    ```python
    masking = Masking(tokenizer.vocabulary)
    masked = masking.apply(batch, np.random.default_rng([seed, step]))
    ```

    Reference: [BERT](https://arxiv.org/abs/1810.04805).
    """

    vocabulary: Sequence[str]
    probability: float = 0.15
    whole_word: bool = False
    max_predictions: int | None = None

    def __post_init__(self):
        if not 0.0 < self.probability < 1.0:
            raise UserError(
                "--mlm_probability must lie between 0 and 1. Received: "
                f"{self.probability}."
            )
        ids = {}
        for token in ("[MASK]", "[CLS]", "[SEP]"):
            if token not in self.vocabulary:
                raise UserError(f"The vocabulary lacks {token}.")
            ids[token] = list(self.vocabulary).index(token)
        continues = np.array([t.startswith("##") for t in self.vocabulary])
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_continues", continues)

    def apply(
        self, batch: dict[str, np.ndarray], random: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Hides some tokens of a batch.

        Args:
            batch: dict of `EncodedDataset.batch`.
            random: numpy Generator.

        Returns:
            The batch with other `input_word_ids`, and int32 arrays
            `masked_positions` and `masked_ids` and float32 `masked_weights`,
            each `(batch, predictions)`: where a token was chosen, which it
            was, and 1, or 0 where a row has fewer than others.
        """
        ids = batch["input_word_ids"]
        special = (ids == self._ids["[CLS]"]) | (ids == self._ids["[SEP]"])
        usable = (batch["input_mask"] == 1) & ~special
        wanted = self._counts(batch["input_mask"].sum(1), usable.sum(1))
        # Each candidate gets a random number; the smallest are chosen.
        chance = np.where(usable, random.random(ids.shape), 2.0)
        if self.whole_word:
            chosen = self._choose_words(ids, usable, chance, wanted)
        else:
            rank = np.argsort(np.argsort(chance, axis=1), axis=1)
            chosen = rank < wanted[:, np.newaxis]
        return {**batch, **self._hide(ids, chosen, random)}

    def _counts(self, lengths, usable):
        wanted = np.maximum(1, np.rint(lengths * self.probability).astype(int))
        if self.max_predictions is not None:
            wanted = np.minimum(wanted, self.max_predictions)
        return np.minimum(wanted, usable)

    def _choose_words(self, ids, usable, chance, wanted):
        """Chooses words as wholes, leaving out what would be too much."""
        chosen = np.zeros(ids.shape, bool)
        for row, count in enumerate(wanted):
            begins = usable[row] & ~self._continues[ids[row]]
            begins |= usable[row] & ~np.roll(usable[row], 1)
            places = np.flatnonzero(usable[row])
            word = np.cumsum(begins)[places]
            sizes = np.bincount(word)
            first = places[np.searchsorted(word, np.unique(word))]
            left = count
            for start in first[np.argsort(chance[row, first])]:
                number = word[np.searchsorted(places, start)]
                if sizes[number] <= left:
                    chosen[row, places[word == number]] = True
                    left -= sizes[number]
                if not left:
                    break
        return chosen

    def _hide(self, ids, chosen, random):
        # Of a row without padding: as few widths as lengths for XLA to compile.
        width = int(self._counts(ids.shape[1], ids.shape[1]))
        # Chosen places first, in their order.
        positions = np.argsort(~chosen, axis=1, kind="stable")[:, :width]
        weights = np.take_along_axis(chosen, positions, 1)
        positions = np.where(weights, positions, 0)
        labels = np.where(weights, np.take_along_axis(ids, positions, 1), 0)
        draw = random.random(ids.shape)
        others = random.integers(0, len(self.vocabulary), ids.shape)
        hidden = np.where(chosen & (draw < 0.8), self._ids["[MASK]"], ids)
        hidden = np.where(chosen & (draw >= 0.9), others, hidden)
        return {
            "input_word_ids": hidden.astype(np.int32),
            "masked_positions": positions.astype(np.int32),
            "masked_ids": labels.astype(np.int32),
            "masked_weights": weights.astype(np.float32),
        }
