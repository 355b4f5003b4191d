"""A trace as text for a terminal: one line a step, in the order of the flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

Record = Mapping[str, Any]
SHOWN: Final = 20
"""Lines of one section that are printed; the JSON has all."""


def trace_text(trace: Record) -> str:
    """A trace of :func:`hpcal.report.lineage.trace` as text."""
    sections = _TEXTS[trace["kind"]](trace)
    lines: list[str] = []
    for title, content in sections:
        if not content:
            continue
        lines.append(title)
        lines += [f"  {line}" for line in content[:SHOWN]]
        if len(content) > SHOWN:
            lines.append(f"  and {len(content) - SHOWN} more; see --json")
    return "\n".join(lines) + "\n"


Sections = Sequence[tuple[str, Sequence[str]]]


def _structure(trace: Record) -> Sections:
    row = trace["structure"]
    head = _join(
        row["formula"],
        f"charge {row['charge']}",
        f"multiplicity {row['multiplicity']}",
        f"split {row['split']}",
        f"hash {row['hash'][:12]}",
        row["reason"],
    )
    label = trace["label"]
    return (
        (f"structure {row['id']}: {row['state']}", [head]),
        ("origin", _origin(trace["origin"])),
        ("scores", [_score(s) for s in trace["scores"]]),
        ("selection", [_selection(s) for s in trace["selection"]]),
        ("attempts at a label", [_attempt(a) for a in trace["attempts"]]),
        ("label", [_label(item) for item in [label, *trace["other_labels"]] if item]),
        ("rejection", [_rejection(r) for r in trace["rejections"]]),
        (
            "data sets",
            [f"dataset {d['id']} (generation {d['generation']}), as {d['split']}" for d in trace["datasets"]],
        ),
        ("models trained on it", _models_by_ensemble(trace["models"])),
        ("events", [_event(e) for e in trace["events"]]),
        ("what became of it", _fate(trace)),
    )


def _fate(trace: Record) -> list[str]:
    """Why a structure is in no model, for those that are in none."""
    row, label = trace["structure"], trace["label"]
    if trace["models"]:
        return []
    if label is not None and label["retracted"]:
        return [f"its label was taken back: {label['retracted']}"]
    if label is not None and row["split"] in ("calibration", "test"):
        return [f"audit label ({row['split']}): it never trains; the evaluations above are what it is for"]
    if label is not None and row["split"] == "reference":
        return ["fixed reference set: it never trains; the evaluations above are what it is for"]
    if label is not None and row["split"] == "validation":
        return ["validation: it stops the training of members, whose weights do not learn from it"]
    if label is not None:
        return ["no model has been trained on it yet"]
    return [f"{row['state']}{': ' + row['reason'] if row['reason'] else ''}; it has no label"]


def _origin(origin: Record) -> list[str]:
    lines = [f"{origin['origin']}, generation {origin['generation']}"]
    parent, walker, segment, task = (origin[key] for key in ("parent", "walker", "segment", "task"))
    if parent:
        lines.append(f"made from structure {parent['id']} ({parent['origin']}, {parent['state']})")
    if walker:
        lines.append(_walker_line(walker))
    if segment:
        lines.append(_segment(segment))
    if origin["step"] is not None:
        lines.append(f"at step {origin['step']}, {_number(origin['time_fs'])} fs")
    if task:
        lines.append(f"by task {task['id']} ({task['kind']}, {task['state']})")
    lines += [_attempt(a) for a in origin["task_attempts"]]
    lines += [f"gave structure {child['id']} ({child['origin']})" for child in origin["children"]]
    return lines


def _walker_line(walker: Record) -> str:
    end = walker["end_reason"]
    return _join(
        f"walker {walker['id']} ({walker['sampler']})",
        f"seed structure {walker['seed_structure_id']}",
        f"split {walker['split']}",
        f"{walker['temperature']:g} K",
        f"born in generation {walker['generation']}",
        f"ended: {end}" if end else str(walker["state"]),
        walker["end_detail"],
    )


def _segment(segment: Record) -> str:
    return _join(
        f"segment {segment['id']}",
        f"steps {segment['start_step']} to {segment['end_step']}",
        f"ensemble {segment['ensemble_id']} (generation {segment['generation']})",
        f"task {segment['task_id']}",
        f"largest uncertainty {segment['max_trigger']:.4g}" if segment["max_trigger"] is not None else None,
        f"|bias|/|force| {segment['bias_ratio']:.3g}" if segment["bias_ratio"] is not None else None,
        f"ended: {segment['end_reason']}" if segment["end_reason"] else None,
        segment["detail"],
    )


def _score(score: Record) -> str:
    limit = score["threshold"]
    side = "" if limit is None else f" {'>' if score['above_threshold'] else '<='} {limit:.4g}"
    return _join(
        f"{score['purpose']}, ensemble {score['ensemble_id']} (generation {score['generation']})",
        f"{score['metric']} {score['value']:.4g}{side}",
        f"energy error {score['energy_error']:+.4g} eV" if score["energy_error"] is not None else None,
        f"force RMSE {score['force_rmse']:.4g} eV/Å" if score["force_rmse"] is not None else None,
    )


def _selection(row: Record) -> str:
    return _join(
        f"{row['decision']} by {row['rule']}",
        f"rank {row['rank']}" if row["rank"] is not None else None,
        f"of {row['competitors']}" if row["competitors"] is not None else None,
        f"distance {row['distance']:.4g}" if row["distance"] is not None else None,
        row["reason"],
    )


def _attempt(row: Record) -> str:
    place = f"{row['host']} (process {row['pid']})" if row["host"] else "host unknown"
    return _join(
        f"attempt {row['number']} at task {row['task_id']}: {row['state']}",
        f"pool {row['executor']}",
        place,
        f"{_when(row['start'])} to {_when(row['end'])}",
        f"{row['seconds']:.1f} s" if row["seconds"] is not None else None,
        _calls(row),
        row["exit_reason"],
    )


def _label(label: Record) -> str:
    level = label["level"]
    basis = level.get("settings", {}).get("basis")
    method = f"{level['method']}/{basis}" if basis else level["method"]
    return _join(
        f"label {label['id']}",
        "no commit number" if label["seq"] is None else f"commit {label['seq']}",
        f"{label['energy']:.6f} eV",
        f"largest force {label['max_force']:.4g} eV/Å" if label["max_force"] is not None else "no forces",
        f"{method} ({level['code']} {level['version']}, level {label['level_hash'][:12]})",
        _calls(label),
        f"attempt row {label['attempt_id']}" if label["attempt_id"] else "given, not computed here",
        f"taken back: {label['retracted']}" if label["retracted"] else None,
    )


def _rejection(row: Record) -> str:
    return _join(f"{row['code']} ({row['failure_class']}): {row['message']}", _calls(row))


def _event(row: Record) -> str:
    return f"{_when(row['time'])} {row['kind']}: {row['message']}"


def _models_by_ensemble(models: Sequence[Record]) -> list[str]:
    groups: dict[tuple[int, int], list[int]] = {}
    for model in models:
        groups.setdefault((model["generation"], model["ensemble_id"]), []).append(model["id"])
    return [
        f"generation {generation}, ensemble {ensemble}: models {', '.join(map(str, ids))}"
        for (generation, ensemble), ids in groups.items()
    ]


def _walker(trace: Record) -> Sections:
    row = trace["walker"]
    return (
        (
            f"walker {row['id']}: {row['state']}",
            [_walker_line(row), f"step {row['step']} of {row['steps_full']}"],
        ),
        ("segments", [_segment(s) for s in trace["segments"]]),
        ("structures", _short_structures(trace["structures"])),
    )


def _short_structures(structures: Sequence[Record]) -> list[str]:
    return [
        _join(
            f"structure {s['id']}: {s['state']}",
            s["origin"],
            s["split"],
            f"step {s['step']}" if s["step"] is not None else None,
            s["reason"],
        )
        for s in structures
    ]


def _task(trace: Record) -> Sections:
    row, products = trace["task"], trace["products"]
    about = _join(f"pool {row['pool']}", f"{row['units']} units", f"made {_when(row['created'])}")
    failure = _join(row["failure_class"], *(row["error"] or "").strip().splitlines()[-1:])
    return (
        (f"task {row['id']} ({row['kind']}): {row['state']}", [about]),
        ("failure", [failure] if failure else []),
        ("attempts", [_attempt(a) for a in trace["attempts"]]),
        ("structures made", _short_structures(trace["structures"])),
        ("segments", [_segment(s) for s in trace["segments"]]),
        ("labelled", [f"structure {i}" for i in products["labelled"]]),
        ("rejected", [f"structure {r['structure_id']}: {r['code']}" for r in products["rejected"]]),
        ("scores", [f"{n} {purpose}" for purpose, n in products["scores"].items()]),
        ("decisions", [f"{n} {decision}" for decision, n in products["selection"].items()]),
        ("models", [f"model {m['id']} (member {m['member']})" for m in trace["models"]]),
        ("events", [_event(e) for e in trace["events"]]),
    )


def _dataset(trace: Record) -> Sections:
    row = trace["dataset"]
    rule = (
        f"accepted labels of level {row['level_of_theory_id']} up to commit {row['last_seq']}, splits train "
        "and validation, less those taken back"
    )
    return (
        (f"dataset {row['id']} (generation {row['generation']})", [rule]),
        ("size when made", [f"{row['n_train']} train, {row['n_validation']} validation"]),
        (
            "composition",
            [
                f"{split}: " + ", ".join(f"{n} {origin}" for origin, n in origins.items())
                for split, origins in trace["composition"].items()
            ],
        ),
        ("shards", [f"{s['path']} ({s['count']} structures, {s['sha256'][:12]})" for s in trace["shards"]]),
        ("ensembles", [_ensemble_line(e) for e in trace["ensembles"]]),
    )


def _ensemble_line(row: Record) -> str:
    return f"ensemble {row['id']} (generation {row['generation']}): {row['state']}"


def _ensemble(trace: Record) -> Sections:
    row, uses = trace["ensemble"], trace["uses"]
    previous = trace["predecessor"]
    threshold = None if row["threshold"] is None else f"{row['metric']} threshold {row['threshold']:.4g}"
    about = _join(
        f"{row['kind']}, {_size(trace['members'])} members",
        f"dataset {row['dataset_id']}",
        threshold,
        f"hash {row['hash'][:12]}" if row["hash"] else None,
        f"made {_when(row['created'])}",
    )
    used = _join(
        *(f"{n} scores ({purpose})" for purpose, n in uses["scores"].items()),
        *(f"{n} {decision}" for decision, n in uses["selection"].items()),
        f"{uses['segments']} segments" if uses["segments"] else None,
        f"{uses['walkers']} walkers" if uses["walkers"] else None,
    )
    return (
        (_ensemble_line(row), [about]),
        ("decision", [row["decision"]] if row["decision"] else []),
        ("calibration", [str((row["calibration"] or {}).get("sentence", ""))] if row["calibration"] else []),
        ("predecessor", [_ensemble_line(previous)] if previous else []),
        ("errors", [line for split, e in trace["errors"].items() if (line := _errors(split, e))]),
        ("used for", [used] if used else []),
        (
            "members",
            [
                f"model {m['id']} (member {m['member']}, seed {m['seed']})"
                + ("" if m["path"] else f", {_why_not(m)}")
                for m in trace["members"]
            ],
        ),
    )


def _why_not(member: Record) -> str:
    """Why a member has no file."""
    return f"missing: {member['missing']}" if member["missing"] else "not trained yet"


def _size(members: Sequence[Record]) -> str:
    """How many members are there, of how many where one is missing."""
    missing = sum(m["missing"] is not None for m in members)
    return f"{len(members) - missing} of {len(members)}" if missing else str(len(members))


def _errors(split: str, errors: Record) -> str | None:
    if not errors["count"]:
        return None
    energy, force = errors["energy_rmse_ev_per_atom"], errors["force_rmse_ev_per_ang"]
    return _join(
        f"{split} ({errors['count']} structures)",
        None if energy is None else f"energy RMSE {1000 * energy:.3g} meV/atom",
        None if force is None else f"force RMSE {force:.4g} eV/Å",
    )


def _model(trace: Record) -> Sections:
    row, seen = trace["model"], trace["trained_on"]
    about = _join(
        f"member {row['member']} of ensemble {row['ensemble_id']}",
        f"seed {row['seed']}",
        row["path"] or _why_not(row),
        f"SHA-256 {row['sha256'][:12]}" if row["sha256"] else None,
    )
    whose = "its own bag" if seen["recorded_bag"] else "all training structures"
    data = f"dataset {trace['dataset']['id']}, {whose}: {seen['count']} structures" if row["path"] else ""
    metrics = [f"{k} {_number(v)}" for k, v in row["metrics"].items() if isinstance(v, int | float)]
    return (
        (f"model {row['id']}", [about]),
        ("trained on", [data] if data else []),
        ("metrics", metrics),
        ("ensemble", [_ensemble_line(trace["ensemble"])] if trace["ensemble"] else []),
        ("attempts", [_attempt(a) for a in trace["attempts"]]),
    )


def _calls(row: Record) -> str | None:
    n = row["qm_calls"]
    return f"{n} QM call{'s' if n > 1 else ''}" if n else None


def _join(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.6g}"


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


_TEXTS: Final[Mapping[str, Callable[[Record], Sections]]] = {
    "structure": _structure,
    "walker": _walker,
    "task": _task,
    "dataset": _dataset,
    "ensemble": _ensemble,
    "model": _model,
}
