"""What each detector looks at, and how much it remembers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from collector_processor.config.section import Count, Positive, Probability, Section


class ChainSequenceConfig(Section):
    """`detectors/chain_sequence`: paths of a flow, their shares per slice, their transitions."""

    enabled: bool = True
    """Whether this detector runs."""
    slice_s: Positive = 300.0
    """Length of a time-of-week slice."""
    learn_chains_min: Count = 50
    """Chains of a flow before its new paths are findings (cold start)."""
    repeat_min: Count = 3
    """The same finding this often within a slice before anything pages."""
    interrupted_length_min: Count = 1
    """Least number of modules of a path that can count as broken off. One: the first call already went unanswered."""
    adopt_s: Positive = 93_600.0
    """Time over which a path that is judged anomalous must keep coming before it counts as normal (an intended
    release). Longer than a day, so that a day-long incident is still reported at its end."""
    adopt_repeats: Count = 20
    """Chains of such a path before it counts as normal."""
    path_length_max: Count = 1024
    """Operations of a path (loops collapsed) that are compared; further ones are left out."""


class RetrievalConfig(Section):
    """`detectors/retrieval`: distance to the nearest normal chains."""

    enabled: bool = True
    """Whether this detector runs."""
    learn_chains_min: Count = 50
    """Chains of a flow before the content of a chain is judged (cold start)."""
    core_max: Count = 16_384
    """Distinct bags of events kept, of all flows; beyond it the half not seen for longest is forgotten."""
    compared_max: Count = 512
    """Known bags of a flow that a new one is compared with, the most frequent first."""
    vectors_max: Count = 16_384
    """Event texts whose vectors are kept."""
    values_max: Count = 262_144
    """Attribute values kept, of all operations."""
    adopt_s: Positive = 93_600.0
    """Time over which content that is judged anomalous must keep coming before it counts as normal; more than a day."""
    adopt_repeats: Count = 20
    """Chains of such content before it counts as normal."""
    embedding_model: str | None = None
    """Path of a sentence-embedding ONNX model with `vocab.txt` beside it; hashed n-grams without one."""
    embedding_sha256: str = ""
    """SHA-256 of that model, in hex; a model with another digest is refused, and one that fails its trial in a process
    of its own, with limits: `spanchain validate` tries it too."""


class SequenceTransformerConfig(Section):
    """`detectors/sequence_transformer`: improbability of the order of events."""

    enabled: bool = True
    """Whether this detector runs."""
    model: str = "general"
    """Folder of models, in which `spanchain models promote` names the one in use, also while the service runs; as long
    as none is named, the one that ships with spanchain. `general` for that one alone, `none` for n-grams alone."""
    learn_chains_min: Count = 50
    """Chains of a flow before the order of events is judged (cold start)."""
    lanes_max: Count = 65_536
    """Distinct sequences of logs or calls inside a span that are kept; beyond it the half not seen for longest goes."""
    adopt_s: Positive = 93_600.0
    """Time over which a sequence that comes in anomalous chains only must keep coming before it counts as normal."""
    adopt_repeats: Count = 20
    """Chains with such a sequence before it counts as normal."""


class ContextConfig(Section):
    """`detectors/context`: rules and learned topology."""

    enabled: bool = True
    """Whether this detector runs."""
    rules: tuple[str, ...] = ()
    """Rule files: paths from the working directory, or names of shipped sets (`payments`). What they compare has to be
    among `join.attributes`. A file with a bad rule is refused at start, with its place."""
    window_s: Positive = 90.0
    """Time over which surprises of one element are summed."""
    elements_max: Count = 32_768
    """Operations whose logs and calls are watched, and services; further ones are counted."""
    variants_max: Count = 65_536
    """Different sets of logs or calls that are kept, over all operations."""
    learn_min: Count = 5
    """Spans of an operation before what they write and call can be unusual."""
    shrink: Positive = 5.0
    """Weight of the rate at which anything new is seen, in observations of one operation."""
    least: Annotated[float, Field(ge=0)] = 1.5
    """Surprise (-ln p) up to which a variant counts as usual; it counts in full from `hit` on."""
    hit: Positive = 3.0
    """Surprise from which on a span is one of the unusual ones."""
    chain_surprise: Positive = 6.0
    """Surprise from which on a single span is a finding of its own; in an operation in alarm `hit` suffices."""
    findings_max: Count = 8
    """Findings of one chain."""
    report: Positive = 5.0
    """-ln of the probability of a window from which on it is a finding."""
    hold: Positive = 8.0
    """-ln of the probability of a window from which on the operation learns no more than samples."""
    kept: Probability = 0.995
    """What the dispersion of an element keeps of its past, an epoch."""


class OnlineConfig(Section):
    """`detectors/online`: River learners and robust statistics per operation, edge and slice."""

    enabled: bool = True
    """Whether this detector runs."""
    window_s: Positive = 90.0
    """Time over which surprises of one element are summed."""
    slice_s: Positive = 60.0
    """Time over which a flow is looked at as a whole."""
    elements_max: Count = 16_384
    """Operations, calls and services that are measured; further ones are counted."""
    learn_min: Count = 5
    """Durations of an element before it is compared with its own history rather than with its group's."""
    shrink: Positive = 20.0
    """Weight of the group's tail in an element's own, in observations."""
    prior: Positive = 50.0
    """Weight of the tail believed before anything is seen, in observations."""
    material_ms: Annotated[float, Field(ge=0)] = 5.0
    """A delay below this counts less, however short the chain."""
    material_share: Probability = 0.2
    """Share of the chain's time from which on a delay counts in full."""
    hit: Positive = 3.0
    """Surprise (-ln p) from which on an observation is counted as one of the slow ones."""
    chain_surprise: Positive = 7.0
    """Surprise from which on a chain's element is a finding of its own; of an element in alarm `hit` suffices."""
    findings_max: Count = 8
    """Findings of one chain."""
    report: Positive = 5.0
    """-ln of the probability of a window from which on it is a finding."""
    hold: Positive = 5.0
    """-ln of the probability of a window from which on the element does not learn."""
    kept: Probability = 0.995
    """What the dispersion of an element keeps of its past, an epoch."""


class ShadowConfig(Section):
    """`detectors/shadow`: slow drift of what is normal, against a frozen baseline."""

    enabled: bool = True
    """Whether this detector runs."""
    reference_s: Positive = 86_400.0
    """Time over which the reference of an operation is recorded; then it is frozen."""
    memory_s: Positive = 86_400.0
    """Time over which what is normal now fades: a day, so that day and night are both in it."""
    learn_min: Count = 200
    """Spans of an operation before it is compared."""
    slower_by: Positive = 0.4
    """Least growth of the typical self time that matters: 0.4 is 40 %."""
    errors_by: Probability = 0.02
    """Least growth of the share of errors that matters."""
    report: Positive = 15.0
    """-ln of the probability of a difference from which on it is a finding."""
    adopt_s: Positive = 93_600.0
    """Time for which a difference is reported before it becomes the new reference; more than a day."""


class DetectorsConfig(Section):
    """One section a detector."""

    chain_sequence: ChainSequenceConfig = ChainSequenceConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    sequence_transformer: SequenceTransformerConfig = SequenceTransformerConfig()
    context: ContextConfig = ContextConfig()
    online: OnlineConfig = OnlineConfig()
    shadow: ShadowConfig = ShadowConfig()
