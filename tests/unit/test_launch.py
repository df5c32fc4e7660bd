"""The launch plan as a pure decision, and the processes it starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from synfundus.errors import LaunchError
from synfundus.launch import LaunchPlan, MachineFacts, ProcessPlan, Resources, execute, plan_launch, processes
from synfundus.launch.plan import first_host, job_name, port_of_job
from synfundus.processes.stop_signals import STOP_SIGNALS

RESOURCES = Resources(partition=None, account=None, time_limit="24:00:00", gpus_per_node=8, cpus_per_task=4)
ALONE = MachineFacts(environment={}, programs=frozenset(), visible_gpus=0, cores=8, python="/opt/python", is_rank=False)
LOGIN_NODE = replace(
    ALONE, programs=frozenset({"sbatch", "srun"}), environment={"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x"}
)
ALLOCATION = replace(
    LOGIN_NODE, environment={"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "gpu[03-04]", "AWS_SECRET_ACCESS_KEY": "x"}
)
COMMAND = ("train", "--latents", "l a t", "--nodes", "2")


def plan(
    machine: MachineFacts,
    *,
    nodes: int = 1,
    procs: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    resources: Resources = RESOURCES,
    script: str | None = "slurm/ldm.sh",
    arguments: tuple[str, ...] = COMMAND,
) -> LaunchPlan:
    return plan_launch(
        arguments=arguments,
        nodes=nodes,
        procs_per_node=procs,
        device=device,
        resources=resources,
        script=script,
        machine=machine,
    )


def test_one_process_runs_here() -> None:
    assert plan(ALONE) == LaunchPlan("in_process", (), 1, "one process")


def test_a_rank_never_launches_again() -> None:
    assert plan(replace(ALLOCATION, is_rank=True), nodes=4, procs=8).kind == "in_process"


def test_ranks_on_this_machine_get_their_place_and_share_the_cores() -> None:
    made = plan(ALONE, procs=3)
    assert (made.kind, made.world_size, len(made.processes)) == ("local", 3, 3)
    for rank, process in enumerate(made.processes):
        assert process.arguments == ("/opt/python", "-m", "synfundus", *COMMAND)
        assert process.environment["RANK"] == process.environment["LOCAL_RANK"] == str(rank)
        assert process.environment["WORLD_SIZE"] == process.environment["LOCAL_WORLD_SIZE"] == "3"
        assert process.environment["MASTER_ADDR"] == "127.0.0.1"
        assert process.environment["OMP_NUM_THREADS"] == "2"


def test_more_ranks_than_cores_still_have_a_thread_and_the_users_choice_is_kept() -> None:
    assert plan(replace(ALONE, cores=1), procs=4).processes[0].environment["OMP_NUM_THREADS"] == "1"
    chosen = replace(ALONE, environment={"OMP_NUM_THREADS": "5"})
    assert plan(chosen, procs=2).processes[0].environment["OMP_NUM_THREADS"] == "5"


def test_without_a_number_there_is_one_process_a_gpu_unless_the_cpu_was_asked_for() -> None:
    machine = replace(ALONE, visible_gpus=4)
    assert plan(machine).world_size == 4
    assert plan(machine, device="cpu").kind == "in_process"
    assert plan(machine, procs=1).kind == "in_process"


def test_inside_an_allocation_several_nodes_become_one_srun() -> None:
    made = plan(ALLOCATION, nodes=2, procs=8)
    (process,) = made.processes
    assert (made.kind, made.world_size) == ("srun", 16)
    assert process.arguments[:4] == ("srun", "--nodes=2", "--ntasks-per-node=8", "--cpus-per-task=4")
    assert "--kill-on-bad-exit=1" in process.arguments
    assert process.arguments[-len(COMMAND) - 3 :] == ("/opt/python", "-m", "synfundus", *COMMAND)
    assert process.environment == {"MASTER_ADDR": "gpu03", "MASTER_PORT": str(port_of_job("4711"))}


def test_on_a_login_node_several_nodes_become_a_batch_job_without_keys() -> None:
    resources = replace(RESOURCES, partition="gpu,gpu-long", account="eye.lab")
    made = plan(LOGIN_NODE, nodes=2, resources=resources)
    (process,) = made.processes
    script = process.arguments.index("slurm/ldm.sh")
    options = process.arguments[1:script]
    assert (made.kind, made.world_size, process.arguments[0]) == ("sbatch", 16, "sbatch")
    assert process.arguments[script + 1 :] == COMMAND[1:]
    assert {"--nodes=2", "--partition=gpu,gpu-long", "--account=eye.lab", "--time=24:00:00"} <= set(options)
    assert "--export=PATH,SYNFUNDUS_PYTHON" in options
    assert "AWS_SECRET" not in made.describe()


NAMED = (
    replace(RESOURCES, partition="gpu"),
    replace(RESOURCES, account="eye"),
    replace(RESOURCES, sbatch_args=("--qos=long",)),
    replace(RESOURCES, submit=True),
)


@pytest.mark.parametrize("resources", NAMED)
def test_one_node_with_something_that_only_a_job_has_is_a_job(resources: Resources) -> None:
    made = plan(LOGIN_NODE, procs=8, resources=resources)
    assert (made.kind, made.world_size) == ("sbatch", 8)
    assert {"--nodes=1", "--ntasks-per-node=8"} <= set(made.processes[0].arguments)
    assert "asks for one" in made.reason
    # a rank a GPU of the node, not of the login node
    assert plan(LOGIN_NODE, resources=resources).world_size == 8


def test_one_node_stays_here_without_a_wish_without_slurm_and_inside_an_allocation() -> None:
    assert plan(LOGIN_NODE, procs=8).kind == "local"
    assert plan(LOGIN_NODE).kind == "in_process"
    for resources in NAMED[:3]:
        made = plan(ALONE, procs=8, resources=resources)
        assert (made.kind, len(made.notes)) == ("local", 1)
        assert "there is no sbatch on this machine" in made.notes[0]
        inside = plan(ALLOCATION, procs=8, resources=resources)
        assert (inside.kind, inside.notes) == ("local", ())
        # a verb that runs in no job is not concerned
        assert plan(LOGIN_NODE, resources=resources, script=None) == LaunchPlan("in_process", (), 1, "one process")


def test_a_job_that_was_asked_for_is_submitted_or_refused() -> None:
    wanted = replace(RESOURCES, submit=True)
    assert plan(ALLOCATION, nodes=2, resources=wanted).kind == "sbatch"
    assert plan(ALLOCATION, resources=wanted).kind == "sbatch"
    with pytest.raises(LaunchError, match="a batch job was requested") as caught:
        plan(ALONE, resources=wanted)
    assert caught.value.where == "--submit"
    assert plan(replace(ALLOCATION, is_rank=True), resources=wanted).kind == "in_process"


def test_jobs_of_one_folder_have_one_name_and_wait_for_each_other() -> None:
    name = job_name("train", "/runs/a")
    assert name == job_name("train", "/runs/a/")
    others = [job_name("train", "/runs/b/a"), job_name("train", "/runs/A"), job_name("train-vae", "/runs/a")]
    assert len({name, *others}) == 4
    for place in ("/runs/" + "x" * 300, "/runs/a b;$(id)\n", "/", "s3://bucket/Ärzte/%j", "/runs/\udcff"):
        assert re.fullmatch(r"synfundus-train-[A-Za-z0-9_.-]{0,24}-[0-9a-f]{8}", job_name("train", place)), place
    made = plan(LOGIN_NODE, nodes=2)
    assert "--dependency=singleton" in made.processes[0].arguments
    assert "waits for an earlier job of this folder" in made.reason


@pytest.mark.parametrize("option", ["--dependency=afterok:12", "--depend=afterok:12"])
def test_a_dependency_of_the_user_replaces_ours(option: str) -> None:
    made = plan(LOGIN_NODE, nodes=2, resources=replace(RESOURCES, sbatch_args=(option,)))
    assert option in made.processes[0].arguments
    assert "--dependency=singleton" not in made.processes[0].arguments
    assert "no longer wait for each other" in made.notes[-1]


def test_further_options_reach_sbatch_and_not_srun() -> None:
    resources = replace(RESOURCES, sbatch_args=("--qos=long", "--mem=200G", "--constraint=[a100|h100]", "--exclusive"))
    made = plan(LOGIN_NODE, nodes=2, resources=resources)
    script = made.processes[0].arguments.index("slurm/ldm.sh")
    assert set(resources.sbatch_args) <= set(made.processes[0].arguments[1:script])
    inside = plan(ALLOCATION, nodes=2, resources=resources)
    assert not set(resources.sbatch_args) & set(inside.processes[0].arguments)
    assert "this allocation exists already" in inside.notes[0]


@pytest.mark.parametrize(
    ("gres", "gpus", "rest"),
    [
        ("--gres=gpu:8", "--gpus-per-node=8", None),
        ("--gres=gpu:h100:8", "--gpus-per-node=h100:8", None),
        ("--gres=lscratch:100,gpu:h100:8", "--gpus-per-node=h100:8", "--gres=lscratch:100"),
        ("--gres=lscratch:100", "--gpus-per-node=8", "--gres=lscratch:100"),
        ("--gres=gpumem:8", "--gpus-per-node=8", "--gres=gpumem:8"),
    ],
)
def test_gpus_are_asked_for_once_with_their_type(gres: str, gpus: str, rest: str | None) -> None:
    arguments = plan(LOGIN_NODE, nodes=2, resources=replace(RESOURCES, sbatch_args=(gres,))).processes[0].arguments
    assert [text for text in arguments if text.startswith("--gpus-per-node")] == [gpus]
    assert [text for text in arguments if text.startswith("--gres")] == ([rest] if rest else [])


@pytest.mark.parametrize("gres", ["--gres=gpu:4", "--gres=gpu", "--gres=gpu:h100"])
def test_two_numbers_of_gpus_are_refused(gres: str) -> None:
    with pytest.raises(LaunchError, match="different numbers of GPUs"):
        plan(LOGIN_NODE, nodes=2, resources=replace(RESOURCES, sbatch_args=(gres,)))


def test_a_cpu_cluster_is_not_asked_for_gpus() -> None:
    made = plan(LOGIN_NODE, nodes=2, procs=3, resources=replace(RESOURCES, gpus_per_node=0))
    # said, not left out: the header of the script asks for GPUs
    assert "--gpus-per-node=0" in made.processes[0].arguments
    assert made.world_size == 6


def test_several_nodes_without_slurm_name_the_other_way() -> None:
    with pytest.raises(LaunchError) as caught:
        plan(ALONE, nodes=2)
    assert "launchers/torchrun_hostfile.sh" in str(caught.value)


def test_a_verb_without_a_batch_script_refuses_several_nodes() -> None:
    with pytest.raises(LaunchError, match="does not run on several nodes"):
        plan(LOGIN_NODE, nodes=2, script=None)


@pytest.mark.parametrize(
    ("resources", "arguments"),
    [
        (replace(RESOURCES, partition="gpu; rm -rf"), COMMAND),
        (replace(RESOURCES, partition="gpu\n#SBATCH"), COMMAND),
        (replace(RESOURCES, partition="gpu,"), COMMAND),
        (replace(RESOURCES, account="$(id)"), COMMAND),
        (replace(RESOURCES, account="one,two"), COMMAND),
        (replace(RESOURCES, account=""), COMMAND),
        (replace(RESOURCES, time_limit="24:00:00 --uid=0"), COMMAND),
        (RESOURCES, ("train", "--run-dir", "a\nb")),
        (RESOURCES, ("train", "--run-dir", "a\rb")),
    ],
)
def test_values_that_slurm_could_misread_are_refused(resources: Resources, arguments: tuple[str, ...]) -> None:
    for machine in (LOGIN_NODE, ALLOCATION):
        with pytest.raises(LaunchError):
            plan(machine, nodes=2, resources=resources, arguments=arguments)


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[03-05,9]", "gpu03"),
        ("gpu[7]-ib,login1", "gpu7-ib"),
        ("rack-1.node[001-128]", "rack-1.node001"),
        ("rack[1-2]node[04-09],gpu1", "rack1node04"),
    ],
)
def test_the_ranks_meet_on_the_first_host_of_the_node_list(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


@pytest.mark.parametrize("node_list", ["", "[1-2]", "gpu[", "a b", "gpu1;ls"])
def test_a_node_list_that_is_none_is_refused(node_list: str) -> None:
    with pytest.raises(LaunchError, match="not a list of nodes"):
        first_host(node_list)


def test_the_port_of_a_job_lies_below_the_ephemeral_range() -> None:
    ports = [port_of_job(str(job)) for job in (0, 1, 17_999, 18_000, 2**31)]
    assert all(12_000 <= port < 30_000 for port in ports)
    assert ports[0] != ports[1]
    with pytest.raises(LaunchError):
        port_of_job("12_batch")


def test_a_job_that_was_requeued_meets_at_another_port() -> None:
    ports = {port_of_job("4711", str(restarts)) for restarts in range(100)}
    assert len(ports) == 100
    made = plan(
        replace(ALLOCATION, environment={**ALLOCATION.environment, "SLURM_RESTART_COUNT": "3"}), nodes=2, procs=8
    )
    assert made.processes[0].environment["MASTER_PORT"] == str(port_of_job("4711", "3"))
    with pytest.raises(LaunchError, match="SLURM_RESTART_COUNT"):
        port_of_job("12", "many")


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({}, 3),
    ],
)
def test_gpus_are_counted_without_torch(environment: Mapping[str, str], count: int, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    assert processes.count_gpus(environment, driver=tmp_path) == count
    assert processes.count_gpus({}, driver=tmp_path / "none") == 0


def python_plan(*codes: str, kind: Literal["local", "srun"] = "local") -> LaunchPlan:
    ranks = tuple(ProcessPlan((sys.executable, "-c", code), {"RANK": str(rank)}) for rank, code in enumerate(codes))
    return LaunchPlan(kind, ranks, len(ranks), "test")


def test_ranks_share_a_port_and_know_their_launcher(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; pathlib.Path(os.environ['FOLDER'], os.environ['RANK'])"
        ".write_text(os.environ['MASTER_PORT'] + ' ' + os.environ['SYNFUNDUS_LAUNCHER_PID'])"
    )
    outcome = execute(python_plan(code, code), {**os.environ, "FOLDER": str(tmp_path)})
    written = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert outcome.exit_code == 0
    assert written[0] == written[1]
    assert written[0].split()[1] == str(os.getpid())


def test_a_rank_is_started_without_what_misleads_its_libraries(tmp_path: Path) -> None:
    code = "import os, pathlib; pathlib.Path(os.environ['FOLDER'], 'seen').write_text('\\n'.join(sorted(os.environ)))"
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONINSPECT": "1", "PYTHONSTARTUP": "x"}
    assert execute(python_plan(code), {**os.environ, **notebook, "FOLDER": str(tmp_path)}).exit_code == 0
    seen = (tmp_path / "seen").read_text().splitlines()
    assert "PYTHONSAFEPATH" in seen
    assert not set(notebook) & set(seen)


@pytest.mark.parametrize(("ended", "code"), [(143, 2), (9, 9)])
def test_a_step_ends_with_the_code_of_its_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: int, code: int
) -> None:
    """srun reports the highest code: 143 of the rank that it has stopped for the sake of the other."""
    monkeypatch.chdir(tmp_path)
    rank = (
        "import sys\nfrom synfundus.distributed.requeue import keep_exit_code\n"
        f"keep_exit_code(2)\nkeep_exit_code(5)\nsys.exit({ended})"
    )
    assert execute(python_plan(rank, kind="srun"), os.environ).exit_code == code
    assert list(tmp_path.iterdir()) == []


def test_when_one_rank_dies_the_others_are_stopped_and_its_code_is_the_result() -> None:
    begin = time.monotonic()
    outcome = execute(python_plan("import time; time.sleep(60)", "import sys; sys.exit(3)"), os.environ)
    assert outcome.exit_code == 3
    assert "rank 1 ended with exit code 3" in outcome.message
    assert time.monotonic() - begin < 10


def test_a_rank_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "STOP_GRACE_S", 0.3)
    ready = tmp_path / "ready"
    stubborn = (
        "import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    dies = (
        f"import os, signal, time, pathlib\nwhile not pathlib.Path({str(ready)!r}).exists(): time.sleep(0.01)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    begin = time.monotonic()
    outcome = execute(python_plan(stubborn, dies), os.environ)
    assert outcome.exit_code == 128 + signal.SIGKILL
    assert "killed by signal 9" in outcome.message
    assert time.monotonic() - begin < 10


def test_ranks_that_save_and_leave_are_waited_for(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    slow = f"import time, pathlib, sys; time.sleep(0.5); pathlib.Path({str(saved)!r}).touch(); sys.exit(75)"
    outcome = execute(python_plan("import sys; sys.exit(75)", slow), os.environ)
    assert outcome.exit_code == 75
    assert saved.exists()


def test_a_rank_that_stays_when_the_others_have_left_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "EXIT_TOGETHER_S", 0.3)
    monkeypatch.setattr(processes, "STOP_GRACE_S", 0.3)
    stands_still = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    outcome = execute(python_plan("import sys; sys.exit(75)", stands_still), os.environ)
    assert outcome.exit_code == 75
    assert "rank 1 did not exit with the others" in outcome.message


WAITS_FOR_USR2 = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))
pathlib.Path(os.environ["FOLDER"], os.environ["RANK"]).touch()
time.sleep(60)
"""

