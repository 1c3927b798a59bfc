"""Names of models on the hub, with a local server that speaks the part of its protocol that huggingface_hub uses."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

import fastllm
from fastllm.weights.source import find_source
from helpers import writers
from helpers.writers import SMALL

pytest.importorskip("huggingface_hub")

COMMIT = {"main": "a" * 40, "old": "b" * 40}
LLAMA = writers.config(16, 16, 2, 2, 32000, n_layers=1, max_seq=64)


def files():
    """Repository -> revision -> file -> bytes."""
    model = writers.v0(SMALL, writers.random_weights(SMALL))
    old = writers.v0(SMALL, writers.random_weights(SMALL, seed=1))
    words = writers.tokenizer_bin(writers.tokenizer_words())
    llama = writers.v0(LLAMA, writers.random_weights(LLAMA, tied=True))
    folder = {
        "config.json": b'{"architectures": ["NothingForCausalLM"]}',
        "model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
        "pytorch_model.bin": b"not wanted",
        "onnx/model.onnx": b"not wanted",
        "original/consolidated.00.pth": b"not wanted",
        "model.msgpack": b"not wanted",
        "quantized.gguf": b"not wanted",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"",
    }
    sharded = {
        "config.json": b"{}",
        "pytorch_model.bin.index.json": b"{}",
        "pytorch_model-00001-of-00002.bin": b"1",
        "pytorch_model-00002-of-00002.bin": b"2",
        "model.gguf": b"not wanted",
    }
    module = {"config.json": b"{}", "model.safetensors": b"1", "pytorch_model.bin": b"not wanted", "README.md": b"#"}
    vectors = {**folder, "modules.json": b"[]", "1_Pooling/config.json": b"{}", "other/config.json": b"not wanted"}
    vectors |= {f"2_Dense/{name}": blob for name, blob in module.items()}
    older = {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "2_Dense/pytorch_model.bin": b"2"}
    older |= {f"0_Transformer/{name}": blob for name, blob in folder.items()}
    ggufs = {f"model-Q{n}.gguf": b"GGUF" for n in (4, 8)} | {"README.md": b"#"}
    parts = {f"big-0000{n}-of-00002.gguf": b"GGUF" for n in (1, 2)}
    return {
        "someone/stories": {
            "main": {"small/model.bin": model, "small/tokenizer.bin": words, "other/tokenizer.bin": words},
            "old": {"small/model.bin": old, "small/tokenizer.bin": words},
        },
        "someone/llama": {"main": {"stories15M.bin": llama}},
        "someone/folder": {"main": folder},
        "someone/sharded": {"main": sharded},
        "someone/vectors": {"main": vectors},
        "someone/old-vectors": {"main": older},
        "someone/ggufs": {"main": ggufs | parts},
        "someone/empty": {"main": {"README.md": b"#"}},
        "someone/gated": {"main": {"config.json": b"{}"}},
        "hf-internal-testing/llama-tokenizer": {
            "main": {"tokenizer.model": writers.tokenizer_bin(writers.tokenizer_words(32000))}
        },
    }


REPOSITORIES = files()
ASKED = []  # method and path of each request


def answer_to(path):
    """The server's answer to a path: status, headers and body."""
    if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/|/tree/|$)([^/]*)/?", path):
        repo, what, revision = found[1], found[2].strip("/"), found[3] or "main"
    elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        repo, revision, what = found[1], found[2], found[3]
    else:
        return 404, {}, b""
    if repo == "someone/gated":
        return 403, {"X-Error-Code": "GatedRepo"}, b""
    revision = {commit: name for name, commit in COMMIT.items()}.get(revision, revision)
    if revision not in REPOSITORIES.get(repo, {}):
        return 404, {"X-Error-Code": "RevisionNotFound" if repo in REPOSITORIES else "RepoNotFound"}, b""
    held, commit = REPOSITORIES[repo][revision], {"X-Repo-Commit": COMMIT[revision]}
    if path.startswith("/api/"):
        entries = [
            {"type": "file", "path": name, "size": len(blob), "oid": hashlib.sha1(blob).hexdigest()}
            for name, blob in held.items()
        ]
        siblings = [{"rfilename": name} for name in held]
        about = {"id": repo, "modelId": repo, "sha": COMMIT[revision], "siblings": siblings, "tags": []}
        return 200, commit, json.dumps(entries if what == "tree" else about).encode()
    if what in held:
        etag = f'"{hashlib.sha256(held[what]).hexdigest()}"'
        return 200, {**commit, "ETag": etag, "X-Linked-Size": str(len(held[what]))}, held[what]
    return 404, {**commit, "X-Error-Code": "EntryNotFound"}, b""


