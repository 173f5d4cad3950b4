"""The command that says what a run will take."""

import click

from cag.commands.terminal import json_option, print_json, print_rows, stdout_for_json

DEVICES = click.IntRange(1, 4096)
MEASURE = "Also say how long: make some steps and forward passes here."
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
TIMES = ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h"))  # below so many seconds, in what


@click.command(short_help="What a run will take: disk, FLOP, memory, time.")
@click.option("--measure", is_flag=True, help=MEASURE)
@click.option("--devices", type=DEVICES, default=1, show_default=True, help="Like this machine's.")
@json_option
def plan(measure: bool, devices: int, as_json: bool) -> None:
    """Say what each stage of params.yaml will take, before anything is trained.

    disk: the files that it writes. forwarded: images that pass a network without learning, such as
    those that a teacher labels; each view counts. trained: images that pass it forward and
    backward. FLOP are those of convolutions and matrix products, two for a multiply-add: forward
    FLOP of the images forwarded, training FLOP of all the rest of the steps. memory: of a device,
    all tensors at the worst moment of a step, in the precision of params.yaml on this machine. A
    GPU's libraries take 1 to 2 GB more.

    The sizes of prepared images come from a few of the raw ones. Where GTA5, SYNTHIA or Cityscapes
    are not there yet, they are typical ones.

    --measure takes one or two minutes on a machine that suits the parameters, and should have it
    alone. Times of DVC itself (hashes, copies to its cache) and of waiting for the disk are not in
    it. --devices: a step's images and the forward passes are shared by so many, as by torchrun; the
    time in which they exchange gradients is not in it.

    \b
    Examples:
      cag plan
      cag preset gta5_to_cityscapes && cag plan --measure --devices 4
      cag plan --json | jq .total.bytes
    """
    from cag.project.plan import make_plan

    with stdout_for_json(as_json):
        planned = make_plan(devices, measure)
    if as_json:
        print_json(planned.plain())
        return
    rows, total = [], planned.total()
    for one in [*planned.stages, total]:
        work, row = one.work, {"stage": one.stage, "disk": scaled(one.bytes, "B")}
        counts = {"steps": one.steps, "forwarded": work.forwarded, "trained": work.trained}
        row |= {name: f"{count:,.0f}" if count else "" for name, count in counts.items()}
        row |= {"forward FLOP": scaled(work.forward_flop)}
        row |= {"training FLOP": scaled(work.training_flop), "memory": scaled(work.memory, "B")}
        rows.append(row | ({"time": duration(one.seconds)} if measure else {}))
    print_rows(rows)
    of = "" if devices == 1 else f"{devices} devices like "
    print(f"on {of}{planned.device}, {planned.precision}")
    if alone := [one.stage for one in planned.stages if not one.shared] if devices > 1 else []:
        print(f"not shared by the devices: {', '.join(alone)}")


def scaled(value: float, unit: str = "") -> str:
    """A number of three digits with a prefix, as in 202 GB; nothing for 0."""
    factor, prefix = next((pair for pair in PREFIXES if value >= 0.9995 * pair[0]), (1, ""))
    return f"{value / factor:.3g} {prefix}{unit}".strip() if value else ""


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them, as in 3.9 min."""
    fitting = ((size, unit) for limit, size, unit in TIMES if seconds < limit)
    size, unit = next(fitting, (86_400, "days"))
    return f"{seconds / size:.3g} {unit}"
