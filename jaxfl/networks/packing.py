"""Waves: events of disjoint nodes packed side by side."""

import numpy as np

from jaxfl.networks.timelines import _narrow


def _chains(times, when, i, j, n, rounds, unit):
    """What comes before and after event e at i (row 0) and j (row 1) in its round: -1 is nothing.

    Returns:
        past [2, e]; a function to the events after some; gap [2, e], the seconds since; rest
        [rounds, n], the seconds from a node's last event to the end of the round.
    """
    count = len(times)
    ends = np.stack([i, j], 1)
    by = _argsort(ends.ravel())[: 2 * count - np.count_nonzero(j == n)]  # gradients have one end
    node = (ends + (when * (n + 1))[:, None]).ravel()[by]
    event, at = by >> 1, (by & 1) * count + (by >> 1)
    same = node[1:] == node[:-1]
    past, next = np.full((2, 2, count), -1)
    past.reshape(-1)[at[1:]] = np.where(same, event[:-1], -1)
    next.reshape(-1)[at[:-1]] = np.where(same, event[1:], -1)
    before = np.maximum(np.append(times, 0)[past], when * unit)
    gap = np.maximum(times - before, 0)  # not -1e-17
    last = np.flatnonzero(~np.append(same, np.zeros(min(len(by), 1), bool)))
    end = event[last]
    rest = np.full((rounds, n + 1), float(unit))
    rest.reshape(-1)[node[last]] = np.maximum((when[end] + 1) * unit - times[end], 0)

    def after(events):
        return np.concatenate([following[events] for following in next])

    return past, after, gap, rest[:, :n]


def _argsort(key):
    """A stable order of numbers >= 0: of whole ones by 16 bits at a time, which NumPy counts."""
    if key.dtype.kind == "f":  # roughly, then for good: NumPy is quick where much is in order
        by = _argsort((key * (len(key) / max(key.max(initial=0), 1e-300))).astype(np.int64))
        return by[np.argsort(key[by], kind="stable")]
    by = np.argsort(key.astype(np.uint16), kind="stable")
    for shift in range(16, int(key.max(initial=0)).bit_length(), 16):
        by = by[np.argsort((key[by] >> shift).astype(np.uint16), kind="stable")]
    return by


def _followers(past):
    """From events to those that wait for them."""
    before = past.ravel() + 1
    by = _argsort(before)
    first = np.cumsum(np.bincount(before, minlength=past.shape[1] + 1))
    by %= past.shape[1]

    def after(events):
        many = first[events + 1] - first[events]
        start = np.repeat(first[events] - np.cumsum(many) + many, many)
        return by[start + np.arange(len(start))]

    return after


