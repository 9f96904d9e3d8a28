"""Which law is optimal when a reward is raised and the change is paid for in an f-divergence: the dual problem.

For KL it is arXiv 2402.15194's; for others 2403.06279's, in its part on f-divergences. Reward r, higher is better; strength
alpha > 0; f in canonical form, f(1) = f'(1) = 0:

    (1) q* = argmax over q of E_q[r] - alpha D_f(q || p),  D_f(q || p) = E_p[f(q / p)]
    (2) q* / p = w(r) = (f')^{-1}((r - lambda) / alpha)    clipped at 0 where f'(0) is finite
    (3) E_p[w] = 1                                         fixes lambda: lambda + alpha E_p[f*((r - lambda) / alpha)] is least
    (4) r' = alpha log w(r)                                the surrogate: the KL problem with r' has the optimum q* too
    (5) alpha f''(1)                                       what a small tilt costs: by it alphas of divergences are comparable

By (4) whatever solves KL problems solves these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_HALVINGS = 200  # of an interval: more than float64 can tell apart
LEAST_WEIGHT = 1e-6  # below it log w is cut off, where a divergence lets the optimum leave out a part of p


class NoOptimumError(ValueError):
    """No density is optimal at this strength: the best law would put a part of its mass on the best picture alone."""


@dataclass(frozen=True)
class Divergence:
    """An f-divergence in canonical form, f of the density ratio t = q / p.

    Attributes:
        name: As ``divergence`` takes it.
        log_weight: y -> log (f')^{-1}(y); minus infinity where the optimum leaves p out. It can be differentiated.
        curvature: f''(t).
        at_infinity: f'(infinity): y stays below it.
    """

    name: str
    log_weight: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]
    at_infinity: float = math.inf

    def weight(self, y: Tensor) -> Tensor:
        """w = (f')^{-1}(y), eq. 2."""
        return self.log_weight(y).exp()

    @property
    def stiffness(self) -> float:
        """f''(1), eq. 5: a tilt of strength alpha costs like one of strength alpha f''(1) in KL, as long as it is small."""
        return float(self.curvature(torch.ones((), dtype=torch.float64)))


def wright_omega(z: Tensor, steps: int = 12) -> Tensor:
    """log W(e^z), W being Lambert's function: the u with u + e^u = z, by Newton's method; it can be differentiated.

    Newton's method converges from above, since u + e^u is convex and rises, and the start is not below the root.
    """
    with torch.no_grad():
        u = torch.minimum(z, z.clamp(min=1).log())
        for _ in range(steps):
            u = u - (u + u.exp() - z) / (1 + u.exp())
    # One more step, through which the gradient du/dz = 1 / (1 + e^u) flows.
    return u - (u + u.exp() - z) / (1 + u.exp())


def _clipped_log(value: Tensor) -> Tensor:
    return torch.where(value > 0, value.clamp(min=torch.finfo(value.dtype).tiny).log(), -torch.inf)


def _alpha_family(a: float) -> Divergence:
    """f = (t^(1-a) - (1-a) t - a) / (a (a - 1)): KL as a -> 0, forward KL as a -> 1, half chi-squared at a = -1."""
    return Divergence(
        f"alpha:{a:g}", lambda y: _clipped_log(1 - a * y) * (-1 / a), lambda t: t ** (-a - 1), 1 / a if a > 0 else math.inf
    )


_NAMED = {
    d.name: d
    for d in (
        # t log t - t + 1
        Divergence("kl", lambda y: y, lambda t: 1 / t),
        # (t - 1)^2 / 2
        Divergence("half_chi2", lambda y: _clipped_log(1 + y), torch.ones_like),
        # (t - 1)^2 / 2 + t log t - t + 1
        Divergence("half_chi2_kl", lambda y: wright_omega(1 + y), lambda t: 1 + 1 / t),
        # -log t + t - 1
        Divergence("forward_kl", lambda y: -_clipped_log(1 - y), lambda t: t**-2, 1.0),
        # t log t - (t + 1) log((t + 1) / 2)
        Divergence("js2", lambda y: y - _clipped_log(2 - y.exp()), lambda t: 1 / (t * (1 + t)), math.log(2)),
        # (t - 1) log t
        Divergence("jeffreys", lambda y: -wright_omega(1 - y), lambda t: 1 / t + t**-2),
    )
}
DIVERGENCES = (*_NAMED, "alpha:0.5")
"""Names that ``divergence`` takes; in ``alpha:0.5`` the number is any order."""


def divergence(name: str) -> Divergence:
    """A divergence by its name: one of ``DIVERGENCES``, or ``alpha:`` and the order.

    Raises:
        ValueError: There is none of that name.
    """
    if name in _NAMED:
        return _NAMED[name]
    order = name.removeprefix("alpha:")
    try:
        if name == order or not math.isfinite(float(order)):
            raise ValueError
    except ValueError:
        names = ", ".join(DIVERGENCES)
        raise ValueError(f"There is no divergence '{name}'; choose one of: {names}, or another order of alpha.") from None
    limits = {0.0: "kl", 1.0: "forward_kl"}
    return _NAMED[limits[float(order)]] if float(order) in limits else _alpha_family(float(order))


# ------------------------------------------------------------------------------------------------------------ dual


@dataclass(frozen=True)
class DualSolution:
    """The optimal law on samples of p.

    Attributes:
        lam: lambda, in units of the reward.
        weights: w [N], float64, of mean 1 (under the probabilities, where there are some).
        standard_error: Of ``lam``, from the spread of the weights.
        ess: Effective number of samples, (sum w)^2 / sum w^2.
    """

    lam: float
    weights: Tensor
    standard_error: float
    ess: float


def solve_dual(
    rewards: Tensor, alpha: float, divergence_name: str = "kl", probabilities: Tensor | None = None, bound: float | None = None
) -> DualSolution:
    """lambda and the weights q* / p on samples, eq. 2 and 3.

    Args:
        rewards: [N] of samples of p.
        alpha: The strength, above 0.
        divergence_name: See ``divergence``.
        probabilities: [N] with sum 1, where the samples are not alike, such as the points of a quadrature.
        bound: The largest reward that there can be, if it is known. Without it the largest of the samples stands for it.

    Raises:
        ValueError: There are no rewards, or some are not finite, or alpha is not above 0.
        NoOptimumError: No density is optimal, which happens where f'(infinity) is finite and alpha is small.
    """
    if rewards.ndim != 1 or not len(rewards) or not torch.isfinite(rewards).all():
        raise ValueError("Rewards must be a list of finite numbers, one a sample.")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"The strength alpha is {alpha}; it must be above 0.")
    div, r = divergence(divergence_name), rewards.detach().double()
    p = torch.full_like(r, 1 / len(r)) if probabilities is None else probabilities.detach().to(r) / probabilities.sum().to(r)
    low = _lower_end(div, r, p, alpha, bound)
    lam = _root(div, r, p, alpha, low)
    weights = div.weight((r - lam) / alpha)
    effective = float(1 / (p.square().sum()))  # samples, if all counted alike
    spread = math.sqrt(float(p @ (weights - 1).square()) / effective)
    inner = weights > 0
    sensitivity = float((p * torch.where(inner, 1 / div.curvature(weights.clamp(min=1e-300)), 0.0)).sum()) / alpha
    return DualSolution(lam, weights, spread / sensitivity, effective / float(p @ weights.square()))


def _lower_end(div: Divergence, r: Tensor, p: Tensor, alpha: float, bound: float | None) -> float:
    """The least that lambda can be.

    Raises:
        NoOptimumError: E_p[w] stays below 1 however small lambda is.
    """
    if math.isinf(div.at_infinity):
        return float(r.min())
    top = float(r.max()) if bound is None else bound
    if top < float(r.max()):
        raise ValueError(f"A reward of {float(r.max()):g} is above the bound {top:g}; correct the bound.")
    low = top - alpha * div.at_infinity
    # On samples a solution exists always, for the best one could take any weight. That the true law has a density takes
    # more: at the lower end all others must have a mass of 1 or more. (Where the bound is known, no sample need be left out.)
    others = r < top
    if int((~others).sum()) > 1:  # a plateau at the top is no single picture
        return max(low, float(r.min()))
    mass = float((p * div.weight((torch.where(others, r, r.min()) - low) / alpha) * others).sum())
    if mass < 1:
        raise NoOptimumError(
            f"No density is optimal for {div.name} with alpha {alpha:g} and these rewards: even the mildest law would put "
            f"{1 - mass:.0%} of its mass on the best sample alone. Raise alpha, or take 'kl'."
        )
    return max(low, float(r.min()))


def _root(div: Divergence, r: Tensor, p: Tensor, alpha: float, low: float) -> float:
    """lambda of eq. 3 by halving: E_p[w] falls in it, from above 1 at ``low`` to below 1 at the largest reward."""
    high = float(r.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high or high - low < 1e-14 * max(abs(low), abs(high)):
            break
        mass = float(p @ div.weight((r - middle) / alpha))
        low, high = (middle, high) if mass > 1 else (low, middle)
    return high


def surrogate_reward(rewards: Tensor, lam: float | Tensor, alpha: float, divergence_name: str) -> Tensor:
    """alpha log w(r), eq. 4: the reward whose KL optimum is q*; it can be differentiated. Cut off where w would be below 1e-6."""
    y = (rewards - lam) / alpha
    return alpha * divergence(divergence_name).log_weight(y).clamp(min=math.log(LEAST_WEIGHT))


# -------------------------------------------------------------------------------------------------------- strength


def expected_reward(rewards: Tensor, solution: DualSolution) -> float:
    """E_{q*}[r] on samples of p that are alike."""
    return float((rewards.double() * solution.weights).mean())


def kl_to_base(solution: DualSolution) -> float:
    """KL(q* || p) on samples that are alike, whatever divergence made q*."""
    return float(torch.special.xlogy(solution.weights, solution.weights).mean())


def alpha_for_kl(rewards: Tensor, target: float, divergence_name: str = "kl") -> float:
    """The strength at which KL(q* || p) is ``target``, in nats a picture.

    Args:
        rewards: [N] of samples of p; or [prompts, N], then the target is for the mean over prompts.

    Raises:
        ValueError: The samples can't show so large a KL, or the target is not above 0.
    """
    count = rewards.shape[-1]
    if not 0 < target < math.log(count):
        raise ValueError(f"A KL of {target:g} can't be seen on {count} samples; ask for one between 0 and {math.log(count):.2f}.")
    return _strength(rewards, lambda _row, solution: kl_to_base(solution), target, divergence_name, "KL")


def alpha_for_reward(rewards: Tensor, target: float, divergence_name: str = "kl") -> float:
    """The strength at which the mean reward of q* is ``target``.

    Args:
        rewards: [N] of samples of p; or [prompts, N], then the target is for the mean over prompts.

    Raises:
        ValueError: The target isn't between the samples' mean and their best.
    """
    mean, best = float(rewards.double().mean()), float(rewards.double().amax(-1).mean())
    if not mean < target < best:
        raise ValueError(f"A mean reward of {target:g} is out of reach: the samples have {mean:.4g}, the best {best:.4g}.")
    return _strength(rewards, expected_reward, target, divergence_name, "reward")


def _strength(
    rewards: Tensor, measure: Callable[[Tensor, DualSolution], float], target: float, name: str, what: str
) -> float:
    """The alpha at which the measure's mean is the target, by halving its logarithm: the measure falls as alpha rises."""
    rows = rewards.double().reshape(-1, rewards.shape[-1])
    spread = float(rows.std(1).mean()) or 1.0
    low, high = math.log(spread * 1e-3), math.log(spread * 1e4)

    def over(log_alpha: float) -> bool | None:
        try:
            return sum(measure(row, solve_dual(row, math.exp(log_alpha), name)) for row in rows) / len(rows) > target
        except NoOptimumError:
            return None

    for _ in range(50):
        middle = (low + high) / 2
        if over(middle) is False:
            high = middle
        else:
            low = middle
    if over(high - 1e-9) is None:
        raise NoOptimumError(f"No density of {name} reaches this {what} on these rewards; ask for less, or take 'kl'.")
    return math.exp(high)
