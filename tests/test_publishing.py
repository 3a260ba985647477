"""`tsprune export --push`: what is uploaded, what is refused before and after, against a small hub on this machine."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import tiny
import tsprune
from running import called
from test_export import Words
from tsprune import exporting
from tsprune.errors import TspruneError
from tsprune.publishing import check_repository

NAME = "acme/load-forecaster"


class Hub:
    """Repositories in memory, by the calls that an upload makes."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.broken = ""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.asked.append(f"{self.command} {self.path}")
                if self.path.startswith(("/api/models", "/api/repos")):
                    hub.tokens.add(self.headers.get("Authorization"))
                status, said = hub.answer(self.command, self.path.split("?")[0], body)
                data = json.dumps(said).encode()
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.files[name] = {".gitattributes": b"*.bin"}
            self.private[name] = asked.get("private", asked.get("visibility") == "private")
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name = "/".join(path.split("/")[3:5])
        if name not in self.files:
            return 404, {"error": "Repository not found"}
        if self.broken and self.broken in path:
            return 403, {"error": "this token may not write"}
        held = self.files[name]
        if "/preupload/" in path:
            listed = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in listed]}
        if "/commit/" in path:
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    held[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del held[value["path"]]
            return 200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
        siblings = [{"rfilename": file} for file in held]
        tree = [{"type": "file", "path": p, "size": len(b), "oid": "1" * 40} for p, b in held.items()]
        if "/tree/" in path:
            return 200, tree
        return 200, {"id": name, "sha": "1" * 40, "private": self.private[name], "siblings": siblings}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Words:
    form = Words()
    monkeypatch.setattr(exporting, "form_of", lambda name: form)
    return form


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """An export of a tiny model whose licence nobody knows."""
    source = tsprune.save(tiny.tiny_model("chronos_bolt"), tmp_path / "bolt")
    return ["export", str(source), "--out", str(tmp_path / "out"), "--horizon", "8", "--push", NAME]


def test_exactly_the_export_is_uploaded_privately(
    words: Words, hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, err = called([*arguments, "--license", "mit"], capsys)
    assert code == 0, err
    assert f"uploaded: {hub.url}/{NAME}" in said
    assert hub.private == {NAME: True}
    assert hub.tokens == {"Bearer hf_of_a_test"}
    out = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(out) == {"README.md", "export.json", "words.txt"}
    assert hub.files[NAME] == {".gitattributes": b"*.bin", **out}
    assert f"# {NAME}".encode() in out["README.md"]


def test_an_earlier_export_is_made_equal_and_visibility_is_kept(
    words: Words, hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*arguments, "--license", "mit"]
    assert called([*arguments, "--public"], capsys)[0] == 0
    assert hub.private == {NAME: False}
    hub.files[NAME]["stale.bin"] = b"of a bigger one"
    before = dict(hub.files[NAME])
    code, _, said = called(arguments, capsys)
    assert code == 2 and "exists and is public; nothing was uploaded. Push with --public" in said
    assert hub.files[NAME] == before
    code, _, said = called([*arguments, "--public", "--horizon", "9"], capsys)
    assert code == 0 and f"the earlier export in {NAME} is replaced" in said
    out = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files[NAME] == {".gitattributes": b"*.bin", **out}
    assert out["words.txt"] == b"9"


def test_other_repositories_are_left_alone(
    words: Words, hub: Hub, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files[NAME], hub.private[NAME] = {"thesis.tex": b"x", "README.md": b"y"}, True
    code, _, said = called([*arguments, "--license", "mit"], capsys)
    assert code == 2 and "holds thesis.tex and no export.json" in said
    assert hub.files[NAME] == {"thesis.tex": b"x", "README.md": b"y"}


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("offline", "switched off by HF_HUB_OFFLINE=1"),
        ("token", "no token for the hub.*hf auth login"),
        ("gone", "the hub answered .*check the connection"),
        ("forbidden", f"the hub answered .*{NAME} was created and is empty.*may write to acme"),
    ],
)
def test_after_a_failed_upload_the_export_is_kept(
    trouble: str,
    message: str,
    words: Words,
    hub: Hub,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    if trouble == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif trouble == "token":
        monkeypatch.delenv("HF_TOKEN")
    elif trouble == "gone":
        hub.server.server_close()
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.broken = "/preupload/"
    code, _, said = called([*arguments, "--license", "mit"], capsys)
    said = " ".join(said.split())
    assert code == 2
    assert re.search(message, said), said
    assert f"kept in {tmp_path / 'out'}" in said and f"hf upload {NAME} {tmp_path / 'out'} . --private" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "export.json", "words.txt"]
    assert "Traceback" not in said


def test_nothing_is_asked_of_the_hub_before_the_check_passed(
    words: Words, hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words.fails = "midway"
    code, _, said = called([*arguments, "--license", "mit"], capsys)
    assert code == 2 and "the words do not fit" in said
    code, _, said = called(arguments, capsys)
    assert code == 2 and "the licence of the weights of bolt is not known" in said and "--license NAME" in said
    assert hub.asked == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["alone", "a/b/c", "/x", "x/", "a/b--c", "a/..", "a/b c", "a/b.git", "a/" + "b" * 97])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(TspruneError, match="--push"):
        check_repository(name)


def test_public_needs_push(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = called(["export", "mini", "--out", str(tmp_path / "out"), "--public"], capsys)
    assert code == 2 and "--public: without effect without --push" in said
