"""velm serve over real connections: the answers are the model's, and whatever a client does, the next one is served."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving import CAPTIONS, photo, received, serving, tiny_runs, until
from velm import call

import velm_cli
from velm_cli.inference.model import Model

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("serve"))
        yield tiny_runs(captions=CAPTIONS, answers=["task=vqa"])


@pytest.fixture(scope="module")
def model(runs):
    return velm_cli.load(runs["captions"], "cpu", precision="fp32")


@pytest.fixture(scope="module")
def client(model):
    with serving(model, body_mb=2.0, max_pixels=1_000_000) as client:
        yield client


# ------------------------------------------------------------------ answers


def test_captions_are_the_models_however_the_image_is_sent(model, client):
    image, encoded = photo(1, "PNG"), base64.b64encode(photo(1, "PNG")).decode()
    wanted = {"caption": model.caption(image, beams=3)}
    assert client.ask("/caption?beams=3", image, "image/png")[:2] == (200, wanted)
    assert client.form("/caption", ("image", image), ("beams", "3"))[:2] == (200, wanted)
    assert client.json("/caption", {"image": encoded, "beams": 3})[:2] == (200, wanted)
    assert client.json("/caption", {"image": f"data:image/png;base64,{encoded}", "beams": 3})[:2] == (200, wanted)
    begun = client.form("/caption", ("image", image), ("prompt", "a"), ("beams", "1"), ("max_length", "4"))[1]
    assert begun["caption"] == model.caption(image, beams=1, prompt="a", max_length=4)


def test_drawn_captions_are_those_of_python(model, client):
    wanted = model.caption(photo(2), n=3, seed=7, top_p=0.8, temperature=2.0)
    asked = {"n": 3, "seed": 7, "top_p": 0.8, "temperature": 2.0, "image": base64.b64encode(photo(2)).decode()}
    assert client.json("/caption", asked)[1] == {"captions": wanted}


def test_the_best_few_captions_limits_and_lists_are_those_of_python(model, client):
    encoded = base64.b64encode(photo(2)).decode()
    options = {"min_length": 4, "max_length": 9, "no_repeat_ngram": 2, "repetition_penalty": 1.2}
    wanted = model.caption(photo(2), beams=3, best=2, **options)
    assert client.json("/caption", {"image": encoded, "beams": 3, "best": 2, **options})[1] == {"captions": wanted}
    assert len(wanted) == 2
    wanted = model.caption(photo(2), n=3, seed=7, top_k=2, **options)
    assert client.json("/caption", {"image": encoded, "n": 3, "seed": 7, "top_k": 2, **options})[1] == {
        "captions": wanted
    }
    listed = [model.caption(photo(number), max_length=9, prompt=prompt) for number, prompt in ((1, "a"), (3, "two"))]
    (found,) = client.json("/caption", {"image": encoded, "allowed": listed})[1].values()
    assert found == model.caption(photo(2), allowed=listed) and found in listed
    status, told, _ = client.json("/caption", {"image": encoded, "allowed": ["a zyzzyva"]})
    assert status == 422 and "not in the vocabulary" in told["error"]


def test_embeddings_and_attention(model, client):
    status, told, _ = client.form("/embed", ("image", photo(1)), ("images", photo(2)), ("texts", "a red box"))
    assert status == 200
    np.testing.assert_allclose(told["images"], model.embed_images([photo(1), photo(2)]), atol=1e-5)
    np.testing.assert_allclose(told["texts"], model.embed_texts(["a red box"]), atol=1e-5)

    status, told, _ = client.form("/attention", ("image", photo(1)), ("text", "a red box"))
    assert (status, told["words"]) == (200, ["a", "red", "box"])
    maps = np.array(told["maps"])
    assert maps.ndim == 3 and len(maps) == 3 and len(told["box"]) == 4
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, atol=0.01)


def test_answers_with_choices_and_probabilities(runs):
    model = velm_cli.load(runs["answers"], "cpu", precision="fp32")
    with serving(model) as client:
        question = ("question", "is there a circle?")
        assert client.form("/answer", ("image", photo(1)), question)[1] == {
            "answer": model.answer(photo(1), question[1])
        }
        told = client.form("/answer", ("image", photo(1)), question, ("probabilities", "3"))[1]
        wanted = model.answer(photo(1), question[1], probabilities=3)
        assert told["answer"] == next(iter(wanted)) and told["probabilities"] == pytest.approx(wanted, abs=1e-5)
        asked = {"image": base64.b64encode(photo(1)).decode(), "question": question[1], "choices": ["yes", "no"]}
        assert client.json("/answer", asked)[1] == {
            "answer": model.answer(photo(1), question[1], choices=["yes", "no"])
        }
        status, told, _ = client.json("/answer", asked | {"choices": ["yes", "zebra crossing"]})
        assert status == 422 and "zebra crossing" in told["error"], "what the model says of it"
        status, told, _ = client.form("/caption", ("image", photo(1)))
        assert status == 404 and told["error"].startswith("this model writes no captions")


def test_requests_that_come_together_share_batches_and_get_their_own_answers(model):
    with serving(model, wait_ms=20.0) as client:
        images = [photo(number) for number in range(24)]
        wanted = model.caption(images, beams=2)
        with ThreadPoolExecutor(24) as pool:
            told = list(pool.map(lambda image: client.ask("/caption?beams=2", image), images))
        assert [each[1]["caption"] for each in told] == wanted
        figures = metrics(client)
        assert figures["velm_batched_requests_total"] == 24
        assert figures["velm_batches_total"] < 20
        assert figures['velm_requests_total{path="/caption",status="200"}'] == 24
        assert figures["velm_requests_admitted"] == figures["velm_body_bytes"] == 0


def metrics(client) -> dict[str, float]:
    lines = client.ask("/metrics")[1].splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_the_document_lists_what_this_model_can_do(client):
    document = client.ask("/openapi.json")[1]
    assert set(document["paths"]) == {"/caption", "/embed", "/attention", "/health", "/metrics"}
    taken = document["paths"]["/caption"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert taken["required"] == ["image"] and taken["properties"]["beams"]["maximum"] == 10
    status, page, headers = client.ask("/docs")
    assert status == 200 and "POST /caption" in page and "script" not in page
    assert client.ask("/health")[1] == {"status": "ok"}
    assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers


# ------------------------------------------------------------------ what is no image, or too much

TRUNCATED = photo(3, size=(400, 300))[:2000]


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in 100 kB."""
    import struct

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(30_000 * (30_000 // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "kind", "status", "line"),
    [
        (b"just text", "text/plain", 415, "content type text/plain: send an image"),
        (b"<html><body>hello</body></html>", "text/html", 415, "content type text/html"),
        (b"<html><body>hello</body></html>", "image/jpeg", 422, "not an image"),
        (b"", "image/jpeg", 422, "the file has 0 bytes"),
        (TRUNCATED, "image/jpeg", 422, "truncated"),
        (b"{", "application/json", 422, "not valid JSON"),
        (b"[" * 100_000, "application/json", 422, "not valid JSON"),
        (b"[]", "application/json", 422, "must be a JSON object"),
        (b"{}", "application/json", 422, "image is missing"),
        (b'{"image": "###"}', "application/json", 422, "image: is not base64"),
        (b'{"image": 3}', "application/json", 422, "image: must be an image"),
        (b"nothing", "multipart/form-data; boundary=B", 422, "the form cannot be read"),
        (b"nothing", "multipart/form-data", 422, "the form cannot be read"),
    ],
)
def test_what_is_no_image_gets_one_clear_line(client, body, kind, status, line):
    told = client.ask("/caption", body, kind)
    assert told[0] == status and line in told[1]["error"] and "\n" not in told[1]["error"], told
    assert client.ask("/caption", photo())[0] == 200


def test_a_decompression_bomb_is_refused_before_it_is_decoded(client):
    content, began = bomb(), time.monotonic()
    status, told, _ = client.ask("/caption", content, "image/png")
    assert (status, told["error"]) == (413, "the image has too many pixels: this server takes 1,000,000")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("beam=3", "no option 'beam'; did you mean 'beams'?"),
        ("beams=0", "beams=0: must be at least 1"),
        ("beams=1000000", "beams=1000000: must be at most 10"),
        ("beams=1e9", "beams: must be a whole number"),
        ("beams=3&beams=4", "beams: give one"),
        ("temperature=nan", "temperature=nan: must be a number"),
        ("n=3&prompt=" + "a" * 2001, "prompt: 2,001 characters, at most 2,000"),
        ("max_length=61", "max_length=61: must be at most 60"),
        ("min_length=9&max_length=8", "min_length=9 is above max_length=8"),
        ("best=4&beams=3", "best=4: there are no more captions than beams=3"),
        ("best=2&n=2", "n draws captions, best takes those of the beams"),
        ("top_k=5", "top_k=5 has no effect without n"),
        ("n=2&length_penalty=2", "length_penalty=2.0 has no effect with n"),
        ("repetition_penalty=0", "repetition_penalty=0.0: must be above 0"),
        ("no_repeat_ngram=-1", "no_repeat_ngram=-1: must be at least 0"),
    ],
)
def test_options_are_checked(client, query, line):
    status, told, _ = client.ask(f"/caption?{query}", photo())
    assert status == 422 and told["error"].startswith(line), told