LAUNCHES = """
import os, sys
from synfundus.launch import LaunchPlan, ProcessPlan, execute
code = sys.argv[1]
ranks = tuple(ProcessPlan((sys.executable, "-c", code), {"RANK": str(rank)}) for rank in (0, 1))
kind = sys.argv[2] if len(sys.argv) > 2 else "local"
sys.exit(execute(LaunchPlan(kind, ranks, 2, "test"), os.environ).exit_code)
"""


def wait_for(condition: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(list(condition.iterdir())) < count:
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.02)


@pytest.mark.parametrize("sent", STOP_SIGNALS)
def test_a_signal_to_the_launcher_reaches_every_rank(tmp_path: Path, sent: signal.Signals) -> None:
    waits = WAITS_FOR_USR2.replace("SIGUSR2", sent.name)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHES, waits], env={**os.environ, "FOLDER": str(tmp_path)})
    wait_for(tmp_path, 2)
    launcher.send_signal(sent)
    assert launcher.wait(timeout=30) == 75


def test_a_second_ctrl_c_ends_the_tasks_of_srun_at_once(tmp_path: Path) -> None:
    waits = WAITS_FOR_USR2.replace(
        "sys.exit(75)", "pathlib.Path(os.environ['FOLDER'], 'saving' + os.environ['RANK']).touch()"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHES, waits, "srun"], env={**os.environ, "FOLDER": str(tmp_path)}
    )
    wait_for(tmp_path, 2)
    launcher.send_signal(signal.SIGINT)
    wait_for(tmp_path, 4)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=30) == 128 + signal.SIGTERM


