"""Sizes and times: the constants, and how they are shown to people."""

KiB = 2**10
MiB = 2**20
GiB = 2**30

_SUFFIXES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def show_bytes(count: float) -> str:
    """Three significant digits and a binary suffix: 1536 is '1.50 KiB'; bytes are shown whole."""
    for suffix in _SUFFIXES:
        if abs(count) < 1000 or suffix == _SUFFIXES[-1]:
            break
        count /= 1024
    if suffix == "B" or abs(count) >= 100:
        return f"{count:.0f} {suffix}"
    return f"{count:.2f} {suffix}" if abs(count) < 10 else f"{count:.1f} {suffix}"


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
