"""How an amount is divided among those who want it. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence


def water_fill(
    amount: float, *, weights: Sequence[float], wants: Sequence[float], had: Sequence[float]
) -> list[float]:
    """Divide ``amount`` so that what each has, with what it ``had`` before, is as its weight.

    Max-min fairness, as of water poured into vessels that stand on steps: the level rises alike
    for all; who stands on a higher step (``had``) gets water later, and nobody gets more than it
    ``wants`` on top of that. What is left when all are full is not given. Weights are positive;
    ``wants`` may be inf. O(n log n).
    """
    if len(weights) == 1:
        return [amount if amount < wants[0] else wants[0]]
    if amount >= sum(wants):
        return list(wants)
    # The level is in tokens a weight. Its slope changes where a vessel is reached and where full.
    changes: list[tuple[float, float]] = []
    for weight, want, has in zip(weights, wants, had, strict=True):
        if want > 0:
            changes.append((has / weight, weight))
            changes.append(((has + want) / weight, -weight))
    changes.sort()
    level, breadth = 0.0, 0.0
    for at, change in changes:
        step = (at - level) * breadth
        if step > amount:
            break
        amount -= step
        level = at
        breadth += change
    # The last change was not reached (the sum of wants is more than the amount), so breadth > 0,
    # unless rounding ate it all.
    if amount > 0 and breadth > 1e-12:
        level += amount / breadth
    return [
        min(max(level * weight - has, 0.0), want)
        for weight, want, has in zip(weights, wants, had, strict=True)
    ]


def whole_operations(
    share: float, wants: Sequence[float], *, fair_from: float = 4.0
) -> list[float]:
    """Return grants for those who wait, first come first, when an operation is admitted whole.

    Who is granted anything uses the operation to its end; so a share that is small against the
    operations is given as whole ones, in order, until it is spent, and the rest get nothing this
    time. From ``fair_from`` operations each, all get the same. Who wants 0 (its operation needs
    none of these tokens) gets one token, which it will not use.
    """
    grants: list[float] = []
    left = share
    waiting = sum(1 for want in wants if want > 0)
    for want in wants:
        if want <= 0:
            grants.append(1.0)
            continue
        if left <= 0:
            grants.append(0.0)
            continue
        fair = left / waiting
        waiting -= 1
        if fair >= fair_from * want:
            grants.append(fair)
            left -= fair
            continue
        # One token admits one operation: so n of them are granted as n - 1 whole and a token.
        operations = max(1, int(fair / want + 0.5))
        grants.append((operations - 1) * want + 1.0)
        left -= operations * want
    return grants