def _half(past, pair, when):
    """Half the mean number of gradients and exchanges per wave if waves had no limit, plus one.

    Twice the waves, well filled, cost less than the fewest waves; the one is for few nodes, where
    a wave costs more than its slots. The mean is that of some rounds.
    """
    count, pairs = len(pair), np.count_nonzero(pair)
    half, waves, number = [-1] * (count + 1), 0, 0  # as in `_one_by_one`
    begins = np.flatnonzero(np.diff(when, prepend=-1)).tolist()
    for begin, end in list(zip(begins, [*begins[1:], count]))[:: 1 + count // 6000]:
        columns = *past[:, begin:end].tolist(), pair[begin:end].tolist()
        for k, (a, b, kind) in enumerate(zip(*columns), begin):
            a, b = half[a], half[b]
            half[k] = ((a if a > b else b) + 2 - kind >> 1) * 2 + kind
        waves += max(half[begin:end]) // 2 + 1
        number += end - begin
    share = number / max(2 * waves * count, 1)
    return int(np.ceil((count - pairs) * share)) + 1, int(np.ceil(pairs * share)) + 1


def _pack(past, after, pair, when, cap):
    """List scheduling: in order, every event to the first wave after its past that has room.

    Events wait for those in their column of past [2, e], and `after` gives those that wait for
    some. The order is that of time, but the last three of a chain of events come after all others:
    that takes as few waves as longest remaining chain first. Returns wave and slot.
    """
    count = len(pair)
    number = lambda before: np.bincount(before.ravel() + 1, minlength=count + 1)[1:]
    left, tail = number(past), np.full(count, 3)
    for k in range(3):
        last = np.flatnonzero((left == 0) & (tail == 3))
        tail[last] = k
        left -= number(past[:, last])
    rank = 4 * when + 3 - tail
    # a wave of little arrays costs as much as two hundred events in a loop
    wide = min(np.count_nonzero((past < 0).all(0)), sum(cap) * (when.max(initial=0) + 1)) > 300
    return (_wave_by_wave if wide else _one_by_one)(past, after, pair, when, rank, cap)


def _one_by_one(past, after, pair, when, rank, cap):
    """`_pack` by its definition."""
    order, size, now = _argsort(rank), np.bincount(when).tolist(), -1
    # twice the wave, plus one for an exchange; of no event: -1
    half, slot = [-1] * (len(pair) + 1), [0] * len(pair)
    columns = order, *past[:, order], pair[order], when[order]
    for e, a, b, kind, r in zip(*(c.tolist() for c in columns)):
        if r != now:
            # waves of a round, by kind: at or before which there is room, how many are in it
            now, room = r, [(list(range(size[r] + 1)), [0] * size[r]) for _ in cap]
        go, full = room[kind]
        a, b = half[a], half[b]
        wave = (a if a > b else b) + 2 - kind >> 1
        while (further := go[wave]) != wave:
            go[wave] = wave = go[further]
        slot[e] = full[wave]
        full[wave] += 1
        if full[wave] == cap[kind]:
            go[wave] = wave + 1
        half[e] = 2 * wave + kind
    return np.array(half[:-1], int) >> 1, np.array(slot, int)


def _wave_by_wave(past, after, pair, when, rank, cap):
    """`_pack` of all rounds at once: of those who are ready, the first take the places."""
    count, rounds = len(pair), when[-1] + 1
    order = _argsort(4 * rounds * pair + rank)  # gradients, then exchanges
    turn = np.empty(count, np.int64)
    turn[order] = np.arange(count)
    ready = np.zeros(count, bool)
    ready[turn[(past < 0).all(0)]] = True
    kinds, split = [], [count - np.count_nonzero(pair)]
    for events, waiting, room in zip(np.split(order, split), np.split(ready, split), cap):
        many = np.bincount(when[events], minlength=rounds)
        width = min(room, many.max())
        row, place = np.divmod(np.arange(rounds * width), max(width, 1))
        kinds.append((events, waiting, np.append(0, np.cumsum(many)), row, place))
    wave, slot = np.zeros((2, count), np.int64)
    # past of -1 is none, and what comes after -1 never
    done = np.append(np.zeros(count + 1, bool), True)
    first, second = np.pad(past, ((0, 0), (0, 1)), constant_values=count)
    left, v = count, 0
    while left:
        for events, waiting, begin, row, place in kinds:
            queue = np.flatnonzero(waiting)
            start = queue.searchsorted(begin)
            taken = np.flatnonzero(place < (start[1:] - start[:-1])[row])
            place = place[taken]
            chosen = queue[start[row[taken]] + place]
            waiting[chosen] = False
            chosen = events[chosen]
            wave[chosen], slot[chosen], done[chosen] = v, place, True
            new = after(chosen)
            ready[turn[new[done[first[new]] & done[second[new]]]]] = True
            left -= len(chosen)
        v += 1
    return wave, slot


def _table(which, place, slot, shape):
    """Writes values of these events to their places in [rounds, waves, slots]."""
    which = np.flatnonzero(which)
    at = np.full(shape, len(place))
    at.reshape(-1)[place[which] * shape[-1] + slot[which]] = which

    def table(values, empty=0):
        values = _narrow(values)
        return np.append(values, values.dtype.type(empty))[at]

    return table
