"""The Helm chart: rendered by Helm, held against the schemas of Kubernetes and of KEDA; its scaling query is asked of a
real Postgres."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import latest_version, validate
from pydantic import ValidationError

from orchestrator_agent.store.pool import Database
from pantheon import Agent
from protocol import new_id

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "docker" / "helm"
# Of the package that the tests install where there is one for the system, else of PATH.
HELM = shutil.which("helm", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
# The oldest that the chart says it is for, and the newest whose schemas there are.
KUBERNETES = ("1.27", latest_version())
KEDA = {"ScaledObject", "TriggerAuthentication"}
# Models that are generated from KEDA's own definitions of its kinds. By name: a type checker reads 27,000 lines of it.
KEDA_MODELS = "cloudcoil.models.keda.v1alpha1"
AGENTS = ("llm_agent", "enhancement_agent", "examination_agent", "drafting_agent", "communication_agent")

EVERYTHING = {
    "image": {"repository": "registry.example.com/pantheon", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
    "secret": {
        "name": "mine",
        "keys": {
            "redisUrl": "redis-url", "natsPassword": "nats-password", "natsCreds": "mesh.creds",
            "consulToken": "consul-token", "llmApiKey": "llm-api-key",
        },
    },
    "nats": {"url": "nats://a:4222,nats://b:4222", "user": "pantheon"},
    "consul": {"address": "consul:8500"},
    "podAnnotations": {"team": "content"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "orchestrator": {"workflows": {"shout.yaml": "name: shout\n"}, "env": {"RATE_LIMITS": '{"agents": {}}'}},
    "agents": {
        "drafting_agent": {"enabled": False},
        "translation_agent": {
            "image": "registry.example.com/translation:1", "taskTypes": ["translate_text"],
            "replicas": {"min": 0, "max": 5}, "tasksPerReplica": 4, "resources": {}, "env": {"TONE": "friendly"},
        },
    },
}  # fmt: skip

Manifest = dict[str, Any]

pytestmark = pytest.mark.skipif(
    HELM is None and not os.environ.get("CI"), reason="there is no Helm: its package is for Linux on x86-64 alone"
)


def helm(*arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    assert HELM is not None, "there is no Helm"
    value_arguments = ["--values", "-"] if values is not None else []
    return subprocess.run(
        [HELM, *arguments, str(CHART), *value_arguments],
        input=json.dumps(values) if values is not None else None, capture_output=True, text=True, check=False,
    )  # fmt: skip


def rendered(values: dict[str, Any] | None = None) -> dict[tuple[str, str], Manifest]:
    done = helm("template", "mesh", values=values)
    assert done.returncode == 0, done.stderr
    made: list[Manifest] = [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]
    by_name = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in made}
    assert len(by_name) == len(made)
    return by_name


def validate_keda(manifest: Manifest) -> None:
    model = getattr(importlib.import_module(KEDA_MODELS), manifest["kind"])
    # The models pass over what they do not know: what comes back must be all that went in.
    read = model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert read == manifest


@pytest.mark.parametrize("values", [None, {"keda": {"enabled": False}}, EVERYTHING], ids=["default", "no KEDA", "all"])
@pytest.mark.parametrize("version", KUBERNETES)
def test_what_is_rendered_is_valid(values: dict[str, Any] | None, version: str) -> None:
    linted = helm("lint", "--strict", values=values)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    manifests = rendered(values)
    assert len(manifests) > 10
    for (kind, name), manifest in manifests.items():
        assert len(name) <= 63
        if kind in KEDA:
            validate_keda(manifest)
        else:
            validate(manifest, version, strict=True)


def test_a_scaled_object_that_keda_would_not_take_is_refused() -> None:
    made = rendered()["ScaledObject", "mesh-llm-agent"]
    for wrong in ({"polingInterval": 5}, {"pollingInterval": "often"}, {"triggers": [{"type": "postgresql"}]}):
        with pytest.raises((ValidationError, AssertionError)):
            validate_keda({**made, "spec": {**made["spec"], **wrong}})


def test_a_wrong_value_is_refused() -> None:
    wrongs: list[dict[str, Any]] = [{"orchestrator": {"streamReplicas": 2}}, {"agents": {"Bad Name": {}}}, {"typo": 1}]
    for wrong in wrongs:
        done = helm("template", "mesh", values=wrong)
        assert done.returncode != 0
        assert "schema" in done.stderr


def test_every_process_has_a_deployment_and_may_be_disrupted_one_at_a_time() -> None:
    manifests = rendered()
    for agent in ("orchestrator_agent", *AGENTS):
        name = f"mesh-{agent.replace('_', '-')}"
        pod = manifests["Deployment", name]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"pantheon/{agent}:0.1.0"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["resources"]["limits"]["memory"]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert pod["terminationGracePeriodSeconds"] > int(environment["DRAIN_GRACE_SECONDS"])
        budget = manifests["PodDisruptionBudget", name]["spec"]
        assert budget["maxUnavailable"] == 1
        labels = manifests["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_secrets_are_read_from_files_that_the_pod_mounts() -> None:
    manifests = rendered(EVERYTHING)
    for (kind, name), manifest in manifests.items():
        if kind not in ("Deployment", "Job"):
            continue
        pod = manifest["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {
            f"/run/secrets/pantheon/{item['path']}"
            for volume in pod["volumes"] if "secret" in volume for item in volume["secret"]["items"]
        }  # fmt: skip
        read = {
            variable["value"] for variable in container["env"] if str(variable["value"]).startswith("/run/secrets/")
        }
        assert read == mounted, name
        assert not [
            variable
            for variable in container["env"]
            if variable["name"] in ("DATABASE_URL", "NATS_PASSWORD", "LLM_API_KEY")
        ]


def test_the_chart_knows_what_its_agents_serve() -> None:
    agents = yaml.safe_load((CHART / "values.yaml").read_text())["agents"]
    assert set(agents) == set(AGENTS)
    for name in AGENTS:
        module = importlib.import_module(f"agents.{name}.agent")
        declared: Agent = module.agent
        assert sorted(agents[name]["taskTypes"]) == sorted(declared.task_types)


def test_agents_scale_by_their_work_in_postgres() -> None:
    manifests = rendered(EVERYTHING)
    assert ("ScaledObject", "mesh-drafting-agent") not in manifests
    scaled = manifests["ScaledObject", "mesh-translation-agent"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": "mesh-translation-agent"}
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (0, 5)
    (trigger,) = scaled["triggers"]
    assert (trigger["type"], trigger["metadata"]["targetQueryValue"]) == ("postgresql", "4")
    # An upgrade must not set back what the scaler has set.
    assert "replicas" not in manifests["Deployment", "mesh-translation-agent"]["spec"]
    authentication = manifests["TriggerAuthentication", trigger["authenticationRef"]["name"]]["spec"]
    assert authentication["secretTargetRef"] == [
        {"parameter": "connection", "name": "mine", "key": "scaler-database-url"}
    ]
    assert rendered({"keda": {"enabled": False}})["Deployment", "mesh-llm-agent"]["spec"]["replicas"] == 2


async def test_the_query_counts_what_waits_and_what_is_at_work(database_url: str) -> None:
    query = rendered()["ScaledObject", "mesh-llm-agent"]["spec"]["triggers"][0]["metadata"]["query"]
    # status, agent, pinned agent, task type; how often it counts
    rows = [
        ("dispatched", "llm_agent", None, "generate_content", 1),
        ("dispatched", "llm_agent", None, "of_an_older_version", 1),
        ("dispatched", "other_agent", None, "generate_content", 0),
        ("ready", None, None, "generate_content", 1),
        ("ready", None, None, "summarize_content", 1),
        ("ready", None, "llm_agent", "generate_content", 1),
        ("ready", None, "other_agent", "generate_content", 0),
        ("ready", None, None, "review_content", 0),
        ("waiting", None, None, "generate_content", 0),
        ("completed", "llm_agent", None, "generate_content", 0),
    ]
    async with Database(database_url) as database:

        async def root(status: str, *, responded: bool = False) -> Any:
            made = new_id()
            await database.execute(
                "insert into tasks (root_task_id, task_id, task_type, status, answered_at) "
                "values ($1, $1, 'create_blog_post', $2, case when $3 then now() end)",
                made, status, responded,
            )  # fmt: skip
            return made

        for parent in (await root("running"), await root("paused"), await root("completed", responded=True)):
            for status, agent, pinned, task_type, _ in rows:
                await database.execute(
                    "insert into tasks (root_task_id, task_id, parent_task_id, step, task_type, status, agent, "
                    "pinned_agent) values ($1, $2, $1, $3, $4, $5, $6, $7)",
                    parent, (one := new_id()), str(one), task_type, status, agent, pinned,
                )  # fmt: skip
        (counted,) = await database.fetch(query)
    assert counted["count"] == sum(row[-1] for row in rows)
