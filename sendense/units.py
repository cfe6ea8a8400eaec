"""Sizes and times: the constants, and how they are shown to people."""

KiB = 2**10
MiB = 2**20
GiB = 2**30

_SUFFIXES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def show_bytes(count: float) -> str:
    """Three significant digits and a binary suffix: 1536 is '1.50 KiB'; bytes are shown whole."""
    power = 0
    while abs(count) >= 999.5 and power < len(_SUFFIXES) - 1:
        count /= 1024
        power += 1
    digits = 0 if not power or abs(count) >= 99.95 else 1 if abs(count) >= 9.995 else 2
    return f"{count:.{digits}f} {_SUFFIXES[power]}"


def show_seconds(seconds: float) -> str:
    """Seconds as an operator reads them: '0.8 s', '42 s', '3:05', '2:10:00'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
