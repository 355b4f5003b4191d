"""A report on data as text for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hpcal.report.integrity.examine import ORDER, Report
from hpcal.report.integrity.finding import Finding, Severity

WIDTH: Final = 100
PAIRS_SHOWN: Final = 21


def report_text(report: Report) -> str:
    """The whole report."""
    lines = _wrapped(
        f"{', '.join(report.what)}: {_count(len(report.collection or ()), 'labelled structure')}", "", "  "
    )
    for severity in ORDER:
        findings = [finding for finding in report.findings if finding.severity is severity]
        if findings:
            lines += ["", _title(severity, findings)]
            for finding in findings:
                lines += _finding(finding, report)
    if report.coverage:
        lines += ["", "coverage"]
        lines += list(_coverage(report.coverage))
    lines += ["", _verdict(report)]
    return "\n".join(lines) + "\n"


def _title(severity: Severity, findings: Sequence[Finding]) -> str:
    return f"{severity}{'' if len(findings) == 1 else 's'}"


def _finding(finding: Finding, report: Report) -> Iterator[str]:
    yield from _wrapped(f"{finding.kind} ({finding.count}): {finding.meaning}", "  ", "    ")
    for example in finding.examples:
        names = " and ".join(report.collection.name(i) for i in example.where) if report.collection else ""
        yield from _wrapped(f"- {f'{names}: ' if names else ''}{example.detail}", "    ", "      ")
    left = finding.count - len(finding.examples)
    if finding.examples and left > 0:
        yield f"    and {left} more; see --limit"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _verdict(report: Report) -> str:
    counts = {s: sum(f.severity is s for f in report.findings) for s in ORDER}
    if not any(counts.values()):
        return "nothing found"
    return ", ".join(_count(count, str(severity)) for severity, count in counts.items())


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _coverage(found: Mapping[str, Any]) -> Iterator[str]:
    rows = {
        "splits": _tally(found["splits"]),
        "levels of theory": _tally(found["levels"]),
        "structures": f"{found['structures']}, {found['compositions']} compositions, {found['atoms']} atoms; "
        f"{found['with_forces']} with forces, {found['periodic']} periodic",
        "elements": ", ".join(
            f"{e} {n['atoms']} atoms in {n['structures']}" for e, n in found["elements"].items()
        ),
        "atoms a structure": _range(found["atoms_per_structure"], "", 0),
        "pairs": _pairs(found["pairs"]),
        "never seen": ", ".join(found["pairs"]["never"]) or "no pair of these elements",
        "size": _size(found["size"]),
        "largest force": _range(found["forces"]["largest_of_a_structure"], " eV/Å", 2),
        "near equilibrium": _equilibrium(found["forces"]),
        "energy": f"{_range(found['energies']['above_lowest_per_atom'], ' eV/atom', 3)} above the lowest of "
        "the composition",
        "spread as of": _temperature(found["energies"]["spread_temperature_K"]),
        "contacts": _contacts(found["contacts"]),
        "closest atoms": _range(found["contacts"]["closest_in_covalent_radii"], " sums of covalent radii", 2),
        "states": ", ".join(
            f"charge {s['charge']} multiplicity {s['multiplicity']}: {s['structures']}"
            for s in found["states"]
        ),
    }
    width = max(map(len, rows))
    for name, words in rows.items():
        yield from _wrapped(f"{name:<{width}}  {words}", "  ", " " * (width + 4))


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _range(found: Mapping[str, float] | None, unit: str, digits: int) -> str:
    if found is None:
        return "-"
    low, middle, high = (f"{found[key]:.{digits}f}" for key in ("p05", "p50", "p95"))
    return f"{middle}{unit} (90 % within {low} to {high})"


def _pairs(found: Mapping[str, Any]) -> str:
    seen = list(found["seen"].items())
    shown = ", ".join(f"{pair} from {s['shortest']:.2f} Å" for pair, s in seen[:PAIRS_SHOWN])
    more = f" and {len(seen) - PAIRS_SHOWN} more" if len(seen) > PAIRS_SHOWN else ""
    return f"{shown or 'none'}{more} (within {found['cutoff']:g} Å)"


def _size(found: Mapping[str, Any]) -> str:
    if found["largest_diameter"] is None:
        return "all periodic"
    return (
        f"molecules up to {found['largest_diameter']:.1f} Å wide, {100 * found['share_wider']:.0f} % wider "
        f"than twice the cutoff ({found['twice_cutoff']:g} Å)"
    )


def _equilibrium(found: Mapping[str, Any]) -> str:
    share = found["near_equilibrium_share"]
    if share is None:
        return "- (no forces)"
    return f"{100 * share:.1f} % have no force above {found['near_equilibrium_below']:g} eV/Å"


def _temperature(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "- (no composition with enough frames)"
    span = f" ({found['lowest']:.0f} to {found['highest']:.0f} K)" if found["compositions"] > 1 else ""
    return (
        f"harmonic atoms at {found['mean']:.0f} K{span}, over {_count(found['compositions'], 'composition')}"
    )


def _contacts(found: Mapping[str, Any]) -> str:
    several = found["structures_with_several_fragments"]
    if not several:
        return "no structure has more than one molecule"
    nearest = found["nearest_between_fragments"]
    gap = "" if nearest is None else f", nearest atoms {_range(nearest, ' Å', 2)}"
    return f"{several} structures with several molecules (up to {found['most_fragments']}){gap}"
