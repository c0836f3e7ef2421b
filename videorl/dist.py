"""Processes and what they say to each other: launch, handshake, sums, gathers.

Every function also works in a single process without a process group.
"""

import contextlib
import datetime
import json
import os
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlparse

import torch
import torch.distributed as td

from videorl import console
from videorl.exits import EXIT_PREEMPTED, EXIT_USER_ERROR, Lost, exit_codes
from videorl.registry import UserError

FOR_EVER = datetime.timedelta(days=1000)
LEAVE = 15.0  # seconds that a collective waits longer than the watch, and rank 0 for those who must hear of a mistake

_cpu_group = None  # gloo group for objects and CPU tensors; the default group itself on the CPU
_local_size = 1
_on_gpu = False


# ----------------------------------------------------------------------------------------------------------- launch


def count_gpus(asked: int) -> int:
    """Processes with a GPU on this machine for NUM_GPUS `asked` (-1: all there are). Raises `UserError` if too many."""
    there = torch.cuda.device_count()
    if asked > there:
        raise UserError(
            f"NUM_GPUS is {asked}, but this machine has {there} GPUs that torch can use; NUM_GPUS 0 runs on the CPU"
        )
    return there if asked < 0 else asked


def device() -> torch.device:
    """Where this process computes."""
    return torch.device("cuda", torch.cuda.current_device()) if _on_gpu else torch.device("cpu")


def launch(
    job: Callable[[], None],
    *,
    init_method: str = "",
    gpus: int = 0,
    shards: int = 1,
    shard_id: int = 0,
    backend: str = "auto",
    timeout: float = 600.0,
    facts: Mapping[str, object] | None = None,
) -> None:
    """Runs `job()` in every process of the run: one a GPU (one on the CPU) on each of `shards` machines.

    Under torchrun this process is one of them already. `init_method` is tcp://HOST:PORT of shard 0, or file://PATH on a
    shared disk. `facts` (flat, JSON) must be equal on all ranks: an error names those that are not.
    Raises `UserError`, `Lost`, or `SystemExit` with the code of the process that failed.
    """
    global _on_gpu
    _on_gpu = gpus > 0
    if not 0 <= shard_id < shards:
        raise UserError(f"--shard_id {shard_id}: expected 0 to {shards - 1}, because --num_shards is {shards}")
    if backend not in ("auto", "nccl", "gloo"):
        raise UserError(f"DIST_BACKEND {backend!r}: expected auto, nccl or gloo")
    facts = {"num_shards": shards, "processes per machine": max(gpus, 1), **(facts or {})}
    backend = backend if backend != "auto" else "nccl" if gpus > 0 else "gloo"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _run(job, int(os.environ["LOCAL_RANK"]), _torchrun_world(), gpus, backend, timeout, facts)
    elif max(gpus, 1) * shards == 1:
        if gpus:
            torch.cuda.set_device(0)
        job()
    elif shards > 1 and not init_method:
        raise UserError(
            "--num_shards > 1 needs --init_method tcp://HOST:PORT of shard 0, or file://PATH on a shared disk"
        )
    elif gpus <= 1:
        _run(job, 0, (init_method, shard_id, shards), gpus, backend, timeout, facts)
    else:
        _spawn(job, init_method, gpus, shards, shard_id, backend, timeout, facts)


