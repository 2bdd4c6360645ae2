"""Build the Grafana dashboards: `python metrics/build_dashboards.py` writes metrics/grafana/dashboards/*.json.

Edit here and build again, never the JSON. Needs grafana-foundation-sdk (`pip install 'dtrain[dev]'`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

RUN, RANK = 'run=~"$run"', 'run=~"$run", rank=~"$rank"'
GRADIENT = 'phase="train", purpose="gradient"'
BYTES, PER_SECOND, SECONDS, TIMES, RATIO, COUNT = "decbytes", "Bps", "s", "suffix:x", "percentunit", "short"
IMAGES = "suffix: images/s"

LOOK_EVERY, LOOK_BACK = "15s", "20s"
"""How often an annotation's query looks back, and how far: a scrape more, so that no change lies between two looks."""

Query = tuple[str, str]
"""An expression and the legend of its series."""


def total(metric: str, labels: str = RUN) -> str:
    """A counter of runs that may have ended: its last value in the range that is shown, wherever it was scraped."""
    return f"max without (instance, job) (last_over_time({metric}{{{labels}}}[$__range]))"


def rate(metric: str, labels: str) -> str:
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def per_step(metric: str, ranks: str = RUN, only: str = "") -> str:
    """Of a rank on average: what a counter grew by over what the number of its steps did."""
    grown, steps = rate(metric, f"{ranks}, {only}" if only else ranks), rate("dtrain_steps_total", ranks)
    return f"sum by (run) ({grown}) / (sum by (run) ({steps}) > 0)"


def targets(queries: Sequence[Query], *, instant: bool = False) -> list[prometheus.Dataquery]:
    built = []
    for number, (expression, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
        query = query.datasource(SOURCE)
        built.append(query.instant() if instant else query.range())
    return built


def graph(
    title: str, description: str, unit: str, *queries: Query, width: int = 12, stacked: bool = False, log: bool = False
) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(9)
        .line_width(1)
        .fill_opacity(40 if stacked else 0)
        .show_points(options.VisibilityMode.NEVER)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull"])
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if log:
        scale = common.ScaleDistributionConfig().type(options.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    elif unit != COUNT:
        panel = panel.min(0)
    for target in targets(queries):
        panel = panel.with_target(target)
    return panel


def number(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 4,
    steps: Sequence[tuple[float | None, str]] = ((None, "blue"),),
    decimals: int | None = None,
    name_only: bool = False,
) -> stat.Panel:
    thresholds = (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=color) for value, color in steps])
    )
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(4)
        .color_mode(options.BigValueColorMode.VALUE)
        .graph_mode(options.BigValueGraphMode.NONE)
        .thresholds(thresholds)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .no_value("-")
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    if name_only:
        panel = panel.text_mode(options.BigValueTextMode.NAME)
    for target in targets(queries, instant=True):
        panel = panel.with_target(target)
    return panel


def bars(
    title: str, description: str, unit: str, query: Query, *, width: int = 12, decimals: int = 1
) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(9)
        .min(0)
        .decimals(decimals)
        .orientation(options.VizOrientation.HORIZONTAL)
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .thresholds(
            dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value=None, color="blue")])
        )
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .with_target(targets([query], instant=True)[0])
    )


def columns(title: str, description: str, *queries: tuple[str, str, str], width: int = 24) -> table.Panel:
    """A row a run; `queries` are an expression, the name of its column and its unit. The first gives labels alone."""
    panel = table.Panel().title(title).description(description).datasource(SOURCE).span(width).height(9).min_width(60)
    names = {"run": "run", "model": "model", "compressor": "compressor", "world_size": "ranks"}
    for letter, (expression, name, unit) in zip("ABCDEFGHIJKL"[: len(queries)], queries, strict=True):
        query = prometheus.Dataquery().expr(expression).datasource(SOURCE).ref_id(letter).instant()
        panel = panel.with_target(query.format(PromQueryFormat.TABLE))
        names[f"Value #{letter}"] = name
        panel = panel.override_by_name(name, [DynamicConfigValue(id_val="unit", value=unit)])
    left_out = {"Time": True, "Value #A": True}
    organise = {"excludeByName": left_out, "renameByName": names}
    panel = panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    return panel.with_transformation(DataTransformerConfig(id_val="organize", options=organise))


