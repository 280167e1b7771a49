"""Judges chains by compiled rules: one pass over the records of a chain, then a few comparisons a rule.

How it works. `detectors/context/rulebook.py` turns rules into tables. A *step* is a pattern of records; which steps an
event matches is looked up (`step_starts`, `step_ids`). Per chain the kernel notes for each step how often, where, when
and how long it occurred, for each *operand* the sum, first, last, least and greatest of an attribute, and for each
*call* how often it was made. Every condition of a rule is then decided from these notes. A condition that cannot be
decided (an attribute that is not there) neither violates a rule nor makes it apply.
"""

from __future__ import annotations

import numpy as np

from collector_processor.kernels.jit import helper, inlined, kernel

# Columns of `atoms` (int64) and of `bounds` (float64).
ROLE, OP, LEFT, RIGHT, LEAST, MOST, REFERENCE = range(7)
LOW, HIGH, TOLERANCE = range(3)
WHEN, REQUIRE, FORBID = range(3)
COUNT, ORDER, FOLLOWS, DURATION, COMPARE, CALL = range(6)
EQUAL, UNEQUAL, AT_MOST, BELOW, AT_LEAST, ABOVE = range(6)  # relation of COMPARE, in LEAST
SUM, FIRST, LAST, MINIMUM, MAXIMUM, NUMBER = range(6)  # what of an attribute's values counts
FAILS, HOLDS, OPEN = range(3)
ANY_STATUS, ONLY_ERROR, NO_ERROR = range(3)
SEVERITY_ERROR = 17  # OTLP's first ERROR severity number

# Columns of the notes on steps and on operands.
TIMES, ROW, FIRST_NS = range(3)
LONGEST = 0


@kernel
def matches(step, kind, status, step_kinds, step_status):
    """Whether a record of this kind and status meets what `step` asks beyond its names."""
    if not (step_kinds[step] >> np.int64(kind)) & 1:
        return False
    wanted = step_status[step]
    if wanted == ANY_STATUS:
        return True
    is_error = status >= SEVERITY_ERROR if kind == 0 else status == 2
    return is_error == (wanted == ONLY_ERROR)


@helper
def note_steps(first, last, records, steps, notes, longest):
    """Notes the steps among records first:last in `notes` (int64[s, 3]) and `longest` (float64[s], ns)."""
    event, kind, status, time_ns, duration = records
    starts, ids, step_kinds, step_status = steps
    notes[:, TIMES] = 0
    notes[:, ROW] = -1
    longest[:] = 0.0
    for r in range(first, last):
        for j in range(starts[event[r]], starts[event[r] + 1]):
            step = ids[j]
            if not matches(step, kind[r], status[r], step_kinds, step_status):
                continue
            if notes[step, TIMES] == 0:
                notes[step, ROW] = r
                notes[step, FIRST_NS] = time_ns[r]
            notes[step, TIMES] += 1
            notes[step, FIRST_NS] = min(notes[step, FIRST_NS], time_ns[r])
            longest[step] = max(longest[step], np.float64(duration[r]))


@inlined
def has_step(r, step, records, steps):
    """Whether record r is an occurrence of `step`; any record is one of step -1."""
    event, kind, status, _, _ = records
    starts, ids, step_kinds, step_status = steps
    if step < 0:
        return True
    for j in range(starts[event[r]], starts[event[r] + 1]):
        if ids[j] == step and matches(step, kind[r], status[r], step_kinds, step_status):
            return True
    return False


@helper
def note_operands(first, last, records, steps, cells, operands, values, rows, hashes):
    """Notes the operands among the cells first:last. values: float64[o, 6] by SUM..NUMBER, rows: int64[o], the record
    of the first value, hashes: uint64[o], of the first value."""
    cell_record, cell_key, cell_number, cell_hash = cells
    values[:] = 0.0
    rows[:] = -1
    for i in range(first, last):
        for o in range(operands.shape[0]):
            if operands[o, 0] != cell_key[i] or not has_step(cell_record[i], operands[o, 1], records, steps):
                continue
            number = cell_number[i]
            if values[o, NUMBER] == 0.0:
                rows[o] = cell_record[i]
                hashes[o] = cell_hash[i]
                values[o, FIRST] = values[o, MINIMUM] = values[o, MAXIMUM] = number
            values[o, SUM] += number
            values[o, LAST] = number
            values[o, MINIMUM] = min(values[o, MINIMUM], number)
            values[o, MAXIMUM] = max(values[o, MAXIMUM], number)
            values[o, NUMBER] += 1.0


