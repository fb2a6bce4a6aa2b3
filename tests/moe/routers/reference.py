"""The routers of the papers as loops over Python floats: slow, obvious, and what moekit's are held to.

Written from the equations, without torch. A matrix is a list of rows, a row is one token (or one expert's weights).
Random numbers come from outside, as lists.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

Row = list[float]
Matrix = list[Row]


@dataclass
class Expected:
    """What a router should do.

    kept: (expert, token, weight), by expert, then by token. chosen: before capacity. losses: without coefficients.
    """

    probs: Matrix
    kept: list[tuple[int, int, float]]
    chosen: list[int]
    losses: dict[str, float] = field(default_factory=dict)


def product(x: Matrix, weight: Matrix) -> Matrix:
    return [[math.fsum(a * b for a, b in zip(row, of_expert, strict=True)) for of_expert in weight] for row in x]


def softmax(row: Row) -> Row:
    highest = max(row)
    powers = [math.exp(value - highest) for value in row]
    return [power / math.fsum(powers) for power in powers]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))


def best(row: Row, k: int) -> list[int]:
    """The k largest, the largest first, of equal ones the one with the lower index."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]


def capacity(tokens: int, k: int, experts: int, factor: float) -> int:
    """ceil(K · T / E · factor), in fractions."""
    return math.ceil(Fraction(k * tokens, experts) * Fraction(str(factor)))


def first_come(queue: list[tuple[int, int, float]], experts: int, limit: int | None) -> list[tuple[int, int, float]]:
    """Of (expert, token, weight) in the order in which they stand in line, those whose expert still had room."""
    taken = [0] * experts
    kept = []
    for expert, token, weight in queue:
        if limit is None or taken[expert] < limit:
            taken[expert] += 1
            kept.append((expert, token, weight))
    return sorted(kept)


def tally(experts: int, ids: list[int]) -> list[int]:
    return [sum(chosen == expert for chosen in ids) for expert in range(experts)]


def balance_loss(chosen: list[int], probs: Matrix, real: list[bool]) -> float:
    """E · sum_i f_i · P_i, f_i the share of the choices: 1 at balance for every K."""
    experts, tokens = len(chosen), sum(real)
    loss = 0.0
    for i in range(experts):
        f = chosen[i] / max(1, sum(chosen))
        p = math.fsum(row[i] for row, counts in zip(probs, real, strict=True) if counts) / tokens
        loss += experts * f * p
    return loss


def z_loss(logits: Matrix, real: list[bool]) -> float:
    """mean over tokens of logsumexp(logits)²."""
    squares = []
    for row, counts in zip(logits, real, strict=True):
        if counts:
            highest = max(row)
            squares.append((highest + math.log(math.fsum(math.exp(v - highest) for v in row))) ** 2)
    return math.fsum(squares) / sum(real)


def squared_variation(sums: Row) -> float:
    """variance / mean², with the 1e-10 in the denominator that the authors' code (tensor2tensor) has."""
    mean = math.fsum(sums) / len(sums)
    variance = math.fsum((value - mean) ** 2 for value in sums) / len(sums)
    return variance / (mean * mean + 1e-10)


def in_token_order(choices: list[list[int]], weights: Matrix, real: list[bool]) -> list[tuple[int, int, float]]:
    return [
        (expert, token, weight)
        for token, counts in enumerate(real)
        if counts
        for expert, weight in zip(choices[token], weights[token], strict=True)
    ]


def softmax_top_k(
    x: Matrix, weight: Matrix, real: list[bool], *, k: int, renormalize: bool, factor: float | None
) -> Expected:
    experts = len(weight)
    logits = product(x, weight)
    probs = [softmax(row) for row in logits]
    choices = [best(row, k) for row in probs]
    weights = []
    for row, ids in zip(probs, choices, strict=True):
        total = math.fsum(row[i] for i in ids) if renormalize else 1.0
        weights.append([row[i] / total for i in ids])
    queue = in_token_order(choices, weights, real)
    chosen = tally(experts, [expert for expert, _, _ in queue])
    limit = None if factor is None else capacity(sum(real), k, experts, factor)
    losses = {"balance": balance_loss(chosen, probs, real), "z": z_loss(logits, real)}
    return Expected(probs, first_come(queue, experts, limit), chosen, losses)


def switch(x: Matrix, weight: Matrix, real: list[bool], *, jitter: Matrix | None, factor: float | None) -> Expected:
    """Top-1 weighed by its probability, the router's input multiplied by the jitter."""
    if jitter is not None:
        x = [[a * b for a, b in zip(row, noise, strict=True)] for row, noise in zip(x, jitter, strict=True)]
    return softmax_top_k(x, weight, real, k=1, renormalize=False, factor=factor)


def noisy_top_k(
    x: Matrix,
    weight: Matrix,
    noise_weight: Matrix,
    real: list[bool],
    *,
    k: int,
    noise: Matrix | None,
    factor: float | None,
) -> Expected:
    experts = len(weight)
    clean = product(x, weight)
    scale = [[softplus(value) for value in row] for row in product(x, noise_weight)]
    noisy = clean
    if noise is not None:
        noisy = [[c + n * s for c, n, s in zip(*rows, strict=True)] for rows in zip(clean, noise, scale, strict=True)]
    choices = [best(row, k) for row in noisy]
    weights = [softmax([row[i] for i in ids]) for row, ids in zip(noisy, choices, strict=True)]
    queue = in_token_order(choices, weights, real)
    chosen = tally(experts, [expert for expert, _, _ in queue])
    limit = None if factor is None else capacity(sum(real), k, experts, factor)

    importance, load = [0.0] * experts, [0.0] * experts
    for expert, _, gate in queue:
        importance[expert] += gate
    for token, counts in enumerate(real):
        for i in range(experts):
            others = sorted((noisy[token][j] for j in range(experts) if j != i), reverse=True)
            if counts and len(others) < k:
                load[i] += 1.0  # it is among the k best whatever it draws
            elif counts:
                load[i] += normal_cdf((clean[token][i] - others[k - 1]) / scale[token][i])
    losses = {
        "importance": squared_variation(importance),
        "load": squared_variation(load),
        "z": z_loss(noisy, real),
    }
    return Expected([softmax(row) for row in noisy], first_come(queue, experts, limit), chosen, losses)