def test_signals_that_a_shell_ignores_for_its_jobs_stay_ignored() -> None:
    script = """
import signal
from synfundus.processes.stop_signals import stopped_by_signals
with stopped_by_signals():
    print(int(signal.getsignal(signal.SIGHUP)))
"""
    nohup = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    done = subprocess.run([sys.executable, "-c", script], preexec_fn=nohup, capture_output=True, text=True, check=True)
    assert int(done.stdout) == signal.SIG_IGN


@pytest.mark.parametrize("sent", STOP_SIGNALS)
def test_srun_is_sent_what_it_hands_on_to_its_tasks(tmp_path: Path, sent: signal.Signals) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHES, WAITS_FOR_USR2, "srun"], env={**os.environ, "FOLDER": str(tmp_path)}
    )
    wait_for(tmp_path, 2)
    launcher.send_signal(sent)
    assert launcher.wait(timeout=30) == 75


@pytest.mark.parametrize(
    ("in_flight", "sent", "code"),
    [
        ("", signal.SIGUSR2, 75),
        ("", signal.SIGTERM, 143),
        ("", signal.SIGHUP, 129),
        ("", signal.SIGUSR1, 75),
        ("", signal.SIGXCPU, 75),
        ("raise DataError('lost')", signal.SIGTERM, 3),
        ("raise DataError('lost')", signal.SIGUSR2, 3),
        ("raise Preempted('saved')", signal.SIGTERM, 75),
    ],
)
def test_a_signal_ends_a_process_with_a_code_that_hides_no_error(
    tmp_path: Path, in_flight: str, sent: signal.Signals, code: int
) -> None:
    script = f"""
import pathlib, sys, time
from synfundus.errors import DataError, Preempted
from synfundus.processes.stop_signals import stopped_by_signals
with stopped_by_signals():
    try:
        {in_flight or "pass"}
    finally:
        pathlib.Path(sys.argv[1], "ready").touch()
        time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path, 1)
    process.send_signal(sent)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert said == ("" if in_flight else f"stopped by {sent.name}\n")


ENDING = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from synfundus.launch.processes import end_process

class Last:
    def __del__(self): print("taken apart")

last = Last()
threading.current_thread().kept = last
atexit.register(print, "exit handler")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
pool = ThreadPoolExecutor(1)
pool.submit(int).result()
end_process(7)
"""


