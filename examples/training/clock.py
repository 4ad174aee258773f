"""How long something takes, in words."""


def clock(seconds):
    minutes = round(seconds / 60)
    if minutes > 90:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min"
