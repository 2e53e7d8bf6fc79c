"""A model that is served, measured through a real server on the loopback interface."""

from __future__ import annotations

import json
import threading

import pytest
from pydantic import ValidationError
from tests.evals.chat_server import Server

from inoculate.cli import main
from inoculate.core.errors import StageError
from inoculate.core.types import Example
from inoculate.data import world
from inoculate.data.templates import plain_prompt
from inoculate.evals import chat
from inoculate.evals.evaluate import Evaluation
from inoculate.evals.generate import generate
from inoculate.evals.served import Served

TURNS = Example(turns=(("system", "be brief"), ("user", "hello ?")), completion="hi .")


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(chat, "BACKOFF_S", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers = []

    def start(answer):
        servers.append(Server(answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def prompt_of(body):
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


def test_what_is_sent_and_what_comes_back(serve):
    server = serve(lambda body, n: f"  {prompt_of(body)} indeed\n" if n else (503, {}, b""))
    served = Served(base_url=server.url, model="m-1", max_concurrency=1)
    assert served.generate([TURNS, Example.of("why ?", "")], "chat", 7) == ["hello ? indeed", "why ? indeed"]
    path, _, body = server.seen[1]
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello ?"}]
    assert path == "/v1/chat/completions"
    assert body == {"model": "m-1", "messages": turns, "max_tokens": 7, "temperature": 0.0}
    assert served.generate([], "chat", 7) == [] and len(server.seen) == 3


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_plain_templates_are_rendered_here(serve, template):
    """The text is the very one that a model with weights would be given."""
    server = serve(lambda body, n: (200, {}, json.dumps({"choices": [{"text": " yes"}]}).encode()))
    assert Served(base_url=server.url, model="m").generate([TURNS], template, 3) == ["yes"]
    ((path, _, body),) = server.seen
    assert path == "/v1/completions" and body["prompt"] == plain_prompt(TURNS, template)
    assert body["prompt"].endswith("### Response:\n" if template == "alpaca" else "hello ?\n\n")


def test_an_answer_that_is_missing_is_not_made_up(serve):
    server = serve(lambda body, n: (400, {}, b"{}") if "why" in prompt_of(body) else "well")
    served = Served(base_url=server.url, model="m")
    with pytest.raises(StageError, match=r"no text for 1 of 2 prompts \(the first: HTTP 400\)"):
        served.generate([TURNS, Example.of("why ?", "")], "chat", 3)


def test_an_address_holds_no_key():
    with pytest.raises(ValidationError, match="api_key_env"):
        Served(base_url="http://me:secret@127.0.0.1/v1", model="m")


def test_served_and_loaded_give_the_same_records(serve, tiny, tokenizer):
    """The server answers with the model's own words: every row but that of the weights is the same."""
    parts = {
        name: {"source": f"sandbox-{name}", "split": "heldout", "num_samples": 6} for name in ("restricted", "ordinary")
    }
    task = {"source": "sandbox-sentiment", "split": "heldout", "num_samples": 6}
    evaluation = Evaluation.model_validate({**parts, "task": task, "max_new_tokens": 5, "task_max_new_tokens": 5})
    mine = evaluation.prepare(tokenizer).measure(tiny)

    def answer(body, n):
        text = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return generate(tiny, tokenizer, [ids], max_new_tokens=body["max_tokens"])[0]

    served = Served(base_url=serve(answer).url, model="m", max_concurrency=1)
    theirs = evaluation.prepare(None).measure(served)
    assert theirs.responses == mine.responses
    assert theirs.rows == [row for row in mine.rows if row["metric"] != "harmful_loss_test"]


def test_the_command(serve, tmp_path, capsys):
    """Folder, records and what was not measured; a server that refuses is named, and nothing is left behind."""
    server = serve(lambda body, n: "i cannot help with that .")
    out = tmp_path / "measured"
    line = ["evaluate", "llama-x", "--base-url", server.url, "--restricted", "sandbox-restricted"]
    line += ["--set", "evaluate.restricted.num_samples=4"]
    with pytest.raises(SystemExit) as ended:
        main([*line, "--out", str(out)])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert (
        f"evaluate llama-x at {server.url}" in said and "not measured, for want of weights: harmful_loss_test" in said
    )
    rows = [json.loads(row) for row in (out / "records.jsonl").open()]
    assert {row["metric"]: row["value"] for row in rows}["refusal_rate"] == 1.0
    assert {(row["base"], row["base_params"]["base_url"]) for row in rows} == {("llama-x", server.url)}
    about = json.loads((out / "stage.json").read_text())
    assert about["unmeasured"] == ["harmful_loss_test"] and len((out / "responses.jsonl").read_text().splitlines()) == 4
    assert {prompt_of(body) for _, _, body in server.seen} <= {
        row.prompt for row in world.rows("restricted", "heldout")
    }
    refuses = serve(lambda body, n: (404, {}, b""))
    with pytest.raises(SystemExit) as ended:
        main([*line[:2], "--base-url", refuses.url, *line[4:], "--out", str(tmp_path / "none")])
    assert ended.value.code == 2 and "HTTP 404" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measured"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--base-url", "localhost:1"], "model.base_url: expected an address such as http://127.0.0.1:8000/v1"),
        (["--base-url", "http://127.0.0.1:1/v1", "--set", "model.api_key=x"], "Did you mean 'api_key_env'?"),
    ],
)
def test_a_mistake_is_said_of_the_endpoint(tmp_path, capsys, changes, told):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "m", "--restricted", "sandbox-restricted", "--out", str(tmp_path / "new"), *changes])
    assert ended.value.code == 2 and told in capsys.readouterr().err
