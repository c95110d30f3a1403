"""Which ways of spreading a training over devices fit into their memory, and how long a step takes in each.

Memory comes from `mg.parallel.plan_memory`, communication and time from `mg.parallel.plan_time`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mg.config.parallel import AXES
from mg.config.plan import PlanConfig
from mg.errors import UserError
from mg.models.llama.config import PRESETS, LlamaConfig, count_parameters
from mg.parallel.dims import ParallelDims
from mg.parallel.plan_memory import Memory, Shares, Weights, memory
from mg.parallel.plan_time import Traffic, floating_operations, seconds, traffic


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way: degrees, and what follows for each device."""

    dims: ParallelDims
    rows: int
    """Videos per step, over all devices and micro-batches."""
    memory: Memory
    """In bytes."""
    traffic: Traffic
    """Bytes that a device sends in a step."""
    compute_seconds: float
    exchange_seconds: float
    """Time for communication that computation does not hide."""
    fits: bool

    @property
    def step_seconds(self) -> float:
        """Predicted time of a step."""
        return self.compute_seconds + self.exchange_seconds

    @property
    def rows_per_second(self) -> float:
        """Predicted videos per second."""
        return self.rows / self.step_seconds

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            **asdict(self.dims),
            "rows": self.rows,
            "fits": self.fits,
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "traffic": {**asdict(self.traffic), "total": self.traffic.total},
            "compute_seconds": self.compute_seconds,
            "exchange_seconds": self.exchange_seconds,
            "step_seconds": self.step_seconds,
            "rows_per_second": self.rows_per_second,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All layouts of a training: those that fit by predicted videos per second, then the others by memory."""

    config: PlanConfig
    model: LlamaConfig
    tokens: int
    parameters: int
    operations: float
    """Floating-point operations for one video: forward, backward, and recomputation where it is on."""
    layouts: Sequence[Layout]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "config": asdict(self.config),
            "tokens": self.tokens,
            "parameters": self.parameters,
            "operations_per_row": self.operations,
            "layouts": [layout.to_dict() for layout in self.layouts],
        }


def make_plan(config: PlanConfig) -> Plan:
    """Consider every layout that divides heads, tokens and rows evenly.

    Raises:
        UserError: the size is beyond the model's position tables, or nothing divides evenly.
    """
    model = PRESETS[config.model if config.model == "tiny" else f"llama-{config.model}"]
    t, h, w = model.tokens(*config.latent)
    tokens = t * h * w
    weights = Weights.of(model)
    layouts = []
    for dims in candidates(config, model, tokens):
        groups = dims.size("batch")
        rows = (config.batch_size or groups) // groups
        shares = Shares.of(config, tokens, dims, rows)
        needed = memory(config, model, weights, dims, shares)
        sent = traffic(config, model, weights, dims, shares)
        compute, exchange = seconds(config, model, dims, shares, sent)
        layouts.append(Layout(
            dims=dims,
            rows=rows * groups * config.accumulation,
            memory=needed,
            traffic=sent,
            compute_seconds=compute,
            exchange_seconds=exchange,
            fits=needed.total <= config.device.memory_gb * 1e9 * config.device.usable,
        ))  # fmt: skip
    if not layouts:
        raise UserError(
            f"devices={config.devices}: no layout divides {model.num_attention_heads} heads, {tokens} tokens and "
            f"batch_size={config.batch_size} evenly; change devices, size, frames or batch_size"
        )
    layouts.sort(key=lambda one: (0, -one.rows_per_second, one.memory.total) if one.fits else (1, one.memory.total))
    return Plan(
        config=config, model=model, tokens=tokens, parameters=count_parameters(model),
        operations=floating_operations(config, model, tokens), layouts=layouts,
    )  # fmt: skip


def candidates(config: PlanConfig, model: LlamaConfig, tokens: int) -> Iterator[ParallelDims]:
    """Yield the layouts that divide everything evenly; zero above 1 only where there is a stage to use it."""
    for degrees in _products(config.devices, len(AXES)):
        named = dict(zip(AXES, degrees, strict=True))
        context, sequence, tensor = named["context"], named["sequence"], named["tensor"]
        batch = named["data"] * named["zero"]
        if config.batch_size is not None and config.batch_size % batch:
            continue
        if tokens % (context * sequence * tensor):
            continue
        if model.num_attention_heads % (tensor * sequence) or model.kv_heads % tensor:
            continue
        if model.intermediate_size % tensor:
            continue
        divided = named["zero"] * context * sequence
        for stage in config.zero_stages:
            if (stage > 0) == (divided > 1) or (stage == 0 and named["zero"] == 1):
                yield ParallelDims(**named, zero_stage=stage)


def _products(number: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (number,)
        return
    for first in (value for value in range(1, number + 1) if number % value == 0):
        for rest in _products(number // first, count - 1):
            yield (first, *rest)


def table(plan: Plan) -> list[str]:
    """Return lines for a terminal: the training, then the layouts in the plan's order."""
    config, device = plan.config, plan.config.device
    fitting = sum(layout.fits for layout in plan.layouts)
    frames, height, width = config.latent
    lines = [
        f"{config.model}: {plan.parameters:,} parameters, {plan.tokens:,} tokens per video (latent {frames}x{height}x"
        f"{width}), {plan.operations / 1e15:.3g} PFLOP per video",
        f"{config.devices} devices of {device.memory_gb:g} GB ({device.usable:.0%} usable), {device.tflops:g} TFLOPS "
        f"at {device.efficiency:.0%}: {fitting} of {len(plan.layouts)} layouts fit",
        "GB per device; seconds of a step (of them communication); videos per second. Predicted, not measured.",
        "data zero ctx  seq tens stage | weights  grads  optim   kept gather  activ  total fits |   sent GB   step s "
        "(comm)   rows/s",
    ]  # fmt: skip
    shown = plan.layouts[: config.top]
    lines += [_line(layout) for layout in shown]
    if len(shown) < len(plan.layouts):
        lines.append(f"... and {len(plan.layouts) - len(shown)} more (--top, --output)")
    return lines


def _line(layout: Layout) -> str:
    dims = layout.dims
    degrees = " ".join(f"{getattr(dims, axis):>4}" for axis in AXES)
    parts = [getattr(layout.memory, part.name) for part in fields(Memory)]
    shown = " ".join(f"{part / 1e9:>6.1f}" for part in [*parts, layout.memory.total])
    return (
        f"{degrees} {dims.zero_stage:>5} | {shown} {'yes' if layout.fits else 'no':>4} | "
        f"{layout.traffic.total / 1e9:>9.1f} {layout.step_seconds:>8.2f} ({layout.exchange_seconds:.2f}) "
        f"{layout.rows_per_second:>8.3g}"
    )
