"""Which hosts, and which slots (GPUs; without GPUs simply ranks) of each.

After the options. Hostfile, `--include` and `--exclude` are written as DeepSpeed's launcher reads them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lape_ds.distributed.launchers.options import CommandLine
from lape_ds.errors import UserError

Hosts = dict[str, list[str]]  # in the order of ranks; a slot is what CUDA_VISIBLE_DEVICES calls a GPU
_LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?")
LOCAL = "localhost"


def chosen_hosts(command: CommandLine, *, num_ranks: int | None) -> Hosts:
    """The hosts and slots that a command line asks for: of its hostfile, else of this machine.

    Args:
        command: Its launcher options.
        num_ranks: `launch.num_ranks` of the recipe, for a command line without a hostfile that asks for no number.

    Raises:
        UserError: A bad hostfile, or hosts or slots asked for that are not there.
    """
    options = command.options
    if "include" in options and "exclude" in options:
        raise UserError(
            "--include and --exclude cannot go together: name the hosts wanted, or those not wanted"
        )
    filtered = "include" in options or "exclude" in options
    if filtered and ("num_nodes" in options or "num_gpus" in options):
        raise UserError(
            "--num_nodes and --num_gpus cannot go with --include or --exclude, which name the slots"
        )
    if "hostfile" in options:
        hosts = read_hostfile(Path(options["hostfile"]))
    else:
        hosts = {LOCAL: local_slots(command.number("num_gpus") or (None if filtered else num_ranks))}
    if "include" in options:
        hosts = _included(hosts, options["include"])
    if "exclude" in options:
        hosts = _excluded(hosts, options["exclude"])
    return _first(hosts, num_nodes=command.number("num_nodes"), num_slots=command.number("num_gpus"))


def read_hostfile(path: Path) -> Hosts:
    """Reads `HOST slots=N`, one a line; `#` begins a comment.

    Raises:
        UserError: No such file, a line of another form, a host named twice, or none at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"hostfile {path}: {error.strerror}") from None
    hosts: Hosts = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or int(match[2]) < 1:
            raise UserError(
                f"hostfile {path}:{number}: {line.strip()!r} must read `HOST slots=N`, N at least 1"
            )
        if match[1] in hosts:
            raise UserError(f"hostfile {path}:{number}: {match[1]} is named twice")
        hosts[match[1]] = [str(slot) for slot in range(int(match[2]))]
    if not hosts:
        raise UserError(f"hostfile {path} names no host; a line reads `HOST slots=N`")
    return hosts


def first_address(hosts: Hosts) -> str:
    """Where the others find the first rank: its host's name.

    Raises:
        UserError: The first host has a name that means another machine to each of the others.
    """
    here = [host for host in hosts if host == LOCAL or host.startswith("127.")]
    first = next(iter(hosts))
    if first in here and len(here) < len(hosts):
        raise UserError(
            f"the hostfile's first host is {first}, where each other host would look for the first rank on itself: write "
            "its name as they know it, or give --master_addr"
        )
    return "127.0.0.1" if first == LOCAL else first


def local_slots(num_ranks: int | None) -> list[str]:
    """This machine's slots: its visible GPUs, at most `num_ranks`; without a GPU, `num_ranks` or one.

    Never two ranks on one GPU: the same recipe runs on a laptop and on a server.
    """
    gpus = visible_gpus()
    return gpus[:num_ranks] if gpus else [str(slot) for slot in range(num_ranks or 1)]


def visible_gpus() -> list[str]:
    """This machine's GPUs as the user lets us see them."""
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _named(hosts: Hosts, text: str, *, option: str) -> Hosts:
    """`HOST[:SLOT,…][@HOST…]` → hosts and slots, all of them there."""
    named: Hosts = {}
    for part in text.split("@"):
        host, colon, slots = part.rpartition(":") if ":" in part else (part, "", "")
        if host not in hosts:
            raise UserError(f"--{option}: no host {host!r}; there are {', '.join(hosts)}")
        wanted = [slot.strip() for slot in slots.split(",")] if colon else hosts[host]
        for slot in wanted:
            if slot not in hosts[host]:
                raise UserError(f"--{option}: {host} has no slot {slot!r}; it has {', '.join(hosts[host])}")
        named[host] = list(dict.fromkeys([*named.get(host, []), *wanted]))
    return named


def _included(hosts: Hosts, text: str) -> Hosts:
    named = _named(hosts, text, option="include")
    return {host: named[host] for host in hosts if host in named}


def _excluded(hosts: Hosts, text: str) -> Hosts:
    named = _named(hosts, text, option="exclude")
    left = {host: [slot for slot in hosts[host] if slot not in named.get(host, [])] for host in hosts}
    left = {host: slots for host, slots in left.items() if slots}
    if not left:
        raise UserError("--exclude leaves no host")
    return left


def _first(hosts: Hosts, *, num_nodes: int | None, num_slots: int | None) -> Hosts:
    if num_nodes is not None and num_nodes > len(hosts):
        raise UserError(f"--num_nodes {num_nodes}: there are only {len(hosts)} ({', '.join(hosts)})")
    chosen = dict(list(hosts.items())[:num_nodes])
    for host, slots in chosen.items():
        if num_slots is not None and num_slots > len(slots):
            raise UserError(f"--num_gpus {num_slots}: {host} has only {len(slots)} slots")
        chosen[host] = slots[:num_slots]
    return chosen