class Hub(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        ASKED.append(f"{self.command} {path}")
        code, headers, body = answer_to(path)
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ask(endpoint, tmp_path):
    """A function that runs the command line in an empty folder, with an empty cache and the local server as the hub."""
    ASKED.clear()
    (tmp_path / "here").mkdir()

    def run(*args, code=0, **env):
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "fastllm", *map(str, args)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            cwd=tmp_path / "here",
            env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings | env,
        )
        assert done.returncode == code, done.stderr
        if code:
            assert re.fullmatch(r"fastllm: [^\n]*\n", done.stderr), done.stderr
        return done.stderr if code else done.stdout

    return run


def downloaded(tmp_path):
    snapshots = (tmp_path / "cache" / "hub").glob("models--*/snapshots/*")
    return {str(p.relative_to(s)) for s in snapshots for p in s.rglob("*") if not p.is_dir()}


def test_a_file_and_what_is_beside_it(ask, tmp_path):
    """owner/name/file fetches the file and the tokenizer of its folder. The second time both come from the cache."""
    words = ("run", "someone/stories/small/model.bin", "-s", "1", "-n", "20", "-t", "1", "-i", "the")
    text = ask(*words)
    assert text.startswith("the")
    assert downloaded(tmp_path) == {"small/model.bin", "small/tokenizer.bin"}
    gets = sum("GET /someone" in line for line in ASKED)
    assert ask(*words) == text
    assert sum("GET /someone" in line for line in ASKED) == gets
    assert ask(*words, HF_HUB_OFFLINE="1") == text
    assert ask(*words, HF_ENDPOINT="http://127.0.0.1:9") == text
    old = ask(*words, "--revision", "old")
    assert old != text
    assert ask(*words, "--revision", "b" * 40, HF_HUB_OFFLINE="1") == old


def test_llama_s_tokenizer_is_found(ask):
    """A llama2.c file of 32,000 words without a tokenizer beside it: Llama's is fetched, if the file itself was."""
    words = ("someone/llama/stories15M.bin", "-t", "0", "-n", "8", "-i", "the")
    assert ask("run", *words).startswith("the")
    assert ask("run", *words, HF_HUB_OFFLINE="1").startswith("the")


def test_llama_s_tokenizer_is_not_fetched_for_files_here(ask, tmp_path):
    (tmp_path / "here" / "model.bin").write_bytes(REPOSITORIES["someone/llama"]["main"]["stories15M.bin"])
    assert "no tokenizer fits" in ask("run", "model.bin", code=2)
    assert ASKED == []


def test_convert(ask, tmp_path):
    ask("convert", "someone/stories/small/model.bin", "out.safetensors", "--dtype", "q8", "--revision", "old")
    here = ask("run", tmp_path / "here" / "out.safetensors", "-s", "1", "-n", "20", "-i", "the")
    words = ("--dtype", "q8", "--revision", "old", "-s", "1", "-n", "20", "-i", "the")
    assert ask("run", "someone/stories/small/model.bin", *words) == here


def test_of_a_folder_what_is_needed(ask, tmp_path):
    """Of a folder the safetensors and what they need are fetched, not the same weights in other formats."""
    assert "'NothingForCausalLM'" in ask("run", "someone/folder", code=2)
    assert downloaded(tmp_path) == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}