def gshard(
    x: Matrix, weight: Matrix, real: list[bool], *, u: Row | None, threshold: float, factor: float | None
) -> Expected:
    experts = len(weight)
    logits = product(x, weight)
    probs = [softmax(row) for row in logits]
    first, second = [], []
    for token, counts in enumerate(real):
        one, two = best(probs[token], 2)
        total = probs[token][one] + probs[token][two] + 1e-9
        gate_1, gate_2 = probs[token][one] / total, probs[token][two] / total
        if counts:
            first.append((one, token, gate_1))
            if u is None or threshold == 0 or u[token] < gate_2 / threshold:
                second.append((two, token, gate_2))
    limit = None if factor is None else capacity(sum(real), 2, experts, factor)
    first_chosen = tally(experts, [expert for expert, _, _ in first])
    chosen = tally(experts, [expert for expert, _, _ in first + second])
    losses = {"balance": balance_loss(first_chosen, probs, real), "z": z_loss(logits, real)}
    return Expected(probs, first_come(first + second, experts, limit), chosen, losses)


def expert_choice(x: Matrix, weight: Matrix, real: list[bool], *, mean_experts: int) -> Expected:
    experts = len(weight)
    logits = product(x, weight)
    probs = [softmax(row) for row in logits]
    tokens = [token for token, counts in enumerate(real) if counts]
    size = min(len(tokens), capacity(len(tokens), mean_experts, experts, 1.0))
    kept = []
    for expert in range(experts):
        takes = sorted(tokens, key=lambda t: (-probs[t][expert], t))[:size]
        kept += [(expert, token, probs[token][expert]) for token in sorted(takes)]
    return Expected(probs, kept, [size] * experts, {"z": z_loss(logits, real)})


def sigmoid_bias(
    x: Matrix,
    weight: Matrix,
    bias: Row,
    real: list[bool],
    *,
    k: int,
    renormalize: bool,
    scale: float,
    groups: int,
    top_groups: int,
    factor: float | None,
) -> Expected:
    experts = len(weight)
    size = experts // groups
    logits = product(x, weight)
    scores = [[sigmoid(value) for value in row] for row in logits]
    choices, weights = [], []
    for row in scores:
        biased = [s + b for s, b in zip(row, bias, strict=True)]
        of_group = [sum(sorted(biased[g * size : (g + 1) * size], reverse=True)[:2]) for g in range(groups)]
        open_groups = best(of_group, top_groups)
        ids = sorted((i for i in range(experts) if i // size in open_groups), key=lambda i: (-biased[i], i))[:k]
        total = math.fsum(row[i] for i in ids) if renormalize else 1.0
        choices.append(ids)
        weights.append([row[i] / total * scale for i in ids])
    queue = in_token_order(choices, weights, real)
    chosen = tally(experts, [expert for expert, _, _ in queue])
    limit = None if factor is None else capacity(sum(real), k, experts, factor)
    return Expected(scores, first_come(queue, experts, limit), chosen, {"z": z_loss(logits, real)})


def moved_bias(bias: Row, chosen: list[int], step: float) -> Row:
    """b_i + u · sign(mean count - count_i)."""
    mean = Fraction(sum(chosen), len(chosen))
    return [b + step * ((mean > c) - (mean < c)) for b, c in zip(bias, chosen, strict=True)]


def hashed(table: list[int], ids: list[int], experts: int, real: list[bool], *, factor: float | None) -> Expected:
    queue = [(table[ids[token]], token, 1.0) for token, counts in enumerate(real) if counts]
    limit = None if factor is None else capacity(sum(real), 1, experts, factor)
    probs = [[float(table[token] == expert) for expert in range(experts)] for token in ids]
    return Expected(probs, first_come(queue, experts, limit), tally(experts, [e for e, _, _ in queue]))


def sinkhorn(
    x: Matrix, weight: Matrix, real: list[bool], *, k: int, iterations: int | None, factor: float | None
) -> Expected:
    """iterations: of dividing rows, then columns, of exp(logits) by their sums; None: none (evaluation)."""
    experts = len(weight)
    logits = product(x, weight)
    probs = [softmax(row) for row in logits]
    plan = [[math.exp(value) for value in row] for row in logits]
    mine = [token for token, counts in enumerate(real) if counts]
    for _ in range(iterations or 0):
        for t in mine:
            plan[t] = [value / math.fsum(plan[t]) for value in plan[t]]
        columns = [math.fsum(plan[t][i] for t in mine) for i in range(experts)]
        for t in mine:
            plan[t] = [value / column for value, column in zip(plan[t], columns, strict=True)]
    choices = [best(row, k) for row in plan]
    weights = [[sigmoid(logits[t][i]) if k == 1 else probs[t][i] for i in ids] for t, ids in enumerate(choices)]
    queue = in_token_order(choices, weights, real)
    chosen = tally(experts, [expert for expert, _, _ in queue])
    limit = None if factor is None else capacity(sum(real), k, experts, factor)
    return Expected(probs, first_come(queue, experts, limit), chosen, {"z": z_loss(logits, real)})
