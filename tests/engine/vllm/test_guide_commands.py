"""What the pages about vLLM show is right, as far as that can be told without vLLM and a cluster.

The commands of Foreword and of vLLM are run in test_guide.py; those of Ray, Docker and kubectl are not.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import CycloptsError
from fastapi.testclient import TestClient

import foreword
from foreword.cli.main import app
from foreword.engine.protocol import Loads
from foreword.engine.vllm import engine_arguments
from foreword.engine.vllm.requests import check_prompt
from foreword.serve import create_app
from foreword.serve.guard import OPEN_TO_ALL
from foreword.serve.remote import RemotePrefixes
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.vllm import guide
from tests.serve.scripted import Scripted

TYPED = [
    guide.words(one)[1:]
    for page in (guide.ONE, guide.SEVERAL)
    for one in guide.commands(page, "foreword")
]
IN_PODS = [guide.container(guide.resources()[kind])["args"] for kind in ("Job", "Deployment")]


def parsed(arguments: list[str]) -> Any:
    return app.parse_args(arguments, exit_on_error=False, print_error=False)[1].arguments


# -- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [*TYPED, *IN_PODS], ids=" ".join)
def test_commands_of_foreword_are_taken(arguments: list[str]) -> None:
    assert parsed(arguments)


def test_the_pages_show_commands_and_a_wrong_one_is_found() -> None:
    assert len(guide.served()) >= 5
    assert {one[0] for one in TYPED} >= {"serve", "pull", "list", "inspect"}
    with pytest.raises(CycloptsError):
        parsed(["serve", "--engin", "vllm"])


def test_every_server_that_is_shown_runs_vllm() -> None:
    found = [parsed(one)["arguments"] for one in guide.served()]
    assert {one.engine for one in found} == {"vllm"}


def test_what_vllms_own_server_is_told_is_what_foreword_makes() -> None:
    (command,) = guide.commands(guide.ONE, "vllm")
    words = guide.words(command)
    told = json.loads(words[words.index("--kv-transfer-config") + 1])
    extra = told["kv_connector_extra_config"]
    made = engine_arguments(extra["store"], extra["placeholder"], resident=extra["resident"])
    expected = made["kv_transfer_config"]
    assert told == expected


def test_the_body_that_is_shown_is_one_that_the_connector_takes() -> None:
    (body,) = map(json.loads, guide.blocks(guide.ONE, "json"))
    (command,) = guide.commands(guide.ONE, "vllm")
    (placeholder,) = re.findall(r'"placeholder": (\d+)', command)
    check_prompt(body["prompt"], 4, int(placeholder))
    assert body["kv_transfer_params"]["prefix"].keys() == {"name", "digest"}


def test_pages_name_one_version_of_vllm() -> None:
    script = (guide.ROOT / "scripts/vllm-env").read_text(encoding="utf-8")
    (tested,) = re.findall(r"^version=(\S+)$", script, re.MULTILINE)
    named = re.findall(r"vllm==([\d.]+)", guide.ONE + guide.SEVERAL)
    assert len(named) >= 2
    assert set(named) == {tested}


def test_the_metrics_that_are_named_are_there(tmp_path: Path) -> None:
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    engine = Scripted()
    engine.stats = replace(engine.stats, loads=Loads())
    application = create_app(backbone, engine, RemotePrefixes(PrefixStore(tmp_path)))
    with TestClient(application) as client:
        text = client.get("/metrics").text
    known = set(re.findall(r"^# TYPE (foreword_\w+)", text, re.MULTILINE))
    named = set(re.findall(r"`(foreword_\w+)`", guide.SEVERAL))
    assert len(named) > 8
    assert named - known == set()


# -- Kubernetes ----------------------------------------------------------------------------------


OLDEST = "1.30"
"""The first Kubernetes that the page promises: its pods may pause before they end."""


def check(resource: dict[str, Any]) -> None:
    """Check a resource against the schemas of the oldest and of the newest Kubernetes."""
    validator = pytest.importorskip("kubernetes_validate")
    for version in (OLDEST, validator.latest_version()):
        validator.validate(resource, version, strict=True)


def flaws() -> dict[str, tuple[str, Any]]:
    """By kind a path in the resource, and what is wrong there."""
    return {
        "PersistentVolumeClaim": ("spec.accessModes", "ReadWriteMany"),
        "Job": ("spec.template.spec.restartPolice", "Never"),
        "Deployment": ("spec.template.spec.terminationGracePeriodSeconds", "long"),
        "Service": ("spec.port", 8000),
        "PodDisruptionBudget": ("spec.minAvailabel", 1),
    }


@pytest.mark.parametrize("resource", guide.all_resources(), ids=lambda one: one["kind"])
def test_kubernetes_takes_what_is_described(resource: dict[str, Any]) -> None:
    assert f"Kubernetes {OLDEST}" in guide.SEVERAL
    check(resource)


@pytest.mark.parametrize("kind", flaws())
def test_the_validator_finds_what_is_wrong(kind: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    resource = copy.deepcopy(guide.resources()[kind])
    path, value = flaws()[kind]
    *folders, last = path.split(".")
    place = resource
    for folder in folders:
        place = place[folder]
    place[last] = value
    with pytest.raises(validator.ValidationError):
        check(resource)


def test_what_is_named_in_one_place_is_there_in_the_other() -> None:
    found = guide.resources()
    claims = {
        one["metadata"]["name"]
        for one in guide.all_resources()
        if one["kind"] == "PersistentVolumeClaim"
    }
    pods = {kind: found[kind]["spec"]["template"] for kind in ("Job", "Deployment")}
    for pod in pods.values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        (container,) = pod["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        used = [
            v["persistentVolumeClaim"] for v in volumes.values() if "persistentVolumeClaim" in v
        ]
        assert {one["claimName"] for one in used} <= claims
    labels = pods["Deployment"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (port,) = guide.container(found["Deployment"])["ports"]
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_the_server_of_the_pods_is_the_one_that_kubernetes_asks() -> None:
    deployment = guide.resources()["Deployment"]
    container = guide.container(deployment)
    given = parsed(container["args"])
    options = given["arguments"]
    assert container["ports"][0]["containerPort"] == options.port
    assert options.host == "0.0.0.0"
    key, *_ = container["env"]
    assert key["name"] == "FOREWORD_API_KEY"
    assert "--from-literal=api-key=" in guide.SEVERAL
    assert key["valueFrom"]["secretKeyRef"] == {"name": "foreword", "key": "api-key"}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in OPEN_TO_ALL
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > options.timeout + pause


def test_servers_read_prefixes_where_the_job_writes_them() -> None:
    found = guide.resources()
    places = {}
    for kind in ("Job", "Deployment"):
        container = guide.container(found[kind])
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == "prefixes"]
        places[kind] = mount.get("readOnly", False)
        assert str(parsed(container["args"])["store"].store) == mount["mountPath"]
    assert places == {"Job": False, "Deployment": True}


def test_what_prometheus_is_told_is_yaml() -> None:
    shown = [one for one in guide.blocks(guide.SEVERAL, "yaml") if "--8<--" not in one]
    (job,) = yaml.safe_load(shown[0])["scrape_configs"]
    (labels,) = guide.resources()["Service"]["spec"]["selector"].items()
    (rule,) = job["relabel_configs"]
    assert rule["source_labels"] == [f"__meta_kubernetes_pod_label_{labels[0]}"]
    assert rule["regex"] == labels[1]
