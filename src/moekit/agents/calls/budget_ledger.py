"""The budget of one answer: reserved before a request goes out, settled when its usage is known."""

from dataclasses import dataclass
from decimal import Decimal

from moekit.agents.config.agents_config import BudgetConfig, PriceConfig
from moekit.agents.members.member import MemberError
from moekit.agents.outcome.answer import Spent
from moekit.core.messages import Usage

_MILLION = 1_000_000


@dataclass(frozen=True, eq=False)
class Reservation:
    """What one request may cost at most. Two equal ones are not the same."""

    usage: Usage
    price: PriceConfig | None


def money(usage: Usage, price: PriceConfig) -> Decimal:
    """Compute what the tokens cost. Decimal, so that a sum of prices is never a hair over the budget that it equals."""
    input_, output = (Decimal(str(part)) for part in (price.input, price.output))
    return (usage.prompt_tokens * input_ + usage.completion_tokens * output) / _MILLION


class Ledger:
    """What an answer has spent and may still spend.

    Of every request, the most that it can cost is set aside before it goes out; so the budget holds whatever comes back
    as long as a server counts no more than was allowed. A request whose usage never came stays set aside: `unsettled`.
    """

    def __init__(self, budget: BudgetConfig) -> None:
        self._budget = budget
        self._open: set[Reservation] = set()
        self._unknown: list[Reservation] = []
        self._priced = True
        self._cost = Decimal(0)
        self._usage = Usage()

    @property
    def spent(self) -> Spent:
        """Until now."""
        return Spent(
            usage=self._usage,
            unsettled=self._set_aside,
            cost=float(self._cost) if self._priced else None,
            unsettled_cost=float(_worth(*self._unknown, *self._open)) if self._priced else None,
        )

    @property
    def _set_aside(self) -> Usage:
        return sum((reservation.usage for reservation in (*self._unknown, *self._open)), Usage())

    def reserve(self, name: str, usage: Usage, price: PriceConfig | None) -> Reservation:
        """Set aside what a request to member `name` may cost; raise MemberError where the budget has less left."""
        wanted = Reservation(usage, price)
        tokens = self._usage.total_tokens + self._set_aside.total_tokens
        if self._budget.tokens is not None and tokens + usage.total_tokens > self._budget.tokens:
            left = max(0, self._budget.tokens - tokens)
            raise _over(name, f"{usage.total_tokens:,} tokens", f"{left:,} of {self._budget.tokens:,}")
        if self._budget.money is not None:
            total = Decimal(str(self._budget.money))
            spent = self._cost + _worth(*self._unknown, *self._open)
            if spent + _worth(wanted) > total:
                left_money = max(Decimal(0), total - spent)
                raise _over(name, f"{_worth(wanted):f} of money", f"{left_money:f} of {total:f}")
        self._open.add(wanted)
        return wanted

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Replace what was set aside by what the request cost; None where nobody knows."""
        self._open.remove(reservation)
        if usage is None:
            self._unknown.append(reservation)
            self._priced = self._priced and reservation.price is not None
        elif usage.total_tokens:
            self._usage += usage
            self._priced = self._priced and reservation.price is not None
            self._cost += money(usage, reservation.price) if reservation.price else 0


def _worth(*reservations: Reservation) -> Decimal:
    return sum((money(each.usage, each.price) for each in reservations if each.price is not None), Decimal(0))


def _over(name: str, wanted: str, left: str) -> MemberError:
    return MemberError(
        f"{name} may need up to {wanted}, and the budget of this answer has {left} left.",
        reason="budget",
        usage=Usage(),
    )