def test_a_job_ends_with_everything_done_and_the_interpreter_left_whole() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split("\n"), done.stderr) == (7, ["thread", "exit handler", ""], "")


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    code = """
import os, pathlib, time
from synfundus.launch import die_with_launcher
die_with_launcher(os.environ)
pathlib.Path(os.environ["FOLDER"], str(os.getpid())).touch()
time.sleep(60)
"""
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHES, code], env={**os.environ, "FOLDER": str(tmp_path)})
    wait_for(tmp_path, 2)
    ranks = [int(path.name) for path in tmp_path.iterdir()]
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 10
    while any(is_running(rank) for rank in ranks):
        assert time.monotonic() < deadline, "a rank outlived its launcher"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_program_that_is_not_there_is_a_launch_error() -> None:
    missing = LaunchPlan("srun", (ProcessPlan(("/no/such/srun",), {}),), 2, "test")
    with pytest.raises(LaunchError, match="cannot start"):
        execute(missing, os.environ)
    with pytest.raises(LaunchError, match="cannot start"):
        execute(replace(missing, kind="sbatch"), os.environ)


def test_what_sbatch_answers_is_passed_on(tmp_path: Path) -> None:
    def sbatch(text: str) -> LaunchPlan:
        return LaunchPlan("sbatch", (ProcessPlan((sys.executable, "-c", text), {}),), 2, "test")

    outcome = execute(sbatch("print('Submitted batch job 12')"), os.environ)
    assert (outcome.exit_code, outcome.message) == (0, "Submitted batch job 12")
    with pytest.raises(LaunchError, match="invalid partition"):
        execute(sbatch("import sys; sys.exit('invalid partition')"), os.environ)


def test_signal_handlers_are_restored_after_a_launch() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    execute(python_plan("pass"), os.environ)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
