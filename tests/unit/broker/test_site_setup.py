"""A setup's folder: whole or not there, readable by its owner only, and changed while no broker runs."""

from __future__ import annotations

import getpass
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.protocol.errors import BadFile
from broker.servers import certificates, site_files, site_setup
from broker.servers.access import Account, Role
from broker.servers.ports import HOST, free_port
from broker.servers.site_files import Settings, Setup, write_file
from broker.transport.connection import connection_file, read_connection

NOW = datetime(2027, 1, 1, tzinfo=UTC)
ACCOUNTS = (
    Account(Role.DEVICE, "gw-a"),
    Account(Role.SENSOR, "cam-1", ("classify",)),
    Account(Role.OPERATOR, "operator"),
)
PLUGIN = Path("/plugin.so")
ME = getpass.getuser()


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A setup whose broker doesn't run."""
    settings = Settings(hosts=("broker.example", "192.0.2.7"), port=free_port(), bind=HOST, site="plant-4")
    return site_setup.init(tmp_path / "site", ACCOUNTS, settings, user=ME, plugin=PLUGIN)


def users(setup: Setup) -> dict[str, str | None]:
    document = json.loads(setup.plugin_file.read_text())
    return {each["username"]: each.get("clientid") for each in document["clients"]}


def hash_of(setup: Setup, user: str) -> str:
    document = json.loads(setup.plugin_file.read_text())
    return str(next(each["password"] for each in document["clients"] if each["username"] == user))


def test_keys_passwords_and_connections_are_readable_by_their_owner_only(setup: Setup) -> None:
    for path in setup.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_connection_file_of_each_client_can_be_read_wherever_its_folder_is(setup: Setup, tmp_path: Path) -> None:
    elsewhere = tmp_path / "box"
    setup.client_folder("gw-a").rename(elsewhere)
    control, data = (
        read_connection(connection_file(elsewhere / "connection.yaml"), data=data) for data in (False, True)
    )
    assert control.url == f"mqtts://broker.example:{setup.settings.port}"
    assert (control.user, data.user) == ("gw-a", "gw-a-data")
    assert control.password
    assert data.password
    assert control.password != data.password
    assert (control.ca, control.cert, control.key) == tuple(
        elsewhere / n for n in ("ca.crt", "client.crt", "client.key")
    )
    assert (control.site, control.client_id) == ("plant-4", None)
    sensor = read_connection(connection_file(setup.client_folder("cam-1") / "connection.yaml"))
    assert (sensor.user, sensor.client_id) == ("cam-1", "cam-1")


def test_no_file_but_the_clients_own_holds_a_password(setup: Setup) -> None:
    secrets = [path.read_text() for path in setup.folder.rglob("*password")]
    assert len(secrets) == len(set(secrets)) == 5  # with the admin's
    for path in setup.folder.rglob("*"):
        if path.is_file() and not path.name.endswith("password"):
            assert not any(secret in path.read_text() for secret in secrets), path


def test_the_configuration_lets_nobody_in_without_tls_and_an_account(setup: Setup) -> None:
    lines = [line for line in setup.configuration.read_text().splitlines() if line and not line.startswith("#")]
    stated = dict(line.partition(" ")[::2] for line in lines)
    assert [line for line in lines if line.startswith("listener")] == [f"listener {setup.settings.port} {HOST}"]
    wanted = {"allow_anonymous": "false", "tls_version": "tlsv1.2", "require_certificate": "true"}
    wanted |= {"use_identity_as_username": "false", "persistence": "true"}
    assert wanted.items() <= stated.items()
    limits = {"max_packet_size", "max_connections", "max_inflight_messages", "max_queued_messages", "max_queued_bytes"}
    assert "memory_limit" not in stated  # Mosquitto 2.0.11 refuses every client with it, once an account was changed
    assert limits | {"autosave_interval", "persistent_client_expiration"} <= stated.keys()
    assert stated["keyfile"] == str(setup.folder / "broker" / "broker.key")


def test_nothing_is_allowed_that_no_rule_allows(setup: Setup) -> None:
    document = json.loads(setup.plugin_file.read_text())
    default = document["defaultACLAccess"]
    assert not default["publishClientSend"]
    assert not default["publishClientReceive"]
    assert not default["subscribe"]
    assert all(rule["allow"] for role in document["roles"] for rule in role["acls"])


