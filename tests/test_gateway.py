"""One running mcpmux as a whole process: its beginning, its config while it runs, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.gateway_process import Gateway, prepared, running
from tests.journeys.raw import Raw
from tests.postgres import open_folder
from tests.schemas.watched import watching
from tests.servers import counter, faulty

WAIT = 20.0  # seconds: starts and ends of processes on a busy machine


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user may pass when the tests run as root."""
    with open_folder() as made:
        yield made


@pytest.fixture
def gateway(folder: Path) -> Iterator[Gateway]:
    with running(folder, {"alpha": counter()}) as made:
        yield made


def http_status(url: str) -> int:
    """The status of one GET; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def told(gateway: Gateway) -> dict[str, object]:
    """What `mcpmux status --json` says as a whole."""
    found: dict[str, object] = json.loads(gateway.run("status", "--json").stdout)
    return found


# The beginning -----------------------------------------------------------------------------------------------------


def test_serve_is_ready_although_a_server_is_not(folder: Path) -> None:
    servers = {"slow": faulty("silent-start", "--gate", folder / "open"), "alpha": counter()}
    with running(folder, servers) as gateway:
        assert http_status(f"{gateway.url}/readyz") == 200
        assert gateway.status()["slow"]["state"] == "starting"
        gateway.wait_for(lambda: gateway.logged("link_ready", server="alpha"), WAIT)
        (folder / "open").touch()


def test_the_summary_says_how_mcpmux_is_used_when_every_server_has_settled(folder: Path) -> None:
    servers = {
        "alpha": counter(),
        "off": counter(enabled=False),
        "keyless": counter(env={"KEY": "${env:NO_SUCH_VARIABLE_HERE}"}),
    }
    with running(folder, servers) as gateway:
        (summary,) = gateway.wait_for(lambda: gateway.logged("servers_settled"), WAIT)
        assert summary["ready"] == ["alpha"]
        assert summary["disabled"] == ["off"]
        assert summary["unconfigured"] == {"keyless": "not set: NO_SUCH_VARIABLE_HERE"}
        assert summary["endpoints"] == {
            "all": f"{gateway.url}/mcp",
            "one server": f"{gateway.url}/servers/ID/mcp",
            "sse": f"{gateway.url}/sse",
        }
        assert str(gateway.config) in str(summary["token_command"])
        assert "--group MCP-Admin" in str(summary["token_command"])
        settings = summary["open_webui"]
        assert isinstance(settings, dict)
        assert settings["url"] == f"{gateway.url}/mcp"


def test_a_token_of_the_summary_opens_the_door(gateway: Gateway) -> None:
    (summary,) = gateway.wait_for(lambda: gateway.logged("servers_settled"), WAIT)
    made = os.popen(str(summary["token_command"])).read().strip()

    async def tools() -> str:
        async with watching() as http:
            session = await Raw.greeted(http, f"{gateway.url}/mcp", made)
            async with session.post({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}) as answer:
                return await answer.text()

    assert "alpha__echo" in asyncio.run(tools())


def test_every_line_is_json_even_when_python_warns_of_everything(folder: Path) -> None:
    with prepared(folder, {"alpha": counter()}) as gateway:
        gateway.environment = {"PYTHONWARNINGS": "always", "PYTHONDEVMODE": "1"}
        gateway.start()
        gateway.wait_for(lambda: gateway.logged("link_ready"), WAIT)
        assert gateway.end() == 0
        assert gateway.unreadable == []


def test_a_second_serve_on_the_same_data_is_refused(gateway: Gateway) -> None:
    done = gateway.run("serve", check=False)
    assert done.returncode == 2
    refused = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert (refused["event"], refused["reason"]) == ("start_refused", "data_dir_busy")
    assert str(gateway.data) in refused["message"]
    assert gateway.status()["alpha"]["id"] == "alpha"


def test_a_port_that_is_taken_is_one_clear_line_and_nothing_is_left(folder: Path) -> None:
    with socket.socket() as taken, prepared(folder, {"alpha": counter()}) as gateway:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = gateway.run("serve", "--port", str(taken.getsockname()[1]), check=False)
        assert done.returncode == 2
        refused = [line for line in map(json.loads, done.stderr.splitlines()) if line["event"] == "start_refused"]
        assert len(refused) == 1
        assert "Cannot listen on 127.0.0.1:" in refused[0]["message"]
        assert "postgres" not in done.stderr, "something was started first"
        assert gateway.left() == []


def test_a_signal_before_it_is_ready_ends_it_in_good_order(folder: Path) -> None:
    with prepared(folder, {"alpha": counter()}) as gateway:
        with pytest.raises(AssertionError, match="mcpmux ended with 0"):
            interrupt_once_there(gateway)
        assert gateway.ended() == 0
        assert not gateway.logged("ready")


def interrupt_once_there(gateway: Gateway) -> None:
    """Start, and send SIGTERM as soon as PostgreSQL is being started."""
    wait_for = gateway.wait_for

    def interrupted(happened: object, wait: float, what: str) -> list[dict[str, object]]:
        assert gateway.process is not None
        wait_for(lambda: gateway.logged("postgres_logged"), WAIT, "PostgreSQL")
        gateway.note_tree()
        gateway.process.send_signal(signal.SIGTERM)
        return wait_for(happened, wait, what)  # type: ignore[arg-type]

    gateway.wait_for = interrupted  # type: ignore[method-assign,assignment]
    try:
        gateway.start()
    finally:
        gateway.wait_for = wait_for  # type: ignore[method-assign]


# The config, while it runs -----------------------------------------------------------------------------------------


def test_saving_the_file_applies_the_difference_and_leaves_the_rest_alone(gateway: Gateway) -> None:
    gateway.wait_for(lambda: gateway.logged("link_ready", server="alpha"), WAIT)
    pid = gateway.status()["alpha"]["pid"]
    gateway.save({**gateway.servers, "beta": counter()})
    (applied,) = gateway.wait_for(lambda: gateway.logged("config_applied"), WAIT)
    assert (applied["added"], applied["changed"], applied["removed"]) == (["beta"], [], [])
    gateway.wait_for(lambda: gateway.logged("link_ready", server="beta"), WAIT)
    gateway.save({"alpha": gateway.servers["alpha"], "beta": counter(enabled=False)})
    gateway.wait_for(lambda: gateway.logged("config_applied", changed=["beta"]), WAIT)
    assert gateway.status()["beta"]["state"] == "disabled"
    gateway.save({"alpha": gateway.servers["alpha"]})
    gateway.wait_for(lambda: gateway.logged("config_applied", removed=["beta"]), WAIT)
    assert gateway.status().keys() == {"alpha"}
    assert gateway.status()["alpha"]["pid"] == pid
    assert gateway.metric("mcpmux_config_applied_total") == 4


def test_a_file_with_an_error_changes_nothing_and_everybody_says_so(gateway: Gateway) -> None:
    gateway.config.write_text("gateway: {listen: {port: 0}\nservers: [")
    (refused,) = gateway.wait_for(lambda: gateway.logged("config_refused"), WAIT)
    assert "servers.yaml:" in str(refused["problems"])
    config = told(gateway)["config"]
    assert isinstance(config, dict)
    assert config["ok"] is False
    assert config["errors"] == refused["problems"]
    assert gateway.status()["alpha"]["state"] == "ready"
    assert gateway.metric("mcpmux_config_valid") == 0
    assert gateway.metric("mcpmux_config_refused_total") == 1
    assert "the file has errors" in gateway.run("status").stdout
    gateway.save()
    gateway.wait_for(lambda: gateway.metric("mcpmux_config_valid") == 1, WAIT)
    config = told(gateway)["config"]
    assert isinstance(config, dict)
    assert config["ok"] is True


def test_a_change_of_the_gateway_section_asks_for_a_restart_and_the_servers_still_apply(gateway: Gateway) -> None:
    gateway.section = {**gateway.section, "names": {"max_length": 48}}
    gateway.save({**gateway.servers, "beta": counter()})
    gateway.wait_for(lambda: gateway.logged("restart_needed"), WAIT)
    gateway.wait_for(lambda: gateway.logged("link_ready", server="beta"), WAIT)
    assert "restart needed" in gateway.run("status").stdout
    del gateway.section["names"]
    gateway.save()
    gateway.wait_for(lambda: len(gateway.logged("config_applied")) == 2, WAIT)
    assert "restart needed" not in gateway.run("status").stdout


def test_sighup_reads_the_file_now(gateway: Gateway) -> None:
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGHUP)
    gateway.wait_for(lambda: gateway.logged("config_applied", added=[], changed=[], removed=[]), WAIT)


# The end -----------------------------------------------------------------------------------------------------------


async def in_flight(gateway: Gateway, http: aiohttp.ClientSession, gate: Path) -> asyncio.Task[tuple[int, str]]:
    """A call that has reached its server and waits there for a file."""
    session = await Raw.greeted(http, f"{gateway.url}/mcp", gateway.token("ana@example.com", "MCP-Admin"))
    call = asyncio.get_running_loop().create_task(session.call("alpha__slow", {"gate": str(gate)}))
    await gateway.soon(gate.with_suffix(".entered").exists, WAIT, "the call")
    return call


async def test_a_call_in_flight_finishes_while_mcpmux_drains(folder: Path) -> None:
    with prepared(folder, {"alpha": counter()}) as gateway:
        gateway.start()
        await gateway.ready()
        async with watching() as http:
            call = await in_flight(gateway, http, folder / "gate")
            assert gateway.process is not None
            gateway.note_tree()
            gateway.process.send_signal(signal.SIGTERM)
            await gateway.soon(lambda: gateway.logged("drain_begun", calls=1), WAIT)
            async with http.get(f"{gateway.url}/readyz") as answer:
                assert (answer.status, await answer.json()) == (503, {"status": "draining"})
            greeting = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
            token = gateway.token("ben@example.com", "MCP-Admin")
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
            async with http.post(f"{gateway.url}/mcp", json=greeting, headers=headers) as answer:
                assert answer.status == 503
            (folder / "gate").touch()
            status, body = await call
            assert status == 200
            assert '"isError":true' not in body
        assert await asyncio.to_thread(gateway.ended) == 0
        assert not gateway.logged("calls_cut")
        assert gateway.logged("stopped")


async def test_a_second_signal_does_not_wait_for_the_call(folder: Path) -> None:
    with prepared(folder, {"alpha": counter()}) as gateway:
        gateway.start()
        await gateway.ready()
        async with watching() as http:
            call = await in_flight(gateway, http, folder / "gate")
            assert gateway.process is not None
            gateway.note_tree()
            gateway.process.send_signal(signal.SIGINT)
            await gateway.soon(lambda: gateway.logged("drain_begun"), WAIT)
            gateway.process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(gateway.ended, 15.0) == 0
            assert gateway.logged("calls_cut", calls=1)
            call.cancel()
            await asyncio.wait({call})


def test_it_starts_again_on_the_same_data_at_once(gateway: Gateway) -> None:
    gateway.grant("ana@example.com", "alpha")
    assert gateway.end() == 0
    assert not (gateway.data / "control.sock").exists()
    gateway.start()
    assert "ana@example.com" in gateway.run("access", "list").stdout


def test_status_of_an_mcpmux_that_was_killed_says_that_none_runs(gateway: Gateway) -> None:
    gateway.end(signal.SIGKILL)
    done = gateway.run("status", check=False)
    assert done.returncode == 1
    assert "No mcpmux is running" in done.stderr
    gateway.start()