@helper
def note_calls(first, last, event, kind, parent, service, call_from, call_to, calls):
    """Counts for each call pattern the spans first:last whose parent is of another service, as the pattern has it.
    calls: int64[c, 2], number and first record. call_from, call_to: uint8[c, services]."""
    calls[:, 0] = 0
    calls[:, 1] = -1
    for r in range(first, last):
        if kind[r] == 0 or parent[r] < 0:
            continue
        to = service[event[r]]
        caller = service[event[parent[r]]]
        if to == caller or to < 0 or caller < 0:
            continue
        for c in range(calls.shape[0]):
            if call_from[c, caller] and call_to[c, to]:
                if calls[c, 0] == 0:
                    calls[c, 1] = r
                calls[c, 0] += 1


@kernel
def compare(atom, bound, operands, values, rows, hashes):
    """(state, expected, actual, record) of a comparison of two operands, or of one with a number."""
    left = atom[LEFT]
    right = atom[RIGHT]
    if values[left, NUMBER] == 0.0 or (right >= 0 and values[right, NUMBER] == 0.0):
        return OPEN, 0.0, 0.0, np.int64(-1)
    a = values[left, operands[left, 2]]
    b = values[right, operands[right, 2]] if right >= 0 else bound[HIGH]
    row = rows[left]
    relation = atom[LEAST]
    if np.isnan(a) or np.isnan(b):  # not numbers: only whether they are the same can be told
        if right < 0 or relation > UNEQUAL:
            return OPEN, 0.0, 0.0, np.int64(-1)
        same = hashes[left] == hashes[right]
        return (HOLDS if same == (relation == EQUAL) else FAILS), 0.0, 0.0, row
    slack = bound[TOLERANCE]
    if relation == EQUAL:
        holds = abs(a - b) <= slack
    elif relation == UNEQUAL:
        holds = abs(a - b) > slack
    elif relation == AT_MOST:
        holds = a <= b + slack
    elif relation == BELOW:
        holds = a < b - slack
    elif relation == AT_LEAST:
        holds = a >= b - slack
    else:
        holds = a > b + slack
    third = atom[REFERENCE]
    if not holds and third >= 0 and right >= 0 and values[third, NUMBER] > 0.0:
        c = values[third, operands[third, 2]]
        if abs(a - c) <= slack < abs(b - c):  # the left one is as it should be: the right one is to blame
            return FAILS, c, b, rows[right]
        if abs(a - c) > slack:
            return FAILS, c, a, row
    return (HOLDS if holds else FAILS), b, a, row


@kernel
def follows(atom, bound, first, last, records, steps, notes):
    """(state, expected, actual, record): whether RIGHT comes within HIGH ns of the first LEFT; seconds."""
    left = atom[LEFT]
    if notes[left, TIMES] == 0:
        return OPEN, 0.0, 0.0, np.int64(-1)
    time_ns = records[3]
    since = notes[left, FIRST_NS]
    best = np.int64(-1)
    end = since
    for r in range(first, last):
        end = max(end, time_ns[r])
        later = time_ns[r] >= since or r > notes[left, ROW]  # a caused record is later, whatever the hosts' clocks say
        if later and has_step(r, atom[RIGHT], records, steps) and (best < 0 or time_ns[r] < time_ns[best]):
            best = r
    within = bound[HIGH]
    if best < 0:
        return FAILS, min(within, 1e18) * 1e-9, (end - since) * 1e-9, np.int64(-1)
    waited = max(0.0, np.float64(time_ns[best] - since))
    return (HOLDS if waited <= within else FAILS), min(within, 1e18) * 1e-9, waited * 1e-9, best


