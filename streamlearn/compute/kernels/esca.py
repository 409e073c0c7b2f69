"""ESCA: topics of tokens drawn anew, word by word, from counts that are frozen meanwhile.

Latent Dirichlet allocation by a stochastic automaton (Zaheer, Wick, Tristan, Smola and Steele,
"Exponential Stochastic Cellular Automata for Massively Parallel Inference", AISTATS 2016). A token
of word w in document d is given topic k with a probability that goes by

    (D_dk + alpha_k) (W_wk + beta) / (T_k + V beta)

where the token's own topic is taken out of all three counts first. Tokens of a *block* of documents
are kept word by word. While one sweep over a block goes on, D and T are those of before it, and W_w
is that of before the word's turn, so what is drawn depends on no order and on no number of lanes:
lanes take words, and a token's random number is a function of where the token stands.

A word's phi = (W_w + beta) / (T + V beta) is built in the first cache; its row of counts is
changed in place. Of each token the document's topics are walked (``kernels.topic_lists``): the sum
of D_dk phi_k, then the mass of the word alone, alpha_k phi_k, which is one number for all tokens of
the word. Only where chance falls into the latter (a few in a hundred) are topics looked at that the
document does not have.

A token is a word of 32 bits: its document within the block (upper half) and its topic (lower half).
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int32, int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import apart, prefetch_read
from streamlearn.compute.kernels.topic_lists import FILLER, LANES, below, float_of, walk

__all__ = [
    "DOCUMENTS_MAX",
    "GONE",
    "SPREAD",
    "add_counts",
    "arrange",
    "begin",
    "dense_words",
    "draw",
    "list_topics",
    "scatter",
    "sweep",
]

# Documents of a block: their numbers have 16 bits.
DOCUMENTS_MAX = 1 << 16
# Of a word that is left out.
GONE = np.uint32(0xFFFFFFFF)
# Room of the arrays by topic: every number of 16 bits, so that ``FILLER`` has a place that is 0.
SPREAD = 1 << 16
# Tokens ahead whose documents' lists are prefetched.
AHEAD = 8
# Groups of topics that are searched first where the mass of a word is drawn from.
GROUP = 16
# Below it a sum of products is as good as nothing, and its logarithm must be finite.
MASS_MIN = float32(1e-30)

_MIX = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_HALF = np.uint32(0xFFFF)
_UPPER = np.uint32(0xFFFF0000)
_UNIT = np.float32(2.0**-24)


@njit(nogil=True, cache=True, inline="always")
def draw(key, place):
    """Return 64 random bits of a place in the stream of ``key`` (SplitMix64's finalizer)."""
    x = key + place * _MIX
    x = (x ^ (x >> uint64(30))) * _FIRST
    x = (x ^ (x >> uint64(27))) * _SECOND
    return x ^ (x >> uint64(31))


@njit(nogil=True, cache=True)
def dense_words(numbers, lengths, document, dense, out, lengths_out, state):
    """Append documents to a block, without words that are left out.

    Parameters
    ----------
    numbers : uint32[n]
        Words of the tokens, document by document; beyond ``dense``: of no word that is known.
    lengths : int32[documents]
    document : int64
        The first that is to be appended.
    dense : uint32[words]
        Number of each word in the vocabulary, or ``GONE``.
    out, lengths_out : uint32[room], int32[DOCUMENTS_MAX]
        Written from ``state`` on.
    state : int64[3]
        [0] tokens and [1] documents of the block; [2] where the document begins in ``numbers``. All
        advanced.

    Returns
    -------
    int64
        The first document that found no room, or how many there are.
    """
    room = out.shape[0]
    at, rows, p = state[0], state[1], state[2]
    d = document
    while d < lengths.shape[0] and rows < DOCUMENTS_MAX:
        size = int64(lengths[d])
        if at + size > room:
            break
        first = at
        for i in range(p, p + size):
            number = int64(numbers[i])
            word = dense[number] if number < dense.shape[0] else GONE
            if word != GONE:
                out[at] = word
                at += 1
        lengths_out[rows] = at - first
        rows += 1
        p += size
        d += 1
    state[0], state[1], state[2] = at, rows, p
    return d


@njit(nogil=True, cache=True)
def arrange(words, lengths, counts, present, starts, tokens, topics, by_word, key):
    """Arrange the tokens of a block word by word, each with a topic.

    Parameters
    ----------
    words : uint32[n]
        Of the vocabulary, document by document.
    lengths : int32[documents]
    counts : int32[V]
        Zeros; and again afterwards.
    present, starts : uint32[at most V], int32[at most V + 1]
        Written: words that are there, ascending, and where their tokens begin.
    tokens : uint32[n]
        Written.
    topics : int64
        How many there are; 0: tokens get topic 0.
    by_word : int64
        1: all tokens of a word begin with one topic, drawn for the word.
    key : uint64
        What chance depends on.

    Returns
    -------
    int64
        Words that are there.
    """
    for i in range(words.shape[0]):
        counts[words[i]] += 1
    there = 0
    total = int32(0)
    for w in range(counts.shape[0]):
        count = counts[w]
        if count > 0:
            present[there] = w
            starts[there] = total
            counts[w] = total
            total += count
            there += 1
    starts[there] = total
    i = 0
    for d in range(lengths.shape[0]):
        document = uint32(d) << uint32(16)
        for _ in range(lengths[d]):
            w = words[i]
            chance = draw(key, uint64(w) if by_word != 0 else uint64(i))
            topic = ((chance >> uint64(32)) * uint64(topics)) >> uint64(32)
            tokens[counts[w]] = document | uint32(topic)
            counts[w] += 1
            i += 1
    for x in range(there):
        counts[present[x]] = 0
    return there


@njit(nogil=True, cache=True)
def add_counts(tokens, present, starts, counts, rows, topics, totals, sign):
    """Add the topics of a block's tokens to the counts of their words, or take them off.

    Parameters
    ----------
    counts : int32[...]
        Memory of all rows.
    rows : int64[V]
        Where each word's begins in it.
    totals : int64[topics]
        Added to, too.
    sign : int64
        1 or -1.
    """
    for x in range(present.shape[0]):
        first = rows[present[x]]
        row = counts[first : first + topics]
        for i in range(starts[x], starts[x + 1]):
            topic = tokens[i] & _HALF
            row[topic] += int32(sign)
            totals[topic] += sign


@njit(nogil=True, cache=True)
def scatter(tokens, first, end, fills, topics):
    """Bring the topics of ``tokens[first:end]`` to their documents.

    Parameters
    ----------
    fills : int32[documents]
        Where in ``topics`` each document's next goes; advanced.
    topics : uint16[n]
    """
    for i in range(first, end):
        token = tokens[i]
        document = int64(token >> uint32(16))
        place = fills[document]
        topics[place] = token & _HALF
        fills[document] = place + 1


@njit(nogil=True, cache=True)
def list_topics(first, end, bounds, topics, lists, heads, place):
    """List the topics of documents ``first:end`` with their counts.

    Parameters
    ----------
    bounds : int32[documents + 1]
        Where each document begins in ``topics``.
    topics : uint16[n]
    lists : uint32[...]
        Written from ``place`` on, a multiple of ``LANES``; ``n + LANES * documents`` is enough.
    heads : uint64[documents]
        Written: where the list begins (lower half) and its entries (upper half).
    place : int64

    Returns
    -------
    int64
        Where the last list ends.
    """
    seen = np.zeros(SPREAD, np.int32)
    for d in range(first, end):
        a, b = bounds[d], bounds[d + 1]
        for i in range(a, b):
            seen[topics[i]] += 1
        n = place
        for i in range(a, b):
            topic = topics[i]
            count = seen[topic]
            if count > 0:
                lists[n] = (uint32(topic) << uint32(16)) | uint32(count)
                n += 1
                seen[topic] = 0
        while n & (LANES - 1) != 0:
            lists[n] = uint32(FILLER)
            n += 1
        heads[d] = (uint64(n - place) << uint64(32)) | uint64(place)
        place = n
    return place


@njit(nogil=True, cache=True)
def _phi(row, topics, alpha, beta, inverse, phi, mass, groups):
    """Build a word's phi, and what it is worth to a document that has no topics yet.

    Parameters
    ----------
    row : int32[topics]
    alpha, inverse : float32[>= topics]
        ``inverse`` is 1 / (T + V beta).
    phi, mass, groups : float32[...]
        Written: phi; alpha phi; sums of the latter over every ``strides``-th topic.

    Returns
    -------
    float32
        The sum of ``mass``.
    """
    apart()
    strides = (topics + GROUP - 1) // GROUP
    for k in range(topics):
        phi[k] = (float32(row[k]) + beta) * inverse[k]
    for k in range(topics):
        mass[k] = alpha[k] * phi[k]
    for q in range(strides):
        groups[q] = float32(0)
    whole = topics // strides
    for part in range(whole):
        some = mass[part * strides : (part + 1) * strides]
        for q in range(strides):
            groups[q] += some[q]
    for k in range(whole * strides, topics):
        groups[k - whole * strides] += mass[k]
    total = float32(0)
    for q in range(strides):
        total += groups[q]
    return total


@njit(nogil=True, cache=True)
def _by_word(u, topics, mass, groups):
    """Return the topic that ``u``, below the sum of ``mass``, falls on."""
    apart()
    strides = (topics + GROUP - 1) // GROUP
    q = 0
    while q < strides - 1 and u >= groups[q]:
        u -= groups[q]
        q += 1
    k = q
    while k + strides < topics and u >= mass[k]:
        u -= mass[k]
        k += strides
    return k


@njit(nogil=True, cache=True)
def begin(
    first, end, present, starts, tokens, counts, rows, topics, alpha, beta, inverse, key, scratch
):  # fmt: skip
    """Draw the topics of tokens by their words alone, as of documents of which nothing is known.

    Parameters
    ----------
    first, end : int64
        Of the words ``present``.
    tokens : uint32[n]
        Their topics are written.
    counts, ..., scratch
        See :func:`sweep`.
    """
    phi, mass, groups = scratch[0], scratch[2], scratch[3]
    for x in range(first, end):
        at = rows[present[x]]
        row = counts[at : at + topics]
        total = _phi(row, topics, alpha, beta, inverse, phi, mass, groups)
        for i in range(starts[x], starts[x + 1]):
            chance = draw(key, uint64(i))
            u = float32(int32(chance >> uint64(40))) * _UNIT * total
            tokens[i] = (tokens[i] & _UPPER) | uint32(_by_word(u, topics, mass, groups))


@njit(nogil=True, cache=True)
def sweep(
    first, end, present, starts, tokens, heads, lists, counts, rows, topics, alpha, beta, inverse,
    over, counted, key, moved, scratch, out,
):  # fmt: skip
    """Draw the topics of a block's tokens anew, of the words ``present[first:end]``.

    Parameters
    ----------
    present, starts, tokens
        The block, see :func:`arrange`; topics are written.
    heads, lists
        See :func:`list_topics`; of the topics that the tokens have now.
    counts : int32[...]
        Memory of all words' rows; changed.
    rows : int64[V]
        Where each word's begins.
    topics : int64
    alpha : float32[topics]
    beta : float32
    inverse, over : float32[topics]
        1 / (T + V beta), and 1 / (1 - inverse), of what T was before the sweep.
    counted : int64
        1: the tokens are counted in ``counts`` and T. 0: they are not, and will not be: only the
        tokens change.
    key : uint64
        What chance depends on, beside where a token stands.
    moved : int32[topics]
        How T changes; added to.
    scratch : float32[4, >= SPREAD]
        64-byte aligned; the row 0 is zero from ``topics`` on.
    out : float64[2]
        Added to: [0] sum of the logarithms of what the tokens' topics were drawn from, each without
        itself; over (n_d - 1 + sum of alpha) that is the probability of a token given all others.
        [1] tokens whose topic was drawn from their word's mass.

    Notes
    -----
    Without fast-math. O(topics) a word, O(topics of the document) a token.
    """
    phi, sums, mass, groups = scratch[0], scratch[1], scratch[2], scratch[3]
    lists_at, phi_at, sums_at = lists.ctypes.data, phi.ctypes.data, sums.ctypes.data
    strides = (topics + GROUP - 1) // GROUP
    product, logarithms = float64(1), float64(0)
    by_word = 0
    for x in range(first, end):
        a, b = int64(starts[x]), int64(starts[x + 1])
        at = rows[present[x]]
        row = counts[at : at + topics]
        total = _phi(row, topics, alpha, beta, inverse, phi, mass, groups)
        for i in range(a, b):
            ahead = heads[tokens[min(i + AHEAD, b - 1)] >> uint32(16)] & uint64(0xFFFFFFFF)
            prefetch_read(lists_at + (int64(ahead) << 2))
            prefetch_read(lists_at + (int64(ahead) << 2) + 64)
            token = tokens[i]
            old = int64(token & _HALF)
            head = heads[token >> uint32(16)]
            size = int64(head >> uint64(32))
            list_at = int64(head & uint64(0xFFFFFFFF))
            walked = walk(lists_at + (list_at << 2), size, phi_at, sums_at, old)
            own = walked >> 32
            # Without itself, the token's old topic has less: so much is cut out of its place.
            have = phi[old]
            left = have
            if counted != 0:
                left = max((have - inverse[old]) * over[old], float32(0))
            count = float32(int32(lists[list_at + own] & _HALF))
            cut = count * have - (count - float32(1)) * left
            cut_word = alpha[old] * (have - left)
            of_document = float_of(walked) - cut
            of_word = total - cut_word
            whole = max(of_document + of_word, MASS_MIN)
            product *= float64(whole)
            if i & 7 == 7:
                logarithms += np.log(product)
                product = float64(1)
            chance = draw(key, uint64(i))
            u = float32(int32(chance >> uint64(40))) * _UNIT * whole
            if u < of_document:
                if u >= sums[own] - cut:
                    u += cut
                place = min(below(sums_at, size, u), size - 1)
                while lists[list_at + place] & _HALF == 0:
                    place -= 1
                new = int64(lists[list_at + place] >> uint32(16))
            else:
                by_word += 1
                u = float32(int32((chance >> uint64(8)) & uint64(0xFFFFFF))) * _UNIT * of_word
                kept, group = mass[old], groups[old % strides]
                mass[old] = kept - cut_word
                groups[old % strides] = group - cut_word
                new = int64(_by_word(u, topics, mass, groups))
                mass[old], groups[old % strides] = kept, group
            if counted != 0:
                row[old] -= 1
                row[new] += 1
            moved[old] -= 1
            moved[new] += 1
            tokens[i] = (token & _UPPER) | uint32(new)
        logarithms += np.log(product)
        product = float64(1)
    out[0] += logarithms
    out[1] += by_word