def variable(name: str, query: str, description: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .description(description)
        .datasource(SOURCE)
        .query({"query": query, "refId": "variable"})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


RANKS = variable("rank", 'label_values(dtrain_run_info{run=~"$run"}, rank)', "Ranks of these runs")


def annotation(name: str, color: str, counter: str) -> dashboard.AnnotationQuery:
    """Where a counter grew, or was first seen with something counted."""
    grew = f"{counter} > 0 unless {counter} offset {LOOK_EVERY} or changes({counter}[{LOOK_BACK}]) > 0"
    return dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color).expr(grew)


def board(uid: str, title: str, description: str) -> dashboard.Dashboard:
    checkpoints = f'dtrain_collectives_total{{{RUN}, rank="0", phase="checkpoint"}}'
    links = dashboard.DashboardLink("dtrain").type(DashboardLinkType.DASHBOARDS).tags(["dtrain"])
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["dtrain"])
        .editable()
        .refresh("5s")
        .time("now-15m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(links.keep_time(True).include_vars(True))
        .with_variable(dashboard.DatasourceVariable("datasource").label("data source").type("prometheus"))
        .with_variable(variable("run", "label_values(dtrain_run_info, run)", "Runs, by the names of their folders"))
        .annotation(annotation("restarts", "red", f"dtrain_restarts_total{{{RUN}}}"))
        .annotation(annotation("checkpoints", "purple", checkpoints))
    )