def launch_one(job: Callable[[], None], *, gpu: bool) -> None:
    """Runs `job()`, which is made for one process, in this one: on a GPU, if it wants one and there is one.

    Raises `UserError` where torchrun has started several.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and (size := int(os.environ["WORLD_SIZE"])) > 1:
        raise UserError(f"this runs in one process, but torchrun has started {size}; start it without torchrun")
    launch(job, gpus=min(1, count_gpus(-1)) if gpu else 0)


def _torchrun_world():
    return "torchrun", int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _spawn(job, init_method, gpus, shards, shard_id, backend, timeout, facts) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # A file needs no port, so a run on one machine can never meet one that is in use.
        method = init_method or f"file://{folder}/store"
        context = torch.multiprocessing.spawn(
            _spawned, (job, method, gpus, shards, shard_id, backend, timeout, facts), nprocs=gpus, join=False
        )
        forward = lambda number, frame: [os.kill(p.pid, number) for p in context.processes if p.is_alive()]  # noqa: E731
        previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            while not context.join():
                pass
        except torch.multiprocessing.ProcessExitedException as error:
            if error.exit_code in (EXIT_USER_ERROR, EXIT_PREEMPTED):
                raise SystemExit(error.exit_code) from None
            how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with code {error.exit_code}"
            raise Lost(f"rank {shard_id * gpus + error.error_index} {how}; the others were stopped") from None
        except torch.multiprocessing.ProcessRaisedException as error:
            console.tell(str(error))
            rank_ = shard_id * gpus + error.error_index
            raise Lost(f"rank {rank_} raised the error above; the others were stopped") from None
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _spawned(local_rank, job, method, gpus, shards, shard_id, backend, timeout, facts) -> None:
    with exit_codes():
        _run(job, local_rank, (method, shard_id * gpus + local_rank, shards * gpus), gpus, backend, timeout, facts)


def _run(job, local_rank, world, gpus, backend, timeout, facts) -> None:
    global _cpu_group, _local_size, _on_gpu
    _on_gpu = gpus > 0
    method, rank_, size = world
    _local_size = int(os.environ.get("LOCAL_WORLD_SIZE", max(gpus, 1)))
    if gpus:
        torch.cuda.set_device(local_rank)
    limit = datetime.timedelta(seconds=timeout)
    store = _store(method, rank_, size, limit)
    _handshake(store, rank_, size, facts, limit)
    # The watch, which names the rank that hangs, must come before a collective gives up.
    patience = limit + datetime.timedelta(seconds=LEAVE)
    try:
        td.init_process_group(
            backend, store=td.PrefixStore("group", store), rank=rank_, world_size=size, timeout=patience
        )
        _cpu_group = td.group.WORLD if backend == "gloo" else td.new_group(backend="gloo", timeout=patience)
    except RuntimeError as error:
        raise Lost(f"rank {rank_} could not connect to the others: {first_line(error)}") from None
    try:
        job()
    finally:
        td.destroy_process_group()
        _cpu_group = None


# -------------------------------------------------------------------------------------------------------- rendezvous


def _store(method: str, rank_: int, size: int, limit: datetime.timedelta):
    """The key-value store that the ranks meet at, with nothing in it of an earlier run or attempt."""
    if method == "torchrun":
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = td.TCPStore(*address, is_master=rank_ == 0 and not agent, timeout=limit, wait_for_workers=False)
        # Without a prefix a restarted attempt reads the addresses of the dead one.
        return td.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    url = urlparse(method)
    if url.scheme == "file" and url.path:
        return _file_store(url.path, rank_, size, limit)
    if url.scheme != "tcp" or not url.hostname or not url.port:
        raise UserError(f"--init_method {method!r}: expected tcp://HOST:PORT or file:///PATH")
    try:
        return td.TCPStore(url.hostname, url.port, is_master=rank_ == 0, timeout=limit, wait_for_workers=False)
    except RuntimeError as error:
        raise UserError(_store_problem(url, rank_, limit, error)) from None


def _file_store(path: str, rank_: int, size: int, limit: datetime.timedelta):
    """The part of the file that is this run's: a file outlives a run that is killed, and the next run finds it.

    Rank 0 opens a session under a new name and answers each rank with the word that it said there: so each knows that
    the other is there now.
    """
    word = uuid.uuid4().hex
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        store = td.FileStore(path, -1)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--init_method file://{path} cannot be used: {first_line(error)}") from None
    if rank_ > 0:
        return _joined_session(store, path, rank_, word, limit)
    store.set("session", word)
    session = td.PrefixStore(word, store)
    for other in range(1, size):
        _wait(session, f"word/{other}", limit, _absent(other, size, limit))
        session.set(f"answer/{other}", session.get(f"word/{other}"))
    return session


def _joined_session(store, path: str, rank_: int, word: str, limit: datetime.timedelta):
    end = time.monotonic() + limit.total_seconds()
    spoken_in = None
    while time.monotonic() < end:
        name = store.get("session").decode() if store.check(["session"]) else None
        if name:
            session = td.PrefixStore(name, store)
            if name != spoken_in:
                session.set(f"word/{rank_}", word)
                spoken_in = name
            if session.check([f"answer/{rank_}"]) and session.get(f"answer/{rank_}").decode() == word:
                return session
        time.sleep(0.05)
    raise UserError(
        f"rank 0 did not answer rank {rank_} in {path} within {limit.total_seconds():.0f} s: is shard 0 started,"
        " with the same --num_shards, is the disk shared, and is no other shard started with this --shard_id?"
    )


def _wait(store, key: str, limit: datetime.timedelta, otherwise: str) -> None:
    """Returns when `key` is there. Raises `UserError` with the text `otherwise` if it never is."""
    try:
        store.wait([key], limit)
    except RuntimeError:
        raise UserError(otherwise) from None


def _absent(other: int, size: int, limit: datetime.timedelta) -> str:
    return (
        f"rank {other} of {size} did not join within {limit.total_seconds():.0f} s: was every shard started, with the"
        " same --num_shards and its own --shard_id?"
    )


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def _store_problem(url, rank_, limit, error) -> str:
    if rank_ == 0 and _in_use(url.port):
        return (
            f"port {url.port} is in use on this machine: name another in --init_method"
            " (or another shard was started with --shard_id 0 too)"
        )
    if rank_ == 0:
        return f"cannot listen on {url.hostname}:{url.port}, which --init_method names: {first_line(error)}"
    return (
        f"shard 0 did not answer at {url.hostname}:{url.port} within {limit.total_seconds():.0f} s:"
        " is it started, and is the port open?"
    )


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


AGREED = "agreed"


def _handshake(store, rank_: int, size: int, facts: Mapping, limit: datetime.timedelta) -> None:
    """Compares the facts of all ranks before anything is built, so that a wrong launch is an error, not a wrong run."""
    if store.add(f"rank/{rank_}", 1) > 1:
        raise UserError(f"rank {rank_} joined twice: two machines were started with the same --shard_id")
    store.set(f"facts/{rank_}", json.dumps(dict(facts)))
    facts = json.loads(store.get(f"facts/{rank_}"))
    if rank_ == 0:
        verdict = _verdict(store, size, facts, limit)
        store.set("verdict", verdict)
    else:
        _wait(store, "facts/0", limit, _absent(0, size, limit))
        theirs = json.loads(store.get("facts/0"))
        if theirs != facts:
            store.set(f"heard/{rank_}", "yes")
            _compare(facts, theirs, f"rank {rank_}", "rank 0")
        _wait(store, "verdict", 2 * limit, "rank 0 ended while the ranks met; what it printed says why")
        verdict = store.get("verdict").decode()
        store.set(f"heard/{rank_}", "yes")
    if verdict != AGREED:
        if rank_ == 0:
            _let_them_hear(store, size)
        raise UserError(verdict)


def _verdict(store, size: int, facts: Mapping, limit: datetime.timedelta) -> str:
    """What is wrong between the ranks, or AGREED."""
    try:
        for other in range(1, size):
            _wait(store, f"facts/{other}", limit, _absent(other, size, limit))
            _compare(facts, json.loads(store.get(f"facts/{other}")), "rank 0", f"rank {other}")
    except UserError as error:
        return str(error)
    return AGREED


def _let_them_hear(store, size: int) -> None:
    """The store lives in rank 0: those who are there must read the verdict before it ends."""
    there = [f"heard/{other}" for other in range(1, size) if store.check([f"facts/{other}"])]
    with contextlib.suppress(RuntimeError):
        store.wait(there, datetime.timedelta(seconds=LEAVE))


def _compare(mine: Mapping, theirs: Mapping, me: str, them: str) -> None:
    different = [k for k in sorted({*mine, *theirs}) if mine.get(k) != theirs.get(k)]
    if different:
        shown = "; ".join(f"{k} is {mine.get(k)!r} on {me}, {theirs.get(k)!r} on {them}" for k in different[:5])
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise UserError(f"the ranks disagree: {shown}{more}; start all of them with the same settings")


def agree(facts: Mapping[str, object]) -> None:
    """Raises `UserError` on every rank if `facts` differ between ranks."""
    for other, theirs in enumerate(all_gather_objects(dict(facts))):
        _compare(dict(facts), theirs, f"rank {rank()}", f"rank {other}")


# ------------------------------------------------------------------------------------------------------ communication


def wait_for_ever() -> None:
    """From now on a collective has no time limit: whoever calls this watches over it.

    torch's limit counts the time that the whole run is suspended, and the run would end when it is woken.
    """
    if td.is_initialized():
        set_timeout = getattr(td, "set_timeout", None) or td.distributed_c10d._set_pg_timeout  # of torch before 2.15
        for group in {td.group.WORLD, _cpu_group}:
            set_timeout(FOR_EVER, group)


def rank() -> int:
    return td.get_rank() if td.is_initialized() else 0


def world_size() -> int:
    return td.get_world_size() if td.is_initialized() else 1


def local_size() -> int:
    """Processes of this run on this machine."""
    return _local_size


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if td.is_initialized():
        td.barrier(group=_cpu_group)


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place, of a tensor on any device."""
    if td.is_initialized():
        group = _cpu_group if tensor.device.type == "cpu" else None
        td.all_reduce(tensor, group=group)
    return tensor


