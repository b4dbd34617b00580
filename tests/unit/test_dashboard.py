"""The workspace as it is printed, and as it reaches a server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from drpo_verl.cli import app
from drpo_verl.dashboard import SECTIONS, Matching
from drpo_verl.run_folder.steps import read_steps

REAL = Path(__file__).parents[1] / "data" / "dppo_topk_tv.jsonl"
# Which a run may or may not log.
OTHER = re.compile(
    r"(inference_mismatch|policy_drift)/"
    r"(kl_k1|kl_k3|chi2|ess|correlation|abs_prob_diff_(mean|p50|p99|max)|ratio_(p01|p50|p99|max)"
    r"|abs_prob_diff_mean_(positive|negative)_advantage)"
    r"|(inference_mismatch|policy_drift)_by_prob/(share|abs_prob_diff)_"
    r"(le_1e-4|1e-4_1e-3|1e-3_1e-2|1e-2_0.1|0.1_0.5|0.5_0.9|0.9_0.99|gt_0.99)(_positive_advantage|_negative_advantage)?"
    r"|trust_region/(attenuated_frac|gradient_removed_frac|delta)|actor/entropy"
    r"|training/off_policy/trajectory_staleness/(mean|max)"
)


@dataclass
class Server:
    """A wandb server that takes views, or refuses them."""

    refusal: str | None = None
    views: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        query = request.get("query", "")
        if "upsertView" in query:
            if self.refusal:
                return {"data": {"upsertView": None}, "errors": [{"message": self.refusal, "path": ["upsertView"]}]}
            self.views.append(request["variables"])
            return {"data": {"upsertView": {"view": {"id": "id", "name": request["variables"]["name"]}}}}
        viewer = {"id": "id", "entity": "someone", "username": "someone", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    import wandb

    fake = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = json.dumps(fake.answer(json.loads(body) if self.path == "/graphql" else {})).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{http.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()  # forget settings read before
    yield fake
    wandb.teardown()
    http.shutdown()
    http.server_close()


def _dry_run(*options: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["dashboard", "--dry-run", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_ids(each) for name, each in value.items() if name != "__id__"}
    return [_without_ids(each) for each in value] if isinstance(value, list) else value


def test_the_sections_and_their_panels() -> None:
    bank = _dry_run()["spec"]["section"]["panelBankConfig"]["sections"]
    names = [section["name"].split(":")[0] for section in bank]
    assert names == ["Reward", "Trust region", "Mismatch", "Drift", "Throughput"]
    for section, spec in zip(SECTIONS, bank, strict=True):
        assert spec["isOpen"] and spec["flowConfig"]["columnsPerPage"] * spec["flowConfig"]["rowsPerPage"] >= len(
            section.panels
        )
        for panel, config in zip(section.panels, (each["config"] for each in spec["panels"]), strict=True):
            assert config["chartTitle"] == panel.title
            if isinstance(panel, Matching):
                assert config["useMetricRegex"] and config["metricRegex"] == panel.pattern
            else:
                assert config["metrics"] == list(panel.metrics)
                assert config.get("yLogScale", False) == getattr(panel, "log", False)
    views = {each["viewType"] for section in bank for each in section["panels"]}
    assert views == {"Run History Line Plot", "Bar Chart"}


def test_the_runs_are_grouped_by_method() -> None:
    section = _dry_run()["spec"]["section"]
    (runs,) = section["runSets"]
    assert runs["grouping"] == [
        {"section": "config", "name": name}
        for name in ("run.value.method", "actor_rollout_ref.value.actor.policy_loss.loss_mode")
    ]
    for settings in (
        section["settings"],
        *(each["localPanelSettings"] for each in section["panelBankConfig"]["sections"]),
    ):
        assert settings["useRunsTableGroupingInPanels"] and settings["xAxis"] == "_step"


def test_every_metric_shown_is_one_that_runs_log() -> None:
    (*_, last) = read_steps(REAL)
    for section in SECTIONS:
        for panel in section.panels:
            if isinstance(panel, Matching):
                assert re.match(panel.pattern, "val-core/drpo_verl/arithmetic/acc/mean@1")
                continue
            for name in panel.metrics:
                assert name in last.metrics or OTHER.fullmatch(name), name


def test_wandb_workspaces_reads_it_back() -> None:
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.internal import View

    printed = _dry_run("--entity", "a-team", "--project", "a-project", "--name", "A name")
    workspace = Workspace._from_model(View.model_validate(printed))
    assert (workspace.entity, workspace.project, workspace.name) == ("a-team", "a-project", "A name")
    assert [len(section.panels) for section in workspace.sections] == [len(section.panels) for section in SECTIONS]


@pytest.mark.parametrize("entity", ["a-team", ""])
def test_what_reaches_the_server_is_what_a_dry_run_prints(server: Server, entity: str) -> None:
    result = CliRunner().invoke(app, ["dashboard", "--project", "a-project", "--entity", entity])
    assert result.exit_code == 0, result.output
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == (entity or "someone", "a-project")
    assert (view["displayName"], view["type"]) == ("Trust regions", "project-view")
    assert _without_ids(json.loads(view["spec"])) == _without_ids(_dry_run()["spec"])


def test_a_server_that_refuses_is_quoted(server: Server) -> None:
    server.refusal = "project not found"
    result = CliRunner().invoke(app, ["dashboard"])
    assert result.exit_code == 1
    assert "the workspace was not saved" in result.stderr and "project not found" in result.stderr


def test_without_credentials_it_says_what_to_do(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    result = CliRunner().invoke(app, ["dashboard"])
    assert result.exit_code == 1
    assert "No API key" in result.stderr and "`wandb login`" in result.stderr and "--dry-run" in result.stderr


def test_a_name_that_wandb_refuses_is_named() -> None:
    result = CliRunner().invoke(app, ["dashboard", "--dry-run", "--name", "🚀"])
    assert result.exit_code == 1 and "--name='🚀'" in result.stderr and "Emojis" in result.stderr
