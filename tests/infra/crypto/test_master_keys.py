"""Where the master key comes from: the environment, a file, or a service."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from infra.crypto.envelope import MasterKeyError
from infra.crypto.master_keys import MasterKeyFile, key_provider, short_id
from infra.settings import SettingsError, load_settings
from tests.absent import absent
from tests.keys import master_key

OLD, NEW, THIRD = bytes(range(32)), b"\x07" * 32, b"\x08" * 32
BOTH = master_key(NEW, OLD)
NEW_ID, OLD_ID = BOTH.key_ids
URL = "postgresql://api@db/sparkledger"


def text(key: bytes) -> str:
    """Return a key as one writes it."""
    return base64.b64encode(key).decode()


def key_file(directory: Path, *keys: bytes, mode: int = 0o600) -> Path:
    file = directory / "keys"
    file.write_text("".join(f"{text(key)}\n" for key in keys))
    file.chmod(mode)
    return file


async def test_the_environment_gives_the_master_key_and_the_one_before() -> None:
    given_keys = {"SPARKLEDGER_MASTER_KEY": text(NEW), "SPARKLEDGER_MASTER_KEY_PREVIOUS": text(OLD)}
    assert key_provider(load_settings(given_keys)).key_ids == BOTH.key_ids


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"MASTER_KEY_PREVIOUS": text(OLD)}, "SPARKLEDGER_MASTER_KEY is not: set both"),
        ({"MASTER_KEY": text(NEW), "MASTER_KEY_FILE": "/etc/key"}, "both set: set only one"),
        ({"MASTER_KEY": text(NEW), "MASTER_KEY_PREVIOUS": "short"}, "is not valid .its value is not shown."),
        ({"DATABASE_URL": URL}, "SPARKLEDGER_MASTER_KEY is not"),
    ],
)
def test_master_keys_that_do_not_go_together_are_refused(variables: dict[str, str], what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        load_settings({f"SPARKLEDGER_{name}": value for name, value in variables.items()})


def test_with_a_file_of_the_master_key_a_database_url_needs_no_other(tmp_path: Path) -> None:
    file = key_file(tmp_path, NEW)
    settings = load_settings({"SPARKLEDGER_DATABASE_URL": URL, "SPARKLEDGER_MASTER_KEY_FILE": str(file)})
    assert key_provider(settings).key_ids == (NEW_ID,)


def test_without_a_setting_a_key_is_made_in_the_data_directory_for_its_owner_alone(tmp_path: Path) -> None:
    settings = load_settings({"SPARKLEDGER_DATA_DIR": str(tmp_path / "data")})
    first, again = key_provider(settings), key_provider(settings)
    assert first.key_ids == again.key_ids
    assert (tmp_path / "data" / "master.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["master.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o620])
def test_a_file_that_others_may_reach_is_refused(tmp_path: Path, mode: int) -> None:
    file = key_file(tmp_path, NEW, mode=mode)
    with pytest.raises(MasterKeyError, match=rf"has mode {mode:04o}, .* Run: chmod 600 {file}"):
        MasterKeyFile(file)


def test_a_file_of_another_user_is_refused_although_only_that_user_can_read_it(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        absent("gives a file to another user: run the tests as root")
    file = key_file(tmp_path, NEW)
    os.chown(file, 12345, 12345)
    with pytest.raises(MasterKeyError, match=r"belongs to the user with id 12345, .* run: chown 0 "):
        MasterKeyFile(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"short\n",
        f"{text(bytes(32))}\n".encode(),
        f"{text(NEW)}\nshort\n".encode(),
        b"\xff" * 44,
        f"{text(NEW)}\n".encode() * 100,
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    file = key_file(tmp_path)
    file.write_bytes(content)
    with pytest.raises(MasterKeyError, match="does not contain a master key"):
        MasterKeyFile(file)


def test_an_absent_file_is_named_and_no_key_is_made_up_for_it(tmp_path: Path) -> None:
    settings = load_settings({"SPARKLEDGER_MASTER_KEY_FILE": str(tmp_path / "absent")})
    with pytest.raises(MasterKeyError, match="absent cannot be read: No such file or directory"):
        key_provider(settings)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_is_read_again_where_a_key_is_asked_for_that_is_new(tmp_path: Path) -> None:
    here, there = MasterKeyFile(key_file(tmp_path, OLD)), MasterKeyFile(tmp_path / "keys")
    fresh = there.add()
    wrapped = await there.wrap(fresh, b"k" * 32, "purpose")
    assert list(here.key_ids) == [OLD_ID]
    assert await here.unwrap(fresh, wrapped, "purpose") == b"k" * 32
    assert list(here.key_ids) == [fresh, OLD_ID]
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600


async def test_a_key_that_no_file_has_is_asked_for_by_its_id(tmp_path: Path) -> None:
    with pytest.raises(MasterKeyError, match=f"wrapped with master key {NEW_ID}"):
        await MasterKeyFile(key_file(tmp_path, OLD)).unwrap(NEW_ID, b"wrapped", "purpose")


def test_a_key_that_a_service_names_has_an_id_of_the_same_form() -> None:
    assert short_id("arn:aws:kms:eu-west-1:1:key/2") == short_id("arn:aws:kms:eu-west-1:1:key/2") != short_id("other")
    assert len(short_id("other")) == len(NEW_ID)
