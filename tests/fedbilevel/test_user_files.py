"""Files of a user's own as modules: what names one, where it lies, when it runs, and what travels in its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedbilevel.errors import BadInput
from fedbilevel.user_files import (
    UserFile,
    file_of,
    is_users,
    located,
    module_of,
    names_file,
    provide,
    public_callables,
    run,
)

COUNTING = "import builtins\nbuiltins.runs_of_a_test = getattr(builtins, 'runs_of_a_test', 0) + 1\n"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.runs_of_a_test", 0, raising=False)
    monkeypatch.setattr("fedbilevel.user_files._PROVIDED", {})


def runs() -> int:
    import builtins

    found: int = builtins.runs_of_a_test  # type: ignore[attr-defined]  # put there by the files
    return found


def write(text: str, name: str = "own.py") -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
    return f"{name}:thing"


@pytest.mark.parametrize(
    ("name", "does"),
    [
        ("own.py:make", True),
        ("/a/b/own.py:make", True),
        ("a:b/own.py:make", True),
        ("own.py:", True),
        ("own.py", False),
        ("own:make", False),
        ("aggitd", False),
        ("own.pyc:make", False),
        ("own:make.py", False),
        ("", False),
    ],
)
def test_what_names_a_file(name: str, does: bool) -> None:
    assert names_file(name) is does


def test_a_file_is_looked_for_here_and_then_in_the_folder_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("", "there/own.py")
    there = tmp_path / "there"
    assert located("own.py:make", there) == f"{there}/own.py:make"
    assert located("../own.py:make", there / "sub") == "../own.py:make"  # no such folder, so no such file
    write("")
    assert located("own.py:make", there) == f"{tmp_path}/own.py:make"
    assert located(f"{there}/own.py:make", tmp_path) == f"{there}/own.py:make"
    assert located("gone.py:make", there) == "gone.py:make"
    monkeypatch.setenv("HOME", str(there))
    assert located("~/own.py:make", tmp_path) == f"{there}/own.py:make"
    (tmp_path / "link.py").symlink_to(there / "own.py")
    assert located("link.py:make", there) == f"{there}/own.py:make"


def test_a_file_runs_once_for_every_content_and_every_place() -> None:
    name = write(COUNTING + "thing = 1\n")
    first = module_of(name, "key")
    assert module_of(name, "key") is first
    assert runs() == 1
    write(COUNTING + "thing = 2\n")
    second = module_of(name, "key")
    assert (first.thing, second.thing, runs()) == (1, 2, 2)
    assert first.__name__ != second.__name__
    elsewhere = module_of(write(COUNTING + "thing = 1\n", "sub/own.py"), "key")
    assert (elsewhere.thing, runs()) == (1, 3)
    assert elsewhere is not first
    write(COUNTING + "thing = 1\n")
    assert module_of(name, "key") is first  # as it was before: it has run
    assert runs() == 3


def test_a_module_knows_its_file_and_only_users_modules_are_users(tmp_path: Path) -> None:
    text = "thing = 1\n"
    module = module_of(write(text), "key")
    assert module.__file__ == str(tmp_path / "own.py")
    assert is_users(module.__name__)
    assert sys.modules[module.__name__] is module
    assert file_of(module.__name__) == UserFile(path=str(tmp_path / "own.py"), source=text)
    assert file_of("fedbilevel.user_files") is None
    assert not is_users("fedbilevel.user_files")
    assert not is_users("__main__")


def test_text_travels_in_the_place_of_what_this_machine_holds(tmp_path: Path) -> None:
    name = write("thing = 'here'\n")
    there = UserFile(path=str(tmp_path / "own.py"), source="thing = 'there'\n")
    assert run(there).thing == "there"
    assert module_of(name, "key").thing == "here"
    provide([there])
    assert module_of(name, "key").thing == "there"
    assert module_of("./sub/../own.py:thing", "key").thing == "there"  # the same file
    Path("own.py").unlink()
    assert module_of(name, "key").thing == "there"
    absent = UserFile(path=str(tmp_path / "never.py"), source="thing = 'never'\n")
    provide([absent])
    assert module_of("never.py:thing", "key").thing == "never"


def test_the_name_of_a_module_is_the_same_in_every_process() -> None:
    """blake2b, 8 bytes, of path, zero and text: counted here once more."""
    import hashlib

    digest = hashlib.blake2b(b"/a/own.py\0x = 1\n", digest_size=8).hexdigest()
    assert UserFile(path="/a/own.py", source="x = 1\n").module_name == f"fedbilevel_file_{digest}"
    names = {UserFile(path=p, source=s).module_name for p, s in (("/a", "b"), ("/a", "c"), ("/b", "b"), ("/ab", ""))}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "a file that can be read, and own.py: No such file or directory"),
        (b"def (:", "a file that imports, but it raised SyntaxError: invalid syntax"),
        (b"# -*- coding: klingon -*-\n", "a file of Python, but it raised SyntaxError: unknown encoding: klingon"),
        (b"# \xff\n", "a file of Python, but it raised "),
        (b"raise SystemExit", "a file that imports, but it raised SystemExit"),
        (b"raise ImportError('first\\nsecond')", "a file that imports, but it raised ImportError: first second"),
        (b"from . import sibling", "a file that imports, but it raised ImportError"),
        (b"class E(Exception): pass\nraise E", "a file that imports, but it raised E"),
    ],
)
def test_what_cannot_be_run_is_refused_under_the_key_that_named_it(content: bytes | None, said: str) -> None:
    if content is not None:
        Path("own.py").write_bytes(content)
    before = set(sys.modules)
    for _ in range(2):  # nor does a half of it remain
        with pytest.raises(BadInput) as refused:
            module_of("own.py:thing", "some.key")
        assert str(refused.value).startswith(f"some.key: got 'own.py:thing'; allowed: {said}")
        assert "\n" not in str(refused.value)
    assert not [name for name in set(sys.modules) - before if is_users(name)]


def test_ctrl_c_goes_through_and_leaves_nothing() -> None:
    name = write("raise KeyboardInterrupt")
    before = set(sys.modules)
    with pytest.raises(KeyboardInterrupt):
        module_of(name, "key")
    assert not [name for name in set(sys.modules) - before if is_users(name)]


def test_other_encodings_and_line_ends_are_read() -> None:
    Path("own.py").write_bytes(b"# -*- coding: latin-1 -*-\r\nthing = '\xe9'\r\n")
    assert module_of("own.py:thing", "key").thing == "é"
    Path("own.py").write_bytes(b"\xef\xbb\xbfthing = 'marked'\n")
    assert module_of("own.py:thing", "key").thing == "marked"


def test_classes_and_pickles_find_their_module_by_its_name() -> None:
    import pickle

    text = "from dataclasses import dataclass\n@dataclass\nclass Thing:\n    size: 'int' = 3\n"
    module = module_of(write(text), "key")
    assert pickle.loads(pickle.dumps(module.Thing(7))) == module.Thing(7)


def test_what_a_file_defines_itself() -> None:
    text = "from pathlib import Path\nimport math\ndef make(): ...\nclass Make: ...\ndef _own(): ...\nsize = 3\n"
    assert set(public_callables(module_of(write(text), "key"))) == {"make", "Make"}
