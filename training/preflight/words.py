"""How findings and their numbers are put."""

from training.verdict import Finding


def bad(node: str, what: str, value: str, wanted: str, because: str | None = None) -> Finding:
    """Put a finding that a run should not start with."""
    return Finding(
        node=node,
        what=what,
        value=value,
        wanted=wanted,
        severity="bad",
        excluding_helps=True,
        because=because,
    )


def warn(node: str, what: str, value: str, wanted: str) -> Finding:
    """Put a finding that a run may start with."""
    return bad(node, what, value, wanted).model_copy(update={"severity": "warn", "excluding_helps": False})


def say_rate(tflops: float) -> str:
    """Write a rate of products for people."""
    return f"{tflops:,.0f} TFLOP/s" if tflops >= 10 else f"{tflops * 1000:,.0f} GFLOP/s"  # noqa: PLR2004


def say_gbps(gbps: float) -> str:
    """Write gigabytes a second for people."""
    return f"{gbps:.3g} GB/s"
