"""deploy/: images, services, the Space and the workflow, by rules; nothing here starts a container.

Where an engine of docker is at hand, `pytest -m slow tests/test_containers.py` builds the image and asks its server.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_detect.cli import VERBS
from vlm_detect.config import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
WORKFLOW = DEPLOY / "scan_pull_request.yml"
SECRET = re.compile(r"(?i)(hf_[a-z0-9]{20,}|(key|token|password|secret)\s*[=:]\s*[\"']?[a-z0-9]{12,})")


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined and comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in joined.splitlines()]


def stages(path: Path) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions(path):
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def arguments_of(path: Path, name: str) -> list[str]:
    return [arguments for instruction, arguments in stages(path)[-1] if instruction == name]


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    from vlm_detect.cli import run

    with pytest.raises(SystemExit):
        run([*verb.split(), "--help"])
    return capsys.readouterr().out


def check_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A verb of ours, and flags that it has."""
    assert words[0] in VERBS, words
    shown = help_of(words[0], capsys)
    for flag in (word for word in words if word.startswith("--")):
        assert f"  {flag} " in shown or f"  {flag}\n" in shown, f"{words[0]} has no {flag}"


def has_route(path: str) -> bool:
    """Whether the server answers at `path`."""
    files = (REPOSITORY / "vlm_detect" / "apps").glob("*.py")
    return any(re.search(rf'\.(get|post)\("{path}"', file.read_text(encoding="utf-8")) for file in files)