def test_of_a_sentence_transformers_model_its_modules(ask, tmp_path):
    needed = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    ask("inspect", "someone/vectors", code=0)
    modules = {"modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    assert downloaded(tmp_path) == needed | modules


def test_of_an_older_sentence_transformers_model_the_models_folder(ask, tmp_path):
    ask("embed", "someone/old-vectors", "a", code=2)
    needed = {
        f"0_Transformer/{n}" for n in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    }
    assert downloaded(tmp_path) == needed | {"modules.json", "1_Pooling/config.json", "2_Dense/pytorch_model.bin"}


def test_of_a_folder_without_safetensors(ask, tmp_path):
    said = ask("inspect", "someone/sharded", code=2)
    assert ask("inspect", "someone/sharded", code=2, HF_HUB_OFFLINE="1") == said
    assert "is not here" not in said
    assert downloaded(tmp_path) == {
        "config.json",
        "pytorch_model.bin.index.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    }


def test_all_parts_of_a_split_file(ask, tmp_path):
    ask("inspect", "someone/ggufs/big-00001-of-00002.gguf", code=2)
    assert downloaded(tmp_path) == {"big-00001-of-00002.gguf", "big-00002-of-00002.gguf"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("someone/nobody", "someone/nobody is neither a file here nor a model on the hub"),
        ("someone/stories/nothing.bin", "someone/stories has no file nothing.bin on the hub"),
        ("someone/gated", "someone/gated is gated: accept its terms"),
        ("someone/empty", "someone/empty has no weights of a form that fastllm knows on the hub: name a file"),
        ("someone/ggufs", "someone/ggufs has 2 models on the hub: name a file, such as someone/ggufs/model-Q4.gguf"),
        ("some..one/x", "some..one/x does not exist"),
        ("../one", "../one does not exist"),
        ("./one", "one does not exist"),
        ("nothing.bin", "nothing.bin does not exist"),
    ],
)
def test_names_that_are_none(ask, name, said):
    assert said in ask("run", name, code=2)


def test_a_revision_that_is_none(ask):
    words = ("run", "someone/stories/small/model.bin", "--revision", "never")
    assert "someone/stories has no revision 'never' on the hub" in ask(*words, code=2)


@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_nowhere(ask, env):
    assert "someone/folder is not here, and the hub cannot be reached" in ask("run", "someone/folder", code=2, **env)


def test_without_the_library(ask, tmp_path):
    """Without huggingface_hub the error names the extra to install."""
    (tmp_path / "huggingface_hub.py").write_text("raise ModuleNotFoundError(name=__name__)")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    err = ask("run", "someone/folder", code=2, PYTHONPATH=path)
    assert "someone/folder does not exist here" in err
    assert "pip install 'fastllm[hub]'" in err


def test_what_is_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "folder").mkdir(parents=True)
    path, from_hub = find_source("someone/folder", None)
    assert path.is_dir()
    assert not from_hub


def test_a_path_is_no_name(tmp_path, monkeypatch):
    """A name that begins like a path is never looked up on the hub."""
    monkeypatch.chdir(tmp_path)
    for path in ("./owner/model", "../owner/model", str(tmp_path / "model")):
        with pytest.raises(fastllm.CheckpointError, match="does not exist"):
            fastllm.load(path)


def test_pull_says_where_the_model_is(ask, tmp_path):
    """What pull has downloaded is what other commands run, without a network."""
    path = ask("pull", "someone/stories/small/model.bin").removesuffix("\n")
    assert os.path.samefile(path, next((tmp_path / "cache").rglob("snapshots/*/small/model.bin")))
    assert downloaded(tmp_path) == {"small/model.bin", "small/tokenizer.bin"}
    words = ("-s", "1", "-n", "20", "-i", "the")
    here = ask("run", path, *words)
    assert ask("run", "someone/stories/small/model.bin", *words, HF_HUB_OFFLINE="1") == here
    folder = ask("pull", "someone/folder").removesuffix("\n")
    assert sorted(os.listdir(folder)) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert "b" * 40 in ask("pull", "--revision", "old", "someone/stories/small/model.bin")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("someone/nobody", "someone/nobody is neither a file here nor a model on the hub"),
        ("someone/ggufs", "name a file, such as someone/ggufs/model-Q4.gguf"),
        (".", ". is a path here, not a name of the hub"),
        ("nothing", "nothing is no name, not a name of the hub"),
    ],
)
def test_pull_of_what_is_none(ask, name, said):
    assert said in ask("pull", name, code=2)