@kernel
def decide(atom, bound, chain_ns, notes, longest, calls):
    """(state, expected, actual, record) of a condition on counts, order, duration or calls."""
    op = atom[OP]
    left = atom[LEFT]
    if op == COUNT:
        seen = notes[left, TIMES]
        expected = np.float64(atom[LEAST] if seen < atom[LEAST] else atom[MOST])
        holds = atom[LEAST] <= seen <= atom[MOST]
        return (HOLDS if holds else FAILS), min(expected, 1e18), np.float64(seen), notes[left, ROW]
    if op == ORDER:
        right = atom[RIGHT]
        if notes[left, TIMES] == 0 or notes[right, TIMES] == 0:
            return OPEN, 0.0, 0.0, np.int64(-1)
        holds = notes[left, ROW] < notes[right, ROW]
        return (HOLDS if holds else FAILS), 0.0, 0.0, notes[right, ROW]
    if op == DURATION:
        if left >= 0 and notes[left, TIMES] == 0:
            return OPEN, 0.0, 0.0, np.int64(-1)
        took = longest[left] if left >= 0 else chain_ns
        holds = bound[LOW] <= took <= bound[HIGH]
        expected = bound[LOW] if took < bound[LOW] else min(bound[HIGH], 1e18)
        return (
            (HOLDS if holds else FAILS),
            expected * 1e-9,
            took * 1e-9,
            notes[left, ROW] if left >= 0 else np.int64(-1),
        )
    made = calls[left, 0]
    return (HOLDS if made > 0 else FAILS), 0.0, np.float64(made), calls[left, 1]


@kernel
def judge(
    chains, records, parent, service, steps, cells, calls_of, operands, applies, rules, atoms, bounds, scratch, out
):
    """Writes every violated rule of every chain, and every rule whose expression has still to be evaluated.

    chains: flow, outcome, start_ns, end_ns, offsets. records: event, kind, status, time_ns, duration. service: int32 by
    event. steps: step_starts int32[events + 1], step_ids, kinds each step may have (bits), ANY_STATUS... cells: record,
    key, number, hash. calls_of: uint8[c, services] callers and callees. operands: int64[o, 3] key, step or -1, SUM...
    applies: uint8[flows, rules]. rules: int64[rules, 3] first atom, outcomes (bits), whether there is an expression.
    scratch: notes, longest, values, rows, hashes, calls. out: int64[n, 4] chain, rule, atom or -1 for an expression,
    record or -1; float64[n, 2] expected, actual. Returns the number of rows; above n the rest was not written.
    """
    flow, outcome, start_ns, end_ns, offsets = chains
    notes, longest, values, rows, hashes, calls = scratch
    out_row, out_number = out
    found = 0
    cell = 0
    for chain in range(flow.size):
        first, last = offsets[chain], offsets[chain + 1]
        first_cell = cell
        while cell < cells[0].size and cells[0][cell] < last:
            cell += 1
        noted = False
        for rule in range(applies.shape[1]):
            if not applies[flow[chain], rule] or not (rules[rule, 1] >> np.int64(outcome[chain])) & 1:
                continue
            if not noted:
                note_steps(first, last, records, steps, notes, longest)
                note_operands(first_cell, cell, records, steps, cells, operands, values, rows, hashes)
                note_calls(first, last, records[0], records[1], parent, service, calls_of[0], calls_of[1], calls)
                noted = True
            verdict = HOLDS
            expected = actual = 0.0
            row = np.int64(-1)
            atom = rules[rule, 0]
            while atom < rules[rule + 1, 0]:
                op = atoms[atom, OP]
                if op == COMPARE:
                    state, expected, actual, row = compare(atoms[atom], bounds[atom], operands, values, rows, hashes)
                elif op == FOLLOWS:
                    state, expected, actual, row = follows(
                        atoms[atom], bounds[atom], first, last, records, steps, notes
                    )
                else:
                    took = np.float64(end_ns[chain] - start_ns[chain])
                    state, expected, actual, row = decide(atoms[atom], bounds[atom], took, notes, longest, calls)
                role = atoms[atom, ROLE]
                if role == WHEN and state != HOLDS:
                    verdict = OPEN
                    break
                if (role == REQUIRE and state == FAILS) or (role == FORBID and state == HOLDS):
                    verdict = FAILS
                    break
                atom += 1
            if verdict == FAILS or (verdict == HOLDS and rules[rule, 2] != 0):
                if found < out_row.shape[0]:
                    out_row[found, 0] = chain
                    out_row[found, 1] = rule
                    out_row[found, 2] = atom if verdict == FAILS else -1
                    out_row[found, 3] = row if verdict == FAILS else -1
                    out_number[found, 0] = expected
                    out_number[found, 1] = actual
                found += 1
    return found
