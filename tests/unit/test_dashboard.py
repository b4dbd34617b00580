"""The workspace as it is printed, and as it reaches a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from drpo_verl.cli import app
from drpo_verl.metrics.catalogue import SECTIONS


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


def test_the_sections_and_their_plots_are_those_of_the_catalogue() -> None:
    bank = _dry_run()["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in bank] == [section.title for section in SECTIONS]
    for section, spec in zip(SECTIONS, bank, strict=True):
        plots = [plot["config"] for plot in spec["panels"]]
        assert spec["isOpen"]
        assert spec["flowConfig"]["columnsPerPage"] * spec["flowConfig"]["rowsPerPage"] >= len(plots)
        shown = {name for plot in plots for name in [*plot["metrics"], *filter(None, [plot.get("metricRegex")])]}
        assert shown == {
            name
            for panel in section.charts
            for metric in panel.metrics
            for name in (metric.by_bin.values() if panel.kind == "bins" else [metric.pattern or metric.name])
        }
        for panel in section.charts:
            (config, *_) = (plot for plot in plots if plot["chartTitle"].startswith(panel.title))
            assert config.get("yLogScale", False) == (panel.log and panel.kind != "bins"), panel.title
    views = {each["viewType"] for section in bank for each in section["panels"]}
    assert views == {"Run History Line Plot", "Bar Chart"}
    titles = [plot["config"]["chartTitle"] for plot in bank[0]["panels"]]
    assert titles[2:4] == ["Entropy of the policy, times -1", "Entropy of the policy"]


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


def test_wandb_workspaces_reads_it_back() -> None:
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.internal import View

    printed = _dry_run("--entity", "a-team", "--project", "a-project", "--name", "A name")
    workspace = Workspace._from_model(View.model_validate(printed))
    assert (workspace.entity, workspace.project, workspace.name) == ("a-team", "a-project", "A name")
    assert [section.name for section in workspace.sections] == [section.title for section in SECTIONS]
    assert all(section.panels for section in workspace.sections)


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
