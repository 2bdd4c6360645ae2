from pathlib import Path

import pytest

from dtrain.launch.hosts import Host, parse_hosts, read_hostfile

BOTH = (Host("node0", 2), Host("me@node1.example", 3))


def test_hosts_have_their_numbers_or_the_default() -> None:
    assert parse_hosts("node0:2,me@node1.example:3", None) == BOTH
    assert parse_hosts("a, b:2", 4) == (Host("a", 4), Host("b", 2))
    assert parse_hosts("a", None) == (Host("a", 1),)


@pytest.mark.parametrize(
    "content",
    [
        "node0 slots=2\n\n# of Open MPI\nme@node1.example slots = 3 max-slots=4 # big\n",
        "node0:2\nme@node1.example:3\n",
    ],
    ids=["Open MPI", "MPICH"],
)
def test_host_files_of_both_forms(tmp_path: Path, content: str) -> None:
    (tmp_path / "hosts").write_text(content)
    assert read_hostfile(tmp_path / "hosts", None) == BOTH


@pytest.mark.parametrize("text", ["", "a:", "a:0", "a:two", "-oProxyCommand=x:1", "a b", "a,,b", "a;b"])
def test_what_is_no_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form node0:2,node1:2"):
        parse_hosts(text, None)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a slots=2\nb cores=3\n", r"line 2: `b cores=3` is not `node0 slots=2`"),
        ("# nobody\n", "names no host"),
        ("a\na:2\n", "names a more than once"),
    ],
)
def test_a_host_file_of_another_form_is_refused_by_its_line(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "hosts").write_text(content)
    with pytest.raises(ValueError, match=part):
        read_hostfile(tmp_path / "hosts", None)


def test_a_number_for_everybody_that_nobody_needs_is_refused() -> None:
    with pytest.raises(ValueError, match="-n is for hosts without a number of their own"):
        parse_hosts("a:2", 3)


def test_a_host_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere cannot be read.*correct its path"):
        read_hostfile(tmp_path / "nowhere", None)