def test_half_a_character_is_no_text(client):
    image = base64.b64encode(photo()).decode()
    told = client.ask("/caption", json.dumps({"image": image, "prompt": "\ud83d"}), "application/json")
    assert told[:2] == (422, {"error": "prompt: not valid Unicode"})


def test_a_hundred_megabytes_are_refused_at_once_with_an_answer(client):
    """Whether the client says how many they are or not; it may still be sending."""
    began = time.monotonic()
    status, told, _ = client.ask("/caption", bytes(100_000_000))
    assert (status, told) == (413, {"error": "the request is larger than 2 MB"})

    def chunks():
        for _ in range(40):
            yield bytes(1_000_000)

    status, told, _ = client.ask("/caption", chunks())
    assert status == 413
    assert time.monotonic() - began < 25
    assert client.ask("/caption", photo())[0] == 200


def test_unknown_paths_and_methods(client):
    assert client.ask("/nothing")[0] == 404
    status, told, headers = client.ask("/caption")
    assert (status, headers["Allow"], told) == (405, "POST", {"error": "/caption takes POST"})
    assert client.ask("/caption", b"", method="OPTIONS")[0] == 405, "no CORS"
    assert b"400 Bad Request" in received(client.raw(b"nonsense\r\n\r\n"))
    assert client.ask("/caption", photo())[0] == 200