def test_the_brokers_certificate_is_for_its_hosts_and_a_clients_cant_pass_as_it(setup: Setup) -> None:
    broker, client = (
        x509.load_pem_x509_certificate((setup.folder / name).read_bytes())
        for name in ("broker/broker.crt", "clients/gw-a/client.crt")
    )
    hosts = broker.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"broker.example", "localhost"} == set(hosts.get_values_for_type(x509.DNSName))
    assert {"192.0.2.7", HOST, "::1"} == {str(each) for each in hosts.get_values_for_type(x509.IPAddress)}
    purposes = [list(each.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for each in (broker, client)]
    assert purposes == [[ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.CLIENT_AUTH]]
    authority = x509.load_pem_x509_certificate(setup.authority.certificate)
    for each in (broker, client):
        each.verify_directly_issued_by(authority)
        assert each.not_valid_after_utc <= authority.not_valid_after_utc
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_certificates_begin_a_day_ago_and_end_with_their_authority() -> None:
    authority = certificates.make_authority("test", NOW)
    late = NOW + timedelta(days=certificates.CA_DAYS - 10)
    issued = certificates.issue(authority, "gw-a", late)
    assert issued.ends == authority.ends
    assert x509.load_pem_x509_certificate(issued.certificate).not_valid_before_utc == late - certificates.CLOCKS_DIFFER
    with pytest.raises(BadFile, match="authority ended on"):
        certificates.issue(authority, "gw-a", NOW + timedelta(days=certificates.CA_DAYS))


def test_a_machine_whose_clock_isnt_set_makes_no_certificates() -> None:
    with pytest.raises(BadFile, match=r"clock: says 1970-01-01 00:00 .*set the clock first"):
        certificates.make_authority("test", datetime.fromtimestamp(0, UTC))


def test_a_folder_that_isnt_empty_is_left_alone(tmp_path: Path, setup: Setup) -> None:
    with pytest.raises(BadFile, match="isn't an empty folder"):
        site_setup.init(setup.folder, ACCOUNTS, setup.settings, user=ME, plugin=PLUGIN)
    (tmp_path / "file").touch()
    with pytest.raises(BadFile, match="isn't an empty folder"):
        site_setup.init(tmp_path / "file", ACCOUNTS, setup.settings, user=ME, plugin=PLUGIN)


def test_a_mount_point_is_told_for_it_cant_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    with pytest.raises(
        BadFile, match=f"is a mount point, which can't be replaced; name a folder inside it: {tmp_path}/site"
    ):
        site_setup.init(tmp_path, (), Settings(hosts=("b",)), user=ME, plugin=PLUGIN)
    assert site_setup.init(
        tmp_path / "site", (), Settings(hosts=("b",)), user=ME, plugin=PLUGIN
    ).configuration.is_file()


def test_a_folder_that_mosquittos_user_cant_reach_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(BadFile, match="is not reachable for the user mosquitto"):
        site_setup.init(tmp_path / "closed/site", (), Settings(hosts=("b",)), user="mosquitto", plugin=PLUGIN)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    site_setup.init(tmp_path / "empty", (), Settings(hosts=("b",)), user=ME, plugin=PLUGIN)
    assert site_setup.open_setup(tmp_path / "empty").settings.hosts == ("b",)


@pytest.mark.parametrize("where", ["write_client", "write_brokers_certificate", "give"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_setup_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(site_setup, where, fail)
    with pytest.raises((BadFile, KeyboardInterrupt)):
        site_setup.init(tmp_path / "site", ACCOUNTS, Settings(hosts=("b",)), user=ME, plugin=PLUGIN)
    assert list(tmp_path.iterdir()) == []


def test_an_account_with_the_name_of_its_role_is_named_once() -> None:
    named = [Account(Role.SOURCES, name).shown for name in ("sources", "yard")]
    assert named == ["sources", "sources yard"]


@pytest.mark.parametrize(
    "accounts",
    [
        (Account(Role.SENSOR, "gw-a"), Account(Role.DEVICE, "gw-a")),
        (Account(Role.SENSOR, "gw-a-data"), Account(Role.DEVICE, "gw-a")),
        (Account(Role.DEVICE, "gw-a"), Account(Role.SENSOR, "gw-a-data")),
        (Account(Role.OPERATOR, "admin"),),
    ],
)
def test_two_accounts_of_one_name_are_refused(tmp_path: Path, accounts: tuple[Account, ...]) -> None:
    with pytest.raises(BadFile, match=r"the user name [a-z-]+ is taken"):
        site_setup.init(tmp_path / "site", accounts, Settings(hosts=("b",)), user=ME, plugin=PLUGIN)
    assert list(tmp_path.iterdir()) == []


def test_an_account_is_added_changed_and_deleted_in_the_file_of_a_stopped_broker(setup: Setup) -> None:
    assert site_setup.add(setup, Account(Role.DEVICE, "gw-b")) == "stopped"
    assert users(setup)["gw-b-data"] == "s2m3.plant-4.devices.gw-b.data"
    assert (setup.client_folder("gw-b") / "data-password").is_file()
    before, password = hash_of(setup, "gw-b"), (setup.client_folder("gw-b") / "password").read_text()
    assert site_setup.rotate(setup, "gw-b") == "stopped"
    assert hash_of(setup, "gw-b") != before
    assert (setup.client_folder("gw-b") / "password").read_text() != password
    assert users(setup)["gw-b-data"] == "s2m3.plant-4.devices.gw-b.data"
    assert site_setup.revoke(setup, "gw-b") == "stopped"
    assert not {"gw-b", "gw-b-data"} & users(setup).keys()
    assert not setup.client_folder("gw-b").exists()
    roles = {each["rolename"] for each in json.loads(setup.plugin_file.read_text())["roles"]}
    assert roles == {"admin", "gw-a", "cam-1", "operator"}
    assert stat.S_IMODE(setup.plugin_file.stat().st_mode) == 0o600
    assert [path.name for path in (setup.folder / "clients").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["gw-a", "gw-a-data", "admin", "cam-1"])
def test_an_account_that_is_there_cant_be_added(setup: Setup, name: str) -> None:
    before = setup.plugin_file.read_bytes()
    with pytest.raises(BadFile, match=f"the user name {name} is taken"):
        site_setup.add(setup, Account(Role.SENSOR, name))
    assert setup.plugin_file.read_bytes() == before
    assert (setup.client_folder("gw-a") / "data-password").is_file()


@pytest.mark.parametrize("name", ["gw-b", "admin", "gw-a-data", "../gw-a", ""])
def test_an_account_that_isnt_there_cant_be_deleted_or_changed(setup: Setup, name: str) -> None:
    for change in (site_setup.revoke, site_setup.rotate):
        with pytest.raises(BadFile, match="isn't there; name one of cam-1, gw-a, operator"):
            change(setup, name)
    assert setup.client_folder("gw-a").is_dir()


def test_a_folder_that_cant_be_written_is_told() -> None:
    with pytest.raises(BadFile, match=r"^/proc/site: can't be read or written: .*; run this as root"):
        site_setup.init(Path("/proc/site"), (), Settings(hosts=("broker.lan",)), plugin=PLUGIN)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"clients": [{}], "roles": []}', "[" * 100_000])
def test_a_damaged_file_of_the_plugin_is_told(setup: Setup, content: str) -> None:
    setup.plugin_file.write_text(content)
    with pytest.raises(BadFile, match=r"is not the plugin's file: .*; restore it from a backup"):
        site_setup.add(setup, Account(Role.SENSOR, "cam-9"))


def test_a_link_in_the_brokers_own_folder_leads_no_file_elsewhere(setup: Setup, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    (setup.plugin_file.parent / f".{setup.plugin_file.name}.new").symlink_to(other)
    site_setup.add(setup, Account(Role.SENSOR, "cam-9"))
    assert other.read_text() == "kept"
    dangling = setup.plugin_file.parent / "dangling"
    dangling.symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError):
        write_file(dangling, b"x")
    assert not (tmp_path / "gone").exists()


def test_a_folder_that_isnt_a_setup_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="is not a site's setup"):
        site_setup.open_setup(tmp_path)


def test_without_client_certificates_passwords_remain(tmp_path: Path) -> None:
    settings = Settings(hosts=("b",), client_certificates=False)
    setup = site_setup.init(tmp_path / "site", ACCOUNTS, settings, user=ME, plugin=PLUGIN)
    keys = yaml.safe_load((setup.client_folder("cam-1") / "connection.yaml").read_text())
    assert keys.keys() == {"broker", "ca", "user", "password_file", "client_id"}
    assert "\nrequire_certificate false\n" in setup.configuration.read_text()


def test_where_mosquitto_has_no_plugin_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_files, "PLUGIN_FOLDERS", (str(tmp_path),))
    with pytest.raises(BadFile, match=r"dynamic security plugin isn't on this machine; install Mosquitto 2.0"):
        site_setup.init(tmp_path / "site", (), Settings(hosts=("b",)))
