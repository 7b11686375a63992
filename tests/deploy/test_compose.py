"""Tests of the Compose files: every container is bounded and unprivileged, and gets only settings that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.deploy.chart import CLEANUP_SECONDS, ROOT, VALUES, documents, of_kind

QUICK, FULL = ROOT / "docker-compose.yml", ROOT / "deploy" / "compose" / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = {
    f"{path.parent.name}/{name}": service
    for path in (QUICK, FULL)
    for name, service in yaml.safe_load(path.read_text())["services"].items()
}
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
STORES = {name: service for name, service in SERVICES.items() if name.endswith("/redis")}
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_of_ours = pytest.mark.parametrize("service", OURS.values(), ids=OURS)


@each_service
def test_container_is_hardened(service: dict[str, Any]):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "privileged" not in service


@each_service
def test_port_is_open_to_this_machine_alone(service: dict[str, Any]):
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@each_of_ours
def test_container_is_told_settings_of_the_service(service: dict[str, Any]):
    names = {name.removeprefix("NOTELLM_").lower() for name in service["environment"]}
    assert names - set(Settings.model_fields) == set()


@pytest.mark.parametrize("path", [QUICK, FULL], ids=["quick", "full"])
def test_container_gets_the_file_of_further_settings(path: Path):
    file = ROOT / "deploy" / "compose" / "settings.env"
    ours = [service for service in yaml.safe_load(path.read_text())["services"].values() if "build" in service]
    assert {(path.parent / service["env_file"]).resolve() for service in ours} == {file}
    assert all(line.startswith("#") for line in file.read_text("utf-8").splitlines()), "it sets nothing by itself"


@each_of_ours
def test_container_is_given_time_to_end(service: dict[str, Any]):
    drain = int(service["environment"].get("NOTELLM_DRAIN_SECONDS", "0"))
    shutdown = Settings.model_fields["shutdown_seconds"].default
    assert int(service["stop_grace_period"].removesuffix("s")) >= drain + 2 * shutdown + CLEANUP_SECONDS


@each_of_ours
def test_container_may_have_the_threads_of_hundreds_of_tenants(service: dict[str, Any]):
    assert service["pids_limit"] >= 4096


@each_of_ours
def test_every_folder_that_is_written_is_a_volume(service: dict[str, Any]):
    """/cache is not listed here: the image declares it with VOLUME."""
    mounts = {volume.split(":")[1] for volume in service["volumes"]} | set(service["tmpfs"])
    assert {"/data", "/tmp"} <= mounts


@each_service
def test_password_is_in_no_argument(service: dict[str, Any]):
    assert not re.search(r"(?<!\$)\$\{?\w*PASSWORD", str(service.get("command", "")))


def options_of(command: list[str]) -> set[str]:
    """Lines of the configuration in a Valkey container's command, without maxmemory."""
    lines = command[-1].replace("$$", "$").splitlines()
    return {line for line in lines if not line.startswith("maxmemory ")}


def test_every_valkey_has_the_same_durability():
    (chart,) = of_kind(documents(VALUES["everything"]), "StatefulSet")
    (container,) = chart["spec"]["template"]["spec"]["containers"]
    for store in STORES.values():
        assert options_of(store["command"]) == options_of(container["command"])
        assert "maxmemory " in store["command"][-1]


def test_profiles_are_those_that_the_docs_name():
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    assert profiles == {"cpu", "gpu", "monitoring", "cluster"}
    page = (ROOT / "docs" / "operations" / "containers.md").read_text("utf-8")
    assert all(f"`{profile}`" in page for profile in profiles)


def test_files_that_are_mounted_exist():
    for path in (QUICK, FULL):
        for service in yaml.safe_load(path.read_text())["services"].values():
            for volume in service.get("volumes", ()):
                if volume.startswith("."):
                    assert (path.parent / volume.split(":")[0]).is_file()


def test_monitoring_asks_for_the_name_of_the_replicas():
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yaml").read_text())
    (names,) = [sd["names"] for job in config["scrape_configs"] for sd in job["dns_sd_configs"]]
    full = {name: service for name, service in OURS.items() if name.startswith("compose/")}
    assert full
    assert all(service["networks"]["default"]["aliases"] == names for service in full.values())


@each_of_ours
def test_service_has_a_key_or_this_machine_alone(service: dict[str, Any]):
    environment = service["environment"]
    if environment.get("NOTELLM_INSECURE") == "1":
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    else:
        assert environment["NOTELLM_BOOTSTRAP_KEY"].startswith("${NOTELLM_BOOTSTRAP_KEY:?")


@pytest.mark.parametrize("path", [QUICK, FULL], ids=["quick", "full"])
def test_secret_is_a_file_that_is_mounted(path: Path):
    """Compose copies a secret from a variable into the container's root file system, and fails if that is read-only."""
    compose = yaml.safe_load(path.read_text())
    for name in {secret for service in compose["services"].values() for secret in service.get("secrets", ())}:
        assert set(compose["secrets"][name]) == {"file"}


def test_monitoring_has_a_key():
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    (secret,) = SERVICES["compose/prometheus"]["secrets"]
    assert job["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}


def test_one_late_check_does_not_take_a_replica_out_and_a_draining_one_is_out_in_time():
    text = (ROOT / "deploy" / "compose" / "haproxy.cfg").read_text("utf-8")
    check = re.search(r"timeout check (\d+)s", text)
    server = re.search(r"check inter (\d+)s fall (\d+)", text)
    assert check
    assert server
    interval, fall = map(int, server.groups())
    (drain,) = {int(service["environment"].get("NOTELLM_DRAIN_SECONDS", 0)) for service in OURS.values()} - {0}
    assert fall >= 2
    assert fall * interval + int(check[1]) < drain