# ------------------------------------------------------------------ who may


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),  # its name points to 127.0.0.1: DNS rebinding
        ({"Host": "evil.example:8000"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "Ours.example"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_pages_of_others_cannot_use_it(model, headers, status):
    with serving(model, hosts=["ours.example"]) as client:
        told = client.ask("/caption", photo(), **headers)
        assert told[0] == status, told
        assert "Access-Control-Allow-Origin" not in told[2]
        assert client.ask("/caption", photo(), Origin=f"http://{client.host}")[0] == 200
        assert client.ask("/", Sec_Fetch_Site="cross-site")[0] == 200, "a link to the page"
        assert client.ask("/metrics", Sec_Fetch_Site="cross-site")[0] == 403


def test_with_a_token_only_the_page_its_documents_and_health_are_open(model):
    with serving(model, TOKEN) as client:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer é"}):
            status, told, headers = client.ask("/caption", photo(), **given)
            assert status == 401 and "token" in told["error"] and headers["WWW-Authenticate"] == "Bearer"
            assert TOKEN not in told["error"]
        assert client.ask("/metrics")[0] == 401
        assert client.ask("/caption", photo(), Authorization=f"Bearer {TOKEN}")[0] == 200
        for path in ("/", "/docs", "/openapi.json", "/health"):
            assert client.ask(path)[0] == 200


# ------------------------------------------------------------------ slow, many, gone

HEAD = b"POST /caption HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


def test_slow_senders_are_cut_off(model):
    with serving(model, head_seconds=0.3, read_seconds=0.3) as client:
        silent, headers = client.raw(), client.raw(b"POST /caption HTTP/1.1\r\nHost: ")
        body = client.raw(HEAD % 1000, b"a few bytes")
        assert b"408" in received(silent) and b"408" in received(headers)
        answer = received(body)
        assert b"HTTP/1.1 408" in answer and b"did not arrive within 0.3 seconds" in answer

        kept = client.raw(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(lambda: b"ok" in kept.recv(1000))
        kept.sendall(b"GET /health HTTP/1.1\r\nHo")
        began = time.monotonic()
        assert b"408" in received(kept) and time.monotonic() - began < 3, "also the second headers of a connection"
        until(lambda: client.ask("/caption", photo())[0] == 200)


@pytest.fixture
def held(monkeypatch):
    """The model writes captions only once this is set."""
    go, real = threading.Event(), Model.captions_of

    def captions_of(self, *arguments, **options):
        go.wait(20)
        return real(self, *arguments, **options)

    yield go, lambda: monkeypatch.setattr(Model, "captions_of", captions_of)
    go.set()


def test_a_full_queue_and_a_late_answer_say_so(model, held):
    go, hold = held
    with serving(model, queue=2, request_seconds=1.0) as client:
        hold()
        with ThreadPoolExecutor(2) as pool:
            late = [pool.submit(client.ask, "/caption", photo(number)) for number in range(2)]
            until(lambda: metrics(client)["velm_requests_admitted"] == 2)
            status, told, headers = client.ask("/caption", photo())
            assert (status, told, headers["Retry-After"]) == (503, {"error": "the server is busy"}, "1")
            assert client.ask("/health")[0] == 200
            assert {each.result()[0] for each in late} == {504}
        go.set()
        until(lambda: client.ask("/caption", photo())[0] == 200)  # once the batch that nobody waits for is done


def test_a_client_that_goes_away_frees_its_place(model, held):
    go, hold = held
    with serving(model) as client:
        hold()
        opened = [client.raw(HEAD % len(photo()), photo()) for _ in range(3)]
        until(lambda: metrics(client)["velm_requests_admitted"] == 3)
        for each in opened:
            each.close()
        until(lambda: metrics(client)["velm_requests_admitted"] == 0)
        go.set()
        assert client.ask("/caption", photo())[0] == 200


def test_many_connections_get_an_answer_each(model):
    with serving(model, connections=50, head_seconds=5.0) as client:
        opened = [client.raw() for _ in range(90)]
        for each in opened:
            each.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answers = [received(each) for each in opened]
        statuses = [answer[9:12] for answer in answers]
        assert set(statuses) == {b"200", b"503"} and 48 <= statuses.count(b"200") <= 50
        assert b"too many connections" in next(answer for answer in answers if answer[9:12] == b"503")
        crowd = [client.raw() for _ in range(130)]  # more than twice as many: closed
        time.sleep(0.1)
        for each in crowd:
            each.close()
        until(lambda: client.ask("/caption", photo())[0] == 200)


def test_all_bodies_together_have_a_limit(model):
    with serving(model, body_mb=1.0, bodies_mb=1.5) as client:
        waiting = client.raw(HEAD % 900_000, b"x")
        until(lambda: metrics(client)["velm_body_bytes"] == 900_000)
        status, told, _ = client.ask("/caption", bytes(900_000))
        assert (status, told["error"]) == (503, "too many large requests at once")
        waiting.close()
        until(lambda: metrics(client)["velm_body_bytes"] == 0)
        assert client.ask("/caption", photo())[0] == 200


def test_a_failure_of_the_server_is_one_line_in_its_log(model, monkeypatch, capfd):
    with serving(model) as client:
        monkeypatch.setattr(Model, "captions_of", lambda *_, **__: 1 / 0)
        assert client.ask("/caption", photo())[:2] == (500, {"error": "the server failed; its log has the reason"})
        monkeypatch.undo()
        assert client.ask("/caption", photo())[0] == 200
    log = capfd.readouterr().err
    assert log.count("\n") == 1 and "POST /caption: ZeroDivisionError" in log


def test_a_line_counts_requests_and_one_each_only_on_request(model, capsys):
    with serving(model) as client:
        client.ask("/caption", photo())
        client.ask("/nothing")
    assert client.said == [client.said[0]] and client.said[0].endswith("1 x 200, 1 x 404")
    assert capsys.readouterr().out == ""
    with serving(model, access_log=True) as client:
        client.ask("/caption?prompt=secret", photo())
    line = capsys.readouterr().out
    assert "127.0.0.1 POST /caption 200" in line and "secret" not in line


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def command(runs):
    """`velm serve` as a process of its own, with its port."""
    env = os.environ | {"VELM_SERVE_TOKEN": TOKEN}
    words = ["serve", f"checkpoint={runs['captions']}", "serve.port=0", "run.device=cpu"]
    started = subprocess.Popen(
        [sys.executable, "-m", "velm_cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    lines = [started.stdout.readline() for _ in range(2)]
    assert lines[1].startswith("serving     http://127.0.0.1:"), (lines, started.stderr.read())
    yield started, int(lines[1].split(":")[2].partition("/")[0])
    started.kill()
    started.wait()


def test_sigterm_finishes_what_has_begun_and_exits_0(command):
    from serving import Client

    process, port = command
    client = Client(port)
    assert client.ask("/caption", photo())[0] == 401, "the token comes from the environment"
    assert (
        TOKEN
        not in subprocess.run(["ps", "-p", str(process.pid), "-o", "args="], capture_output=True, text=True).stdout
    )
    image = photo()
    head = (HEAD % len(image))[:-2] + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
    begun = client.raw(head, image[:100])
    idle = client.raw()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(ConnectionRefusedError):
        client.raw()
    begun.sendall(image[100:])
    answer = received(begun)
    assert b"200 OK" in answer and b'"caption"' in answer
    assert received(idle) == b""
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and out.endswith("stopped     by SIGTERM\n") and err == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "checkpoint is not set: velm serve checkpoint=runs/train/NAME"),
        (["checkpoint=nowhere"], "nowhere"),
        (["checkpoint=nowhere", "serve.port=70000"], "serve.port=70000: must be at most 65535"),
        (["checkpoint=nowhere", "serve.host=no.such.host.invalid"], "serve.host=no.such.host.invalid"),
        (["checkpoint=nowhere", "serve.token_file=nothing"], "serve.token_file=nothing: No such file or directory"),
        (
            ["checkpoint=nowhere", "serve.token_file=short"],
            "serve.token_file=short: a token has at least 16 characters",
        ),
    ],
)
def test_mistakes_get_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("1234\n")
    (tmp_path / "short").chmod(0o600)
    assert call("serve", *words) == 2
    assert line in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_package_that_is_missing(client, monkeypatch, capsys):
    assert call("serve", "checkpoint=nowhere", f"serve.port={client.port}") == 2
    assert "Address already in use; choose another, or 0 for a free one" in capsys.readouterr().err
    monkeypatch.setattr("velm_cli.stages.serve.NEEDS", ("uvicorn", "nothing_by_this_name"))
    assert call("serve", "checkpoint=nowhere") == 2
    assert 'velm serve needs nothing_by_this_name: pip install "velm-cli[serve]"' in capsys.readouterr().err
