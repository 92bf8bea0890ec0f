"""Text as tokens: characters and words, numbered as TFF numbers them.

0 pads; then come the V words or characters of the vocabulary, the buckets of what is not in it, the
beginning of a sentence, and its end: V + buckets + 3 numbers in all.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

# The 86 characters of TFF's Shakespeare, and the 80 of LEAF's, in their order.
SHAKESPEARE = (
    "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
)
LEAF_LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
_TWEET = re.compile(r"[\w']+|[.,!?;]")


def split_words(text: str) -> list[str]:
    """Words and marks of a sentence that nobody has tokenised yet, as LEAF splits Sent140."""
    return _TWEET.findall(text)


def vocabulary(sentences: Iterable[Sequence[str]], size: int) -> tuple[str, ...]:
    """The most frequent words, the most frequent first; equally frequent ones in ASCII order.

    Args:
        sentences: split into words; only those for training.
        size: at most so many words.

    Raises:
        ValueError: `size` is below 1.

    Example:
        >>> data.vocabulary([["a", "b", "a"], ["c", "a", "b"]], size=2)
        ('a', 'b')
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 word; got {size}: size=10000")
    counts = Counter(word for sentence in sentences for word in sentence)
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:size])


class Tokens:
    """The numbers of the words, or characters, of a vocabulary.

    Args:
        vocabulary: words, or characters, each once.
        buckets: numbers for what is not in the vocabulary; CRC-32 says which.

    Raises:
        ValueError: an empty vocabulary, one with repetitions, or `buckets` below 1.

    Source: the baselines of TensorFlow Federated, whose code was read.

    Deviations: TFF finds the bucket with another hash; with one bucket there is no difference.

    Example:
        >>> tokens = data.Tokens(["the", "cat"])
        >>> tokens(["the", "dog"]), tokens.size, tokens.text(np.array([2, 0]))
        ([1, 3], 6, ['cat'])
    """

    def __init__(self, vocabulary: Sequence[str], buckets: int = 1) -> None:
        self.words = tuple(vocabulary)
        self.number = {word: i + 1 for i, word in enumerate(self.words)}
        if not self.words or len(self.number) < len(self.words):
            raise ValueError(
                f"vocabulary must hold different words; got {len(self.words)}, of which "
                f"{len(self.number)} differ: tuple(dict.fromkeys(words))"
            )
        if buckets < 1:
            raise ValueError(f"buckets must be at least 1; got {buckets}: buckets=1")
        self.buckets = buckets
        self.pad, self.oov = 0, len(self.words) + 1
        self.bos = self.oov + buckets
        self.eos = self.bos + 1
        self.size = self.eos + 1

    def __call__(self, sentence: Iterable[str]) -> list[int]:
        """The numbers of a sentence, without beginning, end or padding."""
        return [self.number.get(w) or self._bucket(w) for w in sentence]

    def _bucket(self, word: str) -> int:
        return self.oov + zlib.crc32(word.encode("utf-8", "surrogatepass")) % self.buckets

    def text(self, tokens: Int[np.ndarray, " t"]) -> list[str]:
        """Words of numbers; padding, beginning and end are left out, the unknown is "\\ufffd"."""
        marks = (self.pad, self.bos, self.eos)
        known, ids = range(1, self.oov), tokens.tolist()
        return [self.words[t - 1] if t in known else "\ufffd" for t in ids if t not in marks]


def characters(
    texts: Sequence[str], length: int = 80, tokens: Tokens | None = None
) -> tuple[Int[np.ndarray, "s length"], Int[np.ndarray, "s length"], Int[np.ndarray, " s"]]:
    """Every text as sentences of `length` characters, with the next characters as labels.

    A text gets a beginning and an end, is padded to a multiple of `length + 1` and cut; so the step
    from one piece to the next is not learned.

    Args:
        texts: any number of strings.
        length: of a sentence, in characters.
        tokens: of the characters (default: those of TFF's Shakespeare, 90 numbers).

    Returns:
        x and y, int32, and the text that every sentence is from.

    Raises:
        ValueError: `length` is below 1.

    Source: the baselines of TensorFlow Federated, whose code was read.

    Example:
        >>> x, y, text = data.characters(["to be"], length=4)
        >>> x.shape, data.Tokens(data.text.SHAKESPEARE).text(y[0])
        ((2, 4), ['t', 'o', ' ', 'b'])
    """
    _positive(length)
    tokens = Tokens(SHAKESPEARE) if tokens is None else tokens
    pieces, origin = [], []
    for i, text in enumerate(texts):
        ids = [tokens.bos, *tokens(text), tokens.eos]
        ids += [tokens.pad] * (-len(ids) % (length + 1))
        rows = np.array(ids, np.int32).reshape(-1, length + 1)
        pieces.append(rows)
        origin.append(np.full(len(rows), i))
    rows = np.concatenate([np.zeros((0, length + 1), np.int32), *pieces])
    return rows[:, :-1], rows[:, 1:], np.concatenate([np.zeros(0, np.int64), *origin])


def words(
    sentences: Sequence[Sequence[str]], tokens: Tokens, length: int = 20
) -> tuple[Int[np.ndarray, "s length"], Int[np.ndarray, "s length"]]:
    """Every sentence as `length` words, cut or padded, with the next words as labels.

    Args:
        sentences: split into words.
        tokens: of the words, `Tokens(vocabulary(sentences, 10000))`.
        length: of a sentence, in words.

    Returns:
        x, which begins with the beginning, and y, which ends with the end if it fits; int32.

    Raises:
        ValueError: `length` is below 1.

    Source: the baselines of TensorFlow Federated, whose code was read.

    Example:
        >>> x, y = data.words([["how", "do", "i"]], data.Tokens(["how", "do", "i"]), length=4)
        >>> x.tolist(), y.tolist()
        ([[5, 1, 2, 3]], [[1, 2, 3, 6]])
    """
    _positive(length)
    rows = np.full((len(sentences), length + 1), tokens.pad, np.int32)
    for row, sentence in zip(rows, sentences):
        ids = [tokens.bos, *tokens(sentence[:length]), tokens.eos][: length + 1]
        row[: len(ids)] = ids
    return rows[:, :-1], rows[:, 1:]


def padded(
    sentences: Sequence[Sequence[str]], tokens: Tokens, length: int = 25
) -> Int[np.ndarray, "s length"]:
    """The first `length` words of every sentence, then padding: what a classifier reads, int32.

    Args:
        sentences: split into words.
        tokens: of the words.
        length: of a sentence, in words.

    Raises:
        ValueError: `length` is below 1.
    """
    _positive(length)
    rows = np.full((len(sentences), length), tokens.pad, np.int32)
    for row, sentence in zip(rows, sentences):
        ids = tokens(sentence[:length])
        row[: len(ids)] = ids
    return rows


def bag(sentences: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> np.ndarray:
    """Shares of the vocabulary's words among the words of every sentence, float32 `[s, V]`.

    Args:
        sentences: split into words; words that are not in the vocabulary count as words.
        vocabulary: V words.

    Source: the baselines of TensorFlow Federated, whose code was read.
    """
    number = {word: i for i, word in enumerate(vocabulary)}
    out = np.zeros((len(sentences), len(number)), np.float32)
    for row, sentence in zip(out, sentences):
        for word in sentence:
            if word in number:
                row[number[word]] += 1
        row /= max(len(sentence), 1)
    return out


def _positive(length: int) -> None:
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}: length=20")
