"""Cost and worth of a run, worked out before any compute is spent: one frozen `Plan`."""

from dataclasses import dataclass, field, fields, is_dataclass, replace

from mypt.planning.checks import FAILED, Check, check_plan
from mypt.planning.disk import Disk, Saving, plan_disk
from mypt.planning.evaluation_budget import Evaluation, plan_evaluation
from mypt.planning.fit import RECIPE_FLAGS, Memory, plan_memory
from mypt.planning.optimizer import Choice, muon_flops
from mypt.planning.parameters import count_parameters, frozen_parameters, parameter_report
from mypt.planning.scaling import TOKENS_PER_PARAMETER, Interval, Optimum, flops_per_token
from mypt.planning.step import Step
from mypt.planning.time import Assumption, Measured, Speed, Time, assumed_speed, given_speed, plan_time
from mypt.planning.verdict import Coverage, DataSource, assess


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run as it is known before it starts.

    Attributes:
        batch_size, accumulation: Sequences per process and pass; passes per step.
        block_size, processes: Tokens per sequence; processes, one per device.
        settings: The other fields of `mypt.planning.step.Step`.
        steps, reason: Optimizer steps, and why so many.
        sources: The training data; None where its size is not known.
        dimensions, parameters: MyPTConfig fields; without them the number of parameters.
        available: Bytes of memory on one device; device_name: it in words, where it is one that is here.
        tokens_per_second, speed, assumption: The speed, the first of them that is given: a rate over all processes;
            one that was measured or recorded; a share of the devices' peak.
        measured: Shown as it is.
        price: Of one device for one hour.
        text: As `mypt.planning.time.plan_time` takes it.
        evaluation: Arguments of `plan_evaluation`, those of the run left out; None without evaluation sets.
        evaluation_batch: Windows in a forward pass of an evaluation, for the memory; None without evaluation sets.
        eval_sets: Tokens of each evaluation set, None where they are not known.
        shared_text: Evaluation sets whose text is in the training data, with the share in words.
        saving: The recipe's settings of its run folder.
        init_from: The model that the run starts from; None for random weights.
        flags, smaller: As `mypt.planning.fit.knobs` takes them.
        target, notes, choices: As `Plan` has them.
    """

    batch_size: int
    block_size: int
    accumulation: int = 1
    processes: int = 1
    settings: dict = field(default_factory=dict)
    steps: int | None = None
    reason: str | None = None
    sources: list[DataSource] | None = None
    dimensions: dict | None = None
    parameters: int | None = None
    available: int | None = None
    device_name: str = ""
    tokens_per_second: float | None = None
    speed: Speed | None = None
    assumption: Assumption | None = None
    measured: Measured | None = None
    price: float | None = None
    text: int = 0
    evaluation: dict | None = None
    evaluation_batch: int | None = None
    eval_sets: dict[str, int | None] = field(default_factory=dict)
    shared_text: dict[str, str] = field(default_factory=dict)
    saving: Saving | None = None
    init_from: str | None = None
    flags: dict[str, str] = field(default_factory=lambda: RECIPE_FLAGS)
    smaller: dict[str, dict] = field(default_factory=dict)
    target: str | None = None
    notes: list[str] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        """Sequences of the global batch."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def step(self) -> Step | None:
        """A training step on one device; None without dimensions. Raises MyPTError for settings that do not fit."""
        if not self.dimensions:
            return None
        sizes = {"micro_batch_size": self.batch_size, "block_size": self.block_size, "accumulation": self.accumulation}
        return Step(**sizes, **self.settings)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Length and batch of a run, over all processes; compute_optimal_tokens: None for adapters and unknown models."""

    steps: int | None
    tokens_per_step: int
    block_size: int
    compute_optimal_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Compute:
    """FLOPs of a run, over all processes; Muon's share is of one step."""

    flops_per_token: int
    flops: int
    muon_flops_per_step: int | None = None
    muon_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A plan in one row of a comparison; what is not known is None.

    Attributes:
        name: The preset or the number of steps.
        steps, parameters: Of the run and its model.
        coverage: Passes over the main source.
        effective_tokens: The viewed tokens in fresh ones.
        tokens_per_parameter, predicted_loss: As `mypt.planning.verdict.Worth` has them.
        memory: Bytes of a training step on one device; fits: whether they are there.
        flops, seconds: Of the run.
    """

    name: str
    steps: int | None = None
    parameters: int | None = None
    coverage: float | None = None
    effective_tokens: int | None = None
    tokens_per_parameter: float | None = None
    predicted_loss: float | None = None
    memory: int | None = None
    fits: bool | None = None
    flops: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The forecast of a run by a ladder's law, in the place of the generic one.

    Attributes:
        folder: The ladder's.
        loss: Nats per token at the end, with its interval.
        beyond: How many times the largest rung's parameters, tokens and compute the run has.
        optimum: The best size for the run's compute.
        generic_loss: By the generic law.
    """

    folder: str
    loss: Interval
    beyond: dict[str, float]
    optimum: Optimum
    generic_loss: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run.

    Attributes:
        target: The recipe, preset or checkpoint that is planned.
        notes: What had to be assumed or left out.
        choices: What training will choose on this machine, by the names under which it prints them.
        reason: Why the run has this number of steps.
        training: Steps and tokens.
        parameters: As `count_parameters` or `parameter_report` returns them, or the total alone.
        coverage: How often the data is seen.
        ladder: The loss by a ladder of the same data; None without one.
        compute: FLOPs.
        time: Of every part, and the cost, where a speed is known.
        measured: What a few real steps took.
        memory: Bytes of one device.
        evaluation: How often and on how many windows the run is evaluated.
        disk: Bytes of the run folder.
        checks: Whether the run can work and is worth it, and what to change.
        alternatives: The same run with other presets or other numbers of steps, this one first.
    """

    target: str | None
    notes: list[str]
    choices: dict[str, Choice]
    reason: str | None
    training: Training
    parameters: dict[str, int] | None = None
    coverage: Coverage | None = None
    ladder: Forecast | None = None
    compute: Compute | None = None
    time: Time | None = None
    measured: Measured | None = None
    memory: Memory | None = None
    evaluation: Evaluation | None
    disk: Disk | None = None
    checks: list[Check] = field(default_factory=list)
    alternatives: list[Alternative] | None = None

    @property
    def works(self) -> bool:
        """Whether no check has failed."""
        return all(check.level != FAILED for check in self.checks)

    def as_dict(self) -> dict:
        """JSON-ready figures; a section or figure that is not known is left out."""
        return as_dict(self)


def as_dict(value):
    """Dataclasses and named tuples as dicts, at any depth; a field is left out where it has its default of None."""
    if is_dataclass(value):
        shown = [(each.name, getattr(value, each.name), each.default) for each in fields(value)]
        return {name: as_dict(held) for name, held, default in shown if held is not None or default is not None}
    if isinstance(value, Choice):
        return value._asdict()
    if isinstance(value, dict):
        return {name: as_dict(held) for name, held in value.items()}
    return [as_dict(held) for held in value] if isinstance(value, list | tuple) else value


def plan(run: PlannedRun) -> Plan:
    """Everything that can be worked out from what is given. Raises MyPTError as the parts do."""
    step, steps = run.step, run.steps
    counts = _counts(run)
    training = Training(
        steps=steps,
        tokens_per_step=run.sequences * run.block_size,
        block_size=run.block_size,
        # The rule is about training from scratch.
        compute_optimal_tokens=TOKENS_PER_PARAMETER * counts["total"] if counts and "adapters" not in counts else None,
    )
    compute = _compute(run, training, counts) if counts and steps else None
    memory = None
    if step:
        memory = plan_memory(run.dimensions, step, run.available, run.flags, run.smaller, run.evaluation_batch)
    evaluation = None
    if run.evaluation and steps:
        length = {"steps": steps, "sequences": run.sequences, "block_size": run.block_size}
        evaluation = plan_evaluation(**length, **run.evaluation)
    disk = None
    if step and steps:
        evaluated, saving = bool(run.evaluation), run.saving or Saving()
        disk = plan_disk(run.dimensions, step, steps=steps, evaluated=evaluated, saving=saving)
    coverage = assess(run.sources, training.tokens_per_step, steps, 0, counts) if run.sources and steps else None
    found = Plan(
        target=run.target,
        notes=run.notes,
        choices=run.choices,
        reason=run.reason,
        training=training,
        parameters=counts,
        coverage=coverage,
        compute=compute,
        time=_time(run, training, compute, evaluation, disk),
        measured=run.measured,
        memory=memory,
        evaluation=evaluation,
        disk=disk if run.saving else None,
    )
    return replace(found, checks=check_plan(found, run))


def alternative(name: str, plan: Plan) -> Alternative:
    """The row of a plan."""
    seen, memory, compute = plan.coverage, plan.memory, plan.compute
    predicted = plan.ladder.loss.middle if plan.ladder else seen and seen.scaling.predicted_loss
    return Alternative(
        name=name,
        steps=plan.training.steps,
        parameters=(plan.parameters or {}).get("total"),
        coverage=seen and seen.coverage,
        effective_tokens=seen and seen.scaling.effective_tokens,
        tokens_per_parameter=seen and seen.scaling.tokens_per_parameter,
        predicted_loss=predicted,
        memory=memory and memory.training["total"],
        fits=memory and memory.fits,
        flops=compute and compute.flops,
        seconds=plan.time and plan.time.seconds,
    )


def _time(
    run: PlannedRun, training: Training, compute: Compute | None, evaluation: Evaluation | None, disk: Disk | None
) -> Time | None:
    """None where no speed is known."""
    speed = run.speed
    if run.tokens_per_second:
        speed = given_speed(run.tokens_per_second, training.tokens_per_step)
    elif not speed and run.assumption and compute:
        speed = assumed_speed(run.assumption, compute.flops / run.steps)
    if not (speed and run.steps):
        return None
    return plan_time(
        speed,
        steps=run.steps,
        save_steps=run.saving.save_steps if run.saving else None,
        checkpoint=disk.weights + disk.optimizer if disk else None,
        windows=evaluation.forward if evaluation else 0,
        evaluation_share=_evaluation_share(evaluation, compute),
        text=run.text,
        devices=run.processes,
        price=run.price,
    )


def _evaluation_share(evaluation: Evaluation | None, compute: Compute | None) -> float:
    """Compute of all evaluations by that of all steps, the optimizer's included."""
    if evaluation is None:
        return 0.0
    passes = 1 - ((compute and compute.muon_share) or 0.0)
    return evaluation.share / (1 - evaluation.share) * passes


def _counts(run: PlannedRun) -> dict[str, int] | None:
    """`count_parameters`, and where not all of them are trained, how many are, with the adapters that LoRA adds."""
    dimensions, step = run.dimensions, run.step
    if not step:
        return {"total": run.parameters} if run.parameters else None
    frozen = frozen_parameters(dimensions, step.freeze_layers, step.freeze_embeddings)
    if not step.lora and not frozen:
        return count_parameters(dimensions)
    report = parameter_report(dimensions, step.lora, frozen)
    return {name: number for name, number in report.items() if name != "per_layer"}


def _compute(run: PlannedRun, training: Training, counts: dict) -> Compute:
    tokens, per_token, step = training.steps * training.tokens_per_step, 6 * counts["total"], run.step
    if step:
        per_token = flops_per_token(run.dimensions, step.block_size, counts.get("adapters", 0))
    flops, muon, share = per_token * tokens, None, None
    if step and step.optimizer == "muon":
        muon = muon_flops(run.dimensions, step.ns_steps, step.freeze_layers) * run.processes // step.fsdp
        share = muon / (muon + per_token * training.tokens_per_step)
        flops += training.steps * muon
    return Compute(flops_per_token=per_token, flops=flops, muon_flops_per_step=muon, muon_share=share)