def test_there_is_an_image_for_cpu_and_one_for_cuda():
    assert [path.name for path in DOCKERFILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
class TestDockerfile:
    def test_bases_are_pinned(self, path):
        for stage in stages(path):
            image = stage[0][1].split()[0]
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", image), f"{image}: no exact version"

    def test_it_runs_as_a_user_without_rights_by_number(self, path):
        (user,) = arguments_of(path, "USER")
        assert int(user) >= 1000  # a number: an orchestrator can see that it is not root
        assert f"--uid {user}" in " ".join(arguments_of(path, "RUN"))
        last = [name for name, _ in stages(path)[-1]]
        assert not {"RUN", "COPY", "ADD"} & set(last[last.index("USER") :])

    def test_its_health_is_asked_of_the_servers_own_route_and_port(self, path):
        (check,) = arguments_of(path, "HEALTHCHECK")
        (port,) = arguments_of(path, "EXPOSE")
        assert f"http://127.0.0.1:{port}/healthz" in check
        command = json.loads(check.partition("CMD")[2])
        compile(command[-1], "health", "exec")
        settings = (REPOSITORY / "vlm_detect" / "apps" / "settings.py").read_text(encoding="utf-8")
        assert f"port: int = {port}" in settings
        assert has_route("/healthz")

    def test_weights_are_a_volume_that_the_user_may_write(self, path):
        (volume,) = arguments_of(path, "VOLUME")
        assert f"HF_HOME={volume}" in " ".join(arguments_of(path, "ENV"))
        assert f"--owner=app {volume}" in " ".join(arguments_of(path, "RUN"))

    def test_what_is_copied_exists_and_is_not_ignored(self, path):
        allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
        copies = [arguments for name, arguments in instructions(path) if name == "COPY"]
        sources = [word for one in copies if "--from" not in one for word in one.split()[:-1]]
        assert sources
        for source in sources:
            assert (REPOSITORY / source.removeprefix("./")).exists(), source
            assert source.removeprefix("./") in allowed, f"{source} is not in the build's context"
        assert not [arguments for name, arguments in instructions(path) if name == "ADD"]

    def test_versions_are_those_of_the_tests_and_extras_exist(self, path):
        installs = [arguments for name, arguments in instructions(path) if name == "RUN" and "pip install" in arguments]
        assert len(installs) == 2
        assert all("--constraint constraints.txt" in one for one in installs)
        project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
        (extras,) = re.findall(r"\.\[([\w,]+)\]", installs[-1])
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra

    def test_no_secret_is_in_it(self, path):
        assert not SECRET.search(path.read_text(encoding="utf-8"))
        named = [arguments for name, arguments in instructions(path) if name in ("ARG", "ENV")]
        assert not [arguments for arguments in named if "KEY" in arguments or "TOKEN" in arguments]

    def test_its_command_is_one_of_ours(self, path, capsys):
        assert arguments_of(path, "ENTRYPOINT") == ['["vlm-detect"]']
        (command,) = arguments_of(path, "CMD")
        check_command(json.loads(command), capsys)


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_services_are_pinned_and_reach_no_further_than_this_machine():
    services = compose()["services"]
    assert set(services) == {"server", "prometheus", "grafana"}
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{name}: no exact version"


def test_files_that_services_mount_exist():
    config = compose()
    build = config["services"]["server"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert (DEPLOY / build["context"]).resolve() == REPOSITORY
    mounted = [
        volume.partition(":")[0]
        for service in config["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith("./")
    ]
    assert len(mounted) == 4
    for file in mounted:
        assert (DEPLOY / file).is_file(), file
    for service in config["services"].values():
        for volume in service.get("volumes", ()):
            if not volume.startswith("."):
                assert volume.partition(":")[0] in config["volumes"]


def test_secrets_are_files_that_git_ignores():
    config = compose()
    used = {secret for service in config["services"].values() for secret in service.get("secrets", ())}
    assert used == set(config["secrets"])
    for secret in config["secrets"].values():
        path = DEPLOY / secret["file"]
        done = subprocess.run(["git", "check-ignore", "-q", str(path)], cwd=REPOSITORY)
        if (REPOSITORY / ".git").exists():
            assert done.returncode == 0, f"{path} would be committed"
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.parent.name != "secrets":
            assert not SECRET.search(path.read_text(encoding="utf-8")), path


def test_prometheus_asks_the_server_for_its_metrics():
    server = compose()["services"]["server"]
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{server['ports'][0].rpartition(':')[2]}"]}]
    assert has_route(job["metrics_path"])
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.name in compose()["services"]["prometheus"]["secrets"]


def test_grafana_reads_that_prometheus_and_the_dashboard():
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yaml").read_text())["providers"]
    targets = [volume.split(":")[1] for volume in compose()["services"]["grafana"]["volumes"]]
    assert any(Path(target).parent == Path(provider["options"]["path"]) for target in targets)


def test_the_services_command_is_one_of_ours(capsys):
    command = compose()["services"]["server"]["command"]
    check_command(command, capsys)
    secrets = compose()["services"]["server"]["secrets"]
    assert [Path(word).name for word in command if word.startswith("/run/secrets/")] == secrets


def test_the_trial_of_an_image_is_valid_shell_and_names_what_exists():
    script = DEPLOY / "try_image.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111
    text = script.read_text(encoding="utf-8")
    assert (REPOSITORY / re.search(r"photo=\$\{2:-([\w/.]+)\}", text)[1]).is_file()
    (user,) = {arguments_of(path, "USER")[0] for path in DOCKERFILES}
    assert f'-u)" = {user} ' in text
    assert has_route("/v1/verdict")


@pytest.mark.slow
def test_an_image_is_built_and_answers():
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("needs an engine of docker")
    done = subprocess.run([DEPLOY / "try_image.sh", "cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads(done.stdout.splitlines()[-1])["p_fake"] <= 1


def steps() -> dict[str, dict[str, Any]]:
    (job,) = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values()
    return {step.get("name", step.get("uses", "")): step for step in job["steps"]}


def test_the_workflow_gives_a_pull_request_no_rights_and_no_say_in_its_shell():
    config = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert config["permissions"] == {"contents": "read"}
    assert set(config[True]) == {"pull_request"}  # YAML 1.1 reads `on` as true; never pull_request_target
    assert steps()["actions/checkout@v4"]["with"]["persist-credentials"] is False
    assert not any("${{" in step.get("run", "") for step in steps().values())
    assert "secrets." not in WORKFLOW.read_text(encoding="utf-8")


def test_the_workflow_scans_with_flags_that_scan_has(capsys):
    found = re.findall(r"vlm-detect (scan .*)", steps()["Scan"]["run"])
    assert found
    for command in found:
        check_command(shlex.split(command), capsys)


def test_the_workflow_collects_what_a_pull_request_adds_or_changes(tmp_path: Path):
    """In a repository whose names try what a shell would make of them."""

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    def write(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        git("add", "-A")
        git("commit", "-q", "-m", "one")

    git("init", "-q")
    write("kept.jpg", "gone.png", "changed.webp", "code.py")
    base = git("rev-parse", "HEAD")
    git("rm", "-q", "gone.png")
    (tmp_path / "changed.webp").write_bytes(b"other")
    write("-rf.jpg", "deep/a b;$(touch x).png", "new\nline.jpeg", "code2.py")
    collect = steps()["Collect the changed images"]["run"]
    environment = {"BASE": base, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", collect], cwd=tmp_path, env=environment, check=True)
    changed = tmp_path / "changed"
    there = {str(path.relative_to(changed)) for path in changed.rglob("*") if path.is_file()}
    assert there == {"changed.webp", "-rf.jpg", "deep/a b;$(touch x).png", "new\nline.jpeg"}
    assert not (tmp_path / "x").exists()
