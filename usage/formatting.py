"""Numbers and money as people read them. The exact value always stands beside: in a title, in the table, in the CSV."""

from decimal import ROUND_HALF_EVEN, Context, Decimal

from django.conf import settings

_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "INR": "₹", "BRL": "R$"}
_UNITS = ((10**15, "Q"), (10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))
_WIDE = Context(prec=60, rounding=ROUND_HALF_EVEN)  # a sum has up to 30 digits; the default context keeps 28
NOTHING = "–"


def symbol() -> str:
    """What stands before an amount: a sign where the currency has one that everybody knows, else its code."""
    return _SYMBOLS.get(settings.CURRENCY, f"{settings.CURRENCY}\N{NO-BREAK SPACE}")


def money(cents: Decimal) -> str:
    """Cents as an amount with two decimals, half-even; what is not nothing never reads as nothing."""
    amount = _WIDE.divide(cents, Decimal(100)).quantize(Decimal("0.01"), context=_WIDE)
    if cents and not amount:
        return f"<{symbol()}0.01"
    return f"{symbol()}{amount:,f}"


def round_money(cents: Decimal, step: Decimal) -> str:
    """An amount on an axis, with as many decimals as the step between two of them needs."""
    amount, unit = _WIDE.divide(cents, Decimal(100)), _WIDE.divide(step, Decimal(100))
    if unit >= 1:
        return f"{symbol()}{round_number(amount, unit)}"
    return f"{symbol()}{amount:.{max(2, -unit.adjusted())}f}"


def round_number(amount: Decimal, step: Decimal) -> str:
    """A number on an axis; every step of it is written in the same unit."""
    for size, unit in _UNITS:
        if step * 2 >= size:
            return f"{(amount / size).normalize():,f}\N{NO-BREAK SPACE}{unit}" if amount else "0"
    return f"{amount:,.0f}"


def exact_cents(cents: Decimal) -> str:
    """Cents with the four decimals that are kept."""
    return f"{cents:,.4f} cents"


def grouped(number: int) -> str:
    return f"{number:,}"


def short(number: int) -> str:
    """1.2 M; below ten thousand the number itself."""
    if number < 10_000:
        return f"{number:,}"
    for size, unit in _UNITS:
        # What rounds up to the next unit is written in it: 999,950 is 1.0 M.
        if number * 20_000 >= size * 19_999:
            scaled = _WIDE.divide(Decimal(number), Decimal(size))
            return f"{scaled:,.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{number:,}"


def percentage(part: Decimal | int, whole: Decimal | int) -> str:
    if not whole:
        return NOTHING
    value = _WIDE.divide(Decimal(part) * 100, Decimal(whole))
    return "<0.1%" if 0 < value < Decimal("0.05") else f"{value:.1f}%"


def change(now: Decimal | int, before: Decimal | int) -> str:
    """The change against the period before, with its sign; a dash where there is nothing to compare with."""
    if not before:
        return NOTHING
    ratio = _WIDE.divide((Decimal(now) - Decimal(before)) * 100, Decimal(before))
    rounded = ratio.quantize(Decimal("0.1") if abs(ratio) < 1000 else Decimal(1), context=_WIDE)
    if not rounded:
        return "±0.0%"
    return f"{'+' if rounded > 0 else '−'}{abs(rounded):,f}%"


def lag(seconds: int) -> str:
    """How far behind, in one unit."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:,}\N{NO-BREAK SPACE}{unit}"
    return f"{seconds}\N{NO-BREAK SPACE}s"


def calls(number: int) -> str:
    return f"{number:,} call{'' if number == 1 else 's'}"


def points(now: float, before: float) -> str:
    """The change of a share, in percentage points."""
    difference = round(100 * (now - before), 1)
    if not difference:
        return "±0.0 points"
    return f"{'+' if difference > 0 else '−'}{abs(difference):.1f} points"


def latency(ms: float | None) -> str:
    """640 ms, 4.12 s: no more digits than are known of an approximate one."""
    if ms is None:
        return NOTHING
    if round(ms) < 1000:
        return f"{ms:.0f}\N{NO-BREAK SPACE}ms"
    seconds = ms / 1000
    digits = 2 if round(seconds, 2) < 10 else 1 if round(seconds, 1) < 100 else 0
    return f"{seconds:,.{digits}f}\N{NO-BREAK SPACE}s"


def round_latency(ms: Decimal, step: Decimal) -> str:
    """A latency on an axis, all of one unit."""
    if step < 500:
        return f"{ms.normalize():,f}\N{NO-BREAK SPACE}ms"
    return f"{(ms / 1000).normalize():,f}\N{NO-BREAK SPACE}s"


def round_percentage(percent: Decimal, step: Decimal) -> str:
    return f"{percent.normalize():f}%"