def all_gather_objects(value: object) -> list:
    """`value` of every rank, by rank."""
    if not td.is_initialized():
        return [value]
    values = [None] * world_size()
    td.all_gather_object(values, value, group=_cpu_group)
    return values


def gather_objects(value: object) -> list | None:
    """`value` of every rank, by rank, on rank 0; None elsewhere."""
    if not td.is_initialized():
        return [value]
    values = [None] * world_size() if is_main() else None
    td.gather_object(value, values, group=_cpu_group)
    return values


def on_main(function: Callable[[], object]) -> object:
    """What `function()` gives on rank 0, on all ranks; if it raises there, it raises on all."""
    if world_size() == 1:
        return function()
    try:
        result = function() if is_main() else None
    except Exception as error:
        result = error
    result = broadcast_object(result)
    if isinstance(result, Exception):
        raise result
    return result


def broadcast_object(value: object) -> object:
    """`value` of rank 0, on all ranks."""
    if not td.is_initialized():
        return value
    box = [value]
    td.broadcast_object_list(box, group=_cpu_group)
    return box[0]


def copy_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Gives all ranks rank 0's values, in place."""
    for tensor in tensors if td.is_initialized() else ():
        td.broadcast(tensor, 0, group=_cpu_group if tensor.device.type == "cpu" else None)


def is_broken_link(error: BaseException) -> bool:
    """Whether `error` comes from a collective that another process let down."""
    return isinstance(error, td.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def rows(tensor: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """Rows of all ranks joined in rank order, without gradient, and the slice of them that is this rank's.

    The ranks may hold different numbers of rows. [n_r, …] -> [sum n_r, …].
    """
    if world_size() == 1:
        return tensor.detach(), slice(0, len(tensor))
    sizes = all_gather_objects(len(tensor))
    padded = torch.zeros((max(sizes), *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    td.all_gather(parts, padded, group=_cpu_group if tensor.device.type == "cpu" else None)
    start = sum(sizes[: rank()])
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]), slice(start, start + len(tensor))