def test_list_shows_what_is_in_the_cache(ask, tmp_path):
    """The figures are those of huggingface_hub; each name is one that other commands take."""
    from huggingface_hub import scan_cache_dir

    assert ask("list") == ""
    assert json.loads(ask("list", "--json")) == []
    ask("pull", "someone/stories/small/model.bin")
    ask("pull", "someone/stories/small/model.bin", "--revision", "old")
    for name in ("someone/vectors", "someone/sharded", "someone/ggufs/big-00001-of-00002.gguf"):
        ask("pull", name)
    ask("pull", "someone/ggufs/model-Q8.gguf")
    found = {row["name"]: row for row in json.loads(ask("list", "--json", HF_ENDPOINT="http://127.0.0.1:9"))}
    assert {name: row["type"] for name, row in found.items()} == {
        "someone/stories/small/model.bin": "llama2.c",
        "someone/vectors": "safetensors",
        "someone/sharded": "torch",
        "someone/ggufs/model-Q8.gguf": "gguf",
        "someone/ggufs/big-00001-of-00002.gguf": "gguf",
    }
    for repo in scan_cache_dir(tmp_path / "cache" / "hub").repos:
        if repo.repo_id in found:
            assert found[repo.repo_id]["bytes"] == repo.size_on_disk
            assert datetime.fromisoformat(found[repo.repo_id]["last_used"]).timestamp() == int(repo.last_accessed)
    model = found["someone/stories/small/model.bin"]
    assert model["bytes"] == len(REPOSITORIES["someone/stories"]["main"]["small/model.bin"])
    assert "a" * 40 in model["path"]
    parts = found["someone/ggufs/big-00001-of-00002.gguf"]
    assert parts["bytes"] == len(b"GGUF")  # both parts are the same blob
    for name in found:
        ask("pull", name, HF_HUB_OFFLINE="1")
    table = [line.split("  ") for line in ask("list").splitlines()]
    assert table[0][0] == "NAME"
    assert {row[0].strip() for row in table[1:]} == set(found)


def test_list_of_a_cache_that_is_damaged(ask, tmp_path):
    """What is incomplete is said; a folder that is no model's is left out."""
    hub = tmp_path / "cache" / "hub"
    ask("pull", "someone/folder")
    (hub / "models--someone--folder" / "blobs" / "abc.incomplete").write_bytes(b"1")
    (hub / "models--someone--nothing" / "refs").mkdir(parents=True)
    (hub / "datasets--someone--texts" / "snapshots" / "1").mkdir(parents=True)
    (hub / "models--someone--words" / "snapshots" / "1").mkdir(parents=True)
    (hub / "models--someone--words" / "snapshots" / "1" / "config.json").write_bytes(b"\xff not JSON")
    (hub / "version.txt").write_text("1")
    rows = {row["name"]: row["type"] for row in json.loads(ask("list", "--json"))}
    assert rows == {"someone/folder": "safetensors, not complete", "someone/words": "no weights"}


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b"}, "/b"),
        ({"HF_HOME": "/c"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({"HF_HOME": "~/e"}, "/home/f/e/hub"),
        ({}, "/home/f/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_library_has_it(env, folder):
    code = "from fastllm.weights.cached import cache_folder; print(cache_folder())"
    theirs = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "XDG_"))}
    for words in (code, theirs):
        done = subprocess.run(
            [sys.executable, "-c", words], capture_output=True, env=clean | {"HOME": "/home/f"} | env, check=True
        )
        assert done.stdout.decode().strip() == folder
