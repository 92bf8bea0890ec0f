"""What a compiled program does, read from its text."""

import math
import re

# Operations that cost nothing, or are counted by what they call.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1, "f64": 8}


def outline(text: str, rounds: int) -> dict[str, float]:
    """What a round of a compiled program does: what is in its loops, over the rounds.

    Args:
        text: of the compiled program, `compiled.as_text()`.
        rounds: of it.

    Returns: "kernels", "copied bytes", "waits" of the host for conditions of loops without a known
        number of trips, of which one trip is counted, and "cycles" where the compiler expects some.
    """
    blocks, entry = {}, ""
    for block in re.split(r"\n(?=%|ENTRY )", text):
        if head := re.match(r"(ENTRY )?%?(\S+) \(", block):
            blocks[head[2]] = block.split("\n")[1:]
            entry = head[2] if head[1] else entry
    total = dict.fromkeys(("kernels", "copied bytes", "waits", "cycles"), 0.0)

    def trips(line):
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
            return int(known[1])
        condition = "\n".join(blocks[_called("condition", line)])
        bounds = re.findall(r"constant\((\d+)\)", condition)
        return int(bounds[0]) if "direction=LT" in condition and len(bounds) == 1 else None

    def walk(name, times):
        for line in blocks[name]:
            found = re.match(r"\s+(?:ROOT )?%\S+ = (.*?) ([a-z][\w-]*)\(", line)
            if found is None:
                continue
            shape, kind = found.groups()
            if kind == "while":
                n = trips(line)
                total["waits"] += times * (n is None)
                walk(_called("body", line), times * (n or 1))
            elif kind == "call":
                walk(_called("to_apply", line), times)
            if kind in FREE or times == 1:  # once: before and after the rounds
                continue
            total["kernels"] += times
            total["copied bytes"] += times * _bytes(shape) * (kind == "copy")
            if expected := re.search(r'estimated_cycles":"(\d+)"', line):
                total["cycles"] += times * int(expected[1])

    walk(entry, 1)
    return {name: value / rounds for name, value in total.items()}


def _called(role, line):
    found = re.search(rf"{role}=%?([\w.-]+)", line)
    assert found is not None
    return found[1]


def _bytes(shape):
    leaves = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(BYTES.get(t, 4) * math.prod(int(n) for n in d.split(",") if n) for t, d in leaves)