def bandwidth() -> dashboard.Dashboard:
    sent = total("dtrain_wire_bytes_total", f"{RUN}, {GRADIENT}")
    dense, every = total("dtrain_dense_bytes_total"), total("dtrain_wire_bytes_total")
    steps = total("dtrain_steps_total")
    good = ((None, "text"), (1.0, "yellow"), (1.5, "green"))
    near = ((None, "text"), (0.001, "red"), (0.9, "green"), (1.1, "yellow"))
    by_step = per_step("dtrain_wire_bytes_total", only=GRADIENT)
    dense_by_step = per_step("dtrain_dense_bytes_total")
    steps_rate, rounds_rate = rate("dtrain_steps_total", RUN), rate("dtrain_rounds_total", RUN)
    return (
        board("dtrain-bandwidth", "dtrain / Bandwidth", "What the ranks of a run send, and what its compressor saves.")
        .with_variable(RANKS)
        .with_panel(
            number(
                "Saving, whole run",
                "Bytes that a dense fp32 all_reduce of the gradients would send over those sent, warm-up included.",
                TIMES,
                (f"sum by (run) ({dense}) / sum by (run) ({sent})", "{{run}}"),
                steps=good,
                decimals=1,
                width=6,
            )
        )
        .with_panel(
            number(
                "Sent for gradients, a rank and step",
                "Wire bytes: what a rank must send, by the collective's algorithm. On average over ranks and steps.",
                BYTES,
                (f"sum by (run) ({sent}) / sum by (run) ({steps})", "{{run}}"),
                width=6,
            )
        )
        .with_panel(
            number(
                "Dense it would be",
                "What a rank would send in a step for a dense fp32 all_reduce of the same gradients.",
                BYTES,
                (f"sum by (run) ({dense}) / sum by (run) ({steps})", "{{run}}"),
                steps=((None, "text"),),
            )
        )
        .with_panel(
            number(
                "Sent in all",
                "By all ranks, whatever for: gradients, the first parameters, metrics.",
                BYTES,
                (f"sum by (run) ({every})", "{{run}}"),
            )
        )
        .with_panel(
            number(
                "Kernel / counted",
                "What the kernel saw leave on the job's interface over what was counted: with framing 1.00 to 1.07, "
                "more with messages of a few KB. No data where no interface carries this job alone.",
                TIMES,
                ("run:dtrain_nic_over_wire:ratio_rate1m{" + RUN + "}", "{{run}}"),
                steps=near,
                decimals=3,
            )
        )
        .with_panel(
            graph(
                "A step's bytes: dense and sent",
                "Of a rank, on average. The gap is what the compressor saves; the scale is logarithmic.",
                BYTES,
                (by_step, "{{run}} sent"),
                (dense_by_step, "{{run}} dense fp32"),
                log=True,
            )
        )
        .with_panel(
            graph(
                "Saving",
                "Dense over sent, in the last minute and over the whole run so far. fp16 would be 2x.",
                TIMES,
                ("run:dtrain_saving:ratio_rate1m{" + RUN + "}", "{{run}} now"),
                ("run:dtrain_saving:ratio{" + RUN + "}", "{{run}} whole run"),
                log=True,
            )
        )
        .with_panel(
            graph(
                "On the wire, by rank",
                "Bytes that each rank sends, whatever for.",
                PER_SECOND,
                (f"sum by (run, rank) ({rate('dtrain_wire_bytes_total', RANK)})", "{{run}} rank {{rank}}"),
            )
        )
        .with_panel(
            graph(
                "Kernel and counted",
                "The job's interface, all hosts together: what the kernel saw leave and arrive, and what was counted. "
                "No data where no interface carries this job alone.",
                PER_SECOND,
                (f"sum by (run) ({rate('dtrain_nic_transmit_bytes_total', RUN)})", "{{run}} kernel, sent"),
                (f"sum by (run) ({rate('dtrain_nic_receive_bytes_total', RUN)})", "{{run}} kernel, received"),
                (f"sum by (run) ({rate('dtrain_wire_bytes_total', RUN)})", "{{run}} counted"),
            )
        )
        .with_panel(
            graph(
                "On the wire, by operation",
                "Of all ranks that are chosen.",
                PER_SECOND,
                (f"sum by (run, op) ({rate('dtrain_wire_bytes_total', RANK)}) > 0", "{{run}} {{op}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "On the wire, by purpose",
                "Gradients, parameters (the broadcast at the start), metrics, control.",
                PER_SECOND,
                (
                    f"sum by (run, phase, purpose) ({rate('dtrain_wire_bytes_total', RANK)}) > 0",
                    "{{run}} {{phase}}: {{purpose}}",
                ),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Steps for each round",
                "A round is one exchange: of each step's gradients, or of what several steps changed (sync=local).",
                COUNT,
                (f"sum by (run) ({steps_rate}) / (sum by (run) ({rounds_rate}) > 0)", "{{run}}"),
            )
        )
        .with_panel(
            graph(
                "Sent in a round",
                "Of a rank, on average. Fewer rounds save what each of them would have sent.",
                BYTES,
                (
                    f"sum by (run) ({rate('dtrain_wire_bytes_total', f'{RUN}, {GRADIENT}')})"
                    f" / (sum by (run) ({rounds_rate}) > 0)",
                    "{{run}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Effective bandwidth",
                "Bytes a second and rank while collectives are under way, by the rank that waits least in them.",
                PER_SECOND,
                ("run:dtrain_effective_bandwidth:rate1m{" + RUN + "}", "{{run}}"),
            )
        )
        .with_panel(
            bars(
                "Bytes a step for each parameter",
                "Gradient bytes that a rank sends in a step over trainable parameters: dense fp32 is 4 at 2 ranks and "
                "8 (n - 1) / n at n. The paper's claim is that bytes go with parameters; this is the factor.",
                "none",
                (
                    f"sum by (run) ({sent}) / sum by (run) ({steps})"
                    f" / on (run) sum by (run) ({total('dtrain_model_parameters')})",
                    "{{run}}",
                ),
                decimals=3,
            )
        )
    )


def training() -> dashboard.Dashboard:
    quantile = f"sum by (run, le) ({rate('dtrain_step_seconds_bucket', RUN)})"
    step = per_step("dtrain_step_seconds_sum")
    exposed = per_step("dtrain_exposed_comm_seconds_total")
    first = RUN + ', rank="0"'
    return (
        board("dtrain-training", "dtrain / Training", "How a run learns, and where the time of its steps goes.")
        .with_variable(RANKS)
        .with_panel(
            number(
                "Test loss",
                "Of the last test.",
                COUNT,
                (total("dtrain_loss", RUN + ', split="test"'), "{{run}}"),
                decimals=3,
            )
        )
        .with_panel(
            number(
                "Test accuracy",
                "Top-1, of the last test.",
                RATIO,
                (total("dtrain_accuracy_ratio", RUN + ', split="test"'), "{{run}}"),
                decimals=1,
            )
        )
        .with_panel(
            number(
                "Steps and rounds",
                "So far. A round is an exchange: one a step, or of what several steps changed.",
                COUNT,
                (f"max by (run) ({total('dtrain_steps_total')})", "{{run}} steps"),
                (f"max by (run) ({total('dtrain_rounds_total')})", "{{run}} rounds"),
            )
        )
        .with_panel(
            number(
                "Images a second", "Of all ranks.", COUNT, (total("dtrain_images_per_second"), "{{run}}"), decimals=0
            )
        )
        .with_panel(
            number(
                "Ranks",
                "That answer now, of those that the run started with: fewer is an alert.",
                COUNT,
                (f"count by (run) (dtrain_world_size{{{RUN}}})", "{{run}}"),
            )
        )
        .with_panel(
            number(
                "Waiting for the exchange",
                "The share of steps' time that is exposed communication: not hidden behind backward.",
                RATIO,
                ("run:dtrain_exposed_comm:ratio_rate1m{" + RUN + "}", "{{run}}"),
                steps=((None, "green"), (0.2, "yellow"), (0.5, "red")),
                decimals=0,
            )
        )
        .with_panel(
            graph(
                "Loss",
                "Mean over all ranks; train at logging points, test over the whole test set.",
                COUNT,
                (f"dtrain_loss{{{RUN}}}", "{{run}} {{split}}"),
            )
        )
        .with_panel(graph("Accuracy", "Top-1.", RATIO, (f"dtrain_accuracy_ratio{{{RUN}}}", "{{run}} {{split}}")))
        .with_panel(
            graph(
                "Where a step's time goes",
                "Computing and exposed communication add up to the step. On average over ranks.",
                SECONDS,
                (f"({step}) - ({exposed})", "{{run}} computing"),
                (exposed, "{{run}} exposed communication"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Behind it",
                "Most of it hidden behind backward: time in the compressor (a rank's average), and of the collectives "
                "what the transfer took and what ranks waited in them for the last one.",
                SECONDS,
                (per_step("dtrain_codec_seconds_total"), "{{run}} codec"),
                (per_step("dtrain_transfer_seconds_total", first), "{{run}} transfer"),
                (per_step("dtrain_straggler_wait_seconds_total", first), "{{run}} straggler wait"),
            )
        )
        .with_panel(
            graph(
                "Step time",
                "Quantiles over ranks, from a histogram.",
                SECONDS,
                (f"histogram_quantile(0.5, {quantile})", "{{run}} median"),
                (f"histogram_quantile(0.95, {quantile})", "{{run}} 95%"),
            )
        )
        .with_panel(
            graph(
                "Stragglers: what each rank computes in a step",
                "A step's time without what the rank waited. All ranks wait for the slowest.",
                SECONDS,
                ("rank:dtrain_busy_seconds_per_step:ratio_rate1m{" + RANK + "}", "{{run}} rank {{rank}}"),
            )
        )
        .with_panel(
            graph(
                "Images a second",
                "Of all ranks, at logging points.",
                IMAGES,
                (f"dtrain_images_per_second{{{RUN}}}", "{{run}}"),
            )
        )
        .with_panel(
            graph(
                "The model in bytes",
                "fp32: 4 for each parameter. exchanged: 4 for each number left to exchange, which falls when a phase "
                "prunes or shares weights. packed: the .dtz file of a run in phases, at its end.",
                BYTES,
                (f"dtrain_model_bytes{{{RUN}}}", "{{run}} {{form}}"),
            )
        )
    )


def compare() -> dashboard.Dashboard:
    sent, dense = total("dtrain_wire_bytes_total", f"{RUN}, {GRADIENT}"), total("dtrain_dense_bytes_total")
    steps = total("dtrain_steps_total")
    test = RUN + ', split="test"'
    so_far = f"sum by (run) (dtrain_wire_bytes_total{{{RUN}, {GRADIENT}}})"
    reached = f"{so_far} and on (run) dtrain_loss{{{RUN}}} <= $loss"
    info = f'last_over_time(dtrain_run_info{{{RUN}, rank="0"}}[$__range])'
    return (
        board("dtrain-compare", "dtrain / Compare", "Runs side by side: what each needed to learn as much.")
        .with_variable(
            dashboard.TextBoxVariable("loss")
            .label("loss to reach")
            .description("Training or test loss, whichever gets there first")
            .default_value("1.0")
            .current(VariableOption(selected=True, text="1.0", value="1.0"))
        )
        .with_panel(
            columns(
                "Runs",
                "Bytes are of gradients, a rank's average; the saving is over the whole run.",
                (f"sum by (run, model, compressor, world_size) ({info})", "", "none"),
                (f"sum by (run) ({total('dtrain_model_parameters')})", "parameters", COUNT),
                (f"sum by (run) ({sent}) / sum by (run) ({steps})", "bytes sent a step", BYTES),
                (f"sum by (run) ({dense}) / sum by (run) ({sent})", "saving", TIMES),
                (f"sum by (run) ({total('dtrain_wire_bytes_total')})", "sent in all", BYTES),
                (f"max by (run) ({steps})", "steps", COUNT),
                (f"max by (run) ({total('dtrain_loss', test)})", "test loss", COUNT),
                (f"max by (run) ({total('dtrain_accuracy_ratio', test)})", "test accuracy", RATIO),
                (
                    f"sum by (run) ({total('dtrain_step_seconds_sum')}) / "
                    f"sum by (run) ({total('dtrain_step_seconds_count')})",
                    "step time",
                    SECONDS,
                ),
            )
        )
        .with_panel(
            bars(
                "Bytes to a loss of $loss",
                "What all ranks had sent for gradients when the loss was first there. A run that did not get there is "
                "not shown.",
                BYTES,
                (f"min_over_time(({reached})[$__range:5s])", "{{run}}"),
            )
        )
        .with_panel(
            bars(
                "Bytes a step",
                "Of a rank, for gradients.",
                BYTES,
                (f"sum by (run) ({sent}) / sum by (run) ({steps})", "{{run}}"),
            )
        )
        .with_panel(graph("Loss", "Over time.", COUNT, (f"dtrain_loss{{{RUN}}}", "{{run}} {{split}}")))
        .with_panel(
            graph("Accuracy", "Top-1, over time.", RATIO, (f"dtrain_accuracy_ratio{{{RUN}}}", "{{run}} {{split}}"))
        )
        .with_panel(graph("Sent so far", "For gradients, by all ranks.", BYTES, (so_far, "{{run}}"), log=True))
        .with_panel(
            graph(
                "Step time",
                "The mean of the last minute.",
                SECONDS,
                ("run:dtrain_step_seconds:mean_rate1m{" + RUN + "}", "{{run}}"),
            )
        )
    )


def job() -> dashboard.Dashboard:
    measured = per_step("dtrain_step_seconds_sum")
    predicted, dense, half = (
        f'max by (run) (dtrain_plan_step_seconds{{{RUN}, exchange="{exchange}"}})'
        for exchange in ("chosen", "dense", "fp16")
    )
    counted = (
        ("groups", "dtrain_groups_total"),
        ("lost", "dtrain_workers_lost_total"),
        ("joined", "dtrain_workers_joined_total"),
    )
    return (
        board(
            "dtrain-job",
            "dtrain / Job",
            "What compressor=auto predicted and what came of it; workers that come and go.",
        )
        .annotation(annotation("workers lost", "orange", f"dtrain_workers_lost_total{{{RUN}}}"))
        .annotation(annotation("workers joined", "green", f"dtrain_workers_joined_total{{{RUN}}}"))
        .with_panel(
            number(
                "Chosen",
                "What compressor=auto exchanges with now. No data of a run that names its compressor.",
                "none",
                (f"group by (run, method) (dtrain_plan_info{{{RUN}}})", "{{run}}: {{method}}"),
                width=8,
                name_only=True,
            )
        )
        .with_panel(
            number(
                "Measured / predicted",
                "A step as it is over what the plan predicted with its choice: 1 is a plan that holds.",
                TIMES,
                (f"({measured}) / on (run) {predicted}", "{{run}}"),
                steps=((None, "yellow"), (0.75, "green"), (1.34, "yellow"), (2.0, "red")),
                decimals=2,
                width=8,
            )
        )
        .with_panel(
            number(
                "Faster than dense and fp16, predicted",
                "A step with a dense fp32 exchange, and with fp16, over one with the choice, as the plan has it. It "
                "chooses among methods that kept the accuracy wherever they were tried (docs/compressors.md).",
                TIMES,
                (f"{dense} / {predicted}", "{{run}} than dense"),
                (f"{half} / {predicted}", "{{run}} than fp16"),
                decimals=2,
                width=8,
            )
        )
        .with_panel(
            graph(
                "A step: measured and predicted",
                "The plan's: with its choice, with a dense fp32 exchange, with fp16; anew when the link changes.",
                SECONDS,
                (measured, "{{run}} measured"),
                (predicted, "{{run}} predicted"),
                (dense, "{{run}} predicted, dense"),
                (half, "{{run}} predicted, fp16"),
                width=24,
            )
        )
        .with_panel(
            number(
                "Workers",
                "That train together now; with dtrain elastic they come and go.",
                COUNT,
                (f"max by (run) (dtrain_world_size{{{RUN}}})", "{{run}}"),
                width=6,
            )
        )
        .with_panel(
            number(
                "Lost",
                "Workers that the others went on without, so far. No data where a lost worker ends the job.",
                COUNT,
                (f"max by (run) ({total('dtrain_workers_lost_total')})", "{{run}}"),
                steps=((None, "green"), (1, "yellow")),
                width=6,
            )
        )
        .with_panel(
            number(
                "Joined",
                "Workers that came to those who trained, so far.",
                COUNT,
                (f"max by (run) ({total('dtrain_workers_joined_total')})", "{{run}}"),
                width=6,
            )
        )
        .with_panel(
            number(
                "Started again",
                "Starts of ranks again by the launcher, added up over ranks.",
                COUNT,
                (f"sum by (run) (dtrain_restarts_total{{{RUN}}})", "{{run}}"),
                steps=((None, "green"), (1, "yellow")),
                width=6,
            )
        )
        .with_panel(
            graph(
                "Workers over time",
                "That train together, and those of them that answer Prometheus.",
                COUNT,
                (f"max by (run) (dtrain_world_size{{{RUN}}})", "{{run}} in the group"),
                (f"count by (run) (dtrain_world_size{{{RUN}}})", "{{run}} answer"),
            )
        )
        .with_panel(
            graph(
                "Lost and joined",
                "Since the first group of workers began. Each change makes a new group, and starts nobody else again.",
                COUNT,
                *((f"max by (run) ({metric}{{{RUN}}})", f"{{{{run}}}} {name}") for name, metric in counted),
            )
        )
    )


BOARDS = {"bandwidth": bandwidth, "training": training, "compare": compare, "job": job}


def encoded(name: str) -> str:
    """A dashboard as JSON text."""
    built = BOARDS[name]().build()
    for number, panel in enumerate(built.panels or (), start=1):
        panel.id_val = number  # stable links to a panel
    content = json.loads(JSONEncoder(sort_keys=True, indent=2).encode(built))
    for query in content["annotations"]["list"]:
        query["step"] = LOOK_EVERY  # which the SDK does not know; Grafana would look once a minute
    return json.dumps(content, sort_keys=True, indent=2) + "\n"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in BOARDS:
        (folder / f"{name}.json").write_text(encoded(name), encoding="utf-8")
        print(folder / f"{name}.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
