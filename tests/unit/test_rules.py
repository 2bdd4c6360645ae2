"""Rules that hold from the first line (docs/design.md), read off our own source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dtrain.arguments.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2] / "dtrain"
TESTS = ROOT.parent / "tests"
SOURCES = sorted(path for path in ROOT.rglob("*.py") if "conf" not in path.relative_to(ROOT).parts)


class Use(NamedTuple):
    """A dotted name that a file imports or mentions."""

    file: str
    line: int
    name: str


def uses(path: Path) -> Iterator[Use]:
    """Every import and every dotted name of a file, with import aliases spelled out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    file = path.relative_to(ROOT).as_posix()
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                yield Use(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: import by the full name"
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield Use(file, node.lineno, f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield Use(file, node.lineno, aliases.get(node.id, node.id))
        elif isinstance(node, ast.Attribute) and (name := dotted(node)) is not None:
            first, _, rest = name.partition(".")
            yield Use(file, node.lineno, f"{aliases.get(first, first)}.{rest}")


def dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


ALL = [use for path in SOURCES for use in uses(path)]


def found(*names: str, allowed_in: tuple[str, ...] = ()) -> list[str]:
    """Where a name, or anything below it, is used outside of `allowed_in`."""
    return sorted(
        {
            f"{use.file}:{use.line}: {use.name}"
            for use in ALL
            if any(use.name == name or use.name.startswith(f"{name}.") for name in names)
            and not any(use.file == place or use.file.startswith(f"{place}/") for place in allowed_in)
        }
    )


def test_the_source_is_where_this_test_looks() -> None:
    assert {"exchange/state.py", "meter/c10d.py", "sync/ddp.py", "train/entry.py"} <= {
        path.relative_to(ROOT).as_posix() for path in SOURCES
    }
    assert found("torch.distributed")
    assert found("hydra.compose") != []
    assert not found("hydra", allowed_in=("train/compose.py",))


def test_no_pickle() -> None:
    assert not found("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
    assert not found("torch.save", "torch.serialization", "numpy.save", "np.save")


def test_torch_load_only_where_a_user_s_own_weights_are_imported_and_with_weights_only() -> None:
    assert not found("torch.load", "torch.jit.load", allowed_in=("vision/models/load_weights.py",))
    calls = [
        call
        for call in ast.walk(ast.parse((ROOT / "vision/models/load_weights.py").read_text()))
        if isinstance(call, ast.Call) and dotted(call.func) == "torch.load"
    ]
    assert len(calls) == 1
    (only,) = [keyword.value for keyword in calls[0].keywords if keyword.arg == "weights_only"]
    assert isinstance(only, ast.Constant)
    assert only.value is True


def test_numpy_load_refuses_pickles() -> None:
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and dotted(call.func) in ("np.load", "numpy.load"):
                keywords = {k.arg: k.value for k in call.keywords}
                allowed = keywords.get("allow_pickle")
                assert allowed is None or (isinstance(allowed, ast.Constant) and allowed.value is False), path


def test_no_code_from_data() -> None:
    assert not found("eval", "__import__", "importlib.import_module", "runpy", "yaml.load")
    assert not found("exec", "compile", allowed_in=("meter/script.py",))  # the program that the user names
    assert not found("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_class", "hydra.utils.get_method")
    assert not found("instantiate", "os.system")
    # what the user asks it to run; Slurm asked for a host's address; launchers asked for their version, and a second
    # rank of its own; workers; ssh to the hosts that the user names; pretended ranks
    allowed = ("cluster/processes.py", "comm/slurm.py", "doctor/backends.py", "doctor/run.py")
    allowed += ("launch/mpi.py", "launch/processes.py", "launch/ssh.py", "launch/sweep.py", "plan/neighbours.py")
    assert not found("subprocess", allowed_in=allowed)


def test_no_object_collectives() -> None:
    banned = ("_object_list", "_object", "object_list")
    assert not [use for use in ALL if use.name.startswith("torch.distributed") and use.name.endswith(banned)]
    assert not [use for use in ALL if use.name.split(".")[-1] in ("all_gather_object", "broadcast_object_list")]


def test_torch_distributed_only_where_it_belongs() -> None:
    allowed = (
        "comm/torch_dist.py",
        "launch/agent.py",
        "meter",
        "plan/auto_ddp.py",
        "sync/ddp.py",
        "sync/program.py",
        "sync/models.py",
    )
    assert not found("torch.distributed", allowed_in=allowed)
    assert not found("torch.nn.parallel", allowed_in=(*allowed, "__init__.py"))  # there for a type annotation only
    assert not found(
        "dtrain.comm.torch_dist",
        allowed_in=("comm", "sync/ddp.py", "sync/program.py", "doctor/backends.py", "plan/probe.py"),
    )


def test_mpi4py_only_in_its_backend() -> None:
    assert found("mpi4py") != []
    assert not found("mpi4py", allowed_in=("comm/mpi.py", "comm/mpi_failure.py"))
    assert not found("dtrain.comm.mpi", allowed_in=("comm", "doctor/backends.py"))


def test_horovod_only_in_its_backend() -> None:
    assert found("horovod") != []
    assert not found("horovod", allowed_in=("comm/horovod.py", "launch/horovodrun.py"))
    assert not found("dtrain.comm.horovod", allowed_in=("comm", "sync/horovod.py", "doctor/backends.py"))


def test_prometheus_client_only_where_runs_are_observed() -> None:
    assert found("prometheus_client") != []
    assert not found(
        "prometheus_client", allowed_in=("observe/prometheus.py", "observe/endpoint.py", "observe/scrape.py")
    )


def test_pyroute2_is_imported_in_one_file() -> None:
    assert not found("pyroute2", allowed_in=("cluster/namespaces.py",))


def test_constriction_is_imported_in_one_file() -> None:
    assert found("constriction") != []
    assert not found("constriction", allowed_in=("pack/coder.py",))


def test_cryptography_is_imported_in_one_file() -> None:
    assert found("cryptography") != []
    assert not found("cryptography", allowed_in=("ship/keys.py",))


def test_whatever_listens_for_http_is_bounded() -> None:
    assert found("socketserver") != []
    assert not found(
        "socketserver", "http.server.HTTPServer", "http.server.ThreadingHTTPServer", allowed_in=("server.py",)
    )


def test_unpacking_needs_no_torch() -> None:
    code = "import sys, dtrain.pack; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def test_no_utils_and_no_helpers() -> None:
    assert not [p for p in SOURCES if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_a_file_s_name_says_what_is_in_it_to_whoever_has_not_met_it() -> None:
    banned = ("fixed", "watch", "task", "build", "places", "narrow", "han", "hvd")
    assert not [p for p in SOURCES if p.stem in banned or p.parent.name in banned]


def test_few_files_lie_at_the_root_for_whatever_belongs_together_has_a_package() -> None:
    assert len([path for path in ROOT.iterdir() if path.is_file()]) <= 5


def test_unit_tests_of_a_package_lie_in_a_folder_of_its_name() -> None:
    unit = Path(__file__).parent
    folders = {path.relative_to(unit) for path in unit.rglob("*") if path.is_dir() and any(path.glob("test_*.py"))}
    assert folders
    assert not [folder for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()]


def test_no_module_global_holds_a_rank() -> None:
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [t.id.lower() for t in targets if isinstance(t, ast.Name)]
                assert not [n for n in names if n.strip("_") in ("rank", "local_rank", "world_size")], path


def test_help_imports_no_torch_and_nothing_of_an_extra() -> None:
    code = f"import sys, dtrain, dtrain.cli as c; c.command_line(); print({{*{[*EXTRAS, 'torch']}}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "set()"


def test_importing_the_core_imports_no_backend_and_no_front_end() -> None:
    """What is heavy, or needs a build of torch with a backend, is imported where it is opened."""
    heavy = (*EXTRAS, "rich", "dtrain.comm.torch_dist", "mpi4py", "numba", "triton")
    code = (
        "import sys, dtrain.exchange, dtrain.compressors, dtrain.comm, dtrain.sync.every_step, dtrain.meter;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


OWN_WAY = (
    "files.py",
    "observe/jsonl.py",  # grows by the line, and is read meanwhile
    "ship/keys.py",  # for its owner alone, and never in another's place
    "ship/target.py",  # its partial file is its lock as well
    "vision/data/archive.py",  # a lock, and a whole folder that takes its name by a rename
    "cluster/namespaces.py",  # a setting of the kernel
)


def writings(path: Path) -> Iterator[int]:
    """The lines of a source in which a file is written, or takes another's place."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith((".partial", ".tmp")):
            yield node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = [arg.value for arg in (*node.args, *(k.value for k in node.keywords)) if isinstance(arg, ast.Constant)]
        if (
            called in ("write_text", "write_bytes", "save_file", "write_to_textfile", "rename", "mkstemp")
            or (called == "NamedTemporaryFile")
            or (called == "replace" and len(node.args) == 1 and not node.keywords)  # of a string it has two
            or (called == "open" and any(isinstance(mode, str) and mode[:1] in ("w", "x") for mode in texts[:1]))
            or (called == "open" and dotted(node.func) == "os.open" and "O_CREAT" in ast.unparse(node))
        ):
            yield node.lineno


def test_a_whole_file_is_written_in_one_way() -> None:
    assert list(writings(ROOT / "files.py"))
    own = {path.relative_to(ROOT).as_posix(): list(writings(path)) for path in SOURCES}
    assert not {file: lines for file, lines in own.items() if lines and file not in OWN_WAY}
    assert not [file for file in OWN_WAY if not own[file]], "an exception that nothing needs any more"


READ_OTHERWISE = (
    "files.py",
    "compressors/trials.py",  # from here on what ships with dtrain
    "observe/dashboards.py",
    "report/template.py",
    "vision/data/digits.py",
    "meter/nic.py",  # of the kernel's
    "elastic/supervisor.py",
    "launch/remote.py",
    "observe/process.py",
    "observe/run_directory.py",
    "train/parent.py",
    "meter/script.py",  # the program that the user runs, from a pipe if they like
)


def readings(path: Path) -> Iterator[int]:
    """The lines of a source in which a file is opened to be read."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            is_open = called == "open" and (
                texts[:1] == ["rb"] or (isinstance(node.func, ast.Attribute) and not node.args)
            )
            if called in ("read_text", "read_bytes") or is_open:
                yield node.lineno


def test_whatever_file_a_user_names_is_opened_in_one_way() -> None:
    own = {path.relative_to(ROOT).as_posix(): list(readings(path)) for path in SOURCES}
    assert not {file: lines for file, lines in own.items() if lines and file not in READ_OTHERWISE}
    assert not [file for file in READ_OTHERWISE[1:] if not own[file]], "an exception that nothing needs any more"


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by it, so one of the two would not be collected."""
    names = [path.name for path in (ROOT.parent / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_no_test_patches_what_every_thread_of_the_process_calls() -> None:
    """A clock that raises, say, ends a thread that an earlier test left. For one module: tests/stand_in.py."""
    patched = re.compile(
        r"setattr\(\s*\"?[\w.]+\.(time|os|shutil|socket|threading|subprocess|signal|sys)(, \"|\.\w+\")"
    )
    found = [
        f"{path.relative_to(TESTS)}: {match[0]}"
        for path in sorted(TESTS.rglob("*.py"))
        for match in patched.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found
