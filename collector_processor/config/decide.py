"""From scores to verdicts and incidents: the budget of alerts, the calendar, what business calls large."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from collector_processor.config.section import Count, Positive, Probability, Section


class PeriodConfig(Section):
    """A recurring part of the business week: a trading session, the night batch, month-end closing hours."""

    name: str
    """What the period is called in incidents and rules."""
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ("mon", "tue", "wed", "thu", "fri")
    """Days on which it starts."""
    start: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    """Local time, `HH:MM`."""
    end: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    """Local time, `HH:MM`; not after `start`: it ends the next day."""
    holidays: Literal["skip", "only", "any"] = "skip"
    """Whether it also takes place on holidays."""
    severity: Annotated[int, Field(ge=-1, le=1)] = 0
    """Raises (1) or lowers (-1) the severity of what is unusual during it by one step."""


class CalendarConfig(Section):
    """The business calendar; its time zone is `decide.timezone`."""

    holidays: str | None = None
    """A country (`DE`), a part of one (`DE-BY`) or a market (`XNYS`, `XECB`) of the package `holidays`; null: none."""
    periods: tuple[PeriodConfig, ...] = ()
    """Parts of the week that people speak of and that weigh more or less."""


class BusinessConfig(Section):
    """What makes an unusual chain matter more or less than its probability says."""

    amount: str | None = None
    """The attribute, one of `join.attributes`, that says how much money a chain moves; null: amounts do not count."""
    amount_critical: Positive | None = None
    """An unusual chain that moves at least this much is critical."""
    amount_minor: Positive | None = None
    """An unusual chain that moves less than this stays at info."""


class DecideConfig(Section):
    """How scores become verdicts and verdicts become incidents."""

    alerts_per_day: Positive = 6.0
    """The alert budget: false incidents an operator accepts a day. Every threshold follows from it."""
    weights: dict[Literal["rec", "seq", "ctx"], Annotated[float, Field(ge=0)]] = Field(
        default={"rec": 0.5, "seq": 0.5, "ctx": 1.0}
    )
    """The lambdas of s = l1*d_rec + l2*d_seq + l3*d_ctx: content, order, context. What is broken weighs more than what
    is merely new."""
    history: Annotated[int, Field(ge=100, le=10_000)] = 300
    """Calibration scores kept per flow. 300 held a 1 % target at 0.9-1.4 % on four kinds of scores."""
    history_min: Annotated[int, Field(ge=20)] = 50
    """Scores that a flow needs before it is judged by its own; until then all flows of the tenant are one."""
    probability_max: Probability = 0.02
    """Greatest p-value that the budget may make unusual, however thin the flow."""
    probability_in_incident: Probability = 0.2
    """p-value up to which a chain is unusual that goes through the service of an open incident."""
    audit_share: Probability = 0.1
    """Share of suspect chains that are learned from although nothing has cleared them, so that a release becomes
    normal."""
    score_half: Probability = 1e-3
    """The p-value whose score is 0.5; score = ln p / (ln p + ln score_half)."""
    score_warning: Probability = 0.5
    """Unusual chains from this score on are warnings, below it info."""
    score_critical: Probability = 0.75
    """Broken, failed or slowed chains from this score on are critical."""
    business: BusinessConfig = BusinessConfig()
    calendar: CalendarConfig = CalendarConfig()
    hold_s: Annotated[float, Field(ge=0)] = 10.0
    """Time for which any element must be beyond half the threshold before it opens an incident."""
    soft_hold_s: Positive = 300.0
    """Time for which what may well be meant to be so (other calls or paths than usual, but no error, no missing log and
    no delay) must hold before it opens an incident."""
    restart_hold_s: Positive = 90.0
    """Time for which errors that say that another service is not there, or calls that are made no more but had been
    left out before or stopped together, must hold before they open an incident: an instance that restarts is missed for
    about a minute."""
    repeat_min: Count = 3
    """Unusual chains with the same finding within a window before they may open an incident."""
    merge_s: Annotated[float, Field(ge=0)] = 90.0
    """Age up to which an incident takes in findings about services next to its own in the call graph: one cause shows
    in several places, not always in the same minute."""
    join_s: Positive = 300.0
    """Age up to which an incident takes in further findings about its services; what shows later opens its own."""
    resolve_s: Positive = 150.0
    """Quiet time after which an incident is over."""
    quarantine_s: Positive = 90.0
    """Time a chain waits before detectors learn from it, so that what an alarm is about does not become normal."""
    timezone: str = "UTC"
    """Time zone of the business calendar (time-of-week slices, sessions, holidays)."""
