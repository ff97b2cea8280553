"""Numbers and money as people read them."""

from decimal import ROUND_HALF_EVEN, Decimal

from django.conf import settings

_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "INR": "₹", "BRL": "R$"}
_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))


def symbol() -> str:
    return _SYMBOLS.get(settings.CURRENCY, f"{settings.CURRENCY} ")


def money(cents: Decimal) -> str:
    """Cents as an amount with two decimals, half-even; what is not nothing never reads as nothing."""
    amount = (cents / 100).quantize(Decimal("0.01"), ROUND_HALF_EVEN)
    if cents and not amount:
        return f"< {symbol()}0.01"
    return f"{symbol()}{amount:,.2f}"


def exact_money(cents: Decimal) -> str:
    """The amount to the last 1/10,000 cent."""
    return f"{symbol()}{cents / 100:,.6f}"


def grouped(number: int) -> str:
    return f"{number:,}"


def short(number: int) -> str:
    """1.2 M; below ten thousand the number itself."""
    if number < 10_000:
        return f"{number:,}"
    for size, unit in _UNITS:
        # 999,950 already reads as 1.0 M.
        if number >= size * 0.99995:
            scaled = number / size
            return f"{scaled:.1f} {unit}" if scaled < 99.95 else f"{scaled:,.0f} {unit}"
    return str(number)


def percentage(part: Decimal | int, whole: Decimal | int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def change(now: Decimal | int, before: Decimal | int) -> str:
    """The change against the period before, with its sign; a dash where there is nothing to compare with."""
    if not before:
        return "–"
    ratio = 100 * (Decimal(now) - Decimal(before)) / Decimal(before)
    rounded = ratio.quantize(Decimal("0.1"), ROUND_HALF_EVEN)
    if not rounded:
        return "± 0.0 %"
    return f"{'+' if rounded > 0 else '−'}{abs(rounded):,} %"
